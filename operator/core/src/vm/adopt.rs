//! Taking a found copy in by a human's word (safety §8.5): a new epoch under gate 1. And taking a
//! VM back whose copy has ended elsewhere.

use stockade_crds::v1alpha1::{
    End, EpochState, PlacedEpoch, VirtualMachine, VirtualMachineStatus, VmState,
};

use super::found::Found;
use super::lifecycle::{Decision, domain};
use super::machine;
use super::order::{basis, place_order};
use super::request::Request;
use super::word::{Word, conditions};
use crate::gate::{self, Gate};
use crate::ha::host_state::HostFacts;
use crate::plan::{Intent, Report};
use crate::world::{Key, Millis, World};

/// Whether the VM runs by its order on that host already: nothing is left to take in.
pub(super) fn is_there_already(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    host: &str,
    copies: &[Found],
) -> bool {
    copies.iter().all(|c| c.host != host)
        && status
            .placements
            .iter()
            .any(|p| !p.state.is_settled() && p.host == host && !left_by_move(world, vm, p))
}

/// An epoch whose own host says that its process is gone there, its writes are drained, and
/// that it left by a move which nobody ordered. It ends with the word that the copy elsewhere
/// is this VM, and not before.
fn left_by_move(world: &World, vm: &VirtualMachine, placed: &PlacedEpoch) -> bool {
    domain(world, vm, &placed.host)
        .and_then(|d| d.status.as_ref())
        .is_some_and(|s| s.epoch == placed.epoch && s.end == Some(End::Migrated) && !s.released)
}

/// Milliseconds for which a VM must have left before a word that it runs nowhere is believed:
/// a copy elsewhere is listed within a heartbeat or two.
const LEFT_LONG_AGO: Millis = 10_000;

/// Takes a VM back that left `host` by a move which nobody ordered and whose copy has ended: the
/// word of a human who names the host that it left. No copy is listed; each host must say so in its
/// running boot, or that boot must be over.
pub(super) fn take_back(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    host: &str,
    request: &Request,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) {
    let left = |p: &&mut PlacedEpoch| {
        p.host == host && !p.state.is_settled() && left_by_move(world, vm, p)
    };
    let Some(placed) = status.placements.iter_mut().find(left) else { return };
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let age = world.age_of(&format!("left/{host}/{uid}"));
    if age < LEFT_LONG_AGO {
        decision.wake = Some(world.now + LEFT_LONG_AGO - age);
        return;
    }
    let told = |facts: &HostFacts| {
        let report = world.agents.get(&facts.name).and_then(|a| a.status.as_ref());
        let listed = facts.alive && report.is_some_and(|r| r.boot_id == facts.boot);
        listed || facts.went_down_cleanly || facts.proof.is_some()
    };
    if hosts.iter().all(told) {
        placed.state = EpochState::Released;
        placed.unmarked = true;
        status.last_handled_request = Some(request.text.clone());
    }
}

/// Takes the copy on `host` in, if there is one and the gate is open for it.
pub(super) fn take_in(
    world: &World,
    vm: &VirtualMachine,
    host: &str,
    copies: &[Found],
    request: &Request,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Option<Word> {
    // With two copies the human first ends one: which memory is right only they can know.
    let [copy] = copies else { return None };
    if copy.host != host || vm.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let mut placements = status.placements.clone();
    for placed in placements.iter_mut().filter(|p| !p.state.is_settled()) {
        if left_by_move(world, vm, placed) {
            placed.state = EpochState::Released;
            placed.unmarked = true;
        }
    }
    let Gate::Open(relies_on) = gate::may_place(world, vm, &placements) else { return None };
    let machine = machine::resolve(world, vm).ok()?;
    let mut next = status.clone();
    next.placements = placements;
    next.epoch = next.epoch.max(copy.item.epoch);
    next.last_handled_request = Some(request.text.clone());
    next.failures = None;
    next.waits_for = None;
    // It runs: that is what was wished for by whoever takes it in.
    next.manual_run = true;
    next.completed = false;
    let word = Word::new(VmState::Starting, false, "Adopting", format!("being taken in on {host}"));
    next.printable_status = word.state;
    let boot = (copy.host_uid.as_str(), copy.boot_id.as_str());
    let (next, mut order) = place_order(world, vm, next, host, boot, machine);
    order.spec.adopt = true;
    *status = next.clone();
    let report = Report { status: next, conditions: conditions(world, vm, status, &word) };
    decision.intents.push(Intent::Place {
        vm: Key::of(&vm.metadata),
        basis: basis(&vm.metadata),
        report,
        domains: vec![order],
        relies_on,
    });
    Some(word)
}
