//! What one round of the agent decides from.

use std::collections::BTreeMap;

use stockade_crds::v1alpha1::{DomainSpec, DomainStatus, LockKind, LockReport, StorageReport};

use super::Guards;
use super::moves::{Arrival, Copy, Job, Silence};
use super::types::{
    JournalState, JournalVm, LiveChange, LiveDomain, Presence, Started, StopReason,
};

/// An order as it stands in the API, or stood when the API was last seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    /// Kubernetes uid of the Domain.
    pub object_uid: String,
    /// The order.
    pub spec: DomainSpec,
    /// What was last said of it.
    pub status: Option<DomainStatus>,
}

/// A VM at the hypervisor.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Live<'a> {
    /// The hypervisor can't be asked.
    Unknown,
    /// It lists no such domain.
    Absent,
    /// It lists it.
    Present(&'a LiveDomain),
}

/// What is being done about a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Busy {
    /// A start is under way.
    pub starting: bool,
    /// Since when, in milliseconds.
    pub since: u64,
}

/// What the agent knows of a VM from this run alone: all of it can be lost.
#[derive(Clone, Debug, PartialEq)]
pub struct VmMemory {
    /// An action is under way; there is one a VM at most.
    pub busy: Option<Busy>,
    /// Not before this time is the next action begun.
    pub retry_at: u64,
    /// Whether the process of the journal's epoch is there.
    pub presence: Presence,
    /// Why it ended, as the hypervisor said.
    pub stopped: Option<StopReason>,
    /// The process of the order's epoch was here: a list had it, or it came by a move whose source has
    /// left.
    pub came_in: bool,
    /// Since when every list lacked it.
    pub missing_since: Option<u64>,
    /// When the order's epoch was first seen, and which.
    pub first_seen: (i64, u64),
    /// When its guest was asked to shut down.
    pub shutdown_asked: Option<u64>,
    /// When its process was first killed.
    pub kill_asked: Option<u64>,
    /// It was killed because its storage or its lock was lost.
    pub storage_lost: bool,
    /// What the last action failed with; empty: it did not.
    pub trouble: String,
    /// Since when there is trouble.
    pub trouble_since: u64,
    /// How often the release was tried in vain.
    pub release_attempts: u32,
    /// What was decided at the start.
    pub started: Option<Started>,
    /// The lock, as last read.
    pub lock: Option<LockReport>,
    /// Guest addresses, as last read.
    pub addresses: Option<Vec<String>>,
    /// The size that was last asked for, and what came of it.
    pub resized: Option<(i32, i64, LiveChange)>,
    /// Highest epoch seen in owner records.
    pub highest_record: i64,
    /// The order whose disks were deleted.
    pub deleted_order: i64,
    /// The call that moves it away.
    pub copy: Option<Copy>,
    /// The move's job, as last read; `None`: not read yet.
    pub job: Option<Job>,
    /// Whether its QEMU leaves open how far the move away is; `None`: it answers, or its guest runs.
    pub silent: Option<Silence>,
    /// It was killed because it hung in a move.
    pub hung: bool,
    /// The move that brings or brought it here.
    pub came: Option<String>,
    /// What that move took, as far as the hypervisor knows; `None`: not read yet.
    pub arrival: Option<Arrival>,
    /// Since when it is here whole and paused.
    pub whole_since: Option<u64>,
    /// When the move away was first and last called off.
    pub abort_asked: Option<(u64, u64)>,
}

impl Default for VmMemory {
    fn default() -> Self {
        Self {
            busy: None,
            retry_at: 0,
            presence: Presence::Unknown,
            stopped: None,
            came_in: false,
            missing_since: None,
            first_seen: (0, 0),
            shutdown_asked: None,
            kill_asked: None,
            storage_lost: false,
            trouble: String::new(),
            trouble_since: 0,
            release_attempts: 0,
            started: None,
            lock: None,
            addresses: None,
            resized: None,
            highest_record: 0,
            deleted_order: 0,
            copy: None,
            job: None,
            silent: None,
            hung: false,
            came: None,
            arrival: None,
            whole_since: None,
            abort_asked: None,
        }
    }
}

