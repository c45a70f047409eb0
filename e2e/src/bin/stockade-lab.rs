//! `./dev lab`: a lab to work with by hand, held by a process in the background.

use std::fs;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use stockade_e2e::lab::{Cluster, Lab, LabError, State};
use stockade_e2e::local_hosts::ProcessId;
use stockade_e2e::play::Log;
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "usage: stockade-lab up [--bare] | down | status | ssh [HOST [COMMAND…]]
up: three hypervisor hosts and a storage host, a control plane, the agent on each;
    --bare: the machines alone
down: ends and removes all of it
ssh: a shell on a machine, h1 if none is named";

/// Where the lab of this machine is told of.
const FOLDER: &str = "/run/stockade-lab";
/// Hypervisor hosts.
const HOSTS: usize = 3;
/// How long a lab may take to come up and to go down.
const UP_LIMIT: Duration = Duration::from_secs(1800);
const DOWN_LIMIT: Duration = Duration::from_secs(60);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match &words[..] {
        [] | ["up"] => up(false),
        ["up", "--bare"] => up(true),
        ["down"] => down(),
        ["status"] => status(),
        ["ssh"] => ssh("h1", &[]),
        ["ssh", host, command @ ..] => ssh(host, command),
        // Not for people: the process that holds the lab.
        ["hold", rest @ ..] => hold(rest.contains(&"--bare")),
        _ => {
            println!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("lab: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The lab that is up, if its holder lives.
fn running() -> Option<State> {
    let text = fs::read(Path::new(FOLDER).join("state.json")).ok()?;
    let state: State = serde_json::from_slice(&text).ok()?;
    state.owner.lives().then_some(state)
}

/// The process that holds a lab, or is just starting one.
fn holder() -> Option<ProcessId> {
    let text = fs::read(Path::new(FOLDER).join("holder.json")).ok()?;
    let holder: ProcessId = serde_json::from_slice(&text).ok()?;
    holder.lives().then_some(holder)
}

/// Starts the holder and shows what it says until the lab is up.
fn up(bare: bool) -> Result<(), String> {
    if let Some(state) = running() {
        println!("the lab is up already\n{}", told(&state));
        return Ok(());
    }
    if holder().is_some() {
        return Err("a lab is just coming up; ./dev lab down ends it".to_owned());
    }
    let said = |error: std::io::Error| format!("{FOLDER}: {error}");
    fs::create_dir_all(FOLDER).map_err(said)?;
    let _ = fs::remove_file(Path::new(FOLDER).join("state.json"));
    let path = Path::new(FOLDER).join("log");
    let log = fs::File::create(&path).map_err(said)?;
    let mut holder = Command::new(std::env::current_exe().map_err(said)?)
        .arg("hold")
        .args(bare.then_some("--bare"))
        // It outlives this process, and Ctrl-C is not for it.
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(log.try_clone().map_err(said)?)
        .stderr(log)
        .spawn()
        .map_err(said)?;
    let process = i32::try_from(holder.id()).ok().and_then(ProcessId::of);
    let process = serde_json::to_vec(&process).map_err(|error| error.to_string())?;
    fs::write(Path::new(FOLDER).join("holder.json"), process).map_err(said)?;
    let mut shown = fs::File::open(&path).map_err(said)?;
    let started = Instant::now();
    loop {
        let mut text = String::new();
        shown.read_to_string(&mut text).map_err(said)?;
        print!("{text}");
        if let Some(state) = running() {
            println!("{}", told(&state));
            return Ok(());
        }
        if holder.try_wait().map_err(said)?.is_some() {
            return Err(format!("the lab did not come up, see {}", path.display()));
        }
        if started.elapsed() > UP_LIMIT {
            return Err(format!("the lab takes too long; `./dev lab down` ends it, see {path:?}"));
        }
        std::thread::sleep(Duration::from_millis(300));
    }
}

/// Ends the holder, and so everything.
fn down() -> Result<(), String> {
    let Some(holder) = holder() else {
        println!("no lab is up");
        return Ok(());
    };
    let said = |error: std::io::Error| error.to_string();
    let state = running();
    // One that is just starting hears nothing but this; what it holds ends with it all the same.
    holder.signal(if state.is_some() { Signal::TERM } else { Signal::KILL }).map_err(said)?;
    let started = Instant::now();
    while holder.lives() || state.as_ref().is_some_and(|state| state.init.lives()) {
        if started.elapsed() > DOWN_LIMIT {
            holder.signal(Signal::KILL).map_err(said)?;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    stockade_e2e::lab::sweep();
    let _ = fs::remove_dir_all(FOLDER);
    println!("the lab is down");
    Ok(())
}

fn status() -> Result<(), String> {
    match running() {
        Some(state) => println!("{}", told(&state)),
        None => println!("no lab is up"),
    }
    Ok(())
}

/// Becomes ssh.
fn ssh(host: &str, command: &[&str]) -> Result<(), String> {
    let state = running().ok_or("no lab is up: ./dev lab up")?;
    let machine = state.machines.iter().find(|machine| machine.name == host);
    let machine = machine.ok_or_else(|| format!("the lab has no machine {host}"))?;
    Err(state.ssh(machine).args(command).exec().to_string())
}

fn told(state: &State) -> String {
    let mut text = String::new();
    for machine in &state.machines {
        text += &format!("{:4} {:12} {}\n", machine.name, machine.address, machine.bmc);
    }
    if let Some(kubeconfig) = &state.kubeconfig {
        text += &format!("export KUBECONFIG={}\n", kubeconfig.display());
    }
    text += &format!(
        "serial and other logs: {}\n./dev lab ssh h1; ./dev lab down",
        state.folder.display()
    );
    text
}

/// Holds a lab until it is told to end.
fn hold(bare: bool) -> Result<(), String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| error.to_string())?;
    let log = Log::new();
    runtime.block_on(async {
        let held = held(bare, &log);
        tokio::select! {
            biased;
            () = told_to_end() => Ok(()),
            held = held => held.map_err(|error| {
                let source = std::error::Error::source(&error);
                format!("{error}: {}", source.map(ToString::to_string).unwrap_or_default())
            }),
        }
    })
}

async fn held(bare: bool, log: &Log) -> Result<(), LabError> {
    let say = |text: &str| log.say(text);
    let lab = Lab::start(HOSTS, &say)?;
    if bare {
        publish(&lab.state(None))?;
        return std::future::pending().await;
    }
    let cluster = Cluster::start(lab, &say).await?;
    let kubeconfig = cluster.plane().setup_kubeconfig()?;
    cluster.plane().kubectl_stdin(&["apply", "-f", "-"], &cluster.fence_devices())?;
    publish(&cluster.lab().state(Some(kubeconfig)))?;
    loop {
        for machine in cluster.lab().machines() {
            machine.tend()?;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// Tells other processes of the lab.
fn publish(state: &State) -> Result<(), LabError> {
    let path = Path::new(FOLDER).join("state.json");
    let written = serde_json::to_vec(state).map_err(std::io::Error::other).and_then(|text| {
        let new = path.with_extension("new");
        fs::write(&new, text)?;
        fs::rename(&new, &path)
    });
    written.map_err(|source| LabError::Step { what: "telling of the lab".to_owned(), source })
}

async fn told_to_end() {
    match signal(SignalKind::terminate()) {
        Ok(mut signal) => {
            signal.recv().await;
        }
        Err(_) => std::future::pending().await,
    }
}
