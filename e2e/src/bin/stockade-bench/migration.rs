//! Row `migration`: live moves between two local libvirt hosts through the whole of Stockade, beside
//! `virsh migrate` of the same domain between the same hosts with equal parameters.

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use kube::Api;
use kube::api::PostParams;
use kube::runtime::watcher::{self, watcher};
use serde_json::json;
use stockade_crds::v1alpha1::{
    MigrationOutcome, VirtualMachineMigration, VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus, VmState,
};
use stockade_e2e::local_hosts::{LocalHost, ProcessId, write_heavy_disk};
use stockade_e2e::play::STORAGE;

use crate::Options;
use crate::report::{Error, Figure, quantile};
use crate::start::{Bench, bare, failed, runtime};

const NAMESPACE: &str = "default";
const VM: &str = "heavy";
/// What the guest makes of its memory, MiB, and how fast it is sent, MiB a second.
const BALLAST: u8 = 255;
const BANDWIDTH: i32 = 64;
/// QEMU's own limit of the pause, milliseconds.
const DOWNTIME: i32 = 300;
/// Moves of each side.
const ROUNDS: usize = 6;
const LIMIT: Duration = Duration::from_secs(120);
/// A host that has received so much more, bytes, receives memory: talk between daemons is less.
const FLOWS: u64 = 1024 * 1024;

/// What one move of ours took.
struct Move {
    seconds: f64,
    until_flow: f64,
    downtime: f64,
}

/// Measures the row.
///
/// # Errors
/// If the hosts can't be started, or a move fails.
pub fn run(options: &Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let bench = Bench::new(2).await?;
        let from = started(&bench).await?;
        let mut hosts = vec!["h1", "h2"];
        if from == "h2" {
            hosts.reverse();
        }
        let moves: Api<VirtualMachineMigration> =
            Api::namespaced(bench.cluster.client(), NAMESPACE);
        let mut peer = Vec::new();
        if options.peer {
            peer = theirs(&bench, &hosts)?;
        }
        let (mut seconds, mut flow, mut downtime) = (Vec::new(), Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            let to = hosts[(round + 1) % 2];
            let took = ours(&bench, &moves, round, to).await?;
            seconds.push(took.seconds);
            flow.push(took.until_flow);
            downtime.push(took.downtime);
        }
        print(&mut seconds, &mut flow, &mut downtime, &mut peer)
    })
}

