//! Row `drain`: a local host with 20 VMs is emptied by live moves, through the whole of Stockade, and
//! beside it by Pacemaker's standby: copies of the same domains, on the same hosts and libvirts, with
//! equal parameters.
//!
//! Both are judged from outside, by what libvirt on the two hosts lists. A guest that was started
//! anew is no move: then there is no figure.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::Api;
use kube::api::PostParams;
use serde_json::json;
use stockade_crds::v1alpha1::{VirtualMachine, VmState};
use stockade_e2e::local_hosts::{GUEST_DISK_BYTES, guest_boots, slow_heavy_boot_sector};
use stockade_e2e::play::{Cluster, Log, STORAGE};

use crate::Options;
use crate::migration::virsh;
use crate::report::{Error, Figure, quantile};
use crate::standby::Peer;
use crate::start::{Bench, bare, failed, runtime};

const NAMESPACE: &str = "default";
const VMS: usize = 20;
/// What each guest makes of its memory, MiB.
const BALLAST: u8 = 32;
/// Drains of each side by each limit.
const ROUNDS: usize = 3;
const LIMIT: Duration = Duration::from_secs(300);
const HOSTS: [&str; 2] = ["h1", "h2"];
/// Moves at once that a host takes part in: our default, and as many as Pacemaker begins on two CPUs
/// if it is told nothing (`node-action-limit`: twice as many actions as CPUs).
const AT_ONCE: [(i32, &str); 2] = [
    (2, "a host of 20 VMs is emptied, 2 moves at once: our default"),
    (4, "a host of 20 VMs is emptied, 4 moves at once: Pacemaker's default on 2 CPUs"),
];

/// What empties a host.
trait Drains {
    /// How the names of its domains begin.
    const DOMAINS: &'static str;
    /// How the names of its disks begin.
    const DISKS: &'static str;

    /// So many moves at once.
    fn limit(&self, moves: i32) -> Result<(), Error>;
    /// Lets a host take VMs again; back once it does.
    fn opens(&self, host: &str) -> Result<(), Error>;
    /// Orders a host to be emptied; back at once.
    fn empties(&self, host: &str) -> Result<(), Error>;
    /// Waits until nothing is left to be done about it.
    fn settles(&self, host: &str) -> Result<(), Error>;
}

/// Measures the row.
///
/// # Errors
/// If the hosts can't be started, or a drain does not end with all guests as they were.
pub fn run(options: &Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let log = Log::on_stderr();
        let cluster = Cluster::start_with(2, false, &["--cpus", "64"], &log).await;
        let cluster = cluster.map_err(|e| failed("start", e))?;
        cluster.wait_ready().await.map_err(|e| failed("hosts", e))?;
        let vms = Api::namespaced(cluster.client(), NAMESPACE);
        let bench = Bench { cluster, vms };
        let ours = Ours(&bench);
        started(&bench).await?;
        let mine = measured(&bench, &ours)?;
        let mut theirs = Vec::new();
        if options.peer {
            match Peer::programs() {
                Some(programs) => theirs = beside(&bench, &programs).await?,
                None => eprintln!("bench: drain: Pacemaker is not there, and is left out"),
            }
        }
        for (index, (_, figure)) in AT_ONCE.iter().enumerate() {
            Figure {
                row: "drain",
                figure,
                unit: "s",
                ours: mine.get(index).copied().unwrap_or_default(),
                peer: theirs.get(index).copied(),
                peer_name: Some("Pacemaker's standby, VirtualDomain, the same migration"),
                n: ROUNDS,
                ..Figure::default()
            }
            .print()?;
        }
        Ok(())
    })
}

fn name(index: usize) -> String {
    format!("drained{index:02}")
}

