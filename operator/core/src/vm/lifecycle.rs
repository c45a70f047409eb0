//! One VM: what its epochs say, what its spec wants, and what follows.
//!
//! ```text
//! no open epoch ─wanted─► place (CAS, order) ─► Running ─ends─► settled ─► no open epoch
//!        │ not wanted                              │ not wanted, restart
//!        ▼                                         ▼
//!     Stopped                              order Stopped ─► settled
//! an open epoch whose host is silent ─► Recovering ─proof, denial, lock break─► settled
//! ```

use stockade_crds::conditions::{Decided, READY};
use stockade_crds::names::FINALIZER;
use stockade_crds::v1alpha1::{
    Domain, EpochState, Machine, Management, MigrationOrder, ProofKind, Recovery, RunPolicy,
    VirtualMachine, VirtualMachineStatus, VmState, WaitsFor,
};

use super::adopt;
use super::ends::{next_try, note_ends};
use super::found::{self, Found};
use super::machine::{self, Claims};
use super::moving;
use super::open::{Asked, open_epoch};
use super::order::basis;
use super::removal::{self, delete};
use super::request::{Request, obey_request, wants_to_run};
use super::seeds;
use super::shutdown::{self, Fate};
use super::word::{Word, conditions, tell};
use crate::gate::{self, Gate};
use crate::ha::host_state::{HostFacts, facts_of};
use crate::locks;
use crate::moves::live::Next;
use crate::plan::{DomainWrite, Intent, Report};
use crate::storages::selects;
use crate::world::{Key, Millis, World};

/// What was decided about one VM.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Its status.
    pub report: Report<VirtualMachineStatus>,
    /// Writes, in order.
    pub intents: Vec<Intent>,
    /// It is to be placed: with this machine, and on this host alone if one is named.
    pub start: Option<(Machine, Option<String>)>,
    /// The host that is named is only the first choice.
    pub pin_bends: bool,
    /// When to look again.
    pub wake: Option<Millis>,
    /// The present epoch's part of a live move, for its order.
    pub side: Option<MigrationOrder>,
    /// How its live move goes on.
    pub(crate) next: Option<Next>,
    /// The source of its live move runs and will not leave by it any more.
    pub source_stays: bool,
    /// The status is to be swapped, then these orders follow.
    pub swap: Option<Vec<DomainWrite>>,
    /// Its state passes in moments, and the next will say all of it.
    pub(crate) passing: bool,
}

impl Decision {
    /// Whether its status can wait for the next state: it would only say that a stop was ordered.
    ///
    /// Until it is written `observedGeneration` is the earlier one, so that nobody who waits for a
    /// condition takes the earlier status for an answer.
    pub(crate) fn can_wait(&self, vm: &VirtualMachine) -> bool {
        let Some(old) = vm.status.as_ref().filter(|_| self.passing) else { return false };
        let status = VirtualMachineStatus {
            observed_generation: old.observed_generation,
            conditions: old.conditions.clone(),
            ..self.report.status.clone()
        };
        status == *old
    }
}

/// Decides about one VM. `barred`: the host that it waits for is forbidden to it (see
/// [`barred`](super::barred)).
#[must_use]
pub fn decide(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    claims: &Claims,
    barred: bool,
) -> Decision {
    let key = Key::of(&vm.metadata);
    let mut decision = Decision {
        report: Report { status: vm.status.clone().unwrap_or_default(), conditions: Vec::new() },
        intents: Vec::new(),
        start: None,
        pin_bends: false,
        wake: None,
        side: None,
        next: None,
        source_stays: false,
        swap: None,
        passing: false,
    };
    let old = decision.report.status.clone();
    let deleting = vm.metadata.deletion_timestamp.is_some();
    let kept = vm.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER);
    if !kept {
        if !deleting {
            let basis = basis(&vm.metadata);
            decision.intents.push(Intent::AddFinalizer { vm: key, basis });
        }
        decision.report.conditions =
            vec![Decided::new(READY, None, "Accepted", "not looked at yet")];
        return decision;
    }
    let mut status = old.clone();
    status.observed_generation = vm.metadata.generation.unwrap_or_default();
    status.placements = gate::settle(world, vm);
    status.waits_for = status.waits_for.take().filter(|_| !barred);
    note_ends(world, vm, &old, &mut status, &mut decision.intents);
    let request = Request::pending(vm, &status);
    obey_request(&request, &mut status);
    let word = if vm.spec.management == Management::Watched {
        watched(world, vm, &mut status, &mut decision)
    } else {
        managed(world, hosts, vm, claims, &request, &mut status, &mut decision)
    };
    // What becomes of a VM that is to be placed is told once that is known.
    if status.printable_status != word.state && decision.start.is_none() {
        tell(&key, &word, &old, &mut decision.intents);
    }
    status.printable_status = word.state;
    decision.report.conditions = conditions(world, vm, &status, &word);
    decision.report.status = status;
    if let Some(domains) = decision.swap.take() {
        decision.intents.push(Intent::Place {
            vm: key,
            basis: basis(&vm.metadata),
            report: decision.report.clone(),
            domains,
            relies_on: Vec::new(),
        });
    }
    decision
}

