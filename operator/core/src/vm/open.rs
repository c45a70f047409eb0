//! A VM with an open epoch: it may be running.

use stockade_crds::v1alpha1::{
    Domain, DomainState, DomainStatus, DoubleRunPolicy, End, HostState, MigrationOrder,
    MigrationState, MigrationStep, Pinned, PlacedEpoch, RunPolicy, VirtualMachine,
    VirtualMachineStatus, VmState, Want,
};

use super::ends::WELL_AFTER;
use super::found::{self, Found};
use super::lifecycle::{Decision, domain, held_by_pause};
use super::machine;
use super::order::{domain_order, is_marked};
use super::removal::{clean_up, disks_to_delete};
use super::request::Request;
use super::shutdown::{Fate, fate, waits};
use super::word::Word;
use crate::ha::host_state::{HostFacts, facts_of};
use crate::moves::live;
use crate::plan::{DomainWrite, Intent};
use crate::world::{Millis, World};

/// A stop shows in the status only if it takes longer: most end before.
const SHOW_STOPPING_AFTER: Millis = 2_000;

/// What is wanted of a VM's open epoch, whichever it is.
#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    /// The VM is to run.
    pub(super) run: bool,
    /// Nothing asks for the end of this epoch alone (a restart, a copy that is taken in).
    pub(super) keep: bool,
    /// Nothing is ordered now.
    pub(super) paused: bool,
    /// A request that was not handled yet.
    pub(super) request: &'a Option<Request>,
    /// Copies that no order accounts for.
    pub(super) copies: &'a [Found],
}

impl<'a> Asked<'a> {
    /// The same of this epoch.
    pub(super) fn of(self, placed: &'a PlacedEpoch) -> Open<'a> {
        let Self { run, keep, paused, request, copies } = self;
        Open { placed, run, keep, paused, request, copies }
    }
}

/// An open epoch and what is wanted of it.
pub(super) struct Open<'a> {
    /// The epoch.
    pub(super) placed: &'a PlacedEpoch,
    /// The VM is to run.
    pub(super) run: bool,
    /// Nothing asks for the end of this epoch alone (a restart, a copy that is taken in).
    pub(super) keep: bool,
    /// Nothing is ordered now.
    pub(super) paused: bool,
    /// A request that was not handled yet.
    pub(super) request: &'a Option<Request>,
    /// Copies that no order accounts for.
    pub(super) copies: &'a [Found],
}

