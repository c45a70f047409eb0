//! `AvailabilityPolicy`: every delay and limit. Exactly one, named `default`.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ProofKind;

/// Delays, limits and choices of the whole cluster.
#[derive(CustomResource, JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "AvailabilityPolicy",
    plural = "availabilitypolicies",
    status = "AvailabilityPolicyStatus",
    derive = "PartialEq",
    shortname = "sap",
    category = "stockade",
    printcolumn(name = "Automation", type_ = "string", json_path = ".spec.automation"),
    printcolumn(name = "Valid", type_ = "string", json_path = ".status.conditions[?(@.type=='Valid')].status"),
    printcolumn(name = "Tolerates", type_ = "integer", json_path = ".status.tolerates"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel,
    validation = kube::core::cel::Rule::new("self.metadata.name == 'default'").message("metadata.name: there is one AvailabilityPolicy and its name is default"),
    validation = kube::core::cel::Rule::new("self.spec.heartbeatSeconds * 2 < self.spec.suspectSeconds + 1").message("spec.suspectSeconds: make it at least twice heartbeatSeconds, one lost beat is no suspicion"),
    validation = kube::core::cel::Rule::new("self.spec.suspectSeconds <= self.spec.actSeconds").message("spec.actSeconds: make it at least suspectSeconds"),
    validation = kube::core::cel::Rule::new("self.spec.selfFence.stopSeconds > self.spec.heartbeatSeconds * 2").message("spec.selfFence.stopSeconds: make it more than twice heartbeatSeconds, or hosts reset themselves for one lost beat")
)]
#[serde(rename_all = "camelCase", default)]
pub struct AvailabilityPolicySpec {
    /// Active, or Paused: nothing is fenced, started, stopped or moved; running VMs run on.
    pub automation: Automation,
    /// Interval of beats on each path of life.
    #[schemars(range(min = 1, max = 300))]
    pub heartbeat_seconds: i32,
    /// Silence after which a host is Suspect.
    #[schemars(range(min = 2, max = 3600))]
    pub suspect_seconds: i32,
    /// Silence on two paths after which a host is fenced.
    #[schemars(range(min = 2, max = 3600))]
    pub act_seconds: i32,
    /// Any of these lists, all of each, proves a boot dead.
    #[schemars(length(min = 1, max = 8), inner(length(min = 1, max = 3)))]
    pub accepted_proofs: Vec<Vec<ProofKind>>,
    /// So many hosts silent without a standing proof stop all automatic fencing;
    /// absent: max(2, 30 % of the hosts).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub storm_brake_hosts: Option<i32>,
    /// A host that is silent to the API while its storage beat goes on.
    pub isolated_host: IsolatedHost,
    /// Seconds that a host may be isolated before `Fence` acts.
    #[schemars(range(min = 1, max = 86_400))]
    pub isolated_seconds: i32,
    /// What a clean shutdown or reboot of a host means to its VMs.
    pub host_shutdown: HostShutdown,
    /// Longest time that the agent holds a shutdown back.
    #[schemars(range(min = 1, max = 86_400))]
    pub host_shutdown_limit_seconds: i32,
    /// A live host whose VM would not die.
    pub stop_failure: StopFailure,
    /// A second copy of a VM.
    pub double_run: DoubleRunPolicy,
    /// What a host does with its VMs when it reaches no API for long.
    pub api_loss: ApiLoss,
    /// Seconds without the API before `apiLoss: Stop` acts.
    #[schemars(range(min = 10, max = 86_400))]
    pub api_loss_seconds: i32,
    /// Moves that level the load of the hosts.
    pub rebalance: Rebalance,
    /// Seconds that load must have been uneven before it is levelled; so between two rounds too.
    #[schemars(range(min = 1, max = 86_400))]
    pub rebalance_hold_seconds: i32,
    /// Moves at once that a host takes part in.
    #[schemars(range(min = 1, max = 64))]
    pub migrations_per_host: i32,
    /// Moves at once in the cluster.
    #[schemars(range(min = 1, max = 1024))]
    pub migrations_per_cluster: i32,
    /// Timings of hosts that reset themselves.
    pub self_fence: SelfFence,
    /// Resumes automation after the API went back: the pair to go on with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resume_from: Option<Lineage>,
}

