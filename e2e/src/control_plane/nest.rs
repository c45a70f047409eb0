//! A folder and the processes that live in it, which go together: when the value is dropped, and
//! also when the program that owns it is killed, whatever way it ends.
//!
//! A shell waits on a pipe that only the owner holds open; when it closes, that shell kills what
//! is left and removes the folder. If even the shell was killed, the next start cleans up.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::Error;
use crate::owned;

const PREFIX: &str = "stockade-control-plane-";
const PIDS: &str = "pids";
/// How many lines of a log an error shows.
const TAIL_LINES: usize = 25;

/// A process is ours only while it works in our folder: its number may have been given anew.
const JANITOR: &str = r#"
cat >/dev/null
[ -d "$1" ] || exit 0
for pid in $(cat "$1/pids" 2>/dev/null); do
    if [ "$(readlink "/proc/$pid/cwd")" = "$1" ]; then kill -9 "$pid"; fi
done
tries=0
until rm -rf "$1" || [ "$tries" -ge 50 ]; do sleep 0.1; tries=$((tries + 1)); done
"#;

#[derive(Debug)]
struct Program {
    name: String,
    child: Child,
}

/// A private folder with the processes that work in it.
#[derive(Debug)]
pub struct Nest {
    dir: PathBuf,
    programs: Vec<Program>,
    janitor: Option<(Child, Option<ChildStdin>)>,
}

impl Nest {
    /// Makes the folder, after cleaning up what a killed owner may have left.
    pub fn new() -> Result<Self, Error> {
        owned::sweep(PREFIX, |folder| {
            kill_dwellers(folder);
            Ok::<(), std::convert::Infallible>(())
        });
        let dir = tempfile::Builder::new()
            .prefix(PREFIX)
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(Error::io("make a temporary folder"))?
            .keep();
        // From here on Drop removes the folder.
        let mut nest = Self { dir, programs: Vec::new(), janitor: None };
        nest.dir = nest.dir.canonicalize().map_err(Error::io("resolve the temporary folder"))?;
        owned::own(&nest.dir).map_err(Error::io("name the folder's owner"))?;
        let mut janitor = Command::new("/bin/sh")
            .args(["-c", JANITOR, "stockade-janitor"])
            .arg(&nest.dir)
            .current_dir("/")
            // A group of its own, so that Ctrl-C does not end it before its work is done.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(Error::io("start the janitor"))?;
        let pipe = janitor.stdin.take();
        nest.janitor = Some((janitor, pipe));
        Ok(nest)
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Starts a program in the folder, with its output in `<name>.log`.
    pub fn start(&mut self, name: &str, command: &mut Command) -> Result<(), Error> {
        let words = format!("start {name}");
        let log = File::create(self.log_path(name)).map_err(Error::io(words.clone()))?;
        let errors = log.try_clone().map_err(Error::io(words.clone()))?;
        let child = command
            .current_dir(&self.dir)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            .spawn()
            .map_err(Error::io(words.clone()))?;
        let pid = child.id();
        self.programs.push(Program { name: name.to_owned(), child });
        File::options()
            .create(true)
            .append(true)
            .open(self.dir.join(PIDS))
            .and_then(|mut file| writeln!(file, "{pid}"))
            .map_err(Error::io(words))
    }

    /// Fails when a program has ended by itself.
    pub fn all_running(&mut self) -> Result<(), Error> {
        for index in 0..self.programs.len() {
            let program = &mut self.programs[index];
            let status = program.child.try_wait().map_err(Error::io("wait for a program"))?;
            if let Some(status) = status {
                let program = program.name.clone();
                let log = tail(&self.log_path(&program));
                return Err(Error::Ended { program, status: status.to_string(), log });
            }
        }
        Ok(())
    }

    /// Sends a signal to a program.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<(), Error> {
        let failed = || Error::io(format!("send a signal to {name}"));
        let found = self.programs.iter().find(|program| program.name == name);
        let program = found.ok_or_else(|| failed()(std::io::ErrorKind::NotFound.into()))?;
        kill_process(Pid::from_child(&program.child), signal)
            .map_err(|error| failed()(error.into()))
    }

    /// The end of each program's log, under its name.
    pub fn logs(&self) -> String {
        self.programs
            .iter()
            .map(|program| {
                format!("--- {}\n{}\n", program.name, tail(&self.log_path(&program.name)))
            })
            .collect()
    }

    fn log_path(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.log"))
    }
}

impl Drop for Nest {
    fn drop(&mut self) {
        // The newest first: a server without its store would only fill its log.
        while let Some(mut program) = self.programs.pop() {
            let _ = program.child.kill();
            let _ = program.child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.dir);
        if let Some((mut janitor, pipe)) = self.janitor.take() {
            drop(pipe);
            let _ = janitor.wait();
        }
    }
}

/// Kills the processes that are noted in the folder, if they still work in it.
fn kill_dwellers(dir: &Path) {
    let pids = std::fs::read_to_string(dir.join(PIDS)).unwrap_or_default();
    for pid in pids.lines().filter_map(|line| line.parse::<i32>().ok()) {
        let works_here = std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir);
        if let (true, Some(pid)) = (works_here, Pid::from_raw(pid)) {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

fn tail(log: &Path) -> String {
    let text = std::fs::read(log).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
}
