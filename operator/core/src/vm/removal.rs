//! Tombstones, and VMs that are deleted.

use stockade_crds::v1alpha1::{PlacedEpoch, Reclaim, VirtualMachine, VmState};

use super::lifecycle::Decision;
use super::machine::disk_path;
use super::order::basis;
use super::word::{Word, event};
use crate::plan::Intent;
use crate::world::{Key, World};

/// Tombstones of other hosts go once the present epoch has run.
pub(super) fn clean_up(
    world: &World,
    vm: &VirtualMachine,
    placed: &PlacedEpoch,
    decision: &mut Decision,
) {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    for ((host, name), d) in &world.domains {
        let over = d.spec.epoch < placed.epoch && d.status.as_ref().is_some_and(|s| s.released);
        if *name == uid && *host != placed.host && over {
            decision.intents.push(Intent::DeleteDomain {
                host: host.clone(),
                vm_uid: uid.clone(),
                basis: basis(&d.metadata),
            });
        }
    }
}

pub(super) fn disks_to_delete(world: &World, vm: &VirtualMachine) -> Vec<String> {
    vm.spec
        .disks
        .iter()
        .enumerate()
        .filter(|(_, d)| d.reclaim == Reclaim::Delete && d.existing.is_none() && !d.read_only)
        .filter_map(|(i, _)| disk_path(world, vm, i).ok())
        .collect()
}

/// A deleted VM whose last epoch is settled: its tombstones go, then it goes.
pub(super) fn delete(world: &World, vm: &VirtualMachine, decision: &mut Decision) -> Word {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let mut left = false;
    for ((host, name), d) in &world.domains {
        if *name == uid {
            left = true;
            decision.intents.push(Intent::DeleteDomain {
                host: host.clone(),
                vm_uid: uid.clone(),
                basis: basis(&d.metadata),
            });
        }
    }
    if !left {
        let key = Key::of(&vm.metadata);
        let retained: Vec<String> = vm
            .spec
            .disks
            .iter()
            .enumerate()
            .filter(|(_, d)| d.reclaim == Reclaim::Retain && !d.read_only)
            .filter_map(|(i, _)| disk_path(world, vm, i).ok())
            .collect();
        if !retained.is_empty() {
            let message = format!("deleted; its disks stay: {}", retained.join(", "));
            decision.intents.push(event(&key, "VmDisksRetained", false, message));
        }
        decision.intents.push(Intent::RemoveFinalizer { vm: key, basis: basis(&vm.metadata) });
    }
    Word::new(VmState::Stopped, false, "Deleting", "its last epoch is settled")
}
