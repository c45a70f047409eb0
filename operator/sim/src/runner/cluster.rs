//! Builds and drives a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::FutureExt;
use serde_json::{Value, json};
use stockade_agent::AgentConfig;
use stockade_controller::Context;
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use stockade_crds::names::{SYSTEM_NAMESPACE, host_of_namespace};
use stockade_crds::v1alpha1::{HostFence, StorageKind, VirtualMachine};
use thiserror::Error;
use tokio::sync::oneshot;

use super::process::behind;
use super::wishes::Wishes;
use crate::host::gate::Gate;
use crate::host::{SimFence, SimServer, true_clock};
use crate::kube::{Fault, FaultId, Refusal, SchemaError, Scope, SimApi, Write};
use crate::world::model::{Device, Net, Store, WatchdogKind, Way};
use crate::world::power::{Build, Which};
use crate::world::{AgentLife, Sim, World};

/// The storage of every cluster here.
const STORAGE: &str = "vms";
/// How long the supervisor of controllers waits before it starts one again.
const CONTROLLER_BACK: Duration = Duration::from_secs(10);

/// Why a cluster could not be built or told something.
#[derive(Debug, Error)]
pub enum ClusterError {
    /// The API does not serve a kind's schema.
    #[error("the in-process API does not serve our kinds")]
    Schema(#[from] SchemaError),
    /// The API refused an object.
    #[error("the API refused {what}: {message}")]
    Refused {
        /// What was asked.
        what: String,
        /// Its answer.
        message: String,
    },
    /// It does not come to the state that it was to begin with.
    #[error("second 0 is not reached: {0}")]
    NotReached(String),
}

/// How one host is built.
#[derive(Clone, Debug)]
pub struct HostPlan {
    /// Its name.
    pub name: String,
    /// CPUs.
    pub cpu: i32,
    /// Memory.
    pub memory_mib: i64,
    /// It has a power device of its own, `bmc-<name>`.
    pub bmc: bool,
}

impl HostPlan {
    /// A host with 16 CPUs, 64 GiB and a BMC.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), cpu: 16, memory_mib: 65_536, bmc: true }
    }
}

/// Who dies of a write that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dies {
    /// Who made it.
    Writer,
    /// Every controller and every agent.
    All,
}

/// One controller process.
struct Controller {
    gate: Gate,
    stop: Option<oneshot::Sender<()>>,
}

/// The controllers of a cluster, by identity, in the order they were started.
#[derive(Default)]
struct Controllers {
    started: u32,
    alive: BTreeMap<String, Controller>,
}

/// A running cluster.
pub struct Cluster {
    /// The simulated world.
    pub sim: Arc<Sim>,
    /// The API.
    pub api: SimApi,
    guards: Guards,
    controllers: Arc<std::sync::Mutex<Controllers>>,
    api_cuts: BTreeMap<(String, Way), FaultId>,
}

/// Tells the world that a boot was heard, an epoch ordered, a host declared, or the policy set.
fn tell_of_life(world: &mut World, write: &Write) {
    let spec = write.after.as_ref().map(|after| &after.value["spec"]);
    match (write.kind.as_str(), spec) {
        ("Host", Some(_)) => {
            world.storm.declared.insert(write.name.clone());
        }
        ("Host", None) => {
            world.storm.declared.remove(&write.name);
        }
        ("AvailabilityPolicy", Some(spec)) => {
            let number = |key: &str| spec[key].as_u64();
            let seconds = |key: &str, usual| number(key).unwrap_or(usual);
            let missed = seconds("suspectSeconds", 6) + 3 * seconds("heartbeatSeconds", 2) + 2;
            world.storm.missed_ms = missed * 1_000;
            let named = number("stormBrakeHosts").and_then(|n| usize::try_from(n).ok());
            world.storm.named = named;
        }
        _ => {}
    }
    let host = write.namespace.as_deref().and_then(host_of_namespace);
    let Some(host) = host else { return };
    if write.kind == "Domain" {
        let open = write.after.as_ref().filter(|d| d.value["status"]["released"] != true);
        let boot = open.and_then(|d| d.value["spec"]["bootId"].as_str());
        world.expect_copy(host, &write.name, boot);
        let part = write.after.as_ref().map(|d| &d.value["spec"]["migration"]);
        let key = (host.to_owned(), write.name.clone());
        if part.is_some_and(|m| m["side"] == "Source" && m["step"] == "Commit") {
            world.swapped.insert(key);
        } else {
            world.swapped.remove(&key);
        }
    }
    let Some(after) = &write.after else { return };
    match write.kind.as_str() {
        "Lease" => {
            let holder = after.value["spec"]["holderIdentity"].as_str().unwrap_or_default();
            if let Some((_, boot)) = holder.split_once('/') {
                world.hear(host, boot);
            }
        }
        "Domain" => {
            if let Some(epoch) = after.value["spec"]["epoch"].as_i64() {
                world.order(&write.name, epoch);
            }
        }
        _ => {}
    }
}

