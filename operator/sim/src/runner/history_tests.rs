//! An API that went back (safety §2.9), on the real controller and agents.

use super::*;
use serde_json::{Value, json};
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use stockade_crds::conditions::HISTORY_INTACT;
use stockade_crds::v1alpha1::{AvailabilityPolicy, HostFence};

use crate::world::event::What;

/// Three hosts; VM 101 runs on h1, VM 102 on h2.
async fn bed(seed: u64) -> Cluster {
    let hosts: Vec<HostPlan> = ["h1", "h2", "h3"].map(HostPlan::new).to_vec();
    let c = Cluster::new(seed, &hosts, Guards::default(), AgentGuards::default()).unwrap();
    c.pass(30).await;
    for (vm, host) in [("101", "h1"), ("102", "h2")] {
        let placement = json!({"preferredHosts": [{"hosts": [host]}]});
        c.add_vm(vm, json!({"placement": placement})).unwrap();
        assert!(c.until_running(vm, "", 60).await.is_some());
    }
    c.pass(20).await;
    c.sim.lock().fault_beyond_api = true;
    c.sim.lock().begin();
    c
}

/// The condition on the policy: its reason and message.
fn history(c: &Cluster) -> (String, String) {
    let policy: AvailabilityPolicy = c.api.admin().get_as(None, "default").unwrap();
    let conditions = policy.status.unwrap().conditions;
    let found = conditions.into_iter().find(|c| c.type_ == HISTORY_INTACT).unwrap();
    (found.reason, found.message)
}

/// A human's word that names where the API is.
fn resume(c: &Cluster) {
    let (_, message) = history(c);
    let pair = message.split("spec.resumeFrom to ").nth(1).unwrap();
    let pair: Value = serde_yaml::from_str(pair).unwrap();
    let policy: AvailabilityPolicy = c.api.admin().get_as(None, "default").unwrap();
    let mut spec = serde_json::to_value(&policy.spec).unwrap();
    spec["resumeFrom"] = pair;
    c.apply(&json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "AvailabilityPolicy",
        "metadata": {"name": "default"}, "spec": spec,
    }))
    .unwrap();
}

/// Waits until it is known that the API went back.
async fn found_out(c: &Cluster, seed: u64) {
    for _ in 0..60 {
        if history(c).0 == "WentBack" {
            return;
        }
        c.pass(1).await;
    }
    panic!("seed {seed}: {}", history(c).1);
}

fn starts(c: &Cluster) -> usize {
    c.sim.lock().events.iter().filter(|e| e.what == What::Start).count()
}

/// Fails over VM 101 from h1, then lets the API forget it.
async fn forgotten_failover(seed: u64) -> Cluster {
    let c = bed(seed).await;
    let before = c.api.faults().backup();
    c.sim.lock().switch_off("h1");
    assert!(c.until_running("101", "h1", 60).await.is_some());
    c.pass(10).await;
    c.api.faults().restore(&before);
    found_out(&c, seed).await;
    c
}

#[tokio::test(start_paused = true)]
async fn an_api_that_went_back_is_found_explained_and_starts_nothing() {
    for seed in 1..4 {
        let c = forgotten_failover(seed).await;
        let ran = starts(&c);
        // The same host dies a second time in the API's eyes, another one really.
        c.sim.lock().switch_off("h2");
        c.pass(120).await;
        assert_eq!(starts(&c), ran, "seed {seed}");
        assert_eq!(c.running("101"), ["h3"], "seed {seed}");
        let fences = c.api.admin().list_as::<HostFence>(None);
        assert!(fences.is_empty(), "seed {seed}: {fences:?}");
        assert!(c.violations().is_empty(), "seed {seed}: {:?}", c.violations());
    }
}

#[tokio::test(start_paused = true)]
async fn a_human_resumes_and_no_vm_ever_runs_twice() {
    for seed in 1..4 {
        let mut c = forgotten_failover(seed).await;
        // A controller that was never there before finds it from the hosts alone.
        c.crash_controller();
        c.start_controller();
        c.pass(30).await;
        found_out(&c, seed).await;
        resume(&c);
        c.pass(120).await;
        assert_eq!(history(&c).0, "Continuous", "seed {seed}: {}", history(&c).1);
        // What was lost is found where it runs, and not started beside it.
        assert_eq!(c.running("101"), ["h3"], "seed {seed}");
        // Life goes on: a host that dies now is fenced and its VM recovered.
        c.sim.lock().switch_off("h2");
        assert!(c.until_running("102", "h2", 60).await.is_some(), "seed {seed}");
        assert!(c.violations().is_empty(), "seed {seed}: {:?}", c.violations());
    }
}
