//! `VirtualMachine`: one virtual machine that Stockade keeps as its spec asks.

use k8s_openapi::api::core::v1::SecretKeySelector;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is wanted of one virtual machine.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "VirtualMachine",
    namespaced,
    status = "VirtualMachineStatus",
    derive = "PartialEq",
    shortname = "svm",
    category = "stockade",
    selectable = ".status.host",
    selectable = ".spec.runPolicy",
    printcolumn(name = "Status", type_ = "string", json_path = ".status.printableStatus"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host"),
    printcolumn(name = "IP", type_ = "string", json_path = ".status.addresses[0]"),
    printcolumn(name = "Recovery", type_ = "string", json_path = ".spec.availability.recovery", priority = 1),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".status.epoch", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel,
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name: use at most 63 characters, it becomes part of the libvirt name")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.hypervisor != 'Xen' || self.firmware.kind == 'BIOS'").message("spec.firmware.kind: Xen guests boot by BIOS here; leave it out, or use hypervisor KVM"),
    validation = Rule::new("self.firmware.kind != 'UEFI' || (self.disks.size() > 0 && !self.disks[0].readOnly)").message("spec.firmware.kind: UEFI variables lie beside the first disk; make that one without readOnly, or use BIOS")
)]
pub struct VirtualMachineSpec {
    /// Whether the VM is to run, and what restarts it.
    #[serde(default)]
    pub run_policy: RunPolicy,
    /// Suspends the VM's vCPUs while it stays in memory.
    #[serde(default)]
    pub paused: bool,
    /// Managed: started, stopped, moved and recovered. Watched: only looked at.
    #[serde(default)]
    pub management: Management,
    /// The hypervisor it needs.
    #[serde(default)]
    pub hypervisor: HypervisorKind,
    /// Virtual CPUs.
    #[serde(default)]
    pub cpu: Cpu,
    /// Guest memory, a multiple of 1Mi.
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('3Mi'))").message("spec.memory: give at least 4Mi, for example 512Mi"))]
    pub memory: Quantity,
    /// Firmware of the guest.
    #[serde(default)]
    pub firmware: Firmware,
    /// Disks, all on shared storage; the first one boots.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<Disk>,
    /// Network interfaces.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub networks: Vec<Network>,
    /// Seed data for cloud-init.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// Consoles, on loopback only and off by default.
    #[serde(default)]
    pub console: Console,
    /// Where it may and should run.
    #[serde(default)]
    pub placement: Placement,
    /// What happens when it, or its host, fails.
    #[serde(default)]
    pub availability: Availability,
    /// How it moves.
    #[serde(default)]
    pub migration: MigrationSettings,
    /// Seconds a guest may take to shut down before it is killed.
    #[serde(default = "defaults::grace_seconds")]
    #[schemars(range(min = 0, max = 86400))]
    pub stop_grace_seconds: i32,
}

mod defaults {
    pub(super) fn grace_seconds() -> i32 {
        60
    }
    pub(super) fn one() -> i32 {
        1
    }
    pub(super) fn yes() -> bool {
        true
    }
}

/// Whether a VM is to run, and what starts it again.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RunPolicy {
    /// Runs; whatever ends it, it is started again.
    #[default]
    Always,
    /// Runs; started again unless its guest shut down cleanly.
    RerunOnFailure,
    /// Started and stopped by requests alone; nothing restarts it.
    Manual,
    /// Stopped.
    Halted,
}

/// Whether Stockade acts on a VM.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Management {
    /// Stockade starts, stops, moves and recovers it.
    #[default]
    Managed,
    /// Stockade only reports where it runs.
    Watched,
}

/// A hypervisor.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum HypervisorKind {
    /// KVM by libvirt's QEMU driver (emulated where a host has no KVM).
    #[default]
    KVM,
    /// Xen by libvirt's libxl driver.
    Xen,
}

