//! A VM whose live move is under way: the orders of both sides, and its word.

use stockade_crds::v1alpha1::{
    DomainSpec, EpochState, HostState, MigrationSide, MigrationStep, PlacedEpoch, VirtualMachine,
    VirtualMachineStatus, VmState, Want,
};

use super::lifecycle::Decision;
use super::machine;
use super::open::{Asked, open_epoch};
use super::order::{domain_order, supersede};
use super::shutdown::{Fate, fate};
use super::word::Word;
use crate::ha::host_state::HostFacts;
use crate::moves::live::{self, Next, Sides};
use crate::moves::{cold, withdrawn};
use crate::plan::{DomainWrite, Intent};
use crate::world::World;

/// Carries a live move on; `None`: the VM has none, or only one side of it is left to look
/// after.
pub(super) fn live_move(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    asked: Asked<'_>,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Option<Word> {
    let moving = status.migration.clone().filter(|m| m.live)?;
    let placements = status.placements.clone();
    let sides = Sides::of(world, vm, &moving, &placements);
    let leaves = hosts.iter().find(|h| h.name == moving.source).and_then(|f| fate(world, f, vm));
    let stays = asked.run && asked.keep && leaves.is_none_or(|fate| fate == Fate::Move);
    let off = live::off(world, hosts, vm, &moving, stays);
    let mut next = sides.next(off);
    if asked.paused && !sides.told() && matches!(next, Next::Copy | Next::Prepare) {
        next = Next::Wait;
    }
    decision.source_stays = sides.source_stays();
    decision.next = Some(next.clone());
    // A move that is under way comes to its end even while automation is paused.
    let asked = if asked.paused && sides.told() {
        Asked { run: true, keep: true, paused: false, ..asked }
    } else {
        asked
    };
    let source_part = sides.source_order(world, &next);
    let target_order = |step: MigrationStep| {
        let (source, target) = (placed(&placements, moving.source_epoch), sides.open_target()?);
        let settings = vm.spec.migration;
        let part = live::order(world, &moving, MigrationSide::Target, step, source?, settings);
        write(world, vm, status, target, |spec| {
            spec.want = Want::Incoming;
            spec.migration = Some(part);
        })
    };
    match &next {
        Next::Prepare => {
            decision.intents.extend(target_order(MigrationStep::Prepare).map(Intent::WriteDomain));
        }
        Next::AskTarget => {
            decision.intents.extend(target_order(MigrationStep::Left).map(Intent::WriteDomain));
        }
        Next::CallOffTarget(_) => {
            decision.intents.extend(target_order(MigrationStep::Abort).map(Intent::WriteDomain));
        }
        Next::Copy | Next::Wait | Next::CallOffSource => {}
        Next::Commit => return Some(commit(world, hosts, vm, &sides, status, decision)),
        Next::FinishSource => {
            let source = sides.open_source()?;
            let ended = write(world, vm, status, source, |spec| {
                spec.want = Want::Killed;
                spec.migration = source_part;
            });
            decision.intents.extend(ended.map(Intent::WriteDomain));
            let target = sides.open_target()?;
            return Some(open_epoch(world, hosts, vm, &asked.of(target), status, decision));
        }
        Next::Done => return None,
        Next::EndSource => {
            let source = sides.open_source()?;
            return Some(left_paused(world, vm, status, source, decision));
        }
        Next::Over(_) => {
            let source = sides.open_source()?;
            let left = sides.source_left_paused() && !vm.spec.paused;
            return left.then(|| left_paused(world, vm, status, source, decision));
        }
    }
    let Some(source) = sides.open_source() else {
        return Some(between(hosts, &moving.target));
    };
    decision.side = source_part;
    let mut word = open_epoch(world, hosts, vm, &asked.of(source), status, decision);
    let moves = !matches!(next, Next::CallOffTarget(_)) || !sides.source_stays();
    if word.state == VmState::Running && moves {
        let message = format!("moves from {} to {}", moving.source, moving.target);
        word.becomes(VmState::Migrating, "Migrating", message);
    }
    Some(word)
}

/// Ends what the switch-over left paused on the source: whether the other copy ran after it can't be
/// told, so the VM starts cold (safety §8.3).
fn left_paused(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    source: &PlacedEpoch,
    decision: &mut Decision,
) -> Word {
    let ended = write(world, vm, status, source, |spec| spec.want = Want::Killed);
    decision.intents.extend(ended.map(Intent::WriteDomain));
    let message = format!("what a move left of it on {} ends", source.host);
    Word::new(VmState::Stopping, false, "LeftPaused", message)
}

