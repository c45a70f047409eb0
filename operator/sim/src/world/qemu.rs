//! Processes of VMs: starts, ends, and what the hypervisor's daemon tells.

use std::sync::Arc;

use stockade_core::agent::hook_allows;
use stockade_core::agent::observed::writable_disks;
use stockade_core::render::{DomainView, ViewedDisk};
use stockade_crds::v1alpha1::DomainSpec;
use stockade_host::error::{HostError, HostResult};
use stockade_host::ports::{HypervisorEvent, Started, StopReason};

use super::event::{Doer, Seen, What};
use super::model::{FailAs, FailOp, Kernel, OpenDisk, Qemu, QemuState};
use super::{Sim, World};
use crate::oracle::Rule;

/// What a daemon says of a domain that it does not have.
const NO_DOMAIN: &str = "Domain not found: no domain with matching UUID";

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The guest shut down.
    Shutdown,
    /// It was killed by a call.
    Killed(Doer),
    /// It died.
    Crashed,
    /// It left by a live move.
    Migrated,
    /// Its start did not come to an end.
    Failed,
}

impl World {
    /// Tells the agent about a domain, if the daemon works.
    pub(super) fn tell(&self, host: &str, uid: &str, stopped: Option<StopReason>) {
        if let Some(m) = self.machines.get(host)
            && m.libvirt_up
            && let Some(news) = &m.news
        {
            // An agent that is gone hears nothing.
            let _ = news.send(HypervisorEvent::Domain { uuid: uid.to_owned(), stopped });
        }
    }

    /// Tells the agent that the connection is lost or there again.
    pub(super) fn tell_connection(&mut self, host: &str, up: bool) {
        if let Some(news) = self.machines.get(host).and_then(|m| m.news.as_ref()) {
            let _ = news.send(HypervisorEvent::Connection { up });
        }
        self.touch();
    }

    /// A process is gone.
    pub fn end_qemu(&mut self, host: &str, uid: &str, how: Ending) {
        let Some(q) = self.machines.get_mut(host).and_then(|m| m.qemus.remove(uid)) else { return };
        self.drop_locks(host, q.pid, &q.vm);
        let (seen, reason) = match how {
            Ending::Shutdown => (Some(Seen::of(What::Exit)), StopReason::Shutdown),
            Ending::Killed(by) => (Some(Seen::of(What::Kill).by(by)), StopReason::Destroyed),
            Ending::Crashed => (Some(Seen::of(What::Exit).detail("died")), StopReason::Crashed),
            Ending::Migrated => (None, StopReason::Migrated),
            Ending::Failed => (None, StopReason::Failed),
        };
        if let Some(seen) = seen {
            self.emit(seen.vm(&q.vm).host(host));
        }
        // A daemon that hangs writes its log once it goes on.
        if let Some(m) = self.machines.get_mut(host) {
            m.ended.insert(uid.to_owned(), (q.epoch, reason));
        }
        self.tell(host, uid, Some(reason));
    }

    /// A process dies by itself.
    pub fn kill_process(&mut self, host: &str, uid: &str) {
        self.end_qemu(host, uid, Ending::Crashed);
    }

    /// Names of the hosts that execute a VM's vCPUs.
    #[must_use]
    pub fn executing(&self, uid: &str) -> Vec<String> {
        self.machines
            .values()
            .filter(|m| {
                m.executes() && m.qemus.get(uid).is_some_and(|q| q.state == QemuState::Running)
            })
            .map(|m| m.name.clone())
            .collect()
    }

    /// Names of the hosts that execute a VM of this name.
    #[must_use]
    pub fn executing_vm(&self, vm: &str) -> Vec<String> {
        let runs = |m: &&super::model::Machine| {
            m.executes() && m.qemus.values().any(|q| q.vm == vm && q.state == QemuState::Running)
        };
        self.machines.values().filter(runs).map(|m| m.name.clone()).collect()
    }

    /// Judges that a VM runs once.
    pub(super) fn judge_copies(&mut self, uid: &str) {
        let at = self.since_zero();
        let hosts = self.executing(uid);
        let copies: Vec<&Qemu> =
            hosts.iter().filter_map(|h| self.machines.get(h)?.qemus.get(uid)).collect();
        let ours = copies.iter().filter(|q| !q.unlocked).count();
        let last = copies.iter().map(|q| q.epoch).max().unwrap_or(0);
        let excused = (ours <= 1 && copies.len() > ours)
            || hosts
                .iter()
                .filter_map(|h| self.machines.get(h))
                .any(|m| self.excuses(&m.name, &m.boot_id, uid, last));
        let vm = self.vm_names.get(uid).cloned().unwrap_or_else(|| uid.to_owned());
        let broken = (hosts.len() > 1).then(|| format!("{vm} runs on {}", hosts.join(" and ")));
        self.oracle.judge(at, Rule::OneCopy, broken, excused);
    }

