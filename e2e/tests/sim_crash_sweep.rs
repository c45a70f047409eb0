//! Controller and agents die after every single API write and every single thing done to a host,
//! alone and all at once: nothing is ever started twice, and all still comes to its end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::sync::Mutex;

use stockade_sim::scenario::run::{Crash, Outcome, Rules};
use stockade_sim::scenario::{Scenario, campaign, parse};

stockade_sim::link_hooks!();

/// A life of three VMs: made, started, changed, restarted, stopped, recovered, deleted; one of them
/// with its disk and its seed image.
const LIFE: &str = r##"
name: a life
hosts: 3
vms: [{name: "101", host: h1}]
steps:
  - {at: 5, do: add, vm: {name: "102"}}
  - at: 10
    do: apply
    manifest:
      apiVersion: stockade.dev/v1alpha1
      kind: VirtualMachine
      metadata: {name: own, namespace: default}
      spec:
        memory: 1Gi
        disks: [{name: root, storage: vms, blank: {}, size: 1Gi, reclaim: Delete}]
        cloudInit: {userData: "#cloud-config"}
  - {at: 25, do: set, vm: "102", memoryMiB: 2048}
  - {at: 30, do: restart-vm, vm: "102"}
  - {at: 60, do: stop, vm: "101"}
  - {at: 90, do: start, vm: "101"}
  - {at: 110, do: kill-qemu, vm: "102"}
  - {at: 140, do: power-off, host: h1}
  - {at: 240, do: power-on, host: h1}
  - {at: 320, do: delete, kind: VirtualMachine, name: own}
  - {at: 330, do: delete, kind: VirtualMachine, name: "102"}
until: 420
expect:
  - {vm: own, running: true, at: 320}
  - {vm: "101", running: true, copies: 1, state: Running}
  - {vm: ["102", own], exists: false, running: false}
  - {never: {vm: ["101"], copies: {min: 2}}}
"##;
/// What is made and deleted leaves these files.
const LIFE_LEAVES: &[&str] = &["/srv/vms/default/101.qcow2", "/srv/vms/default/102.qcow2"];
/// A life of moves: two as a group, one by stop and start, one called off, a drain. No guest ends but
/// the one that is stopped for it.
const MOVES: &str = r#"
name: a life of moves
hosts: 3
vms:
  - {name: "101", host: h1, togetherWith: ["103"]}
  - {name: "102", host: h1, migratable: false}
  - {name: "103", host: h1}
steps:
  - {at: 5, do: migrate, vm: "101", to: h2}
  - {at: 40, do: migrate, vm: "102", to: h3, live: false}
  - {at: 80, do: migrate, vm: "101", to: h1}
  - {at: 83, do: abort, vm: "101"}
  - {at: 120, do: drain, host: h2}
  - {id: back, at: 220, do: uncordon, host: h2}
until: 330
expect:
  - {vm: ["101", "102", "103"], running: true, copies: 1, state: Running}
  - {vm: "101", with: ["103"]}
  - {host: h2, vms: 0, at: back}
  - {event: [start, exit], vm: ["101", "103"], count: 0}
  - {event: start, vm: "102", count: {max: 2}}
  - {never: {vm: "101", copies: {min: 2}}}
  - {never: {vm: "102", copies: {min: 2}}}
  - {never: {vm: "103", copies: {min: 2}}}
"#;
const MOVES_LEAVE: &[&str] =
    &["/srv/vms/default/101.qcow2", "/srv/vms/default/102.qcow2", "/srv/vms/default/103.qcow2"];
/// The seed of every run: the crash alone differs.
const SEED: u64 = 3;

/// What did not come out as it should.
fn wrong(outcome: &Outcome, kept: &[&str]) -> Option<String> {
    // What was deleted with its disk leaves no file, and the others keep theirs.
    let disks: Vec<&str> = outcome.disks.iter().map(String::as_str).collect();
    if outcome.verdict.passed && disks == kept {
        return None;
    }
    Some(format!("{} disks {disks:?}", outcome.verdict.lines("life")))
}

fn sweep(scenario: &Scenario, kept: &[&str], crashes: Vec<Crash>) {
    let failed = Mutex::new(Vec::new());
    campaign::on_all_cores(crashes, None, |crash| {
        let outcome = campaign::one_under(scenario, SEED, Rules::default(), Some(crash)).unwrap();
        if let Some(text) = wrong(&outcome, kept) {
            failed.lock().unwrap().push(format!("{crash:?}: {text}"));
        }
        ControlFlow::Continue(())
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn whole(text: &str, kept: &[&str]) -> (Scenario, Outcome) {
    let scenario = parse(text, "life", None).unwrap().remove(0);
    let whole = campaign::one(&scenario, SEED).unwrap();
    assert_eq!(wrong(&whole, kept), None);
    assert!(whole.writes > 60 && whole.actions > 30, "{} {}", whole.writes, whole.actions);
    (scenario, whole)
}

/// One process dies, whichever has just written or acted.
fn one_dies(text: &str, kept: &[&str]) {
    let (scenario, whole) = whole(text, kept);
    let writes = (1..=whole.writes).map(Crash::AfterWrite);
    sweep(&scenario, kept, writes.chain((1..=whole.actions).map(Crash::AfterAction)).collect());
}

fn all_die(text: &str, kept: &[&str]) {
    let (scenario, whole) = whole(text, kept);
    sweep(&scenario, kept, (1..=whole.writes).map(Crash::AllAfterWrite).collect());
}

#[test]
fn a_crash_after_any_write_or_action_starts_nothing_twice() {
    one_dies(LIFE, LIFE_LEAVES);
}

#[test]
fn a_crash_of_all_after_any_write_starts_nothing_twice() {
    all_die(LIFE, LIFE_LEAVES);
}

#[test]
fn a_crash_after_any_write_or_action_of_a_move_ends_no_guest_and_tears_no_group() {
    one_dies(MOVES, MOVES_LEAVE);
}

#[test]
fn a_crash_of_all_after_any_write_of_a_move_ends_no_guest_and_tears_no_group() {
    all_die(MOVES, MOVES_LEAVE);
}
