//! Both sides of a live move (safety §8).
//!
//! ```text
//! source  Ready ─Copy─► Copying ─┬─ over, it runs on ─────────► Failed
//!                                ├─ over, it left ────────────► Switched ─► released
//!                                └─ answer lost, or it hangs ─► Unknown ─looked at─► one of these
//! target  Prepare: record, listener ─► Ready ─► Switched (whole, paused) or Done (it runs)
//!         Abort: killed and void, unless it runs: what is complete stays
//! ```
//! The source's copy is never resumed by guess, and a move is handed to the
//! hypervisor at most once: the journal knows which.

use stockade_crds::v1alpha1::{
    DomainSpec, End, MigrationOrder, MigrationProgress, MigrationReport, MigrationSide,
    MigrationState, MigrationStep, Want,
};

use super::decide::{HostAction, START_WAIT};
use super::observed::{Live, Observed, VmMemory};
use super::types::{JournalVm, LiveState, Presence};

/// A copy that has not got on for so long is called off, in milliseconds, if its order says nothing.
pub const STALLED: u64 = 30_000;
/// Between two tellings of how far a copy is, in milliseconds.
pub const TELL: u64 = 2_000;
/// Between two calls that call the same copy off, in milliseconds.
pub const ABORT_AGAIN: u64 = 5_000;
/// A copy that was called off this long ago and is not over hangs, in milliseconds.
pub const HANGS: u64 = 10_000;
/// A QEMU that has not answered for so long while its guest stands still is killed, in milliseconds.
///
/// Until TCP gives a dead connection up it may go on (docs/migration.md). One that is silent for
/// longer never comes back: where the network dies while it sends its devices' state, QEMU 7.2's
/// return path closes the socket that its migration thread then polls for good, with the big lock
/// held (`qio_channel_wait` below `qemu_savevm_state_complete_precopy`).
pub const SILENT: u64 = 120_000;
/// So many looks at least must have found it so: one may have met a daemon that was just back.
pub const SILENT_LOOKS: u32 = 3;

/// The hypervisor's call that moves a VM away, as this run of the agent knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Identity of the move.
    pub id: String,
    /// What it came to; `None`: it is not back.
    pub end: Option<CopyEnd>,
}

/// What the call came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CopyEnd {
    /// It left.
    Left,
    /// It runs on here.
    Failed(String),
    /// The answer is lost.
    Unknown(String),
}

/// What the hypervisor said of a move's job when it was last asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Job {
    /// One is under way.
    pub active: bool,
    /// How far it is.
    pub progress: MigrationProgress,
    /// Since when so many bytes have been sent.
    pub since: u64,
    /// What people are told of it, and since when: each change of it is a write to the API.
    pub told: (MigrationProgress, u64),
}

impl Job {
    /// What is known after one more reading; `None`: there is no job any more.
    #[must_use]
    pub fn read(before: Option<Self>, reading: Option<MigrationProgress>, now: u64) -> Self {
        let Some(before) = before else {
            let progress = reading.unwrap_or_default();
            let told = (MigrationProgress::default(), now);
            return Self { active: reading.is_some(), progress, since: now, told };
        };
        let progress = reading.unwrap_or(before.progress);
        let still = progress.processed_bytes == before.progress.processed_bytes;
        let due = now.saturating_sub(before.told.1) >= TELL;
        let tells = due && is_a_step(&before.told.0, &progress);
        Self {
            active: reading.is_some(),
            progress,
            since: if still { before.since } else { now },
            told: if tells { (progress, now) } else { before.told },
        }
    }
}

/// Whether a reading is worth a write: another percent, or a twentieth of the memory sent.
fn is_a_step(told: &MigrationProgress, now: &MigrationProgress) -> bool {
    let sent = now.processed_bytes.saturating_sub(told.processed_bytes);
    told.percent != now.percent || (sent > 0 && sent >= now.total_bytes.div_euclid(20))
}

/// A QEMU that has said nothing of its move away while its guest stood still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Silence {
    /// Since when.
    pub since: u64,
    /// How many looks found it so.
    pub looks: u32,
}

impl Silence {
    /// What is known after one more look that had no answer. `state`: what the VM does, by a list of
    /// that look; outer `None`: there was no list, and nothing is known of any VM.
    #[must_use]
    pub fn after(before: Option<Self>, state: Option<Option<LiveState>>, now: u64) -> Option<Self> {
        match state {
            None => before,
            Some(None | Some(LiveState::Running)) => None,
            Some(Some(_)) => {
                let Self { since, looks } = before.unwrap_or(Self { since: now, looks: 0 });
                Some(Self { since, looks: looks.saturating_add(1) })
            }
        }
    }
}

