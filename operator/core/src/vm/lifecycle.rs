//! One VM: what its epochs say, what its spec wants, and what follows.
//!
//! ```text
//! no open epoch ─wanted─► place (CAS, order) ─► Running ─ends─► settled ─► no open epoch
//!        │ not wanted                              │ not wanted, restart
//!        ▼                                         ▼
//!     Stopped                              order Stopped ─► settled
//! an open epoch whose host is silent ─► Recovering ─proof, denial, lock break─► settled
//! ```

use std::collections::BTreeMap;

use stockade_crds::conditions::{Decided, READY};
use stockade_crds::names::FINALIZER;
use stockade_crds::v1alpha1::{
    Automation, Domain, DomainState, EpochState, HostState, Machine, Management, Pinned,
    PlacedEpoch, Recovery, RunPolicy, VirtualMachine, VirtualMachineStatus, VmState, Want,
};

use super::ends::{BACKOFF_MAX_MILLIS, BACKOFF_MILLIS, note_ends};
use super::machine;
use super::order::{basis, domain_order};
use super::removal::{clean_up, delete, disks_to_delete};
use super::request::{Request, obey_request, wants_to_run};
use super::word::{Word, conditions, tell};
use crate::gate::{self, Gate};
use crate::ha::host_state::HostFacts;
use crate::plan::{Intent, Report};
use crate::world::{Key, Millis, World};

/// A stop shows in the status only if it takes longer: most end before.
const SHOW_STOPPING_AFTER: Millis = 1_000;

/// What was decided about one VM.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Its status.
    pub report: Report<VirtualMachineStatus>,
    /// Writes, in order.
    pub intents: Vec<Intent>,
    /// It is to be placed: with this machine, and on this host alone if one is named.
    pub start: Option<(Machine, Option<String>)>,
    /// When to look again.
    pub wake: Option<Millis>,
}

/// Decides about one VM.
#[must_use]
pub fn decide(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    claims: &BTreeMap<String, Key>,
) -> Decision {
    let key = Key::of(&vm.metadata);
    let mut decision = Decision {
        report: Report { status: vm.status.clone().unwrap_or_default(), conditions: Vec::new() },
        intents: Vec::new(),
        start: None,
        wake: None,
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
    note_ends(world, vm, &old, &mut status, &mut decision.intents);
    let request = Request::pending(vm, &status);
    obey_request(&request, &mut status);
    let word = if vm.spec.management == Management::Watched {
        watched(world, vm, &mut status)
    } else {
        managed(world, hosts, vm, claims, &request, &mut status, &mut decision)
    };
    if status.printable_status != word.state {
        tell(&key, &word, &old, &mut decision.intents);
    }
    status.printable_status = word.state;
    decision.report.conditions = conditions(world, vm, &status, &word);
    decision.report.status = status;
    decision
}

pub(super) fn domain<'a>(world: &'a World, vm: &VirtualMachine, host: &str) -> Option<&'a Domain> {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    world.domains.get(&(host.to_owned(), uid)).map(|d| d.as_ref())
}

fn managed(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    claims: &BTreeMap<String, Key>,
    request: &Option<Request>,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    if vm.spec.run_policy != RunPolicy::RerunOnFailure {
        status.completed = false;
    }
    let restart = request.as_ref().filter(|r| r.verb == "restart");
    let run = wants_to_run(vm, status);
    let paused = world.policy_spec().automation == Automation::Paused;
    match gate::may_place(world, vm, &status.placements) {
        Gate::Closed(placed) => open_epoch(
            world,
            hosts,
            vm,
            &placed,
            (run && restart.is_none(), paused),
            request,
            status,
            decision,
        ),
        Gate::Open(_) => {
            if let Some(restart) = restart {
                status.last_handled_request = Some(restart.text.clone());
            }
            if vm.metadata.deletion_timestamp.is_some() {
                return delete(world, vm, decision);
            }
            if !run {
                status.host = None;
                return Word::new(VmState::Stopped, true, "Stopped", "stopped, as its spec asks");
            }
            if paused {
                return Word::new(
                    VmState::Held,
                    false,
                    "AutomationPaused",
                    "waits until the AvailabilityPolicy's automation is Active again",
                );
            }
            start(world, hosts, vm, claims, status, decision)
        }
    }
}

