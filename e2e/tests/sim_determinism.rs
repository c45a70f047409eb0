//! One seed is one run: the same log, byte for byte.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use stockade_sim::random;
use stockade_sim::scenario::{campaign, output};

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
    let seeds = std::sync::Mutex::new(1..=40_u64);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = seeds.lock().unwrap().next();
                    let Some(seed) = seed else { return };
                    let (a, b) = (log(seed), log(seed));
                    assert!(a.len() > 1_000, "seed {seed} tells nothing");
                    assert!(a == b, "seed {seed}: {:?}", first_difference(&a, &b));
                }
            });
        }
    });
}