/// Virtual CPUs.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Cpu {
    /// Number of vCPUs.
    #[serde(default = "defaults::one")]
    #[schemars(range(min = 1, max = 512))]
    pub cores: i32,
    /// CPU model by libvirt's name; absent: the model that every host offers,
    /// pinned at the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message("spec.cpu.model: use libvirt's name of it, like Skylake-Server-IBRS: letters, digits, '.', '_' and '-'"))]
    pub model: Option<String>,
}

impl Default for Cpu {
    fn default() -> Self {
        Self { cores: 1, model: None }
    }
}

/// Firmware of a guest.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Firmware {
    /// BIOS or UEFI. UEFI variables lie beside the first disk, which must be the VM's own to write,
    /// and go where it goes.
    #[serde(default)]
    pub kind: FirmwareKind,
}

/// A kind of firmware.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FirmwareKind {
    /// The hypervisor's BIOS.
    #[default]
    BIOS,
    /// UEFI with a variable store of the VM's own.
    UEFI,
}

/// One disk.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.existing), has(self.blank), has(self.image)].filter(x, x).size() == 1").message("spec.disks: give exactly one of existing, blank or image"),
    validation = Rule::new("!has(self.blank) || has(self.size)").message("spec.disks.size: a blank disk needs a size, for example 10Gi"),
    validation = Rule::new("!has(self.blank) || !self.readOnly").message("spec.disks.readOnly: nobody could ever write a blank disk that is read only; leave readOnly out"),
    validation = Rule::new("self.storage == oldSelf.storage && self.format == oldSelf.format").message("spec.disks: storage and format of a disk can't change; add a disk of another name and remove this one"),
    validation = Rule::new("!has(self.size) || !has(oldSelf.size) || !quantity(string(oldSelf.size)).isGreaterThan(quantity(string(self.size)))").message("spec.disks.size: a disk can't shrink; leave the size, or copy what is on it to a smaller disk"),
    validation = Rule::new("!has(self.existing) || !has(self.reclaim) || self.reclaim != 'Delete'").message("spec.disks.reclaim: an existing disk can't be Delete; only blank or imported ones can")
)]
pub struct Disk {
    /// Name within the VM.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("spec.disks.name: use lower-case letters and digits, with '-' between them, like data-1"))]
    pub name: String,
    /// The SharedStorage it lies on.
    #[schemars(length(min = 1, max = 63))]
    pub storage: String,
    /// A file that is there already.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub existing: Option<DiskPath>,
    /// An empty disk, made once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blank: Option<BlankDisk>,
    /// A copy of an image on the same storage, made once: qcow2 or raw, by what it says itself, in one
    /// file, and not the disk of a VM that may run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<DiskPath>,
    /// Format of the file. It is never guessed.
    #[serde(default)]
    pub format: DiskFormat,
    /// Size the guest sees; it may grow, never shrink.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && quantity(string(self)).isGreaterThan(quantity('0'))").message("spec.disks.size: write it like 10Gi"))]
    pub size: Option<Quantity>,
    /// What becomes of the file when the VM is deleted.
    #[serde(default)]
    pub reclaim: Reclaim,
    /// Read only; such a disk may be shared by several VMs.
    #[serde(default)]
    pub read_only: bool,
    /// How the guest sees it.
    #[serde(default)]
    pub bus: DiskBus,
}

/// A path on a storage.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("self.path.matches('^[A-Za-z0-9._/-]+$')").message("path: use letters, digits, '.', '_', '-' and '/' only"),
    validation = Rule::new("!self.path.startsWith('/')").message("path: name it below the storage's mount and the VM's namespace, without a leading slash"),
    validation = Rule::new("!self.path.split('/').exists(p, p == '..' || p == '.' || p == '')").message("path: leave out '.', '..' and empty parts"),
    validation = Rule::new("!self.path.split('/').exists(p, p.endsWith('.stockade') || p.endsWith('.nvram'))").message("path: names that end in .stockade or .nvram are Stockade's own; name another file")
)]
pub struct DiskPath {
    /// Relative to `<mount>/<namespace>/`. Names that end in `.stockade` or `.nvram` are Stockade's
    /// own: owner records, UEFI variables.
    #[schemars(length(min = 1, max = 512))]
    pub path: String,
}

