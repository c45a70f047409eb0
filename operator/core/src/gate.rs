//! The gate (safety §2): whether a VM's next epoch may be placed at all.
//!
//! Asked before every placement; the agent asks its own half (`agent`) before
//! every start. Both sides must say yes, and neither trusts the other's word.

use stockade_crds::v1alpha1::{
    BootReference, Domain, EpochState, HostFence, MigrationStep, PlacedEpoch, SettledEpoch,
    VirtualMachine, VirtualMachineStatus,
};

use crate::ha::host_state::seconds;
use crate::locks;
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
/// dead, denied and its locks broken. Nothing else settles an epoch, and one whose boot was seen
/// to live after its proof is open again, unless a later one may run already (gate 4). If a later
/// one did run, it is open to be ended ([`PlacedEpoch::superseded`]).
#[must_use]
pub fn settle(world: &World, vm: &VirtualMachine) -> Vec<PlacedEpoch> {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let placements = vm.status.as_ref().map(|s| s.placements.clone()).unwrap_or_default();
    let open = placements.iter().filter(|p| !p.state.is_settled()).map(|p| p.epoch).max();
    placements
        .into_iter()
        .map(|mut placed| {
            let later = open.is_some_and(|epoch| epoch > placed.epoch);
            if placed.state == EpochState::ProvenDead && !later && lives(world, &placed) {
                placed.state = EpochState::Ordered;
            }
            if placed.state.is_settled() {
                return placed;
            }
            let domain = world.order(&placed.host, uid);
            let word = domain.and_then(|d| d.status.as_ref()).filter(|s| s.epoch == placed.epoch);
            let said =
                word.is_some_and(|s| s.released || (!world.guards.drained && s.end.is_some()));
            let over = boot_is_over(world, &placed);
            let missing = domain.is_none() && !world.guards.missing_is_no_release;
            let silent = !world.guards.settled && is_silent(world, &placed);
            let called_off = !world.guards.void_word
                && placed.state == EpochState::Incoming
                && domain.is_some_and(|d| aborts(d, placed.epoch));
            if said || over || missing || silent || called_off {
                placed.state = EpochState::Released;
                placed.unmarked = word.filter(|s| s.released).is_none_or(|s| s.unmarked);
            } else if proven(world, vm, &placed).is_some() {
                placed.state = EpochState::ProvenDead;
            }
            placed
        })
        .collect()
}

/// Whether the proof of this epoch's death was taken back, or is in this very plan.
pub(crate) fn lives(world: &World, placed: &PlacedEpoch) -> bool {
    let fence = world.fence_of(&placed.host_uid, &placed.boot_id);
    fence.and_then(|f| Some((f, f.status.as_ref()?))).is_some_and(|(fence, s)| {
        let lives = || world.guards.life_revokes && outlives(world, fence);
        s.revoked.is_some() || (s.proof.is_some() && lives())
    })
}

/// Whether a boot was seen to live after the proof of its death: it beat just now, or at any moment
/// since that proof stands.
#[must_use]
pub fn outlives(world: &World, fence: &HostFence) -> bool {
    let (host, boot) = (&fence.spec.host, &fence.spec.boot_id);
    let name = fence.metadata.name.as_deref().unwrap_or_default();
    let proven = world.seen_since.get(&format!("fence-proof/{name}"));
    let after = |at| proven.is_some_and(|proven| at > *proven);
    beats(world, host, boot) || world.lives.beat_seen(host, boot).is_some_and(after)
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

/// Whether an order calls the move off that was to bring this epoch. The order alone settles nothing
/// (safety §8.1); a test drops that rule.
fn aborts(order: &Domain, epoch: i64) -> bool {
    let part = order.spec.migration.as_ref().filter(|_| order.spec.epoch == epoch);
    part.is_some_and(|m| m.step == MigrationStep::Abort)
}

/// What a time-out would say: no beat of its host for `actSeconds`. It settles nothing (safety
/// §1: unknown is alive); a test drops that rule.
fn is_silent(world: &World, placed: &PlacedEpoch) -> bool {
    let silence = world.lives.api_silence(&placed.host, world.now, true);
    silence >= seconds(world.policy_spec().act_seconds)
}

/// Whether a boot was seen to beat just now. A beat is seen up to two intervals late.
#[must_use]
pub fn beats(world: &World, host: &str, boot_id: &str) -> bool {
    let seen = world.lives.beat_seen(host, boot_id);
    let young = seconds(world.policy_spec().heartbeat_seconds) * 5 / 2;
    seen.is_some_and(|at| world.now.saturating_sub(at) < young)
}

/// The certificate that settles an epoch: it stands, and at every storage of the VM the
/// boot is denied and its locks are broken (gate 1: certificate, denial, placement).
fn proven(world: &World, vm: &VirtualMachine, placed: &PlacedEpoch) -> Option<ReliesOn> {
    let fence = world.standing_proof(&placed.host_uid, &placed.boot_id)?;
    if lives(world, placed) {
        return None;
    }
    let status = fence.status.as_ref()?;
    // What the dead boot never mounted holds nothing of it.
    let mounted = world.agents.get(&placed.host).map(|agent| &agent.spec.storages);
    let uses = |space: &&str| mounted.into_iter().flatten().any(|storage| storage.name == *space);
    let cleared = vm.spec.disks.iter().filter(|d| !d.read_only).all(|disk| {
        let mut spaces = locks::spaces_of(world, &disk.storage).filter(uses);
        let free = |name: &str| {
            world.storages.get(name).is_none_or(|s| s.spec.directory.is_some())
                || status.locks_broken.iter().any(|broken| broken == name)
        };
        free(&disk.storage) && spaces.all(free)
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
    if let Some(open) = placements.iter().find(|p| !p.state.is_settled()) {
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
