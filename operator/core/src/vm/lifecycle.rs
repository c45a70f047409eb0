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

use stockade_crds::conditions::{Decided, PENDING_RESTART, READY, RECONCILING, RUNNING, STALLED};
use stockade_crds::names::{FINALIZER, REQUEST_ANNOTATION};
use stockade_crds::v1alpha1::{
    Automation, Domain, DomainState, End, EpochState, Failures, HostState, Machine, Management,
    Pinned, PlacedEpoch, Reclaim, Recovery, RunPolicy, VirtualMachine, VirtualMachineStatus,
    VmState, Want,
};

use super::machine::{self, disk_path};
use super::order::{basis, domain_order};
use crate::gate::{self, Gate};
use crate::ha::host_state::HostFacts;
use crate::plan::{About, Event, Intent, Report};
use crate::world::{Key, Millis, World};

/// A stop shows in the status only if it takes longer: most end before.
const SHOW_STOPPING_AFTER: Millis = 1_000;
/// First pause after a failed start or a crash; doubled each time.
const BACKOFF_MILLIS: Millis = 2_000;
/// Longest pause.
const BACKOFF_MAX_MILLIS: Millis = 300_000;

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

/// A state word with its reason for the Ready condition.
struct Word {
    state: VmState,
    ready: Option<bool>,
    reason: &'static str,
    message: String,
    running: bool,
    stalled: bool,
}

impl Word {
    fn new(
        state: VmState,
        ready: impl Into<Option<bool>>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self { state, ready: ready.into(), reason, message, running: false, stalled: false }
    }

    fn running(mut self) -> Self {
        self.running = true;
        self
    }

    fn stalled(mut self) -> Self {
        self.stalled = true;
        self
    }
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

/// A request by annotation that was not handled yet.
struct Request {
    verb: String,
    text: String,
}

impl Request {
    fn pending(vm: &VirtualMachine, status: &VirtualMachineStatus) -> Option<Self> {
        let text = vm.metadata.annotations.as_ref()?.get(REQUEST_ANNOTATION)?.clone();
        if status.last_handled_request.as_ref() == Some(&text) {
            return None;
        }
        let verb = text.split('/').next().unwrap_or_default().to_owned();
        Some(Self { verb, text })
    }
}

fn obey_request(request: &Option<Request>, status: &mut VirtualMachineStatus) {
    let Some(request) = request else { return };
    match request.verb.as_str() {
        "start" => {
            status.manual_run = true;
            status.completed = false;
            status.failures = None;
            status.last_handled_request = Some(request.text.clone());
        }
        "stop" => {
            status.manual_run = false;
            status.last_handled_request = Some(request.text.clone());
        }
        // Restart and reset are handled once they have taken effect.
        _ => {}
    }
}

fn domain<'a>(world: &'a World, vm: &VirtualMachine, host: &str) -> Option<&'a Domain> {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    world.domains.get(&(host.to_owned(), uid)).map(|d| d.as_ref())
}

/// Books what newly settled epochs say about how they ended.
fn note_ends(
    world: &World,
    vm: &VirtualMachine,
    old: &VirtualMachineStatus,
    status: &mut VirtualMachineStatus,
    intents: &mut Vec<Intent>,
) {
    let newly: Vec<PlacedEpoch> = status
        .placements
        .iter()
        .filter(|p| {
            p.state.is_settled()
                && old.placements.iter().any(|o| o.epoch == p.epoch && !o.state.is_settled())
        })
        .cloned()
        .collect();
    let key = Key::of(&vm.metadata);
    for placed in newly {
        let report = domain(world, vm, &placed.host)
            .and_then(|d| d.status.as_ref())
            .filter(|s| s.epoch == placed.epoch);
        let end = match placed.state {
            EpochState::ProvenDead => End::HostRestarted,
            _ => report.and_then(|r| r.end).unwrap_or(End::Void),
        };
        let message = report.map(|r| r.message.clone()).unwrap_or_default();
        let failures = status.failures.get_or_insert_with(Failures::default);
        match end {
            End::GuestShutdown => {
                status.completed = vm.spec.run_policy == RunPolicy::RerunOnFailure;
                status.manual_run = false;
            }
            End::Crashed | End::StorageLost => {
                failures.exits += 1;
                failures.message.clone_from(&message);
                status.manual_run = false;
                intents.push(event(
                    &key,
                    "VmCrashed",
                    true,
                    format!("its process on {} ended without an order", placed.host),
                ));
            }
            End::HostRestarted => status.manual_run = false,
            End::StartFailed | End::Refused => {
                failures.restarts += 1;
                failures.message.clone_from(&message);
                let spec = vm.spec.availability;
                if failures.restarts > spec.max_restarts {
                    failures.restarts = 0;
                    failures.tried_hosts.push(placed.host.clone());
                    let tried = i32::try_from(failures.tried_hosts.len()).unwrap_or(i32::MAX);
                    if tried > spec.max_relocations {
                        failures.error_generation = vm.metadata.generation;
                    }
                }
                intents.push(event(
                    &key,
                    "VmStartFailed",
                    true,
                    format!("start on {} failed: {message}", placed.host),
                ));
            }
            End::Stopped | End::Killed | End::Void | End::Migrated => {}
        }
        if status.failures == Some(Failures::default()) {
            status.failures = None;
        }
    }
}

