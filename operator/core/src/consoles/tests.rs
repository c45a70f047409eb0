//! Who gets to a console, and for how long.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use serde_json::json;
use stockade_crds::v1alpha1::HostAgent;

use super::*;

const ID: &str = "c1";

/// A VM with a serial console that runs on h1, and a ticket for it that has been there for a while.
fn world(known_for: Millis) -> World {
    let mut world = World { now: 100_000, ..World::default() };
    let vm = json!({"metadata": {"name": "web", "namespace": "n", "uid": "u1"},
        "spec": {"memory": "1Gi", "console": {"serial": true}},
        "status": {"printableStatus": "Running", "host": "h1", "epoch": 4, "placements": [
            {"epoch": 4, "host": "h1", "hostUid": "hu", "bootId": "b", "state": "Ordered"}]}});
    world.vms.insert(Key::new("n", "web"), Arc::new(serde_json::from_value(vm).unwrap()));
    for name in ["h1", "h2"] {
        let host = json!({"metadata": {"name": name},
            "spec": {"addresses": {"management": format!("{name}.example"),
                "migration": "10.0.0.1"}}});
        world.hosts.insert(name.into(), Arc::new(serde_json::from_value(host).unwrap()));
    }
    let console = json!({"metadata": {"name": "t", "namespace": "n", "uid": ID},
        "spec": {"vm": "web", "device": "Serial", "ticketHash": "ab".repeat(32)}});
    world.consoles.insert(Key::new("n", "t"), Arc::new(serde_json::from_value(console).unwrap()));
    world.seen_since.insert(format!("ticket/{ID}"), world.now - known_for);
    world
}

fn host<'a>(world: &'a World, name: &str) -> &'a Host {
    &world.hosts[name]
}

/// Plans, and writes what was planned; the ticket's state and the sentence about it.
fn round(world: &mut World) -> (ConsoleState, String) {
    let mut out = Plan::default();
    plan(world, &mut out);
    for (key, report) in &out.consoles {
        let mut console = world.consoles[key].as_ref().clone();
        console.status = Some(report.status.clone());
        world.consoles.insert(key.clone(), Arc::new(console));
    }
    let report = &out.consoles[0].1;
    (report.status.state, report.conditions[0].message.clone())
}

fn agent_says(world: &mut World, host: &str, state: ConsoleState) {
    let mut agent = HostAgent::new("agent", Default::default());
    let report = ConsoleReport {
        id: ID.into(),
        state,
        address: "10.0.0.9:16515".into(),
        message: "shown a wrong ticket too often".into(),
    };
    agent.status = Some(stockade_crds::v1alpha1::HostAgentStatus {
        consoles: vec![report],
        ..Default::default()
    });
    world.agents.insert(host.into(), Arc::new(agent));
}

fn change_vm(world: &mut World, change: impl FnOnce(&mut VirtualMachine)) {
    let vm = world.vms.get_mut(&Key::new("n", "web")).unwrap();
    change(Arc::make_mut(vm));
}

#[test]
fn one_host_takes_a_ticket_once_its_status_names_it() {
    let mut w = world(0);
    assert!(of_host(&w, host(&w, "h1")).is_empty(), "its status names no host yet");
    assert_eq!(round(&mut w).0, ConsoleState::Pending);
    let taken = of_host(&w, host(&w, "h1"));
    let [one] = &taken[..] else { unreachable!() };
    assert_eq!((one.vm_uid.as_str(), one.epoch, one.address.as_str()), ("u1", 4, "h1.example"));
    assert!(of_host(&w, host(&w, "h2")).is_empty());
    agent_says(&mut w, "h1", ConsoleState::Waiting);
    assert_eq!(round(&mut w).0, ConsoleState::Waiting);
    let status = w.consoles.values().next().unwrap().status.clone().unwrap();
    assert_eq!(status.address.as_deref(), Some("10.0.0.9:16515"));
}

#[test]
fn a_ticket_dies_with_the_move_and_no_other_host_ever_takes_it() {
    let mut w = world(0);
    round(&mut w);
    agent_says(&mut w, "h1", ConsoleState::Open);
    assert_eq!(round(&mut w).0, ConsoleState::Open);
    change_vm(&mut w, |vm| {
        let status = vm.status.as_mut().unwrap();
        status.host = Some("h2".into());
        let mut placed = status.placements[0].clone();
        (placed.epoch, placed.host) = (5, "h2".into());
        status.placements.push(placed);
    });
    assert!(of_host(&w, host(&w, "h1")).is_empty(), "what is open there is closed");
    assert!(of_host(&w, host(&w, "h2")).is_empty());
    assert_eq!(round(&mut w), (ConsoleState::Closed, "VM web has moved to h2".into()));
    assert!(of_host(&w, host(&w, "h2")).is_empty());
    // It stays closed, and goes.
    let mut out = Plan::default();
    plan(&w, &mut out);
    assert!(out.consoles.is_empty() && out.intents.is_empty());
    w.seen_since.insert(format!("console/{ID}"), w.now - KEPT);
    plan(&w, &mut out);
    assert!(matches!(out.intents[..], [Intent::DeleteConsole { .. }]));
}

#[test]
fn a_ticket_that_is_not_shown_in_time_is_worth_nothing_and_an_open_console_stays() {
    let mut w = world(SHOWN_WITHIN - 1);
    round(&mut w);
    agent_says(&mut w, "h1", ConsoleState::Waiting);
    round(&mut w);
    assert_eq!(of_host(&w, host(&w, "h1")).len(), 1);
    w.now += 1;
    assert!(of_host(&w, host(&w, "h1")).is_empty());
    let (state, why) = round(&mut w);
    assert!(state == ConsoleState::Closed && why.contains("60 s"), "{why}");
    let mut w = world(SHOWN_WITHIN - 1);
    round(&mut w);
    agent_says(&mut w, "h1", ConsoleState::Open);
    round(&mut w);
    w.now += 1_000_000;
    assert_eq!((round(&mut w).0, of_host(&w, host(&w, "h1")).len()), (ConsoleState::Open, 1));
}

#[test]
fn what_can_not_be_opened_says_what_to_do() {
    type Change = fn(&mut World);
    let cases: [(Change, &str); 4] = [
        (|w| change_vm(w, |vm| vm.spec.console.serial = false), "spec.console.serial"),
        (|w| w.vms.clear(), "no VM web"),
        (
            |w| change_vm(w, |vm| vm.status.as_mut().unwrap().printable_status = VmState::Stopped),
            "not running",
        ),
        (
            |w| {
                let host = Arc::make_mut(w.hosts.get_mut("h1").unwrap());
                host.spec.addresses = Default::default();
            },
            "spec.addresses.management",
        ),
    ];
    for (change, word) in cases {
        let mut w = world(0);
        change(&mut w);
        let (state, why) = round(&mut w);
        assert!(state == ConsoleState::Closed && why.contains(word), "{why}");
        assert!(of_host(&w, host(&w, "h1")).is_empty());
    }
    let mut w = world(0);
    round(&mut w);
    agent_says(&mut w, "h1", ConsoleState::Closed);
    assert_eq!(round(&mut w).1, "shown a wrong ticket too often");
}
