//! `Domain`: the order for one VM on one boot of one host. Internal.
//!
//! Named by the VM's uid, in the host's namespace. The controller writes the
//! spec with uid and resourceVersion; the host's agent alone writes the status.

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{
    DiskBus, DiskFormat, FirmwareKind, HypervisorKind, LockKind, MigrationProgress, Reclaim,
};

/// The order.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "Domain",
    namespaced,
    status = "DomainStatus",
    derive = "PartialEq",
    shortname = "sdom",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm.name"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Want", type_ = "string", json_path = ".spec.want"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Lock", type_ = "string", json_path = ".status.lock.manager"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.epoch >= oldSelf.epoch").message("spec.epoch: it never falls"),
    validation = Rule::new("self.orderId >= oldSelf.orderId").message("spec.orderId: it never falls")
)]
pub struct DomainSpec {
    /// Whose order this is.
    pub vm: VmReference,
    /// The host's uid.
    #[schemars(length(min = 1, max = 128))]
    pub host_uid: String,
    /// The boot that the order is for; any other boot only releases.
    #[schemars(length(min = 1, max = 128))]
    pub boot_id: String,
    /// One epoch is one QEMU process.
    #[schemars(range(min = 1))]
    pub epoch: i64,
    /// Raised with every change of the order; each is obeyed at most once.
    #[schemars(range(min = 1))]
    pub order_id: i64,
    /// What is wanted of this epoch.
    pub want: Want,
    /// Earlier epochs that the controller knows to be settled.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub settled: Vec<SettledEpoch>,
    /// Every epoch up to this one is settled.
    #[serde(default)]
    pub settled_through: i64,
    /// Suspend the vCPUs.
    #[serde(default)]
    pub paused: bool,
    /// Seconds a guest may take to shut down when `want` is Stopped.
    #[serde(default)]
    pub grace_seconds: i32,
    /// Reset the guest once for this request id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reset: Option<String>,
    /// The other side of a live move.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationOrder>,
    /// A found copy that a human says is this VM: taken in under this epoch.
    #[serde(default)]
    pub adopt: bool,
    /// Disks to delete once the epoch is settled, because the VM is deleted.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub delete_disks: Vec<String>,
    /// The VM, resolved.
    pub machine: Machine,
}

/// Whose order it is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VmReference {
    /// Namespace of the VM.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the VM.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Uid of the VM.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// What is wanted of an epoch.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Start it if this epoch never ran; keep it.
    Running,
    /// Ask its guest to stop, kill it after the grace, release it.
    Stopped,
    /// Kill it now and release it.
    Killed,
    /// Take it in from the source of a live move, paused until committed.
    Incoming,
}

/// An epoch that is settled.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SettledEpoch {
    /// The epoch.
    pub epoch: i64,
    /// Set if it is settled by proof of death of this boot, else it was released.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dead_boot: Option<BootReference>,
}

/// One boot of one host.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "camelCase")]
pub struct BootReference {
    /// The host's uid.
    #[schemars(length(min = 1, max = 128))]
    pub host_uid: String,
    /// The boot id.
    #[schemars(length(min = 1, max = 128))]
    pub boot_id: String,
}

/// One side of a live move.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MigrationOrder {
    /// Identity of the move.
    #[schemars(length(min = 1, max = 128))]
    pub id: String,
    /// Which side this Domain is.
    pub side: MigrationSide,
    /// The other host's name.
    #[schemars(length(min = 1, max = 49))]
    pub peer: String,
    /// The other host's migration address.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub peer_address: String,
    /// The other side's epoch.
    #[serde(default)]
    pub peer_epoch: i64,
    /// The boot that holds the other side's epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_boot: Option<BootReference>,
    /// How far it may go.
    pub step: MigrationStep,
    /// Bandwidth limit in MiB a second; 0: none.
    #[serde(default)]
    pub bandwidth_mib_per_second: i32,
    /// Longest pause at the switch-over in milliseconds; 0: the hypervisor's own.
    #[serde(default)]
    pub downtime_limit_milliseconds: i32,
    /// Slow the guest down where it changes its memory faster than it is copied.
    #[serde(default)]
    pub auto_converge: bool,
    /// Connections that carry its memory; 0: one, the plain way.
    #[serde(default)]
    pub parallel_connections: i32,
    /// How long the copy may take, in seconds for each GiB of memory; 0: no limit.
    #[serde(default)]
    pub completion_seconds_per_gib: i32,
    /// Seconds without progress after which the copy is called off; 0: 30.
    #[serde(default)]
    pub progress_seconds: i32,
}

/// A side of a live move.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationSide {
    /// It leaves.
    Source,
    /// It arrives.
    Target,
}

/// How far a live move may go.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationStep {
    /// The target arms itself; the source waits.
    Prepare,
    /// The source copies.
    Copy,
    /// The source has left: a target that has no copy lost it.
    Left,
    /// The compare-and-swap on the VM's epoch was done: only the target may run.
    Commit,
    /// The move is called off: only the source may run.
    Abort,
}

/// A VM with every reference resolved.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// Hypervisor.
    #[serde(default)]
    pub hypervisor: HypervisorKind,
    /// vCPUs.
    pub cores: i32,
    /// CPU model; empty: the host decides and reports.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub cpu_model: String,
    /// Versioned machine type; empty: the host decides and reports.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub machine_type: String,
    /// Memory in MiB.
    pub memory_mib: i64,
    /// Firmware.
    #[serde(default)]
    pub firmware: FirmwareKind,
    /// Disks, boot disk first.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub disks: Vec<MachineDisk>,
    /// Network interfaces.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub networks: Vec<MachineNetwork>,
    /// Seed image for cloud-init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// A serial console.
    #[serde(default)]
    pub serial: bool,
    /// VNC on loopback.
    #[serde(default)]
    pub vnc: bool,
    /// The lock manager that must hold its disks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockKind>,
}

