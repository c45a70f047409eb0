//! The world as one snapshot: everything that a plan may depend on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, AvailabilityPolicySpec, Domain, FenceAction, FenceDevice, Host, HostAgent,
    HostFence, Lineage, LockManager, MoveIdentity, SharedStorage, VirtualMachine,
    VirtualMachineConsole, VirtualMachineMigration,
};

use crate::certificates::Authority;
use crate::ha::evidence::Lives;

/// Milliseconds on the deciding process's monotonic clock.
pub type Millis = u64;

/// A namespaced name.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A namespaced name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Where an order is. The orders of one VM lie side by side.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct OrderKey {
    /// The VM's uid.
    pub vm_uid: String,
    /// The host whose namespace holds it.
    pub host: String,
}

impl OrderKey {
    /// The order for a VM on a host.
    pub fn new(host: impl Into<String>, vm_uid: impl Into<String>) -> Self {
        Self { vm_uid: vm_uid.into(), host: host.into() }
    }
}

/// A host's namespace as it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFact {
    /// It carries our label with the host's name.
    pub ours: bool,
    /// It has a deletion timestamp.
    pub terminating: bool,
}

/// One call of a fence device, as the controller that made it remembers it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FenceRecord {
    /// The FenceDevice.
    pub device: String,
    /// The host whose plug it was.
    pub host: String,
    /// The boot that was beating last when the call was made.
    pub boot_id: String,
    /// Generation of the device's spec.
    pub generation: i64,
    /// What was asked.
    pub action: FenceAction,
    /// An order that the length of the silence stood for, not a reading of off.
    pub acts: bool,
    /// When the call began.
    pub started: Millis,
    /// When it ended; `None`: it is under way.
    pub finished: Option<Millis>,
    /// What it answered.
    pub result: FenceResult,
}

/// What a fence device answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FenceResult {
    /// Nothing yet.
    Pending,
    /// The plug reads on.
    On,
    /// The plug reads off.
    Off,
    /// It says that it did what it was asked. That proves nothing.
    Done,
    /// It failed.
    Failed(String),
}

/// Where the controller stands with the serving side of a storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerCalls {
    /// Under way: (storage, boot).
    pub pending: BTreeSet<(String, String)>,
    /// Nobody can be denied there: (storage, boot).
    pub undeniable: BTreeSet<(String, String)>,
    /// When a denial or the breaking of locks was first asked for: (storage, boot).
    pub asked: BTreeMap<(String, String), Millis>,
    /// Denied: (storage, boot).
    pub denied: BTreeSet<(String, String)>,
    /// Locks broken: (storage, boot).
    pub broken: BTreeSet<(String, String)>,
    /// Answers that say no or wait, and when: (storage, boot) → sentence.
    pub refused: BTreeMap<(String, String), (Millis, String)>,
}

impl ServerCalls {
    /// Forgets all that was asked of a storage's server about a boot, and what it answered: what
    /// that boot is denied for next, it is denied for anew.
    pub fn forget(&mut self, key: &(String, String)) {
        self.undeniable.remove(key);
        self.asked.remove(key);
        self.denied.remove(key);
        self.broken.remove(key);
        self.refused.remove(key);
    }
}

