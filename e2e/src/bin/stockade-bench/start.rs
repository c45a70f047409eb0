//! Rows `start` and `writes`: VMs on local hosts with real libvirtds, through the whole of
//! Stockade, beside bare `virsh create` of the same domains on the same hosts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use futures::TryStreamExt;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::json;
use stockade_crds::v1alpha1::{VirtualMachine, VmState};
use stockade_e2e::control_plane::{Mark, Write};
use stockade_e2e::local_hosts::{write_guest_disk, write_idle_disk};
use stockade_e2e::play::{Cluster, Log, STORAGE};

use crate::Options;
use crate::report::{Error, Figure, quantile};

const NAMESPACE: &str = "default";
/// VMs at once.
const VMS: usize = 20;
/// Times that they are started by each side.
const ROUNDS: usize = 5;
/// How long any one thing may take.
const LIMIT: Duration = Duration::from_secs(180);
/// After the last news nothing more is written.
const SETTLE: Duration = Duration::from_secs(3);

pub(crate) fn failed(what: &str, error: impl std::fmt::Display) -> Error {
    Error::Ours(format!("{what}: {error}"))
}

pub(crate) struct Bench {
    pub(crate) cluster: Cluster,
    pub(crate) vms: Api<VirtualMachine>,
}

impl Bench {
    pub(crate) async fn new(hosts: usize) -> Result<Self, Error> {
        let log = Log::on_stderr();
        let cluster = Cluster::start(hosts, false, &log).await.map_err(|e| failed("start", e))?;
        cluster.wait_ready().await.map_err(|e| failed("hosts", e))?;
        let vms = Api::namespaced(cluster.client(), NAMESPACE);
        Ok(Self { cluster, vms })
    }

    /// Writes a disk that is not there yet.
    pub(crate) fn disk(
        &self,
        name: &str,
        write: impl FnOnce(&Path) -> std::io::Result<()>,
    ) -> Result<(), Error> {
        let folder = self.cluster.shared().join(NAMESPACE);
        std::fs::create_dir_all(&folder)?;
        let path = folder.join(format!("{name}.raw"));
        Ok(if path.exists() { Ok(()) } else { write(&path) }?)
    }

    async fn apply(&self, name: &str, grace_seconds: u32) -> Result<(), Error> {
        let vm = json!({
            "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": name},
            "spec": {"memory": "64Mi", "stopGraceSeconds": grace_seconds, "disks": [{
                "name": "root", "storage": STORAGE, "format": "raw",
                "existing": {"path": format!("{name}.raw")},
            }]},
        });
        let vm: VirtualMachine = serde_json::from_value(vm)?;
        let call = self.vms.create(&PostParams::default(), &vm).await;
        call.map(drop).map_err(|e| failed("apply", e))
    }

    /// Waits until every VM is as wanted; `None`: until none is left.
    pub(crate) async fn all(&self, wanted: Option<VmState>) -> Result<Vec<VirtualMachine>, Error> {
        let is = |vm: &VirtualMachine| vm.status.as_ref().map(|s| s.printable_status) == wanted;
        // By a watch: to ask again and again would be load of our own making.
        let mut events = Box::pin(watcher(self.vms.clone(), watcher::Config::default()));
        let (mut all, mut listed) = (BTreeMap::new(), false);
        let met = async {
            while let Some(event) = events.try_next().await.map_err(|e| failed("watch", e))? {
                match event {
                    Event::Init => all.clear(),
                    Event::InitDone => listed = true,
                    Event::InitApply(vm) | Event::Apply(vm) => {
                        all.insert(vm.metadata.name.clone(), vm);
                    }
                    Event::Delete(vm) => {
                        all.remove(&vm.metadata.name);
                    }
                }
                if listed && all.values().all(is) {
                    return Ok(());
                }
            }
            Err(failed("watch", "it ended"))
        };
        match tokio::time::timeout(LIMIT, met).await {
            Ok(met) => met.map(|()| all.into_values().collect()),
            Err(_) => Err(failed("not in time", self.cluster.dump())),
        }
    }

    /// Waits until nothing is left to be told of hosts that have just joined.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        let hosts = i64::try_from(self.cluster.hosts().len()).unwrap_or(i64::MAX);
        let path = "jsonpath={.status.tolerates}";
        let started = Instant::now();
        loop {
            let said = self.cluster.plane().kubectl(&["get", "sap", "default", "-o", path]);
            let said = said.map_err(|e| failed("policy", e))?;
            if said.trim().parse() == Ok(hosts - 1) {
                tokio::time::sleep(SETTLE).await;
                return Ok(());
            }
            if started.elapsed() > LIMIT {
                return Err(failed("the hosts don't settle", self.cluster.dump()));
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }

    pub(crate) async fn delete_all(&self) -> Result<(), Error> {
        let (delete, every) = (DeleteParams::default(), ListParams::default());
        let all = self.vms.delete_collection(&delete, &every).await;
        all.map(drop).map_err(|e| failed("delete", e))?;
        self.all(None).await.map(drop)
    }

    /// Seconds from the first apply until all run, and what ran where. Each round has new VMs on
    /// new disks: one that a deleted VM has left would bring its owner records along.
    async fn ours(&self, round: usize) -> Result<(f64, Vec<VirtualMachine>), Error> {
        let names: Vec<String> = (0..VMS).map(|i| format!("vm{round}x{i:02}")).collect();
        for name in &names {
            self.disk(name, write_idle_disk)?;
        }
        let started = Instant::now();
        let calls = names.iter().map(|name| self.apply(name, 0));
        futures::future::try_join_all(calls).await?;
        let running = self.all(Some(VmState::Running)).await?;
        Ok((started.elapsed().as_secs_f64(), running))
    }

    /// The same domains under other names with disks of their own, as XML files by libvirt's URI.
    fn copies(&self, running: &[VirtualMachine]) -> Result<Vec<(String, PathBuf)>, Error> {
        let mut files = Vec::new();
        for vm in running {
            let name = vm.metadata.name.clone().unwrap_or_default();
            let host = vm.status.as_ref().and_then(|s| s.host.clone()).unwrap_or_default();
            let uri = self.cluster.host(&host).map_err(|e| failed("host", e))?.libvirt_uri();
            let domain = format!("{NAMESPACE}.{name}");
            let output = Command::new("virsh")
                .args(["-c", &uri, "dumpxml", "--inactive", &domain])
                .output()?;
            let xml = String::from_utf8_lossy(&output.stdout).into_owned();
            self.disk(&format!("bare-{name}"), write_idle_disk)?;
            let copy = bare(&xml, &name);
            let file = self.cluster.folder().join(format!("bare-{name}.xml"));
            std::fs::write(&file, copy)?;
            files.push((uri, file));
        }
        Ok(files)
    }
}

