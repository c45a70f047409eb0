//! Locks on disks, as their servers keep them.

use std::collections::BTreeSet;

use stockade_crds::v1alpha1::{AgentLock, LockKind};

use super::World;
use super::event::{Doer, Seen, What};
use super::io::Reach;
use super::model::{DiskLock, Kernel, Machine, OpenDisk, Qemu, QemuState, Queued};
use super::qemu::Ending;
use crate::oracle::Rule;

/// sanlock's 8 · io time-out, and its watchdog: a fact about it, not asked of the code under test.
const SANLOCK_DEAD_MS: u64 = 140_000;

impl World {
    /// The storages where the lock of a disk on this one lies: its own, and that of the lockspace by
    /// which a host guards it.
    pub(super) fn lock_homes(&self, host: &str, storage: &str) -> Vec<String> {
        let manager = self.machines.get(host).and_then(|m| m.lock_manager.as_ref());
        let space = manager.filter(|lock| {
            lock.storage != storage && lock.guards.iter().any(|guarded| guarded == storage)
        });
        let space = space.map(|lock| lock.storage.clone());
        std::iter::once(storage.to_owned()).chain(space).collect()
    }

    /// Takes the locks of a VM's disks for a process, all or none.
    #[expect(clippy::too_many_arguments, reason = "who takes which lock, and where: one call")]
    pub(super) fn take_locks(
        &mut self,
        host: &str,
        pid: u64,
        uid: &str,
        vm: &str,
        kind: LockKind,
        disks: &[OpenDisk],
        by: Doer,
    ) -> Result<(), String> {
        let Some(boot_id) = self.machines.get(host).map(|m| m.boot_id.clone()) else {
            return Err("no such host".to_owned());
        };
        if !self.machines.get(host).is_some_and(|m| m.lock_daemon) {
            return Err("the lock daemon does not answer".to_owned());
        }
        let places = disks.iter().flat_map(|disk| {
            let homes = self.lock_homes(host, &disk.storage).into_iter();
            homes.map(move |home| (home, disk.path.clone()))
        });
        let places: Vec<(String, String)> = places.collect();
        for (storage, path) in &places {
            if !matches!(self.reach(host, storage), Reach::Yes | Reach::Slow) {
                return Err(format!("the lock of {path} can't be asked for: {storage} is away"));
            }
            self.expire_locks(storage, path, host);
            let held = self
                .stores
                .get(storage)
                .and_then(|s| s.locks.get(path))
                .and_then(|l| l.iter().find(|l| l.pid != pid || l.client != host));
            if let Some(lock) = held {
                return Err(format!("the lock of {path} is held by {}", lock.client));
            }
        }
        for (storage, path) in places {
            if let Some(s) = self.stores.get_mut(&storage) {
                s.locks.entry(path).or_default().push(DiskLock {
                    kind,
                    client: host.to_owned(),
                    boot_id: boot_id.clone(),
                    pid,
                    uid: uid.to_owned(),
                    foreign: false,
                });
            }
        }
        if !disks.is_empty() {
            self.emit(Seen::of(What::LockTake).vm(vm).host(host).holder(host).by(by));
        }
        Ok(())
    }

    /// A conflicting request lets the server drop locks of clients whose lease is over.
    fn expire_locks(&mut self, storage: &str, path: &str, asking: &str) {
        let now = self.now();
        let Some(s) = self.stores.get_mut(storage) else { return };
        let lease = s.lease_ms;
        let clients = s.clients.clone();
        let Some(locks) = s.locks.get_mut(path) else { return };
        locks.retain(|l| {
            let limit = if l.kind == LockKind::Sanlock { SANLOCK_DEAD_MS } else { lease };
            let silent = clients
                .get(&l.client)
                .filter(|c| c.boot_id == l.boot_id)
                .is_none_or(|c| now.saturating_sub(c.renewed) > limit);
            l.foreign || l.client == asking || !silent
        });
    }

    /// Whether a process may still write: one that started under a lock needs it still.
    pub(super) fn lock_is_valid(&self, host: &str, storage: &str, path: &str, who: Queued) -> bool {
        !who.guarded
            || self
                .stores
                .get(storage)
                .and_then(|s| s.locks.get(path))
                .is_some_and(|l| l.iter().any(|l| l.pid == who.pid && l.client == host))
    }

    /// Whether a process holds the locks of all its disks.
    pub(super) fn holds_locks(&self, host: &str, q: &Qemu) -> bool {
        let held = |home: &String, path: &str| {
            let locks = self.stores.get(home).and_then(|s| s.locks.get(path));
            locks.is_some_and(|locks| locks.iter().any(|l| l.pid == q.pid && l.client == host))
        };
        let disks = q.disks.iter();
        disks
            .map(|disk| (self.lock_homes(host, &disk.storage), &disk.path))
            .all(|(homes, path)| homes.iter().all(|home| held(home, path)))
    }

