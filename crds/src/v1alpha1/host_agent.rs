//! `HostAgent`: what a host is to prepare, and what its agent sees. Internal.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{ApiLoss, ConsoleDevice, ConsoleState, FileOwner, Lineage, LockKind, SelfFence};

/// What a host is to mount, join and arm. Written by the controller alone.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "HostAgent",
    namespaced,
    status = "HostAgentStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "sha",
    printcolumn(name = "Boot", type_ = "string", json_path = ".status.bootId"),
    printcolumn(name = "Armed", type_ = "boolean", json_path = ".status.armed"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel
)]
#[serde(rename_all = "camelCase", default)]
pub struct HostAgentSpec {
    /// The host uid that claimed this host's name; empty until the first report.
    #[schemars(length(max = 128))]
    pub host_uid: String,
    /// Interval of beats.
    pub heartbeat_seconds: i32,
    /// Storages to mount and beat on.
    #[schemars(length(max = 64))]
    pub storages: Vec<AgentStorage>,
    /// Folders to serve to other hosts.
    #[schemars(length(max = 64))]
    pub exports: Vec<AgentExport>,
    /// The lock manager to run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<AgentLock>,
    /// Whether the watchdog is to be armed.
    pub arm: bool,
    /// Timings of the self-fence.
    pub self_fence: SelfFence,
    /// What to do without an API.
    pub api_loss: ApiLoss,
    /// Seconds without an API before `apiLoss: Stop` acts.
    pub api_loss_seconds: i32,
    /// Seconds that the agent may hold a clean shutdown of its host back.
    pub shutdown_limit_seconds: i32,
    /// Boots that are certified dead; an agent that reads its own suspends its VMs.
    #[schemars(length(max = 64))]
    pub dead_boots: Vec<super::BootReference>,
    /// The API's history as of the last certificate or placement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// What the host shows its peers in live moves; absent until it is signed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub migration: Option<MoveIdentity>,
    /// Tickets for consoles that the host takes.
    #[schemars(length(max = 64))]
    pub consoles: Vec<AgentConsole>,
}

/// A ticket for a console, as its host takes it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentConsole {
    /// Uid of the VirtualMachineConsole.
    #[schemars(length(min = 1, max = 64))]
    pub id: String,
    /// Address on which it is taken: the one that the Host declares.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
    /// The VM's uid.
    #[schemars(length(min = 1, max = 64))]
    pub vm_uid: String,
    /// The epoch that runs here.
    pub epoch: i64,
    /// Which console.
    pub device: ConsoleDevice,
    /// SHA-256 of the ticket, in lower-case hex.
    #[schemars(length(equal = 64))]
    pub ticket_hash: String,
}

/// How a ticket stands on its host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ConsoleReport {
    /// Uid of the VirtualMachineConsole.
    #[schemars(length(max = 64))]
    pub id: String,
    /// How it stands.
    pub state: ConsoleState,
    /// Address and port where it is taken.
    #[serde(default)]
    #[schemars(length(max = 300))]
    pub address: String,
    /// Why it is worth nothing.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// What a host shows its peers in live moves, as the controller's authority signed it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct MoveIdentity {
    /// The requests that were answered.
    pub requests: MoveRequests,
    /// Names and addresses that the certificates hold.
    #[schemars(length(max = 8), inner(length(min = 1, max = 253)))]
    pub names: Vec<String>,
    /// Certificate of libvirt's own connections, PEM.
    #[schemars(length(max = 8192))]
    pub control: String,
    /// Certificate that QEMUs show, PEM.
    #[schemars(length(max = 8192))]
    pub memory: String,
    /// The authorities whose certificates are believed, PEM: two while one takes over from the other.
    #[schemars(length(max = 16384))]
    pub authority: String,
    /// The one of them that signed both, PEM.
    #[schemars(length(max = 8192))]
    pub signer: String,
    /// Tells this from what was signed before.
    pub serial: i64,
    /// When both are signed anew: seconds since the Unix epoch.
    pub renew_at_seconds: i64,
}

/// Requests for a host's certificates, over keys that never leave it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct MoveRequests {
    /// For libvirt's own connections, PEM.
    #[schemars(length(max = 4096))]
    pub control: String,
    /// For QEMUs, PEM.
    #[schemars(length(max = 4096))]
    pub memory: String,
}