/// The VM is wanted and every epoch is settled.
fn start(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    claims: &BTreeMap<String, Key>,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    let key = Key::of(&vm.metadata);
    let machine = match machine::resolve(world, vm) {
        Ok(machine) => machine,
        Err(problems) => {
            let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
            return Word::new(VmState::Blocked, false, "SpecCantWork", text.join("; ")).stalled();
        }
    };
    for disk in machine.disks.iter().filter(|d| !d.read_only) {
        if let Some(owner) = claims.get(&disk.path).filter(|owner| **owner != key) {
            let message = format!(
                "disk {} ({}) belongs to VM {owner}; name another file, or delete that VM",
                disk.name, disk.path
            );
            return Word::new(VmState::Blocked, false, "DiskOwnedByAnother", message).stalled();
        }
    }
    if let Some((host, item)) = found_copy(world, vm) {
        let message = format!(
            "a copy of it (epoch {}) runs on {host} without an order; stop it there, or adopt it",
            item.epoch
        );
        return Word::new(VmState::Blocked, false, "FoundOnHost", message);
    }
    if let Some(lock) = world.lock_managers.values().find(|l| {
        l.spec.mode == stockade_crds::v1alpha1::LockMode::Maintenance
            && machine.disks.iter().any(|d| d.storage == l.spec.storage && !d.read_only)
    }) {
        let name = lock.metadata.name.clone().unwrap_or_default();
        let message =
            format!("LockManager {name} is in maintenance; starts wait until it is Active");
        return Word::new(VmState::Blocked, false, "LockManagerInMaintenance", message);
    }
    let failures = status.failures.clone().unwrap_or_default();
    if failures.error_generation.is_some() && failures.error_generation == vm.metadata.generation {
        let message = format!(
            "start limits are used up ({}); change the spec or request a start to try again",
            failures.message
        );
        return Word::new(VmState::Error, false, "LimitsUsedUp", message);
    }
    if failures.error_generation.is_some() {
        status.failures = None;
    }
    let tries = failures.restarts + failures.exits - i32::from(failures.exits > 0)
        + i32::try_from(failures.tried_hosts.len()).unwrap_or(0);
    if tries > 0 && failures.error_generation.is_none() {
        let shift = u32::try_from(tries - 1).unwrap_or(0).min(10);
        let pause = (BACKOFF_MILLIS << shift).min(BACKOFF_MAX_MILLIS);
        let uid = vm.metadata.uid.clone().unwrap_or_default();
        let last = status.placements.last().map_or(0, |p| p.epoch);
        let settled = format!("settled/{uid}/{last}");
        let due = world.seen_since.get(&settled).copied().unwrap_or(world.now) + pause;
        if world.now < due {
            decision.wake = Some(due);
            let message = format!("next try in {} s: {}", (due - world.now).div_ceil(1000), "");
            return Word::new(VmState::Starting, false, "BackOff", message.trim_end_matches(": "));
        }
    }
    // A failed start is tried on the same host first; a VM without recovery waits for its own.
    let last = status.placements.last().cloned();
    let same = match &last {
        Some(p) if failures.restarts > 0 => {
            hosts.iter().find(|h| h.name == p.host && h.refuses.is_none()).map(|h| h.name.clone())
        }
        Some(p) if vm.spec.availability.recovery == Recovery::None => {
            let lost = p.state == EpochState::ProvenDead
                || hosts.iter().any(|h| h.name == p.host && h.refuses.is_some());
            if lost {
                let there = hosts.iter().any(|h| h.name == p.host && h.refuses.is_none());
                if !there {
                    let message =
                        format!("waits for {}: spec.availability.recovery is None", p.host);
                    return Word::new(VmState::Recovering, false, "WaitsForHost", message);
                }
                Some(p.host.clone())
            } else {
                None
            }
        }
        // After a crash it stays where it was, if that host still takes it.
        Some(p) if failures.exits > 0 => {
            hosts.iter().find(|h| h.name == p.host && h.refuses.is_none()).map(|h| h.name.clone())
        }
        _ => None,
    };
    decision.start = Some((machine, same));
    let recovering = last.is_some_and(|p| p.state == EpochState::ProvenDead);
    if recovering {
        Word::new(VmState::Recovering, false, "Recovering", "being placed on another host")
    } else {
        Word::new(VmState::Starting, false, "Placing", "being placed")
    }
}

/// A live copy that no order accounts for (the double-run auditor).
fn found_copy<'a>(
    world: &'a World,
    vm: &VirtualMachine,
) -> Option<(&'a String, &'a stockade_crds::v1alpha1::InventoryItem)> {
    let uid = vm.metadata.uid.as_deref()?;
    world.agents.iter().find_map(|(host, agent)| {
        let report = agent.status.as_ref()?;
        let item = report.inventory.iter().find(|i| i.uuid == uid)?;
        let current = world.lives.hosts.get(host)?.lease.boot_id == report.boot_id;
        current.then_some((host, item))
    })
}

