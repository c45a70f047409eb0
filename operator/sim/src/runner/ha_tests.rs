//! Policies, limits and state words on the real controller and agents.

use super::*;
use serde_json::{Value, json};
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, Domain, Host, HostState, VirtualMachine, VmState,
};

use crate::world::event::{Doer, What};
use crate::world::model::{Fail, FailAs, FailOp, Stage, StorageMode};
use crate::world::power::Which;
use crate::world::qemu::Ending;
use stockade_crds::v1alpha1::GoingDown;

/// Three hosts, one of them `h1` preferred by VM 101, and the policy's fields.
async fn bed(seed: u64, policy: Value, vm: Value) -> Cluster {
    let hosts: Vec<HostPlan> = ["h1", "h2", "h3"].map(HostPlan::new).to_vec();
    let c = Cluster::new(seed, &hosts, Guards::default(), AgentGuards::default()).unwrap();
    set_policy(&c, policy);
    c.pass(30).await;
    let mut spec = json!({"placement": {"preferredHosts": [{"hosts": ["h1"]}]}});
    spec.as_object_mut().unwrap().extend(vm.as_object().unwrap().clone());
    c.add_vm("101", spec).unwrap();
    let halted = vm["runPolicy"] == "Halted";
    if !halted {
        assert!(c.until_running("101", "", 60).await.is_some(), "{}", story(&c));
    }
    c.pass(20).await;
    c.sim.lock().fault_beyond_api = true;
    c.sim.lock().begin();
    c
}

fn set_policy(c: &Cluster, fields: Value) {
    let mut policy: AvailabilityPolicy = c.api.admin().get_as(None, "default").unwrap();
    let mut spec = serde_json::to_value(&policy.spec).unwrap();
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    policy.spec = serde_json::from_value(spec).unwrap();
    c.apply(&json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "AvailabilityPolicy",
        "metadata": {"name": "default"}, "spec": policy.spec,
    }))
    .unwrap();
}

fn patch_vm(c: &Cluster, change: impl FnOnce(&mut Value)) {
    let vm = c.vm("101").unwrap();
    let mut object = json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": "101", "namespace": "default"}, "spec": vm.spec,
    });
    change(&mut object);
    c.apply(&object).unwrap();
}

fn run(c: &Cluster, policy: &str) {
    patch_vm(c, |vm| vm["spec"]["runPolicy"] = json!(policy));
}

fn state(c: &Cluster) -> VmState {
    c.vm("101").unwrap().status.unwrap().printable_status
}

fn message(c: &Cluster) -> String {
    let status = c.vm("101").unwrap().status.unwrap();
    status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.message.clone()).unwrap()
}

fn host_state(c: &Cluster, host: &str) -> HostState {
    c.api.admin().get_as::<Host>(None, host).unwrap().status.unwrap().printable_status
}

fn uid(c: &Cluster) -> String {
    c.vm("101").unwrap().metadata.uid.unwrap()
}

/// The order that stands for the VM on a host.
fn order(c: &Cluster, host: &str) -> Option<Domain> {
    c.api.admin().get_as(Some(&stockade_crds::names::host_namespace(host)), &uid(c))
}

fn count(c: &Cluster, what: What, host: &str) -> usize {
    let w = c.sim.lock();
    w.events.iter().filter(|e| e.what == what && e.host.as_deref() == Some(host)).count()
}

fn story(c: &Cluster) -> String {
    let mut lines: Vec<String> = c.sim.lock().events.iter().map(ToString::to_string).collect();
    for kind in ["Host", "HostAgent", "HostFence", "Domain", "VirtualMachine", "Event"] {
        for object in c.api.admin().list(kind, None) {
            let (spec, status) = (&object.value["spec"], &object.value["status"]);
            lines.push(format!("{kind} {spec} {status} {}", object.value["message"]));
        }
    }
    lines.join("\n")
}

fn good(c: &Cluster) {
    assert!(c.violations().is_empty(), "{:?}\n{}", c.violations(), story(c));
}

