//! Processes with namespaces of their own: made, entered and ended.
//!
//! Nothing here has a name outside: network namespace, mounts and process ids belong to the
//! processes in them and go with the last one. Every first program reads a pipe that only the
//! owner holds, so an owner that is killed takes its hosts along.

use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

/// A process that can be told from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Process number, as seen from the machine's first namespace.
    pub pid: i32,
    /// Start time in clock ticks since the machine's boot (proc(5), field 22 of `stat`).
    pub started: u64,
}

impl ProcessId {
    /// Reads the start time of a living process; `None` if there is none (a zombie counts as none).
    pub fn of(pid: i32) -> Option<Self> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name is in parentheses and may hold anything: fields count from the last.
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let alive = !matches!(*fields.first()?, "Z" | "X");
        alive.then_some(())?;
        Some(Self { pid, started: fields.get(19)?.parse().ok()? })
    }

    /// True while exactly this process lives.
    pub fn lives(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends a signal if exactly this process still lives.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let Some(pid) = Pid::from_raw(self.pid).filter(|_| self.lives()) else { return Ok(()) };
        match kill_process(pid, signal) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// One first program with the namespaces it lives in.
#[derive(Debug)]
pub(crate) struct Namespace {
    /// Held open for the life of the program, which ends at its end of file.
    lifeline: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    /// Our child: `unshare`, which takes its own child along when it dies.
    outer: Child,
    outer_id: ProcessId,
    /// The first process inside; the child itself where there is no process namespace.
    inner_id: ProcessId,
    /// The kernel's number of the process namespace, if it has one of its own.
    pids: Option<PathBuf>,
}

impl Namespace {
    /// Starts a shell script inside a network namespace of its own, and nothing else.
    pub(crate) fn network(script: &str, log: &Path) -> io::Result<Self> {
        Self::spawn(&["--net"], &["sh", "-c", script], log, false)
    }

    /// Starts a shell script under an init inside namespaces for everything that makes a host.
    pub(crate) fn host(script: &[&str], log: &Path) -> io::Result<Self> {
        let unshare = [
            "--mount",
            "--propagation=private",
            "--uts",
            "--net",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ];
        let program: Vec<&str> = ["tini", "--", "sh"].iter().chain(script).copied().collect();
        Self::spawn(&unshare, &program, log, true)
    }

    fn spawn(unshare: &[&str], program: &[&str], log: &Path, pids: bool) -> io::Result<Self> {
        let log = fs::File::options().append(true).create(true).open(log)?;
        let mut outer = Command::new("unshare")
            .args(unshare)
            .arg("--")
            .args(program)
            // Ctrl-C is for the owner, who ends it in order.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()?;
        let pid = outer.id() as i32;
        let gone = || io::Error::other("the namespace's first program ended at once");
        let (Some(lifeline), Some(stdout)) = (outer.stdin.take(), outer.stdout.take()) else {
            return Err(gone());
        };
        let output = BufReader::new(stdout);
        let outer_id = ProcessId::of(pid).ok_or_else(gone)?;
        let mut this = Self {
            lifeline: Some(lifeline),
            output,
            outer,
            inner_id: outer_id.clone(),
            outer_id,
            pids: None,
        };
        this.expect("mounted")?;
        if pids {
            let inner = child_of(pid).ok_or_else(gone)?;
            this.inner_id = ProcessId::of(inner).ok_or_else(gone)?;
            this.pids = Some(fs::read_link(format!("/proc/{inner}/ns/pid"))?);
        }
        Ok(this)
    }

    /// Waits for a line that the first program prints.
    pub(crate) fn expect(&mut self, line: &str) -> io::Result<()> {
        let mut got = String::new();
        self.output.read_line(&mut got)?;
        if got.trim() == line {
            return Ok(());
        }
        Err(io::Error::other(format!("the first program said {:?}, not {line:?}", got.trim())))
    }

    /// Writes a line to the first program's standard input.
    pub(crate) fn tell(&mut self, line: &str) -> io::Result<()> {
        match &mut self.lifeline {
            Some(pipe) => writeln!(pipe, "{line}"),
            None => Err(io::Error::other("the namespace has been ended")),
        }
    }

    /// The first process inside, numbered as outside.
    pub(crate) fn init(&self) -> &ProcessId {
        &self.inner_id
    }

    /// All processes that must be gone for this namespace to be gone.
    pub(crate) fn recorded(&self) -> Vec<ProcessId> {
        vec![self.outer_id.clone(), self.inner_id.clone()]
    }

    /// Processes inside, numbered as outside, with their command names.
    pub(crate) fn processes(&self) -> Vec<(ProcessId, String)> {
        let Some(namespace) = &self.pids else { return Vec::new() };
        processes_in(namespace)
    }

    /// A command that runs `program` inside. It dies with its own `nsenter`, never alone.
    pub(crate) fn enter(&self, program: &str, network: bool) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.inner_id.pid.to_string());
        command.args(["--mount", "--uts", "--pid"]);
        if network {
            command.arg("--net");
        }
        command.args(["--", "setpriv", "--pdeathsig", "KILL", "--", program]);
        command
    }

    /// Kills everything inside at once, as a power cut does, and waits until it is gone.
    ///
    /// Killing the first process of a process namespace makes the kernel kill all others.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        self.lifeline = None;
        self.inner_id.signal(Signal::KILL)?;
        // `unshare` reaps its child and follows it; killed first, it would leave a zombie.
        if !wait_until(Duration::from_secs(5), || !self.outer_id.lives()) {
            self.outer_id.signal(Signal::KILL)?;
        }
        self.outer.wait()?;
        let left = || self.inner_id.lives() || !self.processes().is_empty();
        wait_until(Duration::from_secs(20), || !left())
            .then_some(())
            .ok_or_else(|| io::Error::other("processes of a local host outlived SIGKILL"))
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = self.kill() {
            tracing::warn!(%error, "a namespace could not be ended");
        }
    }
}

