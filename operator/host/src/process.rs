//! Whether a QEMU is gone, read from the kernel and not from its daemon (safety §1).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A process that can be told from a later one with the same number.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessId {
    /// Process number.
    pub pid: i32,
    /// Start time in clock ticks since the machine's boot (proc(5), field 22 of `stat`).
    pub started: u64,
}

impl ProcessId {
    /// Reads a process that has not been reaped yet, zombies included.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, started: stat_field(pid, 19)?.parse().ok()? })
    }

    /// True until exactly this process has been reaped.
    #[must_use]
    pub fn is_there(&self) -> bool {
        Self::of(self.pid).as_ref() == Some(self)
    }

    /// Sends SIGKILL if exactly this process is still there.
    pub fn kill(&self) -> io::Result<()> {
        let pid = rustix::process::Pid::from_raw(self.pid).filter(|_| self.is_there());
        let Some(pid) = pid else { return Ok(()) };
        match rustix::process::kill_process(pid, rustix::process::Signal::KILL) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// CPU time used so far in milliseconds, and resident memory in MiB.
    #[must_use]
    pub fn usage(&self) -> Option<(u64, i64)> {
        let ticks = |field| stat_field(self.pid, field).and_then(|text| text.parse::<u64>().ok());
        // USER_HZ is 100 on every architecture that QEMU runs on.
        let millis = (ticks(11)? + ticks(12)?) * 10;
        let pages: i64 = stat_field(self.pid, 21)?.parse().ok()?;
        self.is_there().then_some((millis, pages * 4096 / (1 << 20)))
    }

    /// Folder of the systemd scope that libvirt made for this QEMU, if it made one.
    #[must_use]
    pub fn scope(&self) -> Option<PathBuf> {
        let text = fs::read_to_string(format!("/proc/{}/cgroup", self.pid)).ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
        let end = path.find(".scope")? + ".scope".len();
        Some(Path::new("/sys/fs/cgroup").join(&path[..end]))
    }
}

/// A field of `/proc/<pid>/stat`, counted from the state, which is 0.
fn stat_field(pid: i32, index: usize) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command's name is in parentheses and may hold anything.
    stat.rsplit_once(')')?.1.split_whitespace().nth(index).map(str::to_owned)
}

/// True if any process is left in a cgroup; one that does not exist is empty.
#[must_use]
pub fn is_populated(cgroup: &Path) -> bool {
    match fs::read_to_string(cgroup.join("cgroup.events")) {
        Ok(text) => !text.lines().any(|line| line == "populated 0"),
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Copies that a daemon forked of itself so long ago, at least, and that have become no other program
/// yet: one thread each, its executable still the daemon's.
///
/// # Errors
/// The daemon is gone, or `/proc` can't be read.
pub fn copies_of(daemon: &ProcessId, age: Duration) -> io::Result<Vec<ProcessId>> {
    let program = |pid: i32| fs::read_link(format!("/proc/{pid}/exe"));
    let daemons = program(daemon.pid)?;
    let uptime = fs::read_to_string("/proc/uptime")?;
    let uptime = uptime.split_whitespace().next().and_then(|text| text.parse::<f64>().ok());
    let uptime = Duration::from_secs_f64(uptime.ok_or(io::ErrorKind::InvalidData)?);
    // Start times are in hundredths of a second.
    let began = |process: &ProcessId| Duration::from_millis(process.started * 10);
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        let is_copy = pid != daemon.pid
            && program(pid).is_ok_and(|program| program == daemons)
            && stat_field(pid, 17).as_deref() == Some("1");
        let Some(process) = ProcessId::of(pid).filter(|_| is_copy) else { continue };
        let old = began(&process) + age <= uptime;
        if old && process.started >= daemon.started {
            found.push(process);
        }
    }
    Ok(found)
}

/// Every QEMU of the machine that was started for this UUID (`-uuid` on its command line).
///
/// Works for processes that no daemon knows any more. An error means that nothing can be told.
pub fn qemus_of(uuid: &str) -> io::Result<Vec<ProcessId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that ends while we look has no command line.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let arguments: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        let is_qemu = arguments.first().is_some_and(|program| {
            program
                .rsplit(|byte| *byte == b'/')
                .next()
                .is_some_and(|name| name.starts_with(b"qemu"))
        });
        let has = |pair: &[&[u8]]| pair[0] == b"-uuid" && pair[1] == uuid.as_bytes();
        if is_qemu && arguments.windows(2).any(has) {
            found.extend(ProcessId::of(pid));
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};
    use std::thread::sleep;

    use super::*;

    #[test]
    fn a_copy_that_became_no_other_program_is_found_once_it_is_old() {
        // A subshell is a copy; what it runs is none.
        let script = "(while :; do sleep 0.2; done) & wait";
        let mut shell = Command::new("sh");
        let mut shell = shell.args(["-c", script]).stdin(Stdio::null()).spawn().unwrap();
        let daemon = ProcessId::of(i32::try_from(shell.id()).unwrap()).unwrap();
        let copies = |age| copies_of(&daemon, age).unwrap();
        let of_daemon = |copy: &ProcessId| {
            stat_field(copy.pid, 1).as_deref() == Some(daemon.pid.to_string().as_str())
        };
        let mut found = Vec::new();
        for _ in 0..100 {
            found = copies(Duration::ZERO);
            found.retain(of_daemon);
            if !found.is_empty() {
                break;
            }
            sleep(Duration::from_millis(20));
        }
        let [copy] = &found[..] else { panic!("{found:?}") };
        assert!(!copies(Duration::from_secs(3600)).contains(copy), "it is young");
        copy.kill().unwrap();
        assert!(shell.wait().unwrap().success());
        assert!(!copy.is_there());
    }
}
