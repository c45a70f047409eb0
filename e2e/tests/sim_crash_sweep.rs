//! Controller and agents die after every single API write and every single thing done to a host:
//! nothing is ever started twice, and all still comes to its end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::ops::ControlFlow;
use std::sync::Mutex;

use stockade_sim::scenario::run::{Crash, Rules};
use stockade_sim::scenario::{Scenario, campaign, parse};

stockade_sim::link_hooks!();

/// A life of two VMs: made, started, changed, restarted, stopped, recovered, deleted.
const LIFE: &str = r#"
name: a life
hosts: 3
vms: [{name: "101", host: h1}]
steps:
  - {at: 5, do: add, vm: {name: "102"}}
  - {at: 25, do: set, vm: "102", memoryMiB: 2048}
  - {at: 30, do: restart-vm, vm: "102"}
  - {at: 60, do: stop, vm: "101"}
  - {at: 90, do: start, vm: "101"}
  - {at: 110, do: kill-qemu, vm: "102"}
  - {at: 140, do: power-off, host: h1}
  - {at: 240, do: power-on, host: h1}
  - {at: 330, do: delete, kind: VirtualMachine, name: "102"}
until: 420
expect:
  - {vm: "101", running: true, copies: 1, state: Running}
  - {vm: "102", exists: false, running: false}
  - {never: {vm: ["101"], copies: {min: 2}}}
"#;
/// The seed of every run: the crash alone differs.
const SEED: u64 = 3;

fn sweep(scenario: &Scenario, crashes: Vec<Crash>) {
    let failed = Mutex::new(Vec::new());
    campaign::on_all_cores(crashes, None, |crash| {
        let outcome = campaign::one_under(scenario, SEED, Rules::default(), Some(crash)).unwrap();
        if !outcome.verdict.passed {
            let text = outcome.verdict.lines("life");
            failed.lock().unwrap().push(format!("{crash:?}: {text}"));
        }
        ControlFlow::Continue(())
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}

#[test]
fn a_crash_after_any_write_or_action_starts_nothing_twice() {
    let scenario = parse(LIFE, "life", None).unwrap().remove(0);
    let whole = campaign::one(&scenario, SEED).unwrap();
    assert!(whole.verdict.passed, "{}", whole.verdict.lines("life"));
    assert!(whole.writes > 40 && whole.actions > 20, "{} {}", whole.writes, whole.actions);
    let writes = (1..=whole.writes).map(Crash::AfterWrite);
    sweep(&scenario, writes.chain((1..=whole.actions).map(Crash::AfterAction)).collect());
}