/// Starts all VMs on the first host.
async fn started(bench: &Bench) -> Result<(), Error> {
    let ours = Ours(bench);
    ours.mode(HOSTS[1], "Cordoned")?;
    let mut disk = slow_heavy_boot_sector(BALLAST).to_vec();
    disk.resize(usize::try_from(GUEST_DISK_BYTES).unwrap_or_default(), 0);
    for index in 0..VMS {
        for name in [name(index), format!("bare-{}", name(index))] {
            bench.disk(&name, |path| fs::write(path, &disk))?;
        }
        let vm = json!({
            "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": name(index)},
            "spec": {"memory": "64Mi", "stopGraceSeconds": 0, "disks": [{
                "name": "root", "storage": STORAGE, "format": "raw",
                "existing": {"path": format!("{}.raw", name(index))}}]},
        });
        let vm: VirtualMachine = serde_json::from_value(vm)?;
        bench.vms.create(&PostParams::default(), &vm).await.map_err(|e| failed("apply", e))?;
    }
    bench.all(Some(VmState::Running)).await?;
    until(bench, "the certificates for moves are in force", || {
        Ok(ours.said(&["sha", "-A"], "{.items[*].status.movesReady}")?.trim() == "true true")
    })
}

fn until(bench: &Bench, what: &str, is: impl Fn() -> Result<bool, Error>) -> Result<(), Error> {
    let began = Instant::now();
    while !is()? {
        if began.elapsed() > LIMIT {
            return Err(failed("not in time", format!("{what}\n{}", bench.cluster.dump())));
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    Ok(())
}

/// How many domains of one side run on a host, by its libvirt.
fn running<D: Drains>(bench: &Bench, host: &str) -> Result<usize, Error> {
    let host = bench.cluster.host(host).map_err(|e| failed("host", e))?;
    let all = virsh(&host.libvirt_uri(), &["list", "--name", "--state-running"])?;
    let all = String::from_utf8_lossy(&all.stdout).into_owned();
    Ok(all.lines().filter(|line| line.starts_with(D::DOMAINS)).count())
}

/// How often the guests of one side have booted.
fn boots<D: Drains>(bench: &Bench) -> Result<Vec<u64>, Error> {
    let folder = bench.cluster.shared().join(NAMESPACE);
    let disk = |index| folder.join(format!("{}{}.raw", D::DISKS, name(index)));
    (0..VMS).map(|index| guest_boots(&disk(index)).map_err(Error::from)).collect()
}

/// Waits until all guests of one side run on a host.
fn are_on<D: Drains>(bench: &Bench, host: &str, not_on: &str) -> Result<(), Error> {
    until(bench, &format!("all VMs are on {host}"), || {
        Ok(running::<D>(bench, host)? == VMS && running::<D>(bench, not_on)? == 0)
    })
}

/// Median seconds for each limit, from the order until all domains run on the other host. Starts with
/// all of them on the first host.
fn measured<D: Drains>(bench: &Bench, side: &D) -> Result<Vec<f64>, Error> {
    let [mut from, mut to] = HOSTS;
    let mut medians = Vec::new();
    // The guests fill their memory, and count.
    until(bench, "all guests count", || Ok(boots::<D>(bench)?.iter().all(|boots| *boots == 1)))?;
    for (limit, _) in AT_ONCE {
        side.limit(limit)?;
        let mut seconds = Vec::new();
        for _ in 0..ROUNDS {
            side.opens(to)?;
            let began = Instant::now();
            side.empties(from)?;
            are_on::<D>(bench, to, from)?;
            seconds.push(began.elapsed().as_secs_f64());
            side.settles(from)?;
            std::mem::swap(&mut from, &mut to);
        }
        eprintln!("bench: drain: {}…, {limit} at once: {seconds:.1?} s", D::DOMAINS);
        medians.push(quantile(&mut seconds, 0.5));
    }
    if boots::<D>(bench)?.iter().any(|boots| *boots != 1) {
        return Err(failed("drain", "a guest was started anew"));
    }
    Ok(medians)
}

/// Ours: a Host in maintenance.
struct Ours<'a>(&'a Bench);

impl Ours<'_> {
    fn patch(&self, kind: &str, name: &str, to: &serde_json::Value) -> Result<(), Error> {
        let to = to.to_string();
        let words = ["patch", kind, name, "--type=merge", "-p", &to];
        self.0.cluster.plane().kubectl(&words).map(drop).map_err(|e| failed(kind, e))
    }

    fn mode(&self, host: &str, mode: &str) -> Result<(), Error> {
        self.patch("shost", host, &json!({"spec": {"mode": mode}}))
    }

    /// What kubectl says of these, by a path.
    fn said(&self, of: &[&str], path: &str) -> Result<String, Error> {
        let path = format!("jsonpath={path}");
        let words: Vec<&str> = ["get", "-o", &path].into_iter().chain(of.to_vec()).collect();
        self.0.cluster.plane().kubectl(&words).map_err(|e| failed("look", e))
    }
}