/// Everything that one round decides from.
#[derive(Clone, Debug, Default)]
pub struct Observed {
    /// The machine's identity.
    pub host_uid: String,
    /// The running boot.
    pub boot_id: String,
    /// The journal; `None`: it can't be read or written, so nothing is started.
    pub journal: Option<JournalState>,
    /// Every domain by its UUID; `None`: the hypervisor can't be asked.
    pub live: Option<BTreeMap<String, LiveDomain>>,
    /// Orders by VM uid; `None`: never listed in this run.
    pub orders: Option<BTreeMap<String, Order>>,
    /// By VM uid.
    pub memory: BTreeMap<String, VmMemory>,
    /// Storages as mounted and checked.
    pub storages: Vec<StorageReport>,
    /// The hook refused a probe since the daemon's last start.
    pub hook_ready: bool,
    /// The lock manager that works here.
    pub lock: Option<LockKind>,
    /// The watchdog is to be armed and is not yet.
    pub arming: bool,
    /// This host's running boot is certified dead: our VMs are suspended.
    pub suspended: bool,
    /// Storages lost for longer than a VM may wait for them ([`super::decide::STORAGE_LOST`]).
    pub lost: std::collections::BTreeSet<String>,
    /// Storages whose VMs have their locks in a lockspace that was lost for as long.
    pub unlocked: std::collections::BTreeSet<String>,
    /// Why no VM may start here at all in this boot; empty: none.
    pub no_starts: String,
    /// Guards in force.
    pub guards: Guards,
}

impl Observed {
    /// A VM at the hypervisor.
    #[must_use]
    pub fn live(&self, vm_uid: &str) -> Live<'_> {
        match &self.live {
            None => Live::Unknown,
            Some(live) => live.get(vm_uid).map_or(Live::Absent, Live::Present),
        }
    }

    /// The order for a VM, if it is for this machine.
    #[must_use]
    pub fn order(&self, vm_uid: &str) -> Option<&Order> {
        let order = self.orders.as_ref()?.get(vm_uid)?;
        (order.spec.host_uid == self.host_uid).then_some(order)
    }

    /// What the journal remembers of a VM.
    #[must_use]
    pub fn journalled(&self, vm_uid: &str) -> Option<&JournalVm> {
        self.journal.as_ref()?.vms.get(vm_uid)
    }

    /// Whether an order is for an earlier boot than the running one.
    #[must_use]
    pub fn is_history(&self, order: &DomainSpec) -> bool {
        self.guards.boot && order.boot_id != self.boot_id
    }

    /// Why this order can't be started yet; `None`: it can.
    #[must_use]
    pub fn start_blocker(&self, order: &DomainSpec) -> Option<String> {
        if !self.no_starts.is_empty() {
            return Some(self.no_starts.clone());
        }
        if self.suspended {
            return Some("this boot of the host is certified dead; reboot the host".into());
        }
        if !self.hook_ready {
            return Some(
                "libvirt's hook is not in force: it did not refuse a probe; install the hook and \
                 restart libvirt"
                    .into(),
            );
        }
        if self.arming {
            return Some("the watchdog is not armed yet".into());
        }
        for disk in &order.machine.disks {
            match self.storages.iter().find(|s| s.name == disk.storage) {
                Some(report) if report.ready => {}
                Some(report) => {
                    return Some(format!(
                        "storage {} is not ready: {}",
                        report.name, report.message
                    ));
                }
                None => return Some(format!("storage {} is not mounted here", disk.storage)),
            }
        }
        if let Some(kind) = order.machine.lock
            && self.lock != Some(kind)
        {
            return Some(format!("the lock manager {kind:?} does not work on this host"));
        }
        None
    }
}

/// The paths of an order's writable disks.
#[must_use]
pub fn writable_disks(order: &DomainSpec) -> Vec<String> {
    order.machine.disks.iter().filter(|d| !d.read_only).map(|d| d.path.clone()).collect()
}
