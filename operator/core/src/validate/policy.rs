//! Inequalities of the policy that involve hosts and servers (safety §4).

use stockade_crds::v1alpha1::{AvailabilityPolicySpec, ProofKind, SelfFence, SharedStorage};

use super::Problem;

/// Seconds that the writes of a killed VM may take to reach the disk.
pub const DRAIN_SECONDS: i64 = 10;

/// Seconds of silence after which a host that resets itself can't live any more:
/// (T_stop + T_kill + T_watchdog)·(1 + drift) + margin, rounded up (safety §4).
#[must_use]
pub fn elapsed_proof_seconds(timings: &SelfFence) -> i64 {
    let silence = i64::from(timings.stop_seconds)
        + i64::from(timings.kill_seconds)
        + i64::from(timings.watchdog_seconds);
    let drifted = (silence * (1000 + i64::from(timings.drift_per_mille)) + 999) / 1000;
    drifted + i64::from(timings.margin_seconds)
}

/// What makes the policy unsafe or useless with these storages and hosts.
///
/// `self_fencing` says whether some host declares that it resets itself.
#[must_use]
pub fn policy_problems<'a>(
    policy: &AvailabilityPolicySpec,
    storages: impl IntoIterator<Item = (&'a str, &'a SharedStorage)>,
    self_fencing: bool,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    if !self_fencing {
        let only_elapsed =
            policy.accepted_proofs.iter().all(|all| all.contains(&ProofKind::Elapsed));
        if only_elapsed {
            problems.push(Problem::waiting(
                "spec.acceptedProofs",
                "every accepted proof needs Elapsed, and no Host has selfFencing".to_owned(),
                "set spec.selfFencing on hosts with a watchdog, or accept Power or Human",
            ));
        }
        return problems;
    }
    let timings = &policy.self_fence;
    let stopped = i64::from(timings.stop_seconds) + i64::from(timings.kill_seconds) + DRAIN_SECONDS;
    for (name, storage) in storages {
        let Some(nfs) = &storage.spec.nfs else { continue };
        let lease = i64::from(nfs.lease_seconds);
        if stopped >= lease {
            problems.push(Problem::stalled(
                "spec.selfFence.stopSeconds",
                format!(
                    "a host stops writing {stopped} s after it falls silent, but the server of \
                     SharedStorage {name:?} gives its locks away after {lease} s"
                ),
                "lower stopSeconds or killSeconds, or raise the server's lease",
            ));
        }
    }
    problems
}
