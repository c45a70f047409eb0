//! What an [`super::Evaluator`] sees of a run: events as they happen, and a view of the state that
//! is asked only for what the scenario names.
//!
//! Whether a VM runs is read from the hosts, never from the API.

use std::collections::BTreeMap;

use super::ast::{EventKind, Millis, Name, ObjectRef};
use super::words::{By, Proof, WorldEvent};

/// Something that happened.
#[derive(Clone, Debug, PartialEq)]
pub struct SimEvent {
    /// When.
    pub t: Millis,
    /// What: seen by the simulated world, or a Kubernetes Event of that reason.
    pub kind: EventKind,
    /// Of which VM.
    pub vm: Option<Name>,
    /// At which host.
    pub host: Option<Name>,
    /// Towards which host (moves).
    pub to: Option<Name>,
    /// Who did it.
    pub by: Option<By>,
    /// Through which fence device.
    pub device: Option<Name>,
    /// Who holds or held the lock: a host, or `foreign`.
    pub holder: Option<Name>,
    /// Kind of the object (writes, Kubernetes Events).
    pub object_kind: Option<String>,
    /// More, for people.
    pub detail: Option<String>,
}

impl SimEvent {
    /// An event of the world at `t` without particulars.
    #[must_use]
    pub fn world(t: Millis, kind: WorldEvent) -> Self {
        Self::new(t, EventKind::World(kind))
    }

    /// A Kubernetes Event of this reason at `t`.
    #[must_use]
    pub fn reason(t: Millis, reason: &str) -> Self {
        Self::new(t, EventKind::Reason(reason.to_owned()))
    }

    fn new(t: Millis, kind: EventKind) -> Self {
        Self {
            t,
            kind,
            vm: None,
            host: None,
            to: None,
            by: None,
            device: None,
            holder: None,
            object_kind: None,
            detail: None,
        }
    }

    /// The same, of this VM.
    #[must_use]
    pub fn vm(mut self, vm: &str) -> Self {
        self.vm = Some(vm.to_owned());
        self
    }
    /// The same, at this host.
    #[must_use]
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }
    /// The same, towards this host.
    #[must_use]
    pub fn to(mut self, host: &str) -> Self {
        self.to = Some(host.to_owned());
        self
    }
    /// The same, done by this one.
    #[must_use]
    pub fn by(mut self, by: By) -> Self {
        self.by = Some(by);
        self
    }
    /// The same, through this device.
    #[must_use]
    pub fn device(mut self, device: &str) -> Self {
        self.device = Some(device.to_owned());
        self
    }
    /// The same, with this holder.
    #[must_use]
    pub fn holder(mut self, holder: &str) -> Self {
        self.holder = Some(holder.to_owned());
        self
    }
    /// The same, of an object of this kind.
    #[must_use]
    pub fn object_kind(mut self, kind: &str) -> Self {
        self.object_kind = Some(kind.to_owned());
        self
    }
    /// The same, with more for people.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Its word.
    #[must_use]
    pub fn word(&self) -> &str {
        use super::words::Word as _;
        match &self.kind {
            EventKind::World(event) => event.word(),
            EventKind::Reason(reason) => reason,
        }
    }
}

/// A Kubernetes condition of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConditionObs {
    /// Its type.
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
}

