//! Someone who uses libvirt behind Stockade's back.

use std::sync::Arc;

use stockade_crds::v1alpha1::DomainSpec;

use super::event::{Doer, Seen, What};
use super::model::{Kernel, Net, OpenDisk, Qemu, QemuState};
use super::qemu::Ending;
use super::{Sim, World};

/// Milliseconds within which the target of a move sees that its stream has ended.
const STREAM_LOOK: u64 = 250;

impl World {
    /// Whether the process that sends a VM's memory is still the one that began.
    fn source_is_there(&self, host: &str, uid: &str, pid: u64) -> bool {
        let there = |m: &super::model::Machine| m.qemus.get(uid).is_some_and(|q| q.pid == pid);
        self.machines.get(host).is_some_and(there)
    }

    /// Someone starts a VM behind Stockade's back, past the hook; `unlocked`: past the lock too.
    ///
    /// # Errors
    /// Why libvirt or the lock manager refused.
    pub fn virsh_start(
        &mut self,
        host: &str,
        order: &DomainSpec,
        unlocked: bool,
    ) -> Result<(), String> {
        let Some(m) = self.machines.get(host) else { return Err("no such host".to_owned()) };
        if m.kernel != Kernel::Up || m.qemus.contains_key(&order.vm.uid) {
            return Err(format!("{host} can't start it"));
        }
        let pid = self.pid();
        let disks: Vec<OpenDisk> = order
            .machine
            .disks
            .iter()
            .map(|d| OpenDisk { path: d.path.clone(), storage: d.storage.clone() })
            .collect();
        let lock = order.machine.lock.filter(|_| !unlocked);
        if let Some(kind) = lock {
            let (uid, vm) = (order.vm.uid.clone(), order.vm.name.clone());
            let taken = self.take_locks(host, pid, &uid, &vm, kind, &disks, Doer::Virsh);
            if let Err(why) = &taken {
                let seen = Seen::of(What::StartFailed).vm(&vm).host(host).by(Doer::Virsh);
                self.emit(seen.detail(why.clone()));
            }
            taken?;
        }
        let uid = order.vm.uid.clone();
        self.vm_names.insert(uid.clone(), order.vm.name.clone());
        let qemu = Qemu {
            unlocked: unlocked || lock.is_none(),
            lock,
            ..Qemu::of(order, pid, Doer::Virsh, QemuState::Launching, disks)
        };
        if let Some(m) = self.machines.get_mut(host) {
            m.qemus.insert(uid.clone(), qemu);
        }
        self.emit(Seen::of(What::Start).vm(&order.vm.name).host(host).by(Doer::Virsh));
        self.boot_guest(host, &uid);
        self.execute(host, &uid);
        Ok(())
    }

    /// `virsh destroy` on a host.
    pub fn virsh_destroy(&mut self, host: &str, vm: &str) {
        for uid in self.domains_of(host, vm) {
            self.end_qemu(host, &uid, Ending::Killed(Doer::Virsh));
        }
    }

    /// The process of a VM dies by itself on a host.
    pub fn kill_vm(&mut self, host: &str, vm: &str) {
        for uid in self.domains_of(host, vm) {
            self.end_qemu(host, &uid, Ending::Crashed);
        }
    }

    /// Uids of the domains that a host has of VMs of this name.
    #[must_use]
    pub fn domains_of(&self, host: &str, vm: &str) -> Vec<String> {
        let Some(m) = self.machines.get(host).filter(|m| m.kernel == Kernel::Up) else {
            return Vec::new();
        };
        m.qemus.values().filter(|q| q.vm == vm).map(|q| q.uid.clone()).collect()
    }
}

/// `virsh shutdown` on a host.
pub(crate) fn shutdown(sim: &Arc<Sim>, host: &str, vm: &str) {
    let uids = sim.lock().domains_of(host, vm);
    for uid in uids {
        super::qemu::shutdown(sim, host, &uid, Doer::Virsh);
    }
}

