//! One expectation, watched through a run.

use super::super::ast::{EventKind, Form, Millis, Name, RanPattern, Time};
use super::super::observe::{SimEvent, View};
use super::super::words::{By, Word as _, WorldEvent};
use super::Fired;
use super::condition::{Tracker, matches};
use super::pattern::fits;

/// What `untouched` forbids.
const TOUCHES: &[WorldEvent] = &[
    WorldEvent::Start,
    WorldEvent::StartFailed,
    WorldEvent::Stop,
    WorldEvent::StopFailed,
    WorldEvent::Kill,
    WorldEvent::Pause,
    WorldEvent::Migrate,
    WorldEvent::Migrated,
    WorldEvent::MigrateFailed,
];

/// An expectation and what has been seen of it.
#[derive(Debug)]
pub(super) struct Watch {
    after: Option<Time>,
    before: Option<Time>,
    /// When its window opened.
    opened: Option<Millis>,
    closed: bool,
    state: State,
}

#[derive(Debug)]
enum State {
    AtEnd(Tracker),
    /// What was seen at the time: `None` not there yet, then what was seen if it was not true.
    At(Tracker, Time, Option<Option<String>>),
    Within(Tracker, Millis, bool),
    /// When it was true, and what was seen.
    Never(Tracker, Option<String>),
    Always(Tracker, Option<String>),
    Count(super::super::ast::EventCondition, u64),
    /// When each came true first.
    Order(Vec<(Tracker, Option<Millis>)>),
    Ran(Vec<Ran>, Vec<RanPattern>),
    Tried(Vec<(Name, Vec<Name>)>, Vec<RanPattern>),
    Untouched(Vec<Name>, Option<String>),
    /// Judged by the evaluator.
    Elsewhere,
}

/// Where one VM has run.
#[derive(Debug)]
struct Ran {
    vm: Name,
    now: Vec<Name>,
    hosts: Vec<Name>,
}

impl Ran {
    fn look(&mut self, view: &dyn View) {
        let now = view.vm_hosts(&self.vm);
        for host in &now {
            if !self.now.contains(host) && self.hosts.last() != Some(host) {
                self.hosts.push(host.clone());
            }
        }
        self.now = now;
    }
}

impl Watch {
    pub fn new(form: &Form) -> Self {
        let (after, before, state) = match form {
            Form::AtEnd(c) => (None, None, State::AtEnd(Tracker::new(c, false))),
            Form::At(c, t) => (None, None, State::At(Tracker::new(c, false), t.clone(), None)),
            Form::Within(c, within, after) => {
                (after.clone(), None, State::Within(Tracker::new(c, false), *within, false))
            }
            Form::Never(c, w) => {
                (w.after.clone(), w.before.clone(), State::Never(Tracker::new(c, true), None))
            }
            Form::Always(c, w) => {
                (w.after.clone(), w.before.clone(), State::Always(Tracker::new(c, false), None))
            }
            Form::Count(e, w) => (w.after.clone(), w.before.clone(), State::Count(e.clone(), 0)),
            Form::Order(list, after) => {
                let list = list.iter().map(|c| (Tracker::new(c, false), None)).collect();
                (after.clone(), None, State::Order(list))
            }
            Form::Ran(vms, pattern, w) => {
                let ran = |vm: &Name| Ran { vm: vm.clone(), now: vec![], hosts: vec![] };
                let state = State::Ran(vms.iter().map(ran).collect(), pattern.clone());
                (w.after.clone(), w.before.clone(), state)
            }
            Form::Tried(vms, pattern, w) => {
                let tried = vms.iter().map(|vm| (vm.clone(), vec![])).collect();
                (w.after.clone(), w.before.clone(), State::Tried(tried, pattern.clone()))
            }
            Form::Untouched(vms, w) => {
                (w.after.clone(), w.before.clone(), State::Untouched(vms.clone(), None))
            }
            Form::Step { .. } | Form::Device { .. } => (None, None, State::Elsewhere),
        };
        let opened = after.is_none().then_some(0);
        Self { after, before, opened, closed: false, state }
    }

