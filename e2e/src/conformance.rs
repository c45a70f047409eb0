//! Tests with one body and two arms, the real thing and the simulated one: where they differ the
//! simulated one is wrong. In here what a host's hypervisor does, in [`api`] the API.
//!
//! The arms of a hypervisor are `local_libvirt.rs` and `sim_conformance.rs`.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

pub mod api;

use std::time::Duration;

use futures::future::BoxFuture;
use stockade_crds::names::domain_name;
use stockade_crds::v1alpha1::{
    DiskBus, DiskFormat, DomainSpec, Machine, MachineDisk, Reclaim, VmReference, Want,
};
use stockade_host::HostError;
use stockade_host::ports::{
    Hypervisor, HypervisorEvent, JournalState, JournalVm, LiveState, Presence, StopReason,
};
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};

/// Uid of the one VM.
pub const VM_UID: &str = "6a1b2c3d-0000-4000-8000-000000000001";
/// A guest writes more often than this, and a paused one not within it.
const WRITES: Duration = Duration::from_millis(1_500);

/// What is done and read at a host beside its hypervisor.
pub trait Hands: Sync {
    /// The order to run an epoch of the VM in the running boot.
    fn order(&self, epoch: i64) -> DomainSpec;
    /// Replaces the journal that the hook reads.
    fn write_journal<'a>(&'a self, state: &'a JournalState) -> BoxFuture<'a, ()>;
    /// How often a guest has booted from the VM's disk, and a count of its writes that rises until
    /// it boots again.
    fn written(&self) -> (u64, u64);
    /// The VM's process dies by itself.
    fn crash(&self);
}

/// The order to run an epoch of the one VM, with one raw disk.
#[must_use]
pub fn order(host_uid: &str, boot_id: &str, disk: &str, epoch: i64) -> DomainSpec {
    DomainSpec {
        vm: VmReference { namespace: "shop".into(), name: "db".into(), uid: VM_UID.into() },
        host_uid: host_uid.into(),
        boot_id: boot_id.into(),
        epoch,
        order_id: 1,
        want: Want::Running,
        settled: Vec::new(),
        settled_through: epoch - 1,
        paused: false,
        grace_seconds: 0,
        reset: None,
        migration: None,
        adopt: false,
        delete_disks: Vec::new(),
        machine: Machine {
            cores: 1,
            memory_mib: 32,
            disks: vec![MachineDisk {
                name: "root".into(),
                storage: "vms".into(),
                path: disk.into(),
                format: DiskFormat::Raw,
                bus: DiskBus::Virtio,
                read_only: false,
                create: None,
                size_bytes: 0,
                reclaim: Reclaim::Retain,
            }],
            ..Machine::default()
        },
    }
}

/// The journal of an agent that obeys this order, or did so before (not `open`).
#[must_use]
pub fn journal(order: &DomainSpec, open: bool) -> JournalState {
    let vm = JournalVm {
        epoch: order.epoch,
        boot_id: order.boot_id.clone(),
        open,
        disks: order.machine.disks.iter().map(|disk| disk.path.clone()).collect(),
        ..JournalVm::default()
    };
    JournalState { vms: [(order.vm.uid.clone(), vm)].into(), ..JournalState::default() }
}

/// Everything that a hypervisor is asked for on one host. The VM's guest obeys its power button and
/// writes to its disk all the time; it never ran here. Nothing runs afterwards.
///
/// # Panics
/// The hypervisor does something else.
pub async fn hypervisor(hypervisor: &dyn Hypervisor, hands: &dyn Hands) {
    let host = Host { hypervisor, hands };
    let mut news = hypervisor.events();
    host.nothing_starts_without_its_open_order().await;
    host.nothing_is_done_to_a_domain_that_is_not_there().await;
    host.it_runs_once(3).await;
    host.it_is_suspended_and_goes_on().await;
    host.its_guest_is_reset(3).await;
    host.its_guest_shuts_down(3, &mut news).await;
    host.it_starts_suspended(4).await;
    host.the_right_epoch_is_killed(4, &mut news).await;
    host.it_dies_by_itself(5, &mut news).await;
}

struct Host<'a> {
    hypervisor: &'a dyn Hypervisor,
    hands: &'a dyn Hands,
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if done().await {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("did not happen within 20 s: {what}");
}

