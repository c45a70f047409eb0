//! `./dev play` as a person starts and leaves it: up within a minute, also after one that was
//! killed, and by Ctrl-C nothing stays. Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, kill_process_group};
use stockade_e2e::local_hosts::{ProcessId, Signal};

/// From its start to three hosts Ready, on a machine that has played before.
const UP: Duration = Duration::from_secs(60);
/// From Ctrl-C to its end.
const DOWN: Duration = Duration::from_secs(30);

/// A play that is up, ended with this test, whatever way that ends.
struct Play {
    child: Child,
    /// Where its control plane is, and all else.
    folders: [PathBuf; 2],
    kubectl: String,
    kubeconfig: String,
    /// From its start until it said that its hosts are Ready.
    took: Duration,
}

impl Drop for Play {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.signal(Signal::INT);
            let _ = self.child.wait();
        }
    }
}

impl Play {
    /// `./dev play` until it has said what to try, in a process group of its own as a shell gives
    /// it one.
    fn start() -> Self {
        let started = Instant::now();
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../dev"))
            .arg("play")
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut this = Self {
            child,
            folders: [PathBuf::new(), PathBuf::new()],
            kubectl: String::new(),
            kubeconfig: String::new(),
            took: Duration::ZERO,
        };
        let mut text = String::new();
        for line in lines.map(|line| line.unwrap()) {
            if line.contains("all hosts are Ready") {
                this.took = started.elapsed();
            }
            if line.starts_with("Ctrl-C ends") {
                break;
            }
            text.push_str(&line);
            text.push('\n');
        }
        assert!(!this.took.is_zero(), "{text}");
        // Its words tell where its two folders are.
        let between = |from: &str, to: &str| {
            let rest = text.split(from).nth(1).and_then(|rest| rest.split(to).next());
            rest.unwrap_or_else(|| panic!("no {from:?}: {text}")).to_owned()
        };
        this.kubeconfig = between("export KUBECONFIG=", "\n");
        this.kubectl = between("alias kubectl=", "\n");
        let plane = Path::new(&this.kubeconfig).parent().unwrap().to_owned();
        this.folders = [plane, between("the logs are ", "/*.log").into()];
        println!("up in {:.1} s", this.took.as_secs_f64());
        this
    }

    fn kubectl(&self, words: &[&str], input: &str) {
        let mut child = Command::new("timeout")
            .arg("90")
            .arg(&self.kubectl)
            .args(words)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", self.folders[0].join("kubectl-cache"))
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        assert!(child.wait().unwrap().success(), "kubectl {words:?}");
    }

    /// Runs a VM; its QEMU is a process of this play.
    fn runs_a_vm(&self) {
        let vm = "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
            metadata: {name: demo, namespace: default}\nspec:\n  memory: 64Mi\n  \
            disks: [{name: root, storage: shared, blank: {}, size: 16Mi}]\n";
        self.kubectl(&["apply", "-f", "-"], vm);
        self.kubectl(&["wait", "--for=condition=Ready", "svm/demo", "--timeout=80s"], "");
        let [_, folder] = &self.folders;
        let traces = traces(folder);
        let qemus = traces.keys().filter(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "qemu-system-x86"
        });
        assert!(qemus.count() >= 1, "{traces:?}");
    }

    /// Ctrl-C goes to everything in the terminal's foreground group, not to one process.
    fn signal(&self, signal: Signal) -> rustix::io::Result<()> {
        kill_process_group(Pid::from_child(&self.child), signal)
    }

    /// Fails if anything is left: a folder, a process, a mount.
    fn left_nothing(&self) {
        for folder in &self.folders {
            assert!(!folder.exists(), "{} is still there", folder.display());
            assert_eq!(traces(folder), Traces::new(), "{}", folder.display());
        }
    }
}

/// Files of processes, by process.
type Traces = std::collections::BTreeMap<u32, Vec<&'static str>>;

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| *pid != std::process::id())
}

/// Processes whose command line, environment or mounts name the folder.
fn traces(folder: &Path) -> Traces {
    let folder = folder.to_str().unwrap().as_bytes();
    let mut found = Traces::new();
    for pid in processes() {
        for file in ["cmdline", "environ", "mountinfo"] {
            // One that ends meanwhile is no trace.
            let bytes = fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
            if bytes.windows(folder.len()).any(|window| window == folder) {
                found.entry(pid).or_default().push(file);
            }
        }
    }
    found
}

/// The processes that live in a host's namespaces: those of the processes that name the folder, but
/// not our own.
fn dwellers(folder: &Path) -> Vec<ProcessId> {
    let namespace = |pid: u32| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    let own = namespace(std::process::id());
    let theirs: BTreeSet<PathBuf> = traces(folder).into_keys().filter_map(namespace).collect();
    let lives_there = |pid: &u32| {
        namespace(*pid).is_some_and(|link| Some(&link) != own.as_ref() && theirs.contains(&link))
    };
    processes().filter(lives_there).filter_map(|pid| ProcessId::of(pid.try_into().ok()?)).collect()
}

/// Links and named network namespaces of the machine.
fn networks() -> Vec<String> {
    let names = |folder: &str| {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let mut all = [names("/sys/class/net"), names("/run/netns")].concat();
    all.sort();
    all
}

#[test]
fn a_play_is_up_within_a_minute_also_after_a_killed_one_and_ctrl_c_leaves_nothing() {
    let before = networks();

    // One that is killed while a guest runs: nobody has told its hosts to end.
    let mut killed = Play::start();
    killed.runs_a_vm();
    let name = fs::read_to_string(format!("/proc/{}/comm", killed.child.id())).unwrap();
    assert_eq!(name.trim(), "stockade-play", "what is killed is the play, no shell before it");
    let dwellers = dwellers(&killed.folders[1]);
    assert!(dwellers.len() >= 3 * 3, "three hosts, each with an init and daemons: {dwellers:?}");
    killed.child.kill().unwrap();
    killed.child.wait().unwrap();
    assert!(killed.folders[1].is_dir(), "it could not clean up itself");

    // The next one is up in time, and nothing is left of the first.
    let mut play = Play::start();
    assert!(play.took < UP, "it took {} s", play.took.as_secs());
    killed.left_nothing();
    // What nobody lives in and no name holds is gone: namespaces and their mounts.
    assert!(dwellers.iter().all(|process| !process.lives()), "{dwellers:?}");
    for folder in &play.folders {
        assert!(folder.is_dir() && !traces(folder).is_empty(), "{}", folder.display());
    }
    play.runs_a_vm();

    let asked = Instant::now();
    play.signal(Signal::INT).unwrap();
    let ended = play.child.wait().unwrap();
    println!("down in {:.1} s", asked.elapsed().as_secs_f64());
    assert!(ended.success(), "{ended} (signal {:?})", ended.signal());
    assert!(asked.elapsed() < DOWN);
    play.left_nothing();
    assert_eq!(networks(), before);
}