/// Decides about a VM with an open epoch.
pub(super) fn open_epoch(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    open: &Open<'_>,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    let placed = open.placed;
    status.host = Some(placed.host.clone());
    let now = domain(world, vm, &placed.host);
    let same = now.filter(|d| d.spec.epoch == placed.epoch);
    let report = same.and_then(|d| d.status.as_ref()).filter(|s| s.epoch == placed.epoch);
    let facts = facts_of(hosts, &placed.host);
    let going = facts
        .filter(|f| open.run && f.boot == placed.boot_id)
        .and_then(|f| fate(world, f, vm))
        .filter(|fate| *fate != Fate::Move);
    if let Some(fate) = going {
        status.waits_for = waits(fate, vm, &placed.host);
        if vm.spec.run_policy == RunPolicy::Manual {
            // Nothing but its owner starts it again.
            status.manual_run = false;
        }
    }
    let ordered_runs =
        report.is_some_and(|r| matches!(r.state, DomainState::Running | DomainState::Paused));
    let all_stop = !open.copies.is_empty()
        && ordered_runs
        && world.policy_spec().double_run == DoubleRunPolicy::StopAll;
    let want = if all_stop || placed.superseded {
        Want::Killed
    } else if open.run && open.keep && going.is_none() {
        Want::Running
    } else {
        Want::Stopped
    };
    if !open.paused {
        let write = order(world, vm, open, status, now, want, decision.side.clone());
        decision.intents.extend(write.map(Intent::WriteDomain));
        let copies = found::stop_copies(world, vm, status, open.copies, ordered_runs);
        decision.intents.extend(copies);
    }
    if let (Some(r), Some(request)) = (report, open.request)
        && request.verb == "reset"
        && r.reset.as_ref() == Some(&request.text)
    {
        status.last_handled_request = Some(request.text.clone());
    }
    if !open.copies.is_empty() {
        return copies_found(placed, open, report, ordered_runs);
    }
    let silent = facts.is_none_or(|f| {
        !matches!(
            f.state,
            HostState::Ready
                | HostState::Cordoned
                | HostState::Maintenance
                | HostState::ShuttingDown
                | HostState::Isolated
                | HostState::Suspect
        )
    });
    if silent {
        return if open.paused && open.run {
            held_by_pause(&format!("its recovery from {}", placed.host))
        } else {
            recovering(facts, placed)
        };
    }
    let Some(r) = report else { return ordered(placed, status, "") };
    if !r.machine_type.is_empty() && status.pinned.is_none() {
        status.pinned =
            Some(Pinned { machine_type: r.machine_type.clone(), cpu_model: r.cpu_model.clone() });
    }
    status.addresses.clone_from(&r.addresses);
    if let Some(fate) = going
        && r.state != DomainState::StopFailed
    {
        let mut word = going_down(fate, vm, placed);
        word.running = ordered_runs || r.state == DomainState::Stopping;
        return word;
    }
    state_word(world, vm, (open, same, r), status, decision)
}