/// Whether the VM's epoch is to stay where it is: not if it moves by stop and start.
pub(super) fn stays(world: &World, vm: &VirtualMachine, status: &mut VirtualMachineStatus) -> bool {
    let namespace = vm.metadata.namespace.as_deref().unwrap_or_default();
    let off = status.migration.as_ref().is_some_and(|m| withdrawn(world, namespace, m));
    cold::turn_back(status, off);
    !cold::leaves(status)
}

/// The word of a VM that moves by stop and start.
pub(super) fn by_stop(
    status: &VirtualMachineStatus,
    run: bool,
    stays: bool,
    mut word: Word,
) -> Word {
    let moves = status.migration.as_ref().is_some_and(cold::leads_away);
    let under_way = match word.state {
        VmState::Stopping | VmState::Starting => true,
        VmState::Running => !stays,
        _ => false,
    };
    if moves && run && under_way {
        word.state = VmState::Migrating;
    }
    word
}

/// Where a VM starts that moves by stop and start, and whether another host will do.
pub(super) fn start_on(
    status: &VirtualMachineStatus,
    hosts: &[HostFacts],
) -> Option<(String, bool)> {
    let m = status.migration.as_ref().filter(|m| !m.live)?;
    Some((cold::start_on(m, hosts)?, m.returning))
}

fn placed(placements: &[PlacedEpoch], epoch: i64) -> Option<&PlacedEpoch> {
    placements.iter().find(|p| p.epoch == epoch)
}

/// The source has ended, and what is at the target is not the VM yet.
fn between(hosts: &[HostFacts], target: &str) -> Word {
    let state = hosts.iter().find(|h| h.name == target).map(|h| h.state);
    let there = matches!(
        state,
        Some(
            HostState::Ready
                | HostState::Cordoned
                | HostState::Maintenance
                | HostState::ShuttingDown
                | HostState::Suspect
        )
    );
    if there {
        let message = format!("left its source; {target} says what has arrived");
        Word::new(VmState::Migrating, false, "Migrating", message)
    } else {
        let message = format!("left its source, and {target} is silent");
        Word::new(VmState::Recovering, false, "HostLost", message)
    }
}

/// The swap: from here on the target's epoch is the VM's.
fn commit(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    sides: &Sides<'_>,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    let Some(target) = sides.open_target() else {
        return Word::new(VmState::Migrating, false, "Migrating", "");
    };
    let mut domains = Vec::new();
    if let Some(source) = sides.open_source() {
        let part = sides.source_order(world, &Next::FinishSource);
        domains.extend(write(world, vm, status, source, |spec| {
            spec.want = Want::Killed;
            spec.migration = part;
        }));
    }
    domains.extend(write(world, vm, status, target, |spec| {
        spec.want = Want::Running;
        spec.migration = None;
    }));
    for placed in &mut status.placements {
        if placed.epoch == target.epoch {
            placed.state = EpochState::Ordered;
        }
    }
    supersede(world, status, target.epoch);
    status.host = Some(target.host.clone());
    decision.swap = Some(domains);
    let facts = hosts.iter().find(|h| h.name == target.host);
    let message = format!("running on {}", target.host);
    let word = Word::new(VmState::Running, facts.is_some(), "Running", message);
    word.running()
}

/// The order of one side with `change`; `None`: it is that already, or can't be made.
fn write(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    placed: &PlacedEpoch,
    change: impl FnOnce(&mut DomainSpec),
) -> Option<DomainWrite> {
    let before = world.order(&placed.host, vm.metadata.uid.as_deref().unwrap_or_default());
    if before.is_some_and(|d| d.spec.epoch > placed.epoch) {
        return None;
    }
    let same = before.filter(|d| d.spec.epoch == placed.epoch);
    let machine = match same {
        Some(d) => d.spec.machine.clone(),
        None => machine::resolve(world, vm).ok()?,
    };
    let mut order = domain_order(vm, status, placed, Want::Stopped, machine, before);
    if let Some(d) = same {
        order.spec = d.spec.clone();
    }
    change(&mut order.spec);
    match same {
        Some(d) if d.spec == order.spec => return None,
        Some(d) => order.spec.order_id = d.spec.order_id + 1,
        None => {}
    }
    Some(order)
}