/// A domain's XML as a person without Stockade would have it.
pub(crate) fn bare(xml: &str, name: &str) -> String {
    let mut text = xml.to_owned();
    for (open, close) in [("<metadata>", "</metadata>"), ("<uuid>", "</uuid>")] {
        if let (Some(from), Some(to)) = (text.find(open), text.find(close)) {
            text.replace_range(from..to + close.len(), "");
        }
    }
    text.replace(&format!("{NAMESPACE}.{name}<"), &format!("bare.{name}<"))
        .replace(&format!("/{name}.raw"), &format!("/bare-{name}.raw"))
}

/// Seconds until every `virsh create` has returned, all begun at once.
fn virsh_creates(files: &[(String, PathBuf)]) -> Result<f64, Error> {
    let started = Instant::now();
    let mut children = Vec::new();
    for (uri, file) in files {
        let child = Command::new("virsh")
            .args(["-c", uri, "create"])
            .arg(file)
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        children.push(child);
    }
    for child in children {
        let output = child.wait_with_output()?;
        if !output.status.success() {
            return Err(Error::Peer(String::from_utf8_lossy(&output.stderr).into_owned()));
        }
    }
    let took = started.elapsed().as_secs_f64();
    for (uri, file) in files {
        let stem = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let domain = stem.replacen("bare-", "bare.", 1);
        Command::new("virsh").args(["-c", uri, "destroy", &domain]).output()?;
    }
    Ok(took)
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime, Error> {
    // One thread: programs that die with the thread that started them then die with us alone.
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Measures the row `start`.
///
/// # Errors
/// If the hosts can't be started, or a VM does not run.
pub fn start(options: &Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        // Every host counts the machine's CPUs as its own, and gives each VM a whole one.
        let cpus = std::thread::available_parallelism()?.get();
        let bench = Bench::new(VMS.div_ceil(cpus).max(3)).await?;
        // The first starts of a libvirtd probe what its QEMU can do.
        let (_, running) = bench.ours(0).await?;
        let files = bench.copies(&running)?;
        bench.delete_all().await?;
        let (mut ours, mut peer, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            let bare = options.peer.then(|| virsh_creates(&files)).transpose()?;
            let (took, _) = bench.ours(round).await?;
            bench.delete_all().await?;
            ours.push(took);
            if let Some(bare) = bare {
                peer.push(bare);
                ratios.push(took / bare);
            }
        }
        let peer = (!peer.is_empty()).then(|| quantile(&mut peer, 0.5));
        let peer_name = Some("virsh create of the same domains at once");
        Figure {
            row: "start",
            figure: "20 VMs at once, apply to running",
            unit: "s",
            ours: quantile(&mut ours, 0.5),
            peer,
            peer_name,
            n: ROUNDS,
            ..Figure::default()
        }
        .print()?;
        if ratios.is_empty() {
            return Ok(());
        }
        Figure {
            row: "start",
            figure: "20 VMs at once, ours by bare virsh create",
            unit: "times",
            ours: quantile(&mut ratios, 0.5),
            peer_name,
            goal: Some(1.15),
            n: ROUNDS,
            ..Figure::default()
        }
        .print()
    })
}