/// An empty disk.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct BlankDisk {}

/// Format of a disk's file.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DiskFormat {
    /// Raw bytes.
    Raw,
    /// QEMU's qcow2 without a backing file.
    #[default]
    Qcow2,
}

/// What becomes of a disk's file when its VM is deleted.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reclaim {
    /// It stays, with its released owner record.
    #[default]
    Retain,
    /// It is deleted once its last epoch is settled.
    Delete,
}

/// How a guest sees a disk.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum DiskBus {
    /// virtio-blk.
    #[default]
    Virtio,
    /// AHCI.
    Sata,
    /// Parallel ATA, for guests without drivers.
    Ide,
}

/// One network interface: on a bridge of the host, or on a libvirt network.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.bridge) != has(self.network)").message("spec.networks: give exactly one of bridge or network"))]
pub struct Network {
    /// Name within the VM.
    #[schemars(length(min = 1, max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("spec.networks.name: use lower-case letters and digits, with '-' between them, like lan-1"))]
    pub name: String,
    /// A bridge on every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message("spec.networks.bridge: name a bridge that every host has, like br0"))]
    pub bridge: Option<String>,
    /// A libvirt network on every host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message("spec.networks.network: name a libvirt network that every host has, like default"))]
    pub network: Option<String>,
    /// MAC address; absent: made from the VM's uid, pinned at the first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 17))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f][02468ace](:[0-9a-f]{2}){5}$')").message("spec.networks.mac: give a unicast address like 52:54:00:12:34:56, in lower case, or leave it out"))]
    pub mac: Option<String>,
}

/// Seed data for cloud-init: inline, or from a Secret of the VM's namespace. The seed image is made
/// at each start; a change shows at the next, and never in a running guest.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.userData) != has(self.userDataSecret)").message("spec.cloudInit: give exactly one of userData or userDataSecret"))]
pub struct CloudInit {
    /// The user-data document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub user_data: Option<String>,
    /// Key of a Secret that holds the user-data document, as UTF-8. The chart must name the VM's
    /// namespace in rbac.secretNamespaces.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_data_secret: Option<SecretKeySelector>,
    /// The network-config document.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 16384))]
    pub network_data: Option<String>,
}

/// Consoles of a VM.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Console {
    /// A serial console.
    #[serde(default)]
    pub serial: bool,
    /// A screen, by VNC. No port of the host listens for it: `kubectl stockade vnc` alone gets there.
    #[serde(default)]
    pub vnc: bool,
}

/// Where a VM may and should run.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Placement {
    /// Hosts it may run on; empty: any.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub required_hosts: Vec<String>,
    /// Labels that a host must carry.
    #[serde(default)]
    pub host_selector: std::collections::BTreeMap<String, String>,
    /// Hosts it should run on, best first; hosts of one entry rank alike.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub preferred_hosts: Vec<HostRank>,
    /// Goes back by itself to a better-ranked host.
    #[serde(default)]
    pub failback: bool,
    /// VMs of its namespace that must run on the same host.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub together_with: Vec<String>,
    /// VMs of its namespace that must run on other hosts.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub apart_from: Vec<String>,
    /// VMs of its namespace that should run on the same host.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub prefers_together_with: Vec<String>,
    /// VMs of its namespace that should run on other hosts.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub prefers_apart_from: Vec<String>,
}

/// Hosts of one rank.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HostRank {
    /// Names of hosts.
    #[schemars(length(min = 1, max = 256))]
    pub hosts: Vec<String>,
}

