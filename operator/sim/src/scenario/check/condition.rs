//! Conditions: whether they hold now, and what is seen instead.

use super::super::ast::{
    Condition, ConditionMatch, EventCondition, EventKind, HostCondition, Name, ObjectFields,
    ObjectRef, VmCondition,
};
use super::super::observe::{SimEvent, View};
use super::super::words::{AgentIs, Word as _, WorldEvent};

/// A condition with a counter for each event it asks for. Counters run only while the window of
/// what it belongs to is open: "has happened" means since then.
#[derive(Debug)]
pub(super) struct Tracker {
    node: Node,
    leaves: Vec<(EventCondition, u64)>,
}

#[derive(Debug)]
enum Node {
    Vm(VmCondition),
    Host(HostCondition),
    Object(ObjectRef, ObjectFields),
    /// Hosts, and the leaf that counts shots at them.
    Fenced(Vec<Name>, Option<usize>),
    Event(usize),
    Any(Vec<Node>),
    All(Vec<Node>),
}

impl Tracker {
    /// `never`: a host that was shot counts as fenced.
    pub fn new(condition: &Condition, never: bool) -> Self {
        let mut leaves = Vec::new();
        let node = compile(condition, never, &mut leaves);
        Self { node, leaves }
    }

    /// Counts an event that happened while the window is open.
    pub fn count(&mut self, event: &SimEvent) {
        for (wanted, n) in &mut self.leaves {
            if matches(wanted, event) {
                *n += 1;
            }
        }
    }

    /// Whether it holds.
    pub fn holds(&self, view: &dyn View) -> bool {
        self.eval(&self.node, view)
    }

    fn eval(&self, node: &Node, view: &dyn View) -> bool {
        match node {
            Node::Vm(c) => c.vms.iter().all(|vm| vm_holds(c, vm, view)),
            Node::Host(c) => c.hosts.iter().all(|host| host_holds(c, host, view)),
            Node::Object(object, fields) => object_holds(fields, object, view),
            Node::Fenced(hosts, shots) => {
                hosts.iter().any(|h| view.host_proof(h).is_some())
                    || shots.is_some_and(|leaf| self.happened(leaf))
            }
            Node::Event(leaf) => self.happened(*leaf),
            Node::Any(nodes) => nodes.iter().any(|n| self.eval(n, view)),
            Node::All(nodes) => nodes.iter().all(|n| self.eval(n, view)),
        }
    }

    fn happened(&self, leaf: usize) -> bool {
        self.leaves.get(leaf).is_some_and(|(wanted, n)| match &wanted.count {
            Some(count) => count.contains(*n),
            None => *n > 0,
        })
    }

    /// What is seen of what it names, for people.
    pub fn seen(&self, view: &dyn View) -> String {
        let mut parts = Vec::new();
        self.describe(&self.node, view, &mut parts);
        parts.dedup();
        parts.join("; ")
    }

    fn describe(&self, node: &Node, view: &dyn View, parts: &mut Vec<String>) {
        match node {
            Node::Vm(c) => parts.extend(c.vms.iter().map(|vm| see_vm(c, vm, view))),
            Node::Host(c) => parts.extend(c.hosts.iter().map(|h| see_host(c, h, view))),
            Node::Object(object, _) => {
                parts.push(format!("{object}: {}", see_object(object, view)))
            }
            Node::Fenced(hosts, shots) => {
                for host in hosts {
                    parts.push(match view.host_proof(host) {
                        Some(proof) => format!("{host}: fenced, proof {proof}"),
                        None => format!("{host}: not fenced"),
                    });
                }
                if shots.is_some_and(|leaf| self.happened(leaf)) {
                    parts.push("it was shot".to_owned());
                }
            }
            Node::Event(leaf) => {
                if let Some((wanted, n)) = self.leaves.get(*leaf) {
                    let words: Vec<&str> = wanted.events.iter().map(word).collect();
                    parts.push(format!("{} such {} so far", n, words.join(" or ")));
                }
            }
            Node::Any(nodes) | Node::All(nodes) => {
                for node in nodes {
                    self.describe(node, view, parts);
                }
            }
        }
    }
}