    /// vCPUs of a process begin to run, or go on.
    pub(super) fn execute(&mut self, host: &str, uid: &str) {
        let at = self.since_zero();
        let Some(q) = self.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid)) else {
            return;
        };
        q.state = QemuState::Running;
        if q.whole_at.is_some() {
            q.resumed_at.get_or_insert(at);
        }
        let (vm, knows, unlocked) = (q.vm.clone(), q.knows.clone(), q.unlocked);
        let epoch = q.epoch;
        self.executed.insert((uid.to_owned(), epoch));
        let stale = knows
            .iter()
            .find(|(path, known)| self.disks.get(*path).is_some_and(|d| d.version > **known));
        // What somebody started behind Stockade's back may have written last.
        let by_hand = |path: &String| {
            let writer = self.disks.get(path).and_then(|d| d.writer.as_ref());
            writer.is_some_and(|w| w.unlocked)
        };
        let excused = unlocked || stale.is_some_and(|(path, _)| by_hand(path));
        let broken = stale.map(|(path, _)| format!("{vm} on {host}: memory is older than {path}"));
        self.oracle.judge(at, Rule::FreshMemory, broken, excused);
        self.judge_copies(uid);
        self.tell(host, uid, None);
        self.touch();
    }

    /// Judges an order at the moment its process is made.
    fn judge_start(&mut self, host: &str, order: &DomainSpec) {
        let at = self.since_zero();
        let uid = &order.vm.uid;
        let vm = &order.vm.name;
        let Some(m) = self.machines.get(host) else { return };
        let wrong = order.boot_id != m.boot_id || order.host_uid != m.uid;
        let broken =
            wrong.then(|| format!("{vm}: {host} obeyed an order of boot {}", order.boot_id));
        self.oracle.judge(at, Rule::OwnBoot, broken, false);
        let mut undone = None;
        let mut excused = false;
        for other in self.machines.values().filter(|o| o.name != host) {
            if matches!(other.kernel, Kernel::Off | Kernel::Booting) {
                continue;
            }
            let there = other.qemus.get(uid);
            let mut queued = other.queued.iter().filter(|((_, path), w)| {
                w.epoch < order.epoch && order.machine.disks.iter().any(|d| d.path == *path)
            });
            let by_hand = queued.clone().all(|(_, w)| w.unlocked);
            if there.is_some() || queued.next().is_some() {
                undone = Some(format!("{vm} started on {host}, not released on {}", other.name));
                // What someone sends there by hand has not executed, and ends with its source.
                let sent = |q: &Qemu| q.by == Doer::Virsh && q.state == QemuState::Incoming;
                excused |= there.map_or(by_hand, |q| q.unlocked || sent(q))
                    || (self.excuses(&other.name, &other.boot_id, uid, order.epoch)
                        && !self.beats_beside(&other.name, &other.boot_id, order));
            }
        }
        self.oracle.judge(at, Rule::SettledBeforeStart, undone, excused);
        self.judge_epoch(order);
    }

    /// Judges the epoch of an order that makes a process, started or coming in.
    pub(super) fn judge_epoch(&mut self, order: &DomainSpec) {
        let at = self.since_zero();
        let (uid, vm) = (&order.vm.uid, &order.vm.name);
        let epochs = self.oracle.started.entry(uid.clone()).or_default();
        let twice = !epochs.insert(order.epoch);
        let fell = epochs.last().is_some_and(|last| *last > order.epoch);
        let text = twice.then(|| format!("{vm}: epoch {} was started twice", order.epoch));
        self.oracle.judge(at, Rule::EpochOnce, text, false);
        let mut text = fell.then(|| format!("{vm}: epoch {} after a higher one", order.epoch));
        for path in writable_disks(order) {
            let (last, user) = self.oracle.on_disk.entry(path.clone()).or_default();
            if *last > order.epoch || (*last == order.epoch && user != uid) {
                text = Some(format!("{vm}: epoch {} on {path} after {last}", order.epoch));
            } else {
                (*last, *user) = (order.epoch, uid.clone());
            }
        }
        self.oracle.judge(at, Rule::EpochRises, text, false);
    }

    /// What libvirt's hook says against an order on a host.
    fn hook_refuses(&self, host: &str, order: &DomainSpec) -> Option<String> {
        let m = self.machines.get(host).filter(|_| self.hook_in_force)?;
        let domain = DomainView {
            uuid: order.vm.uid.clone(),
            epoch: Some(order.epoch),
            boot_id: order.boot_id.clone(),
            disks: writable_disks(order)
                .into_iter()
                .map(|path| ViewedDisk { path, ..ViewedDisk::default() })
                .collect(),
            ..DomainView::default()
        };
        let asked = hook_allows(&domain, Some(&m.durable.journal), &m.boot_id, |_| false);
        asked.err().map(|why| format!("the hook refused it: {why}"))
    }

    /// What stands against a start of this order on a host.
    fn refuses(&self, host: &str, order: &DomainSpec) -> Option<String> {
        let m = self.machines.get(host)?;
        let uid = &order.vm.uid;
        if m.qemus.contains_key(uid) {
            return Some(format!("a domain with UUID {uid} exists already"));
        }
        if let Some(why) = self.hook_refuses(host, order) {
            return Some(why);
        }
        for disk in &order.machine.disks {
            if !m.mounts.contains(&disk.storage) {
                return Some(format!("{}: no such file", disk.path));
            }
            if !self.reach(host, &disk.storage).answers() {
                return Some(format!("{}: the storage does not answer", disk.path));
            }
            if !self.disks.get(&disk.path).is_some_and(|d| d.exists) {
                return Some(format!("{}: no such file", disk.path));
            }
        }
        None
    }

    /// A failed start as libvirt reports it: the hook's no and a lock that is held have errors of
    /// their own.
    fn start_error(&self, host: &str, order: &DomainSpec, why: String) -> HostError {
        let vm = &order.vm.name;
        if self.machines.get(host).is_some_and(|m| m.qemus.contains_key(&order.vm.uid)) {
            return HostError::failed("start", vm, why);
        }
        if self.hook_refuses(host, order).is_some() {
            return HostError::refused("start", vm, why);
        }
        let paths = || order.machine.disks.iter().filter(|d| !d.read_only);
        if order.machine.lock.is_some() {
            if !self.machines.get(host).is_some_and(|m| m.lock_daemon) {
                return HostError::refused("start", vm, why);
            }
            let mut homes = paths().flat_map(|d| self.lock_homes(host, &d.storage));
            if homes.any(|home| !self.reach(host, &home).answers()) {
                return HostError::refused("start", vm, why);
            }
            let held = paths().find_map(|d| {
                let homes = self.lock_homes(host, &d.storage);
                let mut at = homes.iter().filter_map(|home| self.stores.get(home));
                at.find_map(|s| s.locks.get(&d.path)?.first().map(|l| l.client.clone()))
            });
            if let Some(holder) = held {
                return HostError::Locked { target: vm.clone(), holder, message: why };
            }
        }
        if paths().any(|d| !self.reach(host, &d.storage).answers()) {
            return HostError::refused("start", vm, why);
        }
        HostError::failed("start", vm, why)
    }

    /// Makes the process of an order; its vCPUs do not run yet.
    pub(super) fn make_qemu(
        &mut self,
        host: &str,
        order: &DomainSpec,
        state: QemuState,
    ) -> Result<u64, String> {
        if let Some(why) = self.refuses(host, order) {
            return Err(why);
        }
        let pid = self.pid();
        let disks: Vec<OpenDisk> = order
            .machine
            .disks
            .iter()
            .filter(|d| !d.read_only)
            .map(|d| OpenDisk { path: d.path.clone(), storage: d.storage.clone() })
            .collect();
        if let Some(kind) = order.machine.lock
            && state == QemuState::Launching
        {
            let vm = order.vm.name.clone();
            self.take_locks(host, pid, &order.vm.uid, &vm, kind, &disks, Doer::Agent)?;
        }
        self.vm_names.insert(order.vm.uid.clone(), order.vm.name.clone());
        if state == QemuState::Launching {
            self.judge_start(host, order);
        }
        let qemu = Qemu::of(order, pid, Doer::Agent, state, disks);
        let defines = !self.transient && state == QemuState::Launching;
        if let Some(m) = self.machines.get_mut(host) {
            m.qemus.insert(order.vm.uid.clone(), qemu);
            if defines {
                m.durable.defined.insert(order.vm.uid.clone(), order.clone());
            }
        }
        Ok(pid)
    }

    /// The guest of a process boots: it knows its disks as they are.
    pub(super) fn boot_guest(&mut self, host: &str, uid: &str) {
        let Some(q) = self.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid)) else {
            return;
        };
        q.knows.clear();
        for open in &q.disks {
            let disk = self.disks.get_mut(&open.path);
            let version = disk.map_or(0, |disk| {
                disk.boots += 1;
                disk.version
            });
            q.knows.insert(open.path.clone(), version);
        }
    }

    /// The guest boots anew in the process that it has.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn reset_guest(&mut self, host: &str, uid: &str) -> Result<(), String> {
        let found = self.machines.get(host).and_then(|m| m.qemus.get(uid));
        let Some(q) = found else { return Err(NO_DOMAIN.to_owned()) };
        if matches!(q.state, QemuState::Running | QemuState::Paused) {
            self.boot_guest(host, uid);
        }
        Ok(())
    }

    /// Whether a host has a process of a VM that its daemon can be asked about.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn domain(&self, host: &str, uid: &str) -> Result<QemuState, String> {
        let found = self.machines.get(host).and_then(|m| m.qemus.get(uid));
        found.filter(|q| !q.unlisted).map(|q| q.state).ok_or_else(|| NO_DOMAIN.to_owned())
    }

    /// A suspended process that somebody else started gets an order's epoch, and its locks.
    pub(crate) fn adopt(&mut self, host: &str, order: &DomainSpec, from: i64) -> HostResult<()> {
        let vm = &order.vm.name;
        let uid = &order.vm.uid;
        let found = self.machines.get(host).and_then(|m| m.qemus.get(uid));
        let Some(q) = found.filter(|q| q.epoch == from || q.epoch == order.epoch) else {
            return Err(HostError::failed("adopt", vm, "it is not there"));
        };
        if q.state != QemuState::Paused {
            return Err(HostError::failed("adopt", vm, "its vCPUs are not suspended"));
        }
        let (pid, disks, has) = (q.pid, q.disks.clone(), q.lock);
        if let Some(kind) = order.machine.lock
            && has.is_none()
        {
            let holder = self.lock_holder(uid).unwrap_or_default();
            self.take_locks(host, pid, uid, vm, kind, &disks, Doer::Agent)
                .map_err(|message| HostError::Locked { target: vm.clone(), holder, message })?;
        }
        if let Some(q) = self.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid)) {
            q.epoch = order.epoch;
            q.lock = order.machine.lock;
            q.by = Doer::Agent;
            q.unlocked = false;
        }
        self.touch();
        Ok(())
    }
}

