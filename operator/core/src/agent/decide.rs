//! Which action each VM needs now.

use std::collections::BTreeSet;

use stockade_crds::v1alpha1::{DomainSpec, End, Want};

use super::moves;
use super::observed::{Live, Observed, VmMemory};
use super::types::{JournalVm, LiveDomain, LiveState, Presence, StopReason};

/// Longest wait for what a start needs (storages, lock manager, hook), in milliseconds.
pub const START_WAIT: u64 = 20_000;
/// A start without a known result is over once it was absent for so long.
pub const ABSENT: u64 = 2_000;
/// How long the hypervisor may take to say why a domain ended.
pub const REASON_WAIT: u64 = 1_000;
/// After so long a killed process that is still there will not die.
pub const UNDEAD: u64 = 5_000;
/// A VM whose storage, or the lockspace of whose lock, was seen to be lost for so long is killed
/// (safety §6.5). With the time until the loss is seen, the kill and the drain it stays below the
/// lease of an NFS server (90 s) and sanlock's deadline (80 s).
pub const STORAGE_LOST: u64 = 50_000;

/// One act on a VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostAction {
    /// Obey the order: journal, records, disks, start.
    Start,
    /// A copy of the order's epoch runs that the journal does not know: remember it.
    Note {
        /// Its epoch.
        epoch: i64,
    },
    /// The start's call has no known result: let the hook refuse what is late.
    Close,
    /// The start's call is over and nothing came of it.
    Settle,
    /// Ask the guest to shut down.
    Shutdown,
    /// Kill the process.
    Kill {
        /// Its epoch.
        epoch: i64,
    },
    /// Kill the process: its storage or its lock was lost for too long.
    Abandon {
        /// Its epoch.
        epoch: i64,
    },
    /// Kill the process: it hangs in a move.
    GiveUp {
        /// Its epoch.
        epoch: i64,
    },
    /// A human says that the copy which runs here is the VM: take it in under the order's epoch.
    Adopt {
        /// The epoch that the copy has in its metadata; 0: none.
        from: i64,
    },
    /// Suspend the vCPUs.
    Suspend,
    /// Resume them.
    Resume,
    /// Reset the guest.
    Reset {
        /// Identity of the request.
        id: String,
    },
    /// Change CPUs and memory.
    Resize {
        /// vCPUs.
        cores: i32,
        /// MiB.
        memory_mib: i64,
    },
    /// Grow a disk.
    Grow {
        /// Path.
        path: String,
        /// Size in bytes.
        bytes: i64,
    },
    /// The process is gone: drain the disks, mark the records, remember it.
    Release {
        /// The epoch.
        epoch: i64,
        /// How it ended.
        end: End,
        /// Its boot is over: what can't be marked is released all the same.
        history: bool,
    },
    /// It was never launched and never will be: make its epoch void.
    Void {
        /// The epoch.
        epoch: i64,
        /// How it ended.
        end: End,
        /// Why; empty if it was ordered so.
        message: String,
    },
    /// Get ready to take the VM in from a live move: journal, records, listener.
    Prepare,
    /// It came in and runs here: remember it.
    Arrived,
    /// Move it away: remember the move, then hand it to the hypervisor.
    Migrate {
        /// Identity of the move.
        id: String,
    },
    /// Call the move away off.
    AbortMove,
    /// The epoch is settled: delete the disks that the order names.
    DeleteDisks,
}

/// The actions that are due, one a VM at most, by VM uid.
#[must_use]
pub fn decide(observed: &Observed, now: u64) -> Vec<(String, HostAction)> {
    let Some(journal) = &observed.journal else { return kills_without_journal(observed, now) };
    let mut uids: BTreeSet<&String> = journal.vms.keys().collect();
    uids.extend(observed.orders.iter().flatten().map(|(uid, _)| uid));
    uids.into_iter()
        .filter_map(|uid| decide_vm(observed, uid, now).map(|action| (uid.clone(), action)))
        .collect()
}

/// Without a journal nothing is started or released, but stop orders are obeyed.
fn kills_without_journal(observed: &Observed, now: u64) -> Vec<(String, HostAction)> {
    let fallback = VmMemory::default();
    let mut actions = Vec::new();
    for uid in observed.orders.iter().flatten().map(|(uid, _)| uid) {
        let memory = observed.memory.get(uid).unwrap_or(&fallback);
        let Some(order) = observed.order(uid) else { continue };
        let stops = matches!(order.spec.want, Want::Stopped | Want::Killed);
        if !stops || memory.busy.is_some() || now < memory.retry_at {
            continue;
        }
        if let Live::Present(live) = observed.live(uid)
            && live.epoch <= order.spec.epoch
            && !observed.is_history(&order.spec)
            && let Some(action) = stop(&order.spec, live, memory, now)
        {
            actions.push((uid.clone(), action));
        }
    }
    actions
}