fn state_word(
    world: &World,
    vm: &VirtualMachine,
    (open, same, r): (&Open<'_>, Option<&Domain>, &DomainStatus),
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    let placed = open.placed;
    if placed.superseded {
        let message = format!(
            "{0} was taken for dead, and it has run elsewhere since: what is left of it on {0} must \
             be gone before it starts again; reboot {0}",
            placed.host
        );
        return Word::new(VmState::Blocked, false, "Superseded", message);
    }
    match r.state {
        DomainState::Running | DomainState::Paused if same.is_some_and(has_left) => {
            let message = format!("it left {}, which has yet to say so", placed.host);
            Word::new(VmState::Stopping, false, "Left", message)
        }
        DomainState::Running | DomainState::Paused => {
            it_runs(world, vm, placed, status, decision);
            if !open.run && open.paused {
                return held_by_pause("its stop").running();
            }
            if !(open.run && open.keep) {
                let asked = same.is_some_and(|d| d.spec.want != Want::Running);
                let uid = vm.metadata.uid.as_deref().unwrap_or_default();
                let age = world.age_of(&format!("domain/{}/{uid}", placed.host));
                // Who deletes it may be watching it go.
                let leaves = vm.metadata.deletion_timestamp.is_some();
                if asked && (leaves || age >= SHOW_STOPPING_AFTER) {
                    let message = format!("its guest on {} was asked to stop", placed.host);
                    return Word::new(VmState::Stopping, false, "Stopping", message).running();
                }
                decision.wake = Some(world.now + SHOW_STOPPING_AFTER);
                decision.passing = true;
            }
            let what = if r.state == DomainState::Paused { "in memory, paused" } else { "running" };
            let message = format!("{what} on {}", placed.host);
            let ready = open.run && open.keep && vm.spec.paused == (r.state == DomainState::Paused);
            // A policy that becomes Manual stops nothing: what runs then was asked for.
            status.manual_run |=
                matches!(vm.spec.run_policy, RunPolicy::Always | RunPolicy::RerunOnFailure);
            let mut word = Word::new(VmState::Running, ready, "Running", message);
            word.running = r.state == DomainState::Running;
            word
        }
        DomainState::Stopping => {
            let message = format!("its guest on {} was asked to stop", placed.host);
            Word::new(VmState::Stopping, false, "Stopping", message).running()
        }
        DomainState::StopFailed if r.end == Some(End::Migrated) => {
            let message = format!("it left {} by somebody else's hand: {}", placed.host, r.message);
            Word::new(VmState::Blocked, false, "MovedAway", message)
        }
        DomainState::StopFailed if r.end.is_some() => {
            let message = format!("it ended on {} and is not released: {}", placed.host, r.message);
            Word::new(VmState::Blocked, false, "StopFailed", message)
        }
        DomainState::StopFailed => {
            let message = format!("it would not end on {}: {}", placed.host, r.message);
            Word::new(VmState::Blocked, false, "StopFailed", message).running()
        }
        DomainState::Ended | DomainState::StartFailed => {
            let message = format!("it ended on {}, writes are being drained", placed.host);
            Word::new(VmState::Stopping, false, "Draining", message)
        }
        DomainState::Pending | DomainState::Starting | DomainState::Incoming => {
            ordered(placed, status, &r.message)
        }
    }
}

/// The order for an open epoch, if it is not what stands.
fn order(
    world: &World,
    vm: &VirtualMachine,
    open: &Open<'_>,
    status: &VirtualMachineStatus,
    now: Option<&Domain>,
    want: Want,
    side: Option<MigrationOrder>,
) -> Option<DomainWrite> {
    let placed = open.placed;
    let machine = machine::resolve(world, vm).ok();
    match now {
        // Gate 2: it is created again as a stop order, and waited for.
        None => machine.map(|m| domain_order(vm, status, placed, Want::Stopped, m, None)),
        Some(d) if d.spec.epoch < placed.epoch => {
            machine.map(|m| domain_order(vm, status, placed, want, m, Some(d)))
        }
        Some(d) if d.spec.epoch == placed.epoch => {
            // An order to stop is never taken back: its end is waited for.
            let want = match (d.spec.want, want) {
                (Want::Killed, _) | (Want::Stopped, Want::Killed) => Want::Killed,
                (Want::Stopped, _) => Want::Stopped,
                (Want::Running | Want::Incoming, _) => want,
            };
            let used = machine.unwrap_or_else(|| d.spec.machine.clone());
            let mut write = domain_order(vm, status, placed, want, used, Some(d));
            write.spec.settled.clone_from(&d.spec.settled);
            write.spec.settled_through = d.spec.settled_through;
            write.spec.adopt = d.spec.adopt;
            write.spec.migration = side.or_else(|| part_to_keep(d));
            // What was pinned at the start is no change of the order.
            write.spec.machine.machine_type.clone_from(&d.spec.machine.machine_type);
            write.spec.machine.cpu_model.clone_from(&d.spec.machine.cpu_model);
            machine::keep_disks(&mut write.spec.machine, &d.spec.machine);
            if let Some(r) = open.request.as_ref().filter(|r| r.verb == "reset") {
                write.spec.reset = Some(r.text.clone());
            }
            if vm.metadata.deletion_timestamp.is_some() {
                write.spec.delete_disks = disks_to_delete(world, vm);
            }
            write.spec.order_id = d.spec.order_id;
            (write.spec != d.spec).then(|| {
                write.spec.order_id += 1;
                write
            })
        }
        Some(_) => None,
    }
}

/// Whether the VM has left by a move that was swapped: what its host said before is old.
fn has_left(order: &Domain) -> bool {
    live::source_part(order).is_some_and(|(part, _)| part.step == MigrationStep::Commit)
}

/// The part of a move that is over, for as long as its source has not said what it came to: an agent
/// that was away meanwhile takes what left by it for ours, and not for moved by somebody's hand.
fn part_to_keep(order: &Domain) -> Option<MigrationOrder> {
    let (part, stands) = live::source_part(order)?;
    if part.step == MigrationStep::Commit {
        return Some(part.clone());
    }
    let answered = stands == Some(MigrationState::Failed);
    (!answered).then(|| MigrationOrder { step: MigrationStep::Abort, ..part.clone() })
}

/// Its epoch runs: what went wrong before is over.
fn it_runs(
    world: &World,
    vm: &VirtualMachine,
    placed: &PlacedEpoch,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) {
    status.waits_for = None;
    if let Some(failures) = &mut status.failures {
        let uid = vm.metadata.uid.as_deref().unwrap_or_default();
        let since = format!("domain/{}/{uid}", placed.host);
        let exits = failures.exits;
        if exits == 0 || world.age_of(&since) >= WELL_AFTER {
            status.failures = None;
        } else {
            let message = std::mem::take(&mut failures.message);
            *failures = stockade_crds::v1alpha1::Failures { exits, message, ..Default::default() };
            let begun = world.seen_since.get(&since).copied().unwrap_or(world.now);
            decision.wake = Some(begun + WELL_AFTER);
        }
    }
    // What is not marked stays named, as those of dead boots do.
    status.placements.retain(|p| p.epoch == placed.epoch || !is_marked(p));
    clean_up(world, vm, placed, decision);
}

fn copies_found(
    placed: &PlacedEpoch,
    open: &Open<'_>,
    report: Option<&DomainStatus>,
    ordered_runs: bool,
) -> Word {
    let hosts = found::names(open.copies);
    if ordered_runs {
        let message = format!("a second copy runs on {hosts}, the ordered one on {}", placed.host);
        let mut word = Word::new(VmState::Blocked, false, "DoubleRun", message).running();
        word.double = true;
        return word;
    }
    let left = report.is_some_and(|r| r.end == Some(End::Migrated));
    let why = if left { "it was moved by hand" } else { "nobody ordered that" };
    let message = format!(
        "runs on {hosts} and is ordered on {}: {why}; stop it there, or request \
         adopt/<host>/<id> if it is this VM",
        placed.host
    );
    let mut word = Word::new(VmState::Blocked, false, "FoundOnHost", message);
    word.running = open.copies.iter().any(|c| c.item.running);
    word
}

/// The word while its start is under way; after refusals it stays Blocked until it runs.
pub(super) fn ordered(placed: &PlacedEpoch, status: &VirtualMachineStatus, message: &str) -> Word {
    if let Some(failures) = status.failures.as_ref().filter(|f| f.refusals > 0) {
        return Word::new(VmState::Blocked, false, "StartRefused", failures.message.clone());
    }
    let message = if message.is_empty() {
        format!("being started on {}", placed.host)
    } else {
        message.to_owned()
    };
    Word::new(VmState::Starting, false, "Starting", message)
}

/// The word while its host goes down cleanly.
fn going_down(fate: Fate, vm: &VirtualMachine, placed: &PlacedEpoch) -> Word {
    let host = &placed.host;
    if vm.spec.run_policy == RunPolicy::Manual {
        let message = format!("{host} goes down; being stopped there");
        return Word::new(VmState::Stopping, false, "HostGoesDown", message);
    }
    match fate {
        Fate::Wait => {
            let message = format!("{host} goes down; being stopped, then waits for it");
            Word::new(VmState::Held, false, "WaitsForHost", message)
        }
        Fate::Leave | Fate::Move => {
            let message = format!("{host} goes down; being stopped, then starts elsewhere");
            Word::new(VmState::Recovering, false, "HostGoesDown", message)
        }
    }
}

fn recovering(facts: Option<&HostFacts>, placed: &PlacedEpoch) -> Word {
    let state = facts.map_or(HostState::Joining, |f| f.state);
    let message = match state {
        HostState::AwaitingProof => format!(
            "{} is silent and nothing proves it dead; confirm its HostFence if you know it is",
            placed.host
        ),
        HostState::Fenced => format!("{} is proven dead; its locks are being freed", placed.host),
        _ => format!("{} is {state:?}; waits for proof that it is dead", placed.host),
    };
    Word::new(VmState::Recovering, false, "HostLost", message)
}