async fn until(c: &Cluster, seconds: u64, what: impl Fn(&Cluster) -> bool) -> bool {
    for _ in 0..seconds * 10 {
        if what(c) {
            return true;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    false
}

#[tokio::test(start_paused = true)]
async fn a_clean_shutdown_is_a_proof_by_itself() {
    let c = bed(11, json!({}), json!({})).await;
    c.sim.lock().go_down("h1", GoingDown::Shutdown);
    assert!(until(&c, 10, |c| state(c) == VmState::Recovering).await, "{}", story(&c));
    assert!(c.until_running("101", "h1", 60).await.is_some(), "{}", story(&c));
    c.pass(60).await;
    assert_eq!(host_state(&c, "h1"), HostState::Stopped);
    assert_eq!(count(&c, What::FenceOff, "h1") + count(&c, What::Kill, "h1"), 0);
    assert_eq!(count(&c, What::PowerOff, "h1"), 1);
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_rebooting_hosts_vm_is_held_and_waits_for_it() {
    let c = bed(12, json!({}), json!({})).await;
    c.sim.lock().go_down("h1", GoingDown::Reboot);
    assert!(until(&c, 30, |c| state(c) == VmState::Held).await, "{}", story(&c));
    assert!(until(&c, 200, |c| state(c) == VmState::Running).await, "{}", story(&c));
    assert_eq!(c.running("101"), ["h1"]);
    assert_eq!(count(&c, What::Start, "h2") + count(&c, What::Start, "h3"), 0);
    assert_eq!(count(&c, What::FenceOff, "h1"), 0);
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn the_policy_says_whether_a_reboot_fails_over() {
    let c = bed(13, json!({"hostShutdown": "Failover"}), json!({})).await;
    c.sim.lock().go_down("h1", GoingDown::Reboot);
    assert!(c.until_running("101", "h1", 60).await.is_some(), "{}", story(&c));
    c.pass(120).await;
    assert_eq!(host_state(&c, "h1"), HostState::Ready);
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_frozen_vm_waits_for_its_host_however_long_that_is_off() {
    let c = bed(14, json!({"hostShutdown": "Freeze"}), json!({})).await;
    c.sim.lock().go_down("h1", GoingDown::Shutdown);
    c.pass(200).await;
    assert_eq!(state(&c), VmState::Held, "{}", story(&c));
    assert!(c.running("101").is_empty());
    c.sim.lock().switch_on("h1");
    assert!(until(&c, 120, |c| c.running("101") == ["h1"]).await, "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_ignores_its_shutdown_holds_its_host_back_no_longer_than_the_limit() {
    let c =
        bed(15, json!({"hostShutdownLimitSeconds": 30}), json!({"stopGraceSeconds": 600})).await;
    c.sim.lock().fails.push(fail(FailOp::Stop, FailAs::Error, None));
    c.sim.lock().go_down("h1", GoingDown::Shutdown);
    assert!(c.until_running("101", "h1", 70).await.is_some(), "{}", story(&c));
    assert_eq!(count(&c, What::Kill, "h1"), 1);
    good(&c);
}

fn fail(op: FailOp, how: FailAs, times: Option<u32>) -> Fail {
    Fail { op, vms: Vec::new(), hosts: Vec::new(), times, stage: Stage::Before, how }
}

/// Someone moves a VM by hand: its process goes on elsewhere, with its lock.
fn moved_by_hand(c: &Cluster, from: &str, to: &str) {
    let uid = uid(c);
    let order = order(c, from).unwrap().spec;
    let mut w = c.sim.lock();
    w.end_qemu(from, &uid, Ending::Migrated);
    w.virsh_start(to, &order, false).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_copy_moved_by_hand_is_blocked_until_a_human_says_that_it_is_the_vm() {
    let c = bed(16, json!({}), json!({})).await;
    moved_by_hand(&c, "h1", "h2");
    c.pass(30).await;
    assert_eq!(state(&c), VmState::Blocked, "{}", story(&c));
    assert!(message(&c).contains("h2"), "{}", message(&c));
    patch_vm(&c, |vm| {
        vm["metadata"]["annotations"] = json!({"stockade.dev/request": "adopt/h2/1"});
    });
    assert!(until(&c, 30, |c| state(c) == VmState::Running).await, "{}", story(&c));
    let vm = c.vm("101").unwrap().status.unwrap();
    assert_eq!(vm.host.as_deref(), Some("h2"));
    assert_eq!(vm.last_handled_request.as_deref(), Some("adopt/h2/1"));
    let starts: Vec<_> =
        c.sim.lock().events.iter().filter(|e| e.what == What::Start).map(|e| e.by).collect();
    assert_eq!(starts, [Some(Doer::Virsh)], "it was not started again\n{}", story(&c));
    c.pass(30).await;
    assert!(order(&c, "h1").is_none(), "the former host's order is settled\n{}", story(&c));
    run(&c, "Halted");
    assert!(until(&c, 30, |c| state(c) == VmState::Stopped).await, "{}", story(&c));
    run(&c, "Always");
    assert!(until(&c, 30, |c| state(c) == VmState::Running).await, "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_second_copy_is_an_alarm_and_is_stopped_where_the_policy_says_so() {
    for (policy, copies) in [("Block", 2), ("StopStale", 1)] {
        let c = bed(17, json!({"doubleRun": policy}), json!({})).await;
        let spec = order(&c, "h1").unwrap().spec;
        c.sim.lock().virsh_start("h2", &spec, true).unwrap();
        c.pass(60).await;
        assert_eq!(c.running("101").len(), copies, "{policy}\n{}", story(&c));
        assert!(c.running("101").contains(&"h1".to_owned()));
        let word = if copies == 1 { VmState::Running } else { VmState::Blocked };
        assert_eq!(state(&c), word, "{}", story(&c));
        assert!(
            c.api.admin().list("Event", None).iter().any(|e| e.value["reason"] == "VmDoubleRun")
        );
        assert_eq!(
            c.sim
                .lock()
                .events
                .iter()
                .filter(|e| e.by == Some(Doer::Agent) && e.what == What::Start)
                .count(),
            0
        );
        good(&c);
    }
}

#[tokio::test(start_paused = true)]
async fn stop_all_ends_both_copies_and_starts_one() {
    let c = bed(18, json!({"doubleRun": "StopAll"}), json!({})).await;
    let spec = order(&c, "h1").unwrap().spec;
    c.sim.lock().virsh_start("h2", &spec, true).unwrap();
    c.pass(10).await;
    assert_eq!(count(&c, What::Kill, "h1"), 1, "{}", story(&c));
    assert!(until(&c, 60, |c| state(c) == VmState::Running).await, "{}", story(&c));
    assert_eq!(c.running("101").len(), 1);
    assert_eq!(count(&c, What::Kill, "h2"), 1, "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_lock_blocks_the_start_and_uses_up_no_limit() {
    let c = bed(19, json!({}), json!({"runPolicy": "Halted"})).await;
    let uid = uid(&c);
    c.sim.lock().stale_lock("/srv/vms/default/101.qcow2", &uid, "stranger", true);
    run(&c, "Always");
    c.pass(150).await;
    for _ in 0..100 {
        assert_eq!(state(&c), VmState::Blocked, "{}", story(&c));
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(message(&c).contains("stranger"), "{}", message(&c));
    c.sim.lock().stores.get_mut("vms").unwrap().locks.clear();
    assert!(until(&c, 30, |c| state(c) == VmState::Running).await, "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn without_its_lock_manager_a_vm_is_blocked_and_not_unplaceable() {
    let c = bed(20, json!({}), json!({"runPolicy": "Halted"})).await;
    for m in c.sim.lock().machines.values_mut() {
        m.lock_daemon = false;
    }
    c.pass(15).await;
    run(&c, "Always");
    c.pass(60).await;
    assert_eq!(state(&c), VmState::Blocked, "{}", story(&c));
    for m in c.sim.lock().machines.values_mut() {
        m.lock_daemon = true;
    }
    assert!(until(&c, 30, |c| state(c) == VmState::Running).await, "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_vm_whose_storage_is_lost_on_its_host_is_killed_and_waits_for_the_drain() {
    let c = bed(21, json!({}), json!({})).await;
    c.sim.lock().stores.get_mut("vms").unwrap().mode_for.insert("h1".into(), StorageMode::Down);
    c.pass(50).await;
    assert_eq!(c.running("101"), ["h1"], "a short outage harms nobody");
    c.pass(40).await;
    assert!(c.running("101").is_empty(), "{}", story(&c));
    assert_eq!(state(&c), VmState::Blocked, "{}", story(&c));
    c.sim.lock().stores.get_mut("vms").unwrap().mode_for.clear();
    assert!(until(&c, 60, |c| state(c) == VmState::Running).await, "{}", story(&c));
    assert_eq!(count(&c, What::FenceOff, "h1"), 0);
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_shut_itself_down_while_its_agent_was_down_has_not_crashed() {
    let c = bed(22, json!({}), json!({"runPolicy": "RerunOnFailure"})).await;
    c.sim.lock().crash_process("h1", Which::Agent, 20_000);
    let uid = uid(&c);
    c.sim.lock().end_qemu("h1", &uid, Ending::Shutdown);
    c.pass(90).await;
    assert_eq!(state(&c), VmState::Stopped, "{}", story(&c));
    assert!(c.running("101").is_empty());
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_pause_keeps_wishes_and_a_crash_waits_for_resume() {
    let c = bed(23, json!({"automation": "Paused"}), json!({"runPolicy": "Halted"})).await;
    run(&c, "Always");
    c.pass(30).await;
    assert_eq!(state(&c), VmState::Held, "{}", story(&c));
    set_policy(&c, json!({"automation": "Active"}));
    assert!(until(&c, 30, |c| state(c) == VmState::Running).await, "{}", story(&c));
    set_policy(&c, json!({"automation": "Paused"}));
    c.pass(5).await;
    run(&c, "Halted");
    c.pass(30).await;
    assert_eq!((state(&c), c.running("101").len()), (VmState::Held, 1), "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_watched_vm_is_left_alone_and_its_host_is_not_shot_for_it() {
    let c = bed(24, json!({}), json!({})).await;
    patch_vm(&c, |vm| vm["spec"]["management"] = json!("Watched"));
    c.pass(10).await;
    assert_eq!(state(&c), VmState::Unmanaged, "{}", story(&c));
    assert_eq!(c.running("101"), ["h1"]);
    let vm: VirtualMachine = c.vm("101").unwrap();
    assert_eq!(vm.status.unwrap().host.as_deref(), Some("h1"));
    c.sim.lock().panic("h1");
    c.pass(60).await;
    assert_eq!(state(&c), VmState::Unmanaged);
    assert_eq!(count(&c, What::FenceOff, "h1"), 0, "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_recovers_nowhere_else_waits_for_its_own_host() {
    let c = bed(25, json!({}), json!({"availability": {"recovery": "None"}})).await;
    c.sim.lock().switch_off("h1");
    c.pass(60).await;
    assert_eq!(state(&c), VmState::Recovering, "{}", story(&c));
    assert!(c.running("101").is_empty());
    c.sim.lock().switch_on("h1");
    assert!(until(&c, 120, |c| c.running("101") == ["h1"]).await, "{}", story(&c));
    good(&c);
}

#[tokio::test(start_paused = true)]
async fn crashes_are_spaced_and_forgotten_once_the_vm_is_well() {
    let c = bed(26, json!({}), json!({})).await;
    for _ in 0..3 {
        let uid = uid(&c);
        c.sim.lock().kill_process("h1", &uid);
        assert!(until(&c, 30, |c| c.running("101") == ["h1"]).await, "{}", story(&c));
    }
    c.pass(90).await;
    assert_eq!(c.vm("101").unwrap().status.unwrap().failures, None, "{}", story(&c));
    good(&c);
}
