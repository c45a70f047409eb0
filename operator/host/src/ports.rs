//! The ports: small traits over plain types, one for each thing at a host's edge.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{
    AgentConsole, AgentExport, AgentLock, AgentStorage, ConsoleReport, DomainSpec, ExportReport,
    FenceDeviceSpec, GoingDown, HypervisorKind, LockReport, MachineDisk, MigrationProgress,
    MoveIdentity, MoveRequests, SelfFence, StorageReport,
};
use tokio::sync::mpsc;

pub use stockade_core::agent::moves::Arrival;
pub use stockade_core::agent::types::{
    Beat, JournalState, JournalVm, LiveChange, LiveDomain, LiveState, OwnerRecord, Presence,
    RecordState, Started, StopReason,
};

use crate::error::HostResult;

/// The ports that one agent works through.
#[derive(Clone)]
pub struct AgentPorts {
    /// The machine itself.
    pub machine: Arc<dyn MachinePort>,
    /// Its hypervisor.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Shared storages, disks and their owner records.
    pub storage: Arc<dyn StoragePort>,
    /// What it serves to others.
    pub exports: Arc<dyn ExportPort>,
    /// Consoles of VMs.
    pub consoles: Arc<dyn ConsolePort>,
    /// The agent's durable memory.
    pub journal: Arc<dyn JournalPort>,
    /// The watchdog's feeder.
    pub watchdog: Arc<dyn WatchdogPort>,
    /// Time.
    pub clock: Arc<dyn Clock>,
}

/// Time as one machine has it. Durations are measured by `tokio::time`.
pub trait Clock: Send + Sync {
    /// Milliseconds on a monotonic clock that counts suspended time (CLOCK_BOOTTIME),
    /// with this machine's own rate.
    fn monotonic_millis(&self) -> u64;
    /// Milliseconds since the Unix epoch by this machine's wall clock: for people, and for what
    /// outlives a process and is no matter of safety.
    fn wall_millis(&self) -> i64;
    /// Waits for `millis` of this machine's time.
    fn sleep(&self, millis: u64) -> BoxFuture<'static, ()>;
}

/// What a machine says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineFacts {
    /// The machine's identity.
    pub host_uid: String,
    /// The running boot.
    pub boot_id: String,
    /// CPUs.
    pub cpu: i32,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// Hypervisors on offer.
    pub hypervisors: Vec<HypervisorKind>,
    /// A watchdog device that really resets is there.
    pub watchdog: bool,
    /// Seconds that the init system waits for the agent at a shutdown; `None`: not known.
    pub holds_back_seconds: Option<u64>,
    /// Trouble a person should mend (sleep targets not masked and the like).
    pub problems: Vec<String>,
}

/// The machine itself.
pub trait MachinePort: Send + Sync {
    /// Facts; they can change while the agent runs, but for uid and boot.
    fn facts(&self) -> BoxFuture<'_, HostResult<MachineFacts>>;
    /// Whether the init system is asking to go down, and how.
    fn going_down(&self) -> Option<GoingDown>;
    /// Wakes when `going_down` may have changed.
    fn going_down_changed(&self) -> BoxFuture<'_, ()>;
    /// Lets go of the inhibitor: everything is released, the machine may go down.
    fn allow_down(&self);
}

/// News from the hypervisor. Hints only: state is read by [`Hypervisor::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HypervisorEvent {
    /// A domain changed; `stopped` says why it ended, if it did.
    Domain {
        /// libvirt's UUID.
        uuid: String,
        /// Why it ended.
        stopped: Option<StopReason>,
    },
    /// The connection was lost or is there again.
    Connection {
        /// Whether calls can work.
        up: bool,
    },
}

/// The parameters of a live move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrateRequest {
    /// VM uid.
    pub vm_uid: String,
    /// Namespace and name of the VM.
    pub name: String,
    /// Epoch on this side.
    pub epoch: i64,
    /// Epoch on the target.
    pub target_epoch: i64,
    /// Name of the target host.
    pub peer: String,
    /// Address of the target host.
    pub peer_address: String,
    /// MiB a second; 0: no limit.
    pub bandwidth_mib_per_second: i32,
    /// Milliseconds; 0: the hypervisor's own.
    pub downtime_limit_milliseconds: i32,
    /// Slow the guest down where it changes its memory faster than it is copied.
    pub auto_converge: bool,
    /// Connections that carry its memory; 0: one, the plain way.
    pub parallel_connections: i32,
    /// Leave the copy on the target paused, because no lock spans the hosts.
    pub leave_paused: bool,
}