pub(super) fn domain<'a>(world: &'a World, vm: &VirtualMachine, host: &str) -> Option<&'a Domain> {
    world.order(host, vm.metadata.uid.as_deref().unwrap_or_default())
}

/// A VM that Stockade governs.
fn managed(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    claims: &Claims,
    request: &Option<Request>,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    if vm.spec.run_policy != RunPolicy::RerunOnFailure {
        status.completed = false;
    }
    // Once it is down, with what is written then.
    if vm.spec.run_policy == RunPolicy::Halted
        && status.placements.iter().all(|p| p.state.is_settled())
    {
        status.manual_run = false;
    }
    let restart = request.as_ref().filter(|r| r.verb == "restart");
    let run = wants_to_run(vm, status);
    let paused = crate::lineage::is_paused(world);
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let copies = found::found(world, vm, &status.placements, claims.inventories(uid));
    let adopting = request.as_ref().and_then(|r| Some((r, r.adopt.as_deref()?)));
    if let Some((request, host)) = adopting {
        if adopt::is_there_already(world, vm, status, host, &copies) {
            status.last_handled_request = Some(request.text.clone());
        } else if !paused
            && let Some(word) = adopt::take_in(world, vm, host, &copies, request, status, decision)
        {
            return word;
        } else if !paused && copies.is_empty() {
            adopt::take_back(world, hosts, vm, host, request, status, decision);
        }
    }
    let adopting = adopting.is_some_and(|(_, host)| copies.iter().any(|c| c.host == host));
    let asked =
        Asked { run, keep: restart.is_none() && !adopting, paused, request, copies: &copies };
    if let Some(word) = moving::live_move(world, hosts, vm, asked, status, decision) {
        return word;
    }
    let stays = moving::stays(world, vm, status);
    match gate::may_place(world, vm, &status.placements) {
        Gate::Closed(_) if !world.guards.finalizer && vm.metadata.deletion_timestamp.is_some() => {
            removal::let_go(vm, decision)
        }
        Gate::Closed(placed) => {
            let open = Asked { keep: asked.keep && stays, ..asked }.of(&placed);
            let word = open_epoch(world, hosts, vm, &open, status, decision);
            moving::by_stop(status, run, stays, word)
        }
        Gate::Open(_) => {
            if let Some(restart) = restart {
                status.last_handled_request = Some(restart.text.clone());
            }
            if vm.metadata.deletion_timestamp.is_some() {
                return delete(world, vm, decision);
            }
            if !copies.is_empty() {
                return found_alone(world, vm, status, &copies, paused, decision);
            }
            if !run {
                // There is nothing to restart or reset: said to be done with, not kept for later.
                let over =
                    request.as_ref().filter(|r| matches!(r.verb.as_str(), "restart" | "reset"));
                if let Some(over) = over {
                    status.last_handled_request = Some(over.text.clone());
                }
                status.host = None;
                status.waits_for = None;
                status.failures = None;
                return Word::new(VmState::Stopped, true, "Stopped", "stopped, as its spec asks");
            }
            if let Some(word) = limits_used_up(vm, status) {
                return word;
            }
            if paused {
                status.host = None;
                return held_by_pause("its start");
            }
            let word = start(world, hosts, vm, claims, status, decision);
            moving::by_stop(status, run, stays, word)
        }
    }
}

