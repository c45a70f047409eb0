//! Conditions.

use super::super::ast::{
    Condition, ConditionMatch, EventCondition, EventKind, HostCondition, Name, ObjectFields,
    ObjectRef, VmCondition,
};
use super::super::node::{Kind, Node};
use super::super::problem::{nearest, unknown};
use super::super::words::{ConditionStatus, Word as _, WorldEvent};
use super::names::NameKind;
use super::read::{Cx, Fields};

/// Keys of which one makes a mapping a condition.
const SUBJECTS: &[&str] = &["vm", "host", "object", "event", "fenced", "any", "all"];

/// Every key that a condition may have, for the nearest word of one without a known subject.
const WORDS: &[&str] = &[
    "vm",
    "host",
    "object",
    "event",
    "any",
    "all",
    "running",
    "copies",
    "notOn",
    "with",
    "notWith",
    "migrating",
    "lockHolder",
    "state",
    "powered",
    "fenced",
    "proof",
    "armed",
    "agent",
    "vms",
    "memoryMiB",
    "exists",
    "condition",
    "status",
    "reason",
    "message",
    "to",
    "by",
    "device",
    "holder",
    "kind",
];

/// Further keys of expectations.
const FORMS: &[&str] = &[
    "never",
    "always",
    "order",
    "ran",
    "tried",
    "untouched",
    "step",
    "outcome",
    "received",
    "at",
    "within",
    "after",
    "before",
    "count",
];

/// Kinds of objects that scenarios may name.
const KINDS: &[&str] = &[
    "VirtualMachine",
    "VirtualMachineMigration",
    "Host",
    "SharedStorage",
    "LockManager",
    "FenceDevice",
    "HostFence",
    "AvailabilityPolicy",
    "GuestFenceGroup",
    "Domain",
    "HostAgent",
    "Lease",
    "Event",
    "Secret",
    "ConfigMap",
    "Namespace",
    "ServiceAccount",
    "Role",
    "RoleBinding",
    "ClusterRole",
    "ClusterRoleBinding",
    "Deployment",
    "Pod",
    "Node",
    "Service",
    "CustomResourceDefinition",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];

/// A condition by itself.
pub(crate) fn condition(cx: &Cx, node: &Node) -> Option<Condition> {
    let mut f = Fields::of(cx, node, "a condition")?;
    let read = of(&mut f);
    if !f.what.is_empty() {
        f.finish();
    }
    read
}

/// The condition among the fields of `f`; the caller finishes `f`. On an unknown subject `f.what`
/// is emptied: everything has been said then.
pub(crate) fn of(f: &mut Fields<'_>) -> Option<Condition> {
    if f.has("any") || f.has("all") {
        return combined(f);
    }
    if f.has("event") {
        f.what = "an event condition".to_owned();
        return event(f).map(|e| Condition::Event(Box::new(e)));
    }
    if f.has("vm") {
        f.what = "a VM condition".to_owned();
        return vm(f).map(|c| Condition::Vm(Box::new(c)));
    }
    if f.has("host") {
        f.what = "a host condition".to_owned();
        return host(f).map(|c| Condition::Host(Box::new(c)));
    }
    if f.has("object") {
        f.what = "an object condition".to_owned();
        let object = f.read("object", object_ref);
        let fields = object_fields(f);
        if fields == ObjectFields::default() {
            f.problem("a condition on an object says nothing of it".to_owned());
        }
        return Some(Condition::Object(object?, Box::new(fields)));
    }
    if f.has("fenced") {
        let hosts = f.some_names("fenced", NameKind::Host)?;
        return Some(Condition::Fenced(hosts));
    }
    no_subject(f);
    None
}

fn no_subject(f: &mut Fields<'_>) {
    let mut said = false;
    for key in f.keys() {
        let expectation = f.what == "an expectation";
        let known = WORDS.iter().chain(FORMS.iter().filter(|_| expectation)).copied();
        if !known.clone().any(|k| k == key.text) {
            let best = nearest(&key.text, known).unwrap_or_default();
            let what = &f.what;
            let text = format!("{what}: unknown field `{}`; did you mean `{best}`?", key.text);
            f.cx.problem(key.line, text);
            said = true;
        }
    }
    if !said {
        f.problem(format!("{} needs a subject: one of {}", f.what, SUBJECTS.join(", ")));
    }
    f.what.clear();
}