/// The hypervisor of one machine. A domain of ours is named by its VM's uid.
pub trait Hypervisor: Send + Sync {
    /// Every domain that has a process, ours or not.
    fn list(&self) -> BoxFuture<'_, HostResult<Vec<LiveDomain>>>;
    /// News; one receiver.
    fn events(&self) -> mpsc::UnboundedReceiver<HypervisorEvent>;
    /// Whether a probe domain without an order was refused by the hook since the
    /// daemon's last start.
    fn probe_hook(&self) -> BoxFuture<'_, HostResult<bool>>;
    /// Starts the order's epoch as a transient domain. The lock manager, if the order
    /// names one, takes the VM's locks within this call.
    fn start<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<Started>>;
    /// Gives a suspended domain that runs under the epoch `from` (0: none) the order's epoch and
    /// boot, with the locks that the order names.
    ///
    /// # Errors
    /// [`HostError::Locked`](crate::HostError::Locked) or a refusal if the locks can't be had:
    /// then the domain is as it was.
    fn adopt<'a>(&'a self, order: &'a DomainSpec, from: i64) -> BoxFuture<'a, HostResult<()>>;
    /// Why a domain that is gone ended, as far as the hypervisor has kept it.
    fn end_reason<'a>(
        &'a self,
        vm_uid: &'a str,
        name: &'a str,
        epoch: i64,
    ) -> BoxFuture<'a, Option<StopReason>>;
    /// Makes ready to take a domain in from a live move (target side).
    fn prepare_incoming<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<()>>;
    /// Moves a running domain to a peer; returns when it is over.
    fn migrate<'a>(&'a self, request: &'a MigrateRequest) -> BoxFuture<'a, HostResult<()>>;
    /// How far a move away is; `None`: none is under way.
    fn migration_job<'a>(
        &'a self,
        vm_uid: &'a str,
    ) -> BoxFuture<'a, HostResult<Option<MigrationProgress>>>;
    /// What the move took that brought a domain here; `None`: its last step is under way still.
    fn arrival<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Option<Arrival>>>;
    /// Aborts a running move; the outcome is read by `list`.
    fn abort_migration<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>>;
    /// Asks the guest to shut down.
    fn shutdown<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>>;
    /// Ends the domain now (SIGKILL on its process, then the daemon's own cleaning up).
    fn kill<'a>(&'a self, vm_uid: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>>;
    /// Resets the guest as by its reset button.
    fn reset<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>>;
    /// Suspends the vCPUs.
    fn suspend<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>>;
    /// Resumes the vCPUs.
    fn resume<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>>;
    /// Changes CPUs and memory as far as that works live.
    fn resize<'a>(
        &'a self,
        vm_uid: &'a str,
        cores: i32,
        memory_mib: i64,
    ) -> BoxFuture<'a, HostResult<LiveChange>>;
    /// Grows a disk of a running domain; one that is as large already stays as it is.
    fn resize_disk<'a>(
        &'a self,
        vm_uid: &'a str,
        path: &'a str,
        bytes: i64,
    ) -> BoxFuture<'a, HostResult<LiveChange>>;
    /// Whether the process of this epoch is there, read without the daemon.
    fn presence<'a>(&'a self, vm_uid: &'a str, epoch: i64) -> BoxFuture<'a, Presence>;
    /// The lock that guards a domain, if a lock manager is used.
    fn lock<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Option<LockReport>>>;
    /// Guest addresses that are known, in the order in which they are told: IPv4 first.
    fn addresses<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Vec<String>>>;
    /// Measured use: thousandths of a CPU, and MiB.
    fn usage<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<(i64, i64)>>;
    /// Requests for the certificates that this host shows in live moves, over keys that never
    /// leave it; `None`: it shows none.
    fn move_requests(&self) -> Option<MoveRequests> {
        None
    }
    /// Puts signed certificates in force. Idempotent.
    fn install_identity<'a>(&'a self, _signed: &'a MoveIdentity) -> BoxFuture<'a, HostResult<()>> {
        Box::pin(std::future::ready(Ok(())))
    }
    /// Runs the lock manager that the host is to use; `None`: none is wanted.
    ///
    /// # Errors
    /// It does not work, or not yet, and why.
    fn ensure_lock_manager<'a>(
        &'a self,
        lock: Option<&'a AgentLock>,
    ) -> BoxFuture<'a, HostResult<()>>;
}

