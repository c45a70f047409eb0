//! Judging a run while it goes on.
//!
//! The simulator feeds every event ([`Evaluator::on_event`]), calls [`Evaluator::on_change`] after
//! each, and at every [`Evaluator::next_deadline`] asks [`Evaluator::due_steps`], carries those
//! out, calls `on_change` again and asks once more, until none is due. The exact meanings:
//!
//! - *At T* is the state when `due_steps(T)` is called, before its steps are carried out. The
//!   first instant of `within` is that one too, and `ran` starts with where the VM runs then;
//!   `never`, `always` and `order` look from after the steps of T on, and up to before those of
//!   `before`.
//! - A window that starts with a step starts when the step fires: events that were fed before do
//!   not count, even those of the same millisecond.
//! - "Has happened" means since the window started.
//! - A list of VMs or hosts as subject is true if it is true of each at the same instant.
//! - `order` compares times: two that come true in one millisecond are in order.
//! - Every start is one entry of `tried`, those on the same host included.

mod condition;
mod expectation;
mod pattern;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use self::condition::Tracker;
use self::expectation::Watch;
use super::ast::{Form, Millis, Name, OrderKind, Scenario, Time, Trigger, Verb};
use super::observe::{SimEvent, View};
use super::print;
use super::words::Outcome;

/// How long after its last step (and the last time an expectation names) a run without `until`
/// ends.
pub const DEFAULT_REST: Millis = 120_000;
/// How long after the last time that a file names a run waits for a step that has not fired, if
/// `until` is absent or depends on it.
pub const DEFAULT_PATIENCE: Millis = 600_000;

/// Something that had to hold and did not.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Failure {
    /// Which expectation, from 0; `None`: a step that never fired.
    pub expectation: Option<usize>,
    /// The expectation, or the step, as in the file.
    pub text: String,
    /// What was seen instead.
    pub seen: String,
    /// Its line in the file.
    pub line: u32,
}

/// When steps fired.
#[derive(Debug, Default)]
pub(crate) struct Fired(BTreeMap<String, Millis>);

impl Fired {
    /// The moment a time names, once that is known.
    pub fn resolve(&self, time: &Time) -> Option<Millis> {
        match time {
            Time::At(t) => Some(*t),
            Time::After(id, offset) => self.0.get(id).map(|t| t + offset),
        }
    }
}

/// Where one step stands.
#[derive(Debug)]
struct StepState {
    fired: Option<Millis>,
    /// When its condition held for the first time, its delay added.
    due: Option<Millis>,
    /// Condition of a `when` step.
    when: Option<Tracker>,
    open: bool,
    outcome: Option<(Outcome, String)>,
}

/// Judges one run of one scenario.
#[derive(Debug)]
pub struct Evaluator {
    scenario: Scenario,
    fired: Fired,
    steps: Vec<StepState>,
    watches: Vec<Watch>,
    calls: BTreeMap<Name, Vec<BTreeMap<String, String>>>,
    now: Millis,
}

impl Evaluator {
    /// Before second 0 of a run of `scenario`.
    #[must_use]
    pub fn new(scenario: &Scenario) -> Self {
        let steps = scenario
            .steps
            .iter()
            .map(|step| StepState {
                fired: None,
                due: None,
                when: match &step.trigger {
                    Trigger::At(_) => None,
                    Trigger::When { condition, .. } => Some(Tracker::new(condition, false)),
                },
                open: false,
                outcome: None,
            })
            .collect();
        Self {
            scenario: scenario.clone(),
            fired: Fired::default(),
            steps,
            watches: scenario.expect.iter().map(|e| Watch::new(&e.form)).collect(),
            calls: BTreeMap::new(),
            now: 0,
        }
    }

    /// Opens and closes what the clock or a step that fired opens and closes.
    fn tick(&mut self, now: Millis) {
        self.now = self.now.max(now);
        for (step, state) in self.scenario.steps.iter().zip(&mut self.steps) {
            if let Trigger::When { after, .. } = &step.trigger
                && !state.open
            {
                let start = after.as_ref().map_or(Some(0), |t| self.fired.resolve(t));
                state.open = start.is_some_and(|t| t <= now);
            }
        }
        for watch in &mut self.watches {
            watch.tick(now, &self.fired);
        }
    }

