//! A safety rule that is dropped is missed: each of these scenarios holds with all rules, and
//! breaks without the one that it is for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use stockade_sim::hooks::run_deterministic;
use stockade_sim::kube::{Fault, Scope};
use stockade_sim::random::{self, Symptom};
use stockade_sim::runner::{Cluster, HostPlan};
use stockade_sim::scenario::run::{RULE_NAMES, Rules};
use stockade_sim::scenario::{Scenario, campaign, load, parse, print};

stockade_sim::link_hooks!();

/// Seeds of each arm.
const SEEDS: std::ops::Range<u64> = 1..4;

/// How a dropped rule is noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Misses {
    /// The oracle sees a promise broken.
    Oracle,
    /// What the scenario expects does not come true: nothing runs twice, but harm is done.
    Expectation,
}
use Misses::{Expectation, Oracle};

/// The rule that is dropped, which is also the name of its scenario; others that do the same work,
/// dropped in both runs so that it stands alone; what misses it.
const MUTANTS: &[(&str, &[&str], Misses)] = &[
    ("controller.settled", &[], Oracle),
    ("controller.finalizer", &["agent.older_record"], Oracle),
    ("controller.missing_is_no_release", &[], Oracle),
    ("controller.drained", &[], Oracle),
    ("controller.fresh_read", &["controller.round_trip", "agent.dead_beats"], Oracle),
    ("controller.fresh_off", &["controller.round_trip"], Expectation),
    ("controller.life_revokes", &[], Oracle),
    ("controller.superseded", &[], Oracle),
    ("controller.lineage", &[], Oracle),
    ("controller.life_bars", &[], Expectation),
    ("controller.read_back", &[], Oracle),
    ("controller.plug_trust", &[], Expectation),
    ("controller.one_device", &[], Expectation),
    ("controller.armed", &[], Oracle),
    ("controller.denial_first", &[], Oracle),
    ("controller.lock_files", &[], Oracle),
    ("controller.numbers", &[], Oracle),
    ("controller.one_owner", &["agent.older_record"], Oracle),
    ("controller.second_path", &[], Oracle),
    ("controller.observer_health", &[], Oracle),
    ("controller.round_trip", &["controller.fresh_off"], Expectation),
    ("controller.brake", &[], Expectation),
    ("controller.shot_noted", &[], Oracle),
    ("controller.needed", &[], Oracle),
    ("controller.ready_first", &[], Expectation),
    ("controller.void_word", &["agent.leave_paused"], Oracle),
    ("controller.commit_left", &[], Oracle),
    ("controller.burnt", &[], Oracle),
    ("controller.undecided_move", &[], Oracle),
    ("agent.epoch", &["controller.lineage"], Oracle),
    ("agent.boot", &[], Oracle),
    ("agent.once", &[], Oracle),
    ("agent.missing_is_no_stop", &[], Expectation),
    ("agent.marker", &["agent.newer_record", "agent.older_record", "agent.own_record"], Oracle),
    ("agent.journal", &["agent.hook"], Oracle),
    ("agent.journal_first", &[], Oracle),
    ("agent.record", &[], Oracle),
    ("agent.newer_record", &["agent.own_record"], Oracle),
    ("agent.older_record", &[], Oracle),
    ("agent.own_record", &[], Oracle),
    ("agent.gone", &[], Oracle),
    ("agent.drained", &[], Oracle),
    ("agent.fresh_read", &[], Expectation),
    ("agent.dead_beats", &[], Oracle),
    ("agent.suspends", &[], Expectation),
    ("agent.hook", &[], Oracle),
    ("agent.leave_paused", &[], Oracle),
    ("agent.source_waits", &["agent.leave_paused"], Oracle),
    ("agent.completed_wins", &[], Expectation),
    ("agent.move_once", &[], Expectation),
    ("agent.fresh_move", &[], Expectation),
    ("agent.lock_kept", &[], Oracle),
    ("agent.transient", &["agent.hook"], Oracle),
];

#[test]
fn every_dropped_rule_is_missed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/mutants");
    let wrong = Mutex::new(Vec::new());
    campaign::on_all_cores(MUTANTS.to_vec(), None, |(dropped, also, misses)| {
        let scenario = load(&folder.join(format!("{dropped}.yaml"))).unwrap().remove(0);
        let masks = also.join(",");
        let with = if also.is_empty() { Rules::default() } else { Rules::without(&masks).unwrap() };
        let without = [&[dropped], also].concat().join(",");
        let without = Rules::without(&without).unwrap();
        for seed in SEEDS {
            let held = campaign::one_under(&scenario, seed, with, None).unwrap().verdict;
            if !held.passed {
                let text = held.lines(dropped);
                wrong.lock().unwrap().push(format!("it fails with all rules: {text}"));
            }
            let broke = campaign::one_under(&scenario, seed, without, None).unwrap().verdict;
            let missed = match misses {
                Oracle => !broke.violations.is_empty(),
                Expectation => !broke.passed,
            };
            if !missed {
                let text = broke.lines(dropped);
                wrong.lock().unwrap().push(format!("nobody misses {dropped}: {text}"));
            }
        }
        ControlFlow::Continue(())
    });
    let wrong = wrong.into_inner().unwrap();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What the oracle says of two leaders, of which one has just begun to see hosts beat and the other