/// What a move that came in took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// What was sent in all.
    pub progress: MigrationProgress,
    /// For how long the guest stood still, in milliseconds; 0: not known.
    pub downtime_milliseconds: i64,
}

/// The part of a source in an order.
#[must_use]
pub fn source_order(order: &DomainSpec) -> Option<&MigrationOrder> {
    order.migration.as_ref().filter(|m| m.side == MigrationSide::Source)
}

/// The part of a target in an order.
#[must_use]
pub fn target_order(order: &DomainSpec) -> Option<&MigrationOrder> {
    order.migration.as_ref().filter(|m| m.side == MigrationSide::Target)
}

fn begun(m: &MigrationOrder, j: &JournalVm) -> bool {
    j.moving.as_deref() == Some(m.id.as_str())
}

fn call<'a>(m: &MigrationOrder, memory: &'a VmMemory) -> Option<&'a Copy> {
    memory.copy.as_ref().filter(|c| c.id == m.id)
}

/// Whether the copy may still be under way.
fn active(m: &MigrationOrder, j: &JournalVm, memory: &VmMemory) -> bool {
    begun(m, j)
        && match call(m, memory).map(|c| &c.end) {
            Some(None) => true,
            Some(Some(CopyEnd::Left | CopyEnd::Failed(_))) => false,
            // Nobody has looked yet, or there is a job.
            Some(Some(CopyEnd::Unknown(_))) | None => memory.job.is_none_or(|job| job.active),
        }
}

/// Whether a copy is too slow by its order's limits.
fn too_slow(order: &DomainSpec, m: &MigrationOrder, memory: &VmMemory, now: u64) -> bool {
    let Some(job) = memory.job else { return false };
    let seconds = |n: i64| u64::try_from(n).unwrap_or(0).saturating_mul(1_000);
    let still = seconds(i64::from(m.progress_seconds));
    let still = if still == 0 { STALLED } else { still };
    let gibs = order.machine.memory_mib.saturating_add(1_023).div_euclid(1_024);
    let limit = seconds(i64::from(m.completion_seconds_per_gib).saturating_mul(gibs));
    // By the hypervisor's own count, which goes on while no agent is there.
    let took = u64::try_from(job.progress.elapsed_milliseconds).unwrap_or(0);
    now.saturating_sub(job.since) >= still || (limit > 0 && took >= limit)
}