fn decide_vm(o: &Observed, uid: &str, now: u64) -> Option<HostAction> {
    let fallback = VmMemory::default();
    let memory = o.memory.get(uid).unwrap_or(&fallback);
    if memory.busy.is_some() || now < memory.retry_at {
        return None;
    }
    let journalled = o.journalled(uid);
    if let Some(j) = journalled
        && j.launched
        && j.open
        && !comes_in(o, uid, j)
    {
        return Some(HostAction::Close);
    }
    let live = o.live(uid);
    let Some(order) = o.order(uid) else {
        if let Live::Present(d) = live
            && !o.guards.missing_is_no_stop
            && d.epoch > 0
        {
            return Some(HostAction::Kill { epoch: d.epoch });
        }
        // A missing order is no stop order: what runs runs on, what ended is released.
        return ended(o, journalled?, live, memory, None, now);
    };
    let order = &order.spec;
    if o.is_history(order) {
        return history(o, order, journalled, live, memory);
    }
    if let Some(j) = journalled
        && j.epoch > order.epoch
        && o.guards.epoch
    {
        return ended(o, j, live, memory, None, now);
    }
    if let Some(j) = journalled
        && j.epoch < order.epoch
        && j.launched
        && !j.released
        && (j.boot_id == o.boot_id || live == Live::Absent)
        && !matches!(live, Live::Present(_))
    {
        // The epoch before must be settled here before anything else: this boot's, or what
        // an earlier boot left of it.
        return ended(o, j, live, memory, Some(order.want), now)
            .or_else(|| kill_unlisted(order, j, memory, now));
    }
    let current = journalled.filter(|j| j.epoch == order.epoch);
    if let Some(epoch) = runs_here(order, current, live, memory)
        && order.machine.disks.iter().any(|disk| {
            o.lost.contains(&disk.storage)
                || (!disk.read_only && o.unlocked.contains(&disk.storage))
        })
    {
        return Some(HostAction::Abandon { epoch });
    }
    if let Some(action) = current.and_then(|j| moves::source(o, order, j, live, memory, now)) {
        return Some(action);
    }
    match order.want {
        Want::Running => run(o, order, current, live, memory, now),
        Want::Stopped | Want::Killed => stopped(o, order, current, live, memory, now),
        Want::Incoming => moves::incoming(o, order, current, live, memory, now),
    }
}

/// The epoch of a VM whose process can be killed here. A daemon that does not answer, as it happens
/// where storage hangs, has no say in that.
fn runs_here(
    order: &DomainSpec,
    current: Option<&JournalVm>,
    live: Live<'_>,
    memory: &VmMemory,
) -> Option<i64> {
    match live {
        Live::Present(d) => (d.epoch > 0 && d.epoch <= order.epoch && d.state != LiveState::Dying)
            .then_some(d.epoch),
        Live::Unknown => {
            let runs = memory.presence == Presence::Present;
            current.filter(|j| runs && j.launched && !j.released).map(|j| j.epoch)
        }
        Live::Absent => None,
    }
}

/// Whether the hook is to let this epoch come in still.
fn comes_in(o: &Observed, uid: &str, j: &JournalVm) -> bool {
    o.order(uid).is_some_and(|order| {
        order.spec.want == Want::Incoming
            && order.spec.epoch == j.epoch
            && !o.is_history(&order.spec)
    })
}