fn combined(f: &mut Fields<'_>) -> Option<Condition> {
    if f.has("any") && f.has("all") {
        f.take("any");
        f.take("all");
        f.problem("a condition has either `any` or `all`; nest them".to_owned());
        return None;
    }
    let (key, any) = if f.has("any") { ("any", true) } else { ("all", false) };
    f.what = format!("`{key}`");
    let node = f.take(key)?;
    let conditions = list(f.cx, node, &format!("`{key}`"))?;
    Some(if any { Condition::Any(conditions) } else { Condition::All(conditions) })
}

/// A list of conditions.
pub(crate) fn list(cx: &Cx, node: &Node, what: &str) -> Option<Vec<Condition>> {
    let Kind::Seq(items) = &node.kind else {
        cx.expected(node, what, "a list of conditions");
        return None;
    };
    if items.is_empty() {
        cx.problem(node.line, format!("{what} is empty"));
        return None;
    }
    // Each is read, so that all that is wrong is reported.
    let read: Vec<Option<Condition>> = items.iter().map(|n| condition(cx, n)).collect();
    read.into_iter().collect()
}

fn vm(f: &mut Fields<'_>) -> Option<VmCondition> {
    let before = f.cx.problem_count();
    let read = VmCondition {
        vms: f.some_names("vm", NameKind::Vm).unwrap_or_default(),
        running: f.either("running"),
        copies: f.read("copies", |cx, n, w| cx.count(n, w)),
        host: f.names_or_none("host", NameKind::Host),
        not_on: f.names_or_none("notOn", NameKind::Host),
        with: f.names_or_none("with", NameKind::Vm),
        not_with: f.names_or_none("notWith", NameKind::Vm),
        migrating: f.either("migrating"),
        lock_holder: f
            .read("lockHolder", |cx, n, w| Some(cx.one_or_many(n, |cx, n| lock_holder(cx, n, w))))
            .unwrap_or_default(),
        state: f.words("state"),
        object: object_fields(f),
    };
    if read == (VmCondition { vms: read.vms.clone(), ..VmCondition::default() }) {
        says_nothing(f, "a VM", before);
        return None;
    }
    Some(read)
}

fn lock_holder(cx: &Cx, node: &Node, what: &str) -> Option<Option<Name>> {
    let name = cx.bare_name(node, what)?;
    if name == "none" {
        return Some(None);
    }
    cx.uses(NameKind::Holder, &name, node.line);
    Some(Some(name))
}

fn host(f: &mut Fields<'_>) -> Option<HostCondition> {
    let before = f.cx.problem_count();
    let read = HostCondition {
        hosts: f.some_names("host", NameKind::Host).unwrap_or_default(),
        powered: f.either("powered"),
        state: f.words("state"),
        fenced: f.either("fenced"),
        proof: f.words("proof"),
        armed: f.either("armed"),
        agent: f.words("agent"),
        vms: f.read("vms", |cx, n, w| cx.count(n, w)),
        memory_mib: f.read("memoryMiB", |cx, n, w| cx.count(n, w)),
        object: object_fields(f),
    };
    if read == (HostCondition { hosts: read.hosts.clone(), ..HostCondition::default() }) {
        says_nothing(f, "a host", before);
        return None;
    }
    Some(read)
}

/// A problem unless another one, reported or to be reported by `finish`, is the cause.
fn says_nothing(f: &Fields<'_>, of: &str, problems_before: usize) {
    let times = ["at", "within", "after", "before"];
    let all_known =
        f.keys().all(|k| WORDS.contains(&k.text.as_str()) || times.contains(&k.text.as_str()));
    if all_known && f.cx.problem_count() == problems_before {
        f.problem(format!("a condition on {of} says nothing of it"));
    }
}

fn object_fields(f: &mut Fields<'_>) -> ObjectFields {
    let exists = f.either("exists");
    let types = strings(f, "condition");
    let status = f
        .read("status", |cx, n, w| Some(cx.one_or_many(n, |cx, n| status(cx, n, w))))
        .unwrap_or_default();
    let matcher = ConditionMatch {
        types,
        status,
        reason: strings(f, "reason"),
        message: strings(f, "message"),
    };
    let condition = (matcher != ConditionMatch::default()).then_some(matcher);
    ObjectFields { exists, condition }
}

