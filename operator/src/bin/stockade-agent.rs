//! `stockade-agent`: what runs on a host beside libvirt.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Args, Parser, Subcommand};
use stockade_agent::AgentConfig;
use stockade_host::consoles::Consoles;
use stockade_host::exports::Knfsd;
use stockade_host::journal::FileJournal;
use stockade_host::libvirt::{Libvirt, LibvirtOptions, MigrationOptions};
use stockade_host::logind::ShutdownLock;
use stockade_host::machine::{MachineOptions, RealClock, RealMachine};
use stockade_host::ports::AgentPorts;
use stockade_host::storage::{RealStorage, StorageOptions};
use stockade_host::watchdog::{DEVICE, RUN, RealWatchdog, WatchdogOptions};
use stockade_host::{HostError, HostResult};

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
    /// Runs the agent until it is told to stop; running VMs run on without it.
    Run(RunArguments),
}

#[derive(Args)]
struct RunArguments {
    /// Name of this machine's Host. The API is found by KUBECONFIG.
    #[arg(long, env = "STOCKADE_HOST")]
    host: String,
    /// Id of the cluster, as it stands in owner records and storage markers.
    #[arg(long, env = "STOCKADE_CLUSTER", default_value = "stockade")]
    cluster: String,
    /// How libvirt is reached.
    #[arg(long, env = "STOCKADE_LIBVIRT_URI", default_value = "qemu:///system")]
    libvirt_uri: String,
    /// Guests are emulated though there is a /dev/kvm, as where it can't be used.
    #[arg(long, env = "STOCKADE_EMULATED")]
    emulated: bool,
    /// Program that restarts libvirt's daemon; absent: `systemctl restart libvirtd.service`.
    #[arg(long, env = "STOCKADE_RESTART_LIBVIRT", value_name = "PROGRAM")]
    restart_libvirt: Option<PathBuf>,
    /// Live moves go over plain TCP: whoever reads that network reads the guests' memory, and
    /// whoever reaches libvirt's port governs it. Without this they need mutual TLS.
    #[arg(long, env = "STOCKADE_INSECURE_MIGRATION")]
    insecure_migration: bool,
    /// Port on which tickets for consoles are taken, on the address that the Host declares; nobody
    /// listens there while no ticket waits.
    #[arg(long, env = "STOCKADE_CONSOLE_PORT", default_value_t = 16_515)]
    console_port: u16,
    /// Folder on a tmpfs that agent, beats and the watchdog's feeder share.
    #[arg(long, default_value = RUN, env = "STOCKADE_RUN")]
    run: PathBuf,
    /// The watchdog that stockade-feeder feeds.
    #[arg(long, default_value = DEVICE, env = "STOCKADE_WATCHDOG")]
    watchdog: PathBuf,
    /// CPUs that VMs may be given in all; more than the machine has: they share. Absent: as many as
    /// it has.
    #[arg(long, env = "STOCKADE_CPUS", value_parser = clap::value_parser!(i32).range(1..))]
    cpus: Option<i32>,
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
        Command::Run(options) => serve(&arguments.state, options),
    }
}

/// Runs the agent with the drivers of a real machine.
fn serve(state: &Path, options: RunArguments) -> HostResult<()> {
    let failed = |message: String| HostError::failed("run", "agent", message);
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let program = std::env::current_exe().map_err(|error| failed(error.to_string()))?;
    let beside = |name: &str| program.with_file_name(name).display().to_string();
    let state_word = ["--state".to_owned(), state.display().to_string()];
    let hook = [&[beside("stockade-hook")][..], &state_word].concat();
    let run_word = ["--run".to_owned(), options.run.display().to_string()];
    let beat = [&[beside("stockade-beat")][..], &state_word, &run_word].concat();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| failed(error.to_string()))?;
    runtime.block_on(async {
        let ports = ports(state, hook, beat, &options)?;
        let mut api = kube::Config::infer().await.map_err(|error| failed(error.to_string()))?;
        // The agent repeats what it must itself, with fresh content.
        api.default_retry = false;
        let client = kube::Client::try_from(api).map_err(|error| failed(error.to_string()))?;
        let mut config = AgentConfig::new(options.host);
        config.cluster_id = options.cluster;
        stockade_agent::run(client, ports, config, told_to_stop())
            .await
            .map_err(|error| failed(error.to_string()))
    })
}

/// The drivers of a real machine; `hook` is the program that libvirt asks, `beat_command` the one that
/// beats.
fn ports(
    state: &Path,
    hook: Vec<String>,
    beat_command: Vec<String>,
    options: &RunArguments,
) -> HostResult<AgentPorts> {
    let mut machine = MachineOptions::new(state);
    machine.watchdog.clone_from(&options.watchdog);
    machine.cpus = options.cpus;
    let machine = RealMachine::open(&machine)?.holding(ShutdownLock::hold(None));
    let mut libvirt = LibvirtOptions::new(state, machine.host_uid(), machine.boot_id(), hook);
    libvirt.uri.clone_from(&options.libvirt_uri);
    libvirt.emulated |= options.emulated;
    if let Some(program) = &options.restart_libvirt {
        libvirt.restart_daemon = vec![program.display().to_string()];
    }
    if options.insecure_migration {
        libvirt.migration = MigrationOptions::insecure();
    }
    let storage = StorageOptions {
        state: state.to_owned(),
        host_uid: machine.host_uid().to_owned(),
        boot_id: machine.boot_id().to_owned(),
        beat_command,
    };
    let libvirt = Arc::new(Libvirt::new(libvirt)?);
    Ok(AgentPorts {
        machine: Arc::new(machine),
        consoles: Arc::new(Consoles::new(Arc::clone(&libvirt), state, options.console_port)),
        hypervisor: libvirt,
        storage: Arc::new(RealStorage::new(storage)?),
        exports: Arc::new(Knfsd::default()),
        journal: Arc::new(FileJournal::open(state)?),
        watchdog: Arc::new(RealWatchdog::new(WatchdogOptions {
            run: options.run.clone(),
            device: options.watchdog.clone(),
        })),
        clock: Arc::new(RealClock),
    })
}

/// Completes at SIGTERM or an interrupt.
async fn told_to_stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
}