fn compile(condition: &Condition, never: bool, leaves: &mut Vec<(EventCondition, u64)>) -> Node {
    let mut leaf = |event: EventCondition| {
        leaves.push((event, 0));
        leaves.len() - 1
    };
    match condition {
        Condition::Vm(c) => Node::Vm((**c).clone()),
        Condition::Host(c) => Node::Host((**c).clone()),
        Condition::Object(object, fields) => Node::Object(object.clone(), (**fields).clone()),
        Condition::Fenced(hosts) => {
            let shots = never.then(|| leaf(shot(hosts)));
            Node::Fenced(hosts.clone(), shots)
        }
        Condition::Event(event) => Node::Event(leaf((**event).clone())),
        Condition::Any(list) => Node::Any(list.iter().map(|c| compile(c, never, leaves)).collect()),
        Condition::All(list) => Node::All(list.iter().map(|c| compile(c, never, leaves)).collect()),
    }
}

/// An off sent to one of these hosts.
fn shot(hosts: &[Name]) -> EventCondition {
    EventCondition {
        events: vec![EventKind::World(WorldEvent::FenceOff)],
        vm: Vec::new(),
        host: hosts.to_vec(),
        to: Vec::new(),
        by: Vec::new(),
        device: Vec::new(),
        holder: Vec::new(),
        kind: Vec::new(),
        count: None,
    }
}

/// Whether an event is of the wanted kind; its count is not looked at.
pub(super) fn matches(wanted: &EventCondition, event: &SimEvent) -> bool {
    let EventCondition { events, vm, host, to, by, device, holder, kind, count: _ } = wanted;
    events.contains(&event.kind)
        && one_of(vm, event.vm.as_ref())
        && one_of(host, event.host.as_ref())
        && one_of(to, event.to.as_ref())
        && one_of(by, event.by.as_ref())
        && one_of(device, event.device.as_ref())
        && one_of(holder, event.holder.as_ref())
        && one_of(kind, event.object_kind.as_ref())
        && (!kind.is_empty() || !is_beat(event))
}

/// Writes of Leases are beats: only a condition that names their kind means them.
fn is_beat(event: &SimEvent) -> bool {
    event.kind == EventKind::World(WorldEvent::Write)
        && event.object_kind.as_deref() == Some("Lease")
}

fn one_of<T: PartialEq>(wanted: &[T], value: Option<&T>) -> bool {
    wanted.is_empty() || value.is_some_and(|v| wanted.contains(v))
}

fn vm_holds(c: &VmCondition, vm: &str, view: &dyn View) -> bool {
    let VmCondition {
        vms: _,
        running,
        copies,
        host,
        not_on,
        with,
        not_with,
        migrating,
        lock_holder,
        state,
        object,
    } = c;
    let hosts = view.vm_hosts(vm);
    let shares = |other: &Name| {
        let others = view.vm_hosts(other);
        hosts.iter().any(|h| others.contains(h))
    };
    running.is_none_or(|r| r != hosts.is_empty())
        && copies.as_ref().is_none_or(|n| n.contains(hosts.len() as u64))
        && (host.is_empty() || hosts.iter().any(|h| host.contains(h)))
        && !hosts.iter().any(|h| not_on.contains(h))
        && (with.is_empty() || runs_with_all(&hosts, with, view))
        // One that does not run shares its host with nobody.
        && !not_with.iter().any(shares)
        && migrating.is_none_or(|m| m == view.vm_migrating(vm))
        && (lock_holder.is_empty() || lock_holder.contains(&view.vm_lock_holder(vm)))
        && (state.is_empty() || view.vm_state(vm).is_some_and(|s| state.iter().any(|w| w.word() == s)))
        && object_holds(object, &ObjectRef::vm(vm), view)
}

/// Whether one of these hosts runs all of `with`.
fn runs_with_all(hosts: &[Name], with: &[Name], view: &dyn View) -> bool {
    hosts.iter().any(|h| with.iter().all(|other| view.vm_hosts(other).contains(h)))
}