    /// Lets go of the locks of a process, as far as their servers can be told.
    pub(super) fn drop_locks(&mut self, host: &str, pid: u64, vm: &str) {
        let mut dropped = false;
        let names: Vec<String> = self.stores.keys().cloned().collect();
        for name in names {
            if !self.reach(host, &name).answers() {
                continue;
            }
            let Some(store) = self.stores.get_mut(&name) else { continue };
            for locks in store.locks.values_mut() {
                let before = locks.len();
                locks.retain(|l| l.pid != pid);
                dropped |= locks.len() < before;
            }
        }
        if dropped {
            self.emit(Seen::of(What::LockRelease).vm(vm).host(host).holder(host));
        }
    }

    /// The locks of processes that ended while the server was away go now.
    pub(super) fn drop_orphans(&mut self, host: &str) {
        let Some(m) = self.machines.get(host) else { return };
        if m.kernel != Kernel::Up {
            return;
        }
        let alive: Vec<u64> = m.qemus.values().map(|q| q.pid).collect();
        let boot_id = m.boot_id.clone();
        let orphans: BTreeSet<(u64, String)> = self
            .stores
            .values()
            .flat_map(|s| s.locks.values().flatten())
            .filter(|l| {
                l.client == host && l.boot_id == boot_id && l.pid != 0 && !alive.contains(&l.pid)
            })
            .map(|l| (l.pid, l.uid.clone()))
            .collect();
        for (pid, uid) in orphans {
            let vm = self.vm_names.get(&uid).cloned().unwrap_or_default();
            self.drop_locks(host, pid, &vm);
        }
    }

    /// Who holds the lock of a VM now: the first one's client.
    #[must_use]
    pub fn lock_holder(&self, uid: &str) -> Option<String> {
        self.stores
            .values()
            .flat_map(|s| s.locks.values().flatten())
            .filter(|l| l.uid == uid)
            .map(|l| l.client.clone())
            .next()
    }

    /// A further lock on a disk that nobody will release.
    pub fn stale_lock(&mut self, path: &str, uid: &str, client: &str, foreign: bool) {
        let Some(storage) = self.storage_of(path) else { return };
        let boot_id =
            self.machines.get(client).map_or_else(|| "foreign".to_owned(), |m| m.boot_id.clone());
        if let Some(s) = self.stores.get_mut(&storage) {
            s.locks.entry(path.to_owned()).or_default().push(DiskLock {
                kind: LockKind::Virtlockd,
                client: client.to_owned(),
                boot_id,
                pid: 0,
                uid: uid.to_owned(),
                foreign,
            });
        }
        self.touch();
    }

    /// The client of a host says goodbye: its locks go.
    pub(super) fn release_client(&mut self, host: &str) {
        for store in self.stores.values_mut() {
            store.clients.remove(host);
            for locks in store.locks.values_mut() {
                locks.retain(|l| l.client != host || l.foreign);
            }
        }
    }

    /// The kernels that are alive renew their leases.
    pub(crate) fn renew(&mut self, host: &str) {
        let now = self.now();
        let Some(m) = self.machines.get(host) else { return };
        if m.kernel != Kernel::Up {
            return;
        }
        let (boot_id, mounts) = (m.boot_id.clone(), m.mounts.clone());
        for name in mounts {
            if !self.reach(host, &name).answers() {
                continue;
            }
            let Some(s) = self.stores.get_mut(&name) else { continue };
            let client = s.clients.entry(host.to_owned()).or_default();
            if client.boot_id != boot_id {
                // A new boot of the same client: the server drops the old one's state.
                boot_id.clone_into(&mut client.boot_id);
                for locks in s.locks.values_mut() {
                    locks.retain(|l| l.client != host || l.foreign || l.boot_id == boot_id);
                }
            }
            client.renewed = now;
        }
    }

    /// Judges the number with which a host joins a lockspace.
    pub(crate) fn judge_number(&mut self, host: &str, lock: &AgentLock) {
        if lock.kind != LockKind::Sanlock || lock.host_id == 0 {
            return;
        }
        let at = self.since_zero();
        let same = |l: &AgentLock| l.storage == lock.storage && l.host_id == lock.host_id;
        let other = self.machines.values().find(|m| {
            m.name != host
                && matches!(m.kernel, Kernel::Up | Kernel::Hung)
                && m.lock_manager.as_ref().is_some_and(same)
        });
        let broken = other.map(|other| {
            format!("{host} joins the lockspace with number {} of {}", lock.host_id, other.name)
        });
        self.oracle.judge(at, Rule::OneNumber, broken, false);
    }

