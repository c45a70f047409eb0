//! `Host`: a machine that runs VMs. Spec is the user's, status the controller's.

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is declared of a host.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "Host",
    status = "HostStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "shost",
    category = "stockade",
    printcolumn(name = "State", type_ = "string", json_path = ".status.printableStatus"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".status.capacity.cpu"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.capacity.memory"),
    printcolumn(name = "Fencing", type_ = "string", json_path = ".status.conditions[?(@.type=='FencingReady')].reason"),
    printcolumn(name = "Boot", type_ = "string", json_path = ".status.bootId", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel,
    validation = Rule::new("self.metadata.name.size() <= 49 && self.metadata.name.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')").message("metadata.name: use a DNS label of at most 49 characters, it becomes the host's namespace stockade-host-<name>")
)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {
    /// Whether VMs may run here.
    #[serde(default)]
    pub mode: HostMode,
    /// Addresses, where they differ from the host's name.
    #[serde(default)]
    pub addresses: HostAddresses,
    /// Levels of fence devices, tried in order; all devices of a level are needed.
    #[serde(default)]
    #[schemars(length(max = 8))]
    pub fencing: Vec<FenceLevel>,
    /// The host resets itself by its watchdog when it has lost every path of life.
    #[serde(default)]
    pub self_fencing: bool,
    /// Kept free for the host itself.
    #[serde(default)]
    pub reserved: Reserved,
}

/// Whether VMs may run on a host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostMode {
    /// VMs start and stay here.
    #[default]
    Active,
    /// VMs stay; none comes.
    Cordoned,
    /// VMs are moved away; none comes; the host may be switched off.
    Maintenance,
}

/// Addresses of a host.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct HostAddresses {
    /// For people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[A-Za-z0-9.:\\[\\]-]+$')").message("spec.addresses.management: give one host name or IP address"))]
    pub management: Option<String>,
    /// For live moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[A-Za-z0-9.:\\[\\]-]+$')").message("spec.addresses.migration: give one host name or IP address"))]
    pub migration: Option<String>,
    /// As storage servers see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[A-Za-z0-9.:\\[\\]-]+$')").message("spec.addresses.storage: give one host name or IP address"))]
    pub storage: Option<String>,
}

/// Fence devices that are all needed to cut a host's power.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FenceLevel {
    /// Names of FenceDevices.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 253)))]
    pub devices: Vec<String>,
}

/// What a host keeps for itself.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Reserved {
    /// CPUs.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1024))]
    pub cpu: i32,
    /// Memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("isQuantity(string(self)) && !quantity(string(self)).isLessThan(quantity('0'))").message("spec.reserved.memory: write it like 2Gi"))]
    pub memory: Option<Quantity>,
}

/// What is known of a host. Written by the controller alone.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(oldSelf.hostUid) || (has(self.hostUid) && self.hostUid == oldSelf.hostUid)").message("status.hostUid: a host's identity can't change; delete the Host and declare it again for another machine"))]
pub struct HostStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// The STATUS column.
    #[serde(default)]
    pub printable_status: HostState,
    /// The machine's identity, claimed when it joined; never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_uid: Option<String>,
    /// The boot that was last seen to beat.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot_id: Option<String>,
    /// What VMs may use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<HostCapacity>,
    /// How life is seen, a path each, as of the last change of state.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub evidence: Vec<Evidence>,
    /// Progress of a drain; present in maintenance.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drain: Option<DrainProgress>,
    /// When its power was last to be cut because of a silence or a VM that would not end; written
    /// before that is ordered. The storm brake counts the host for ten minutes from then on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_shot_time: Option<Time>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// The words of the STATUS column of a host.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum HostState {
    /// Beats, is armed where it must be, and takes VMs.
    Ready,
    /// Has missed beats.
    Suspect,
    /// Silent to the API, alive on storage.
    Isolated,
    /// Silent on every path; nothing proven.
    Lost,
    /// Its power is being cut.
    Fencing,
    /// Its last boot is proven dead.
    Fenced,
    /// Silent, and no automatic proof can be had.
    AwaitingProof,
    /// Takes no new VM.
    Cordoned,
    /// Emptied, or being emptied.
    Maintenance,
    /// Said that it goes down.
    ShuttingDown,
    /// Went down cleanly.
    Stopped,
    /// Declared, never reported.
    #[default]
    Joining,
}

/// What VMs may use of a host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HostCapacity {
    /// CPUs.
    pub cpu: i32,
    /// Memory.
    pub memory: Quantity,
}

/// One path on which life is seen.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Evidence {
    /// `api`, or `storage/<name>`.
    #[schemars(length(min = 1, max = 128))]
    pub path: String,
    /// Seconds since the last beat that was seen.
    pub age_seconds: i32,
    /// Who saw it.
    #[schemars(length(max = 64))]
    pub observer: String,
}

/// How far a drain is.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct DrainProgress {
    /// VMs still here.
    pub remaining: i32,
    /// VMs that can't leave, with the reason.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub blocked: Vec<String>,
}