/// The next end of the VM that the daemon tells of.
async fn end(news: &mut mpsc::UnboundedReceiver<HypervisorEvent>) -> StopReason {
    loop {
        let event = timeout(Duration::from_secs(10), news.recv()).await.unwrap().unwrap();
        if let HypervisorEvent::Domain { uuid, stopped: Some(reason) } = event
            && uuid == VM_UID
        {
            return reason;
        }
    }
}

impl Host<'_> {
    async fn open(&self, epoch: i64, open: bool) {
        self.hands.write_journal(&journal(&self.hands.order(epoch), open)).await;
    }

    async fn state(&self) -> LiveState {
        let list = self.hypervisor.list().await.unwrap();
        let [domain] = &list[..] else { panic!("{list:?}") };
        domain.state
    }

    async fn holds_its_lock(&self) -> bool {
        self.hypervisor.lock(VM_UID).await.unwrap().is_some_and(|lock| lock.held)
    }

    async fn writes(&self) {
        let before = self.hands.written();
        until("the guest writes", async || self.hands.written() > before).await;
    }

    async fn writes_nothing(&self) {
        let before = self.hands.written();
        sleep(WRITES).await;
        assert_eq!(self.hands.written(), before, "a suspended guest wrote");
    }

    async fn gone(&self, epoch: i64) {
        let gone = async || self.hypervisor.presence(VM_UID, epoch).await == Presence::Gone;
        until("its process is gone", gone).await;
        let empty = async || self.hypervisor.list().await.unwrap().is_empty();
        until("its domain is gone", empty).await;
        assert!(!self.holds_its_lock().await, "a lock outlived its domain");
    }

    async fn nothing_starts_without_its_open_order(&self) {
        assert!(self.hypervisor.probe_hook().await.unwrap(), "what has no order was let in");
        let before = self.hands.written();
        for journal in [
            JournalState::default(),
            journal(&self.hands.order(2), true),
            journal(&self.hands.order(4), true),
            journal(&self.hands.order(3), false),
        ] {
            self.hands.write_journal(&journal).await;
            let refused = self.hypervisor.start(&self.hands.order(3)).await;
            assert!(matches!(refused, Err(HostError::Refused { .. })), "{journal:?}: {refused:?}");
            assert_eq!(self.hypervisor.presence(VM_UID, 3).await, Presence::Gone);
        }
        assert_eq!(self.hands.written(), before, "a guest booted");
    }

    async fn nothing_is_done_to_a_domain_that_is_not_there(&self) {
        assert_eq!(self.hypervisor.list().await.unwrap(), []);
        for (what, answer) in [
            ("suspend", self.hypervisor.suspend(VM_UID).await),
            ("resume", self.hypervisor.resume(VM_UID).await),
            ("reset", self.hypervisor.reset(VM_UID).await),
            ("shutdown", self.hypervisor.shutdown(VM_UID).await),
        ] {
            assert!(matches!(answer, Err(HostError::Failed { .. })), "{what}: {answer:?}");
        }
        // What is to be gone is gone.
        self.hypervisor.kill(VM_UID, 3).await.unwrap();
        assert!(!self.holds_its_lock().await);
    }

    async fn it_runs_once(&self, epoch: i64) {
        let order = self.hands.order(epoch);
        self.open(epoch, true).await;
        let started = self.hypervisor.start(&order).await.unwrap();
        assert!(started.machine_type.starts_with("pc-q35-"), "{started:?}");
        assert_eq!(self.hypervisor.presence(VM_UID, epoch).await, Presence::Present);
        for other in [epoch - 1, epoch + 1] {
            let presence = self.hypervisor.presence(VM_UID, other).await;
            assert_eq!(presence, Presence::Gone, "epoch {other} never ran here");
        }
        self.writes().await;
        let list = self.hypervisor.list().await.unwrap();
        let [domain] = &list[..] else { panic!("{list:?}") };
        assert_eq!(domain.name, domain_name(&order.vm.namespace, &order.vm.name));
        assert_eq!((domain.uuid.as_str(), domain.epoch), (VM_UID, epoch));
        assert_eq!(domain.state, LiveState::Running);
        assert_eq!(domain.disks, [order.machine.disks[0].path.clone()]);
        let size = (order.machine.cores, order.machine.memory_mib);
        assert_eq!((domain.cores, domain.memory_mib), size);
        assert!(self.holds_its_lock().await);
        assert!(self.hypervisor.usage(VM_UID).await.unwrap().1 > 0);

        let (boots, _) = self.hands.written();
        let again = self.hypervisor.start(&order).await;
        assert!(matches!(again, Err(HostError::Failed { .. })), "the same epoch twice: {again:?}");
        assert_eq!(self.hypervisor.presence(VM_UID, epoch).await, Presence::Present);
        self.writes().await;
        assert_eq!(self.hands.written().0, boots, "it was started anew");
    }

    async fn it_is_suspended_and_goes_on(&self) {
        let (boots, _) = self.hands.written();
        self.hypervisor.suspend(VM_UID).await.unwrap();
        assert_eq!(self.state().await, LiveState::Paused);
        self.writes_nothing().await;
        assert!(!self.holds_its_lock().await, "libvirt gives the lock of a suspended domain back");
        self.hypervisor.suspend(VM_UID).await.unwrap();
        assert_eq!(self.state().await, LiveState::Paused);
        self.hypervisor.resume(VM_UID).await.unwrap();
        assert_eq!(self.state().await, LiveState::Running);
        self.writes().await;
        assert!(self.holds_its_lock().await);
        let again = self.hypervisor.resume(VM_UID).await;
        assert!(matches!(again, Err(HostError::Failed { .. })), "it runs already: {again:?}");
        assert_eq!(self.hands.written().0, boots, "it was started anew");
    }

    async fn its_guest_is_reset(&self, epoch: i64) {
        let (boots, _) = self.hands.written();
        self.hypervisor.reset(VM_UID).await.unwrap();
        until("the guest boots again", async || self.hands.written().0 == boots + 1).await;
        self.writes().await;
        assert_eq!(self.hypervisor.presence(VM_UID, epoch).await, Presence::Present);
        assert!(self.holds_its_lock().await);
    }

    async fn its_guest_shuts_down(
        &self,
        epoch: i64,
        news: &mut mpsc::UnboundedReceiver<HypervisorEvent>,
    ) {
        let name = domain_name("shop", "db");
        let reason = self.hypervisor.end_reason(VM_UID, &name, epoch).await;
        assert_eq!(reason, None, "it runs");
        self.hypervisor.shutdown(VM_UID).await.unwrap();
        self.gone(epoch).await;
        assert_eq!(end(news).await, StopReason::Shutdown);
        let reason = self.hypervisor.end_reason(VM_UID, &name, epoch).await;
        assert_eq!(reason, Some(StopReason::Shutdown), "for who was not there to hear it");
    }

    async fn it_starts_suspended(&self, epoch: i64) {
        self.open(epoch, true).await;
        let order = DomainSpec { paused: true, ..self.hands.order(epoch) };
        self.hypervisor.start(&order).await.unwrap();
        assert_eq!(self.state().await, LiveState::Paused);
        assert!(!self.holds_its_lock().await);
        self.writes_nothing().await;
        self.hypervisor.resume(VM_UID).await.unwrap();
        self.writes().await;
        assert!(self.holds_its_lock().await);
    }

    async fn the_right_epoch_is_killed(
        &self,
        epoch: i64,
        news: &mut mpsc::UnboundedReceiver<HypervisorEvent>,
    ) {
        for other in [epoch - 1, epoch + 1] {
            self.hypervisor.kill(VM_UID, other).await.unwrap();
        }
        let presence = self.hypervisor.presence(VM_UID, epoch).await;
        assert_eq!(presence, Presence::Present, "another epoch was killed");
        self.writes().await;
        self.hypervisor.kill(VM_UID, epoch).await.unwrap();
        self.gone(epoch).await;
        assert_ne!(end(news).await, StopReason::Shutdown);
    }

    async fn it_dies_by_itself(
        &self,
        epoch: i64,
        news: &mut mpsc::UnboundedReceiver<HypervisorEvent>,
    ) {
        self.open(epoch, true).await;
        self.hypervisor.start(&self.hands.order(epoch)).await.unwrap();
        self.writes().await;
        self.hands.crash();
        self.gone(epoch).await;
        assert_eq!(end(news).await, StopReason::Crashed);
        let reason = self.hypervisor.end_reason(VM_UID, &domain_name("shop", "db"), epoch).await;
        assert_eq!(reason, Some(StopReason::Crashed));
    }
}
