use std::collections::BTreeSet;

use super::*;
use crate::scenario::ast::{VERBS, Verb};
use crate::scenario::print;
use crate::scenario::words::{
    ApiIs, BmcIs, ControllerIs, FailOp, Process, StorageIs, VirshAction, Word as _,
};

#[test]
fn every_drawn_scenario_follows_the_format_and_survives_printing() {
    for seed in (0..300).chain(MOVES..MOVES + 300) {
        let drawn =
            scenario(seed).unwrap_or_else(|e| panic!("{seed}: {e}\n{}", generate::text(seed)));
        let printed = print::scenario(&drawn);
        let again = crate::scenario::parse(&printed, "printed", None).unwrap().remove(0);
        assert_eq!(drawn, again, "{seed}");
    }
}

/// Verbs that are no faults of a run that heals by itself: what is measured changes, what is there
/// or wanted is another, or a human says which copy is the VM.
const NEVER_DRAWN: [&str; 4] = ["load", "add", "patch", "adopt"];

#[test]
fn the_draws_cover_every_fault() {
    let mut verbs = BTreeSet::new();
    let mut words = BTreeSet::new();
    for seed in (0..300).chain(MOVES..MOVES + 300) {
        for step in scenario(seed).unwrap().steps {
            verbs.insert(step.verb.word());
            match step.verb {
                Verb::Bmc { is, .. } => words.insert(is.word()),
                Verb::Storage { is, .. } => words.insert(is.word()),
                Verb::Api { is, .. } => words.insert(is.word()),
                Verb::Controller { is } => words.insert(is.word()),
                Verb::Virsh { action, .. } => words.insert(action.word()),
                Verb::Fail { op, .. } => words.insert(op.word()),
                Verb::StaleLock { .. } => words.insert("stale-lock"),
                Verb::CrashAgent { process, .. } => words.insert(process.word()),
                _ => false,
            };
        }
    }
    let faults: BTreeSet<&str> =
        VERBS.iter().copied().filter(|verb| !NEVER_DRAWN.contains(verb)).collect();
    assert_eq!(verbs, faults);
    // Nobody but a human resumes after the API went back, another cluster does not give a storage
    // back as it was, and a VM that was moved by hand waits for a human's word.
    let never = ["restored", "foreign", "migrate"];
    let all = [
        BmcIs::WORDS,
        StorageIs::WORDS,
        ApiIs::WORDS,
        ControllerIs::WORDS,
        VirshAction::WORDS,
        FailOp::WORDS,
        Process::WORDS,
        &["stale-lock"],
    ];
    let all = all.into_iter().flatten().copied().filter(|word| !never.contains(word));
    let missing: Vec<&str> = all.filter(|word| !words.contains(word)).collect();
    assert!(missing.is_empty(), "never drawn: {missing:?}");
}

#[test]
fn seeds_of_moves_draw_every_way_in_which_one_fails() {
    let mut ways = BTreeSet::new();
    for seed in MOVES..MOVES + 300 {
        let steps = scenario(seed).unwrap().steps;
        let moves = steps.iter().filter(|s| s.verb.word() == "migrate").count();
        assert!(moves >= 4, "{seed}: {moves}");
        ways.extend(steps.into_iter().filter_map(|s| match s.verb {
            Verb::Fail { op: FailOp::Migrate, stage, how, .. } => Some((stage, how)),
            _ => None,
        }));
    }
    assert_eq!(ways.len(), 3 + 3 + 5, "{ways:?}");
}

#[test]
fn shrinking_leaves_what_is_needed_and_no_more() {
    let drawn = scenario(1).unwrap();
    let needed = drawn.steps.iter().filter(|s| s.verb.word() == "power-on").count();
    assert!(needed > 0 && drawn.steps.len() > needed);
    let symptom = Symptom::Violation("as if".to_owned());
    let fails = |s: &crate::scenario::Scenario| {
        let on = s.steps.iter().any(|s| s.verb.word() == "power-on");
        on.then(|| symptom.clone())
    };
    let small = shrink(&drawn, &symptom, MENDED * 1000, 1_000, fails);
    assert_eq!(small.steps.len(), 1, "{}", print::scenario(&small));
    assert!(small.vms.is_empty());
}