/// Lives of a VM that the row `writes` counts. The median is what the goal is for: a start or a stop
/// that a busy machine draws out is reported while it lasts. The worst life is told beside it.
const LIVES: usize = 3;

/// Measures the row `writes`: what Stockade's own parts asked the API server to write, counted by
/// its audit log. Events count, Leases don't.
///
/// # Errors
/// If the hosts can't be started, or the VM does not do as it is told.
pub fn writes(_: &Options) -> Result<(), Error> {
    runtime()?.block_on(async {
        let bench = Bench::new(3).await?;
        bench.settled().await?;
        let mut counts: BTreeMap<&'static str, Vec<f64>> = BTreeMap::new();
        for life in 0..LIVES {
            let name = format!("life{life}");
            bench.disk(&name, write_guest_disk)?;
            let mut mark = bench.cluster.plane().mark();
            let mut count = |figure, counts: &mut BTreeMap<_, Vec<f64>>| {
                let written = bench.written(mark, figure)?;
                counts.entry(figure).or_default().push(written);
                mark = bench.cluster.plane().mark();
                Ok::<(), Error>(())
            };
            bench.apply(&name, 20).await?;
            bench.settles_as(VmState::Running).await?;
            count(FIRST_START, &mut counts)?;
            bench.policy(&name, "Halted").await?;
            bench.settles_as(VmState::Stopped).await?;
            count(STOP, &mut counts)?;
            bench.policy(&name, "Always").await?;
            bench.settles_as(VmState::Running).await?;
            count(POWER_ON, &mut counts)?;
            if life == 0 {
                tokio::time::sleep(Duration::from_secs(60)).await;
                count(CONVERGED, &mut counts)?;
            }
            bench.delete_all().await?;
            // The write that lets it go is logged after it is gone.
            tokio::time::sleep(SETTLE).await;
        }
        for (figure, worst, goal) in FIGURES {
            let mut counted = counts.remove(figure).unwrap_or_default();
            Figure {
                row: "writes",
                figure,
                unit: "API writes",
                ours: quantile(&mut counted, 0.5),
                goal: Some(goal),
                n: counted.len(),
                ..Figure::default()
            }
            .print()?;
            if let Some(worst) = worst {
                Figure {
                    row: "writes",
                    figure: worst,
                    unit: "API writes",
                    ours: quantile(&mut counted, 1.0),
                    n: counted.len(),
                    ..Figure::default()
                }
                .print()?;
            }
        }
        Ok(())
    })
}

const FIRST_START: &str = "first start of a VM";
const STOP: &str = "stop";
const POWER_ON: &str = "power-on of a VM that has run before";
const CONVERGED: &str = "a minute with a running VM";
/// What is counted, what its worst life is called if there are several, and the goal.
const FIGURES: [(&str, Option<&str>, f64); 4] = [
    (FIRST_START, Some("first start of a VM, worst"), 6.0),
    (STOP, Some("stop, worst"), 4.0),
    (POWER_ON, Some("power-on of a VM that has run before, worst"), 5.0),
    (CONVERGED, None, 0.0),
];

impl Bench {
    async fn policy(&self, name: &str, policy: &str) -> Result<(), Error> {
        let patch = Patch::Merge(json!({"spec": {"runPolicy": policy}}));
        let call = self.vms.patch(name, &PatchParams::default(), &patch).await;
        call.map(drop).map_err(|e| failed("patch", e))
    }

    /// Waits for the state, and for whatever is written after it.
    async fn settles_as(&self, state: VmState) -> Result<(), Error> {
        self.all(Some(state)).await?;
        tokio::time::sleep(SETTLE).await;
        Ok(())
    }

    /// How often Stockade's own parts have written since the mark; what they wrote is told on
    /// stderr.
    fn written(&self, mark: Mark, figure: &str) -> Result<f64, Error> {
        let all = self.cluster.plane().writes_since(mark).map_err(|e| failed("audit log", e))?;
        let ours = |w: &&Write| {
            w.user.starts_with("stockade:host:") || w.user.contains(":stockade-system:")
        };
        let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
        for write in all.iter().filter(ours) {
            let kind = format!("{} {} ({})", write.verb, write.resource, write.code);
            *kinds.entry(kind).or_default() += 1;
        }
        eprintln!("bench: writes: {figure}: {kinds:?}");
        Ok(kinds.values().sum::<usize>() as f64)
    }
}