    /// Opens and closes the window.
    pub fn tick(&mut self, now: Millis, fired: &Fired) {
        if self.opened.is_none() {
            self.opened = self.after.as_ref().and_then(|t| fired.resolve(t)).filter(|t| *t <= now);
        }
        if !self.closed {
            let end = match &self.state {
                // The last instant of `within` belongs to it.
                State::Within(_, within, _) => self.opened.map(|t| t + within + 1),
                _ => self.before.as_ref().and_then(|t| fired.resolve(t)),
            };
            self.closed = end.is_some_and(|t| t <= now);
        }
    }

    fn is_open(&self) -> bool {
        self.opened.is_some() && !self.closed
    }

    pub fn on_event(&mut self, event: &SimEvent) {
        if !self.is_open() {
            return;
        }
        match &mut self.state {
            State::AtEnd(t)
            | State::At(t, ..)
            | State::Within(t, ..)
            | State::Never(t, _)
            | State::Always(t, _) => t.count(event),
            State::Order(list) => list.iter_mut().for_each(|(t, _)| t.count(event)),
            State::Count(wanted, n) => {
                if matches(wanted, event) {
                    *n += 1;
                }
            }
            State::Tried(vms, _) => {
                let start = matches!(
                    event.kind,
                    EventKind::World(WorldEvent::Start | WorldEvent::StartFailed)
                );
                if let (true, Some(vm), Some(host)) = (start, &event.vm, &event.host) {
                    for (_, tried) in vms.iter_mut().filter(|(name, _)| name == vm) {
                        tried.push(host.clone());
                    }
                }
            }
            State::Untouched(vms, touched) => {
                // A start by hand that was refused has not come near it.
                let refused = event.by == Some(By::Virsh)
                    && event.kind == EventKind::World(WorldEvent::StartFailed);
                if let EventKind::World(kind) = &event.kind
                    && TOUCHES.contains(kind)
                    && !refused
                    && let Some(vm) = event.vm.as_ref().filter(|vm| vms.contains(vm))
                    && touched.is_none()
                {
                    let host = event.host.as_deref().unwrap_or("?");
                    let word = kind.word();
                    *touched = Some(format!("{word} of {vm} on {host} at {}", seconds(event.t)));
                }
            }
            State::Ran(..) | State::Elsewhere => {}
        }
    }

    /// Looks at the state. `before_steps`: steps of this very instant are still to be carried out,
    /// so that windows which begin now do not look yet.
    pub fn on_change(&mut self, now: Millis, view: &dyn View, before_steps: bool) {
        if !self.is_open() {
            return;
        }
        let just_opened = self.opened == Some(now) && self.after.is_some();
        let waits = before_steps && just_opened;
        match &mut self.state {
            State::Within(t, _, hit) => *hit = *hit || t.holds(view),
            State::Never(t, seen) => {
                if !waits && seen.is_none() && t.holds(view) {
                    *seen = Some(format!("true at {}: {}", seconds(now), t.seen(view)));
                }
            }
            State::Always(t, seen) => {
                if !waits && seen.is_none() && !t.holds(view) {
                    *seen = Some(format!("not true at {}: {}", seconds(now), t.seen(view)));
                }
            }
            State::Order(list) => {
                if !waits {
                    for (t, first) in list.iter_mut().filter(|(_, first)| first.is_none()) {
                        if t.holds(view) {
                            *first = Some(now);
                        }
                    }
                }
            }
            State::Ran(vms, _) => vms.iter_mut().for_each(|ran| ran.look(view)),
            State::AtEnd(_)
            | State::At(..)
            | State::Count(..)
            | State::Tried(..)
            | State::Untouched(..)
            | State::Elsewhere => {}
        }
    }

    /// The moment before the steps of `now` are carried out; those that fire now are in `fired`.
    pub fn on_time(&mut self, now: Millis, view: &dyn View, fired: &Fired) {
        let open = self.is_open();
        match &mut self.state {
            State::At(t, time, seen) => {
                if seen.is_none() && fired.resolve(time).is_some_and(|at| at <= now) {
                    *seen = Some((!t.holds(view)).then(|| t.seen(view)));
                }
            }
            State::Within(t, _, hit) => *hit = *hit || (open && t.holds(view)),
            State::Ran(vms, _) if open => vms.iter_mut().for_each(|ran| ran.look(view)),
            State::AtEnd(_)
            | State::Never(..)
            | State::Always(..)
            | State::Count(..)
            | State::Order(_)
            | State::Ran(..)
            | State::Tried(..)
            | State::Untouched(..)
            | State::Elsewhere => {}
        }
    }