/// What a pause keeps waiting.
pub(super) fn held_by_pause(what: &str) -> Word {
    let message =
        format!("{what} waits until the AvailabilityPolicy's spec.automation is Active again");
    Word::new(VmState::Held, false, "AutomationPaused", message)
}

/// Copies run, and no order of ours accounts for any.
fn found_alone(
    world: &World,
    vm: &VirtualMachine,
    status: &mut VirtualMachineStatus,
    copies: &[Found],
    paused: bool,
    decision: &mut Decision,
) -> Word {
    if !paused {
        decision.intents.extend(found::stop_copies(world, vm, status, copies, false));
    }
    status.host = copies.first().map(|c| c.host.clone());
    let message = format!(
        "runs on {} without an order; stop it there, or request adopt/<host>/<id> if it is this VM",
        found::names(copies)
    );
    let mut word = Word::new(VmState::Blocked, false, "FoundOnHost", message);
    word.running = copies.iter().any(|c| c.item.running);
    word.double = copies.len() > 1;
    word
}

/// The word for a VM that is not started any more; older limits are forgotten.
fn limits_used_up(vm: &VirtualMachine, status: &mut VirtualMachineStatus) -> Option<Word> {
    let failures = status.failures.as_ref()?;
    let at = failures.error_generation?;
    if Some(at) != vm.metadata.generation {
        status.failures = None;
        return None;
    }
    let message = format!(
        "start limits are used up ({}); change the spec, stop it or start it to try again",
        failures.message
    );
    status.host = None;
    Some(Word::new(VmState::Error, false, "LimitsUsedUp", message))
}

/// The VM is wanted and every epoch is settled.
fn start(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    claims: &Claims,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    status.host = None;
    let machine = match machine::resolve(world, vm) {
        Ok(machine) => machine,
        Err(problems) => {
            let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return Word::new(VmState::Blocked, false, "SpecCantWork", text.join("; ")).stalled();
        }
    };
    if let Some(word) = not_startable(world, vm, claims, &machine) {
        return word;
    }
    if let Some((until, why)) = seeds::refused(world, vm) {
        decision.wake = Some(until);
        let message = format!("spec.cloudInit.userDataSecret: {why}");
        return Word::new(VmState::Blocked, false, "SecretNotReady", message).stalled();
    }
    let last = status.placements.last().cloned();
    let told = vm.spec.availability.recovery == Recovery::Restart;
    let tried = status.failures.clone().unwrap_or_default().tried_hosts;
    status.waits_for = status.waits_for.take().filter(|waits| {
        // Where it failed to start it has waited long enough.
        if waits.held { !tried.contains(&waits.host) } else { !told }
    });
    if let Some(waits) = status.waits_for.clone() {
        match host_it_waits_for(world, hosts, vm, status, &waits) {
            Waited::On(word) => return word,
            Waited::There => {
                status.host = Some(waits.host.clone());
                decision.start = Some((machine, Some(waits.host)));
                return Word::new(VmState::Starting, false, "Placing", "its host is back");
            }
            Waited::InVain => status.waits_for = None,
        }
    }
    if let Some((due, pause)) = next_try(world, vm, status) {
        decision.wake = Some(due);
        let failures = status.failures.clone().unwrap_or_default();
        let why = failures.message;
        let pause = pause / 1000;
        return if failures.refusals > 0 {
            let message = format!("{why}; tried again every {pause} s");
            Word::new(VmState::Blocked, false, "StartRefused", message)
        } else {
            let message = format!("waits {pause} s before its next try: {why}");
            Word::new(VmState::Starting, false, "BackOff", message)
        };
    }
    let failures = status.failures.clone().unwrap_or_default();
    // After a crash, a failed start with a try left, or a stop, it stays where it was if that can
    // be; after a stop only if nothing says where it would rather be.
    let placement = &vm.spec.placement;
    let indifferent = placement.preferred_hosts.is_empty()
        && placement.prefers_together_with.is_empty()
        && placement.prefers_apart_from.is_empty();
    let stopped = last.as_ref().is_some_and(|p| p.state == EpochState::Released);
    let stays = failures.restarts > 0
        || failures.exits > 0
        || (stopped && indifferent && failures.tried_hosts.is_empty());
    // A host that was given up is one of the last to be tried again.
    let given_up = |host: &String| failures.tried_hosts.contains(host);
    let same = last.as_ref().filter(|p| stays && !given_up(&p.host)).and_then(|p| {
        facts_of(hosts, &p.host)
            .filter(|h| h.refuses.is_none() || (h.keeps_its_own && failures.exits > 0))
            .map(|h| h.name.clone())
    });
    decision.pin_bends = true;
    let same = match moving::start_on(status, hosts) {
        Some((host, bends)) => {
            decision.pin_bends = bends;
            Some(host)
        }
        None => same,
    };
    decision.start = Some((machine, same));
    if last.is_some_and(|p| p.state == EpochState::ProvenDead) {
        Word::new(VmState::Recovering, false, "Recovering", "being placed on another host")
    } else {
        Word::new(VmState::Starting, false, "Placing", "being placed")
    }
}