/// What happens when a VM or its host fails.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Availability {
    /// Restart: started elsewhere when its host is proven dead. None: it waits for its host.
    #[serde(default)]
    pub recovery: Recovery,
    /// Higher goes first when hosts fail.
    #[serde(default)]
    #[schemars(range(min = -1000, max = 1000))]
    pub priority: i32,
    /// Starts retried on the same host after a failed one.
    #[serde(default = "defaults::one")]
    #[schemars(range(min = 0, max = 100))]
    pub max_restarts: i32,
    /// Further hosts tried after that.
    #[serde(default = "defaults::one")]
    #[schemars(range(min = 0, max = 100))]
    pub max_relocations: i32,
}

impl Default for Availability {
    fn default() -> Self {
        Self { recovery: Recovery::Restart, priority: 0, max_restarts: 1, max_relocations: 1 }
    }
}

/// What the death of its host means to a VM.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// It is started on another host.
    #[default]
    Restart,
    /// It waits for its host.
    None,
}

/// How a VM moves.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MigrationSettings {
    /// Moved live; otherwise by stop and start.
    #[serde(default = "defaults::yes")]
    pub live: bool,
    /// Bandwidth limit in MiB a second; 0: none.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub bandwidth_mib_per_second: i32,
    /// Longest pause at the switch-over in milliseconds; 0: the hypervisor's own.
    #[serde(default)]
    #[schemars(range(min = 0, max = 60_000))]
    pub downtime_limit_milliseconds: i32,
    /// Slow the guest down where it changes its memory faster than it is copied.
    #[serde(default)]
    pub auto_converge: bool,
    /// Connections that carry its memory (QEMU's multifd, which both hosts must know); 0: one, the
    /// plain way.
    #[serde(default)]
    #[schemars(range(min = 0, max = 64))]
    pub parallel_connections: i32,
    /// How long a copy may take, in seconds for each GiB of memory, begun ones included; it is called
    /// off after that. 0: no limit.
    #[serde(default)]
    #[schemars(range(min = 0, max = 86_400))]
    pub completion_seconds_per_gib: i32,
    /// Seconds without progress after which a copy is called off.
    #[serde(default = "progress_seconds")]
    #[schemars(range(min = 5, max = 86_400))]
    pub progress_seconds: i32,
}

fn progress_seconds() -> i32 {
    30
}

impl Default for MigrationSettings {
    fn default() -> Self {
        Self {
            live: true,
            bandwidth_mib_per_second: 0,
            downtime_limit_milliseconds: 0,
            auto_converge: false,
            parallel_connections: 0,
            completion_seconds_per_gib: 0,
            progress_seconds: progress_seconds(),
        }
    }
}

/// What is known of a VM. Written by the controller alone.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.epoch >= oldSelf.epoch").message("status.epoch: it never falls"))]
pub struct VirtualMachineStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// The STATUS column. Computed from the conditions; not a contract.
    #[serde(default)]
    pub printable_status: VmState,
    /// The host it runs or is placed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// The highest epoch that was ever ordered; never falls.
    #[serde(default)]
    pub epoch: i64,
    /// Orders that are not settled yet (at most the two sides of a move), the last one, and earlier
    /// ones that later orders have to name.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub placements: Vec<PlacedEpoch>,
    /// Failed attempts since it last ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failures: Option<Failures>,
    /// What is pinned for the VM's life.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pinned: Option<Pinned>,
    /// Addresses that its host has seen the guest with: leases of a libvirt network that the host
    /// serves, and its own neighbour table. Behind a bridge on which the host has no address there are
    /// none.
    #[serde(default)]
    #[schemars(length(max = 32))]
    pub addresses: Vec<String>,
    /// The last `stockade.dev/request` that was acted on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_handled_request: Option<String>,
    /// A Manual VM was started (true) or stopped (false) by request.
    #[serde(default)]
    pub manual_run: bool,
    /// Its guest shut down by itself under RerunOnFailure: it stays stopped until a start
    /// is requested or the spec changes the run policy.
    #[serde(default)]
    pub completed: bool,
    /// The host that a user's last move chose; failback off keeps the VM there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_to: Option<String>,
    /// The host that it waits for instead of being started elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waits_for: Option<WaitsFor>,
    /// The move that is under way, or whose last side is not settled yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<VmMove>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A move under way, as the VM's status holds it: set and cleared by compare-and-swap.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct VmMove {
    /// Name of the VirtualMachineMigration.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Uid of the VirtualMachineMigration: the identity of the move.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
    /// The host that it leaves.
    #[schemars(length(min = 1, max = 49))]
    pub source: String,
    /// The host that it goes to.
    #[schemars(length(min = 1, max = 49))]
    pub target: String,
    /// Live, or by stop and start.
    pub live: bool,
    /// Epoch of the source.
    pub source_epoch: i64,
    /// Epoch of the target; 0: not ordered yet. That of a move that was called off is burnt.
    #[serde(default)]
    pub epoch: i64,
    /// By stop and start: it could not start on the target and starts where it was.
    #[serde(default)]
    pub returning: bool,
}