/// A storage as an agent mounts it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentStorage {
    /// The SharedStorage.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Mount point.
    #[schemars(length(min = 1, max = 255))]
    pub mount_path: String,
    /// Id of the cluster that the marker file must name.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub cluster_id: String,
    /// Kind of the backend.
    pub kind: StorageKind,
    /// `server:/export` for NFS, the device for OCFS2, empty for a directory.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub source: String,
    /// Mount options.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub options: Vec<String>,
    /// This host serves it: it binds the exported folder and mounts nothing.
    #[serde(default)]
    pub served_here: bool,
    /// Owner of the VMs' files, by number.
    #[serde(default)]
    pub owner: FileOwner,
    /// What OCFS2 needs beside its device's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocfs2: Option<AgentOcfs2>,
}

/// OCFS2 as an agent brings it up: the device, and this host's place in the o2cb cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentOcfs2 {
    /// The target to log in to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub iscsi: Option<AgentIscsi>,
    /// The AoE device to look for; this and `iscsi` absent: the device is there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aoe: Option<AgentAoe>,
    /// This host's node number; 0: none yet.
    pub node_number: i32,
    /// All nodes of the cluster.
    #[schemars(length(max = 255))]
    pub nodes: Vec<OcfsNode>,
    /// Threshold of the heartbeat, in iterations of two seconds.
    pub heartbeat_threshold: i32,
    /// Node slots of a file system that is made.
    pub slots: i32,
    /// The file system may be made if the device is proven blank.
    pub format_if_blank: bool,
    /// It is this host that makes it, and no other.
    pub format_here: bool,
}

/// A target, as an initiator logs in to it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentIscsi {
    /// Portal.
    #[schemars(length(max = 253))]
    pub portal: String,
    /// Qualified name.
    #[schemars(length(max = 223))]
    pub target: String,
    /// Logical unit.
    pub lun: i32,
}

/// An AoE device, as its clients and its server know it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentAoe {
    /// Shelf.
    pub shelf: i32,
    /// Slot.
    pub slot: i32,
    /// Network interface.
    #[schemars(length(max = 15))]
    pub interface: String,
}

/// A node of an o2cb cluster.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct OcfsNode {
    /// The Host.
    #[schemars(length(max = 49))]
    pub name: String,
    /// Its number, for good.
    pub number: i32,
    /// IPv4 address by which the nodes reach it.
    #[schemars(length(max = 253))]
    pub address: String,
}

/// What a host serves to others: a folder by NFS, or a device by iSCSI.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentExport {
    /// The SharedStorage.
    #[schemars(length(min = 1, max = 63))]
    pub storage: String,
    /// The folder, or the device or file.
    #[schemars(length(min = 1, max = 255))]
    pub path: String,
    /// The iSCSI target that the device is given as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<AgentTarget>,
    /// The AoE device that it is given as; this and `target` absent: the folder is exported by NFS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aoe: Option<AgentAoe>,
    /// Lease time of the NFS server in seconds; of several exports the shortest counts.
    pub lease_seconds: i32,
    /// The hosts that may mount it, and nobody else; AoE is open to whoever is on its network.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub clients: Vec<ExportClient>,
    /// Boots whose host is left out, because they are proven dead.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub denied: Vec<super::BootReference>,
    /// Of those, the boots whose opens and locks are to be dropped.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub broken: Vec<super::BootReference>,
}

/// A target that a host serves.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentTarget {
    /// Qualified name.
    #[schemars(length(max = 223))]
    pub name: String,
    /// Logical unit.
    pub lun: i32,
}

/// A host that may mount an export.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExportClient {
    /// The Host.
    #[schemars(length(min = 1, max = 49))]
    pub host: String,
    /// Its address as the server sees it.
    #[schemars(length(min = 1, max = 253))]
    pub address: String,
}

/// A kind of backend.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum StorageKind {
    /// NFS version 4.
    NFS,
    /// OCFS2.
    OCFS2,
    /// A directory that someone else shares.
    #[default]
    SharedDirectory,
}

/// The lock manager of a host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AgentLock {
    /// Which daemon.
    pub kind: LockKind,
    /// The storage that holds the lockspace.
    #[schemars(length(min = 1, max = 63))]
    pub storage: String,
    /// Folder of the locks, on that storage; empty: the locks lie on the disks themselves.
    #[serde(default)]
    #[schemars(length(max = 300))]
    pub lockspace: String,
    /// Storages whose VMs are locked there, its own among them: they alone end with the lockspace.
    #[serde(default)]
    #[schemars(length(max = 65), inner(length(min = 1, max = 63)))]
    pub guards: Vec<String>,
    /// Host id of sanlock; 0: none.
    #[serde(default)]
    pub host_id: i32,
    /// The lock server may be away.
    #[serde(default)]
    pub maintenance: bool,
}

