//! `./dev play` as a person starts and leaves it: up within a minute, and by Ctrl-C nothing stays.
//! Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use stockade_e2e::local_hosts::{ProcessId, Signal};

/// From its start to three hosts Ready, on a machine that has played before.
const UP: Duration = Duration::from_secs(60);
/// From Ctrl-C to its end.
const DOWN: Duration = Duration::from_secs(30);

/// Ended with this test, whatever way that ends.
struct Play(Child);

impl Drop for Play {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|ended| ended.is_none()) {
            let _ = self.signal();
            let _ = self.0.wait();
        }
    }
}

impl Play {
    /// What Ctrl-C sends.
    fn signal(&self) -> std::io::Result<()> {
        let process = ProcessId::of(i32::try_from(self.0.id()).unwrap());
        process.map_or(Ok(()), |process| process.signal(Signal::INT))
    }
}

/// Processes whose command line, environment, root or mounts name the folder.
fn traces(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        for file in ["cmdline", "environ", "mountinfo"] {
            // One that ends meanwhile is no trace.
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            if bytes.windows(folder.len()).any(|window| window == folder.as_bytes()) {
                found.push(format!("{name}: {file}"));
            }
        }
    }
    found
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
fn a_play_is_up_within_a_minute_and_ctrl_c_leaves_nothing() {
    let program = env!("CARGO_BIN_EXE_stockade-play");
    let before = networks();
    let started = Instant::now();
    let child = Command::new(program).stdout(Stdio::piped()).spawn().unwrap();
    let mut play = Play(child);
    let mut lines = BufReader::new(play.0.stdout.take().unwrap()).lines();
    // Its words tell where its two folders are: the control plane's, and that of all else.
    let said: Vec<String> = lines
        .by_ref()
        .map(|line| line.unwrap())
        .take_while(|line| !line.starts_with("Ctrl-C ends"))
        .collect();
    let took = started.elapsed();
    let text = said.join("\n");
    assert!(text.contains("all hosts are Ready"), "{text}");
    let between = |from: &str, to: &str| {
        let rest = text.split(from).nth(1).and_then(|rest| rest.split(to).next());
        rest.unwrap_or_else(|| panic!("no {from:?}: {text}")).to_owned()
    };
    let plane = Path::new(&between("export KUBECONFIG=", "\n")).parent().unwrap().to_owned();
    let folders = [between("the logs are ", "/*.log"), plane.display().to_string()];
    for folder in &folders {
        assert!(Path::new(folder).is_dir() && !traces(folder).is_empty(), "{folder}");
    }
    println!("up in {:.1} s", took.as_secs_f64());

    let asked = Instant::now();
    play.signal().unwrap();
    let ended = play.0.wait().unwrap();
    println!("down in {:.1} s", asked.elapsed().as_secs_f64());
    assert!(ended.success(), "{ended} (signal {:?})", ended.signal());
    assert!(asked.elapsed() < DOWN);
    for folder in &folders {
        assert!(!Path::new(folder).exists(), "{folder} is gone");
        assert_eq!(traces(folder), Vec::<String>::new(), "{folder}");
    }
    assert_eq!(networks(), before);
    assert!(took < UP, "it took {} s", took.as_secs());
}