/// A daemon's job: the start of an order.
pub(crate) async fn start(sim: &Arc<Sim>, host: &str, order: &DomainSpec) -> HostResult<Started> {
    let uid = order.vm.uid.as_str();
    let vm = order.vm.name.as_str();
    let boot = sim.lock().machines.get(host).map_or(0, |m| m.boot_no);
    let same = |w: &World| w.machines.get(host).is_some_and(|m| m.boot_no == boot);
    sim.latency(&format!("start/{host}"), 100, 500).await;
    let failure = sim.lock().take_fail(FailOp::Start, vm, &[host]);
    if let Some(f) = &failure {
        match f.how {
            FailAs::Error => {
                let why = "the hypervisor failed it";
                let seen = Seen::of(What::StartFailed).vm(vm).host(host).by(Doer::Agent);
                sim.lock().emit(seen.detail(why));
                return Err(HostError::failed("start", vm, why));
            }
            // One that is mended goes on, long after its caller has given it up.
            FailAs::Hang if f.times.is_none() => {
                while sim.lock().fails_still(f) {
                    sim.wait(500).await;
                }
            }
            FailAs::Hang => std::future::pending::<()>().await,
            FailAs::Unknown | FailAs::Lost | FailAs::Stuck | FailAs::Deaf => {}
        }
    }
    let made = {
        let mut w = sim.lock();
        if !same(&w) {
            return Err(HostError::unknown("start", vm, "the host went down"));
        }
        let made = w.make_qemu(host, order, QemuState::Launching);
        if let Err(why) = &made {
            let seen = Seen::of(What::StartFailed).vm(vm).host(host).by(Doer::Agent);
            w.emit(seen.detail(why.clone()));
        }
        made
    };
    let pid = made.map_err(|why| sim.lock().start_error(host, order, why))?;
    sim.latency(&format!("start/{host}"), 200, 500).await;
    {
        let mut w = sim.lock();
        let there =
            w.machines.get(host).and_then(|m| m.qemus.get(uid)).is_some_and(|q| q.pid == pid);
        if !there {
            return Err(HostError::failed("start", vm, "its process ended"));
        }
        let held = order.machine.lock.is_none()
            || order.machine.disks.is_empty()
            || w.lock_holder(uid).as_deref() == Some(host);
        let at = w.since_zero();
        let broken = (!held).then(|| format!("{vm} runs on {host} without its lock"));
        w.oracle.judge(at, Rule::LockHeld, broken, false);
        w.emit(Seen::of(What::Start).vm(vm).host(host).by(Doer::Agent));
        w.boot_guest(host, uid);
        if order.paused {
            w.pause_guest(host, uid, Doer::Agent);
        } else {
            w.execute(host, uid);
        }
    }
    if failure.is_some() {
        return Err(HostError::unknown("start", vm, "the answer is lost"));
    }
    Ok(Started { machine_type: "pc-q35-9.2".to_owned(), cpu_model: "Skylake-Server".to_owned() })
}