/// Why a VM can't be started on any host.
fn not_startable(
    world: &World,
    vm: &VirtualMachine,
    claims: &Claims,
    machine: &Machine,
) -> Option<Word> {
    let key = Key::of(&vm.metadata);
    for disk in machine.disks.iter().filter(|d| !d.read_only) {
        if let Some(owner) =
            claims.owner(world, &disk.path).filter(|owner| **owner != key && world.guards.one_owner)
        {
            let message = format!(
                "disk {} ({}) belongs to VM {owner}; name another file, or delete that VM",
                disk.name, disk.path
            );
            return Some(
                Word::new(VmState::Blocked, false, "DiskOwnedByAnother", message).stalled(),
            );
        }
    }
    let mut writable = machine.disks.iter().filter(|d| !d.read_only);
    let lock = writable.find_map(|disk| locks::in_maintenance(world, &disk.storage))?;
    let name = lock.metadata.name.clone().unwrap_or_default();
    let message = format!("LockManager {name} is in maintenance; starts wait until it is Active");
    Some(Word::new(VmState::Blocked, false, "LockManagerInMaintenance", message))
}

/// How the wait for a host stands.
enum Waited {
    /// It goes on.
    On(Word),
    /// The host takes the VM again.
    There,
    /// The host will not take it: it starts elsewhere.
    InVain,
}

fn host_it_waits_for(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    waits: &WaitsFor,
) -> Waited {
    let name = &waits.host;
    let Some(facts) = facts_of(hosts, name) else { return Waited::InVain };
    if facts.refuses.is_none() || facts.keeps_its_own {
        return Waited::There;
    }
    let old_boot = |p: &stockade_crds::v1alpha1::PlacedEpoch| {
        p.host == *name && p.host_uid == facts.uid && p.boot_id == facts.boot
    };
    let back = facts.alive && !status.placements.last().is_some_and(old_boot);
    let closed = world
        .hosts
        .get(name)
        .is_some_and(|h| h.spec.mode != stockade_crds::v1alpha1::HostMode::Active);
    // A host that was closed meanwhile keeps nobody waiting who may go elsewhere.
    if waits.held && back && closed {
        return Waited::InVain;
    }
    // Nor one that a person calls dead: it does not come back from its reboot.
    if waits.held && facts.proof == Some(ProofKind::Human) {
        return Waited::InVain;
    }
    // Nor does one that is away, once the policy says that its VMs go elsewhere.
    let leaves = |fate| {
        matches!(fate, Fate::Leave | Fate::Move) && shutdown::waits(fate, vm, name).is_none()
    };
    if waits.held && !back && shutdown::fate(world, facts, vm).is_some_and(leaves) {
        return Waited::InVain;
    }
    Waited::On(if waits.held {
        let message = format!("waits for {name}, which goes down cleanly, to come back");
        Word::new(VmState::Held, false, "WaitsForHost", message)
    } else {
        let message = format!("waits for {name}: spec.availability.recovery is None");
        Word::new(VmState::Recovering, false, "WaitsForHost", message)
    })
}

