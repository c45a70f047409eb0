//! The smallest scenario that fails as a failed one did.

use crate::scenario::Scenario;
use crate::scenario::ast::{Millis, Step, Time, Trigger};
use crate::scenario::run::Outcome;

/// How a run failed, without the times and names that a smaller scenario changes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Symptom {
    /// An invariant was broken: its sentence.
    Violation(String),
    /// An expectation did not hold: its text.
    Expectation(String),
}

impl Symptom {
    /// The gravest failure of a run; `None` if it passed.
    #[must_use]
    pub fn of(outcome: &Outcome) -> Option<Self> {
        let verdict = &outcome.verdict;
        if let Some(violation) = verdict.violations.first() {
            // `12.345 the rule: what was seen`
            let text = violation.split_once(' ').map_or(violation.as_str(), |(_, text)| text);
            let rule = text.split(':').next().unwrap_or(text);
            return Some(Self::Violation(rule.to_owned()));
        }
        verdict.failures.first().map(|failure| Self::Expectation(failure.text.clone()))
    }
}

/// Leaves out steps and VMs as long as `fails` still says the same of what is left. It asks at most
/// `budget` times. Where something did not come true in the end, the steps from `mended` on stay:
/// without them it can't.
pub fn shrink(
    scenario: &Scenario,
    symptom: &Symptom,
    mended: Millis,
    budget: usize,
    mut fails: impl FnMut(&Scenario) -> Option<Symptom>,
) -> Scenario {
    let mut best = scenario.clone();
    let mut left = budget;
    let mut same = |candidate: &Scenario, left: &mut usize| {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        fails(candidate).as_ref() == Some(symptom)
    };
    let fixed = |step: &Step| {
        matches!(symptom, Symptom::Expectation(_))
            && matches!(&step.trigger, Trigger::At(Time::At(t)) if *t >= mended)
    };
    // First whole halves of the schedule, then smaller parts, then one step at a time.
    let mut size = best.steps.len().div_ceil(2).max(1);
    loop {
        let mut start = 0;
        let mut changed = false;
        while start < best.steps.len() {
            let end = (start + size).min(best.steps.len());
            let mut candidate = best.clone();
            let mut index = 0;
            candidate.steps.retain(|step| {
                index += 1;
                !(start..end).contains(&(index - 1)) || fixed(step)
            });
            if candidate.steps.len() == best.steps.len() {
                start = end;
            } else if whole(&candidate) && same(&candidate, &mut left) {
                best = candidate;
                changed = true;
            } else {
                start = end;
            }
        }
        if size == 1 && !changed || left == 0 {
            break;
        }
        size = if size == 1 { 1 } else { size.div_ceil(2) };
    }
    for index in (0..best.vms.len()).rev() {
        let mut candidate = best.clone();
        let name = candidate.vms.remove(index).name;
        candidate.expect.retain(|e| !crate::scenario::print::expectation(e).contains(&name));
        candidate.rules.retain(|rule| !rule.vms.contains(&name));
        if whole(&candidate) && same(&candidate, &mut left) {
            best = candidate;
        }
    }
    best
}

/// Whether a scenario can be written down and read again: nothing names what was left out.
fn whole(scenario: &Scenario) -> bool {
    let text = crate::scenario::print::scenario(scenario);
    crate::scenario::parse(&text, "shrunk", None).is_ok()
}