/// The words of the STATUS column of a VM.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VmState {
    /// Executed by a host.
    Running,
    /// Stopped, as wished.
    Stopped,
    /// Ordered, or waiting for its order.
    #[default]
    Starting,
    /// Its guest was asked to stop.
    Stopping,
    /// Under way from one host to another.
    Migrating,
    /// Its host is lost or going down; it waits for proof, that host, or its start.
    Recovering,
    /// Wanted and nothing to prove, but no host fits.
    Unplaceable,
    /// May not be touched until something outside changes.
    Blocked,
    /// Its limits are used up.
    Error,
    /// Only watched.
    Unmanaged,
    /// Waits for its rebooting host, or for automation to be resumed.
    Held,
}

/// One epoch of a VM: one QEMU process on one boot of one host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PlacedEpoch {
    /// Above every epoch before it.
    pub epoch: i64,
    /// The host's name.
    pub host: String,
    /// The host's uid.
    pub host_uid: String,
    /// The boot that the order is for.
    pub boot_id: String,
    /// What is known of it.
    pub state: EpochState,
    /// It was taken for dead, and a later epoch was ordered: should it turn out to live, its memory
    /// is older than its disks, so that it is ended and never goes on.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub superseded: bool,
    /// Released, and its owner records may say otherwise: later orders go on naming it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unmarked: bool,
}

/// What is known of an epoch.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum EpochState {
    /// Ordered; it may be running.
    Ordered,
    /// The target of a live move that is not committed.
    Incoming,
    /// Said by its host: gone and drained.
    Released,
    /// Its boot is proven dead.
    ProvenDead,
}

impl EpochState {
    /// Whether nothing of this epoch can write any more.
    #[must_use]
    pub fn is_settled(self) -> bool {
        matches!(self, Self::Released | Self::ProvenDead)
    }
}

/// A host that a VM waits for instead of being started elsewhere.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct WaitsFor {
    /// The host.
    #[schemars(length(max = 253))]
    pub host: String,
    /// The policy's hostShutdown holds it; else its own recovery is None.
    #[serde(default)]
    pub held: bool,
}

/// Failed attempts since a VM last ran.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Failures {
    /// Starts that failed on the present host.
    #[serde(default)]
    pub restarts: i32,
    /// Hosts given up after their restarts, in order.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub tried_hosts: Vec<String>,
    /// Unplanned ends in a row; they space the next start.
    #[serde(default)]
    pub exits: i32,
    /// Starts in a row that something outside refused: a lock, an owner record, the storage.
    /// They use up no limit.
    #[serde(default)]
    pub refusals: i32,
    /// The last reason.
    #[serde(default)]
    pub message: String,
    /// The limits are used up at this generation; a later one tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_generation: Option<i64>,
}

/// What is pinned at a VM's first start so that every later host can take it in.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Pinned {
    /// Versioned machine type.
    #[serde(default)]
    pub machine_type: String,
    /// CPU model.
    #[serde(default)]
    pub cpu_model: String,
}
