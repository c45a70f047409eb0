//! The gate (safety §2): whether a VM's next epoch may be placed at all.
//!
//! Asked before every placement; the agent asks its own half (`agent`) before
//! every start. Both sides must say yes, and neither trusts the other's word.

use stockade_crds::v1alpha1::{BootReference, VirtualMachine};
use stockade_crds::v1alpha1::{EpochState, PlacedEpoch, SettledEpoch, VirtualMachineStatus};

use crate::plan::ReliesOn;
use crate::world::World;

/// Why an epoch is not settled yet, or that all are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Gate {
    /// Every earlier epoch is settled; these deaths are relied on.
    Open(Vec<ReliesOn>),
    /// This one is not.
    Closed(PlacedEpoch),
}

/// Brings the state of each epoch up to date: released by its host's own word, or proven
/// dead, denied and its locks broken. Nothing else settles an epoch.
#[must_use]
pub fn settle(world: &World, vm: &VirtualMachine) -> Vec<PlacedEpoch> {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let placements = vm.status.as_ref().map(|s| s.placements.clone()).unwrap_or_default();
    placements
        .into_iter()
        .map(|mut placed| {
            if placed.state.is_settled() {
                return placed;
            }
            let domain = world.domains.get(&(placed.host.clone(), uid.clone()));
            let said = domain.and_then(|d| d.status.as_ref()).is_some_and(|s| {
                let ended = s.state == stockade_crds::v1alpha1::DomainState::Ended
                    || s.state == stockade_crds::v1alpha1::DomainState::StartFailed;
                s.epoch == placed.epoch && (s.released || (!world.guards.drained && ended))
            });
            let over = boot_is_over(world, &placed);
            let missing = domain.is_none() && !world.guards.missing_is_no_release;
            if said || over || missing {
                placed.state = EpochState::Released;
            } else if proven(world, vm, &placed).is_some() {
                placed.state = EpochState::ProvenDead;
            }
            placed
        })
        .collect()
}

/// Whether the host itself said that this boot is over: everything in it is released, and its
/// agent starts nothing in it any more (safety §1: a clean release is a proof by itself).
fn boot_is_over(world: &World, placed: &PlacedEpoch) -> bool {
    world
        .agents
        .get(&placed.host)
        .and_then(|a| a.status.as_ref())
        .is_some_and(|s| s.down && s.host_uid == placed.host_uid && s.boot_id == placed.boot_id)
}

/// The certificate that settles an epoch: it stands, and at every storage of the VM the
/// boot is denied and its locks are broken (gate 1: certificate, denial, placement).
fn proven(world: &World, vm: &VirtualMachine, placed: &PlacedEpoch) -> Option<ReliesOn> {
    let fence = world.standing_proof(&placed.host_uid, &placed.boot_id)?;
    let status = fence.status.as_ref()?;
    let cleared = vm.spec.disks.iter().filter(|d| !d.read_only).all(|disk| {
        world.storages.get(&disk.storage).is_none_or(|s| s.spec.directory.is_some())
            || status.locks_broken.contains(&disk.storage)
    });
    cleared.then(|| ReliesOn {
        fence: fence.metadata.name.clone().unwrap_or_default(),
        host: placed.host.clone(),
        boot_id: placed.boot_id.clone(),
    })
}

/// Whether the next epoch may be placed, given epochs as [`settle`] left them.
#[must_use]
pub fn may_place(world: &World, vm: &VirtualMachine, placements: &[PlacedEpoch]) -> Gate {
    if world.guards.settled
        && let Some(open) = placements.iter().find(|p| !p.state.is_settled())
    {
        return Gate::Closed(open.clone());
    }
    let relies = placements
        .iter()
        .filter(|p| p.state == EpochState::ProvenDead)
        .filter_map(|p| proven(world, vm, p))
        .collect();
    Gate::Open(relies)
}

/// The settled epochs that an order names, for the agent's own judgement of the records.
#[must_use]
pub fn settled_epochs(status: &VirtualMachineStatus) -> Vec<SettledEpoch> {
    status
        .placements
        .iter()
        .filter(|p| p.state.is_settled())
        .map(|p| SettledEpoch {
            epoch: p.epoch,
            dead_boot: (p.state == EpochState::ProvenDead).then(|| BootReference {
                host_uid: p.host_uid.clone(),
                boot_id: p.boot_id.clone(),
            }),
        })
        .collect()
}
