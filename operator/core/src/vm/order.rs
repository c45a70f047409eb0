//! Orders: the Domain that an epoch's host is to obey.

use stockade_crds::v1alpha1::{
    Domain, DomainSpec, EpochState, Machine, PlacedEpoch, VirtualMachine, VirtualMachineStatus,
    VmReference, Want,
};

use crate::gate;
use crate::plan::{Basis, DomainWrite};
use crate::world::World;

/// So many earlier placements are kept beside a new one: the schema's bound is 8, and a move needs
/// one more.
const KEPT_PLACEMENTS: usize = 6;

/// The version that a write replaces.
#[must_use]
pub fn basis(meta: &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta) -> Basis {
    Basis {
        uid: meta.uid.clone().unwrap_or_default(),
        version: meta.resource_version.clone().unwrap_or_default(),
    }
}

/// The order for an epoch; its id rises above the one it replaces.
#[must_use]
pub fn domain_order(
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    placed: &PlacedEpoch,
    want: Want,
    machine: Machine,
    before: Option<&Domain>,
) -> DomainWrite {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let same_epoch = before.filter(|d| d.spec.epoch == placed.epoch);
    DomainWrite {
        host: placed.host.clone(),
        vm_uid: uid.clone(),
        spec: DomainSpec {
            vm: VmReference {
                namespace: vm.metadata.namespace.clone().unwrap_or_default(),
                name: vm.metadata.name.clone().unwrap_or_default(),
                uid,
            },
            host_uid: placed.host_uid.clone(),
            boot_id: placed.boot_id.clone(),
            epoch: placed.epoch,
            order_id: before.map_or(1, |d| d.spec.order_id + 1),
            want,
            settled: gate::settled_epochs(status),
            settled_through: status
                .placements
                .iter()
                .filter(|p| !p.state.is_settled())
                .map(|p| p.epoch - 1)
                .min()
                .unwrap_or(placed.epoch - 1),
            paused: vm.spec.paused,
            grace_seconds: vm.spec.stop_grace_seconds,
            reset: same_epoch.and_then(|d| d.spec.reset.clone()),
            migration: same_epoch.and_then(|d| d.spec.migration.clone()),
            adopt: false,
            delete_disks: Vec::new(),
            machine,
        },
        replaces: before.map(|d| basis(&d.metadata)),
    }
}

/// An epoch that was never used, not even by a move that was called off. Epochs count per
/// disk: the highest that any report of this VM has shown wins.
#[must_use]
pub fn next_epoch(world: &World, vm: &VirtualMachine, status: &VirtualMachineStatus) -> i64 {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let reported = world
        .orders(uid)
        .flat_map(|(_, d)| {
            [d.spec.epoch, d.status.as_ref().map_or(0, |s| s.highest_record.max(s.epoch))]
        })
        .max()
        .unwrap_or(0);
    let open = status.placements.iter().filter(|p| !p.state.is_settled()).map(|p| p.epoch).max();
    match open {
        Some(running) if !world.guards.burnt => running + 1,
        _ => status.epoch.max(reported) + 1,
    }
}

/// Whether an epoch is marked as released beside its disks: no agent of a later one asks about it.
pub(super) fn is_marked(placed: &PlacedEpoch) -> bool {
    placed.state == EpochState::Released && !placed.unmarked
}

/// Forgets old placements before one more. Proven deaths, and what is not marked as released beside
/// its disks, stay named for as long as there is room: the agent of a later epoch needs them. The agent
/// of one that has run has removed their records. What was taken for dead and lives is never forgotten.
pub(crate) fn make_room(world: &World, status: &mut VirtualMachineStatus) {
    while status.placements.len() > KEPT_PLACEMENTS {
        let first = |may: &dyn Fn(&PlacedEpoch) -> bool| status.placements.iter().position(may);
        let released = |p: &PlacedEpoch| p.state == EpochState::Released;
        let dead = |p: &PlacedEpoch| p.state == EpochState::ProvenDead && !gate::lives(world, p);
        let oldest = first(&is_marked).or_else(|| first(&released)).or_else(|| first(&dead));
        let Some(oldest) = oldest else { return };
        status.placements.remove(oldest);
    }
}

/// Marks what is taken for dead while `epoch` becomes the VM's: from then on the disks are newer than
/// whatever may be left of it.
pub(super) fn supersede(world: &World, status: &mut VirtualMachineStatus, epoch: i64) {
    let dead = |p: &&mut PlacedEpoch| p.epoch < epoch && p.state == EpochState::ProvenDead;
    for placed in status.placements.iter_mut().filter(dead) {
        placed.superseded = world.guards.superseded;
    }
}

/// The status with a new epoch on a host, and the order for it.
#[must_use]
pub fn place_order(
    world: &World,
    vm: &VirtualMachine,
    mut status: VirtualMachineStatus,
    host: &str,
    boot: (&str, &str),
    machine: Machine,
) -> (VirtualMachineStatus, DomainWrite) {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let epoch = next_epoch(world, vm, &status);
    status.epoch = epoch;
    status.host = Some(host.to_owned());
    make_room(world, &mut status);
    supersede(world, &mut status, epoch);
    let placed = PlacedEpoch {
        epoch,
        host: host.to_owned(),
        host_uid: boot.0.to_owned(),
        boot_id: boot.1.to_owned(),
        state: EpochState::Ordered,
        superseded: false,
        unmarked: false,
    };
    status.placements.push(placed.clone());
    let before = world.order(host, &uid);
    let write = domain_order(vm, &status, &placed, Want::Running, machine, before);
    (status, write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    /// What is kept of these states, oldest first, before one more; the boot of the first lives.
    fn kept(states: &[(&str, bool)]) -> Vec<i64> {
        let mut world = World::default();
        let fence = serde_json::from_value(json!({
            "metadata": {"name": "f"}, "spec": {"host": "h1", "hostUid": "u1", "bootId": "b1"},
            "status": {"proof": "Power", "revoked": "it lives"},
        }));
        world.fences.insert("f".into(), Arc::new(fence.unwrap()));
        let placements: Vec<serde_json::Value> = (1..)
            .zip(states)
            .map(|(n, (state, unmarked))| {
                json!({
                    "epoch": n, "host": format!("h{n}"), "hostUid": format!("u{n}"),
                    "bootId": format!("b{n}"), "state": state, "unmarked": unmarked,
                })
            })
            .collect();
        let mut status = serde_json::from_value(json!({"placements": placements})).unwrap();
        make_room(&world, &mut status);
        status.placements.iter().map(|p| p.epoch).collect()
    }

    #[test]
    fn what_was_taken_for_dead_and_lives_is_never_forgotten_and_what_is_marked_goes_first() {
        let (dead, marked, unmarked) =
            (("ProvenDead", false), ("Released", false), ("Released", true));
        assert_eq!(kept(&[dead, dead, marked, unmarked, dead, dead, dead]), [1, 2, 4, 5, 6, 7]);
        assert_eq!(kept(&[dead, dead, unmarked, dead, dead, dead, dead]), [1, 2, 4, 5, 6, 7]);
        assert_eq!(kept(&[dead; 7]), [1, 3, 4, 5, 6, 7]);
    }
}
