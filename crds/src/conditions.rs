//! Condition types and how a set of conditions is kept.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

/// What the spec asks is true.
pub const READY: &str = "Ready";
/// The controller or agent is under way to what the spec asks. Present only while true.
pub const RECONCILING: &str = "Reconciling";
/// What the spec asks can't become true without a change from outside. Present only while true.
pub const STALLED: &str = "Stalled";
/// The API remembers every certificate and placement (safety §2.9).
pub const HISTORY_INTACT: &str = "HistoryIntact";
/// Some host executes the VM.
pub const RUNNING: &str = "Running";
/// A change of the spec takes effect only at the VM's next start.
pub const PENDING_RESTART: &str = "PendingRestart";
/// The VM runs on a host that its placement does not ask for, or beside rules.
pub const PLACED: &str = "Placed";
/// The host has a working fence device or an accepted self-fence.
pub const FENCING_READY: &str = "FencingReady";
/// The agent renews its Lease.
pub const AGENT_ALIVE: &str = "AgentAlive";
/// The policy's inequalities hold for all hosts.
pub const VALID: &str = "Valid";
/// At least one more host failure fits.
pub const TOLERATES_HOST_FAILURE: &str = "ToleratesHostFailure";
/// Automation is paused.
pub const PAUSED: &str = "Paused";
/// So many hosts are silent that nobody is shot without a human.
pub const STORM_BRAKE: &str = "StormBrake";
/// The host was asked to be emptied; whether it is.
pub const DRAINED: &str = "Drained";
/// A second copy of a VM was seen.
pub const DOUBLE_RUN: &str = "DoubleRun";

/// Abnormal-true types that are left out unless true.
const ABNORMAL_TRUE: [&str; 6] =
    [RECONCILING, STALLED, PENDING_RESTART, PAUSED, STORM_BRAKE, DOUBLE_RUN];

/// A condition as the planner decides it: without the time of its transition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decided {
    /// The condition's type.
    pub type_: &'static str,
    /// `Some(true)` True, `Some(false)` False, `None` Unknown.
    pub status: Option<bool>,
    /// CamelCase.
    pub reason: String,
    /// One sentence; names the remedy if there is one.
    pub message: String,
}

impl Decided {
    /// A condition with its reason and message.
    pub fn new(
        type_: &'static str,
        status: impl Into<Option<bool>>,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self { type_, status: status.into(), reason: reason.into(), message: message.into() }
    }
}

/// The conditions to store: the decided ones, each with the time of its last
/// transition kept from `old` if its status is the same.
#[must_use]
pub fn merge(old: &[Condition], decided: &[Decided], generation: i64, now: Time) -> Vec<Condition> {
    decided
        .iter()
        .filter(|d| d.status == Some(true) || !ABNORMAL_TRUE.contains(&d.type_))
        .map(|d| {
            let status = match d.status {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let kept = old.iter().find(|c| c.type_ == d.type_ && c.status == status);
            Condition {
                type_: d.type_.to_owned(),
                status: status.to_owned(),
                reason: d.reason.clone(),
                message: d.message.clone(),
                observed_generation: Some(generation),
                last_transition_time: kept
                    .map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
            }
        })
        .collect()
}

/// Whether a condition of this type is True.
#[must_use]
pub fn is_true(conditions: &[Condition], type_: &str) -> bool {
    conditions.iter().any(|c| c.type_ == type_ && c.status == "True")
}