    /// Something happened.
    pub fn on_event(&mut self, event: &SimEvent) {
        self.tick(event.t);
        for state in &mut self.steps {
            if let Some(tracker) = &mut state.when
                && state.open
                && state.due.is_none()
            {
                tracker.count(event);
            }
        }
        for watch in &mut self.watches {
            watch.on_event(event);
        }
    }

    /// The state may have changed; to be called after every event and every carried out step.
    pub fn on_change(&mut self, now: Millis, view: &dyn View) {
        self.tick(now);
        self.latch(now, view);
        for watch in &mut self.watches {
            watch.on_change(now, view, false);
        }
    }

    /// Conditions of `when` steps that hold now.
    fn latch(&mut self, now: Millis, view: &dyn View) {
        for (step, state) in self.scenario.steps.iter().zip(&mut self.steps) {
            if let (Some(tracker), Trigger::When { delay, .. }) = (&state.when, &step.trigger)
                && state.open
                && state.due.is_none()
                && tracker.holds(view)
            {
                state.due = Some(now + delay);
            }
        }
    }

    fn due_at(&self, index: usize) -> Option<Millis> {
        let (step, state) = (self.scenario.steps.get(index)?, self.steps.get(index)?);
        match &step.trigger {
            Trigger::At(time) => self.fired.resolve(time),
            Trigger::When { .. } => state.due,
        }
    }

    /// The steps to carry out now, by their index, in order; they count as fired from here on.
    pub fn due_steps(&mut self, now: Millis, view: &dyn View) -> Vec<usize> {
        self.tick(now);
        self.latch(now, view);
        let mut due: Vec<(Millis, usize)> = (0..self.steps.len())
            .filter(|i| self.steps.get(*i).is_some_and(|s| s.fired.is_none()))
            .filter_map(|i| self.due_at(i).filter(|t| *t <= now).map(|t| (t, i)))
            .collect();
        due.sort_unstable();
        let before_steps = !due.is_empty();
        // What began earlier is judged by the state before the steps, too.
        for watch in &mut self.watches {
            watch.on_change(now, view, before_steps);
        }
        for (_, index) in &due {
            if let Some(state) = self.steps.get_mut(*index) {
                state.fired = Some(now);
            }
            if let Some(id) = self.scenario.steps.get(*index).and_then(|s| s.id.clone()) {
                self.fired.0.insert(id, now);
            }
        }
        self.tick(now);
        for watch in &mut self.watches {
            watch.on_time(now, view, &self.fired);
        }
        due.into_iter().map(|(_, index)| index).collect()
    }

    /// The next moment at which [`Self::due_steps`] must be called; past ones count as now.
    #[must_use]
    pub fn next_deadline(&self) -> Millis {
        let steps = (0..self.steps.len())
            .filter(|i| self.steps.get(*i).is_some_and(|s| s.fired.is_none()))
            .filter_map(|i| self.due_at(i));
        let starts = self.scenario.steps.iter().zip(&self.steps).filter_map(|(step, state)| {
            match &step.trigger {
                Trigger::When { after: Some(after), .. } if !state.open => {
                    self.fired.resolve(after)
                }
                Trigger::When { .. } | Trigger::At(_) => None,
            }
        });
        let edges = self.watches.iter().filter_map(|w| w.deadline(&self.fired));
        let first = steps.chain(starts).chain(edges).min();
        first.unwrap_or(Millis::MAX).min(self.until()).max(self.now)
    }

    /// When the run ends, as far as is known now: `until`; without it [`DEFAULT_REST`] after the
    /// last step and the last time an expectation names. While a step that it depends on has not
    /// fired: [`DEFAULT_PATIENCE`] after the last time that the file names.
    #[must_use]
    pub fn until(&self) -> Millis {
        let last_named = self.last_named();
        match &self.scenario.until {
            Some(time) => self.fired.resolve(time).unwrap_or(last_named + DEFAULT_PATIENCE),
            None if self.steps.iter().all(|s| s.fired.is_some()) => {
                let last = self.steps.iter().filter_map(|s| s.fired).max().unwrap_or(0);
                last.max(last_named) + DEFAULT_REST
            }
            None => last_named + DEFAULT_PATIENCE,
        }
    }

    /// Whether the run is over.
    #[must_use]
    pub fn is_over(&self, now: Millis) -> bool {
        now >= self.until()
    }

