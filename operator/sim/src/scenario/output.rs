//! The lines that a run prints: for people, and as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

use super::ast::{EventKind, Millis, Name, Scenario};
use super::check::Failure;
use super::observe::{SimEvent, View};

/// Whom an event is about, and its details.
fn subject_and_details(event: &SimEvent) -> (String, String) {
    let mut details = Vec::new();
    let subject = match (&event.vm, &event.host) {
        (Some(vm), host) => {
            details.extend(host.as_ref().map(|h| format!("on {h}")));
            vm.clone()
        }
        (None, Some(host)) => host.clone(),
        (None, None) => event.object_kind.clone().unwrap_or_else(|| "-".to_owned()),
    };
    details.extend(event.to.as_ref().map(|to| format!("to {to}")));
    details.extend(event.by.map(|by| format!("by {by}")));
    details.extend(event.device.as_ref().map(|d| format!("through {d}")));
    details.extend(event.holder.as_ref().map(|h| format!("held by {h}")));
    details.extend(event.detail.clone());
    (subject, details.join(", "))
}

/// `time  subject  event  details`, in columns.
#[must_use]
pub fn line(event: &SimEvent) -> String {
    let (subject, details) = subject_and_details(event);
    let text = format!("{:>10}  {subject:<12}  {:<16}  {details}", time(event.t), event.word());
    text.trim_end().to_owned()
}

/// Seconds with their milliseconds.
#[must_use]
pub fn time(t: Millis) -> String {
    format!("{}.{:03}", t / 1000, t % 1000)
}

/// One event as a JSON line: the four columns, and what the details are made of.
#[must_use]
pub fn json(event: &SimEvent) -> String {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Record<'a> {
        time: f64,
        subject: String,
        event: &'a str,
        details: String,
        #[serde(skip_serializing_if = "is_false")]
        kubernetes: bool,
        #[serde(skip_serializing_if = "Option::is_none")]
        vm: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        host: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        to: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        device: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        holder: Option<&'a str>,
        #[serde(skip_serializing_if = "Option::is_none")]
        kind: Option<&'a str>,
    }
    let (subject, details) = subject_and_details(event);
    to_json(&Record {
        time: seconds(event.t),
        subject,
        event: event.word(),
        details,
        kubernetes: matches!(event.kind, EventKind::Reason(_)),
        vm: event.vm.as_deref(),
        host: event.host.as_deref(),
        to: event.to.as_deref(),
        by: event.by.map(|b| b.to_string()),
        device: event.device.as_deref(),
        holder: event.holder.as_deref(),
        kind: event.object_kind.as_deref(),
    })
}

/// The last record of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Name of the scenario.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// Nothing failed and nothing was violated.
    pub passed: bool,
    /// Expectations that did not hold.
    pub failures: Vec<Failure>,
    /// Invariants that did not hold, one text each.
    pub violations: Vec<String>,
    /// The state at the end.
    pub end: End,
}

/// The state at a run's end, of what the scenario names at its start.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct End {
    /// VMs by name.
    pub vms: BTreeMap<Name, VmEnd>,
    /// Hosts by name.
    pub hosts: BTreeMap<Name, HostEnd>,
}

/// A VM at a run's end.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VmEnd {
    /// The hosts that execute it.
    pub hosts: Vec<Name>,
    /// Its STATUS column.
    pub state: Option<String>,
    /// Who holds its lock.
    pub lock_holder: Option<Name>,
}

/// A host at a run's end.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HostEnd {
    /// Whether it has power.
    pub powered: bool,
    /// Its STATUS column.
    pub state: Option<String>,
    /// Whether a certificate with proof stands against it.
    pub fenced: bool,
    /// How many VMs run there.
    pub vms: usize,
}

impl Verdict {
    /// The verdict on a run that ended in the state of `view`.
    #[must_use]
    pub fn new(
        scenario: &Scenario,
        seed: u64,
        failures: Vec<Failure>,
        violations: Vec<String>,
        view: &dyn View,
    ) -> Self {
        let vm = |name: &Name| {
            let end = VmEnd {
                hosts: view.vm_hosts(name),
                state: view.vm_state(name),
                lock_holder: view.vm_lock_holder(name),
            };
            (name.clone(), end)
        };
        let host = |name: &Name| {
            let end = HostEnd {
                powered: view.host_powered(name),
                state: view.host_state(name),
                fenced: view.host_proof(name).is_some(),
                vms: view.host_vms(name).len(),
            };
            (name.clone(), end)
        };
        Self {
            scenario: scenario.name.clone(),
            seed,
            passed: failures.is_empty() && violations.is_empty(),
            failures,
            violations,
            end: End {
                vms: scenario.vms.iter().map(|v| vm(&v.name)).collect(),
                hosts: scenario.hosts.iter().map(|h| host(&h.name)).collect(),
            },
        }
    }

    /// As one JSON line.
    #[must_use]
    pub fn json(&self) -> String {
        to_json(self)
    }

    /// For people: one line, and one more a failure and violation.
    #[must_use]
    pub fn lines(&self, file: &str) -> String {
        let word = if self.passed { "passed" } else { "FAILED" };
        let mut text = format!("{word}  {}  seed {}", self.scenario, self.seed);
        for violation in &self.violations {
            text += &format!("\n  violation: {violation}");
        }
        for failure in &self.failures {
            let Failure { expectation: _, text: expected, seen, line } = failure;
            text += &format!("\n  {file}:{line}: {expected}\n      seen: {seen}");
        }
        text
    }
}

fn seconds(t: Millis) -> f64 {
    t as f64 / 1000.0
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_false(value: &bool) -> bool {
    !value
}

/// Our own records always serialise; should one not, the line says why.
fn to_json<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value)
        .unwrap_or_else(|error| serde_json::json!({ "error": error.to_string() }).to_string())
}
