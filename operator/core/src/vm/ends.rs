//! How epochs ended, and what follows for limits and back-off.

use stockade_crds::v1alpha1::{
    End, EpochState, Failures, PlacedEpoch, Recovery, RunPolicy, VirtualMachine,
    VirtualMachineStatus, WaitsFor,
};

use super::lifecycle::domain;
use super::word::event;
use crate::plan::Intent;
use crate::world::{Key, Millis, World};

/// First pause after a failed start or a crash; doubled each time.
const BACKOFF_MILLIS: Millis = 2_000;
/// Longest pause.
const BACKOFF_MAX_MILLIS: Millis = 300_000;
/// Longest pause after a refusal: what refuses is outside and may end at any time.
const REFUSAL_MAX_MILLIS: Millis = 16_000;
/// A VM that has run for so long is well: its crashes are forgotten.
pub(super) const WELL_AFTER: Millis = 60_000;

/// Books what newly settled epochs say about how they ended.
pub(super) fn note_ends(
    world: &World,
    vm: &VirtualMachine,
    old: &VirtualMachineStatus,
    status: &mut VirtualMachineStatus,
    intents: &mut Vec<Intent>,
) {
    let newly: Vec<PlacedEpoch> = status
        .placements
        .iter()
        .filter(|p| {
            p.state.is_settled()
                && old.placements.iter().any(|o| {
                    // The end of a move's side says nothing about the VM, which is on the other.
                    o.epoch == p.epoch && !o.state.is_settled() && o.state != EpochState::Incoming
                })
                && !old
                    .placements
                    .iter()
                    .any(|later| later.epoch > p.epoch && later.state == EpochState::Ordered)
        })
        .cloned()
        .collect();
    let key = Key::of(&vm.metadata);
    for placed in newly {
        let report = domain(world, vm, &placed.host)
            .and_then(|d| d.status.as_ref())
            .filter(|s| s.epoch == placed.epoch);
        let end = match placed.state {
            EpochState::ProvenDead => End::HostRestarted,
            _ => report.and_then(|r| r.end).unwrap_or(End::Void),
        };
        let message = report.map(|r| r.message.clone()).unwrap_or_default();
        if placed.state == EpochState::ProvenDead {
            // It died before its clean end: nobody waits for it on that account.
            status.waits_for = status.waits_for.take().filter(|w| !w.held);
        }
        let mut failures = status.failures.take().unwrap_or_default();
        match end {
            End::GuestShutdown => {
                status.completed = vm.spec.run_policy == RunPolicy::RerunOnFailure;
                status.manual_run = false;
            }
            End::Crashed | End::StorageLost => {
                failures.exits += 1;
                status.manual_run = false;
                let (reason, what) = if end == End::Crashed {
                    ("VmCrashed", "its process ended without an order")
                } else {
                    ("VmStorageLost", "its storage or its lock was lost, and it was killed")
                };
                failures.message = if message.is_empty() { what.to_owned() } else { message };
                let text = format!("on {}: {}", placed.host, failures.message);
                intents.push(event(&key, reason, true, text));
            }
            End::HostRestarted => {
                status.manual_run = false;
                if vm.spec.availability.recovery == Recovery::None {
                    status.waits_for = Some(WaitsFor { host: placed.host.clone(), held: false });
                }
            }
            End::StartFailed => {
                failed_start(vm, &placed, &mut failures, &message);
                let text = format!("start on {} failed: {message}", placed.host);
                intents.push(event(&key, "VmStartFailed", true, text));
            }
            // Only the disk knew of higher epochs, those of a deleted VM say. The next one is above
            // them; if it is refused too, that was not all.
            End::Refused if report.is_some_and(|r| r.highest_record >= placed.epoch) => {}
            End::Refused | End::LockHeld => {
                failures.refusals += 1;
                failures.message = message;
                if failures.refusals == 1 {
                    let text = format!("start on {} refused: {}", placed.host, failures.message);
                    intents.push(event(&key, "VmStartRefused", true, text));
                }
            }
            End::Stopped | End::Killed | End::Void | End::Migrated => {}
        }
        status.failures = (failures != Failures::default()).then_some(failures);
    }
}

/// Counts a failed start: first the same host again, then others, then no more.
fn failed_start(vm: &VirtualMachine, placed: &PlacedEpoch, failures: &mut Failures, message: &str) {
    let spec = vm.spec.availability;
    failures.restarts += 1;
    message.clone_into(&mut failures.message);
    if failures.restarts > spec.max_restarts {
        failures.restarts = 0;
        failures.tried_hosts.push(placed.host.clone());
        let tried = i32::try_from(failures.tried_hosts.len()).unwrap_or(i32::MAX);
        if tried > spec.max_relocations {
            failures.error_generation = vm.metadata.generation;
        }
    }
}

/// When the next start is due; `None`: now.
pub(super) fn next_try(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
) -> Option<(Millis, Millis)> {
    let failures = status.failures.as_ref()?;
    // After its host's death a VM has waited for long enough.
    let last = status.placements.last().filter(|p| p.state == EpochState::Released)?;
    let starts =
        failures.restarts + i32::try_from(failures.tried_hosts.len()).unwrap_or(i32::MAX - 1_000);
    let tries = starts + failures.refusals + (failures.exits - 1).max(0);
    if tries == 0 {
        return None;
    }
    let shift = u32::try_from(tries - 1).unwrap_or(0).min(10);
    let most = if failures.refusals > 0 { REFUSAL_MAX_MILLIS } else { BACKOFF_MAX_MILLIS };
    let pause = (BACKOFF_MILLIS << shift).min(most);
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let settled = world.seen_since.get(&format!("settled/{uid}/{}", last.epoch))?;
    let due = settled + pause;
    (world.now < due).then_some((due, pause))
}
