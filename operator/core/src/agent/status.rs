//! What is said of an order in `Domain.status`.

use stockade_crds::v1alpha1::{DomainState, DomainStatus, End, Want};

use super::decide::{UNDEAD, pending_restart};
use super::moves;
use super::observed::{Live, Observed, Order, VmMemory};
use super::types::{JournalVm, LiveDomain, LiveState, Presence};

/// What takes longer than this is reported while it lasts, in milliseconds.
pub const SLOW: u64 = 2_000;

/// The status that an order should have now; `None`: what stands is to stay.
#[must_use]
pub fn status_of(o: &Observed, vm_uid: &str, now: u64) -> Option<DomainStatus> {
    let order = o.order(vm_uid)?;
    let fallback = VmMemory::default();
    let memory = o.memory.get(vm_uid).unwrap_or(&fallback);
    let mut status = base(o, order, memory, now);
    let spec = &order.spec;
    if o.journal.is_none() {
        status.message = "the agent's journal can't be read or written: nothing is started; mend \
                          the file system of /var/lib/stockade"
            .into();
        return Some(status);
    }
    let live = o.live(vm_uid);
    let journalled = o.journalled(vm_uid);
    if let Some(j) = journalled
        && j.epoch > spec.epoch
        && o.guards.epoch
    {
        status.state = DomainState::Pending;
        status.highest_record = status.highest_record.max(j.epoch);
        status.message = format!(
            "refused: epoch {} was ordered here before, epoch {} is older; was the API restored \
             from a backup?",
            j.epoch, spec.epoch
        );
        return Some(status);
    }
    match journalled.filter(|j| j.epoch == spec.epoch) {
        Some(j) if j.released => Some(released(status, order, j, memory)?),
        Some(j) if j.end.is_some() => unreleased(status, j.end, memory, now),
        Some(j) if j.launched => launched(o, status, order, j, live, memory, now),
        _ => waiting(o, status, order, live, memory, now),
    }
}

/// What stays of the last status of the same epoch.
fn base(o: &Observed, order: &Order, memory: &VmMemory, now: u64) -> DomainStatus {
    let kept = order.status.clone().filter(|s| s.epoch == order.spec.epoch).unwrap_or_default();
    let mut status = DomainStatus {
        order_id: order.spec.order_id,
        epoch: order.spec.epoch,
        boot_id: o.boot_id.clone(),
        ..kept
    };
    status.highest_record = status.highest_record.max(memory.highest_record);
    if let Some(started) = &memory.started {
        status.machine_type.clone_from(&started.machine_type);
        status.cpu_model.clone_from(&started.cpu_model);
    }
    if memory.lock.is_some() {
        status.lock.clone_from(&memory.lock);
    }
    status.migration = moves::report(o, &order.spec, o.live(&order.spec.vm.uid), memory, now);
    if let Some(addresses) = &memory.addresses {
        status.addresses.clone_from(addresses);
    }
    status
}

fn released(
    mut status: DomainStatus,
    order: &Order,
    j: &JournalVm,
    memory: &VmMemory,
) -> Option<DomainStatus> {
    if !order.spec.delete_disks.is_empty() && memory.deleted_order != order.spec.order_id {
        return None;
    }
    let failed = matches!(j.end, Some(End::StartFailed | End::Refused | End::LockHeld));
    status.state = if failed { DomainState::StartFailed } else { DomainState::Ended };
    if status.end != j.end || !failed || !memory.trouble.is_empty() {
        status.message.clone_from(&memory.trouble);
    }
    if j.end == Some(End::Crashed) && memory.hung {
        status.message = format!(
            "it was killed: its QEMU had not answered for {} s in a move, and its guest stood still",
            moves::SILENT / 1_000
        );
    }
    status.end = j.end;
    status.released = true;
    status.unmarked = j.unmarked;
    nothing_runs(&mut status);
    if j.end == Some(End::LockHeld) {
        // Who holds it is what people, and fencing, need to know.
        status.lock.clone_from(&memory.lock);
    }
    Some(status)
}

fn nothing_runs(status: &mut DomainStatus) {
    status.lock = None;
    status.addresses = Vec::new();
    status.pending_restart = Vec::new();
}

/// It ended and is not released: said only if that lasts.
fn unreleased(
    mut status: DomainStatus,
    end: Option<End>,
    memory: &VmMemory,
    now: u64,
) -> Option<DomainStatus> {
    if memory.trouble.is_empty() || now.saturating_sub(memory.trouble_since) < SLOW {
        return None;
    }
    status.state = DomainState::StopFailed;
    status.end = end;
    status.released = false;
    status.message.clone_from(&memory.trouble);
    nothing_runs(&mut status);
    Some(status)
}