    /// The next moment at which it wants to be asked.
    pub fn deadline(&self, fired: &Fired) -> Option<Millis> {
        let opens = match (&self.after, self.opened) {
            (Some(after), None) => fired.resolve(after),
            _ => None,
        };
        let at = match &self.state {
            State::At(_, time, None) => fired.resolve(time),
            _ => None,
        };
        [opens, at].into_iter().flatten().min()
    }

    /// The last moment it names, as far as is known.
    pub fn last_named(&self, fired: &Fired) -> Option<Millis> {
        let after = self.after.as_ref().and_then(|t| fired.resolve(t));
        let before = self.before.as_ref().and_then(|t| fired.resolve(t));
        let own = match &self.state {
            State::At(_, time, _) => fired.resolve(time),
            State::Within(_, within, _) => {
                self.after.as_ref().map_or(Some(0), |t| fired.resolve(t)).map(|t| t + within)
            }
            _ => None,
        };
        [after, before, own].into_iter().flatten().max()
    }

    /// At the end: what was seen if it does not hold.
    pub fn verdict(&self, view: &dyn View) -> Option<String> {
        if self.opened.is_none() {
            return Some("its window never opened".to_owned());
        }
        match &self.state {
            State::AtEnd(t) => (!t.holds(view)).then(|| t.seen(view)),
            State::At(_, _, None) => Some("the run ended before that time".to_owned()),
            State::At(_, _, Some(seen)) => seen.clone(),
            State::Within(t, _, hit) => {
                (!hit).then(|| format!("it did not come true; at the end {}", t.seen(view)))
            }
            State::Never(_, seen) | State::Always(_, seen) => seen.clone(),
            State::Count(wanted, n) => {
                let fits = wanted.count.as_ref().map_or(*n > 0, |count| count.contains(*n));
                (!fits).then(|| format!("it happened {n} times"))
            }
            State::Order(list) => order(list, view),
            State::Ran(vms, pattern) => {
                let wrong: Vec<String> = vms
                    .iter()
                    .filter(|ran| !fits(&ran.hosts, pattern))
                    .map(|ran| format!("{} ran on {}", ran.vm, listed(&ran.hosts)))
                    .collect();
                (!wrong.is_empty()).then(|| wrong.join("; "))
            }
            State::Tried(vms, pattern) => {
                let wrong: Vec<String> = vms
                    .iter()
                    .filter(|(_, tried)| !fits(tried, pattern))
                    .map(|(vm, tried)| format!("starts of {vm} were tried on {}", listed(tried)))
                    .collect();
                (!wrong.is_empty()).then(|| wrong.join("; "))
            }
            State::Untouched(_, touched) => touched.clone(),
            State::Elsewhere => None,
        }
    }
}

fn order(list: &[(Tracker, Option<Millis>)], view: &dyn View) -> Option<String> {
    let mut last = 0;
    let mut wrong = None;
    for (n, (tracker, first)) in list.iter().enumerate() {
        match first {
            None => {
                wrong = Some(format!("number {} never came true: {}", n + 1, tracker.seen(view)));
                break;
            }
            Some(t) if *t < last => {
                wrong = Some(format!("number {} came true before number {n}", n + 1));
                break;
            }
            Some(t) => last = *t,
        }
    }
    let times: Vec<String> =
        list.iter().map(|(_, first)| first.map_or_else(|| "never".to_owned(), seconds)).collect();
    wrong.map(|text| format!("{text} (first true at {})", times.join(", ")))
}

fn listed(hosts: &[Name]) -> String {
    if hosts.is_empty() { "none".to_owned() } else { hosts.join(", ") }
}

fn seconds(t: Millis) -> String {
    format!("{}.{:03}s", t / 1000, t % 1000)
}
