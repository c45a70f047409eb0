//! How long the agent holds its host back at a clean shutdown.

use stockade_crds::v1alpha1::HostAgentSpec;
use stockade_host::ports::MachineFacts;

/// How long kills and the last report may take once the limit of a shutdown is over, in
/// milliseconds.
pub(crate) const LAST_WORD: u64 = 20_000;

/// How long guests may take to stop, in milliseconds: as the policy says, but never so long that the
/// init system would stop waiting before all is killed and said.
pub(crate) fn limit(spec: &HostAgentSpec, facts: &MachineFacts) -> u64 {
    let patience = facts.holds_back_seconds.map_or(u64::MAX, |s| s.saturating_mul(1_000));
    wanted(spec).min(patience.saturating_sub(LAST_WORD))
}

/// A sentence if the init system waits for less than the policy wants.
pub(crate) fn problem(spec: &HostAgentSpec, facts: &MachineFacts) -> Option<String> {
    let needed = wanted(spec).saturating_add(LAST_WORD) / 1_000;
    let waits = facts.holds_back_seconds.filter(|seconds| *seconds < needed)?;
    Some(format!(
        "a shutdown of this host waits {waits} s at most, and guests are killed {} s before that; \
         the policy's hostShutdownLimitSeconds needs {needed}: raise InhibitDelayMaxSec in \
         /etc/systemd/logind.conf.d and restart systemd-logind",
        LAST_WORD / 1_000
    ))
}

fn wanted(spec: &HostAgentSpec) -> u64 {
    u64::try_from(spec.shutdown_limit_seconds).unwrap_or(0).saturating_mul(1_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(limit: i32, waits: Option<u64>) -> (u64, Option<String>) {
        let spec = HostAgentSpec { shutdown_limit_seconds: limit, ..HostAgentSpec::default() };
        let facts = MachineFacts { holds_back_seconds: waits, ..MachineFacts::default() };
        (super::limit(&spec, &facts), problem(&spec, &facts))
    }

    #[test]
    fn guests_are_killed_before_the_init_system_stops_waiting_and_a_sentence_says_so() {
        assert_eq!(at(300, None), (300_000, None));
        assert_eq!(at(300, Some(320)), (300_000, None));
        let (limit, problem) = at(300, Some(319));
        assert_eq!(limit, 299_000);
        assert!(problem.is_some_and(|p| p.contains("319 s") && p.contains("needs 320")));
        assert_eq!(at(300, Some(5)).0, 0);
    }
}