/// An epoch is open: it may be running.
#[allow(clippy::too_many_arguments)] // One row of the table in the module's head.
fn open_epoch(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    placed: &PlacedEpoch,
    (run, paused): (bool, bool),
    request: &Option<Request>,
    status: &mut VirtualMachineStatus,
    decision: &mut Decision,
) -> Word {
    status.host = Some(placed.host.clone());
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let now = domain(world, vm, &placed.host);
    let same = now.filter(|d| d.spec.epoch == placed.epoch);
    let report = same.and_then(|d| d.status.as_ref()).filter(|s| s.epoch == placed.epoch);
    let facts = hosts.iter().find(|h| h.name == placed.host);
    let machine = machine::resolve(world, vm).ok();
    let last = same.map(|d| d.spec.machine.clone());
    if !paused {
        let want = if run { Want::Running } else { Want::Stopped };
        let write = match now {
            // Gate 2: it is created again as a stop order, and waited for.
            None => {
                machine.clone().map(|m| domain_order(vm, status, placed, Want::Stopped, m, None))
            }
            Some(d) if d.spec.epoch < placed.epoch => {
                machine.clone().map(|m| domain_order(vm, status, placed, want, m, Some(d)))
            }
            Some(d) if d.spec.epoch == placed.epoch => {
                // An order to stop is never taken back: its end is waited for.
                let want = match d.spec.want {
                    Want::Stopped | Want::Killed => d.spec.want,
                    Want::Running | Want::Incoming => want,
                };
                let used = machine.clone().or_else(|| last.clone()).unwrap_or_default();
                let mut write = domain_order(vm, status, placed, want, used, Some(d));
                write.spec.settled.clone_from(&d.spec.settled);
                write.spec.settled_through = d.spec.settled_through;
                // What was pinned at the start is no change of the order.
                write.spec.machine.machine_type.clone_from(&d.spec.machine.machine_type);
                write.spec.machine.cpu_model.clone_from(&d.spec.machine.cpu_model);
                if let Some(r) = request.as_ref().filter(|r| r.verb == "reset") {
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
        };
        decision.intents.extend(write.map(Intent::WriteDomain));
    }
    if let (Some(r), Some(request)) = (report, request)
        && request.verb == "reset"
        && r.reset.as_ref() == Some(&request.text)
    {
        status.last_handled_request = Some(request.text.clone());
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
    let Some(r) = report else {
        if silent {
            return recovering(facts, placed);
        }
        let message = format!("ordered on {}", placed.host);
        return Word::new(VmState::Starting, false, "Ordered", message);
    };
    if silent {
        return recovering(facts, placed);
    }
    if !r.machine_type.is_empty() && status.pinned.is_none() {
        status.pinned =
            Some(Pinned { machine_type: r.machine_type.clone(), cpu_model: r.cpu_model.clone() });
    }
    status.addresses.clone_from(&r.addresses);
    match r.state {
        DomainState::Running | DomainState::Paused => {
            if status.failures.as_ref().is_some_and(|f| f.restarts > 0 || !f.tried_hosts.is_empty())
            {
                status.failures = None;
            }
            status.placements.retain(|p| p.epoch == placed.epoch || !p.state.is_settled());
            clean_up(world, vm, placed, decision);
            if !run {
                let asked = same.is_some_and(|d| d.spec.want != Want::Running);
                let age = world.age_of(&format!("domain/{}/{uid}", placed.host));
                if asked && age >= SHOW_STOPPING_AFTER {
                    let message = format!("its guest on {} was asked to stop", placed.host);
                    return Word::new(VmState::Stopping, false, "Stopping", message).running();
                }
                decision.wake = Some(world.now + SHOW_STOPPING_AFTER);
            }
            if let Some((host, _)) = found_copy(world, vm).filter(|(h, _)| **h != placed.host) {
                let message = format!("a second copy runs on {host}; stop it there");
                return Word::new(VmState::Blocked, false, "DoubleRun", message).running();
            }
            let what = if r.state == DomainState::Paused { "in memory, paused" } else { "running" };
            let message = format!("{what} on {}", placed.host);
            let ready = run && vm.spec.paused == (r.state == DomainState::Paused);
            let mut word = Word::new(VmState::Running, ready, "Running", message);
            word.running = r.state == DomainState::Running;
            word
        }
        DomainState::Stopping => {
            let message = format!("its guest on {} was asked to stop", placed.host);
            Word::new(VmState::Stopping, false, "Stopping", message).running()
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
            let message = if r.message.is_empty() {
                format!("being started on {}", placed.host)
            } else {
                r.message.clone()
            };
            Word::new(VmState::Starting, false, "Starting", message)
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

fn watched(world: &World, vm: &VirtualMachine, status: &mut VirtualMachineStatus) -> Word {
    let found = found_copy(world, vm);
    status.host = found.as_ref().map(|(h, _)| (*h).clone());
    let message = match &found {
        Some((host, _)) => format!("only watched; runs on {host}"),
        None => "only watched; runs nowhere".to_owned(),
    };
    let mut word = Word::new(VmState::Unmanaged, true, "Watched", message);
    word.running = found.is_some();
    word
}
