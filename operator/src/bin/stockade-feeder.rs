//! `stockade-feeder`: feeds a host's watchdog while it has a path of life (safety §4).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use stockade_host::watchdog::{DEVICE, FeederOptions, RUN, run};

/// Feeds this host's watchdog while the agent's order and a sign of life allow it. When none is left
/// it kills every QEMU and lets the host be reset, for good.
#[derive(Parser)]
#[command(name = "stockade-feeder", version)]
struct Arguments {
    /// Folder on a tmpfs that agent, beats and feeder share.
    #[arg(long, default_value = RUN, env = "STOCKADE_RUN")]
    run: PathBuf,
    /// The watchdog.
    #[arg(long, default_value = DEVICE, env = "STOCKADE_WATCHDOG")]
    watchdog: PathBuf,
    /// The cgroup that holds libvirt's scopes.
    #[arg(long, default_value = "/sys/fs/cgroup/machine.slice", env = "STOCKADE_CGROUPS")]
    cgroups: PathBuf,
}

fn main() -> ExitCode {
    let Arguments { run: folder, watchdog, cgroups } = Arguments::parse();
    match run(&FeederOptions { run: folder, device: watchdog, cgroups }) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("stockade-feeder: {error}");
            ExitCode::FAILURE
        }
    }
}
