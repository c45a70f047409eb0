use stockade_crds::v1alpha1::{AvailabilityPolicySpec, ProofKind, SelfFence, SharedStorage};

use super::*;

#[test]
fn the_elapsed_proof_waits_for_drift_and_margin() {
    let timings = SelfFence {
        stop_seconds: 20,
        kill_seconds: 5,
        watchdog_seconds: 15,
        drift_per_mille: 50,
        margin_seconds: 5,
        ..SelfFence::default()
    };
    assert_eq!(elapsed_proof_seconds(&timings), 47);
    let rounded = SelfFence { drift_per_mille: 1, ..timings };
    assert_eq!(elapsed_proof_seconds(&rounded), 46, "40.04 s must be rounded up");
}

#[test]
fn a_host_must_stop_before_the_server_gives_its_locks_away() {
    let text = "metadata: {name: n}\nspec: {mountPath: /srv/n, nfs: {server: a, export: /e, leaseSeconds: 30}}\n\
                apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage";
    let storage: SharedStorage = serde_yaml::from_str(text).unwrap();
    let mut policy = AvailabilityPolicySpec::default();
    let problems = policy_problems(&policy, [("n", &storage)], true);
    assert!(problems[0].message.contains("35 s") && problems[0].stalled, "{problems:?}");
    assert!(summary(&problems).contains(&problems[0].remedy));
    policy.self_fence.stop_seconds = 14;
    assert!(policy_problems(&policy, [("n", &storage)], true).is_empty());
    policy.self_fence.stop_seconds = 15;
    assert_eq!(policy_problems(&policy, [("n", &storage)], true).len(), 1, "equal is too late");
    assert!(policy_problems(&policy, [("n", &storage)], false).is_empty());
    policy.accepted_proofs = vec![vec![ProofKind::Elapsed]];
    assert_eq!(policy_problems(&policy, [], false).len(), 1);
}

#[test]
fn the_policys_valid_condition_tells_of_a_broken_inequality() {
    use crate::world::World;
    use std::sync::Arc;
    use stockade_crds::v1alpha1::{AvailabilityPolicy, Host};

    let storage = "metadata: {name: n}\nspec: {mountPath: /srv/n, nfs: {server: a, export: /e, leaseSeconds: 30}}\n\
                   apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage";
    let mut host = Host::new("h", Default::default());
    let said = |host: &Host| {
        let mut world = World::default();
        let policy = AvailabilityPolicy::new("default", AvailabilityPolicySpec::default());
        world.policy = Some(Arc::new(policy));
        world.storages.insert("n".into(), Arc::new(serde_yaml::from_str(storage).unwrap()));
        world.hosts.insert("h".into(), Arc::new(host.clone()));
        let mut plan = crate::plan::Plan::default();
        crate::hosts::plan(&world, &[], crate::ha::brake::Brake::default(), 0, &mut plan);
        let conditions = plan.policy.unwrap().conditions;
        conditions.into_iter().find(|c| c.type_ == "Valid").unwrap().status
    };
    assert_eq!(said(&host), Some(true), "no host resets itself, so no inequality matters");
    host.spec.self_fencing = true;
    assert_eq!(said(&host), Some(false));
}