/// Brings the VM up, with all that moves need; where it runs.
async fn started(bench: &Bench) -> Result<String, Error> {
    bench.disk(VM, |path| write_heavy_disk(path, BALLAST))?;
    let vm = json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": VM},
        "spec": {"memory": "320Mi",
            "migration": {"bandwidthMibPerSecond": BANDWIDTH,
                "downtimeLimitMilliseconds": DOWNTIME},
            "disks": [{"name": "root", "storage": STORAGE, "format": "raw",
                "existing": {"path": format!("{VM}.raw")}}]},
    });
    let vm = serde_json::from_value(vm)?;
    bench.vms.create(&PostParams::default(), &vm).await.map_err(|e| failed("apply", e))?;
    let running = bench.all(Some(VmState::Running)).await?;
    let began = Instant::now();
    loop {
        let words = ["get", "sha", "-A", "-o", "jsonpath={.items[*].status.movesReady}"];
        let ready = bench.cluster.plane().kubectl(&words).map_err(|e| failed("hosts", e))?;
        if ready.trim() == "true true" {
            break;
        }
        if began.elapsed() > LIMIT {
            return Err(failed("no certificates", bench.cluster.dump()));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    // The guest fills its memory, and the policy counts its hosts.
    bench.settled().await?;
    let host = running.first().and_then(|vm| vm.status.as_ref()?.host.clone());
    host.ok_or_else(|| failed("start", "it runs nowhere"))
}

/// Bytes that a host has received over its network.
fn received(host: &LocalHost) -> Result<u64, Error> {
    let daemon: Option<ProcessId> = host.processes("libvirtd").into_iter().next();
    let daemon = daemon.ok_or_else(|| failed("host", "it has no libvirtd"))?;
    let table = fs::read_to_string(format!("/proc/{}/net/dev", daemon.pid))?;
    let of = |line: &str| -> Option<u64> {
        let (name, counts) = line.split_once(':')?;
        (name.trim() != "lo").then(|| counts.split_whitespace().next()?.parse().ok())?
    };
    Ok(table.lines().filter_map(of).sum())
}

/// One move by an object, until its status says that it has succeeded.
async fn ours(
    bench: &Bench,
    moves: &Api<VirtualMachineMigration>,
    round: usize,
    to: &str,
) -> Result<Move, Error> {
    let host = bench.cluster.host(to).map_err(|e| failed("host", e))?;
    let spec = VirtualMachineMigrationSpec {
        vm: VM.to_owned(),
        target: Some(to.to_owned()),
        live: Some(true),
    };
    let order = VirtualMachineMigration::new(&format!("{VM}-{round}"), spec);
    let before = received(host)?;
    let began = Instant::now();
    moves.create(&PostParams::default(), &order).await.map_err(|e| failed("order", e))?;
    let flows = async {
        while received(host)?.saturating_sub(before) < FLOWS {
            if began.elapsed() > LIMIT {
                return Err(failed("no data", bench.cluster.dump()));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok::<f64, Error>(began.elapsed().as_secs_f64())
    };
    let over = async {
        let status = succeeded(bench, moves, round).await?;
        Ok((began.elapsed().as_secs_f64(), status))
    };
    let (until_flow, (seconds, status)) = futures::future::try_join(flows, over).await?;
    let downtime = status.downtime_milliseconds;
    let downtime = downtime.ok_or_else(|| failed("move", "its downtime was not measured"))?;
    settled(bench).await?;
    Ok(Move { seconds, until_flow, downtime: downtime as f64 })
}

async fn succeeded(
    bench: &Bench,
    moves: &Api<VirtualMachineMigration>,
    round: usize,
) -> Result<VirtualMachineMigrationStatus, Error> {
    let only = watcher::Config::default().fields(&format!("metadata.name={VM}-{round}"));
    let mut events = Box::pin(watcher(moves.clone(), only));
    let met = async {
        while let Some(event) = events.try_next().await.map_err(|e| failed("watch", e))? {
            let (watcher::Event::InitApply(found) | watcher::Event::Apply(found)) = event else {
                continue;
            };
            let status = found.status.unwrap_or_default();
            match status.outcome {
                MigrationOutcome::Pending => {}
                MigrationOutcome::Succeeded => return Ok(status),
                MigrationOutcome::Failed
                | MigrationOutcome::Refused
                | MigrationOutcome::Aborted => {
                    return Err(failed("move", format!("{status:?}")));
                }
            }
        }
        Err(failed("watch", "it ended"))
    };
    match tokio::time::timeout(LIMIT, met).await {
        Ok(met) => met,
        Err(_) => Err(failed("not in time", bench.cluster.dump())),
    }
}

/// Waits until nothing is left of the last move.
async fn settled(bench: &Bench) -> Result<(), Error> {
    let began = Instant::now();
    loop {
        let vm = bench.vms.get(VM).await.map_err(|e| failed("read", e))?;
        if vm.status.is_some_and(|status| status.migration.is_none()) {
            return Ok(());
        }
        if began.elapsed() > LIMIT {
            return Err(failed("the move does not settle", bench.cluster.dump()));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub(crate) fn virsh(uri: &str, words: &[&str]) -> Result<Output, Error> {
    let output = Command::new("virsh").args(["-c", uri]).args(words).output()?;
    if output.status.success() {
        return Ok(output);
    }
    Err(Error::Peer(String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// Seconds of `virsh migrate`, back and forth, of a copy of the VM that Stockade knows nothing of.
fn theirs(bench: &Bench, hosts: &[&str]) -> Result<Vec<f64>, Error> {
    let host = |name: &str| bench.cluster.host(name).map_err(|e| failed("host", e));
    let first = host(hosts[0])?;
    let xml = virsh(&first.libvirt_uri(), &["dumpxml", &format!("{NAMESPACE}.{VM}")])?;
    let copy = format!("bare-{VM}");
    bench.disk(&copy, |path| write_heavy_disk(path, BALLAST))?;
    let file = bench.cluster.folder().join(format!("{copy}.xml"));
    fs::write(&file, bare(&String::from_utf8_lossy(&xml.stdout), VM))?;
    let file = file.display().to_string();
    virsh(&first.libvirt_uri(), &["create", &file])?;
    // It fills its memory.
    std::thread::sleep(Duration::from_secs(5));
    let domain = format!("bare.{VM}");
    let mut seconds = Vec::new();
    for round in 0..ROUNDS {
        let (source, target) = (host(hosts[round % 2])?, host(hosts[(round + 1) % 2])?);
        let uri = source.libvirt_uri();
        virsh(&uri, &["migrate-setmaxdowntime", &domain, &DOWNTIME.to_string()])?;
        let peer = format!("qemu+tls://{}/system", target.address());
        let data = format!("tcp://{}", target.address());
        let bandwidth = BANDWIDTH.to_string();
        let began = Instant::now();
        virsh(
            &uri,
            &[
                "migrate",
                "--live",
                "--p2p",
                "--tls",
                "--unsafe",
                "--bandwidth",
                &bandwidth,
                &domain,
                &peer,
                &data,
            ],
        )?;
        seconds.push(began.elapsed().as_secs_f64());
    }
    let last = host(hosts[ROUNDS % 2])?;
    virsh(&last.libvirt_uri(), &["destroy", &domain])?;
    Ok(seconds)
}

fn print(
    seconds: &mut [f64],
    flow: &mut [f64],
    downtime: &mut [f64],
    peer: &mut [f64],
) -> Result<(), Error> {
    let peer_name = Some("virsh migrate --live --p2p --tls with equal parameters");
    let theirs = (!peer.is_empty()).then(|| quantile(peer, 0.5));
    let total = quantile(seconds, 0.5);
    let row = "migration";
    let figure = |figure, unit, ours, goal| Figure {
        row,
        figure,
        unit,
        ours,
        goal,
        n: ROUNDS,
        ..Figure::default()
    };
    figure("from the object to data that flows", "s", quantile(flow, 0.5), None).print()?;
    let whole = "255 MiB at 64 MiB/s, from the object to Succeeded";
    Figure { peer: theirs, peer_name, ..figure(whole, "s", total, None) }.print()?;
    if let Some(theirs) = theirs {
        let ratio = "the same, ours by bare virsh migrate";
        Figure { peer_name, ..figure(ratio, "times", total / theirs, Some(1.1)) }.print()?;
    }
    let limit = f64::from(DOWNTIME);
    let still = quantile(downtime, 0.5);
    figure("longest pause by its limit, median", "times", still / limit, Some(1.0)).print()?;
    let worst = quantile(downtime, 1.0);
    figure("longest pause, worst", "ms", worst, Some(limit + 100.0)).print()
}
