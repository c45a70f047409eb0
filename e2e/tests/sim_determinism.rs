//! One seed is one run: the same log, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::ops::ControlFlow;

use stockade_sim::random;
use stockade_sim::scenario::{campaign, output};

stockade_sim::link_hooks!();

/// Everything that a run tells, in one text.
fn log(seed: u64) -> String {
    let scenario = random::scenario(seed).unwrap();
    let outcome = campaign::one(&scenario, seed).unwrap();
    let mut lines: Vec<String> = outcome.events.iter().map(output::json).collect();
    lines.push(outcome.verdict.json());
    lines.join("\n")
}

#[test]
fn the_same_seed_gives_the_same_log() {
    let first_difference = |a: &str, b: &str| {
        a.lines().zip(b.lines()).find(|(a, b)| a != b).map(|(a, b)| format!("{a}\n{b}"))
    };
    campaign::on_all_cores((1..=40).collect(), None, |seed: u64| {
        let (a, b) = (log(seed), log(seed));
        assert!(a.len() > 1_000, "seed {seed} tells nothing");
        assert!(a == b, "seed {seed}: {:?}", first_difference(&a, &b));
        ControlFlow::Continue(())
    });
}
