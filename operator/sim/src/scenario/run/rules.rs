//! The safety rules that a run is under. All hold, unless a test drops some to show that they are
//! needed.

use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use strsim::jaro_winkler;

/// The safety rules that hold in a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rules {
    /// The controller's.
    pub controller: Guards,
    /// The agents'.
    pub agent: AgentGuards,
}

/// Names each field of a struct of guards.
macro_rules! names {
    ($($side:ident: $($field:ident)+;)+) => {
        /// All rules by name: `controller.brake`.
        pub const NAMES: &[&str] =
            &[$($(concat!(stringify!($side), ".", stringify!($field)),)+)+];

        impl Rules {
            fn drop_one(&mut self, name: &str) -> bool {
                match name {
                    $($(
                        concat!(stringify!($side), ".", stringify!($field)) => {
                            self.$side.$field = false;
                        }
                    )+)+
                    _ => return false,
                }
                true
            }
        }
    };
}

names! {
    controller: settled finalizer missing_is_no_release drained cas fresh_read fresh_off
        life_revokes superseded lineage life_bars read_back plug_trust one_device armed denial_first
        lock_files numbers one_owner second_path observer_health round_trip brake shot_noted needed ready_first
        void_word commit_left burnt unknown_move undecided_move;
    agent: epoch boot once missing_is_no_stop marker journal journal_first record newer_record
        older_record own_record gone drained fresh_read dead_beats suspends hook leave_paused
        source_waits completed_wins move_once fresh_move lock_kept transient;
}

impl Rules {
    /// All rules but those named, separated by commas.
    ///
    /// # Errors
    /// A name that is no rule, with the nearest one that is.
    pub fn without(names: &str) -> Result<Self, String> {
        let mut rules = Self::default();
        for name in names.split(',').map(str::trim) {
            if !rules.drop_one(name) {
                let near = NAMES
                    .iter()
                    .max_by(|a, b| jaro_winkler(a, name).total_cmp(&jaro_winkler(b, name)));
                let near = near.copied().unwrap_or_default();
                return Err(format!("no safety rule is named {name:?}; did you mean {near}?"));
            }
        }
        Ok(rules)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_dropped_by_name_alone() {
        let rules = Rules::without("controller.brake, agent.epoch").unwrap();
        let controller = Guards { brake: false, ..Guards::default() };
        let agent = AgentGuards { epoch: false, ..AgentGuards::default() };
        assert_eq!((rules.controller, rules.agent), (controller, agent));
        let wrong = Rules::without("controller.brak").unwrap_err();
        assert!(wrong.contains("controller.brake"), "{wrong}");
        for name in NAMES {
            assert!(Rules::without(name).is_ok(), "{name}");
        }
    }
}
