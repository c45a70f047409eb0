//! A safety rule that is dropped is missed: each of these scenarios holds with all rules, and fails
//! without the one that it is for.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;

use stockade_sim::scenario::run::Rules;
use stockade_sim::scenario::{campaign, load};

/// The rules dropped, and the scenario that misses them.
const MUTANTS: [(&str, &str); 2] =
    [("controller.brake", "two-of-three-silent"), ("controller.life_revokes", "life-after-proof")];

#[test]
fn every_dropped_rule_is_missed() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/mutants");
    for (dropped, file) in MUTANTS {
        let scenario = load(&folder.join(format!("{file}.yaml"))).unwrap().remove(0);
        let passes = |rules: Rules| {
            (1..5)
                .map(|s| campaign::one_under(&scenario, s, rules, None).unwrap().verdict.passed)
                .filter(|passed| *passed)
                .count()
        };
        assert_eq!(passes(Rules::default()), 4, "{file} fails with all rules");
        assert_eq!(passes(Rules::without(dropped).unwrap()), 0, "nobody misses {dropped}");
    }
}