impl Drains for Ours<'_> {
    const DOMAINS: &'static str = "default.";
    const DISKS: &'static str = "";

    fn limit(&self, moves: i32) -> Result<(), Error> {
        self.patch("sap", "default", &json!({"spec": {"migrationsPerHost": moves}}))
    }

    fn opens(&self, host: &str) -> Result<(), Error> {
        self.mode(host, "Active")?;
        until(self.0, "the host takes VMs", || {
            Ok(self.said(&["shost", host], "{.status.printableStatus}")? == "Ready")
        })
    }

    fn empties(&self, host: &str) -> Result<(), Error> {
        self.mode(host, "Maintenance")
    }

    fn settles(&self, host: &str) -> Result<(), Error> {
        let drained = "{.status.conditions[?(@.type=='Drained')].status}";
        until(self.0, "the host is drained, and no move is open", || {
            let empty = self.said(&["shost", host], drained)? == "True";
            Ok(empty && self.said(&["svm"], "{.items[*].status.migration}")?.is_empty())
        })
    }
}

/// Theirs: a node in standby.
struct Theirs<'a>(Peer<'a>);

impl Drains for Theirs<'_> {
    const DOMAINS: &'static str = "bare.";
    const DISKS: &'static str = "bare-";

    fn limit(&self, moves: i32) -> Result<(), Error> {
        self.0.property("migration-limit", &moves.to_string())
    }

    fn opens(&self, host: &str) -> Result<(), Error> {
        self.0.standby(host, false)
    }

    fn empties(&self, host: &str) -> Result<(), Error> {
        self.0.standby(host, true)
    }

    fn settles(&self, _: &str) -> Result<(), Error> {
        self.0.idle()
    }
}

/// Takes the domains down, and has Pacemaker run copies of them on the same hosts.
async fn beside(bench: &Bench, programs: &std::path::Path) -> Result<Vec<f64>, Error> {
    // Where they are now does not matter: the copies start on the first host.
    let mut copies: Vec<(String, PathBuf)> = Vec::new();
    for index in 0..VMS {
        let vm = name(index);
        let found = bench.vms.get(&vm).await.map_err(|e| failed("read", e))?;
        let host = found.status.and_then(|status| status.host).unwrap_or_default();
        let host = bench.cluster.host(&host).map_err(|e| failed("host", e))?;
        let domain = format!("{NAMESPACE}.{vm}");
        let xml = virsh(&host.libvirt_uri(), &["dumpxml", "--inactive", &domain])?;
        let file = bench.cluster.folder().join(format!("bare-{vm}.xml"));
        fs::write(&file, bare(&String::from_utf8_lossy(&xml.stdout), &vm))?;
        copies.push((vm, file));
    }
    bench.delete_all().await?;
    let hosts = bench.cluster.hosts().iter().collect();
    let peer = Peer::start(hosts, programs, bench.cluster.folder())?;
    // Nothing here is to be shot.
    peer.property("stonith-enabled", "false")?;
    peer.standby(HOSTS[1], true)?;
    peer.keep(&copies)?;
    let theirs = Theirs(peer);
    let medians = are_on::<Theirs<'_>>(bench, HOSTS[0], HOSTS[1])
        .and_then(|()| theirs.0.idle())
        .and_then(|()| measured(bench, &theirs));
    medians.map_err(|error| Error::Peer(format!("{error}\n{}", theirs.0.status())))
}