/// `True` is a boolean to YAML and a word to Kubernetes.
fn status(cx: &Cx, node: &Node, what: &str) -> Option<ConditionStatus> {
    match node.as_bool() {
        Some(true) => Some(ConditionStatus::True),
        Some(false) => Some(ConditionStatus::False),
        None => cx.word(node, what),
    }
}

fn strings(f: &mut Fields<'_>, key: &'static str) -> Vec<String> {
    f.read(key, |cx, n, w| Some(cx.one_or_many(n, |cx, n| cx.scalar(n, w)))).unwrap_or_default()
}

/// An event and what it must be of.
pub(crate) fn event(f: &mut Fields<'_>) -> Option<EventCondition> {
    let events = f
        .read("event", |cx, n, w| {
            let read = cx.one_or_many(n, |cx, n| event_kind(cx, n, w));
            if matches!(&n.kind, Kind::Seq(items) if items.is_empty()) {
                cx.problem(n.line, format!("{w} is empty"));
            }
            Some(read)
        })
        .unwrap_or_default();
    let read = EventCondition {
        events,
        vm: f.names_or_none("vm", NameKind::Vm),
        host: f.names_or_none("host", NameKind::Host),
        to: f.names_or_none("to", NameKind::Host),
        by: f.words("by"),
        device: f.names_or_none("device", NameKind::Device),
        holder: f
            .read("holder", |cx, n, w| {
                Some(cx.one_or_many(n, |cx, n| cx.name(n, w, NameKind::Holder)))
            })
            .unwrap_or_default(),
        kind: f
            .read("kind", |cx, n, w| Some(cx.one_or_many(n, |cx, n| object_kind(cx, n, w))))
            .unwrap_or_default(),
        count: f.read("count", |cx, n, w| cx.count(n, w)),
    };
    (!read.events.is_empty()).then_some(read)
}

fn event_kind(cx: &Cx, node: &Node, what: &str) -> Option<EventKind> {
    let text = cx.string(node, what)?;
    if let Some(event) = WorldEvent::from_word(&text) {
        return Some(EventKind::World(event));
    }
    let camel = text.starts_with(|c: char| c.is_ascii_uppercase())
        && text.chars().all(|c| c.is_ascii_alphanumeric());
    if camel {
        return Some(EventKind::Reason(text));
    }
    cx.problem(node.line, format!("{what}: {}", unknown("event", &text, WorldEvent::WORDS)));
    None
}

/// A kind of object.
pub(crate) fn object_kind(cx: &Cx, node: &Node, what: &str) -> Option<String> {
    let kind = cx.string(node, what)?;
    if KINDS.contains(&kind.as_str()) {
        return Some(kind);
    }
    let best = nearest(&kind, KINDS.iter().copied()).unwrap_or_default();
    cx.problem(node.line, format!("{what}: unknown kind `{kind}`; did you mean `{best}`?"));
    None
}

/// `Kind/name`.
fn object_ref(cx: &Cx, node: &Node, what: &str) -> Option<ObjectRef> {
    let text = cx.string(node, what)?;
    let Some((kind, name)) = text.split_once('/').filter(|(_, name)| !name.is_empty()) else {
        cx.expected(node, what, "Kind/name");
        return None;
    };
    if !KINDS.contains(&kind) {
        let best = nearest(kind, KINDS.iter().copied()).unwrap_or_default();
        cx.problem(node.line, format!("{what}: unknown kind `{kind}`; did you mean `{best}`?"));
        return None;
    }
    uses_object(cx, kind, name, node.line);
    Some(ObjectRef { kind: kind.to_owned(), name: name.to_owned() })
}

/// Notes that an object was named, if it is of a kind whose names scenarios declare.
pub(crate) fn uses_object(cx: &Cx, kind: &str, name: &str, line: u32) {
    let kind = match kind {
        "VirtualMachine" => NameKind::Vm,
        "Host" => NameKind::Host,
        "FenceDevice" => NameKind::Device,
        "SharedStorage" => NameKind::Storage,
        _ => return,
    };
    cx.uses(kind, name, line);
}
