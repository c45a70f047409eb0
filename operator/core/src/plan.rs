//! What a plan asks for: intents in order, and the status of everything.

use stockade_crds::conditions::Decided;
use stockade_crds::v1alpha1::{
    AvailabilityPolicyStatus, DomainSpec, FenceAction, FenceDeviceStatus, HostAgentSpec,
    HostFenceSpec, HostFenceStatus, HostStatus, Lineage, LockManagerStatus, MoveRequests,
    SharedStorageStatus, VirtualMachineConsoleStatus, VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus, VirtualMachineStatus,
};

use crate::certificates::AuthorityStage;
use crate::world::{Key, Millis};

/// A status without the times of its conditions: those are set when it is stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Report<S> {
    /// The status; its own `conditions` are ignored.
    pub status: S,
    /// The conditions, in order.
    pub conditions: Vec<Decided>,
}

/// Which version of an object a write was decided on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Basis {
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub version: String,
}

/// A boot whose death a placement relies on: read fresh right before it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReliesOn {
    /// The certificate's name.
    pub fence: String,
    /// The host.
    pub host: String,
    /// The boot.
    pub boot_id: String,
}

/// How a Domain is to be written.
#[derive(Clone, Debug, PartialEq)]
pub struct DomainWrite {
    /// The host.
    pub host: String,
    /// The VM's uid: the Domain's name.
    pub vm_uid: String,
    /// The order.
    pub spec: DomainSpec,
    /// The version it replaces; `None`: it is created.
    pub replaces: Option<Basis>,
}

/// A write or act. Applied in order; each is safe to lose and to repeat.
#[derive(Clone, Debug, PartialEq)]
pub enum Intent {
    /// A host's namespace, with its Role binding.
    EnsureNamespace {
        /// The host.
        host: String,
    },
    /// The order to a host's agent about the host itself.
    WriteHostAgent {
        /// The host.
        host: String,
        /// What is to hold there.
        spec: HostAgentSpec,
        /// The version it replaces; `None`: it is created.
        replaces: Option<Basis>,
    },
    /// Signs what a host shows its peers in live moves.
    SignIdentity {
        /// The host.
        host: String,
        /// Over its own keys.
        requests: MoveRequests,
        /// Names and addresses that the certificates are to hold.
        names: Vec<String>,
        /// The serial of what it holds now: the next is above it.
        above: i64,
    },
    /// Reads the authority for live moves; makes it if there is none.
    ReadAuthority,
    /// The next step of one authority's taking over from another.
    ChangeAuthority {
        /// The stage that it is in.
        from: AuthorityStage,
    },
    /// Goes on after the API went back, with a counter that nobody has seen.
    ResumeLineage {
        /// The pair that a person named; the API must still be at it.
        from: Lineage,
        /// The highest counter that anybody knows.
        above: i64,
    },
    /// Keeps a VM until its last epoch is settled.
    AddFinalizer {
        /// The VM.
        vm: Key,
        /// Its version.
        basis: Basis,
    },
    /// Lets a deleted VM go.
    RemoveFinalizer {
        /// The VM.
        vm: Key,
        /// Its version.
        basis: Basis,
    },
    /// The compare-and-swap on a VM's epoch, then the order.
    Place {
        /// The VM.
        vm: Key,
        /// The version that the swap compares.
        basis: Basis,
        /// The status with the new epoch.
        report: Report<VirtualMachineStatus>,
        /// The order that follows; `None`: the swap alone.
        domains: Vec<DomainWrite>,
        /// Deaths that it relies on.
        relies_on: Vec<ReliesOn>,
    },
    /// Writes an order.
    WriteDomain(DomainWrite),
    /// Removes a tombstone.
    DeleteDomain {
        /// The host.
        host: String,
        /// The VM's uid.
        vm_uid: String,
        /// Its version.
        basis: Basis,
    },
    /// Removes the copy of a VM's secret from a host's namespace.
    RemoveSeed {
        /// The host.
        host: String,
        /// The VM's uid.
        vm_uid: String,
        /// The epoch that it was for.
        epoch: i64,
    },
    /// Opens a certificate.
    OpenFence {
        /// Its name.
        name: String,
        /// For which boot, and why.
        spec: HostFenceSpec,
    },
    /// Removes a certificate that is not needed any more.
    CloseFence {
        /// Its name.
        name: String,
        /// Its version.
        basis: Basis,
    },
    /// Calls a fence device.
    Fence {
        /// The host.
        host: String,
        /// The boot that is meant.
        boot_id: String,
        /// The FenceDevice.
        device: String,
        /// The host's plug.
        plug: String,
        /// What is asked.
        action: FenceAction,
        /// An order that the length of the silence stands for, not a reading of off.
        acts: bool,
    },
    /// Denies a boot at a storage.
    Deny {
        /// The storage.
        storage: String,
        /// The host.
        host: String,
        /// The boot.
        boot_id: String,
    },
    /// Breaks a dead boot's locks at a storage.
    BreakLocks {
        /// The storage.
        storage: String,
        /// The host.
        host: String,
        /// The boot.
        boot_id: String,
    },
    /// Admits a host to a storage again.
    Admit {
        /// The storage.
        storage: String,
        /// The host.
        host: String,
        /// The boot that was denied.
        boot_id: String,
    },
    /// Starts a move by itself.
    CreateMigration {
        /// Its name.
        key: Key,
        /// Which VM, where to.
        spec: VirtualMachineMigrationSpec,
        /// Why: a CamelCase word, kept as a label.
        cause: &'static str,
        /// The move that it goes along with, kept as a label.
        leader: Option<String>,
    },
    /// Keeps a move until its end is known, or lets it go.
    MigrationFinalizer {
        /// The move.
        key: Key,
        /// Its version.
        basis: Basis,
        /// Keep it.
        add: bool,
    },
    /// Removes a move that is over, or that is called off.
    DeleteMigration {
        /// The move.
        key: Key,
        /// Its version.
        basis: Basis,
    },
    /// Removes a ticket for a console that is over.
    DeleteConsole {
        /// The ticket.
        key: Key,
        /// Its version.
        basis: Basis,
    },
    /// Tells people.
    Event(Event),
}