/// sees everything two seconds late. No owner record and no lock stands in for the swap.
fn leaders_that_choose_differently(seed: u64, cas: bool) -> Vec<String> {
    let run = move || async move {
        let hosts = ["h1", "h2", "h3"].map(HostPlan::new);
        let agents = AgentGuards { own_record: false, ..AgentGuards::default() };
        let guards = Guards { cas, ..Guards::default() };
        let c = Cluster::new(seed, &hosts, guards, agents).unwrap();
        c.api.admin().delete("LockManager", None, "locks").unwrap();
        let vms: Vec<String> = (0..8).map(|n| n.to_string()).collect();
        for vm in &vms {
            c.add_vm(vm, json!({"runPolicy": "Halted"})).unwrap();
        }
        c.pass(30).await;
        let first = ["controller/0", "controller/1"].map(str::to_owned).to_vec();
        c.api.faults().inject(Scope::Only(first), Fault::Stale(Duration::from_secs(2)));
        c.start_second_leader();
        let user = c.api.admin().named("user");
        let start = json!({"spec": {"runPolicy": "Always"}});
        for vm in &vms {
            tokio::time::sleep(Duration::from_millis(250)).await;
            user.apply_merge("VirtualMachine", Some("default"), vm, &start, false).unwrap();
        }
        c.pass(30).await;
        c.violations()
    };
    run_deterministic(seed, run).unwrap()
}

#[test]
fn a_placement_is_a_compare_and_swap() {
    // Two leaders seldom choose differently, so it is missed for some seeds alone.
    let seeds = 1..9;
    for seed in seeds.clone() {
        assert_eq!(leaders_that_choose_differently(seed, true), Vec::<String>::new(), "{seed}");
    }
    let missed =
        seeds.clone().find(|seed| !leaders_that_choose_differently(*seed, false).is_empty());
    assert!(missed.is_some(), "nobody misses controller.cas with the seeds {seeds:?}");
}

/// The first drawn seed that is looked at without `agent.drained`; one of the next ones misses it.
const DRAWN_FROM: u64 = 1;

#[test]
fn a_drawn_failure_is_shrunk_to_a_file_that_fails_the_same_way() {
    let without = Rules::without("agent.drained").unwrap();
    let symptom = |scenario: &Scenario, seed| {
        Symptom::of(&campaign::one_under(scenario, seed, without, None).ok()?)
    };
    let misses = |seed| {
        let drawn = random::scenario(seed).unwrap();
        let wanted = symptom(&drawn, seed)?;
        matches!(wanted, Symptom::Violation(_)).then_some((seed, drawn, wanted))
    };
    let found = (DRAWN_FROM..DRAWN_FROM + 300).find_map(misses);
    let (seed, drawn, wanted) = found.expect("no drawn seed misses agent.drained");
    let mended = random::MENDED * 1_000;
    let small = random::shrink(&drawn, &wanted, mended, 200, |smaller| symptom(smaller, seed));
    let text = print::scenario(&small);
    assert!(small.steps.len() * 3 < drawn.steps.len(), "seed {seed} is no smaller:\n{text}");
    let again = parse(&text, "shrunk", None).unwrap().remove(0);
    assert_eq!(again, small, "{text}");
    assert_eq!(symptom(&again, seed), Some(wanted), "seed {seed} fails in another way:\n{text}");
    let held = campaign::one(&again, seed).unwrap().verdict;
    assert_eq!(held.violations, Vec::<String>::new(), "it breaks with all rules:\n{text}");
}

#[test]
fn every_rule_that_can_be_dropped_is_tried() {
    // The source of a simulated move is gone at the instant at which the target has everything:
    // `an_unknown_answer_is_decided_by_both_sides_and_never_by_guess` of the core tries that one.
    // The compare-and-swap has its test above.
    let elsewhere = [&"controller.cas", &"controller.unknown_move"];
    let tried: Vec<&str> = MUTANTS.iter().map(|(dropped, ..)| *dropped).collect();
    let untried: Vec<_> = RULE_NAMES.iter().filter(|rule| !tried.contains(*rule)).collect();
    assert_eq!(untried, elsewhere);
}
