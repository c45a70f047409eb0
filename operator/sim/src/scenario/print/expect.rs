//! Conditions and expectations.

use super::super::ast::{
    Condition, Count, EventCondition, EventKind, Form, HostCondition, Name, ObjectFields,
    RanPattern, Range, VmCondition, Window,
};
use super::super::words::{ConditionStatus, Word as _};
use super::time;
use super::yaml::{Map, Yaml};

pub(super) fn condition(condition: &Condition) -> Map {
    let mut m = Map::default();
    match condition {
        Condition::Vm(c) => vm(&mut m, c),
        Condition::Host(c) => host(&mut m, c),
        Condition::Object(object, fields) => {
            m.put("object", Yaml::text(&object.to_string()));
            object_fields(&mut m, fields);
        }
        Condition::Fenced(hosts) => m.names("fenced", hosts),
        Condition::Event(e) => event(&mut m, e),
        Condition::Any(list) => m.put("any", conditions(list)),
        Condition::All(list) => m.put("all", conditions(list)),
    }
    m
}

fn conditions(list: &[Condition]) -> Yaml {
    Yaml::Seq(list.iter().map(|c| condition(c).done()).collect())
}

fn vm(m: &mut Map, c: &VmCondition) {
    let VmCondition {
        vms,
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
    m.names("vm", vms);
    m.some("running", running, Yaml::number);
    m.some("copies", copies, count);
    m.names("host", host);
    m.names("notOn", not_on);
    m.names("with", with);
    m.names("notWith", not_with);
    m.some("migrating", migrating, Yaml::number);
    let holders: Vec<Name> = lock_holder
        .iter()
        .map(|holder| holder.clone().unwrap_or_else(|| "none".to_owned()))
        .collect();
    m.names("lockHolder", &holders);
    m.words("state", state);
    object_fields(m, object);
}

fn host(m: &mut Map, c: &HostCondition) {
    let HostCondition {
        hosts,
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
    m.names("host", hosts);
    m.some("powered", powered, Yaml::number);
    m.words("state", state);
    m.some("fenced", fenced, Yaml::number);
    m.words("proof", proof);
    m.some("armed", armed, Yaml::number);
    m.words("agent", agent);
    m.some("vms", vms, count);
    m.some("memoryMiB", memory_mib, count);
    object_fields(m, object);
}

fn object_fields(m: &mut Map, fields: &ObjectFields) {
    m.some("exists", &fields.exists, Yaml::number);
    if let Some(c) = &fields.condition {
        m.names("condition", &c.types);
        let status: Vec<Name> =
            c.status.iter().map(|s: &ConditionStatus| s.word().to_owned()).collect();
        m.names("status", &status);
        m.names("reason", &c.reason);
        m.names("message", &c.message);
    }
}

fn event(m: &mut Map, e: &EventCondition) {
    let EventCondition { events, vm, host, to, by, device, holder, kind, count } = e;
    let events: Vec<Name> = events
        .iter()
        .map(|kind| match kind {
            EventKind::World(event) => event.word().to_owned(),
            EventKind::Reason(reason) => reason.clone(),
        })
        .collect();
    m.names("event", &events);
    m.names("vm", vm);
    m.names("host", host);
    m.names("to", to);
    m.words("by", by);
    m.names("device", device);
    m.names("holder", holder);
    m.names("kind", kind);
    m.some("count", count, self::count);
}

fn count(count: &Count) -> Yaml {
    match count.0.as_slice() {
        [one] => range(one),
        many => Yaml::Seq(many.iter().map(range).collect()),
    }
}

fn range(range: &Range) -> Yaml {
    if range.max == Some(range.min) {
        return Yaml::number(&range.min);
    }
    let mut m = Map::default();
    m.put("min", Yaml::number(&range.min));
    m.some("max", &range.max, Yaml::number);
    m.done()
}

fn window(m: &mut Map, w: &Window) {
    m.some("after", &w.after, time);
    m.some("before", &w.before, time);
}

fn pattern(pattern: &[RanPattern]) -> Yaml {
    Yaml::Seq(
        pattern
            .iter()
            .map(|element| match element {
                RanPattern::Anything => Yaml::text("*"),
                RanPattern::OneOf(hosts) => Yaml::one_or_many(hosts),
            })
            .collect(),
    )
}

pub(super) fn form(form: &Form) -> Yaml {
    let mut m = Map::default();
    match form {
        Form::AtEnd(c) => m = condition(c),
        Form::At(c, at) => {
            m = condition(c);
            m.put("at", time(at));
        }
        Form::Within(c, within, after) => {
            m = condition(c);
            m.put("within", Yaml::seconds(*within));
            m.some("after", after, time);
        }
        Form::Never(c, w) => {
            m.put("never", condition(c).done());
            window(&mut m, w);
        }
        Form::Always(c, w) => {
            m.put("always", condition(c).done());
            window(&mut m, w);
        }
        Form::Count(e, w) => {
            event(&mut m, e);
            window(&mut m, w);
        }
        Form::Order(list, after) => {
            m.put("order", conditions(list));
            m.some("after", after, time);
        }
        Form::Ran(vms, p, w) => {
            m.names("vm", vms);
            m.put("ran", pattern(p));
            window(&mut m, w);
        }
        Form::Tried(vms, p, w) => {
            m.names("vm", vms);
            m.put("tried", pattern(p));
            window(&mut m, w);
        }
        Form::Untouched(vms, w) => {
            m.names("vm", vms);
            m.put("untouched", Yaml::raw("true"));
            window(&mut m, w);
        }
        Form::Step { step, outcome, message } => {
            m.put("step", Yaml::text(step));
            m.words("outcome", outcome);
            m.names("message", message);
        }
        Form::Device { device, received } => {
            m.put("device", Yaml::text(device));
            m.put("received", Yaml::strings(received));
        }
    }
    m.done()
}