/// The state of a run at one instant.
pub trait View {
    /// The hosts that execute this VM, in order of their names.
    fn vm_hosts(&self, vm: &str) -> Vec<Name>;
    /// Whether a live move of it is under way.
    fn vm_migrating(&self, vm: &str) -> bool;
    /// Who holds its lock: a host, or `foreign`.
    fn vm_lock_holder(&self, vm: &str) -> Option<Name>;
    /// Its STATUS column; `None` while it has none.
    fn vm_state(&self, vm: &str) -> Option<String>;
    /// Whether this host has power.
    fn host_powered(&self, host: &str) -> bool;
    /// Its STATUS column.
    fn host_state(&self, host: &str) -> Option<String>;
    /// The proof of the certificate that stands against the boot it was lost in, until it is taken
    /// in again.
    fn host_proof(&self, host: &str) -> Option<Proof>;
    /// Whether its watchdog is armed.
    fn host_armed(&self, host: &str) -> bool;
    /// Whether its agent runs.
    fn host_agent_running(&self, host: &str) -> bool;
    /// The VMs that it executes.
    fn host_vms(&self, host: &str) -> Vec<Name>;
    /// Sum of their sizes, MiB.
    fn host_memory_mib(&self, host: &str) -> u64;
    /// Whether the API has this object.
    fn exists(&self, object: &ObjectRef) -> bool;
    /// The object's conditions.
    fn conditions(&self, object: &ObjectRef) -> Vec<ConditionObs>;
}

/// One VM in a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmObs {
    /// The hosts that execute it.
    pub hosts: Vec<Name>,
    /// Whether a live move is under way.
    pub migrating: bool,
    /// Who holds its lock.
    pub lock_holder: Option<Name>,
    /// Its STATUS column.
    pub state: Option<String>,
    /// Its size, MiB.
    pub memory_mib: u64,
}

/// One host in a [`Snapshot`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostObs {
    /// Whether it has power.
    pub powered: bool,
    /// Its STATUS column.
    pub state: Option<String>,
    /// The proof that stands against it.
    pub proof: Option<Proof>,
    /// Whether its watchdog is armed.
    pub armed: bool,
    /// Whether its agent runs.
    pub agent_running: bool,
}

/// A state held in full; the simulator answers lazily instead.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// VMs by name.
    pub vms: BTreeMap<Name, VmObs>,
    /// Hosts by name.
    pub hosts: BTreeMap<Name, HostObs>,
    /// The API's objects and their conditions.
    pub objects: BTreeMap<ObjectRef, Vec<ConditionObs>>,
}

impl View for Snapshot {
    fn vm_hosts(&self, vm: &str) -> Vec<Name> {
        self.vms.get(vm).map(|v| v.hosts.clone()).unwrap_or_default()
    }
    fn vm_migrating(&self, vm: &str) -> bool {
        self.vms.get(vm).is_some_and(|v| v.migrating)
    }
    fn vm_lock_holder(&self, vm: &str) -> Option<Name> {
        self.vms.get(vm).and_then(|v| v.lock_holder.clone())
    }
    fn vm_state(&self, vm: &str) -> Option<String> {
        self.vms.get(vm).and_then(|v| v.state.clone())
    }
    fn host_powered(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|h| h.powered)
    }
    fn host_state(&self, host: &str) -> Option<String> {
        self.hosts.get(host).and_then(|h| h.state.clone())
    }
    fn host_proof(&self, host: &str) -> Option<Proof> {
        self.hosts.get(host).and_then(|h| h.proof)
    }
    fn host_armed(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|h| h.armed)
    }
    fn host_agent_running(&self, host: &str) -> bool {
        self.hosts.get(host).is_some_and(|h| h.agent_running)
    }
    fn host_vms(&self, host: &str) -> Vec<Name> {
        let runs = |v: &VmObs| v.hosts.iter().any(|h| h == host);
        self.vms.iter().filter(|(_, v)| runs(v)).map(|(name, _)| name.clone()).collect()
    }
    fn host_memory_mib(&self, host: &str) -> u64 {
        let runs = |v: &&VmObs| v.hosts.iter().any(|h| h == host);
        self.vms.values().filter(runs).map(|v| v.memory_mib).sum()
    }
    fn exists(&self, object: &ObjectRef) -> bool {
        self.objects.contains_key(object)
    }
    fn conditions(&self, object: &ObjectRef) -> Vec<ConditionObs> {
        self.objects.get(object).cloned().unwrap_or_default()
    }
}
