//! `LockManager`: a lock a VM, the second guard beside owner records.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is declared of a lock manager.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "LockManager",
    status = "LockManagerStatus",
    derive = "PartialEq",
    shortname = "slm",
    category = "stockade",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Kind", type_ = "string", json_path = ".spec.kind"),
    printcolumn(name = "Storage", type_ = "string", json_path = ".spec.storage"),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.kind == oldSelf.kind && self.storage == oldSelf.storage").message("spec: kind and storage can't change; make a new LockManager and delete this one"))]
pub struct LockManagerSpec {
    /// Which daemon keeps the locks.
    pub kind: LockKind,
    /// The SharedStorage that holds the lockspace.
    #[schemars(length(min = 1, max = 63))]
    pub storage: String,
    /// Further storages whose VMs are locked there, beside those of `storage` itself: so the locks may
    /// lie on an export of their own.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 63)))]
    pub guards: Vec<String>,
    /// Labels of the hosts it serves; empty: all. At most one LockManager selects a host.
    #[serde(default)]
    pub host_selector: BTreeMap<String, String>,
    /// Maintenance: the lock server may go away; starts and recovery are refused meanwhile.
    #[serde(default)]
    pub mode: LockMode,
}

impl LockManagerSpec {
    /// Whether VMs that write to this storage are locked by it.
    #[must_use]
    pub fn covers(&self, storage: &str) -> bool {
        self.storage == storage || self.guards.iter().any(|guarded| guarded == storage)
    }
}

/// A lock daemon.
#[derive(
    Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
#[serde(rename_all = "lowercase")]
pub enum LockKind {
    /// libvirt's virtlockd: POSIX locks on the storage.
    Virtlockd,
    /// sanlock: leases on the storage, guarded by a watchdog.
    Sanlock,
}

/// Whether locks must be held.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LockMode {
    /// A VM starts only with its lock held.
    #[default]
    Active,
    /// Running VMs run on without the lock server; nothing starts.
    Maintenance,
}

/// What is known of a lock manager.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LockManagerStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// Hosts that keep their locks by it.
    #[serde(default)]
    pub ready_hosts: i32,
    /// Seconds from a host's last renewal until another host may have its locks; 0: as soon as the
    /// storage's server has dropped them.
    #[serde(default)]
    pub release_seconds: i32,
    /// Host ids of sanlock by host uid; none is ever given to another host.
    #[serde(default)]
    pub host_ids: BTreeMap<String, i32>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