/// What linking a record came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linked {
    /// It is there now, fsynced.
    Created,
    /// A record of that epoch was there already (EEXIST).
    Exists,
}

/// Shared storages, disks and their owner records, as one host sees them.
pub trait StoragePort: Send + Sync {
    /// Mounts and checks a storage: the right file system, the right cluster's marker,
    /// never an empty directory. Idempotent.
    fn ensure<'a>(&'a self, storage: &'a AgentStorage) -> BoxFuture<'a, StorageReport>;
    /// Lets go of a storage that is no longer declared here: unmounts it if nothing uses it.
    ///
    /// # Errors
    /// [`HostError::Refused`](crate::HostError::Refused) while it is in use.
    fn forget<'a>(&'a self, storage: &'a AgentStorage) -> BoxFuture<'a, HostResult<()>>;
    /// Every owner record of a disk, read past caches.
    fn records<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<Vec<OwnerRecord>>>;
    /// Links a record under its epoch; never replaces one.
    fn link_record<'a>(
        &'a self,
        disk: &'a str,
        record: &'a OwnerRecord,
    ) -> BoxFuture<'a, HostResult<Linked>>;
    /// Marks this host's record of an epoch as released; fsynced.
    fn release_record<'a>(&'a self, disk: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>>;
    /// Removes a settled record.
    fn remove_record<'a>(&'a self, disk: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>>;
    /// The disk is there; made if it is missing, `disk.create` is set and `may_create`.
    fn ensure_disk<'a>(
        &'a self,
        disk: &'a MachineDisk,
        may_create: bool,
    ) -> BoxFuture<'a, HostResult<()>>;
    /// The seed image of an order is there (made from its text), or is not (`None`).
    fn ensure_seed<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<()>>;
    /// Removes the seed image of a VM.
    fn remove_seed<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>>;
    /// Deletes a disk and its records.
    fn delete_disk<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<()>>;
    /// fsyncs a disk after its process is gone; true: nothing for it is outstanding any
    /// more (drained).
    fn drain<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<bool>>;
    /// The beats on a storage, this host's own included, by host uid.
    fn beats<'a>(&'a self, storage: &'a str) -> BoxFuture<'a, HostResult<BTreeMap<String, Beat>>>;
    /// Tells the beat writer of this storage what to write; it writes every
    /// `heartbeat_seconds` in a process of its own. Storages left out stop beating.
    fn keep_beating<'a>(
        &'a self,
        storages: &'a [String],
        heartbeat_seconds: i32,
        lineage: i64,
    ) -> BoxFuture<'a, HostResult<()>>;
}

/// The serving side of NFS on one host.
pub trait ExportPort: Send + Sync {
    /// Serves exactly these folders to exactly these hosts; drops what boots hold that are to be
    /// broken, once their denial is in force. Idempotent; a report each, in the same order.
    fn ensure<'a>(&'a self, exports: &'a [AgentExport]) -> BoxFuture<'a, Vec<ExportReport>>;
}

/// Consoles of VMs, opened to whoever shows a ticket.
pub trait ConsolePort: Send + Sync {
    /// Takes exactly these tickets, each once; closes what was opened by others. Idempotent; a
    /// report each, in the same order.
    fn serve<'a>(&'a self, tickets: &'a [AgentConsole]) -> BoxFuture<'a, Vec<ConsoleReport>>;
}

