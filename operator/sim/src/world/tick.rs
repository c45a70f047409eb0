//! What goes on all the time: guests write, kernels renew, feeders feed, beats are written.

use std::sync::Arc;

use stockade_core::agent::self_fence::{Feed, Stamps, feed};
use stockade_host::ports::Beat;

use super::event::{Seen, What};
use super::model::{Kernel, Net, QemuState, WatchdogKind, Way};
use super::qemu::Ending;
use super::{Reach, Sim, World};
use crate::world::event::Doer;

/// Interval of guests' writes, of renewals and of feeding.
const TICK_MS: u64 = 1_000;

/// Keeps the world going until it is dropped.
pub(super) fn run(sim: &Arc<Sim>) {
    let weak = Arc::downgrade(sim);
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(TICK_MS)).await;
            let Some(sim) = weak.upgrade() else { return };
            sim.lock().tick();
        }
    });
}

/// Writes the beats of one boot of a host.
pub(super) fn beat(world: &mut World, host: &str, boot_no: u64) {
    let Some(weak) = world.me.upgrade().map(|sim| Arc::downgrade(&sim)) else { return };
    let first = world.draw(&format!("beat/{host}"), 0, 1_000);
    let host = host.to_owned();
    tokio::spawn(async move {
        let mut wait = first;
        loop {
            tokio::time::sleep(std::time::Duration::from_millis(wait)).await;
            let Some(sim) = weak.upgrade() else { return };
            let Some(next) = sim.lock().beat_once(&host, boot_no) else { return };
            wait = next;
        }
    });
}

impl World {
    fn tick(&mut self) {
        let hosts: Vec<String> = self.machines.keys().cloned().collect();
        for host in &hosts {
            self.renew(host);
            self.flush(host);
            self.drop_orphans(host);
            self.guests_write(host);
            self.storage_deadlines(host);
            self.feed(host);
        }
        self.strangers_write();
    }

    /// Milliseconds of a host's monotonic clock.
    #[must_use]
    pub fn monotonic(&self, host: &str) -> u64 {
        let now = self.now();
        // A kernel counts from a few seconds before its first process.
        self.machines.get(host).map_or(now, |m| m.counted(now).saturating_sub(m.boot_clock) + 5_000)
    }

    fn beat_once(&mut self, host: &str, boot_no: u64) -> Option<u64> {
        let sent = self.monotonic(host);
        let m = self.machines.get_mut(host)?;
        if m.boot_no != boot_no {
            return None;
        }
        let wait = (m.beat_ms as f64 / m.rate) as u64;
        if m.kernel != Kernel::Up || !m.beat.works() {
            return Some(wait.max(100));
        }
        m.beat_counter += 1;
        let beat = Beat {
            host_uid: m.uid.clone(),
            boot_id: m.boot_id.clone(),
            counter: m.beat_counter,
            lineage: m.lineage,
        };
        let names = m.beating.clone();
        for name in names {
            let reach = self.reach(host, &name);
            if matches!(reach, Reach::Yes | Reach::Slow | Reach::NoAnswer)
                && let Some(s) = self.stores.get_mut(&name)
            {
                s.beats.insert(beat.host_uid.clone(), beat.clone());
                self.beaten(host, &beat.boot_id, &name);
            }
            if matches!(reach, Reach::Yes | Reach::Slow)
                && let Some(m) = self.machines.get_mut(host)
            {
                m.feeding.beats.insert(name, sent);
            }
        }
        Some(wait.max(100))
    }

    fn feed(&mut self, host: &str) {
        let now = self.now();
        let mono = self.monotonic(host);
        let Some(m) = self.machines.get_mut(host) else { return };
        if !m.feeding.open || matches!(m.kernel, Kernel::Off | Kernel::Booting) {
            return;
        }
        let timings = m.feeding.timings.clone();
        let seconds = timings.as_ref().map_or(15, |t| t.watchdog_seconds);
        let limit = u64::try_from(seconds).unwrap_or(15) * 1000;
        let mut kills = Vec::new();
        if m.kernel == Kernel::Up && m.feeder.works() && !m.feeding.let_go {
            let beats = m.feeding.storages.iter().filter_map(|s| m.feeding.beats.get(s).copied());
            let stamps = Stamps { storage: beats.max(), api: Some(m.feeding.api) };
            match feed(mono, stamps, timings.as_ref()) {
                Feed::Feed => m.feeding.deadline = now + limit,
                Feed::KillAndStop => {
                    m.feeding.let_go = true;
                    kills = m.qemus.keys().cloned().collect();
                }
            }
        }
        let fires = now >= m.feeding.deadline;
        let kind = m.watchdog;
        for uid in kills {
            self.end_qemu(host, &uid, Ending::Killed(Doer::Agent));
        }
        if !fires {
            return;
        }
        match kind {
            WatchdogKind::Absent | WatchdogKind::Dead => {}
            WatchdogKind::Reset => {
                self.emit(Seen::of(What::SelfFence).host(host));
                self.reset(host);
            }
            WatchdogKind::PowerOff => {
                self.emit(Seen::of(What::SelfFence).host(host));
                if let Some(m) = self.machines.get_mut(host) {
                    m.switch = false;
                }
                self.power_lost(host, None);
            }
        }
    }

    /// Cuts or heals networks of a host.
    pub fn cut(&mut self, host: &str, nets: &[Net], ways: &[Way], cut: bool) {
        if let Some(m) = self.machines.get_mut(host) {
            for net in nets {
                for way in ways {
                    if cut {
                        m.cuts.insert((*net, *way));
                    } else {
                        m.cuts.remove(&(*net, *way));
                    }
                }
            }
        }
        self.darken(host);
        self.touch();
    }

    /// vCPUs of a VM are suspended on a host.
    pub fn suspend(&mut self, host: &str, uid: &str, by: Doer) {
        let found = self.machines.get(host).and_then(|m| m.qemus.get(uid));
        if found.is_some_and(|q| q.state == QemuState::Running) {
            self.pause_guest(host, uid, by);
        }
    }

    /// vCPUs of a process do not run: libvirt gives its locks back until they are to.
    pub(super) fn pause_guest(&mut self, host: &str, uid: &str, by: Doer) {
        let Some(m) = self.machines.get_mut(host) else { return };
        let Some(q) = m.qemus.get_mut(uid) else { return };
        q.state = QemuState::Paused;
        let (vm, pid, locked) = (q.vm.clone(), q.pid, q.lock.is_some());
        // What the kernel has still to send asks for no lock of libvirt's.
        for waiting in m.queued.values_mut().filter(|w| w.pid == pid) {
            waiting.guarded = false;
        }
        self.emit(Seen::of(What::Pause).vm(&vm).host(host).by(by));
        if locked {
            self.drop_locks(host, pid, &vm);
        }
        self.tell(host, uid, None);
    }

    /// vCPUs of a VM go on. A copy that has lost its lock takes it again before that.
    ///
    /// # Errors
    /// Why the lock can't be had.
    pub fn resume(&mut self, host: &str, uid: &str) -> Result<(), String> {
        let found = self.machines.get(host).and_then(|m| m.qemus.get(uid)).cloned();
        let Some(q) = found else { return Ok(()) };
        if !matches!(q.state, QemuState::Paused | QemuState::Switched) {
            return Ok(());
        }
        if let Some(kind) = q.lock
            && !self.holds_locks(host, &q)
        {
            self.take_locks(host, q.pid, uid, &q.vm, kind, &q.disks, q.by)?;
        }
        self.execute(host, uid);
        Ok(())
    }
}
