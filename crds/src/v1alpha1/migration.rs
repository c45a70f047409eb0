//! `VirtualMachineMigration`: one move of one VM.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which VM, and where to.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "VirtualMachineMigration",
    namespaced,
    status = "VirtualMachineMigrationStatus",
    derive = "PartialEq",
    shortname = "svmm",
    category = "stockade",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm"),
    printcolumn(name = "Outcome", type_ = "string", json_path = ".status.outcome"),
    printcolumn(name = "From", type_ = "string", json_path = ".status.source"),
    printcolumn(name = "To", type_ = "string", json_path = ".status.target"),
    printcolumn(name = "Progress", type_ = "integer", json_path = ".status.progress.percent"),
    printcolumn(
        name = "Downtime-ms",
        type_ = "integer",
        json_path = ".status.downtimeMilliseconds",
        priority = 1
    ),
    printcolumn(
        name = "Message",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].message",
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self == oldSelf").message("spec: a migration can't change; delete it to abort and make a new one"))]
pub struct VirtualMachineMigrationSpec {
    /// The VM, of the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub vm: String,
    /// The target; absent: chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 49))]
    pub target: Option<String>,
    /// Live, or by stop and start; absent: as the VM's `spec.migration.live` says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub live: Option<bool>,
}

/// What has become of a move.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineMigrationStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// Pending while it is under way.
    #[serde(default)]
    pub outcome: MigrationOutcome,
    /// Host that it left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Host that it goes to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Epoch of the target.
    #[serde(default)]
    pub epoch: i64,
    /// How far its live copy is, looked at every two seconds at most; of a move that is over, what
    /// it took in all. Absent: nothing was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress: Option<MigrationProgress>,
    /// For how long the guest stood still at the switch-over, in milliseconds. Absent: not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_milliseconds: Option<i64>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How far a live copy is, as the hypervisor counts it.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct MigrationProgress {
    /// How much of the memory the target holds as it is now, in percent. It falls where the guest
    /// changes its memory faster than it is copied.
    #[serde(default)]
    pub percent: i32,
    /// Bytes of memory.
    #[serde(default)]
    pub total_bytes: i64,
    /// Bytes that were sent; more than the memory if parts of it were sent again.
    #[serde(default)]
    pub processed_bytes: i64,
    /// Bytes that are still to be sent.
    #[serde(default)]
    pub remaining_bytes: i64,
    /// Bytes that the guest changes in a second.
    #[serde(default)]
    pub dirty_bytes_per_second: i64,
    /// Bytes that are sent in a second.
    #[serde(default)]
    pub bytes_per_second: i64,
    /// Milliseconds that the copy has taken.
    #[serde(default)]
    pub elapsed_milliseconds: i64,
}

/// What has become of a move.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MigrationOutcome {
    /// Waiting or under way.
    #[default]
    Pending,
    /// The VM runs on the target and nothing is left on the source.
    Succeeded,
    /// The VM did not move.
    Failed,
    /// Checks said no; nothing was done at any host.
    Refused,
    /// Deleted before it was done.
    Aborted,
}