    /// sanlock has not renewed for too long: it kills the VMs whose leases it holds.
    pub(super) fn sanlock_kills(&mut self, host: &str, storage: &str) {
        let Some(m) = self.machines.get(host) else { return };
        let uids: Vec<String> = m
            .qemus
            .values()
            .filter(|q| {
                q.lock == Some(LockKind::Sanlock)
                    && q.state != QemuState::Dying
                    && q.disks.iter().any(|d| {
                        self.lock_homes(host, &d.storage).iter().any(|home| home == storage)
                    })
            })
            .map(|q| q.uid.clone())
            .collect();
        for uid in uids {
            self.end_qemu(host, &uid, Ending::Crashed);
        }
    }

    /// Breaks the locks of a boot at the server.
    pub fn break_locks(&mut self, storage: &str, host: &str, boot_id: &str) -> Result<(), String> {
        let now = self.now();
        let at = self.since_zero();
        let Some(s) = self.stores.get(storage) else { return Err("no such storage".to_owned()) };
        let of_boot = |l: &DiskLock| l.client == host && l.boot_id == boot_id && !l.foreign;
        let sanlock = s.locks.values().flatten().any(|l| of_boot(l) && l.kind == LockKind::Sanlock);
        let silent = now.saturating_sub(s.clients.get(host).map_or(0, |c| c.renewed));
        let limit = if sanlock { SANLOCK_DEAD_MS } else { s.lease_ms };
        let any = s.locks.values().flatten().any(of_boot);
        if any && (sanlock || !s.obeys) && silent <= limit {
            // In tens, as the real one says it.
            let left = (limit - silent).div_ceil(10_000) * 10;
            return Err(format!("about {left} s more, until the lease of {host} is over"));
        }
        let alive = self
            .machines
            .get(host)
            .is_some_and(|m| m.boot_id == boot_id && matches!(m.kernel, Kernel::Up | Kernel::Hung));
        let renewed_after = alive && s.clients.get(host).is_some_and(|c| now < c.renewed + 2_000);
        let denied = s.denied.contains_key(host) || !alive;
        let obeys = s.obeys;
        let key = (host.to_owned(), boot_id.to_owned());
        let excused = self.lied.contains(&key) || self.human.contains(&key);
        if any && obeys {
            let broken = (!denied && renewed_after)
                .then(|| format!("locks of {host} on {storage} were broken before it was denied"));
            self.oracle.judge(at, Rule::DeniedBeforeBreak, broken, false);
            let broken =
                alive.then(|| format!("locks of {host} on {storage} were broken while it lives"));
            self.oracle.judge(at, Rule::BrokenOfDead, broken, excused);
        }
        let stay = self.lock_files_stay;
        let mut uids = BTreeSet::new();
        let mut sides = BTreeSet::new();
        let mut others = Vec::new();
        if let Some(s) = self.stores.get_mut(storage) {
            for (path, locks) in &mut s.locks {
                let unlinked = !stay && locks.iter().any(of_boot);
                locks.retain(|l| {
                    if of_boot(l) {
                        uids.insert(l.uid.clone());
                        // What no process holds is no side of a move.
                        sides.extend((l.pid != 0).then(|| l.uid.clone()));
                    } else if unlinked {
                        others.push(format!("{path}: the lock of {} went with its file", l.client));
                    }
                    !(of_boot(l) || unlinked)
                });
            }
        }
        // Of those who hold the same file's lock the others are alive, or their leases would be over.
        others.into_iter().for_each(|text| {
            self.oracle.judge(at, Rule::BrokenOfDead, Some(text), false);
        });
        for uid in &sides {
            let waits = |m: &&Machine| {
                let side = m.qemus.get(uid).filter(|q| q.by == Doer::Agent);
                let whole = matches!(m.kernel, Kernel::Up | Kernel::Hung);
                // What is left on a source after the swap is decided about.
                let left = self.swapped.contains(&(m.name.clone(), uid.clone()));
                m.name != host
                    && whole
                    && !left
                    && side.is_some_and(|q| {
                        matches!(q.state, QemuState::Incoming | QemuState::Switched)
                    })
            };
            // Of a host that runs a later boot the server has dropped them, or is about to.
            let later = |m: &Machine| m.kernel == Kernel::Up && m.boot_id != boot_id;
            let over = self.machines.get(host).is_some_and(later);
            let other = self.machines.values().find(|m| !over && waits(m));
            let excused = excused || other.is_some_and(|m| self.untrue(&m.name, &m.boot_id));
            let broken = other.map(|other| {
                let vm = self.vm_names.get(uid).cloned().unwrap_or_default();
                format!("the lock of {vm} on {host} was broken while {} takes it in", other.name)
            });
            self.oracle.judge(at, Rule::DecidedBeforeBreak, broken, excused);
        }
        for uid in uids {
            let mut seen = Seen::of(What::LockBreak).host(host).holder(host).by(Doer::Controller);
            seen.vm = self.vm_names.get(&uid).cloned();
            self.emit(seen);
        }
        Ok(())
    }
}