    fn last_named(&self) -> Millis {
        let steps = self.scenario.steps.iter().filter_map(|step| match &step.trigger {
            Trigger::At(time) => self.fired.resolve(time),
            Trigger::When { after, delay, .. } => {
                after.as_ref().and_then(|t| self.fired.resolve(t)).map(|t| t + delay)
            }
        });
        let expectations = self.watches.iter().filter_map(|w| w.last_named(&self.fired));
        steps.chain(expectations).max().unwrap_or(0)
    }

    /// What became of a step that is a user's order; the last word counts.
    pub fn step_outcome(&mut self, step: usize, outcome: Outcome, message: impl Into<String>) {
        if let Some(state) = self.steps.get_mut(step) {
            state.outcome = Some((outcome, message.into()));
        }
    }

    /// A fence device was called with these parameters.
    pub fn device_called(&mut self, device: &str, parameters: &BTreeMap<String, String>) {
        self.calls.entry(device.to_owned()).or_default().push(parameters.clone());
    }

    /// The run is over: everything that did not hold.
    pub fn finish(&mut self, now: Millis, view: &dyn View) -> Vec<Failure> {
        self.tick(now);
        for watch in &mut self.watches {
            watch.on_change(now, view, false);
            watch.on_time(now, view, &self.fired);
        }
        let mut failures = Vec::new();
        for (step, state) in self.scenario.steps.iter().zip(&self.steps) {
            if state.fired.is_none() {
                let seen = match &state.when {
                    Some(tracker) if state.open => {
                        format!("it never fired; at the end {}", tracker.seen(view))
                    }
                    Some(_) | None => "it never fired".to_owned(),
                };
                failures.push(Failure {
                    expectation: None,
                    text: print::step(step),
                    seen,
                    line: step.line.0,
                });
            }
        }
        for (index, expectation) in self.scenario.expect.iter().enumerate() {
            let seen = match &expectation.form {
                Form::Step { step, outcome, message } => self.judge_step(step, outcome, message),
                Form::Device { device, received } => self.judge_device(device, received),
                _ => self.watches.get(index).and_then(|w| w.verdict(view)),
            };
            if let Some(seen) = seen {
                failures.push(Failure {
                    expectation: Some(index),
                    text: print::expectation(expectation),
                    seen,
                    line: expectation.line.0,
                });
            }
        }
        failures
    }

    fn judge_step(&self, id: &str, wanted: &[Outcome], message: &[String]) -> Option<String> {
        let index = self.scenario.steps.iter().position(|s| s.id.as_deref() == Some(id))?;
        let (step, state) = (self.scenario.steps.get(index)?, self.steps.get(index)?);
        let Some(_) = state.fired else { return Some("the step never fired".to_owned()) };
        let (outcome, text) = state
            .outcome
            .clone()
            .unwrap_or_else(|| (Outcome::Pending, "nothing was said of it".to_owned()));
        let fits = wanted.is_empty() || wanted.iter().any(|w| same(*w, outcome, &step.verb));
        let lower = text.to_lowercase();
        let says = message.is_empty() || message.iter().any(|m| lower.contains(&m.to_lowercase()));
        (!(fits && says)).then(|| format!("{outcome}: {text}"))
    }

    fn judge_device(&self, device: &str, wanted: &BTreeMap<String, String>) -> Option<String> {
        let calls = self.calls.get(device).map(Vec::as_slice).unwrap_or_default();
        let fits = |call: &BTreeMap<String, String>| {
            wanted.iter().all(|(key, value)| call.get(key) == Some(value))
        };
        if calls.iter().any(fits) {
            return None;
        }
        let Some(last) = calls.last() else { return Some("it was never called".to_owned()) };
        let shown: Vec<String> = last.iter().map(|(k, v)| format!("{k}={v}")).collect();
        Some(format!("{} calls, the last with {}", calls.len(), shown.join(" ")))
    }
}

/// Whether what became of an order is what was wanted. An order that only the API answers has
/// succeeded when it was accepted; one that was accepted may since be under way or done.
fn same(wanted: Outcome, seen: Outcome, verb: &Verb) -> bool {
    wanted == seen
        || match (wanted, seen) {
            (Outcome::Accepted, Outcome::Succeeded | Outcome::Pending) => true,
            (Outcome::Succeeded, Outcome::Accepted) => verb.order() == Some(OrderKind::Accepted),
            _ => false,
        }
}
