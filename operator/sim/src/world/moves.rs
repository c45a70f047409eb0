//! Live moves, as the source's hypervisor makes them.

use std::sync::Arc;

use stockade_crds::v1alpha1::{DomainSpec, MigrationProgress};
use stockade_host::error::{HostError, HostResult};
use stockade_host::ports::{Arrival, MigrateRequest};

use super::event::{Doer, Seen, What};
use super::model::{Fail, FailAs, FailOp, Kernel, Net, OpenDisk, Qemu, QemuState, Stage};
use super::qemu::Ending;
use super::{Reach, Sim, World};
use crate::oracle::Rule;

/// A target notices this late that its source is without power: nobody closes the connection.
const KEEPALIVE_MS: u64 = 30_000;
/// Steps in which the copy looks around.
const STEP_MS: u64 = 250;

/// The target makes ready to take a domain in.
pub(crate) async fn prepare(sim: &Arc<Sim>, host: &str, order: &DomainSpec) -> HostResult<()> {
    sim.latency(&format!("move/{host}"), 50, 200).await;
    let mut w = sim.lock();
    let made = w.make_qemu(host, order, QemuState::Incoming);
    if made.is_ok() {
        w.judge_epoch(order);
        w.tell(host, &order.vm.uid, None);
    }
    made.map(|_| ()).map_err(|why| HostError::failed("prepare", &order.vm.name, why))
}

/// How far the copy of a domain is: its memory goes over evenly.
pub(crate) fn progress(q: &Qemu, copy_ms: u64) -> MigrationProgress {
    let share = |bytes: i64, part: u64, of: u64| {
        let (part, of) = (part.min(of), of.max(1));
        let part = i128::from(bytes) * i128::from(part) / i128::from(of);
        i64::try_from(part).unwrap_or(bytes)
    };
    let total = q.memory_mib.saturating_mul(1024 * 1024);
    let processed = share(total, q.copied_ms, copy_ms);
    MigrationProgress {
        percent: i32::try_from(share(100, q.copied_ms, copy_ms)).unwrap_or(100),
        total_bytes: total,
        processed_bytes: processed,
        remaining_bytes: total - processed,
        dirty_bytes_per_second: 0,
        bytes_per_second: share(total, 1_000, copy_ms),
        elapsed_milliseconds: i64::try_from(q.copied_ms).unwrap_or(i64::MAX),
    }
}

/// What the copy took that brought a domain here.
pub(crate) fn arrival(q: &Qemu, copy_ms: u64) -> Arrival {
    let whole = Qemu { copied_ms: copy_ms, ..q.clone() };
    // Nothing is lost between the sides: it stands still until it is resumed here.
    let still = q.whole_at.zip(q.resumed_at).map_or(0, |(from, to)| to.saturating_sub(from));
    Arrival {
        progress: progress(&whole, copy_ms),
        downtime_milliseconds: i64::try_from(still).unwrap_or(i64::MAX).max(1),
    }
}

