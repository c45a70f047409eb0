//! `HostFence`: the certificate for one boot of one host.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// For which boot, and a human's word if there is one.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "HostFence",
    status = "HostFenceStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "shf",
    category = "stockade",
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.host"),
    printcolumn(name = "Proof", type_ = "string", json_path = ".status.proof"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".spec.reason"),
    printcolumn(name = "Boot", type_ = "string", json_path = ".spec.bootId", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.host == oldSelf.host && self.hostUid == oldSelf.hostUid && self.bootId == oldSelf.bootId").message("spec: host, hostUid and bootId can't change; a certificate is for one boot"))]
pub struct HostFenceSpec {
    /// The host's name.
    #[schemars(length(min = 1, max = 49))]
    pub host: String,
    /// The host's uid.
    #[schemars(length(min = 1, max = 128))]
    pub host_uid: String,
    /// The boot.
    #[schemars(length(min = 1, max = 128))]
    pub boot_id: String,
    /// Why it was opened.
    #[serde(default)]
    #[schemars(length(max = 512))]
    pub reason: String,
    /// A human's word that this boot is dead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub confirmation: Option<Confirmation>,
}

/// A human's word.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Confirmation {
    /// Why they are sure.
    #[schemars(length(min = 3, max = 512))]
    pub reason: String,
    /// The user; admission checks that it is theirs.
    #[schemars(length(min = 1, max = 256))]
    pub by: String,
    /// They know that a device reads on.
    #[serde(default)]
    pub although_device_reads_on: bool,
}

/// What proves a boot dead.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum ProofKind {
    /// Its power was read off (safety §3).
    Power,
    /// Longer silent than a host that resets itself can live (safety §4).
    Elapsed,
    /// A human's word (safety §5).
    Human,
}

/// What was tried and read, and the proof.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct HostFenceStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// The proof, while it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<ProofKind>,
    /// Why it does not stand any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<String>,
    /// A human's word that came while the host showed life: it never counts, a new one may.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused_confirmation: Option<Confirmation>,
    /// The storages at which the boot is denied.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub denied: Vec<String>,
    /// The storages at which its locks are broken or need no breaking.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub locks_broken: Vec<String>,
    /// The last attempts and readings, oldest first.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub attempts: Vec<FenceAttempt>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One call of a fence device.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FenceAttempt {
    /// The FenceDevice.
    #[schemars(length(max = 253))]
    pub device: String,
    /// What was asked.
    pub action: FenceAction,
    /// What came of it: `On`, `Off`, `Done`, or the error.
    #[schemars(length(max = 512))]
    pub result: String,
}

/// What a fence device is asked.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum FenceAction {
    /// Read the power.
    Status,
    /// Cut it.
    #[serde(rename = "PowerOff")]
    Off,
    /// Give it back.
    #[serde(rename = "PowerOn")]
    On,
}
