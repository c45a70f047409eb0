//! `VirtualMachineConsole`: a ticket for one console of one VM.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which console, and what its ticket is known by.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "VirtualMachineConsole",
    namespaced,
    status = "VirtualMachineConsoleStatus",
    derive = "PartialEq",
    shortname = "svmc",
    category = "stockade",
    printcolumn(name = "VM", type_ = "string", json_path = ".spec.vm"),
    printcolumn(name = "Device", type_ = "string", json_path = ".spec.device"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.host"),
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
#[x_kube(validation = Rule::new("self == oldSelf").message("spec: a console's ticket can't change; delete it and make a new one"))]
pub struct VirtualMachineConsoleSpec {
    /// The VM, of the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub vm: String,
    /// Which of its consoles.
    pub device: ConsoleDevice,
    /// SHA-256 of the ticket, in lower-case hex. The ticket itself goes to the host alone.
    #[schemars(length(equal = 64), regex(pattern = "^[0-9a-f]{64}$"))]
    pub ticket_hash: String,
}

/// A console of a VM.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConsoleDevice {
    /// Its serial line.
    Serial,
    /// Its screen.
    VNC,
}

/// Where the ticket is taken.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VirtualMachineConsoleStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// How it stands.
    #[serde(default)]
    pub state: ConsoleState,
    /// The host that the VM runs on, the name in its certificate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// Address and port where that host takes the ticket, over TLS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// The authority that signed the host's certificate, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// How a ticket stands.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConsoleState {
    /// Its host does not take it yet.
    #[default]
    Pending,
    /// Its host takes it, once.
    Waiting,
    /// It was shown, and the console is open.
    Open,
    /// It is worth nothing any more.
    Closed,
}