fn launched(
    o: &Observed,
    mut status: DomainStatus,
    order: &Order,
    j: &JournalVm,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> Option<DomainStatus> {
    let stops = matches!(order.spec.want, Want::Stopped | Want::Killed);
    if memory.busy.is_some_and(|b| b.starting) {
        return starting(status, memory, now);
    }
    let undead = memory
        .kill_asked
        .is_some_and(|at| now.saturating_sub(at) >= UNDEAD || !memory.trouble.is_empty());
    match live {
        Live::Unknown => {
            // The process is told without the daemon: a kill that hangs is said.
            if !((stops || memory.storage_lost) && undead) || memory.presence == Presence::Gone {
                return None;
            }
            status.state = DomainState::StopFailed;
        }
        // Ready: the hypervisor lists it once the copy has begun.
        Live::Absent if j.incoming && order.spec.want == Want::Incoming => {
            status.state = DomainState::Incoming;
        }
        Live::Absent => {
            let lasts = memory.missing_since.is_some_and(|at| now.saturating_sub(at) >= UNDEAD);
            if memory.presence == Presence::Gone || !(undead || lasts) {
                return None;
            }
            status.state = DomainState::StopFailed;
        }
        Live::Present(d) if d.epoch == order.spec.epoch => {
            status.state = running_state(order, d, memory, undead, now)?;
            status.pending_restart = pending_restart(&order.spec, d, memory);
        }
        Live::Present(_) => return None,
    }
    status.end = None;
    status.released = false;
    status.reset.clone_from(&j.reset);
    status.message = if status.state == DomainState::StopFailed && memory.trouble.is_empty() {
        "its process does not die; look for a process in state D and for hanging storage, or \
         reset the host"
            .into()
    } else if o.suspended {
        "suspended: this boot of the host is certified dead; reboot the host".into()
    } else {
        memory.trouble.clone()
    };
    Some(status)
}

fn running_state(
    order: &Order,
    live: &LiveDomain,
    memory: &VmMemory,
    undead: bool,
    now: u64,
) -> Option<DomainState> {
    let stops = matches!(order.spec.want, Want::Stopped | Want::Killed);
    Some(match live.state {
        _ if stops && undead => DomainState::StopFailed,
        LiveState::Dying if undead => DomainState::StopFailed,
        LiveState::Dying => return None,
        // A kill takes moments, and so do most guests to shut down: it is said once it is over.
        _ if stops && memory.shutdown_asked.is_none_or(|at| now.saturating_sub(at) < SLOW) => {
            return None;
        }
        _ if stops => DomainState::Stopping,
        LiveState::Running => DomainState::Running,
        LiveState::Paused | LiveState::Switched => DomainState::Paused,
        LiveState::Incoming => DomainState::Incoming,
    })
}

fn starting(mut status: DomainStatus, memory: &VmMemory, now: u64) -> Option<DomainStatus> {
    let since = memory.busy.map_or(now, |b| b.since);
    if now.saturating_sub(since) < SLOW {
        return None;
    }
    status.state = DomainState::Starting;
    Some(status)
}

/// Not launched yet.
fn waiting(
    o: &Observed,
    mut status: DomainStatus,
    order: &Order,
    live: Live<'_>,
    memory: &VmMemory,
    now: u64,
) -> Option<DomainStatus> {
    if memory.busy.is_some_and(|b| b.starting) {
        return starting(status, memory, now);
    }
    let slow =
        memory.first_seen.0 == order.spec.epoch && now.saturating_sub(memory.first_seen.1) >= SLOW;
    if order.spec.want == Want::Incoming {
        status.state = DomainState::Pending;
        return Some(status);
    }
    if !slow {
        return None;
    }
    status.state = DomainState::Pending;
    status.message = match live {
        Live::Present(d) if d.epoch != order.spec.epoch => format!(
            "epoch {} of this VM is here at the hypervisor ({:?}); epoch {} waits for its end",
            d.epoch, d.state, order.spec.epoch
        ),
        Live::Present(_) => return None,
        Live::Unknown => "libvirt does not answer on this host".into(),
        Live::Absent if !memory.trouble.is_empty() => memory.trouble.clone(),
        Live::Absent => o.start_blocker(&order.spec)?,
    };
    Some(status)
}
