//! Commands in a machine, by ssh: one connection a machine is kept and used again, for a handshake
//! takes an emulated machine seconds.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use super::network::Network;

/// What a command in a machine came to.
#[derive(Clone, Debug)]
pub struct Said {
    /// It ended with 0.
    pub ok: bool,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Self {
            ok: output.status.success(),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// How one machine is reached.
#[derive(Clone, Debug)]
pub(super) struct Ssh {
    pub(super) key: PathBuf,
    pub(super) address: String,
    /// Socket of the connection that is kept.
    pub(super) socket: PathBuf,
}

impl Ssh {
    /// ssh's command line without a remote command, for a person: a connection of its own.
    pub(super) fn words(&self) -> Vec<String> {
        let fixed = OPTIONS.iter().map(|word| (*word).to_owned());
        ["ssh".to_owned(), "-i".to_owned(), self.key.display().to_string()]
            .into_iter()
            .chain(fixed)
            .chain([format!("root@{}", self.address)])
            .collect()
    }

    /// A command that runs ssh over the connection that is kept, without a remote command.
    fn command(&self, network: &Network) -> Command {
        let mut command = network.enter("ssh");
        command.args(["-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "-o"]);
        command.arg(format!("ControlPath={}", self.socket.display()));
        command.args(self.words().into_iter().skip(1));
        command
    }

    /// Runs a shell command line with `input` on its standard input, for `limit` at most.
    pub(super) fn run(
        &self,
        network: &Network,
        script: &str,
        input: &[u8],
        limit: Duration,
    ) -> std::io::Result<Said> {
        let mut child = self
            .command(network)
            // Where time is up the machine itself ends it: a killed ssh would not.
            .arg(format!("timeout -k 5 {} sh -c {}", limit.as_secs(), quoted(script)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A command that reads nothing closes its end.
            let _ = stdin.write_all(input);
        }
        Ok(child.wait_with_output()?.into())
    }

    /// Ends the connection that is kept: the machine behind it is another one.
    pub(super) fn forget(&self, network: &Network) {
        if socket_exists(&self.socket) {
            let mut command = self.command(network);
            let _ = command.args(["-O", "exit"]).stderr(Stdio::null()).status();
        }
        let _ = std::fs::remove_file(&self.socket);
    }
}

fn socket_exists(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok()
}

const OPTIONS: [&str; 17] = [
    "-q",
    "-o",
    "BatchMode=yes",
    "-o",
    "StrictHostKeyChecking=no",
    "-o",
    "UserKnownHostsFile=/dev/null",
    "-o",
    "ConnectTimeout=20",
    "-o",
    "ServerAliveInterval=10",
    "-o",
    "ServerAliveCountMax=6",
    "-o",
    "GSSAPIAuthentication=no",
    "-F",
    "none",
];

/// One word for a shell.
pub(super) fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}