impl Default for AvailabilityPolicySpec {
    fn default() -> Self {
        Self {
            automation: Automation::Active,
            heartbeat_seconds: 2,
            suspect_seconds: 6,
            act_seconds: 8,
            accepted_proofs: vec![vec![ProofKind::Power], vec![ProofKind::Human]],
            storm_brake_hosts: None,
            isolated_host: IsolatedHost::Wait,
            isolated_seconds: 60,
            host_shutdown: HostShutdown::Conditional,
            host_shutdown_limit_seconds: 300,
            stop_failure: StopFailure::Block,
            double_run: DoubleRunPolicy::Block,
            api_loss: ApiLoss::Run,
            api_loss_seconds: 300,
            rebalance: Rebalance::Never,
            rebalance_hold_seconds: 60,
            migrations_per_host: 2,
            migrations_per_cluster: 16,
            self_fence: SelfFence::default(),
            resume_from: None,
        }
    }
}

/// Whether Stockade acts.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Automation {
    /// It acts.
    #[default]
    Active,
    /// It orders nothing; watchdogs are disarmed; wishes are kept.
    Paused,
}

/// A host that is silent to the API while its storage beat goes on.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IsolatedHost {
    /// Its VMs run on.
    #[default]
    Wait,
    /// It is fenced after `isolatedSeconds`.
    Fence,
}

/// What a clean shutdown of a host means to its VMs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HostShutdown {
    /// Reboot: they wait for it. Shutdown: they start elsewhere.
    #[default]
    Conditional,
    /// They wait for it.
    Freeze,
    /// They start elsewhere.
    Failover,
    /// They are moved first.
    Migrate,
}

/// A live host whose VM would not die.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StopFailure {
    /// The VM is Blocked.
    #[default]
    Block,
    /// The host is fenced.
    Fence,
}

/// A second copy of a VM.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoubleRunPolicy {
    /// An alarm; nothing is done.
    #[default]
    Block,
    /// The copy that was ordered stays.
    StopStale,
    /// All are stopped, one is started.
    StopAll,
}

/// A host that reaches no API for long.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ApiLoss {
    /// Its VMs run on.
    #[default]
    Run,
    /// It stops them.
    Stop,
}

/// Moves that level the load.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Rebalance {
    /// None.
    #[default]
    Never,
    /// By declared sizes.
    Requests,
    /// By what the hypervisors measure.
    Usage,
}

/// Timings of safety §4, in seconds.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase", default)]
pub struct SelfFence {
    /// T_stop: silence on a path after which the host kills its VMs and stops feeding.
    #[schemars(range(min = 5, max = 3600))]
    pub stop_seconds: i32,
    /// T_kill: time to kill the VMs' processes.
    #[schemars(range(min = 1, max = 600))]
    pub kill_seconds: i32,
    /// T_watchdog: the device's own time-out.
    #[schemars(range(min = 5, max = 600))]
    pub watchdog_seconds: i32,
    /// Largest drift of a clock, in thousandths.
    #[schemars(range(min = 1, max = 200))]
    pub drift_per_mille: i32,
    /// Added to the formula.
    #[schemars(range(min = 1, max = 600))]
    pub margin_seconds: i32,
    /// Watchdogs that are relied on although they are software, or a virtual machine's: what
    /// `/sys/class/watchdog/watchdog0/identity` says.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(min = 1, max = 64)))]
    pub trust_watchdogs: Vec<String>,
}

impl Default for SelfFence {
    fn default() -> Self {
        Self {
            stop_seconds: 20,
            kill_seconds: 5,
            watchdog_seconds: 15,
            drift_per_mille: 50,
            margin_seconds: 5,
            trust_watchdogs: Vec::new(),
        }
    }
}

/// Identity of the API's history: it changes when the API went back (safety §2.9).
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Lineage {
    /// Uid of the object that carries the counter.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Raised before each certificate and placement.
    pub counter: i64,
}

impl std::fmt::Display for Lineage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.uid, self.counter)
    }
}

impl std::str::FromStr for Lineage {
    type Err = String;

    /// Reads `<uid>/<counter>`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || format!("{text:?} is no history: <uid>/<counter> is");
        let (uid, counter) = text.rsplit_once('/').ok_or_else(wrong)?;
        let counter = counter.parse().map_err(|_| wrong())?;
        Ok(Self { uid: uid.to_owned(), counter })
    }
}

/// What is known of the policy and of the whole.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AvailabilityPolicyStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// How many host failures still fit.
    #[serde(default)]
    pub tolerates: i32,
    /// Hosts that are silent without a proof, as the brake counts them.
    #[serde(default)]
    pub brake_count: i32,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