/// What the source does about its part; `None`: nothing now.
#[must_use]
pub fn source(
    o: &Observed,
    order: &DomainSpec,
    j: &JournalVm,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> Option<HostAction> {
    let m = source_order(order)?;
    if j.epoch != order.epoch || !j.launched || j.released {
        return None;
    }
    let state = match live {
        Live::Present(d) if d.epoch == order.epoch => d.state,
        _ => return None,
    };
    if !begun(m, j) || (!o.guards.move_once && call(m, memory).is_none()) {
        let may = m.step == MigrationStep::Copy && order.want == Want::Running && !o.suspended;
        return (may && state == LiveState::Running)
            .then(|| HostAction::Migrate { id: m.id.clone() });
    }
    if active(m, j, memory) {
        let since = |at: u64| now.saturating_sub(at);
        let silent = memory.silent.filter(|s| since(s.since) >= SILENT && s.looks >= SILENT_LOOKS);
        if state != LiveState::Running && silent.is_some() && !order.paused && !o.suspended {
            return Some(HostAction::GiveUp { epoch: order.epoch });
        }
        // What is to end does so though its copy hangs. Nothing reaches its guest meanwhile.
        let grace = match order.want {
            Want::Stopped => u64::try_from(order.grace_seconds).unwrap_or(0).saturating_mul(1_000),
            _ => 0,
        };
        let hangs = memory.abort_asked.is_some_and(|at| since(at.0) >= HANGS.saturating_add(grace));
        if order.want != Want::Running && hangs {
            return Some(HostAction::Kill { epoch: order.epoch });
        }
        let slow = too_slow(order, m, memory, now);
        let due = memory.abort_asked.is_none_or(|at| since(at.1) >= ABORT_AGAIN);
        let off = m.step == MigrationStep::Abort || order.want != Want::Running || slow;
        return (off && due).then_some(HostAction::AbortMove);
    }
    // Without a lock that spans hosts the target stays paused until the epoch was swapped:
    // called off, it never ran, so what was left here paused may go on (safety §8.3).
    let left = matches!(state, LiveState::Switched | LiveState::Paused);
    let told = m.step == MigrationStep::Abort && order.machine.lock.is_none();
    let may = (told || !o.guards.source_waits)
        && order.want == Want::Running
        && !order.paused
        && !o.suspended;
    (left && may).then_some(HostAction::Resume)
}

/// Whether an order says that the VM has left its source, so that its copy must be here.
#[must_use]
pub fn must_have_come(order: &DomainSpec) -> bool {
    target_order(order).is_some_and(|m| m.step == MigrationStep::Left)
}

/// Whether the source's copy is to be left as it is: a move may be about to end.
#[must_use]
pub fn holds(order: &DomainSpec, j: &JournalVm) -> bool {
    source_order(order).is_some_and(|m| begun(m, j) && j.epoch == order.epoch)
}

/// What the target does while it takes a VM in.
#[must_use]
pub fn incoming(
    o: &Observed,
    order: &DomainSpec,
    current: Option<&JournalVm>,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> Option<HostAction> {
    let m = target_order(order)?;
    let off = m.step == MigrationStep::Abort;
    match (live, current) {
        (Live::Present(d), Some(j)) if d.epoch == order.epoch && j.launched => match d.state {
            LiveState::Running if off && !o.guards.completed_wins => {
                Some(HostAction::Kill { epoch: order.epoch })
            }
            LiveState::Running if j.incoming => Some(HostAction::Arrived),
            // What is complete stays, whatever was ordered (safety §8.4).
            LiveState::Running => None,
            _ if off && j.open => Some(HostAction::Close),
            _ if off => Some(HostAction::Kill { epoch: order.epoch }),
            _ => None,
        },
        (Live::Present(_), _) => None,
        (_, Some(j)) if j.released => None,
        (_, Some(j)) if j.launched && off && j.open => Some(HostAction::Close),
        (_, Some(j)) if j.launched || j.end.is_some() => {
            let over = off || j.end.is_some() || !j.incoming;
            over.then(|| super::decide::ended(o, j, live, memory, Some(order.want), now)).flatten()
        }
        _ if off => Some(void(order, "")),
        (Live::Unknown, _) => None,
        _ => {
            let Some(blocker) = o.start_blocker(order) else { return Some(HostAction::Prepare) };
            let waited = memory.first_seen.0 == order.epoch
                && now.saturating_sub(memory.first_seen.1) >= START_WAIT;
            waited.then(|| void(order, &blocker))
        }
    }
}

fn void(order: &DomainSpec, message: &str) -> HostAction {
    HostAction::Void { epoch: order.epoch, end: End::Void, message: message.to_owned() }
}

/// How the move stands on this side, for the order's status.
#[must_use]
pub fn report(
    o: &Observed,
    order: &DomainSpec,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> Option<MigrationReport> {
    let j = o.journalled(&order.vm.uid).filter(|j| j.epoch == order.epoch);
    let Some(m) = source_order(order) else {
        return target_report(o, order, j, live, memory);
    };
    let (state, message) = source_state(m, order, j, live, memory, now);
    let known = memory.job.map(|job| Arrival { progress: job.told.0, ..Arrival::default() });
    let known = known.filter(|_| j.is_some_and(|j| begun(m, j)));
    Some(said(o, order, &m.id, (state, message), known))
}

/// How the move stands that brings the VM here. The swap ends the order's part in it, and the
/// target tells on until the guest runs and it is known what the move took.
fn target_report(
    o: &Observed,
    order: &DomainSpec,
    j: Option<&JournalVm>,
    live: Live<'_>,
    memory: &VmMemory,
) -> Option<MigrationReport> {
    let ordered = target_order(order);
    let done = last_told(o, order).filter(|told| told.state == MigrationState::Done);
    if ordered.is_none() && done.is_some() {
        return done.cloned();
    }
    let id = ordered.map(|m| &m.id).or(memory.came.as_ref())?;
    Some(said(o, order, id, target_state(order, j?, live, memory)?, memory.arrival))
}

fn said(
    o: &Observed,
    order: &DomainSpec,
    id: &str,
    (state, message): (MigrationState, String),
    known: Option<Arrival>,
) -> MigrationReport {
    // What was last told stands where this run of the agent has measured nothing yet.
    let known = known.filter(|k| k.progress.total_bytes > 0).or_else(|| {
        let told = last_told(o, order).filter(|told| told.id == id)?;
        let downtime_milliseconds = told.downtime_milliseconds;
        Some(Arrival { progress: told.progress, downtime_milliseconds })
    });
    let Arrival { progress, downtime_milliseconds } = known.unwrap_or_default();
    MigrationReport { id: id.to_owned(), state, message, progress, downtime_milliseconds }
}

/// What was last told of a move of this epoch.
fn last_told<'a>(o: &'a Observed, order: &DomainSpec) -> Option<&'a MigrationReport> {
    let told = o.order(&order.vm.uid)?.status.as_ref().filter(|s| s.epoch == order.epoch);
    told?.migration.as_ref()
}

fn source_state(
    m: &MigrationOrder,
    order: &DomainSpec,
    j: Option<&JournalVm>,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> (MigrationState, String) {
    let text = |s: &str| s.to_owned();
    let Some(j) = j.filter(|j| begun(m, j)) else {
        return match m.step {
            MigrationStep::Abort | MigrationStep::Commit => {
                (MigrationState::Failed, text("it was called off before it began"))
            }
            MigrationStep::Prepare | MigrationStep::Copy | MigrationStep::Left => {
                (MigrationState::Ready, String::new())
            }
        };
    };
    if j.released || j.end.is_some() {
        return match j.end {
            Some(End::Migrated) => (MigrationState::Done, String::new()),
            _ => (MigrationState::Failed, text("the VM ended here before it had left")),
        };
    }
    if active(m, j, memory) {
        // What waits may go on once its last data have got through or are given up.
        let hangs = memory.abort_asked.is_some_and(|at| now.saturating_sub(at.0) >= HANGS);
        return if hangs && is_running(live, order) {
            (MigrationState::Unknown, text("the copy was called off and does not end"))
        } else {
            (MigrationState::Copying, String::new())
        };
    }
    match call(m, memory).and_then(|c| c.end.clone()) {
        Some(CopyEnd::Left) => (MigrationState::Switched, String::new()),
        Some(CopyEnd::Failed(why)) => {
            // Nobody but this host's own limits has called it off.
            let slow = memory.abort_asked.is_some()
                && m.step == MigrationStep::Copy
                && order.want == Want::Running;
            let why =
                if slow { format!("the copy was too slow and was called off: {why}") } else { why };
            (MigrationState::Failed, why)
        }
        lost => {
            let why = match lost {
                Some(CopyEnd::Unknown(why)) => why,
                _ => text("the agent was restarted in the middle of it"),
            };
            // Read after the job was over: what runs here now did not leave.
            if is_running(live, order) {
                (MigrationState::Failed, format!("{why}; it runs on here"))
            } else {
                (MigrationState::Unknown, why)
            }
        }
    }
}

fn is_running(live: Live<'_>, order: &DomainSpec) -> bool {
    matches!(live, Live::Present(d) if d.epoch == order.epoch && d.state == LiveState::Running)
}

fn is_gone(live: Live<'_>, memory: &VmMemory) -> bool {
    live == Live::Absent && memory.presence == Presence::Gone
}

fn target_state(
    order: &DomainSpec,
    j: &JournalVm,
    live: Live<'_>,
    memory: &VmMemory,
) -> Option<(MigrationState, String)> {
    if j.released || j.end.is_some() {
        return Some((MigrationState::Failed, memory.trouble.clone()));
    }
    if !j.launched {
        return None;
    }
    Some(match live {
        Live::Present(d) if d.epoch == order.epoch => match d.state {
            LiveState::Running if memory.arrival.is_some() => (MigrationState::Done, String::new()),
            LiveState::Running | LiveState::Switched => (MigrationState::Switched, String::new()),
            // After the swap it has everything: it is listed so in the middle of its resume.
            LiveState::Paused if target_order(order).is_none() => {
                (MigrationState::Switched, String::new())
            }
            LiveState::Incoming | LiveState::Paused => (MigrationState::Ready, String::new()),
            LiveState::Dying => (MigrationState::Failed, "its copy here is ending".to_owned()),
        },
        // What the hypervisor's daemon ended with was not told if it was away itself.
        _ if memory.stopped.is_some() || (memory.came_in && is_gone(live, memory)) => {
            (MigrationState::Failed, "its copy here is gone".to_owned())
        }
        _ if memory.busy.is_some() => return None,
        _ => (MigrationState::Ready, String::new()),
    })
}
