//! Row `scale`: VMs on simulated hosts in real time, each host with the real agent, against a real
//! kube-apiserver and etcd; the controller is a process of its own.
//!
//! The peer is a bare loop on a fresh control plane: as many writes of each kind and of the same
//! objects, under the same load of Leases, with nobody who watches or decides.

mod bare;
mod fleet;
mod process;
mod server;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client};
use serde_json::json;
use stockade_crds::v1alpha1::{AvailabilityPolicy, Host, VirtualMachine, VmState};
use stockade_e2e::control_plane::{ControlPlane, Options as Plane};
use stockade_e2e::play::Log;

use self::fleet::Fleet;
use self::process::Controller;
use self::server::Counts;
use crate::Options;
use crate::report::{Error, Figure, quantile};

/// Hosts that share a storage: nobody mounts one on a thousand.
const RACK: usize = 50;
/// VMs a host.
const DENSITY: usize = 10;
/// Requests at once of whoever makes VMs, and of the bare loop.
const AT_ONCE: usize = 32;
/// Seconds between two beats: what is measured is VMs, not beats.
const HEARTBEAT: u64 = 30;
/// The size at which the goals are told.
const FULL: usize = 10_000;
/// How long hosts may take to be ready, and VMs to run.
const LIMIT: Duration = Duration::from_secs(1_800);
/// After the last news nothing more is written.
const SETTLE: Duration = Duration::from_secs(5);
/// Where the VMs are.
const NAMESPACE: &str = "default";

fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Ours(format!("{what}: {error}"))
}

/// Name of the storage of the host or VM with this number.
fn rack(number: usize, racks: usize) -> String {
    format!("rack-{}", number % racks)
}

/// The VM with this number, with a disk of its own that is made at its first start.
fn vm(number: usize, racks: usize) -> Result<VirtualMachine, Error> {
    Ok(serde_json::from_value(json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": format!("vm{number}"), "namespace": NAMESPACE},
        "spec": {"memory": "64Mi", "disks": [{
            "name": "root", "storage": rack(number, racks), "blank": {}, "size": "1Gi",
        }]},
    }))?)
}

/// A control plane with the charts, and a policy that beats seldom.
async fn plane() -> Result<(ControlPlane, Client), Error> {
    let plane = ControlPlane::start(Plane::default()).await.map_err(|e| failed("start", e))?;
    plane.install_charts().await.map_err(|e| failed("charts", e))?;
    let client = plane.setup_client().await.map_err(|e| failed("client", e))?;
    let policies: Api<AvailabilityPolicy> = Api::all(client.clone());
    let patch = Patch::Merge(json!({"spec": {
        "heartbeatSeconds": HEARTBEAT, "suspectSeconds": 120, "actSeconds": 180,
        "selfFence": {"stopSeconds": 120},
    }}));
    let call = policies.patch("default", &PatchParams::default(), &patch).await;
    call.map_err(|e| failed("policy", e))?;
    Ok((plane, client))
}

/// What one side took.
struct Ours {
    seconds: f64,
    writes: Counts,
    samples: Vec<serde_json::Value>,
    apply_to_running: Vec<f64>,
    plans: (f64, f64),
    cpu_seconds: f64,
    peak_mib: f64,
}