/// A disk, resolved.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MachineDisk {
    /// Name within the VM.
    #[schemars(length(max = 32))]
    pub name: String,
    /// The SharedStorage.
    #[schemars(length(max = 63))]
    pub storage: String,
    /// Absolute path on every host.
    #[schemars(length(max = 1024))]
    pub path: String,
    /// Format.
    pub format: DiskFormat,
    /// Bus.
    pub bus: DiskBus,
    /// Read only: no owner record.
    #[serde(default)]
    pub read_only: bool,
    /// What to make if the file is missing and the VM never ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub create: Option<CreateDisk>,
    /// Size that the guest is to see, in bytes; 0: as it is.
    #[serde(default)]
    pub size_bytes: i64,
    /// What becomes of it when the VM is deleted.
    #[serde(default)]
    pub reclaim: Reclaim,
}

/// How to make a disk.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CreateDisk {
    /// Absolute path of the image to copy; absent: blank.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub image: Option<String>,
}

/// A network interface, resolved.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MachineNetwork {
    /// MAC address.
    #[schemars(length(max = 17))]
    pub mac: String,
    /// Bridge of the host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 15))]
    pub bridge: Option<String>,
    /// libvirt network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 63))]
    pub network: Option<String>,
}

/// Seed data: inline, or in a Secret of the host's namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Seed {
    /// user-data.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub user_data: Option<String>,
    /// network-config.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16384))]
    pub network_data: Option<String>,
    /// Name of the Secret in the host's namespace; its key is `userData`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub secret: Option<String>,
}

/// What an agent says of an order. Written by the host's agent alone.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct DomainStatus {
    /// The order that this status answers.
    #[serde(default)]
    pub order_id: i64,
    /// The epoch that this status is about.
    #[serde(default)]
    pub epoch: i64,
    /// The boot in which the agent says so.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub boot_id: String,
    /// What the epoch does.
    #[serde(default)]
    pub state: DomainState,
    /// Gone and drained: nothing of the epoch can write any more.
    #[serde(default)]
    pub released: bool,
    /// Released, and the storage of its owner records was out of reach: they say otherwise.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmarked: bool,
    /// How it ended, once it has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<End>,
    /// Why it can't go on, with the remedy; empty if it can.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Highest epoch found in the owner records of its disks.
    #[serde(default)]
    pub highest_record: i64,
    /// The lock that guards it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockReport>,
    /// What was pinned or decided at the start.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub machine_type: String,
    /// CPU model in use.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub cpu_model: String,
    /// Fields of the machine that take effect at the next start.
    #[serde(default)]
    #[schemars(length(max = 16))]
    pub pending_restart: Vec<String>,
    /// Addresses of the guest.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub addresses: Vec<String>,
    /// The last reset request obeyed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub reset: Option<String>,
    /// How the live move stands on this side.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationReport>,
}

/// What an epoch does.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DomainState {
    /// Seen, nothing done.
    #[default]
    Pending,
    /// Being started.
    Starting,
    /// Executed.
    Running,
    /// In memory, vCPUs suspended.
    Paused,
    /// Its guest was asked to stop.
    Stopping,
    /// It would not die, or is not drained.
    StopFailed,
    /// Present as the target of a live move, not running.
    Incoming,
    /// The start was refused or failed; nothing runs.
    StartFailed,
    /// It ended, or never started.
    Ended,
}

/// How an epoch ended.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The guest shut itself down without being asked.
    GuestShutdown,
    /// Stopped by its order.
    Stopped,
    /// Killed by its order.
    Killed,
    /// The process died or was killed by someone else.
    Crashed,
    /// The start failed.
    StartFailed,
    /// Refused before anything was started: records, locks or the storage say no.
    Refused,
    /// It left by a live move.
    Migrated,
    /// Never started.
    Void,
    /// Its boot ended under it.
    HostRestarted,
    /// Its storage or lock was lost.
    StorageLost,
    /// A lock that guards its disks is held by another.
    LockHeld,
}

/// A lock.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LockReport {
    /// Which daemon.
    pub manager: LockKind,
    /// Whether this epoch holds it.
    pub held: bool,
    /// Who holds it if not this epoch.
    #[serde(default)]
    #[schemars(length(max = 128))]
    pub holder: String,
}

/// How a live move stands on one side.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MigrationReport {
    /// Identity of the move.
    #[schemars(length(max = 128))]
    pub id: String,
    /// How it stands.
    pub state: MigrationState,
    /// What went wrong.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Source: how far the copy is. Target: what it took, once it runs. No bytes in all: not known.
    #[serde(default)]
    pub progress: MigrationProgress,
    /// Target: for how long the guest stood still, in milliseconds; 0: not known.
    #[serde(default)]
    pub downtime_milliseconds: i64,
}

/// How a live move stands on one side.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum MigrationState {
    /// Target: armed. Source: not begun.
    Ready,
    /// Copying.
    Copying,
    /// Source: all memory is over and the copy here is paused or gone. Target: complete, paused.
    Switched,
    /// Ended well on this side: the target runs, the source is gone.
    Done,
    /// Failed or aborted on this side: the source runs on, the target holds nothing.
    Failed,
    /// The call's answer is lost.
    Unknown,
}
