//! Builds and drives a cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use serde_json::{Value, json};
use stockade_agent::AgentConfig;
use stockade_controller::Context;
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use stockade_crds::names::SYSTEM_NAMESPACE;
use stockade_crds::v1alpha1::{HostFence, StorageKind, VirtualMachine};
use thiserror::Error;

use super::process::behind;
use crate::host::gate::Gate;
use crate::host::{SimFence, SimServer, true_clock};
use crate::kube::{Fault, FaultId, Refusal, SchemaError, Scope, SimApi};
use crate::world::model::{Device, Net, Store, WatchdogKind, Way};
use crate::world::power::Build;
use crate::world::{AgentLife, Sim};

/// The storage of every cluster here.
const STORAGE: &str = "vms";
/// Where hosts see it.
const MOUNT: &str = "/srv/vms";

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

/// A running cluster.
pub struct Cluster {
    /// The simulated world.
    pub sim: Arc<Sim>,
    /// The API.
    pub api: SimApi,
    guards: Guards,
    controllers: Vec<Gate>,
    started: u32,
    api_cuts: BTreeMap<String, FaultId>,
}

impl Cluster {
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
        let api = SimApi::new(&stockade_crds::all_crds(), seed)?;
        let sim = Sim::new(seed);
        let mut cluster = Self {
            sim,
            api,
            guards,
            controllers: Vec::new(),
            started: 0,
            api_cuts: BTreeMap::new(),
        };
        cluster.store();
        cluster.objects(hosts)?;
        cluster.watch_proofs();
        cluster.agents(agent_guards);
        for plan in hosts {
            cluster.build(plan);
        }
        cluster.start_controller();
        cluster.start_controller();
        Ok(cluster)
    }

    fn store(&self) {
        let store = Store {
            name: STORAGE.to_owned(),
            kind: StorageKind::NFS,
            lease_ms: 90_000,
            obeys: true,
            ..Store::default()
        };
        self.sim.lock().stores.insert(STORAGE.to_owned(), store);
    }

    fn objects(&self, hosts: &[HostPlan]) -> Result<(), ClusterError> {
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": SYSTEM_NAMESPACE},
        }))?;
        self.ours("AvailabilityPolicy", "default", json!({}))?;
        self.ours(
            "SharedStorage",
            STORAGE,
            json!({
                "mountPath": MOUNT, "nfs": {"server": "nfs.example", "export": "/export/vms"},
            }),
        )?;
        self.ours("LockManager", "locks", json!({"kind": "virtlockd", "storage": STORAGE}))?;
        for plan in hosts {
            let device = format!("bmc-{}", plan.name);
            let mut spec = json!({});
            if plan.bmc {
                self.ours(
                    "FenceDevice",
                    &device,
                    json!({
                        "agent": "fence_ipmilan", "plugs": {&plan.name: "1"},
                    }),
                )?;
                spec = json!({"fencing": [{"devices": [device]}]});
            }
            self.ours("Host", &plan.name, spec)?;
        }
        Ok(())
    }

    fn ours(&self, kind: &str, name: &str, spec: Value) -> Result<(), ClusterError> {
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
        let refused = |e: Refusal| ClusterError::Refused { what, message: format!("{e:?}") };
        self.api.admin().named("user").apply(object).map(|_| ()).map_err(refused)
    }

    /// Makes a VM with one disk that exists on the storage.
    ///
    /// # Errors
    /// The API's refusal.
    pub fn add_vm(&self, name: &str, spec: Value) -> Result<(), ClusterError> {
        self.sim.lock().make_disk(STORAGE, &format!("{MOUNT}/default/{name}.qcow2"));
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
            while let Some(write) = writes.recv().await {
                if write.kind != "HostFence" {
                    continue;
                }
                let Some(sim) = sim.upgrade() else { return };
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
                let _ =
                    stockade_agent::run(client, life.ports, config, std::future::pending()).await;
            }
            .boxed()
        });
        self.sim.lock().set_agent_main(main);
    }

    fn build(&self, plan: &HostPlan) {
        let mut world = self.sim.lock();
        let mut levels = Vec::new();
        if plan.bmc {
            let name = format!("bmc-{}", plan.name);
            let wired = BTreeMap::from([(plan.name.clone(), "1".to_owned())]);
            world
                .devices
                .insert(name.clone(), Device { name: name.clone(), wired, ..Device::default() });
            levels.push(vec![name]);
        }
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

    /// Starts one more controller.
    pub fn start_controller(&mut self) {
        let gate = Gate::open();
        let name = format!("controller/{}", self.started);
        self.started += 1;
        let context = Context {
            client: behind(self.api.client(&name), &gate),
            identity: name,
            clock: true_clock(&self.sim),
            fence: Some(Arc::new(SimFence { sim: self.sim.clone(), gate: gate.clone() })),
            storage_server: Some(Arc::new(SimServer { sim: self.sim.clone(), gate: gate.clone() })),
            namespace: SYSTEM_NAMESPACE.to_owned(),
            cluster_id: "stockade".to_owned(),
            guards: self.guards,
        };
        let program = gate.run(stockade_controller::run(context, std::future::pending()));
        tokio::spawn(async move {
            // Ends only with its gate.
            let _ = program.await;
        });
        self.controllers.push(gate);
    }

    /// The longest-running controller, usually the leader, ends at once.
    pub fn crash_controller(&mut self) {
        if !self.controllers.is_empty() {
            self.controllers.remove(0).kill();
        }
    }

    /// Cuts every network of a host but its device's, or heals them.
    pub fn isolate(&mut self, host: &str, nets: &[Net], cut: bool) {
        self.sim.lock().fault_beyond_api = true;
        self.sim.lock().cut(host, nets, &[Way::In, Way::Out], cut);
        if !nets.contains(&Net::Api) {
            return;
        }
        if cut {
            if self.api_cuts.contains_key(host) {
                return;
            }
            let scope = Scope::Only(vec![format!("host/{host}")]);
            let id = self.api.faults().inject(scope, Fault::BlackHole);
            self.api_cuts.insert(host.to_owned(), id);
        } else if let Some(id) = self.api_cuts.remove(host) {
            self.api.faults().clear(id);
        }
    }

    /// Lets `seconds` pass.
    pub async fn pass(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// Hosts that execute a VM's vCPUs.
    #[must_use]
    pub fn running(&self, vm: &str) -> Vec<String> {
        let world = self.sim.lock();
        let uid = world.vm_names.iter().find(|(_, name)| *name == vm).map(|(uid, _)| uid.clone());
        uid.map(|uid| world.executing(&uid)).unwrap_or_default()
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
