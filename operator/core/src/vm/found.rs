//! The double-run auditor: live copies of a VM that no order accounts for.
//!
//! Inventories list what runs without an order. Both sides of a move are ordered, so they are
//! no copies in this sense.

use stockade_crds::v1alpha1::{
    DoubleRunPolicy, InventoryItem, PlacedEpoch, VirtualMachine, VirtualMachineStatus, Want,
};

use super::lifecycle::domain;
use super::machine;
use super::order::domain_order;
use crate::plan::{DomainWrite, Intent};
use crate::world::World;

/// A copy that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Where.
    pub(super) host: String,
    /// The machine.
    pub(super) host_uid: String,
    /// Its running boot.
    pub(super) boot_id: String,
    /// As its host lists it.
    pub(super) item: InventoryItem,
}

/// Every copy of a VM that runs without an order, by host; `hosts`: where one may be listed.
pub(super) fn found(
    world: &World,
    vm: &VirtualMachine,
    placements: &[PlacedEpoch],
    hosts: &[String],
) -> Vec<Found> {
    let Some(uid) = vm.metadata.uid.as_deref() else { return Vec::new() };
    let open = || placements.iter().filter(|p| !p.state.is_settled());
    let moving = open().count() > 1;
    let mut all = Vec::new();
    for host in hosts {
        let Some(report) = world.agents.get(host).and_then(|a| a.status.as_ref()) else {
            continue;
        };
        let Some(item) = report.inventory.iter().find(|i| i.uuid == uid) else { continue };
        let current =
            world.lives.hosts.get(host).is_some_and(|l| l.lease.boot_id == report.boot_id);
        let dead = world.standing_proof(&report.host_uid, &report.boot_id).is_some();
        let ordered = open().any(|p| {
            let adopted = || domain(world, vm, host).is_some_and(|d| d.spec.adopt);
            p.host == *host && (moving || p.epoch == item.epoch || adopted())
        });
        if current && !dead && !ordered {
            all.push(Found {
                host: host.clone(),
                host_uid: report.host_uid.clone(),
                boot_id: report.boot_id.clone(),
                item: item.clone(),
            });
        }
    }
    all
}

/// Names of the hosts, for a sentence.
pub(super) fn names(copies: &[Found]) -> String {
    let names: Vec<&str> = copies.iter().map(|c| c.host.as_str()).collect();
    names.join(" and ")
}

/// Orders against copies that are too many, as the policy says. `ordered`: one more runs by
/// its order. A single copy is nobody's double: it waits for a human's word.
pub(super) fn stop_copies(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    copies: &[Found],
    ordered: bool,
) -> Vec<Intent> {
    let double = copies.len() + usize::from(ordered) > 1;
    let stops = match world.policy_spec().double_run {
        DoubleRunPolicy::Block => false,
        DoubleRunPolicy::StopStale => ordered,
        DoubleRunPolicy::StopAll => true,
    };
    if !double || !stops {
        return Vec::new();
    }
    copies
        .iter()
        .filter_map(|c| kill_order(world, vm, status, c))
        .map(Intent::WriteDomain)
        .collect()
}

/// The order that ends one found copy: it covers every copy on that host up to the VM's epoch.
fn kill_order(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    copy: &Found,
) -> Option<DomainWrite> {
    let before = domain(world, vm, &copy.host);
    let epoch = status.epoch.max(copy.item.epoch).max(before.map_or(1, |d| d.spec.epoch));
    let done = before.is_some_and(|d| {
        d.spec.epoch >= copy.item.epoch
            && d.spec.boot_id == copy.boot_id
            && matches!(d.spec.want, Want::Killed | Want::Stopped)
    });
    if done {
        return None;
    }
    let placed = PlacedEpoch {
        epoch,
        host: copy.host.clone(),
        host_uid: copy.host_uid.clone(),
        boot_id: copy.boot_id.clone(),
        state: stockade_crds::v1alpha1::EpochState::Ordered,
        superseded: false,
        unmarked: false,
    };
    let machine =
        machine::resolve(world, vm).ok().or_else(|| before.map(|d| d.spec.machine.clone()))?;
    let mut write = domain_order(vm, status, &placed, Want::Killed, machine, before);
    write.spec.migration = None;
    Some(write)
}
