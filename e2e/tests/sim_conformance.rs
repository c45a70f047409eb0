//! The simulated arms of the tests that have two: what is simulated does what the real thing does.
//! The real arms are `local_libvirt.rs` and `api_conformance.rs`.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::json;
use stockade_crds::v1alpha1::{AgentStorage, DomainSpec, LockKind, StorageKind};
use stockade_e2e::conformance::{self, Hands, api};
use stockade_host::ports::{AgentPorts, JournalState};
use stockade_sim::host::agent_ports;
use stockade_sim::host::gate::Gate;
use stockade_sim::kube::SimApi;
use stockade_sim::world::Sim;
use stockade_sim::world::model::{Store, WatchdogKind};
use stockade_sim::world::power::Build;

const HOST: &str = "h1";
const DISK: &str = "/srv/vms/shop/db.raw";

struct Simulated {
    sim: Arc<Sim>,
    ports: AgentPorts,
    lock: LockKind,
}

impl Hands for Simulated {
    fn order(&self, epoch: i64) -> DomainSpec {
        let world = self.sim.lock();
        let machine = world.machines.get(HOST).unwrap();
        let mut order = conformance::order(&machine.uid, &machine.boot_id, DISK, epoch);
        order.machine.lock = Some(self.lock);
        order
    }

    fn write_journal<'a>(&'a self, state: &'a JournalState) -> BoxFuture<'a, ()> {
        async { self.ports.journal.store(state).await.unwrap() }.boxed()
    }

    fn written(&self) -> (u64, u64) {
        let world = self.sim.lock();
        let disk = world.disks.get(DISK).unwrap();
        (disk.boots, disk.version)
    }

    fn crash(&self) {
        self.sim.lock().kill_vm(HOST, "db");
    }
}

async fn simulated(lock: LockKind) -> Simulated {
    let sim = Sim::new(1);
    {
        let mut world = sim.lock();
        let store = Store {
            name: "vms".to_owned(),
            kind: StorageKind::NFS,
            mount: "/srv/vms".to_owned(),
            lease_ms: 90_000,
            obeys: true,
            ..Store::default()
        };
        world.stores.insert("vms".to_owned(), store);
        world.make_disk("vms", DISK);
        world.build(Build {
            name: HOST.to_owned(),
            cpu: 16,
            memory_mib: 65_536,
            boot_ms: 60_000,
            watchdog: WatchdogKind::Reset,
            levels: Vec::new(),
        });
        world.boot_now(HOST);
    }
    let ports = agent_ports(&sim, HOST, &Gate::open());
    let storage = AgentStorage { name: "vms".to_owned(), ..AgentStorage::default() };
    assert!(ports.storage.ensure(&storage).await.ready);
    Simulated { sim, ports, lock }
}

#[tokio::test(start_paused = true)]
async fn a_simulated_host_does_what_libvirt_does() {
    for lock in [LockKind::Virtlockd, LockKind::Sanlock] {
        let host = simulated(lock).await;
        conformance::hypervisor(host.ports.hypervisor.as_ref(), &host).await;
        let violations = host.sim.lock().oracle.violations.clone();
        assert_eq!(violations, [], "{lock:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_in_process_api_does_what_kube_apiserver_does() {
    let sim = SimApi::new(&[api::widget_crd()], 1).unwrap();
    let home = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "home"}});
    sim.admin().create(&home).unwrap();
    let client = sim.client("user");
    api::objects(&client, "home", &|| sim.faults().compact()).await;
    api::namespaces(&client).await;
}