/// A daemon's job: a guest's clean shutdown, until it has ended.
pub(crate) fn shutdown(sim: &Arc<Sim>, host: &str, uid: &str, by: Doer) {
    let mut w = sim.lock();
    let Some(q) = w.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid)) else { return };
    if q.asked {
        return;
    }
    q.asked = true;
    let (pid, vm) = (q.pid, q.vm.clone());
    w.emit(Seen::of(What::Stop).vm(&vm).host(host).by(by));
    if w.take_fail(FailOp::Stop, &vm, &[host]).is_some() {
        w.emit(Seen::of(What::StopFailed).vm(&vm).host(host).detail("the guest ignores it"));
        return;
    }
    let wait = w.profile(&vm).stop_ms;
    let (host, uid) = (host.to_owned(), uid.to_owned());
    w.spawn(|sim| async move {
        sim.wait(wait).await;
        let mut w = sim.lock();
        let same = w.machines.get(&host).is_some_and(|m| {
            m.executes()
                && m.qemus.get(&uid).is_some_and(|q| q.pid == pid && q.state == QemuState::Running)
        });
        if same {
            w.end_qemu(&host, &uid, Ending::Shutdown);
        }
    });
}

/// A daemon's job: SIGKILL.
pub(crate) async fn kill(
    sim: &Arc<Sim>,
    host: &str,
    uid: &str,
    epoch: i64,
    by: Doer,
) -> HostResult<()> {
    sim.latency(&format!("kill/{host}"), 50, 150).await;
    let mut w = sim.lock();
    let Some(q) = w.machines.get(host).and_then(|m| m.qemus.get(uid)) else { return Ok(()) };
    if epoch != 0 && q.epoch != epoch {
        return Ok(());
    }
    let vm = q.vm.clone();
    if let Some(f) = w.take_fail(FailOp::Kill, &vm, &[host])
        && f.how != FailAs::Unknown
    {
        w.emit(Seen::of(What::StopFailed).vm(&vm).host(host).by(by).detail("survives SIGKILL"));
        if let Some(q) = w.machines.get_mut(host).and_then(|m| m.qemus.get_mut(uid)) {
            q.undead = true;
        }
        return Err(HostError::failed("kill", vm, "the process does not die"));
    }
    w.end_qemu(host, uid, Ending::Killed(by));
    Ok(())
}

/// What libvirt starts by itself after a boot: each domain that it keeps, once its storages are
/// mounted. A start that is refused is not tried again.
pub(crate) async fn autostart(sim: &Arc<Sim>, host: &str, boot_no: u64) {
    loop {
        sim.wait(1_000).await;
        let (due, left) = {
            let w = sim.lock();
            let Some(m) = w.machines.get(host).filter(|m| m.boot_no == boot_no) else { return };
            let kept = m.durable.defined.values().filter(|d| d.boot_id != m.boot_id);
            let mounted = |d: &&DomainSpec| {
                d.machine.disks.iter().all(|disk| m.mounts.contains(&disk.storage))
            };
            let (due, left): (Vec<_>, Vec<_>) = kept.partition(mounted);
            (due.into_iter().cloned().collect::<Vec<_>>(), !left.is_empty())
        };
        for order in due {
            if start(sim, host, &order).await.is_err()
                && let Some(m) = sim.lock().machines.get_mut(host)
            {
                m.durable.defined.remove(&order.vm.uid);
            }
        }
        if !left {
            return;
        }
    }
}