/// Moves a domain; returns when it is over.
pub(crate) async fn migrate(sim: &Arc<Sim>, host: &str, r: &MigrateRequest) -> HostResult<()> {
    let (uid, to) = (r.vm_uid.as_str(), r.peer.as_str());
    let failed = |why: &str| HostError::failed("migrate", &r.name, why);
    sim.latency(&format!("move/{host}"), 50, 200).await;
    let (vm, pid, copy_ms, fail) = {
        let mut w = sim.lock();
        let q = w.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid));
        let Some(q) = q else { return Err(failed("it does not run here")) };
        if q.state != QemuState::Running {
            return Err(failed("its vCPUs do not run"));
        }
        if q.moving_to.is_some() {
            return Err(failed("another migration job is active"));
        }
        q.moving_to = Some(to.to_owned());
        q.copied_ms = 0;
        q.abort = false;
        let (vm, pid) = (q.vm.clone(), q.pid);
        w.emit(Seen::of(What::Migrate).vm(&vm).host(host).to(to).by(Doer::Agent));
        if !w.lock_kept {
            w.drop_locks(host, pid, &vm);
        }
        let copy_ms = w.profile(&vm).migrate_ms;
        let fail = w.take_fail(FailOp::Migrate, &vm, &[host, to]);
        (vm, pid, copy_ms, fail)
    };
    let at = |stage: Stage| fail.as_ref().filter(|f| f.stage == stage).map(|f: &Fail| f.how);
    if at(Stage::Before) == Some(FailAs::Error) {
        return Err(failed_move(sim, host, &vm, uid, to, "it failed before anything was copied"));
    }
    if at(Stage::Before) == Some(FailAs::Hang) {
        return hang(sim, host, uid, pid, to).await;
    }
    let mut copied = 0;
    while copied < copy_ms {
        sim.wait(STEP_MS.min(copy_ms - copied)).await;
        copied += STEP_MS;
        let why = {
            let mut w = sim.lock();
            if let Some(q) = w.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid)) {
                q.copied_ms = copied;
            }
            w.judge_lock_of_source(host, uid);
            w.move_trouble(host, uid, pid, to)
        };
        if let Some(why) = why {
            return Err(failed_move(sim, host, &vm, uid, to, why));
        }
        match at(Stage::Copying) {
            Some(FailAs::Hang) if copied >= copy_ms / 2 => {
                return hang(sim, host, uid, pid, to).await;
            }
            Some(FailAs::Deaf) if copied >= copy_ms / 2 => {
                return deaf(sim, host, uid, pid, to).await;
            }
            Some(FailAs::Error) if copied >= copy_ms / 2 => {
                return Err(failed_move(sim, host, &vm, uid, to, "the copy failed"));
            }
            _ => {}
        }
    }
    while !sim.lock().disks_are_quiet(host, uid, to) {
        sim.wait(STEP_MS).await;
        let why = sim.lock().move_trouble(host, uid, pid, to);
        if let Some(why) = why {
            return Err(failed_move(sim, host, &vm, uid, to, why));
        }
    }
    let how = at(Stage::Switched);
    let leaves = !matches!(how, Some(FailAs::Lost | FailAs::Stuck));
    let switched = sim.lock().switch_over(host, uid, to, r.leave_paused, leaves);
    if let Err(why) = switched {
        return Err(failed_move(sim, host, &vm, uid, to, &why));
    }
    match how {
        Some(FailAs::Error) => {
            sim.lock().end_qemu(to, uid, Ending::Crashed);
            return Err(HostError::unknown("migrate", vm, "the target's copy died"));
        }
        Some(FailAs::Hang) => std::future::pending::<()>().await,
        _ => {}
    }
    sim.lock().emit(Seen::of(What::Migrated).vm(&vm).host(host).to(to));
    match how {
        Some(FailAs::Lost) => {
            let why = "the target's last answer is lost";
            let resumed = sim.lock().resume(host, uid);
            return Err(match resumed {
                Ok(()) => HostError::failed("migrate", vm, why),
                Err(more) => HostError::unknown("migrate", vm, format!("{why}; {more}")),
            });
        }
        Some(FailAs::Stuck) => {
            sim.lock().restart_libvirt(host, 1_000);
            return Err(HostError::unknown("migrate", vm, "the daemon ended"));
        }
        _ => {}
    }
    if fail.is_some_and(|f| f.how == FailAs::Unknown) {
        return Err(HostError::unknown("migrate", vm, "the answer is lost"));
    }
    Ok(())
}

/// The call never returns; the job is over once one side's process is.
async fn hang(sim: &Arc<Sim>, host: &str, uid: &str, pid: u64, to: &str) -> HostResult<()> {
    loop {
        sim.wait(STEP_MS).await;
        let mut w = sim.lock();
        let taken = w.machines.get(to).and_then(|m| m.qemus.get(uid)).map(|q| q.state)
            == Some(QemuState::Incoming);
        let source = w.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid));
        let Some(source) = source.filter(|q| q.pid == pid) else { break };
        if !taken {
            source.moving_to = None;
            w.touch();
            break;
        }
    }
    std::future::pending().await
}

/// The source's process stands still for good; the daemons give each other up, and the target's its copy.
async fn deaf(sim: &Arc<Sim>, host: &str, uid: &str, pid: u64, to: &str) -> HostResult<()> {
    let taken = {
        let mut w = sim.lock();
        let source = w.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid));
        if let Some(source) = source.filter(|q| q.pid == pid) {
            source.deaf = true;
            source.state = QemuState::Paused;
        }
        w.touch();
        w.machines.get(to).and_then(|m| m.qemus.get(uid)).map(|q| q.pid)
    };
    sim.wait(KEEPALIVE_MS).await;
    let mut w = sim.lock();
    let target = w.machines.get(to).and_then(|m| m.qemus.get(uid));
    if target.is_some_and(|q| Some(q.pid) == taken && q.state == QemuState::Incoming) {
        w.end_qemu(to, uid, Ending::Failed);
    }
    Err(HostError::unknown("migrate", uid, "the source's process does not answer"))
}

fn failed_move(sim: &Arc<Sim>, host: &str, vm: &str, uid: &str, to: &str, why: &str) -> HostError {
    let mut w = sim.lock();
    if let Some(q) = w.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid)) {
        q.moving_to = None;
    }
    let incoming = w
        .machines
        .get(to)
        .and_then(|m| m.qemus.get(uid))
        .is_some_and(|q| q.state == QemuState::Incoming);
    if incoming && w.machines.get(host).is_some_and(|m| m.kernel == Kernel::Up) {
        w.end_qemu(to, uid, Ending::Failed);
    } else if incoming {
        let (uid, to) = (uid.to_owned(), to.to_owned());
        let pid = w.machines.get(&to).and_then(|m| m.qemus.get(&uid)).map(|q| q.pid);
        w.spawn(|sim| async move {
            sim.wait(KEEPALIVE_MS).await;
            let mut w = sim.lock();
            let q = w.machines.get(&to).and_then(|m| m.qemus.get(&uid));
            if q.is_some_and(|q| Some(q.pid) == pid && q.state == QemuState::Incoming) {
                w.end_qemu(&to, &uid, Ending::Failed);
            }
        });
    }
    w.emit(Seen::of(What::MigrateFailed).vm(vm).host(host).to(to).detail(why));
    HostError::failed("migrate", vm, why)
}