async fn hosts_ready(client: &Client, count: usize) -> Result<(), Error> {
    let hosts: Api<Host> = Api::all(client.clone());
    let started = Instant::now();
    loop {
        let all = hosts.list(&ListParams::default()).await.map_err(|e| failed("hosts", e))?;
        let ready = |host: &&Host| {
            let conditions = host.status.iter().flat_map(|status| &status.conditions);
            conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
        };
        let n = all.items.iter().filter(ready).count();
        if n == count {
            return Ok(());
        }
        if started.elapsed() > LIMIT {
            return Err(Error::Ours(format!("{n} of {count} hosts are ready")));
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Makes `count` VMs and waits until all run; the seconds from each one's answer until it was
/// seen to run.
async fn run_all(client: &Client, count: usize, racks: usize) -> Result<Vec<f64>, Error> {
    let vms: Api<VirtualMachine> = Api::namespaced(client.clone(), NAMESPACE);
    let make = async {
        let made = (0..count).map(async |number| {
            let vm = vm(number, racks)?;
            let call = vms.create(&PostParams::default(), &vm).await;
            call.map_err(|e| failed("apply", e))?;
            Ok::<_, Error>((format!("vm{number}"), Instant::now()))
        });
        let made: Vec<Result<_, Error>> =
            futures::stream::iter(made).buffer_unordered(AT_ONCE).collect().await;
        made.into_iter().collect::<Result<BTreeMap<String, Instant>, Error>>()
    };
    let see = async {
        let mut running: BTreeMap<String, Instant> = BTreeMap::new();
        let mut news = watcher(vms.clone(), watcher::Config::default()).boxed();
        let mut told = Instant::now();
        while running.len() < count {
            let event = tokio::time::timeout(LIMIT, news.next()).await;
            let vm = match event {
                Ok(Some(Ok(Event::Apply(vm) | Event::InitApply(vm)))) => vm,
                Ok(Some(_)) => continue,
                Ok(None) | Err(_) => {
                    return Err(Error::Ours(format!("{} of {count} VMs run", running.len())));
                }
            };
            let runs = vm.status.is_some_and(|s| s.printable_status == VmState::Running);
            if runs && let Some(name) = vm.metadata.name {
                running.entry(name).or_insert_with(Instant::now);
            }
            if told.elapsed() > Duration::from_secs(20) {
                eprintln!("bench: scale: {} of {count} VMs run", running.len());
                told = Instant::now();
            }
        }
        Ok(running)
    };
    let (made, running) = tokio::try_join!(make, see)?;
    let took = |(name, at): (&String, &Instant)| {
        running.get(name).map(|seen| seen.saturating_duration_since(*at).as_secs_f64())
    };
    Ok(made.iter().filter_map(took).collect())
}

async fn ours(vms: usize, hosts: usize, log: &Log) -> Result<Ours, Error> {
    let racks = hosts.div_ceil(RACK);
    let (plane, client) = plane().await?;
    let fleet = Fleet::declare(&plane, &client, hosts, racks).await?;
    let controller = Controller::start(&plane).await?;
    fleet.boot();
    log.say(format!("{hosts} simulated hosts are declared and boot"));
    hosts_ready(&client, hosts).await?;
    log.say(format!("{hosts} hosts are ready; {vms} VMs are made"));
    let (before, cpu, plans) =
        (server::counts(&client).await?, controller.cpu_seconds()?, controller.plans().await?);
    let started = Instant::now();
    let apply_to_running = run_all(&client, vms, racks).await?;
    let seconds = started.elapsed().as_secs_f64();
    log.say(format!("{vms} VMs run after {seconds:.1} s"));
    tokio::time::sleep(SETTLE).await;
    let (sum, count) = controller.plans().await?;
    let violations = fleet.violations();
    if !violations.is_empty() {
        return Err(Error::Ours(violations.join("; ")));
    }
    Ok(Ours {
        seconds,
        writes: server::since(&before, &server::counts(&client).await?),
        samples: server::samples(&client).await?,
        apply_to_running,
        plans: (sum - plans.0, count - plans.1),
        cpu_seconds: controller.cpu_seconds()? - cpu,
        peak_mib: controller.peak_mib()?,
    })
}

/// Measures it.
///
/// # Errors
/// Whatever did not come up, or did not run in time.
pub fn run(options: &Options) -> Result<(), Error> {
    let vms = options.vms.unwrap_or(FULL);
    let hosts = (vms / DENSITY).max(3);
    let full = vms >= FULL;
    let log = Log::on_stderr();
    log.say(format!(
        "scale: {vms} VMs on {hosts} hosts{}",
        if full { "" } else { "; goals are for 10000 VMs on 1000 hosts, and not judged here" }
    ));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ours = ours(vms, hosts, &log).await?;
        let peer = if options.peer {
            let took = bare::run(vms, hosts, &ours.writes, &ours.samples).await?;
            log.say(format!("the bare loop took {took:.1} s"));
            Some(took)
        } else {
            None
        };
        print(&mut ours, peer, vms, hosts, full)
    })
}

fn print(
    ours: &mut Ours,
    peer: Option<f64>,
    vms: usize,
    hosts: usize,
    full: bool,
) -> Result<(), Error> {
    let goal = |value: f64| full.then_some(value);
    let peer_name = peer.map(|_| "a bare loop with the same writes and Leases");
    let figure = |text: &str, unit: &'static str, ours: f64| Figure {
        row: "scale",
        // A process prints each of them once.
        figure: String::leak(format!("{vms} VMs on {hosts} hosts: {text}")),
        unit,
        ours,
        n: 1,
        ..Figure::default()
    };
    Figure { peer, peer_name, ..figure("first apply until all run", "s", ours.seconds) }.print()?;
    if let Some(peer) = peer {
        let times = figure("ours by the bare loop", "times", ours.seconds / peer);
        Figure { peer_name, goal: goal(1.5), ..times }.print()?;
    }
    let p50 = quantile(&mut ours.apply_to_running, 0.5);
    figure("apply to running, P50 of a burst", "s", p50).print()?;
    let p99 = quantile(&mut ours.apply_to_running, 0.99);
    figure("apply to running, P99 of a burst", "s", p99).print()?;
    let peak = figure("peak RSS of the controller", "MiB", ours.peak_mib);
    Figure { goal: goal(80.0), ..peak }.print()?;
    let (seconds, plans) = ours.plans;
    figure("one plan while they are placed, mean", "ms", seconds * 1000.0 / plans.max(1.0))
        .print()?;
    figure("plans made while they are placed", "plans", plans).print()?;
    let cpu = figure("CPU of the controller a VM", "ms", ours.cpu_seconds * 1000.0 / vms as f64);
    Figure { goal: goal(1.5), ..cpu }.print()?;
    let writes: u64 = ours.writes.values().sum();
    eprintln!("bench: scale: writes {:?}", ours.writes);
    figure("API writes a VM, its apply included", "writes", writes as f64 / vms as f64).print()
}