/// What people are told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// About what.
    pub about: About,
    /// CamelCase and specific.
    pub reason: &'static str,
    /// One sentence.
    pub message: String,
    /// Needs attention.
    pub warning: bool,
}

/// The object of an event or status.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum About {
    /// A VM.
    Vm(Key),
    /// A host.
    Host(String),
    /// A certificate.
    Fence(String),
    /// The policy.
    Policy,
}

/// What is to be written, and the status of everything.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// In order.
    pub intents: Vec<Intent>,
    /// Status of VMs that have no [`Intent::Place`] in this plan.
    pub vms: Vec<(Key, Report<VirtualMachineStatus>)>,
    /// Status of hosts.
    pub hosts: Vec<(String, Report<HostStatus>)>,
    /// Status of storages.
    pub storages: Vec<(String, Report<SharedStorageStatus>)>,
    /// Status of lock managers.
    pub lock_managers: Vec<(String, Report<LockManagerStatus>)>,
    /// Status of fence devices.
    pub fence_devices: Vec<(String, Report<FenceDeviceStatus>)>,
    /// Status of certificates.
    pub fences: Vec<(String, Report<HostFenceStatus>)>,
    /// Status of moves.
    pub migrations: Vec<(Key, Report<VirtualMachineMigrationStatus>)>,
    /// Status of tickets for consoles.
    pub consoles: Vec<(Key, Report<VirtualMachineConsoleStatus>)>,
    /// How many host failures still fit; as in [`World::tolerates`](crate::world::World) if
    /// that was given.
    pub tolerates: usize,
    /// There is load to level, now or once it has lasted for `rebalanceHoldSeconds`.
    pub uneven: bool,
    /// Status of the policy.
    pub policy: Option<Report<AvailabilityPolicyStatus>>,
    /// When to plan again even if nothing changes.
    pub wake_at: Option<Millis>,
}

impl Plan {
    /// Plans again at `at` at the latest.
    pub fn wake(&mut self, at: Millis) {
        self.wake_at = Some(self.wake_at.map_or(at, |w| w.min(at)));
    }

    /// Tells people.
    pub fn event(
        &mut self,
        about: About,
        reason: &'static str,
        warning: bool,
        message: impl Into<String>,
    ) {
        self.intents.push(Intent::Event(Event { about, reason, message: message.into(), warning }));
    }
}