fn run(
    o: &Observed,
    order: &DomainSpec,
    current: Option<&JournalVm>,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> Option<HostAction> {
    match (live, current) {
        (Live::Present(d), Some(j)) if d.epoch == order.epoch && j.launched => {
            if j.incoming {
                return arrive(o, order, d);
            }
            if moves::holds(order, j) {
                return None;
            }
            converge(o, order, j, d, memory)
        }
        (Live::Present(d), _) if d.epoch == order.epoch => {
            Some(HostAction::Note { epoch: order.epoch })
        }
        (Live::Present(d), j) if order.adopt && j.is_none_or(|j| j.end.is_none()) => {
            Some(HostAction::Adopt { from: d.epoch })
        }
        // Another epoch of it is here: the inventory says so, its word is the controller's.
        (Live::Present(_), _) => None,
        (_, Some(j)) if (j.launched || j.end.is_some()) && (o.guards.once || !j.released) => {
            if j.released {
                return delete_disks(order, memory);
            }
            ended(o, j, live, memory, Some(order.want), now)
        }
        (Live::Unknown, _) => None,
        (Live::Absent, _) => {
            if !o.no_starts.is_empty() {
                let message = o.no_starts.clone();
                return Some(HostAction::Void { epoch: order.epoch, end: End::Void, message });
            }
            let Some(blocker) = o.start_blocker(order) else { return Some(HostAction::Start) };
            let waited = memory.first_seen.0 == order.epoch
                && now.saturating_sub(memory.first_seen.1) >= START_WAIT;
            waited.then_some(HostAction::Void {
                epoch: order.epoch,
                end: End::Refused,
                message: blocker,
            })
        }
    }
}

/// The move was committed: the copy that came in goes on if it does not run yet.
fn arrive(o: &Observed, order: &DomainSpec, live: &LiveDomain) -> Option<HostAction> {
    match live.state {
        LiveState::Running => Some(HostAction::Arrived),
        LiveState::Switched | LiveState::Paused if !order.paused && !o.suspended => {
            Some(HostAction::Resume)
        }
        _ => None,
    }
}

fn converge(
    o: &Observed,
    order: &DomainSpec,
    j: &JournalVm,
    live: &LiveDomain,
    memory: &VmMemory,
) -> Option<HostAction> {
    let pause = order.paused || o.suspended;
    match live.state {
        LiveState::Running if pause => return Some(HostAction::Suspend),
        LiveState::Paused if !pause => return Some(HostAction::Resume),
        LiveState::Running => {}
        _ => return None,
    }
    if let Some(id) = &order.reset
        && j.reset.as_ref() != Some(id)
    {
        return Some(HostAction::Reset { id: id.clone() });
    }
    let size = (order.machine.cores, order.machine.memory_mib);
    if size != (live.cores, live.memory_mib)
        && memory.resized.is_none_or(|(cores, memory_mib, _)| (cores, memory_mib) != size)
    {
        return Some(HostAction::Resize { cores: size.0, memory_mib: size.1 });
    }
    order
        .machine
        .disks
        .iter()
        .find(|d| d.size_bytes > 0 && j.sizes.get(&d.path).is_some_and(|s| *s < d.size_bytes))
        .map(|d| HostAction::Grow { path: d.path.clone(), bytes: d.size_bytes })
}

fn stopped(
    o: &Observed,
    order: &DomainSpec,
    current: Option<&JournalVm>,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> Option<HostAction> {
    if let Live::Present(d) = live {
        // What a stop order covers is every copy of the VM up to its epoch.
        return if d.epoch <= order.epoch { stop(order, d, memory, now) } else { None };
    }
    match current {
        Some(j) if j.released => delete_disks(order, memory),
        Some(j) if j.launched => ended(o, j, live, memory, Some(order.want), now)
            .or_else(|| kill_unlisted(order, j, memory, now)),
        // Unlisted copies of an unknown journal can't be excluded without a list.
        _ if live == Live::Unknown => None,
        _ => Some(HostAction::Void {
            epoch: order.epoch,
            end: current.and_then(|j| j.end).unwrap_or(End::Void),
            message: String::new(),
        }),
    }
}

/// How a listed domain is stopped.
fn stop(order: &DomainSpec, live: &LiveDomain, memory: &VmMemory, now: u64) -> Option<HostAction> {
    let grace = u64::try_from(order.grace_seconds).unwrap_or(0).saturating_mul(1000);
    if order.want == Want::Stopped && grace > 0 && live.state != LiveState::Dying {
        match memory.shutdown_asked {
            None => return Some(HostAction::Shutdown),
            Some(asked) if now.saturating_sub(asked) < grace => return None,
            Some(_) => {}
        }
    }
    Some(HostAction::Kill { epoch: live.epoch })
}

/// A process that is there although the hypervisor does not list it, or can't be asked.
fn kill_unlisted(
    order: &DomainSpec,
    j: &JournalVm,
    memory: &VmMemory,
    now: u64,
) -> Option<HostAction> {
    let graceful = order.want == Want::Stopped
        && memory.shutdown_asked.is_none_or(|asked| {
            let grace = u64::try_from(order.grace_seconds).unwrap_or(0).saturating_mul(1000);
            now.saturating_sub(asked) < grace
        });
    let stops = matches!(order.want, Want::Stopped | Want::Killed);
    (stops && !graceful && memory.presence == Presence::Present)
        .then_some(HostAction::Kill { epoch: j.epoch })
}

/// Releases an epoch whose process is gone.
pub(super) fn ended(
    o: &Observed,
    j: &JournalVm,
    live: Live<'_>,
    memory: &VmMemory,
    want: Option<Want>,
    now: u64,
) -> Option<HostAction> {
    if j.released || (!j.launched && j.end.is_none()) {
        return None;
    }
    let history = j.boot_id != o.boot_id;
    if !j.launched {
        let end = j.end.unwrap_or(End::Void);
        return Some(HostAction::Void { epoch: j.epoch, end, message: String::new() });
    }
    if matches!(live, Live::Present(_)) || (o.guards.gone && memory.presence != Presence::Gone) {
        return None;
    }
    if !j.returned && !history {
        // Nothing may come of its call any more: the hook is closed, and a list that was
        // made after that lacks it for a while.
        let absent = memory.missing_since.is_some_and(|at| now.saturating_sub(at) >= ABSENT);
        return (live == Live::Absent && absent).then_some(HostAction::Settle);
    }
    if j.end.is_none() && memory.stopped.is_none() && !history {
        let stopping = memory.kill_asked.is_some();
        let waited = memory.missing_since.is_some_and(|at| now.saturating_sub(at) >= REASON_WAIT);
        if !stopping && !waited {
            return None;
        }
    }
    let end = j.end.unwrap_or_else(|| how_it_ended(j, memory, want, history));
    Some(HostAction::Release { epoch: j.epoch, end, history })
}

/// How an epoch ended that the journal knows as launched.
fn how_it_ended(j: &JournalVm, memory: &VmMemory, want: Option<Want>, history: bool) -> End {
    if j.incoming {
        return End::Void;
    }
    if history {
        return End::HostRestarted;
    }
    match memory.stopped {
        _ if memory.storage_lost => End::StorageLost,
        _ if memory.kill_asked.is_some() && want == Some(Want::Stopped) => End::Stopped,
        // It left in the moment in which it was given up.
        Some(StopReason::Migrated) if memory.hung => End::Migrated,
        _ if memory.hung => End::Crashed,
        _ if memory.kill_asked.is_some() => End::Killed,
        Some(StopReason::Shutdown) if memory.shutdown_asked.is_some() => End::Stopped,
        Some(StopReason::Shutdown) => End::GuestShutdown,
        Some(StopReason::Migrated) => End::Migrated,
        _ if memory.shutdown_asked.is_some() => End::Stopped,
        _ => End::Crashed,
    }
}

/// An order for another boot: after a boot nothing of ours runs, all of it is history.
fn history(
    o: &Observed,
    order: &DomainSpec,
    journalled: Option<&JournalVm>,
    live: Live<'_>,
    memory: &VmMemory,
) -> Option<HostAction> {
    if live != Live::Absent {
        return None;
    }
    match journalled {
        Some(j) if j.epoch > order.epoch => None,
        Some(j) if j.epoch == order.epoch && j.released => delete_disks(order, memory),
        Some(j) if j.epoch == order.epoch && j.launched => {
            if o.guards.gone && memory.presence != Presence::Gone {
                return None;
            }
            let end = j.end.unwrap_or(if j.incoming { End::Void } else { End::HostRestarted });
            Some(HostAction::Release { epoch: j.epoch, end, history: true })
        }
        _ => Some(HostAction::Void {
            epoch: order.epoch,
            end: journalled
                .filter(|j| j.epoch == order.epoch)
                .and_then(|j| j.end)
                .unwrap_or(End::Void),
            message: String::new(),
        }),
    }
}

fn delete_disks(order: &DomainSpec, memory: &VmMemory) -> Option<HostAction> {
    (!order.delete_disks.is_empty() && memory.deleted_order != order.order_id)
        .then_some(HostAction::DeleteDisks)
}

/// Fields that take effect at the next start.
///
/// A size that was asked for counts once it is there: a hypervisor takes memory back only as its guest
/// gives it, and says at once that it will.
#[must_use]
pub fn pending_restart(order: &DomainSpec, live: &LiveDomain, memory: &VmMemory) -> Vec<String> {
    let mut pending = Vec::new();
    if memory.resized.is_some() {
        if order.machine.cores != live.cores {
            pending.push("cores".to_owned());
        }
        if order.machine.memory_mib != live.memory_mib {
            pending.push("memoryMib".to_owned());
        }
    }
    pending
}
