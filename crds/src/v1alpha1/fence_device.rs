//! `FenceDevice`: something that can cut a host's power and say whether it is cut.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is declared of a fence device.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "FenceDevice",
    status = "FenceDeviceStatus",
    derive = "PartialEq",
    derive = "Default",
    shortname = "sfd",
    category = "stockade",
    printcolumn(name = "Agent", type_ = "string", json_path = ".spec.agent"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
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
pub struct FenceDeviceSpec {
    /// The fence agent, for example `fence_ipmilan`.
    #[schemars(length(min = 7, max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^fence_[a-z0-9_]+$')").message("spec.agent: name a fence agent by its program, such as fence_ipmilan"), validation = Rule::new("!(self in ['fence_kdump','fence_heuristics_ping','fence_scsi','fence_mpath','fence_sbd','fence_compute','fence_cisco_mds','fence_dummy'])").message("spec.agent: this agent does not cut power, so it proves nothing; name one that does, such as fence_ipmilan"))]
    pub agent: String,
    /// Parameters of the agent, by its own names. Passwords belong into `secret`.
    #[serde(default)]
    #[x_kube(validation = Rule::new("!self.exists(k, k in ['password','passwd','action','port','plug'])").message("spec.parameters: password belongs into spec.secret, plug into spec.plugs, and action is Stockade's"))]
    pub parameters: BTreeMap<String, String>,
    /// The plug of each host that the device can cut.
    #[serde(default)]
    pub plugs: BTreeMap<String, String>,
    /// Secret in the controller's namespace; its keys are further parameters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub secret: Option<String>,
    /// Longest time one call may take.
    #[serde(default = "timeout")]
    #[schemars(range(min = 1, max = 600))]
    pub timeout_seconds: i32,
    /// Seconds between status tests; 0: none.
    #[serde(default = "test_interval")]
    #[schemars(range(min = 0, max = 86400))]
    pub test_interval_seconds: i32,
}

fn timeout() -> i32 {
    20
}

fn test_interval() -> i32 {
    300
}

/// What is known of a fence device.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct FenceDeviceStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// Hosts whose plug read on while the host beat, at this generation.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub trusted_hosts: Vec<String>,
    /// Hosts whose plug read off while the host beat.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub untrusted_hosts: Vec<String>,
    /// What plugs read when a person last asked (`kubectl stockade fence test`), one a host.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub asked: Vec<AskedReading>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// A reading that a person asked for.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AskedReading {
    /// The host whose plug it is.
    #[schemars(length(max = 49))]
    pub host: String,
    /// The id that they gave.
    #[schemars(length(max = 128))]
    pub request: String,
    /// What the plug read: `On`, `Off`, or the error.
    #[schemars(length(max = 512))]
    pub result: String,
}