/// What an agent sees. Written by the host's agent alone, on change.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct HostAgentStatus {
    /// The machine's identity.
    #[schemars(length(max = 128))]
    pub host_uid: String,
    /// The running boot.
    #[schemars(length(max = 128))]
    pub boot_id: String,
    /// Counts the inventories of this boot.
    pub report: i64,
    /// Version of the agent.
    #[schemars(length(max = 64))]
    pub version: String,
    /// CPUs of the host.
    pub cpu: i32,
    /// Memory of the host in MiB.
    pub memory_mib: i64,
    /// Hypervisors that it offers.
    #[schemars(length(max = 4))]
    pub hypervisors: Vec<super::HypervisorKind>,
    /// Every running domain, ours or not.
    #[schemars(length(max = 4096))]
    pub inventory: Vec<InventoryItem>,
    /// Storages as mounted and checked.
    #[schemars(length(max = 64))]
    pub storages: Vec<StorageReport>,
    /// Folders as served to others.
    #[schemars(length(max = 64))]
    pub exports: Vec<ExportReport>,
    /// The lock manager works.
    pub lock_ready: bool,
    /// Why it does not, with the remedy.
    #[serde(skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 1024))]
    pub lock_message: String,
    /// The lock manager that is running, if one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lock: Option<LockKind>,
    /// The watchdog is armed.
    pub armed: bool,
    /// Timings in force while armed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub self_fence: Option<SelfFence>,
    /// A hardware watchdog is there.
    pub watchdog: bool,
    /// The hook refused a probe domain since libvirt's last start.
    pub hook_ready: bool,
    /// libvirt answers.
    pub hypervisor_ready: bool,
    /// The host goes down: `Shutdown` or `Reboot`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub going_down: Option<GoingDown>,
    /// This boot is over for VMs: everything is released, and nothing is started in it any more.
    pub down: bool,
    /// Highest lineage journalled.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lineage: Option<Lineage>,
    /// What the authority for live moves is asked to sign.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_requests: Option<MoveRequests>,
    /// What was signed is in force: live moves may come and go.
    pub moves_ready: bool,
    /// `serial` of what is in force.
    pub moves_serial: i64,
    /// Tickets for consoles, as they stand here.
    #[schemars(length(max = 64))]
    pub consoles: Vec<ConsoleReport>,
    /// Trouble that a person should mend, a sentence each.
    #[schemars(length(max = 32), inner(length(max = 1024)))]
    pub problems: Vec<String>,
}

/// A clean end of a boot.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum GoingDown {
    /// Power off or halt.
    Shutdown,
    /// Reboot.
    Reboot,
}

/// A domain that a hypervisor runs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct InventoryItem {
    /// libvirt's name.
    #[schemars(length(max = 256))]
    pub name: String,
    /// libvirt's UUID.
    #[schemars(length(max = 64))]
    pub uuid: String,
    /// Epoch in its metadata; 0: not ours.
    #[serde(default)]
    pub epoch: i64,
    /// Its vCPUs run.
    #[serde(default)]
    pub running: bool,
    /// Measured CPU use in thousandths of a CPU; present where the policy asks for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_milli: Option<i64>,
    /// Measured memory in MiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mib: Option<i64>,
}

/// A storage as a host sees it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct StorageReport {
    /// The SharedStorage.
    #[schemars(length(max = 63))]
    pub name: String,
    /// Mounted, checked and writable.
    pub ready: bool,
    /// Why it is not, with the remedy.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
}

/// An export as its server sees it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExportReport {
    /// The SharedStorage.
    #[schemars(length(max = 63))]
    pub storage: String,
    /// It is served as declared.
    pub ready: bool,
    /// Why it is not, with the remedy.
    #[serde(default)]
    #[schemars(length(max = 1024))]
    pub message: String,
    /// Boots whose denial is in force.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub denied: Vec<super::BootReference>,
    /// Boots that hold nothing there any more.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub broken: Vec<super::BootReference>,
}