fn host_holds(c: &HostCondition, host: &str, view: &dyn View) -> bool {
    let HostCondition {
        hosts: _,
        powered,
        state,
        fenced,
        proof,
        armed,
        agent,
        vms,
        memory_mib,
        object,
    } = c;
    let agent_is = || {
        if view.host_agent_running(host) { AgentIs::Running } else { AgentIs::Stopped }
    };
    powered.is_none_or(|p| p == view.host_powered(host))
        && (state.is_empty()
            || view.host_state(host).is_some_and(|s| state.iter().any(|w| w.word() == s)))
        && fenced.is_none_or(|f| f == view.host_proof(host).is_some())
        && (proof.is_empty() || view.host_proof(host).is_some_and(|p| proof.contains(&p)))
        && armed.is_none_or(|a| a == view.host_armed(host))
        && (agent.is_empty() || agent.contains(&agent_is()))
        && vms.as_ref().is_none_or(|n| n.contains(view.host_vms(host).len() as u64))
        && memory_mib.as_ref().is_none_or(|n| n.contains(view.host_memory_mib(host)))
        && object_holds(object, &ObjectRef::host(host), view)
}

fn object_holds(fields: &ObjectFields, object: &ObjectRef, view: &dyn View) -> bool {
    let ObjectFields { exists, condition } = fields;
    exists.is_none_or(|e| e == view.exists(object))
        && condition.as_ref().is_none_or(|wanted| {
            view.conditions(object).iter().any(|seen| {
                let ConditionMatch { types, status, reason, message } = wanted;
                let bare = status.is_empty() && reason.is_empty() && message.is_empty();
                let text = seen.message.to_lowercase();
                (types.is_empty() || types.contains(&seen.type_))
                    && (status.is_empty() || status.iter().any(|s| s.word() == seen.status))
                    && (!bare || seen.status == "True")
                    && (reason.is_empty() || reason.contains(&seen.reason))
                    && (message.is_empty()
                        || message.iter().any(|m| text.contains(&m.to_lowercase())))
            })
        })
}

fn see_vm(c: &VmCondition, vm: &str, view: &dyn View) -> String {
    let hosts = view.vm_hosts(vm);
    let mut text = if hosts.is_empty() {
        format!("{vm}: runs nowhere")
    } else {
        format!("{vm}: runs on {}", hosts.join(" and "))
    };
    text += &format!(", {}", view.vm_state(vm).unwrap_or_else(|| "no state".to_owned()));
    if !c.lock_holder.is_empty() {
        let holder = view.vm_lock_holder(vm).unwrap_or_else(|| "none".to_owned());
        text += &format!(", lock held by {holder}");
    }
    if c.migrating.is_some() {
        text += if view.vm_migrating(vm) { ", migrating" } else { ", not migrating" };
    }
    for other in c.with.iter().chain(&c.not_with) {
        text += &format!(", {other} on {}", view.vm_hosts(other).join(" and "));
    }
    if c.object != ObjectFields::default() {
        text += &format!(", {}", see_object(&ObjectRef::vm(vm), view));
    }
    text
}

fn see_host(c: &HostCondition, host: &str, view: &dyn View) -> String {
    let state = view.host_state(host).unwrap_or_else(|| "no state".to_owned());
    let power = if view.host_powered(host) { "on" } else { "off" };
    let mut text = format!("{host}: {state}, power {power}");
    match view.host_proof(host) {
        Some(proof) => text += &format!(", fenced, proof {proof}"),
        None if c.fenced.is_some() || !c.proof.is_empty() => text += ", not fenced",
        None => {}
    }
    if c.armed.is_some() {
        text += if view.host_armed(host) { ", armed" } else { ", not armed" };
    }
    if !c.agent.is_empty() {
        text += if view.host_agent_running(host) { ", agent running" } else { ", agent stopped" };
    }
    if c.vms.is_some() || c.memory_mib.is_some() {
        let vms = view.host_vms(host);
        text +=
            &format!(", {} VMs ({}), {} MiB", vms.len(), vms.join(" "), view.host_memory_mib(host));
    }
    if c.object != ObjectFields::default() {
        text += &format!(", {}", see_object(&ObjectRef::host(host), view));
    }
    text
}

fn see_object(object: &ObjectRef, view: &dyn View) -> String {
    if !view.exists(object) {
        return "does not exist".to_owned();
    }
    let conditions: Vec<String> = view
        .conditions(object)
        .into_iter()
        .map(|c| format!("{}={} {} \"{}\"", c.type_, c.status, c.reason, c.message))
        .collect();
    if conditions.is_empty() { "no conditions".to_owned() } else { conditions.join(", ") }
}

fn word(kind: &EventKind) -> &str {
    match kind {
        EventKind::World(event) => event.word(),
        EventKind::Reason(reason) => reason,
    }
}
