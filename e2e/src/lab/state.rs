//! What is known of a lab outside the process that holds it: who owns which folder, and how
//! `./dev lab ssh` reaches the machines.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::Machine;
use crate::local_hosts::ProcessId;
use crate::owned::{self, itself};

/// How the folders of labs begin.
pub(super) const PREFIX: &str = "stockade-lab-";

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

/// Removes the folders of owners that are gone. Their processes have gone with them: the first one
/// of their namespaces ends when its owner does.
pub fn sweep() {
    owned::sweep(PREFIX, |_| Ok::<(), std::convert::Infallible>(()));
}