impl World {
    fn move_trouble(&self, host: &str, uid: &str, pid: u64, to: &str) -> Option<&'static str> {
        let (Some(from), Some(target)) = (self.machines.get(host), self.machines.get(to)) else {
            return Some("no such host");
        };
        let Some(q) = from.qemus.get(uid).filter(|q| q.pid == pid) else {
            return Some("the source's process is gone");
        };
        if q.abort {
            return Some("it was aborted");
        }
        if from.kernel != Kernel::Up {
            return Some("the source does not answer");
        }
        if target.kernel != Kernel::Up
            || !from.whole(Net::Migration)
            || !target.whole(Net::Migration)
        {
            return Some("the target does not answer");
        }
        let ready = target.qemus.get(uid).is_some_and(|q| q.state == QemuState::Incoming);
        (!ready).then_some("the target has not prepared it")
    }

    /// Whether a copied VM may be handed over: QEMU drains the source's devices before it completes
    /// a move, and the target opens the images, so that it waits for a storage that is away.
    pub(super) fn disks_are_quiet(&self, host: &str, uid: &str, to: &str) -> bool {
        let Some(m) = self.machines.get(host) else { return true };
        let Some(q) = m.qemus.get(uid) else { return true };
        let answers = |disk: &OpenDisk| {
            self.reach(host, &disk.storage).answers() && self.reach(to, &disk.storage).answers()
        };
        let queued = |disk: &OpenDisk| m.queued.keys().any(|(_, path)| *path == disk.path);
        q.disks.iter().all(|disk| answers(disk) && !queued(disk))
    }

    /// Judges that a source keeps its lock while it is copied, as far as nobody took it away.
    fn judge_lock_of_source(&mut self, host: &str, uid: &str) {
        let Some(m) = self.machines.get(host) else { return };
        let Some(q) = m.qemus.get(uid).filter(|q| q.lock.is_some() && !q.unlocked) else { return };
        let untrue = self.untrue(host, &m.boot_id);
        let certified = self.certified.contains(&(host.to_owned(), m.boot_id.clone()));
        let mut homes = q.disks.iter().flat_map(|disk| self.lock_homes(host, &disk.storage));
        let away = homes.any(|home| self.reach(host, &home) != Reach::Yes);
        if q.state != QemuState::Running || untrue || certified || away {
            return;
        }
        let broken = (!self.holds_locks(host, q))
            .then(|| format!("{} runs on {host} without its lock while it is copied", q.vm));
        let at = self.since_zero();
        self.oracle.judge(at, Rule::LockHeld, broken, false);
    }

    /// The source stops, the lock goes over, the target has everything; `leaves`: the source's copy
    /// ends, as it does when its hypervisor hears of that.
    pub(super) fn switch_over(
        &mut self,
        host: &str,
        uid: &str,
        to: &str,
        paused: bool,
        leaves: bool,
    ) -> Result<(), String> {
        let now = self.since_zero();
        let source = self.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid));
        let Some(source) = source else { return Err("the source is gone".to_owned()) };
        source.state = QemuState::Switched;
        let (pid, vm, knows, lock, disks) = (
            source.pid,
            source.vm.clone(),
            source.knows.clone(),
            source.lock,
            source.disks.clone(),
        );
        let target = self.machines.get_mut(to).and_then(|m| m.qemus.get_mut(uid));
        let Some(target) = target else { return Err("the target is gone".to_owned()) };
        target.state = QemuState::Switched;
        target.whole_at = Some(now);
        target.knows = knows;
        let target_pid = target.pid;
        if let Some(kind) = lock {
            self.drop_locks(host, pid, &vm);
            if let Err(why) = self.take_locks(to, target_pid, uid, &vm, kind, &disks, Doer::Agent) {
                // libvirt ends the target's copy, gives the lock back to the source and resumes it.
                self.end_qemu(to, uid, Ending::Failed);
                let again = self.take_locks(host, pid, uid, &vm, kind, &disks, Doer::Agent);
                if again.is_ok() {
                    self.execute(host, uid);
                }
                return Err(why);
            }
        }
        if leaves {
            self.end_qemu(host, uid, Ending::Migrated);
        } else if let Some(source) = self.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid))
        {
            source.moving_to = None;
        }
        if paused {
            self.tell(to, uid, None);
        } else {
            self.execute(to, uid);
        }
        Ok(())
    }
}
