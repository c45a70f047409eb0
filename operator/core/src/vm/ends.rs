//! How epochs ended, and what follows for limits and back-off.

use stockade_crds::v1alpha1::{
    End, EpochState, Failures, PlacedEpoch, RunPolicy, VirtualMachine, VirtualMachineStatus,
};

use super::lifecycle::domain;
use super::word::event;
use crate::plan::Intent;
use crate::world::{Key, Millis, World};

/// First pause after a failed start or a crash; doubled each time.
pub(super) const BACKOFF_MILLIS: Millis = 2_000;

/// Longest pause.
pub(super) const BACKOFF_MAX_MILLIS: Millis = 300_000;

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
                && old.placements.iter().any(|o| o.epoch == p.epoch && !o.state.is_settled())
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
        let failures = status.failures.get_or_insert_with(Failures::default);
        match end {
            End::GuestShutdown => {
                status.completed = vm.spec.run_policy == RunPolicy::RerunOnFailure;
                status.manual_run = false;
            }
            End::Crashed | End::StorageLost => {
                failures.exits += 1;
                failures.message.clone_from(&message);
                status.manual_run = false;
                intents.push(event(
                    &key,
                    "VmCrashed",
                    true,
                    format!("its process on {} ended without an order", placed.host),
                ));
            }
            End::HostRestarted => status.manual_run = false,
            End::StartFailed | End::Refused => {
                failures.restarts += 1;
                failures.message.clone_from(&message);
                let spec = vm.spec.availability;
                if failures.restarts > spec.max_restarts {
                    failures.restarts = 0;
                    failures.tried_hosts.push(placed.host.clone());
                    let tried = i32::try_from(failures.tried_hosts.len()).unwrap_or(i32::MAX);
                    if tried > spec.max_relocations {
                        failures.error_generation = vm.metadata.generation;
                    }
                }
                intents.push(event(
                    &key,
                    "VmStartFailed",
                    true,
                    format!("start on {} failed: {message}", placed.host),
                ));
            }
            End::Stopped | End::Killed | End::Void | End::Migrated => {}
        }
        if status.failures == Some(Failures::default()) {
            status.failures = None;
        }
    }
}
