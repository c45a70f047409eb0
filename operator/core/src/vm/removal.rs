//! Tombstones, and VMs that are deleted.

use stockade_crds::names::host_of_namespace;
use stockade_crds::v1alpha1::{Domain, End, PlacedEpoch, Reclaim, VirtualMachine, VmState, Want};

use super::lifecycle::Decision;
use super::machine::disk_path;
use super::order::basis;
use super::word::{Word, event};
use crate::plan::{DomainWrite, Intent};
use crate::world::{Key, World};

/// Tombstones of other hosts go once the present epoch has run.
pub(super) fn clean_up(
    world: &World,
    vm: &VirtualMachine,
    placed: &PlacedEpoch,
    decision: &mut Decision,
) {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    for (host, d) in world.orders(uid) {
        if host == placed.host || d.spec.epoch > placed.epoch {
            continue;
        }
        if d.status.as_ref().is_some_and(|s| s.released) {
            decision.intents.push(Intent::DeleteDomain {
                host: host.to_owned(),
                vm_uid: uid.to_owned(),
                basis: basis(&d.metadata),
            });
        } else if let Some(write) = hand_over(d, placed) {
            // It left by a move that a human's word has ended since.
            decision.intents.push(Intent::WriteDomain(write));
        }
    }
}

/// The order that lets the former host of a copy that was taken in elsewhere settle its epoch.
fn hand_over(d: &Domain, placed: &PlacedEpoch) -> Option<DomainWrite> {
    let left = d.status.as_ref().is_some_and(|s| s.end == Some(End::Migrated));
    if !left || d.spec.epoch >= placed.epoch || d.spec.settled_through >= d.spec.epoch {
        return None;
    }
    let mut spec = d.spec.clone();
    spec.want = Want::Stopped;
    spec.settled_through = spec.epoch;
    spec.order_id += 1;
    let host = host_of_namespace(d.metadata.namespace.as_deref()?)?.to_owned();
    let vm_uid = spec.vm.uid.clone();
    Some(DomainWrite { host, vm_uid, spec, replaces: Some(basis(&d.metadata)) })
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
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let mut left = false;
    for (host, d) in world.orders(uid) {
        left = true;
        decision.intents.push(Intent::DeleteDomain {
            host: host.to_owned(),
            vm_uid: uid.to_owned(),
            basis: basis(&d.metadata),
        });
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
        return let_go(vm, decision);
    }
    deleting()
}

/// The VM's object goes.
pub(super) fn let_go(vm: &VirtualMachine, decision: &mut Decision) -> Word {
    let vm = &vm.metadata;
    decision.intents.push(Intent::RemoveFinalizer { vm: Key::of(vm), basis: basis(vm) });
    deleting()
}

fn deleting() -> Word {
    Word::new(VmState::Stopped, false, "Deleting", "its last epoch is settled")
}

/// Removes the orders of a VM whose epochs are settled.
pub(super) fn tombstones(world: &World, vm: &VirtualMachine) -> Vec<Intent> {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let placements = vm.status.as_ref().map(|s| s.placements.as_slice()).unwrap_or_default();
    let over = |host: &str, d: &Domain| {
        let open =
            |p: &PlacedEpoch| p.host == host && p.epoch == d.spec.epoch && !p.state.is_settled();
        d.status.as_ref().is_some_and(|s| s.released && s.epoch == d.spec.epoch)
            && !placements.iter().any(open)
    };
    let orders = world.orders(uid).filter(|(host, d)| over(host, d));
    orders
        .map(|(host, d)| Intent::DeleteDomain {
            host: host.to_owned(),
            vm_uid: uid.to_owned(),
            basis: basis(&d.metadata),
        })
        .collect()
}

/// Removes every order of a VM that was only watched, without ending what they started.
pub(super) fn forget(world: &World, vm: &VirtualMachine) -> Vec<Intent> {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    world
        .orders(uid)
        .map(|(host, d)| Intent::DeleteDomain {
            host: host.to_owned(),
            vm_uid: uid.to_owned(),
            basis: basis(&d.metadata),
        })
        .collect()
}
