//! `stockade-agent`: what runs on a host beside libvirt.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use stockade_host::hook::{HookContext, decide};
use stockade_host::machine::MachineOptions;
use stockade_host::{HostResult, beat};

/// The agent of one host.
#[derive(Parser)]
#[command(name = "stockade-agent", version)]
struct Arguments {
    /// Folder of the agent's state, on the host's own disk.
    #[arg(long, default_value = "/var/lib/stockade", env = "STOCKADE_STATE")]
    state: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Called by libvirt as its qemu hook, with the domain's XML on standard input.
    Hook {
        /// Name of the domain.
        #[arg(allow_hyphen_values = true)]
        name: String,
        /// What libvirt is about to do, or has done.
        operation: String,
        /// Further words of libvirt's, which decide nothing.
        #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
        rest: Vec<String>,
    },
    /// Writes the storage beats that the agent has planned, until killed.
    Beat,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stockade-agent: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> HostResult<()> {
    match arguments.command {
        Command::Hook { name, operation, rest: _ } => {
            let mut xml = String::new();
            // What can't be read makes no sense as XML, and is refused where that matters.
            if let Err(error) = std::io::stdin().read_to_string(&mut xml) {
                eprintln!("stockade-agent: {name}: {error}");
            }
            let boot_id = MachineOptions::new(&arguments.state).boot_id;
            decide(&HookContext { state: arguments.state, boot_id }, &operation, &xml)
        }
        Command::Beat => beat::run(&arguments.state),
    }
}
