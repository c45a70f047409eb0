//! A program of the product that runs beside us, with its log.

use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::PlayError;
use crate::local_hosts::ProcessId;

/// The product's programs, as built.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `stockade`: the controller.
    pub stockade: PathBuf,
    /// `stockade-agent`.
    pub agent: PathBuf,
    /// `kubectl-stockade`.
    pub plugin: PathBuf,
}

impl Programs {
    /// Finds them beside the running program, or in the folder above as for a test.
    ///
    /// # Errors
    /// [`PlayError::Missing`] with the name of the one that is not built.
    pub fn find() -> Result<Self, PlayError> {
        let own = std::env::current_exe().map_err(PlayError::io("find the programs"))?;
        let find = |name: &str| {
            let found = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
            let mut found = found.filter(|path| path.is_file());
            found.next().ok_or_else(|| PlayError::Missing(name.to_owned()))
        };
        Ok(Self {
            stockade: find("stockade")?,
            agent: find("stockade-agent")?,
            plugin: find("kubectl-stockade")?,
        })
    }

    /// Starts the controller with what a kubeconfig allows, and says at which address of the
    /// loopback it serves its metrics. `level` is that of its log.
    ///
    /// # Errors
    /// If it can't be started.
    pub fn controller(
        &self,
        kubeconfig: &Path,
        level: &str,
        log: PathBuf,
    ) -> Result<(Program, String), PlayError> {
        let listen = free_address().map_err(PlayError::io("find a free port"))?;
        // It goes with us, whatever way we end.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL", "--"])
            .arg(&self.stockade)
            .args(["controller", "--listen", &listen])
            .env("KUBECONFIG", kubeconfig)
            .env("RUST_LOG", level);
        Ok((Program::start("controller", log, command)?, listen))
    }
}

/// A TCP address of the loopback that the kernel says is free now.
fn free_address() -> std::io::Result<String> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.to_string())
}

/// A running program; dropping it kills it.
#[derive(Debug)]
pub struct Program {
    name: String,
    child: Child,
    log: PathBuf,
}

impl Program {
    /// Starts a program whose output is added to `log`.
    ///
    /// It gets a process group of its own: Ctrl-C is for us, who end it in order.
    ///
    /// # Errors
    /// [`PlayError::Io`].
    pub fn start(name: &str, log: PathBuf, mut command: Command) -> Result<Self, PlayError> {
        let words = format!("start {name}");
        let open = File::options().create(true).append(true).open(&log);
        let streams = open.and_then(|file| Ok((file.try_clone()?, file)));
        let (out, err) = streams.map_err(PlayError::io(words.clone()))?;
        let command = command.process_group(0).stdin(Stdio::null()).stdout(out).stderr(err);
        let child = command.spawn().map_err(PlayError::io(words))?;
        Ok(Self { name: name.to_owned(), child, log })
    }

    /// Its name, as in errors and dumps.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The child that was spawned.
    #[must_use]
    pub const fn child(&self) -> &Child {
        &self.child
    }

    /// Where its output is.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// True until it has ended.
    #[must_use]
    pub fn lives(&self) -> bool {
        i32::try_from(self.child.id()).ok().and_then(ProcessId::of).is_some()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The last lines of a log.
#[must_use]
pub fn tail(log: &Path, lines: usize) -> String {
    let text = match std::fs::read(log) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return format!("({} can't be read: {error})", log.display()),
    };
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
