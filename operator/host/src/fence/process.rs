//! One run of an agent, in a process group of its own and with a hard end.

use std::fmt;
use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

/// How much longer than `timeout` we wait before we kill the group ourselves.
const GRACE: Duration = Duration::from_millis(500);

/// How a run ended.
pub(super) enum Ended {
    /// By itself.
    Exited {
        /// Its exit code; `None`: a signal ended it.
        code: Option<i32>,
        /// Its standard output.
        out: String,
        /// Its standard error.
        err: String,
    },
    /// At its deadline: every process of its group was killed.
    TimedOut,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited { code: Some(code), err, .. } => {
                write!(f, "exit code {code}: {}", err.trim())
            }
            Self::Exited { code: None, .. } => write!(f, "killed by a signal"),
            Self::TimedOut => write!(f, "it did not end in time"),
        }
    }
}

/// Kills a group when dropped: also when the call is given up half-way.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may be gone, which is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Runs a program with `input` on its standard input.
///
/// coreutils' `timeout` is its parent: the deadline holds even if this process dies. Nothing of
/// our environment reaches it.
pub(super) async fn run(
    program: &Path,
    arguments: &[&str],
    input: &str,
    limit: Duration,
) -> io::Result<Ended> {
    let started = Instant::now();
    let mut child = Command::new("timeout")
        .arg("--signal=KILL")
        .arg(format!("{}", limit.as_secs_f64()))
        .arg(program)
        .args(arguments)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        // Python's own warnings and compiled files are of no use here.
        .env("PYTHONWARNINGS", "ignore")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| io::Error::new(error.kind(), format!("timeout (coreutils): {error}")))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
    let group = Group(pid);
    let all = async {
        if let Some(mut stdin) = child.stdin.take() {
            // An agent that ends before it has read everything says why by its exit code.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        child.wait_with_output().await
    };
    let output = match tokio::time::timeout(limit + GRACE, all).await {
        Ok(output) => output?,
        Err(_) => return Ok(Ended::TimedOut),
    };
    let code = output.status.code();
    // `timeout` that killed its own group dies with it.
    if started.elapsed() >= limit && matches!(code, None | Some(124 | 137)) {
        return Ok(Ended::TimedOut);
    }
    drop(group);
    Ok(Ended::Exited {
        code,
        out: String::from_utf8_lossy(&output.stdout).into_owned(),
        err: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}