/// Everything that a plan may depend on.
#[derive(Clone, Debug, Default)]
pub struct World {
    /// The time of this snapshot.
    pub now: Millis,
    /// Identity of the cluster, named by the marker on each storage.
    pub cluster_id: String,
    /// Every kind was listed at least once, and the leader's own beat comes back.
    pub fresh: bool,
    /// The policy, if there is one.
    pub policy: Option<Arc<AvailabilityPolicy>>,
    /// By namespace and name.
    pub vms: BTreeMap<Key, Arc<VirtualMachine>>,
    /// By namespace and name.
    pub migrations: BTreeMap<Key, Arc<VirtualMachineMigration>>,
    /// By namespace and name.
    pub consoles: BTreeMap<Key, Arc<VirtualMachineConsole>>,
    /// By name.
    pub hosts: BTreeMap<String, Arc<Host>>,
    /// By host name.
    pub agents: BTreeMap<String, Arc<HostAgent>>,
    /// By host name.
    pub namespaces: BTreeMap<String, NamespaceFact>,
    /// By VM and host.
    pub domains: BTreeMap<OrderKey, Arc<Domain>>,
    /// By name.
    pub storages: BTreeMap<String, Arc<SharedStorage>>,
    /// By name.
    pub lock_managers: BTreeMap<String, Arc<LockManager>>,
    /// By name.
    pub fence_devices: BTreeMap<String, Arc<FenceDevice>>,
    /// By name.
    pub fences: BTreeMap<String, Arc<HostFence>>,
    /// Signs of life.
    pub lives: Lives,
    /// Calls of fence devices, oldest first.
    pub fence_log: Vec<FenceRecord>,
    /// Calls to storage servers.
    pub server: ServerCalls,
    /// When an object of a VM was first seen as it is now: for delays and back-off.
    pub seen_since: BTreeMap<String, Millis>,
    /// Measured use by VM uid: thousandths of a CPU, MiB.
    pub usage: BTreeMap<String, (i64, i64)>,
    /// Why the secret of a VM's seed could not be had, and when: by VM uid.
    pub seed_refusals: BTreeMap<String, (Millis, String)>,
    /// Seed secrets that are gone from a host's namespace: host, VM uid, epoch.
    pub seeds_gone: BTreeSet<(String, String, i64)>,
    /// How many host failures still fit, as counted lately; `None`: to be counted in this plan,
    /// which takes long in a large cluster.
    pub tolerates: Option<usize>,
    /// Seconds since the Unix epoch: for what outlives a leader, the validity of certificates and the
    /// storm brake's memory.
    pub wall_seconds: i64,
    /// The authority for live moves, as it was read lately; `None`: it is to be read.
    pub authority: Option<Authority>,
    /// What this controller has signed for hosts, by name.
    pub identities: BTreeMap<String, MoveIdentity>,
    /// Since when every plan found load to level (see [`Plan::uneven`](crate::plan::Plan)).
    pub uneven_since: Option<Millis>,
    /// How far the API's own history goes, read from it by quorum; `None`: not read yet.
    pub lineage: Option<Lineage>,
    /// How far others know it to have gone: hosts by name, and this process itself.
    pub lineages: BTreeMap<String, Lineage>,
    /// Guards that a test has dropped; all hold in production.
    pub guards: Guards,
}

impl World {
    /// The policy's fields; the schema's defaults where there is none.
    #[must_use]
    pub fn policy_spec(&self) -> &AvailabilityPolicySpec {
        static DEFAULTS: LazyLock<AvailabilityPolicySpec> = LazyLock::new(Default::default);
        self.policy.as_ref().map_or(&*DEFAULTS, |p| &p.spec)
    }

    /// The order for a VM on a host.
    #[must_use]
    pub fn order(&self, host: &str, vm_uid: &str) -> Option<&Domain> {
        self.domains.get(&OrderKey::new(host, vm_uid)).map(Arc::as_ref)
    }

    /// Every order for a VM, and on which host each is.
    pub fn orders(&self, vm_uid: &str) -> impl Iterator<Item = (&str, &Domain)> {
        self.domains
            .range(OrderKey::new("", vm_uid)..)
            .take_while(move |(key, _)| key.vm_uid == vm_uid)
            .map(|(key, domain)| (key.host.as_str(), domain.as_ref()))
    }

    /// The VM with this uid.
    #[must_use]
    pub fn vm_by_uid(&self, uid: &str) -> Option<&Arc<VirtualMachine>> {
        self.vms.values().find(|vm| vm.metadata.uid.as_deref() == Some(uid))
    }

    /// The certificate for a boot, if there is one that stands with a proof.
    #[must_use]
    pub fn standing_proof(&self, host_uid: &str, boot_id: &str) -> Option<&Arc<HostFence>> {
        self.fences.values().find(|f| {
            f.spec.host_uid == host_uid
                && f.spec.boot_id == boot_id
                && f.status.as_ref().is_some_and(|s| s.proof.is_some() && s.revoked.is_none())
        })
    }

