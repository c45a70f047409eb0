use super::*;
use crate::scenario::ast::Verb;
use crate::scenario::print;
use crate::scenario::words::FailOp;

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

#[test]
fn the_draws_cover_every_fault() {
    let mut verbs = std::collections::BTreeSet::new();
    for seed in 0..300 {
        verbs.extend(scenario(seed).unwrap().steps.iter().map(|s| s.verb.word()));
    }
    for verb in ["power-off", "panic", "isolate", "fail", "storage", "api", "bmc", "migrate"] {
        assert!(verbs.contains(verb), "{verb} is never drawn: {verbs:?}");
    }
}

#[test]
fn seeds_of_moves_draw_every_way_in_which_one_fails() {
    let mut ways = std::collections::BTreeSet::new();
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