/// The processes that live in the process namespace with this link text.
fn processes_in(namespace: &Path) -> Vec<(ProcessId, String)> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(|pid| {
        fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == namespace)
    })
    .filter_map(|pid: i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((ProcessId::of(pid)?, name.trim().to_owned()))
    })
    .collect()
}

/// The first child of a process.
pub(crate) fn child_of(pid: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).ok()?;
    children.split_whitespace().next()?.parse().ok()
}

/// Kills what a former owner left behind, only what is provably that, and waits for its end.
pub(crate) fn kill_recorded(recorded: &[ProcessId]) -> io::Result<()> {
    // What lost its owner ends by itself, and is then reaped by who made it.
    wait_until(Duration::from_secs(2), || recorded.iter().all(|process| !process.lives()));
    let mut namespaces = Vec::new();
    let own = fs::read_link("/proc/self/ns/pid")?;
    for process in recorded.iter().filter(|process| process.lives()) {
        let link = fs::read_link(format!("/proc/{}/ns/pid", process.pid)).ok();
        namespaces.extend(link.filter(|link| *link != own));
        process.signal(Signal::KILL)?;
    }
    let gone = || {
        recorded.iter().all(|process| !process.lives())
            && namespaces.iter().all(|namespace| processes_in(namespace).is_empty())
    };
    if wait_until(Duration::from_secs(20), gone) {
        return Ok(());
    }
    Err(io::Error::other("processes of an earlier start outlived SIGKILL"))
}

/// Polls until `done` or the time is over; returns whether it was done.
pub(crate) fn wait_until(limit: Duration, mut done: impl FnMut() -> bool) -> bool {
    const PAUSE: Duration = Duration::from_millis(10);
    let mut waited = Duration::ZERO;
    while !done() {
        if waited >= limit {
            return false;
        }
        thread::sleep(PAUSE);
        waited += PAUSE;
    }
    true
}