/// `virsh migrate --live --undefinesource`: past the hook on the target, and with the lock, which
/// libvirt hands over by itself.
pub(crate) fn migrate(sim: &Arc<Sim>, from: &str, to: &str, vm: &str, unlocked: bool) {
    let uids = sim.lock().domains_of(from, vm);
    for uid in uids {
        let (sim, from, to) = (sim.clone(), from.to_owned(), to.to_owned());
        tokio::spawn(async move { one_move(&sim, &from, &to, &uid, unlocked).await });
    }
}

async fn one_move(sim: &Arc<Sim>, from: &str, to: &str, uid: &str, unlocked: bool) {
    let (vm, pid, copy_ms) = {
        let mut w = sim.lock();
        let Some(q) = w.machines.get_mut(from).and_then(|m| m.qemus.get_mut(uid)) else { return };
        if q.state != QemuState::Running || q.moving_to.is_some() {
            return;
        }
        q.moving_to = Some(to.to_owned());
        let copy = q.clone();
        let pid = w.pid();
        let incoming = Qemu {
            pid,
            state: QemuState::Incoming,
            by: Doer::Virsh,
            unlocked: copy.unlocked || unlocked,
            lock: copy.lock.filter(|_| !unlocked),
            moving_to: None,
            abort: false,
            asked: false,
            ..copy.clone()
        };
        let seen = Seen::of(What::Migrate).vm(&copy.vm).host(from).to(to).by(Doer::Virsh);
        w.emit(seen);
        let taken = w.machines.get(to).is_none_or(|m| {
            m.kernel != Kernel::Up || m.qemus.contains_key(uid) || !m.whole(Net::Migration)
        });
        if taken {
            drop(w);
            return failed(sim, from, to, uid, &copy.vm);
        }
        if let Some(m) = w.machines.get_mut(to) {
            m.qemus.insert(uid.to_owned(), incoming);
        }
        let copy_ms = w.profile(&copy.vm).migrate_ms;
        (copy.vm, copy.pid, copy_ms)
    };
    let mut left = copy_ms;
    while left > 0 && sim.lock().source_is_there(from, uid, pid) {
        let step = left.min(STREAM_LOOK);
        sim.wait(step).await;
        left -= step;
    }
    while sim.lock().source_is_there(from, uid, pid) && !sim.lock().disks_are_quiet(from, uid, to) {
        sim.wait(STREAM_LOOK).await;
    }
    let moved = {
        let mut w = sim.lock();
        let ready = |host: &str, state| {
            w.machines.get(host).is_some_and(|m| {
                m.kernel == Kernel::Up
                    && m.whole(Net::Migration)
                    && m.qemus.get(uid).is_some_and(|q| q.state == state)
            })
        };
        w.source_is_there(from, uid, pid)
            && ready(from, QemuState::Running)
            && ready(to, QemuState::Incoming)
            && w.switch_over(from, uid, to, false, true).is_ok()
    };
    if moved {
        let seen = Seen::of(What::Migrated).vm(&vm).host(from).to(to).by(Doer::Virsh);
        sim.lock().emit(seen);
    } else {
        failed(sim, from, to, uid, &vm);
    }
}

fn failed(sim: &Arc<Sim>, from: &str, to: &str, uid: &str, vm: &str) {
    let mut w = sim.lock();
    if let Some(q) = w.machines.get_mut(from).and_then(|m| m.qemus.get_mut(uid)) {
        q.moving_to = None;
    }
    let incoming =
        |q: &Qemu| q.by == Doer::Virsh && q.state == QemuState::Incoming && q.moving_to.is_none();
    if w.machines.get(to).and_then(|m| m.qemus.get(uid)).is_some_and(incoming) {
        w.end_qemu(to, uid, Ending::Failed);
    }
    let seen = Seen::of(What::MigrateFailed).vm(vm).host(from).to(to).by(Doer::Virsh);
    w.emit(seen);
}
