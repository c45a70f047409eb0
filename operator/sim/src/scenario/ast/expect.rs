//! Conditions and expectations.

use std::collections::BTreeMap;

use super::super::words::{
    AgentIs, By, ConditionStatus, HostWord, Outcome, Proof, VmWord, WorldEvent,
};
use super::{Line, Millis, Name, ObjectRef, Time};

/// Something that is true or not at an instant.
#[derive(Clone, Debug, PartialEq)]
pub enum Condition {
    /// Of VMs, each of them.
    Vm(Box<VmCondition>),
    /// Of hosts, each of them.
    Host(Box<HostCondition>),
    /// Of another object.
    Object(ObjectRef, Box<ObjectFields>),
    /// `{fenced: HOST}`: one of these hosts is fenced; under `never` also: one of them was shot.
    Fenced(Vec<Name>),
    /// Something has happened.
    Event(Box<EventCondition>),
    /// One of these holds.
    Any(Vec<Condition>),
    /// All of these hold.
    All(Vec<Condition>),
}

/// A range of numbers, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    /// At least.
    pub min: u64,
    /// At most.
    pub max: Option<u64>,
}

impl Range {
    /// Exactly `n`.
    #[must_use]
    pub fn exactly(n: u64) -> Self {
        Self { min: n, max: Some(n) }
    }
}

/// A number, a range of them, or alternatives of both; never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Count(pub Vec<Range>);

impl Count {
    /// Exactly `n`.
    #[must_use]
    pub fn exactly(n: u64) -> Self {
        Self(vec![Range::exactly(n)])
    }
    /// Whether `n` is in it.
    #[must_use]
    pub fn contains(&self, n: u64) -> bool {
        self.0.iter().any(|r| n >= r.min && r.max.is_none_or(|max| n <= max))
    }
}

/// What may be said of a VM. Lists are alternatives (`with` and `not_with` excepted); empty ones
/// say nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VmCondition {
    /// The VMs, each of which it must be true of.
    pub vms: Vec<Name>,
    /// Some host executes it.
    pub running: Option<bool>,
    /// How many hosts do.
    pub copies: Option<Count>,
    /// It runs on one of these.
    pub host: Vec<Name>,
    /// It runs on none of these.
    pub not_on: Vec<Name>,
    /// It runs on one host with all of these.
    pub with: Vec<Name>,
    /// It does not run on one host with any of these.
    pub not_with: Vec<Name>,
    /// A live move of it is under way.
    pub migrating: Option<bool>,
    /// Who holds its lock; `None` in the list: nobody.
    pub lock_holder: Vec<Option<Name>>,
    /// Its STATUS column.
    pub state: Vec<VmWord>,
    /// Its object.
    pub object: ObjectFields,
}

/// What may be said of a host. Lists are alternatives; empty ones say nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostCondition {
    /// The hosts, each of which it must be true of.
    pub hosts: Vec<Name>,
    /// It has power.
    pub powered: Option<bool>,
    /// Its STATUS column.
    pub state: Vec<HostWord>,
    /// A certificate with proof stands against the boot it was lost in.
    pub fenced: Option<bool>,
    /// The proof of that certificate.
    pub proof: Vec<Proof>,
    /// Its watchdog is armed.
    pub armed: Option<bool>,
    /// Its agent.
    pub agent: Vec<AgentIs>,
    /// How many VMs run there.
    pub vms: Option<Count>,
    /// Sum of the sizes running there, MiB.
    pub memory_mib: Option<Count>,
    /// Its object.
    pub object: ObjectFields,
}

/// What may be said of any object of the API.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObjectFields {
    /// Whether it exists.
    pub exists: Option<bool>,
    /// One condition of it is like this.
    pub condition: Option<ConditionMatch>,
}

/// A Kubernetes condition; lists are alternatives, empty ones say nothing.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ConditionMatch {
    /// Its types; empty: any.
    pub types: Vec<String>,
    /// Its status; if neither this, a reason nor a message is given: True.
    pub status: Vec<ConditionStatus>,
    /// Its reason.
    pub reason: Vec<String>,
    /// Parts of its message, in any case.
    pub message: Vec<String>,
}

/// What kind of event.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum EventKind {
    /// What the simulated world saw.
    World(WorldEvent),
    /// A Kubernetes Event of this reason.
    Reason(String),
}

/// An event that has happened. Lists are alternatives; empty ones say nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct EventCondition {
    /// One of these.
    pub events: Vec<EventKind>,
    /// Of one of these VMs.
    pub vm: Vec<Name>,
    /// At one of these hosts.
    pub host: Vec<Name>,
    /// Towards one of these hosts.
    pub to: Vec<Name>,
    /// Done by one of these.
    pub by: Vec<By>,
    /// Through one of these fence devices.
    pub device: Vec<Name>,
    /// With one of these holding the lock.
    pub holder: Vec<Name>,
    /// Of an object of one of these kinds.
    pub kind: Vec<String>,
    /// How often; absent: at least once.
    pub count: Option<Count>,
}

/// One expectation.
#[derive(Clone, Debug, PartialEq)]
pub struct Expectation {
    /// What must hold.
    pub form: Form,
    /// Where it stands.
    pub line: Line,
}

/// A window of time; what is absent is the run's own start and end.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Window {
    /// Its start.
    pub after: Option<Time>,
    /// Its end.
    pub before: Option<Time>,
}

/// The forms of expectations.
#[derive(Clone, Debug, PartialEq)]
pub enum Form {
    /// True at the run's end.
    AtEnd(Condition),
    /// True at a time, before its steps.
    At(Condition, Time),
    /// True at some instant of [after, after + within].
    Within(Condition, Millis, Option<Time>),
    /// True at no instant of the window.
    Never(Condition, Window),
    /// True at every instant of the window.
    Always(Condition, Window),
    /// An event, so often in the window.
    Count(EventCondition, Window),
    /// Each comes true, none before the one in front of it; from `after` on.
    Order(Vec<Condition>, Option<Time>),
    /// A VM ran on exactly these hosts in this order.
    Ran(Vec<Name>, Vec<RanPattern>, Window),
    /// Its starts, failed or not, were tried on exactly these hosts in this order.
    Tried(Vec<Name>, Vec<RanPattern>, Window),
    /// Nothing was done to it.
    Untouched(Vec<Name>, Window),
    /// What had become of a user's order at the run's end; lists are alternatives, empty ones say
    /// nothing.
    Step {
        /// Id of the step.
        step: String,
        /// Its outcome.
        outcome: Vec<Outcome>,
        /// Parts of its message, in any case.
        message: Vec<String>,
    },
    /// A fence device was once called with all of these parameters.
    Device {
        /// The device.
        device: Name,
        /// The parameters.
        received: BTreeMap<String, String>,
    },
}

/// One element of `ran` and `tried`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RanPattern {
    /// One of these hosts.
    OneOf(Vec<Name>),
    /// Any number of any hosts.
    Anything,
}
