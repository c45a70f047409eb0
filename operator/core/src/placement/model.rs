//! What placement knows of hosts and VMs, and how it says no.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use stockade_crds::v1alpha1::HypervisorKind;

/// A VM's name in its namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VmKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl VmKey {
    /// The VM `name` of `namespace`.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for VmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Whether a host takes VMs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Acceptance {
    /// It does.
    #[default]
    Yes,
    /// It does not; the reason as the end of a sentence: "cordoned", "silent for 8 s".
    No(String),
}

/// A host, as placement sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRow {
    /// Its name.
    pub name: String,
    /// CPU for VMs in thousandths of a CPU, what the host keeps for itself taken off.
    pub cpu: i64,
    /// Memory for VMs in MiB, what the host keeps for itself taken off.
    pub memory_mib: i64,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether VMs may come.
    pub accepts: Acceptance,
    /// What it can run.
    pub hypervisors: BTreeSet<HypervisorKind>,
    /// Storages that are mounted here and whose lock manager, if they need one, is ready.
    pub storages: BTreeSet<String>,
    /// Why a storage is not in `storages`, as the end of a sentence; may be left out.
    pub unready: BTreeMap<String, String>,
    /// Why nothing moves live from or to it now, as the end of a sentence.
    pub no_live: Option<String>,
}

/// How a running VM may be moved.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Movable {
    /// While it runs.
    #[default]
    Live,
    /// By stop and start.
    Cold,
    /// Not at all.
    No,
}

/// Moves of a VM to one host that failed lately.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FailedMoves {
    /// So many.
    pub count: u32,
    /// The last one is so fresh that a preference is no reason to try again.
    pub fresh: bool,
}

/// A VM, as placement sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmRow {
    /// Its name.
    pub key: VmKey,
    /// CPU in thousandths of a CPU.
    pub cpu: i64,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// Higher goes first.
    pub priority: i32,
    /// What must run it.
    pub hypervisor: HypervisorKind,
    /// Storages of its disks.
    pub storages: BTreeSet<String>,
    /// Hosts it may run on; absent: any.
    pub required: Option<BTreeSet<String>>,
    /// Labels that a host must carry.
    pub selector: BTreeMap<String, String>,
    /// Hosts it should run on, best rank first.
    pub preferred: Vec<Vec<String>>,
    /// VMs of its namespace that must run on the same host.
    pub together: Vec<String>,
    /// VMs of its namespace that must run on other hosts.
    pub apart: Vec<String>,
    /// VMs of its namespace that should run on the same host.
    pub prefers_together: Vec<String>,
    /// VMs of its namespace that should run on other hosts.
    pub prefers_apart: Vec<String>,
    /// Hosts that it occupies: where it runs, or was ordered to and is not yet
    /// released. During a move the source first, the target last; it counts for
    /// capacity and for `apart` on each.
    pub on: Vec<String>,
    /// Hosts on which its start failed since it last ran: others go first.
    pub tried: BTreeSet<String>,
    /// Hosts to which moves of it failed lately, and how: where it moves, others go first.
    pub failed: BTreeMap<String, FailedMoves>,
    /// Hosts that are closed to this VM alone, and why (the end of a sentence).
    pub barred: BTreeMap<String, String>,
    /// The host that a user's last move chose.
    pub moved_to: Option<String>,
    /// It goes back by itself to a better-ranked host.
    pub failback: bool,
    /// What the hypervisor measures: thousandths of a CPU, MiB.
    pub usage: Option<(i64, i64)>,
    /// How it may be moved.
    pub movable: Movable,
    /// Why it must not be moved now, as the end of a sentence that begins with it.
    pub stays: Option<String>,
    /// It is started elsewhere when its host dies.
    pub recovers: bool,
}

impl Default for VmRow {
    fn default() -> Self {
        Self {
            key: VmKey::default(),
            cpu: 1000,
            memory_mib: 1024,
            priority: 0,
            hypervisor: HypervisorKind::default(),
            storages: BTreeSet::new(),
            required: None,
            selector: BTreeMap::new(),
            preferred: Vec::new(),
            together: Vec::new(),
            apart: Vec::new(),
            prefers_together: Vec::new(),
            prefers_apart: Vec::new(),
            on: Vec::new(),
            tried: BTreeSet::new(),
            failed: BTreeMap::new(),
            barred: BTreeMap::new(),
            moved_to: None,
            failback: false,
            usage: None,
            movable: Movable::default(),
            stays: None,
            recovers: true,
        }
    }
}

/// Why a host was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The host.
    pub host: String,
    /// The reason, the end of a sentence that begins with the host.
    pub reason: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.host, self.reason)
    }
}

/// Why a VM is placed nowhere.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Unplaceable {
    /// Rules that cannot all hold, or a sentence about the VM itself; then no host is named.
    pub rule: Option<String>,
    /// Hosts and why not, by name, at most [`Unplaceable::LISTED`] of them.
    pub refusals: Vec<Refusal>,
    /// How many hosts more were refused.
    pub more: usize,
}

impl Unplaceable {
    /// So many hosts are named: a message is read by people and stored in a condition.
    pub const LISTED: usize = 16;

    pub(crate) fn rule(rule: impl Into<String>) -> Self {
        Self { rule: Some(rule.into()), ..Self::default() }
    }
}

impl fmt::Display for Unplaceable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(rule) = &self.rule {
            return f.write_str(rule);
        }
        if self.refusals.is_empty() {
            return f.write_str("there is no host");
        }
        for (i, refusal) in self.refusals.iter().enumerate() {
            let gap = if i == 0 { "" } else { "; " };
            write!(f, "{gap}{refusal}")?;
        }
        match self.more {
            0 => Ok(()),
            1 => f.write_str("; and 1 host more"),
            n => write!(f, "; and {n} hosts more"),
        }
    }
}
