//! One seed is one run: the same log, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;

use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use stockade_sim::hooks::run_deterministic;
use stockade_sim::random;
use stockade_sim::runner::{Cluster, HostPlan};
use stockade_sim::scenario::{campaign, output};

stockade_sim::link_hooks!();

/// Everything that a run tells, in one text.
fn log(seed: u64) -> String {
    let scenario = random::scenario(seed).unwrap();
    let outcome = campaign::one(&scenario, seed).unwrap();
    let verdict = &outcome.verdict;
    assert!(
        verdict.passed,
        "{}\nSTOCKADE_SEEDS={seed}..{} shrinks it",
        verdict.lines("drawn"),
        seed + 1
    );
    let mut lines: Vec<String> = outcome.events.iter().map(output::json).collect();
    lines.push(outcome.verdict.json());
    lines.join("\n")
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let first_difference = |a: &str, b: &str| {
        a.lines().zip(b.lines()).find(|(a, b)| a != b).map(|(a, b)| format!("{a}\n{b}"))
    };
    campaign::on_all_cores((1..=200).collect(), None, |seed: u64| {
        let (a, b) = (log(seed), log(seed));
        assert!(a.len() > 1_000, "seed {seed} tells nothing");
        assert!(a == b, "seed {seed}: {:?}", first_difference(&a, &b));
        ControlFlow::Continue(())
    });
}

/// Requests to the API in a minute of four hosts with eight VMs in which nothing happens.
fn quiet_minute() -> u64 {
    let run = || async {
        let hosts = ["h1", "h2", "h3", "h4"].map(HostPlan::new);
        let c = Cluster::new(1, &hosts, Guards::default(), AgentGuards::default()).unwrap();
        for vm in 0..8 {
            c.add_vm(&vm.to_string(), serde_json::json!({"runPolicy": "Always"})).unwrap();
        }
        c.pass(120).await;
        let requests = || -> u64 { c.api.admin().requests().values().sum() };
        let before = requests();
        c.pass(60).await;
        requests() - before
    };
    run_deterministic(1, run).unwrap()
}

/// How fast a simulation is depends on the machine; what it asks of the API does not. A number that
/// falls is a gain: lower the bound.
#[test]
fn a_minute_in_which_nothing_happens_costs_no_more_than_it_did() {
    let requests = quiet_minute();
    assert_eq!(requests, quiet_minute());
    assert!(requests <= 290, "{requests} requests");
}
