//! `stockade-hook`: what libvirt asks before a QEMU starts (safety §2.6).
//!
//! libvirt runs it several times for each start, while whoever started the domain waits, and kills
//! what runs if it fails as the daemon reconnects. So it is a program of its own that loads neither
//! libvirt's libraries nor an executor.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use stockade_host::hook::{HookContext, decide};
use stockade_host::machine::BOOT_ID;

/// Called by libvirt as its qemu hook, with the domain's XML on standard input.
#[derive(Parser)]
#[command(name = "stockade-hook", version)]
struct Arguments {
    /// Folder of the agent's state.
    #[arg(long, default_value = "/var/lib/stockade", env = "STOCKADE_STATE")]
    state: PathBuf,
    /// Name of the domain.
    #[arg(allow_hyphen_values = true)]
    name: String,
    /// What libvirt is about to do, or has done.
    operation: String,
    /// Further words of libvirt's, which decide nothing.
    #[arg(allow_hyphen_values = true, trailing_var_arg = true)]
    rest: Vec<String>,
}

fn main() -> ExitCode {
    let Arguments { state, name, operation, rest: _ } = Arguments::parse();
    let mut xml = String::new();
    // What can't be read makes no sense as XML, and is refused where that matters.
    if let Err(error) = std::io::stdin().read_to_string(&mut xml) {
        eprintln!("stockade-hook: {name}: {error}");
    }
    match decide(&HookContext { state, boot_id: BOOT_ID.into() }, &operation, &xml) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stockade-hook: {error}");
            ExitCode::FAILURE
        }
    }
}
