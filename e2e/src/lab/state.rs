//! What is known of a lab outside the process that holds it: who owns which folder, and how
//! `./dev lab ssh` reaches the machines.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::local_hosts::ProcessId;

/// How the folders of labs begin.
pub(super) const PREFIX: &str = "stockade-lab-";
/// File in a lab's folder that names its owner.
const OWNER: &str = "owner.json";

/// A lab that another process holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct State {
    /// The process that holds it; it ends everything when it is told to end.
    pub owner: ProcessId,
    /// First process of the lab's namespaces.
    pub init: ProcessId,
    /// Disks and logs.
    pub folder: PathBuf,
    /// A kubeconfig that may do everything, if Stockade runs on the lab.
    pub kubeconfig: Option<PathBuf>,
    /// The machines.
    pub machines: Vec<StatedMachine>,
}

/// One machine, as another process knows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatedMachine {
    /// Its name.
    pub name: String,
    /// Its address on the lab's network.
    pub address: String,
    /// ssh's command line, to be run in the lab's network namespace.
    pub ssh: Vec<String>,
    /// How a person asks its BMC.
    pub bmc: String,
}

impl State {
    pub(super) fn of(
        machines: &[Machine],
        init: ProcessId,
        folder: &Path,
        kubeconfig: Option<PathBuf>,
    ) -> Self {
        let machines = machines
            .iter()
            .map(|machine| StatedMachine {
                name: machine.name().to_owned(),
                address: machine.address().to_owned(),
                ssh: machine.ssh_words(),
                bmc: machine.bmc().command_line(),
            })
            .collect();
        let (owner, folder) = (itself(), folder.to_owned());
        Self { owner, init, folder, kubeconfig, machines }
    }

    /// A command that opens a shell on a machine, or runs what is added to it.
    #[must_use]
    pub fn ssh(&self, machine: &StatedMachine) -> Command {
        let mut command = Command::new("nsenter");
        command.arg("--target").arg(self.init.pid.to_string()).args(["--net", "--"]);
        command.args(&machine.ssh);
        command
    }
}

/// This process. One that runs has a start time; if it can't be read the owner counts as gone.
fn itself() -> ProcessId {
    let pid = i32::try_from(std::process::id()).unwrap_or_default();
    ProcessId::of(pid).unwrap_or(ProcessId { pid, started: 0 })
}

/// Names this process as the owner of a folder.
pub(super) fn own(folder: &Path) -> std::io::Result<()> {
    let text = serde_json::to_string(&itself()).map_err(std::io::Error::other)?;
    std::fs::write(folder.join(OWNER), text)
}

/// Removes the folders of owners that are gone. Their processes have gone with them: the first one
/// of their namespaces ends when its owner does.
pub fn sweep() {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        // A folder without an owner's name is one that is just being made, or not a lab's.
        let owner = std::fs::read(entry.path().join(OWNER)).ok();
        let owner = owner.and_then(|text| serde_json::from_slice::<ProcessId>(&text).ok());
        if owner.is_some_and(|owner| !owner.lives()) {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
