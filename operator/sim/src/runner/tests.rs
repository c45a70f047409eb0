use super::*;
use serde_json::json;
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;

use crate::oracle::Rule;
use crate::world::event::What;
use crate::world::model::Net;
use crate::world::power::Which;

fn cluster(seed: u64) -> Cluster {
    let hosts: Vec<HostPlan> = ["h1", "h2", "h3"].map(HostPlan::new).to_vec();
    Cluster::new(seed, &hosts, Guards::default(), AgentGuards::default()).unwrap()
}

/// What happened and how the API ends, for the message of a failed test.
fn history(c: &Cluster) -> String {
    let mut lines: Vec<String> = c.sim.lock().events.iter().map(ToString::to_string).collect();
    for kind in ["Host", "HostAgent", "HostFence", "Domain", "VirtualMachine", "Lease", "Event"] {
        for object in c.api.admin().list(kind, None) {
            let (spec, status) = (&object.value["spec"], &object.value["status"]);
            let note = &object.value["message"];
            lines.push(format!("{kind} {spec} {status} {note}"));
        }
    }
    lines.join("\n")
}

async fn settled(seed: u64, vms: &[&str]) -> Cluster {
    let c = cluster(seed);
    c.pass(30).await;
    for vm in vms {
        c.add_vm(vm, json!({})).unwrap();
    }
    for vm in vms {
        assert!(c.until_running(vm, "", 60).await.is_some(), "{vm} never ran\n{}", history(&c));
    }
    c.pass(30).await;
    c
}

#[tokio::test(start_paused = true)]
async fn a_manifest_becomes_a_running_vm() {
    let c = settled(1, &["101"]).await;
    assert_eq!(c.running("101").len(), 1);
    assert!(c.violations().is_empty(), "{:?}", c.violations());
}