impl Cluster {
    /// An API with our kinds and a world without hosts, storages and controllers. Whatever host
    /// boots in it runs the real agent.
    ///
    /// # Errors
    /// A refusal of the in-process API.
    pub fn empty(
        seed: u64,
        guards: Guards,
        agent_guards: AgentGuards,
    ) -> Result<Self, ClusterError> {
        let api = SimApi::ours(seed)?;
        let cluster = Self {
            sim: Sim::new(seed),
            api,
            guards,
            controllers: Arc::default(),
            api_cuts: BTreeMap::new(),
        };
        cluster.sim.lock().lock_files_stay = guards.lock_files;
        cluster.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE},
        }))?;
        cluster.watch_proofs();
        cluster.agents(agent_guards);
        Ok(cluster)
    }

    /// Builds hosts with their devices, one NFS storage `vms` under virtlockd, served from
    /// outside the hosts, and the default policy; boots the hosts and starts two controllers.
    ///
    /// # Errors
    /// A refusal of the in-process API.
    pub fn new(
        seed: u64,
        hosts: &[HostPlan],
        guards: Guards,
        agent_guards: AgentGuards,
    ) -> Result<Self, ClusterError> {
        let cluster = Self::empty(seed, guards, agent_guards)?;
        cluster.declare("AvailabilityPolicy", "default", json!({}))?;
        cluster.build_storage(STORAGE, StorageKind::NFS, &mount_path(STORAGE), None);
        cluster.declare(
            "SharedStorage",
            STORAGE,
            json!({
                "mountPath": mount_path(STORAGE),
                "nfs": {"server": "nfs.example", "export": "/export/vms"},
            }),
        )?;
        cluster.declare(
            "LockManager",
            "locks",
            json!({"kind": "virtlockd", "storage": STORAGE}),
        )?;
        for plan in hosts {
            let device = format!("bmc-{}", plan.name);
            let mut spec = json!({});
            let mut levels = Vec::new();
            if plan.bmc {
                let plugs = BTreeMap::from([(plan.name.clone(), "1".to_owned())]);
                cluster.build_device(&device, plugs.clone(), false);
                cluster.declare(
                    "FenceDevice",
                    &device,
                    json!({"agent": "fence_ipmilan", "plugs": plugs}),
                )?;
                spec = json!({"fencing": [{"devices": [&device]}]});
                levels.push(vec![device]);
            }
            cluster.declare("Host", &plan.name, spec)?;
            let mut world = cluster.sim.lock();
            world.build(Build {
                name: plan.name.clone(),
                cpu: plan.cpu,
                memory_mib: plan.memory_mib,
                boot_ms: 60_000,
                watchdog: WatchdogKind::Reset,
                levels,
            });
            world.boot_now(&plan.name);
        }
        cluster.start_controller();
        cluster.start_controller();
        Ok(cluster)
    }

    /// Puts up the server of a storage, outside the hosts or on one of them; one that speaks NFS obeys
    /// denials.
    pub fn build_storage(
        &self,
        name: &str,
        kind: StorageKind,
        mount: &str,
        served_by: Option<String>,
    ) {
        let store = Store {
            name: name.to_owned(),
            kind,
            mount: mount.to_owned(),
            served_by,
            lease_ms: 90_000,
            obeys: kind == StorageKind::NFS,
            ..Store::default()
        };
        self.sim.lock().stores.entry(name.to_owned()).or_insert(store);
    }

    /// Wires a fence device; an `outlet` reads its own relay, not the machine behind it.
    pub fn build_device(&self, name: &str, wired: BTreeMap<String, String>, outlet: bool) {
        let device = Device { name: name.to_owned(), wired, outlet, ..Device::default() };
        self.sim.lock().devices.insert(name.to_owned(), device);
    }

    /// Applies an object of ours as a user does.
    ///
    /// # Errors
    /// The API's refusal.
    pub fn declare(&self, kind: &str, name: &str, spec: Value) -> Result<(), ClusterError> {
        self.apply(&json!({
            "apiVersion": "stockade.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        }))
    }

    /// Applies an object as a user does.
    ///
    /// # Errors
    /// The API's refusal.
    pub fn apply(&self, object: &Value) -> Result<(), ClusterError> {
        let what = format!("{} {}", object["kind"], object["metadata"]["name"]);
        let refused =
            |e: Refusal| ClusterError::Refused { what: what.replace('"', ""), message: e.message };
        self.api.admin().named("user").apply(object).map(|_| ()).map_err(refused)
    }

    /// Makes a VM with one disk that exists on the storage.
    ///
    /// # Errors
    /// The API's refusal.
    pub fn add_vm(&self, name: &str, spec: Value) -> Result<(), ClusterError> {
        self.sim.lock().make_disk(STORAGE, &disk_path(STORAGE, name));
        let mut whole = json!({
            "memory": "1Gi",
            "disks": [{
                "name": "disk0", "storage": STORAGE,
                "existing": {"path": format!("{name}.qcow2")},
            }],
        });
        if let (Some(whole), Value::Object(spec)) = (whole.as_object_mut(), spec) {
            whole.extend(spec);
        }
        self.apply(&json!({
            "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default"}, "spec": whole,
        }))
    }

    /// Every proof that is written is judged by the oracle.
    fn watch_proofs(&self) {
        let sim = Arc::downgrade(&self.sim);
        let api = self.api.clone();
        let mut writes = self.api.admin().subscribe();
        tokio::spawn(async move {
            let mut wishes = Wishes::default();
            while let Some(write) = writes.recv().await {
                let Some(sim) = sim.upgrade() else { return };
                if write.kind == "VirtualMachine" {
                    wishes.written(&mut sim.lock(), &write);
                    continue;
                }
                if write.kind == "VirtualMachineMigration" {
                    wishes.moved(&mut sim.lock(), &write);
                    continue;
                }
                if write.kind != "HostFence" {
                    tell_of_life(&mut sim.lock(), &write);
                    continue;
                }
                if let Some(fence) = write.after.as_ref().map(|after| &after.value["spec"])
                    && !fence["confirmation"].is_null()
                {
                    let text = |key: &str| fence[key].as_str().unwrap_or_default().to_owned();
                    sim.lock().storm.confirmed.insert((text("host"), text("bootId")));
                }
                let Some(fence) = api.admin().get_as::<HostFence>(None, &write.name) else {
                    continue;
                };
                let status = fence.status.unwrap_or_default();
                if let Some(proof) = status.proof.filter(|_| status.revoked.is_none()) {
                    let key = (fence.spec.host.clone(), fence.spec.boot_id.clone());
                    let mut world = sim.lock();
                    if world.certified.insert(key) {
                        let (host, boot) = (&fence.spec.host, &fence.spec.boot_id);
                        world.judge_proof(host, boot, &format!("{proof:?}"));
                    }
                }
            }
        });
    }

    fn agents(&self, guards: AgentGuards) {
        let api = self.api.clone();
        let main = Arc::new(move |life: AgentLife| {
            let client = behind(api.client(&format!("host/{}", life.host)), &life.gate);
            let mut config = AgentConfig::new(life.host);
            config.guards = guards;
            async move {
                // An agent that gives up is started again by its supervisor.
                let stop = life.stop.notified();
                let _ = stockade_agent::run(client, life.ports, config, stop).await;
            }
            .boxed()
        });
        let faults = self.api.faults();
        let mut world = self.sim.lock();
        world.set_agent_main(main);
        world.hook_in_force = guards.hook;
        world.lock_kept = guards.lock_kept;
        world.marker_checked = guards.marker;
        world.transient = guards.transient;
        world.on_kernel_stopped(Box::new(move |host| {
            faults.cut(&Scope::Only(vec![format!("host/{host}")]));
        }));
    }

    /// Starts one more controller.
    pub fn start_controller(&self) {
        self.starter().start(stockade_controller::LEASE_NAME);
    }

    /// Starts one more controller that leads beside the present leader, as if the leader's Lease
    /// had failed.
    pub fn start_second_leader(&self) {
        self.sim.lock().two_leaders = true;
        self.starter().start("stockade-controller-second");
    }

    fn starter(&self) -> Starter {
        Starter {
            sim: Arc::downgrade(&self.sim),
            api: self.api.clone(),
            guards: self.guards,
            controllers: self.controllers.clone(),
        }
    }

    /// The leading controller, by the Lease; else the longest-running one.
    fn leader(&self) -> Option<String> {
        let lease =
            self.api.admin().get("Lease", Some(SYSTEM_NAMESPACE), stockade_controller::LEASE_NAME);
        let holder = lease
            .and_then(|l| l.value["spec"]["holderIdentity"].as_str().map(str::to_owned))
            .unwrap_or_default();
        let controllers = locked(&self.controllers);
        if controllers.alive.contains_key(&holder) {
            return Some(holder);
        }
        controllers.alive.keys().next().cloned()
    }

    /// The leading controller ends at once; its supervisor starts it again after ten seconds.
    pub fn crash_controller(&mut self) {
        if let Some(leader) = self.leader() {
            self.starter().crash(&leader);
        }
    }

    /// Counts the writes of controllers and agents from now on, beats left out. The write that brings
    /// it to that of `crash` is the last thing that is done by those who are to die: it is committed,
    /// and the answer never comes.
    pub fn count_writes(&self, crash: Option<(u64, Dies)>) -> Arc<AtomicU64> {
        let counter = Arc::new(AtomicU64::new(0));
        let count = counter.clone();
        // Held by the API, which it holds itself: let go of once it is used.
        let starter = std::sync::Mutex::new(crash.map(|_| self.starter()));
        self.api.admin().on_write(move |write| {
            if write.kind == "Lease" {
                return;
            }
            let host = write.identity.strip_prefix("host/");
            if host.is_none() && !write.identity.starts_with("controller/") {
                return;
            }
            let made = count.fetch_add(1, Ordering::Relaxed) + 1;
            let Some((_, dies)) = crash.filter(|(n, _)| *n == made) else { return };
            let Some(starter) = locked(&starter).take() else { return };
            match (dies, host) {
                (Dies::Writer, Some(host)) => starter.crash_agents(|name| name == host),
                (Dies::Writer, None) => starter.crash(&write.identity),
                (Dies::All, _) => {
                    starter.crash_agents(|_| true);
                    let all: Vec<String> =
                        locked(&starter.controllers).alive.keys().cloned().collect();
                    all.iter().for_each(|identity| starter.crash(identity));
                }
            }
        });
        counter
    }

    /// All controllers end cleanly, and stay down.
    pub fn stop_controllers(&mut self) {
        let alive = std::mem::take(&mut locked(&self.controllers).alive);
        for (_, mut controller) in alive {
            if let Some(stop) = controller.stop.take() {
                // It may have ended by itself.
                let _ = stop.send(());
            }
            let gate = controller.gate;
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                gate.kill();
            });
        }
    }

    /// Cuts networks of a host, or heals them.
    pub fn isolate_way(&mut self, host: &str, nets: &[Net], ways: &[Way], cut: bool) {
        self.sim.lock().cut(host, nets, ways, cut);
        if !nets.contains(&Net::Api) {
            return;
        }
        for way in ways {
            let key = (host.to_owned(), *way);
            if !cut {
                if let Some(id) = self.api_cuts.remove(&key) {
                    self.api.faults().clear(id);
                }
                continue;
            }
            if self.api_cuts.contains_key(&key) {
                continue;
            }
            let fault = match way {
                Way::Out => Fault::BlackHole,
                Way::In => Fault::Deaf,
            };
            let scope = Scope::Only(vec![format!("host/{host}")]);
            let id = self.api.faults().inject(scope, fault);
            self.api_cuts.insert(key, id);
        }
    }

    /// Cuts networks of a host both ways, or heals them.
    pub fn isolate(&mut self, host: &str, nets: &[Net], cut: bool) {
        self.sim.lock().fault_beyond_api = true;
        self.isolate_way(host, nets, &[Way::In, Way::Out], cut);
    }

    /// Lets `seconds` pass.
    pub async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// Hosts that execute a VM's vCPUs.
    #[must_use]
    pub fn running(&self, vm: &str) -> Vec<String> {
        self.sim.lock().executing_vm(vm)
    }

    /// Waits until a VM runs somewhere, other than on `not`; the seconds it took.
    pub async fn until_running(&self, vm: &str, not: &str, seconds: u64) -> Option<u64> {
        let start = self.sim.lock().now();
        loop {
            if self.running(vm).iter().any(|h| h != not) {
                return Some((self.sim.lock().now() - start).div_ceil(1000));
            }
            if self.sim.lock().now() > start + seconds * 1000 {
                return None;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// A VM's object, as the API has it.
    #[must_use]
    pub fn vm(&self, name: &str) -> Option<VirtualMachine> {
        self.api.admin().get_as(Some("default"), name)
    }

    /// What the oracle found broken, a line each.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        let world = self.sim.lock();
        let line = |v: &crate::oracle::Violation| {
            format!("{}.{:03} {}: {}", v.at / 1000, v.at % 1000, v.rule.text(), v.text)
        };
        world.oracle.violations.iter().map(line).collect()
    }
}

/// Where hosts see a storage.
#[must_use]
pub fn mount_path(storage: &str) -> String {
    format!("/srv/{storage}")
}

/// Where the disk of a VM of the namespace `default` lies.
#[must_use]
pub fn disk_path(storage: &str, vm: &str) -> String {
    format!("{}/default/{vm}.qcow2", mount_path(storage))
}

/// What it takes to start a controller; it holds the world weakly, as its supervisor may
/// outlive the run.
#[derive(Clone)]
struct Starter {
    sim: std::sync::Weak<Sim>,
    api: SimApi,
    guards: Guards,
    controllers: Arc<std::sync::Mutex<Controllers>>,
}

impl Starter {
    /// Agents end at once; their supervisors start them again.
    fn crash_agents(&self, dies: impl Fn(&str) -> bool) {
        let Some(sim) = self.sim.upgrade() else { return };
        let mut world = sim.lock();
        let names: Vec<String> = world.machines.keys().filter(|name| dies(name)).cloned().collect();
        names.iter().for_each(|name| world.crash_process(name, Which::Agent, 0));
    }

    /// A controller ends at once; its supervisor starts it again after a while.
    fn crash(&self, identity: &str) {
        if let Some(controller) = locked(&self.controllers).alive.remove(identity) {
            controller.gate.kill();
        }
        let starter = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(CONTROLLER_BACK).await;
            starter.start(stockade_controller::LEASE_NAME);
        });
    }

    fn start(&self, lease: &str) {
        let Some(sim) = self.sim.upgrade() else { return };
        let gate = Gate::open();
        let (stop, stopped) = oneshot::channel::<()>();
        let name = {
            let mut controllers = locked(&self.controllers);
            let name = format!("controller/{}", controllers.started);
            controllers.started += 1;
            let controller = Controller { gate: gate.clone(), stop: Some(stop) };
            controllers.alive.insert(name.clone(), controller);
            name
        };
        let context = Context {
            client: behind(self.api.client(&name), &gate),
            identity: name,
            clock: true_clock(&sim),
            fence: Some(Arc::new(SimFence { sim: sim.clone(), gate: gate.clone() })),
            storage_server: Some(Arc::new(SimServer { sim: sim.clone(), gate: gate.clone() })),
            namespace: SYSTEM_NAMESPACE.to_owned(),
            lease: lease.to_owned(),
            cluster_id: "stockade".to_owned(),
            guards: self.guards,
        };
        let shutdown = async move {
            if stopped.await.is_err() {
                // Whoever could have stopped it is gone: it ends with its gate alone.
                std::future::pending::<()>().await;
            }
        };
        let program = gate.run(stockade_controller::run(context, shutdown));
        tokio::spawn(async move {
            // It ends with its gate, or because it was told to.
            let _ = program.await;
        });
    }
}

/// A lock that nobody holds while anything could fail.
fn locked<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
