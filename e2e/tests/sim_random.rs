//! Random runs: whatever befalls a cluster, no promise is broken, and once it is mended all that
//! is wanted runs, all hosts are Ready, and nobody has anything left to write.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::sync::Mutex;

use stockade_sim::oracle::{RULES, Rule};
use stockade_sim::random::{self, MOVES, Symptom};
use stockade_sim::scenario::{campaign, print};

stockade_sim::link_hooks!();

/// Seeds of one test run, those that are heavy with moves among them; `STOCKADE_SEEDS=A..B` runs
/// others. `sim_determinism` runs the first ones, twice.
fn seeds() -> Vec<u64> {
    let wanted = std::env::var("STOCKADE_SEEDS").ok();
    let seeds = wanted.map(|text| campaign::parse_seeds(&text).unwrap());
    seeds.map_or_else(|| SEEDS.chain(MOVES..MOVES + 200).collect(), |s| (s.start..s.end).collect())
}

const SEEDS: Range<u64> = 201..801;

#[test]
fn no_promise_is_broken_and_all_that_is_wanted_runs_in_the_end() {
    let seeds = seeds();
    let failed = Mutex::new(BTreeMap::new());
    let exercised: Mutex<BTreeMap<Rule, u64>> = Mutex::default();
    campaign::on_all_cores(seeds.clone(), None, |seed| {
        let scenario = random::scenario(seed).unwrap();
        match campaign::one(&scenario, seed) {
            Ok(outcome) => {
                for (rule, n) in &outcome.exercised {
                    *exercised.lock().unwrap().entry(*rule).or_default() += n;
                }
                if !outcome.verdict.passed {
                    failed.lock().unwrap().insert(seed, outcome.verdict.lines("drawn"));
                }
            }
            Err(why) => {
                failed.lock().unwrap().insert(seed, why);
            }
        }
        ControlFlow::Continue(())
    });
    let failed = failed.into_inner().unwrap();
    if let Some((seed, first)) = failed.iter().next() {
        let scenario = random::scenario(*seed).unwrap();
        let symptom = |s: &_| Symptom::of(&campaign::one(s, *seed).ok()?);
        let file = symptom(&scenario).map(|wanted| {
            let mended = random::MENDED * 1000;
            print::scenario(&random::shrink(&scenario, &wanted, mended, 100, symptom))
        });
        panic!(
            "{} of {} seeds failed: {:?}; the first:\n{first}\nas small as it was found, for --seeds \
             {seed}:\n{}",
            failed.len(),
            seeds.len(),
            failed.keys().collect::<Vec<_>>(),
            file.unwrap_or_default()
        );
    }
    // A promise that nothing put to the test was not kept, only never asked for.
    let exercised = exercised.into_inner().unwrap();
    let idle: Vec<_> = RULES.iter().filter(|r| !exercised.contains_key(*r)).collect();
    if seeds.len() >= 300 {
        assert!(idle.is_empty(), "never exercised: {idle:?}");
    }
}