fn wants_to_run(vm: &VirtualMachine, status: &VirtualMachineStatus) -> bool {
    if vm.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match vm.spec.run_policy {
        RunPolicy::Always => true,
        RunPolicy::RerunOnFailure => !status.completed,
        RunPolicy::Manual => status.manual_run,
        RunPolicy::Halted => false,
    }
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

/// Tombstones of other hosts go once the present epoch has run.
fn clean_up(world: &World, vm: &VirtualMachine, placed: &PlacedEpoch, decision: &mut Decision) {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    for ((host, name), d) in &world.domains {
        let over = d.spec.epoch < placed.epoch && d.status.as_ref().is_some_and(|s| s.released);
        if *name == uid && *host != placed.host && over {
            decision.intents.push(Intent::DeleteDomain {
                host: host.clone(),
                vm_uid: uid.clone(),
                basis: basis(&d.metadata),
            });
        }
    }
}

fn disks_to_delete(world: &World, vm: &VirtualMachine) -> Vec<String> {
    vm.spec
        .disks
        .iter()
        .enumerate()
        .filter(|(_, d)| d.reclaim == Reclaim::Delete && d.existing.is_none() && !d.read_only)
        .filter_map(|(i, _)| disk_path(world, vm, i).ok())
        .collect()
}

/// A deleted VM whose last epoch is settled: its tombstones go, then it goes.
fn delete(world: &World, vm: &VirtualMachine, decision: &mut Decision) -> Word {
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let mut left = false;
    for ((host, name), d) in &world.domains {
        if *name == uid {
            left = true;
            decision.intents.push(Intent::DeleteDomain {
                host: host.clone(),
                vm_uid: uid.clone(),
                basis: basis(&d.metadata),
            });
        }
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
        decision.intents.push(Intent::RemoveFinalizer { vm: key, basis: basis(&vm.metadata) });
    }
    Word::new(VmState::Stopped, false, "Deleting", "its last epoch is settled")
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

fn event(key: &Key, reason: &'static str, warning: bool, message: String) -> Intent {
    Intent::Event(Event { about: About::Vm(key.clone()), reason, message, warning })
}

/// People are told of the changes of state that matter to them.
fn tell(key: &Key, word: &Word, old: &VirtualMachineStatus, intents: &mut Vec<Intent>) {
    let (reason, warning) = match word.state {
        VmState::Running if old.printable_status == VmState::Stopping => return,
        VmState::Running => ("VmRunning", false),
        VmState::Stopped => ("VmStopped", false),
        VmState::Recovering => ("VmHostLost", true),
        VmState::Unplaceable => ("VmUnplaceable", true),
        VmState::Blocked => ("VmBlocked", true),
        VmState::Error => ("VmLimitsUsedUp", true),
        VmState::Starting
        | VmState::Stopping
        | VmState::Migrating
        | VmState::Unmanaged
        | VmState::Held => return,
    };
    intents.push(event(key, reason, warning, word.message.clone()));
}

fn conditions(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    word: &Word,
) -> Vec<Decided> {
    let pending = status
        .host
        .as_ref()
        .and_then(|h| domain(world, vm, h))
        .and_then(|d| d.status.as_ref())
        .map(|s| s.pending_restart.clone())
        .unwrap_or_default();
    let running_reason = if word.running { "Running" } else { "NotRunning" };
    let under_way = matches!(
        word.state,
        VmState::Starting | VmState::Stopping | VmState::Migrating | VmState::Recovering
    );
    vec![
        Decided::new(READY, word.ready, word.reason, word.message.clone()),
        Decided::new(RUNNING, word.running, running_reason, word.message.clone()),
        Decided::new(RECONCILING, under_way, word.reason, word.message.clone()),
        Decided::new(STALLED, word.stalled, word.reason, word.message.clone()),
        Decided::new(
            PENDING_RESTART,
            !pending.is_empty() && word.running,
            "ChangedWhileRunning",
            format!("takes effect at the next start: {}", pending.join(", ")),
        ),
    ]
}

/// The word for a VM that no host takes.
#[must_use]
pub(crate) fn unplaceable(mut decision: Decision, vm: &VirtualMachine, why: &str) -> Decision {
    let key = Key::of(&vm.metadata);
    let word = Word::new(VmState::Unplaceable, false, "NoHostFits", why);
    let old = vm.status.clone().unwrap_or_default();
    if old.printable_status != VmState::Unplaceable {
        tell(&key, &word, &old, &mut decision.intents);
    }
    decision.report.status.printable_status = VmState::Unplaceable;
    decision.report.status.host = None;
    decision.report.conditions = vec![
        Decided::new(READY, false, word.reason, why),
        Decided::new(RUNNING, false, "NotRunning", why),
        Decided::new(RECONCILING, false, word.reason, ""),
        Decided::new(STALLED, false, word.reason, ""),
    ];
    decision
}