/// Why a VM that no host takes is Blocked rather than Unplaceable: hosts that would take it
/// lack its storage or its lock manager.
#[must_use]
pub(crate) fn not_ready(world: &World, hosts: &[HostFacts], vm: &VirtualMachine) -> Option<String> {
    let machine = machine::resolve(world, vm).ok()?;
    let required = &vm.spec.placement.required_hosts;
    // What a storage is not meant for will never have it.
    let meant = |h: &HostFacts| {
        let known = |storage| world.storages.get(storage).zip(world.hosts.get(&h.name));
        machine.disks.iter().filter_map(|d| known(&d.storage)).all(|(s, o)| selects(s, &h.name, o))
    };
    let open: Vec<&HostFacts> = hosts
        .iter()
        .filter(|h| h.refuses.is_none() && (required.is_empty() || required.contains(&h.name)))
        .filter(|h| meant(h))
        .collect();
    let lacks = |facts: &HostFacts| -> Option<String> {
        let report = world.agents.get(&facts.name)?.status.as_ref()?;
        for disk in &machine.disks {
            let seen = report.storages.iter().find(|s| s.name == disk.storage);
            match seen {
                Some(s) if s.ready => {}
                Some(s) => return Some(format!("storage {} is not ready: {}", s.name, s.message)),
                None => return Some(format!("storage {} is not mounted", disk.storage)),
            }
        }
        let kind = machine.lock?;
        let managers = || world.lock_managers.values().filter(|m| m.spec.kind == kind);
        let useless = managers().find_map(|m| locks::binds_nobody(world, m));
        let told = (!report.lock_message.is_empty()).then_some(report.lock_message.as_str());
        (report.lock != Some(kind)).then(|| match told.or(useless) {
            Some(why) => format!("lock manager {kind:?} does not work: {why}"),
            None => format!("lock manager {kind:?} does not work"),
        })
    };
    let reasons: Option<Vec<String>> =
        open.iter().map(|h| lacks(h).map(|why| format!("{}: {why}", h.name))).collect();
    reasons.filter(|r| !r.is_empty()).map(|r| r.join("; "))
}

/// A VM that is only watched: nothing is ordered for it.
fn watched(
    world: &World,
    vm: &VirtualMachine,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    let key = Key::of(&vm.metadata);
    if vm.metadata.deletion_timestamp.is_some() {
        // Its records beside the disks stay, so that nobody starts what may run on.
        decision.intents.extend(removal::forget(world, vm));
        if decision.intents.is_empty() {
            decision.intents.push(Intent::RemoveFinalizer { vm: key, basis: basis(&vm.metadata) });
        }
        return Word::new(VmState::Unmanaged, None, "Deleting", "was only watched; runs on");
    }
    // A stop order that is done must not end what somebody starts from now on.
    decision.intents.extend(removal::tombstones(world, vm));
    let all: Vec<String> = world.agents.keys().cloned().collect();
    let copies = found::found(world, vm, &status.placements, &all);
    let ordered = status.placements.iter().find(|p| {
        !p.state.is_settled()
            && domain(world, vm, &p.host).and_then(|d| d.status.as_ref()).is_some_and(|s| {
                s.epoch == p.epoch
                    && matches!(
                        s.state,
                        stockade_crds::v1alpha1::DomainState::Running
                            | stockade_crds::v1alpha1::DomainState::Paused
                            | stockade_crds::v1alpha1::DomainState::Stopping
                    )
            })
    });
    let mut on: Vec<&str> = ordered.iter().map(|p| p.host.as_str()).collect();
    on.extend(copies.iter().map(|c| c.host.as_str()));
    status.host = on.first().map(|h| (*h).to_owned());
    let message = match on.is_empty() {
        false => format!("only watched; runs on {}", on.join(" and ")),
        true => "only watched; runs nowhere".to_owned(),
    };
    let mut word = Word::new(VmState::Unmanaged, true, "Watched", message);
    word.running = !on.is_empty();
    word.double = on.len() > 1;
    word
}
