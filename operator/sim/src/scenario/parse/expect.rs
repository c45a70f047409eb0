//! Expectations.

use super::super::ast::{Condition, Expectation, Form, Name, RanPattern, Time, Window};
use super::super::node::{Kind, Node};
use super::condition;
use super::names::NameKind;
use super::read::{Cx, Fields};

/// Keys that say which form an expectation has; at most one of them.
const FORMS: &[&str] =
    &["never", "always", "order", "ran", "tried", "untouched", "step", "received"];

/// One expectation.
pub(crate) fn expectation(cx: &Cx, node: &Node) -> Option<Expectation> {
    let mut f = Fields::of(cx, node, "an expectation")?;
    let line = f.at();
    let given: Vec<&str> = FORMS.iter().copied().filter(|k| f.has(k)).collect();
    let form = match given.as_slice() {
        [] => simple(&mut f),
        ["never"] => {
            let condition = nested(&mut f, "never");
            let window = window(&mut f);
            condition.map(|c| Form::Never(c, window))
        }
        ["always"] => {
            let condition = nested(&mut f, "always");
            let window = window(&mut f);
            condition.map(|c| Form::Always(c, window))
        }
        ["order"] => {
            f.what = "`order`".to_owned();
            let conditions = f.take("order").and_then(|n| condition::list(cx, n, "`order`"));
            let after = f.time("after");
            conditions.map(|c| Form::Order(c, after))
        }
        ["ran"] => hosts_in_order(&mut f, "ran").map(|(vms, p, w)| Form::Ran(vms, p, w)),
        ["tried"] => hosts_in_order(&mut f, "tried").map(|(vms, p, w)| Form::Tried(vms, p, w)),
        ["untouched"] => untouched(&mut f),
        ["step"] => step(&mut f),
        ["received"] => device(&mut f),
        [first, second, ..] => {
            cx.problem(line.0, format!("an expectation has either `{first}` or `{second}`"));
            return None;
        }
        [_] => None,
    };
    if !f.what.is_empty() {
        f.finish();
    }
    form.map(|form| Expectation { form, line })
}

fn nested(f: &mut Fields<'_>, key: &'static str) -> Option<Condition> {
    f.what = format!("`{key}`");
    let node = f.take(key)?;
    condition::condition(f.cx, node)
}

fn window(f: &mut Fields<'_>) -> Window {
    let window = Window { after: f.time("after"), before: f.time("before") };
    if let (Some(Time::At(after)), Some(Time::At(before))) = (&window.after, &window.before)
        && before <= after
    {
        f.problem("`before` is not later than `after`: nothing would be looked at".to_owned());
    }
    window
}

/// A condition, and when it must be true.
fn simple(f: &mut Fields<'_>) -> Option<Form> {
    // The times are known words to every condition that is an expectation.
    let at = f.time("at");
    let within = f.seconds("within");
    let (timed, lasting) = (f.has("at"), f.has("within"));
    let window = window(f);
    let read = condition::of(f)?;
    let windowed = window.after.is_some() || window.before.is_some();
    if timed && (lasting || windowed) {
        f.problem("`at` goes with none of `within`, `after`, `before`".to_owned());
        return None;
    }
    if timed {
        return at.map(|at| Form::At(read, at));
    }
    if lasting {
        if window.before.is_some() {
            f.problem("`within` goes with `after`, not with `before`".to_owned());
            return None;
        }
        return within.map(|within| Form::Within(read, within, window.after));
    }
    match read {
        Condition::Event(event) if event.count.is_some() || windowed => {
            Some(Form::Count(*event, window))
        }
        read if windowed => {
            f.problem(
                "`after` and `before` need `within`, `never`, `always`, `order`, `ran`, `tried`, \
                 `untouched` or an event"
                    .to_owned(),
            );
            drop(read);
            None
        }
        read => Some(Form::AtEnd(read)),
    }
}

fn hosts_in_order(
    f: &mut Fields<'_>,
    key: &'static str,
) -> Option<(Vec<Name>, Vec<RanPattern>, Window)> {
    f.what = format!("`{key}`");
    let vms = f.some_names("vm", NameKind::Vm);
    let pattern = f.read(key, |cx, n, w| {
        let Kind::Seq(items) = &n.kind else {
            cx.expected(n, w, "a list of hosts");
            return None;
        };
        Some(items.iter().filter_map(|n| element(cx, n, w)).collect::<Vec<_>>())
    });
    let window = window(f);
    Some((vms?, pattern?, window))
}

fn element(cx: &Cx, node: &Node, what: &str) -> Option<RanPattern> {
    if node.text() == Some("*") {
        return Some(RanPattern::Anything);
    }
    let hosts = cx.names(node, what, NameKind::Host)?;
    if hosts.is_empty() {
        cx.problem(node.line, format!("{what}: one of no hosts"));
        return None;
    }
    Some(RanPattern::OneOf(hosts))
}

fn untouched(f: &mut Fields<'_>) -> Option<Form> {
    f.what = "`untouched`".to_owned();
    let vms = f.some_names("vm", NameKind::Vm);
    let value = f.bool("untouched");
    let window = window(f);
    if value == Some(false) {
        f.problem("`untouched` can only be true; count an event for the contrary".to_owned());
        return None;
    }
    value?;
    Some(Form::Untouched(vms?, window))
}

fn step(f: &mut Fields<'_>) -> Option<Form> {
    f.what = "a step's outcome".to_owned();
    let id = f.name("step", NameKind::Order);
    let outcome = f.words("outcome");
    let message = f
        .read("message", |cx, n, w| Some(cx.one_or_many(n, |cx, n| cx.scalar(n, w))))
        .unwrap_or_default();
    if !f.has("outcome") && !f.has("message") {
        f.problem("a step's outcome needs `outcome`, `message` or both".to_owned());
        return None;
    }
    Some(Form::Step { step: id?, outcome, message })
}

fn device(f: &mut Fields<'_>) -> Option<Form> {
    f.what = "what a device received".to_owned();
    let device = f.name("device", NameKind::Device);
    if !f.has("device") {
        f.missing("device");
    }
    let received = f.read("received", |cx, n, w| cx.string_map(n, w));
    Some(Form::Device { device: device?, received: received? })
}
