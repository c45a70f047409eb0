//! The agent on one simulated host, its orders written by hand.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use stockade_agent::AgentConfig;
use stockade_crds::v1alpha1::{
    AgentStorage, DiskBus, DiskFormat, Domain, DomainSpec, DomainState, DomainStatus, End,
    HostAgent, HostAgentSpec, Machine, MachineDisk, Reclaim, StorageKind, VmReference, Want,
};
use stockade_sim::host::agent_ports;
use stockade_sim::host::gate::Gate;
use stockade_sim::kube::SimApi;
use stockade_sim::world::Sim;
use stockade_sim::world::model::{Store, WatchdogKind};
use stockade_sim::world::power::Build;
use tokio::task::JoinHandle;

const DISK: &str = "/srv/vms/default/101.qcow2";
const NAMESPACE: &str = "stockade-host-h1";
const UID: &str = "u101";

struct Bed {
    sim: Arc<Sim>,
    api: SimApi,
    agent: Option<JoinHandle<()>>,
}

impl Bed {
    async fn new() -> Self {
        let sim = Sim::new(7);
        {
            let mut world = sim.lock();
            let store = Store {
                name: "vms".to_owned(),
                kind: StorageKind::NFS,
                lease_ms: 90_000,
                obeys: true,
                ..Store::default()
            };
            world.stores.insert("vms".to_owned(), store);
            world.make_disk("vms", DISK);
            world.fault_beyond_api = true;
            world.build(Build {
                name: "h1".to_owned(),
                cpu: 16,
                memory_mib: 65_536,
                boot_ms: 60_000,
                watchdog: WatchdogKind::Reset,
                levels: Vec::new(),
            });
            world.boot_now("h1");
        }
        let api = SimApi::new(&stockade_crds::all_crds(), 7).unwrap();
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
        api.admin().create(&namespace).unwrap();
        let storage = AgentStorage {
            name: "vms".to_owned(),
            mount_path: "/srv/vms".to_owned(),
            ..AgentStorage::default()
        };
        let spec = HostAgentSpec {
            heartbeat_seconds: 2,
            storages: vec![storage],
            ..HostAgentSpec::default()
        };
        let mut agent = HostAgent::new("agent", spec);
        agent.metadata.namespace = Some(NAMESPACE.to_owned());
        api.admin().create(&agent).unwrap();
        let mut bed = Self { sim, api, agent: None };
        bed.start_agent();
        bed
    }

    fn start_agent(&mut self) {
        let ports = agent_ports(&self.sim, "h1", &Gate::open());
        let client = self.api.client("host/h1");
        let config = AgentConfig::new("h1");
        self.agent = Some(tokio::spawn(async move {
            stockade_agent::run(client, ports, config, std::future::pending()).await.unwrap();
        }));
    }

    async fn crash_agent(&mut self) {
        let agent = self.agent.take().unwrap();
        agent.abort();
        let _ = agent.await;
    }

    fn order(&self, epoch: i64, order_id: i64, want: Want) -> Domain {
        let world = self.sim.lock();
        let machine = world.machines.get("h1").unwrap();
        let disk = MachineDisk {
            name: "disk0".to_owned(),
            storage: "vms".to_owned(),
            path: DISK.to_owned(),
            format: DiskFormat::Qcow2,
            bus: DiskBus::Virtio,
            read_only: false,
            create: None,
            size_bytes: 0,
            reclaim: Reclaim::Retain,
        };
        let spec = DomainSpec {
            vm: VmReference {
                namespace: "default".to_owned(),
                name: "101".to_owned(),
                uid: UID.to_owned(),
            },
            host_uid: machine.uid.clone(),
            boot_id: machine.boot_id.clone(),
            epoch,
            order_id,
            want,
            settled: Vec::new(),
            settled_through: 0,
            paused: false,
            grace_seconds: 60,
            reset: None,
            migration: None,
            adopt: false,
            delete_disks: Vec::new(),
            machine: Machine {
                cores: 1,
                memory_mib: 1024,
                disks: vec![disk],
                ..Machine::default()
            },
        };
        let mut domain = Domain::new(UID, spec);
        domain.metadata.namespace = Some(NAMESPACE.to_owned());
        domain
    }

    fn give(&self, epoch: i64, order_id: i64, want: Want) {
        self.api.admin().apply(&self.order(epoch, order_id, want)).unwrap();
    }

    fn status(&self) -> DomainStatus {
        let domain: Domain = self.api.admin().get_as(Some(NAMESPACE), UID).unwrap();
        domain.status.unwrap_or_default()
    }

    fn runs(&self) -> bool {
        !self.sim.lock().executing(UID).is_empty()
    }

    fn writes(&self) -> u64 {
        self.api.admin().writes_without_leases(|identity| identity.starts_with("host/"))
    }
}

async fn seconds(s: u64) {
    tokio::time::sleep(Duration::from_secs(s)).await;
}

#[tokio::test(start_paused = true)]
async fn an_order_is_started_stopped_and_released() {
    let bed = Bed::new().await;
    seconds(10).await;
    bed.give(1, 1, Want::Running);
    seconds(10).await;
    let status = bed.status();
    assert_eq!((status.state, status.released), (DomainState::Running, false), "{status:?}");
    assert!(bed.runs());
    bed.give(1, 2, Want::Stopped);
    seconds(30).await;
    let status = bed.status();
    assert_eq!((status.end, status.released), (Some(End::Stopped), true), "{status:?}");
    assert!(!bed.runs());
    assert!(bed.sim.lock().oracle.violations.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_converged_host_writes_nothing_but_its_lease() {
    let bed = Bed::new().await;
    seconds(10).await;
    bed.give(1, 1, Want::Running);
    seconds(30).await;
    let before = bed.writes();
    seconds(600).await;
    assert_eq!(bed.writes(), before);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_is_killed_touches_no_running_vm_when_it_is_back() {
    let mut bed = Bed::new().await;
    seconds(10).await;
    bed.give(1, 1, Want::Running);
    seconds(10).await;
    let before = bed.writes();
    bed.crash_agent().await;
    seconds(5).await;
    bed.start_agent();
    seconds(20).await;
    assert!(bed.runs());
    assert_eq!(bed.writes(), before, "nothing has changed, nothing is said");
    assert_eq!(bed.status().state, DomainState::Running);
}

#[tokio::test(start_paused = true)]
async fn an_agent_killed_at_any_moment_of_a_start_ends_it_well() {
    for at in (0..900).step_by(90) {
        let mut bed = Bed::new().await;
        seconds(10).await;
        bed.give(1, 1, Want::Running);
        tokio::time::sleep(Duration::from_millis(at)).await;
        bed.crash_agent().await;
        bed.start_agent();
        seconds(30).await;
        let status = bed.status();
        let ran = status.state == DomainState::Running && bed.runs();
        let ended = status.released && !bed.runs();
        assert!(ran || ended, "crash at {at} ms: {status:?}");
        assert!(bed.sim.lock().oracle.violations.is_empty(), "crash at {at} ms");
    }
}

#[tokio::test(start_paused = true)]
async fn an_epoch_is_started_once_and_a_lower_one_never() {
    let bed = Bed::new().await;
    seconds(10).await;
    bed.give(3, 1, Want::Running);
    seconds(10).await;
    bed.give(3, 2, Want::Killed);
    seconds(20).await;
    assert_eq!(bed.status().end, Some(End::Killed), "{:?}", bed.status());
    bed.give(3, 3, Want::Running);
    seconds(60).await;
    assert!(!bed.runs());
}
