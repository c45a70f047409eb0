//! `stockade-beat`: writes a host's storage beats, as its agent has planned them (safety §4).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use stockade_host::beat;
use stockade_host::watchdog::RUN;

/// Writes the storage beats that the agent has planned, until killed.
#[derive(Parser)]
#[command(name = "stockade-beat", version)]
struct Arguments {
    /// Folder of the agent's state.
    #[arg(long, default_value = "/var/lib/stockade", env = "STOCKADE_STATE")]
    state: PathBuf,
    /// Folder on a tmpfs that agent, beats and feeder share.
    #[arg(long, default_value = RUN, env = "STOCKADE_RUN")]
    run: PathBuf,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match beat::run(&arguments.state, &arguments.run) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("stockade-beat: {error}");
            ExitCode::FAILURE
        }
    }
}