/// What is mounted at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    /// Kind of the file system, as in `nfs4`.
    pub kind: String,
    /// What is mounted, as in `server:/export`.
    pub source: String,
    /// Options in force.
    pub options: Vec<String>,
    /// The file system's number, as in `0:52`.
    pub device: String,
}

/// What is to be mounted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountRequest {
    /// Kind of the file system; empty where the options say it (`bind`).
    pub kind: String,
    /// What is mounted.
    pub source: String,
    /// Where.
    pub path: String,
    /// Options.
    pub options: Vec<String>,
}

/// The table of mounts of one machine.
pub trait Mounts: Send + Sync {
    /// What is mounted at exactly this path; of several, what is seen there. Asks no server.
    fn find<'a>(&'a self, path: &'a str) -> BoxFuture<'a, HostResult<Option<Mounted>>>;
    /// Whether the path is seen on that mount. May hang with its server.
    fn is_on<'a>(&'a self, path: &'a str, mounted: &'a Mounted) -> BoxFuture<'a, HostResult<bool>>;
    /// Mounts; the path is there already.
    fn mount<'a>(&'a self, request: &'a MountRequest) -> BoxFuture<'a, HostResult<()>>;
    /// Unmounts.
    ///
    /// # Errors
    /// [`HostError::Refused`](crate::HostError::Refused) while anything uses it.
    fn unmount<'a>(&'a self, path: &'a str) -> BoxFuture<'a, HostResult<()>>;
}

/// The agent's durable memory: one small document, replaced whole and fsynced.
pub trait JournalPort: Send + Sync {
    /// The last stored state; empty if there never was one.
    fn load(&self) -> BoxFuture<'_, HostResult<JournalState>>;
    /// Stores; returns once it is on the disk.
    fn store<'a>(&'a self, state: &'a JournalState) -> BoxFuture<'a, HostResult<()>>;
}

/// The watchdog's feeder, a process of its own (safety §4).
pub trait WatchdogPort: Send + Sync {
    /// Arms: from now on the feeder feeds only while either stamp is young.
    fn arm<'a>(
        &'a self,
        timings: &'a SelfFence,
        storages: &'a [String],
    ) -> BoxFuture<'a, HostResult<()>>;
    /// Disarms: the feeder feeds whatever happens.
    fn disarm(&self) -> BoxFuture<'_, HostResult<()>>;
    /// Whether it is armed, and with which timings.
    fn armed(&self) -> BoxFuture<'_, HostResult<Option<SelfFence>>>;
    /// An API renewal that was sent at this monotonic time is acknowledged.
    fn api_renewed(&self, sent_millis: u64);
}

/// The power state that a device reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// On.
    On,
    /// Off.
    Off,
}

/// One call of a fence device.
#[derive(Clone, Debug, PartialEq)]
pub struct FenceCall {
    /// Name of the FenceDevice.
    pub device: String,
    /// Its spec.
    pub spec: FenceDeviceSpec,
    /// The host's plug.
    pub plug: String,
    /// Keys of the secret, further parameters.
    pub secret: BTreeMap<String, String>,
    /// What is asked.
    pub action: stockade_crds::v1alpha1::FenceAction,
}

/// Runs fence devices, with their hard time-out.
pub trait FenceRunner: Send + Sync {
    /// Runs one call. A Status answers the power; Off and On answer `None` when the
    /// device says that it has done it, which proves nothing.
    fn run<'a>(&'a self, call: &'a FenceCall) -> BoxFuture<'a, HostResult<Option<Power>>>;
}

/// The serving side of a storage, where it obeys us (safety §6.2).
pub trait StorageServer: Send + Sync {
    /// Withdraws the boot's access. `Refused` if this storage can't deny.
    fn deny<'a>(
        &'a self,
        storage: &'a str,
        host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>>;
    /// Gives a host access again that was denied for this boot. `Refused` if this storage can't
    /// deny.
    fn admit<'a>(
        &'a self,
        storage: &'a str,
        host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>>;
    /// Frees the locks of a dead boot. `Refused` while they must be waited for, with the
    /// seconds that remain in the message.
    fn break_locks<'a>(
        &'a self,
        storage: &'a str,
        host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>>;
}