    /// The certificate for a boot, with or without a proof.
    #[must_use]
    pub fn fence_of(&self, host_uid: &str, boot_id: &str) -> Option<&Arc<HostFence>> {
        self.fences.values().find(|f| f.spec.host_uid == host_uid && f.spec.boot_id == boot_id)
    }

    /// Milliseconds since something was first seen as it is now; 0 if it is new.
    #[must_use]
    pub fn age_of(&self, what: &str) -> Millis {
        self.seen_since.get(what).map_or(0, |since| self.now.saturating_sub(*since))
    }
}

/// Safety rules that a test can drop one at a time, to show that each is needed.
/// Production always runs with all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guards {
    /// Safety §1: unknown is alive; the silence of a host settles nothing.
    pub settled: bool,
    /// Gate 1: a VM that is deleted stays until its last epoch is settled.
    pub finalizer: bool,
    /// Gate 2: a Domain that is missing is no release.
    pub missing_is_no_release: bool,
    /// Safety §1: released is gone and drained, not merely ended.
    pub drained: bool,
    /// Gate 1: a placement is a compare-and-swap.
    pub cas: bool,
    /// Gate 4: the certificate and life are read fresh right before a placement.
    pub fresh_read: bool,
    /// Gate 10: boot and silence are read fresh right before an off.
    pub fresh_off: bool,
    /// Gate 4: life after the proof revokes it.
    pub life_revokes: bool,
    /// Gate 4: what was taken for dead when a later epoch was ordered never goes on.
    pub superseded: bool,
    /// Gate 9: an API that went back pauses automation.
    pub lineage: bool,
    /// Safety §3, §5: nothing is proven of a boot that shows life.
    pub life_bars: bool,
    /// Safety §3: off is read back.
    pub read_back: bool,
    /// Safety §3: the plug must have read on while the boot was beating.
    pub plug_trust: bool,
    /// Safety §3: one device that reads many hosts off at once is not believed.
    pub one_device: bool,
    /// Safety §4: elapsed time proves the death of a boot that was armed.
    pub armed: bool,
    /// Safety §6.2: denied before its locks are broken.
    pub denial_first: bool,
    /// Safety §6.2: locks expire at their server; their files are never unlinked.
    pub lock_files: bool,
    /// Safety §6.6: a host's number in a lockspace is given to no other.
    pub numbers: bool,
    /// Safety §6.4: one writable disk belongs to one VM.
    pub one_owner: bool,
    /// Safety §7: two paths must be silent.
    pub second_path: bool,
    /// Safety §7: the observer must be well itself.
    pub observer_health: bool,
    /// Safety §7: the observer's own beat makes the round trip in time.
    pub round_trip: bool,
    /// Safety §7: the storm brake.
    pub brake: bool,
    /// Safety §7: a shot is in the API before it is ordered, for the brake of the next leader.
    pub shot_noted: bool,
    /// Safety §7: a boot in which nothing of ours is open is not fenced.
    pub needed: bool,
    /// Safety §8.1: the target is ready before anything is copied to it.
    pub ready_first: bool,
    /// Safety §8.1: a move that is called off is over by its target's word, not by the order.
    pub void_word: bool,
    /// Safety §8.2: the epoch is swapped once the source has left.
    pub commit_left: bool,
    /// Safety §8.1: the epoch of an aborted move is burnt.
    pub burnt: bool,
    /// Safety §8.2: a move of which the source knows no end is not called off by guess.
    pub unknown_move: bool,
    /// Safety §8.3: no lock is broken for one side of an undecided move.
    pub undecided_move: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            settled: true,
            finalizer: true,
            missing_is_no_release: true,
            drained: true,
            cas: true,
            fresh_read: true,
            fresh_off: true,
            life_revokes: true,
            superseded: true,
            lineage: true,
            life_bars: true,
            read_back: true,
            plug_trust: true,
            one_device: true,
            armed: true,
            denial_first: true,
            lock_files: true,
            numbers: true,
            one_owner: true,
            second_path: true,
            observer_health: true,
            round_trip: true,
            brake: true,
            shot_noted: true,
            needed: true,
            ready_first: true,
            void_word: true,
            commit_left: true,
            burnt: true,
            unknown_move: true,
            undecided_move: true,
        }
    }
}