#[tokio::test(start_paused = true)]
async fn a_host_without_power_is_proven_dead_and_its_vm_starts_elsewhere() {
    for seed in 1..=5 {
        let c = settled(seed, &["101", "102"]).await;
        let host = c.running("101").remove(0);
        c.sim.lock().fault_beyond_api = true;
        c.sim.lock().switch_off(&host);
        let took = c.until_running("101", &host, 120).await;
        assert!(took.is_some_and(|s| s <= 14), "seed {seed}: {took:?}\n{}", history(&c));
        c.pass(30).await;
        assert!(c.violations().is_empty(), "seed {seed}: {:?}", c.violations());
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_host_is_shot_before_its_vm_starts_elsewhere() {
    for seed in 1..=5 {
        let mut c = settled(seed, &["101"]).await;
        let host = c.running("101").remove(0);
        c.isolate(&host, &[Net::Api, Net::Peers, Net::Storage, Net::Migration], true);
        let took = c.until_running("101", &host, 120).await;
        assert!(took.is_some(), "seed {seed}\n{}", history(&c));
        assert!(c.sim.lock().events.iter().any(|e| e.what == What::FenceOff));
        assert!(c.violations().is_empty(), "seed {seed}: {:?}", c.violations());
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_crashes_touches_no_vm_and_shoots_nobody() {
    let c = settled(3, &["101"]).await;
    let host = c.running("101").remove(0);
    let before = c.sim.lock().events.len();
    c.sim.lock().crash_process(&host, Which::Agent, 0);
    c.pass(120).await;
    let w = c.sim.lock();
    let later: Vec<_> = w.events[before..].iter().map(ToString::to_string).collect();
    let quiet = w.events[before..]
        .iter()
        .all(|e| !matches!(e.what, What::Start | What::Stop | What::Kill | What::FenceOff));
    assert!(quiet, "{later:#?}");
}

#[tokio::test(start_paused = true)]
async fn two_of_three_hosts_cut_off_at_once_are_not_shot() {
    let mut c = settled(4, &["101", "102", "103"]).await;
    for host in ["h1", "h2"] {
        c.isolate(host, &[Net::Api, Net::Peers, Net::Storage, Net::Migration], true);
    }
    c.pass(120).await;
    let w = c.sim.lock();
    assert!(!w.events.iter().any(|e| e.what == What::FenceOff));
}

#[tokio::test(start_paused = true)]
async fn a_crash_of_the_leading_controller_loses_no_work() {
    let mut c = settled(5, &["101"]).await;
    let host = c.running("101").remove(0);
    c.sim.lock().fault_beyond_api = true;
    c.sim.lock().switch_off(&host);
    c.pass(4).await;
    c.crash_controller();
    let took = c.until_running("101", &host, 180).await;
    assert!(took.is_some(), "{}", history(&c));
    assert!(c.violations().is_empty(), "{:?}", c.violations());
}

/// Whether anybody is shot within two minutes of these networks of these hosts being cut.
async fn shot(guards: Guards, hosts: &[&str], nets: &[Net]) -> bool {
    let plans: Vec<HostPlan> = ["h1", "h2", "h3"].map(HostPlan::new).to_vec();
    let mut c = Cluster::new(9, &plans, guards, AgentGuards::default()).unwrap();
    c.pass(30).await;
    for vm in ["101", "102", "103"] {
        c.add_vm(vm, json!({})).unwrap();
    }
    c.pass(40).await;
    for host in hosts {
        c.isolate(host, nets, true);
    }
    c.pass(120).await;
    let w = c.sim.lock();
    w.events.iter().any(|e| e.what == What::FenceOff)
}

#[tokio::test(start_paused = true)]
async fn without_the_brake_two_of_three_would_be_shot() {
    let nets = [Net::Api, Net::Peers, Net::Storage, Net::Migration];
    assert!(shot(Guards { brake: false, ..Guards::default() }, &["h1", "h2"], &nets).await);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_lost_the_api_alone_is_not_shot() {
    assert!(!shot(Guards::default(), &["h1"], &[Net::Api]).await);
}

/// Places a VM as a controller does, whatever speaks against it.
fn place(c: &Cluster, vm: &str, host: &str, epoch: i64) {
    let placed = json!({"status": {"epoch": epoch, "placements": [{
        "epoch": epoch, "host": host, "hostUid": "uid", "bootId": "boot", "state": "Ordered",
    }]}});
    let controller = c.api.admin().named("controller/9");
    controller.apply_merge("VirtualMachine", Some("default"), vm, &placed, true).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_placement_that_nobody_wants_or_a_rule_forbids_is_seen() {
    let c = Cluster::empty(1, Guards::default(), AgentGuards::default()).unwrap();
    c.add_vm("plain", json!({})).unwrap();
    c.add_vm("halted", json!({"runPolicy": "Halted"})).unwrap();
    c.add_vm("manual", json!({"runPolicy": "Manual"})).unwrap();
    c.add_vm("watched", json!({"management": "Watched"})).unwrap();
    c.add_vm("bound", json!({"placement": {"requiredHosts": ["h1"]}})).unwrap();
    c.add_vm("apart", json!({"placement": {"apartFrom": ["plain"]}})).unwrap();
    place(&c, "plain", "h1", 1);
    place(&c, "bound", "h1", 1);
    c.pass(30).await;
    place(&c, "apart", "h2", 1);
    c.pass(1).await;
    assert_eq!(c.violations(), Vec::<String>::new());
    for (vm, host, rule) in [
        ("halted", "h1", Rule::WantedToRun),
        ("manual", "h1", Rule::WantedToRun),
        ("watched", "h1", Rule::WantedToRun),
        ("bound", "h2", Rule::StrictRules),
        ("apart", "h1", Rule::StrictRules),
    ] {
        let before = c.violations().len();
        place(&c, vm, host, 2);
        c.pass(1).await;
        let violations = c.violations();
        assert_eq!(violations.len(), before + 1, "{vm} on {host}: {violations:?}");
        assert!(violations[before].contains(rule.text()), "{vm} on {host}: {violations:?}");
    }
}
