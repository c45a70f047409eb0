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
/// The seed of every run: the crash alone differs.
const SEED: u64 = 3;

/// What did not come out as it should.
fn wrong(outcome: &Outcome) -> Option<String> {
    // What was deleted with its disk leaves no file, and the others keep theirs.
    let disks: Vec<&str> = outcome.disks.iter().map(String::as_str).collect();
    let kept = ["/srv/vms/default/101.qcow2", "/srv/vms/default/102.qcow2"];
    if outcome.verdict.passed && disks == kept {
        return None;
    }
    Some(format!("{} disks {disks:?}", outcome.verdict.lines("life")))
}

fn sweep(scenario: &Scenario, crashes: Vec<Crash>) {
    let failed = Mutex::new(Vec::new());
    campaign::on_all_cores(crashes, None, |crash| {
        let outcome = campaign::one_under(scenario, SEED, Rules::default(), Some(crash)).unwrap();
        if let Some(text) = wrong(&outcome) {
            failed.lock().unwrap().push(format!("{crash:?}: {text}"));
        }
        ControlFlow::Continue(())
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

fn life() -> (Scenario, Outcome) {
    let scenario = parse(LIFE, "life", None).unwrap().remove(0);
    let whole = campaign::one(&scenario, SEED).unwrap();
    assert_eq!(wrong(&whole), None);
    (scenario, whole)
}

#[test]
fn a_crash_after_any_write_or_action_starts_nothing_twice() {
    let (scenario, whole) = life();
    assert!(whole.writes > 60 && whole.actions > 30, "{} {}", whole.writes, whole.actions);
    let writes = (1..=whole.writes).map(Crash::AfterWrite);
    sweep(&scenario, writes.chain((1..=whole.actions).map(Crash::AfterAction)).collect());
}

#[test]
fn a_crash_of_all_after_any_write_starts_nothing_twice() {
    let (scenario, whole) = life();
    sweep(&scenario, (1..=whole.writes).map(Crash::AllAfterWrite).collect());
}
