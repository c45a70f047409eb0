//! Storages as hosts reach them, and what guests write.

use stockade_crds::v1alpha1::StorageKind;
use stockade_host::ports::{OwnerRecord, RecordState};

use super::World;
use super::event::Doer;
use super::model::{
    Disk, Kernel, Machine, Net, Qemu, QemuState, Queued, StorageMode, Store, Way, Writer,
};
use crate::oracle::Rule;

/// A client sends what its server did not take again after so long; new requests go at once.
const RESEND_MS: u64 = 5_000;
/// Names what is no host, boot or VM of ours.
const ANOTHER: &str = "another-cluster";

/// How a host reaches a storage at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Requests and answers pass.
    Yes,
    /// They do, late.
    Slow,
    /// They do, but writes are refused.
    ReadOnly,
    /// Requests arrive, answers do not.
    NoAnswer,
    /// Nothing passes.
    Cut,
    /// The server refuses this host.
    Denied,
}

impl Reach {
    /// Requests are served and answered.
    #[must_use]
    pub fn answers(self) -> bool {
        matches!(self, Self::Yes | Self::Slow | Self::ReadOnly)
    }
}

impl World {
    /// How a host reaches a storage.
    #[must_use]
    pub fn reach(&self, host: &str, storage: &str) -> Reach {
        let (Some(m), Some(s)) = (self.machines.get(host), self.stores.get(storage)) else {
            return Reach::Cut;
        };
        if matches!(m.kernel, Kernel::Off | Kernel::Booting) {
            return Reach::Cut;
        }
        let serves = |server: &String| {
            let open =
                |m: &Machine| m.passes(Net::Storage, Way::In) && m.passes(Net::Storage, Way::Out);
            self.machines
                .get(server)
                .is_some_and(|m| m.kernel == Kernel::Up && (server == host || open(m)))
        };
        if !s.served_by.iter().all(serves) {
            return Reach::Cut;
        }
        let mode = s.mode_for.get(host).copied().unwrap_or(s.mode);
        if mode == StorageMode::Down || !m.passes(Net::Storage, Way::Out) {
            return Reach::Cut;
        }
        if s.denied.contains_key(host) {
            return Reach::Denied;
        }
        if !m.passes(Net::Storage, Way::In) {
            return Reach::NoAnswer;
        }
        match mode {
            StorageMode::Up | StorageMode::Down => Reach::Yes,
            StorageMode::Slow => Reach::Slow,
            StorageMode::ReadOnly => Reach::ReadOnly,
        }
    }

    /// The disk at a path; it is on the storage whose mount path is the longest prefix, which the
    /// runner tells by making it.
    pub fn make_disk(&mut self, storage: &str, path: &str) {
        let disk = self.disks.entry(path.to_owned()).or_default();
        storage.clone_into(&mut disk.storage);
        disk.exists = true;
    }

    /// The storage that holds a path, by its disks or by where hosts see storages.
    #[must_use]
    pub fn storage_of(&self, path: &str) -> Option<String> {
        self.disks.get(path).map(|d| d.storage.clone()).or_else(|| {
            let under =
                |s: &&Store| path.strip_prefix(&s.mount).is_some_and(|rest| rest.starts_with('/'));
            let stores = self.stores.values().filter(under);
            stores.max_by_key(|s| s.mount.len()).map(|s| s.name.clone())
        })
    }

    /// Each guest of a host writes to each of its disks.
    pub(super) fn guests_write(&mut self, host: &str) {
        let Some(m) = self.machines.get(host) else { return };
        if !m.executes() {
            return;
        }
        let now = self.now();
        let running: Vec<Qemu> =
            m.qemus.values().filter(|q| q.state == QemuState::Running).cloned().collect();
        for qemu in running {
            for disk in &qemu.disks {
                // Where no lock could keep it away, what somebody started by hand is nobody's fault.
                let by_hand = qemu.by == Doer::Virsh && qemu.lock.is_none();
                let queued = Queued {
                    pid: qemu.pid,
                    epoch: qemu.epoch,
                    guarded: qemu.lock.is_some() && !qemu.unlocked,
                    unlocked: qemu.unlocked || by_hand,
                    again_at: now + RESEND_MS,
                };
                match self.reach(host, &disk.storage) {
                    Reach::Yes | Reach::Slow | Reach::NoAnswer => {
                        self.write(host, &disk.storage, &disk.path, queued);
                    }
                    Reach::Cut => {
                        if let Some(m) = self.machines.get_mut(host) {
                            m.queued.insert((disk.storage.clone(), disk.path.clone()), queued);
                        }
                    }
                    // The guest gets an I/O error.
                    Reach::ReadOnly | Reach::Denied => {}
                }
            }
        }
    }

    /// One write reaches the server.
    pub(super) fn write(&mut self, host: &str, storage: &str, path: &str, who: Queued) {
        if !self.lock_is_valid(host, storage, path, who) {
            return;
        }
        let Some(m) = self.machines.get(host) else { return };
        let writer = Writer {
            pid: who.pid,
            host: host.to_owned(),
            boot_id: m.boot_id.clone(),
            epoch: who.epoch,
            unlocked: who.unlocked,
        };
        let Some(version) = self.written(storage, path, writer) else { return };
        let writers = self.machines.get_mut(host).map(|m| m.qemus.values_mut());
        if let Some(q) = writers.into_iter().flatten().find(|q| q.pid == who.pid) {
            q.knows.insert(path.to_owned(), version);
        }
    }

    /// A disk was written; its new version.
    fn written(&mut self, storage: &str, path: &str, writer: Writer) -> Option<u64> {
        let at = self.since_zero();
        let disk = self.disks.get_mut(path)?;
        disk.version += 1;
        let version = disk.version;
        let mut broken = None;
        let mut excused = writer.unlocked;
        if let Some(last) = disk.writer.as_ref().filter(|w| w.pid != writer.pid) {
            disk.superseded.insert(last.pid);
            if disk.superseded.contains(&writer.pid) {
                excused |= last.unlocked;
                broken = Some(format!(
                    "{path}: epoch {} on {} wrote after epoch {} on {} had",
                    writer.epoch, writer.host, last.epoch, last.host
                ));
            }
        }
        if broken.is_some() {
            // Where the storage can't deny, an untruth about a boot is beyond anybody.
            let denies = self.stores.get(storage).is_some_and(|s| s.obeys);
            let key = (writer.host.clone(), writer.boot_id.clone());
            excused |= !denies && self.lied.contains(&key);
        }
        disk.writer = Some(writer);
        self.oracle.judge(at, Rule::OneWriter, broken, excused);
        Some(version)
    }

    /// Another cluster takes a storage over: its marker is there, its VMs write every disk, and its
    /// records say so. Or it is given back.
    pub fn set_foreign(&mut self, storage: &str, foreign: bool) {
        let Some(store) = self.stores.get_mut(storage).filter(|s| s.foreign != foreign) else {
            return;
        };
        store.foreign = foreign;
        store.marker = foreign.then(|| ANOTHER.to_owned());
        for disk in self.disks.values_mut().filter(|d| foreign && d.storage == storage) {
            let epoch = disk.records.keys().max().copied().unwrap_or(0) + 1;
            let record = OwnerRecord {
                cluster_id: ANOTHER.to_owned(),
                vm_uid: ANOTHER.to_owned(),
                epoch,
                host_uid: ANOTHER.to_owned(),
                boot_id: ANOTHER.to_owned(),
                state: RecordState::Held,
            };
            disk.records.insert(epoch, record);
        }
    }

    /// The VMs of another cluster write to the disks of a storage that it has.
    pub(super) fn strangers_write(&mut self) {
        let foreign = |d: &&Disk| self.stores.get(&d.storage).is_some_and(|s| s.foreign);
        let disks: Vec<(String, String)> = self
            .disks
            .iter()
            .filter(|(_, d)| foreign(d))
            .map(|(path, d)| (d.storage.clone(), path.clone()))
            .collect();
        for (storage, path) in disks {
            let writer = Writer {
                pid: 0,
                host: ANOTHER.to_owned(),
                boot_id: ANOTHER.to_owned(),
                epoch: 0,
                unlocked: false,
            };
            self.written(&storage, &path, writer);
        }
    }

    /// The client of a host gets rid of what waits, as far as its storages are reached.
    pub(super) fn flush(&mut self, host: &str) {
        let Some(m) = self.machines.get(host) else { return };
        if m.queued.is_empty() || m.kernel != Kernel::Up {
            return;
        }
        let now = self.now();
        let waiting: Vec<((String, String), Queued)> =
            m.queued.iter().map(|(k, v)| (k.clone(), *v)).collect();
        for ((storage, path), who) in waiting {
            let reach = self.reach(host, &storage);
            if matches!(reach, Reach::Cut) {
                if let Some(w) =
                    self.machines.get_mut(host).and_then(|m| m.queued.get_mut(&(storage, path)))
                {
                    w.again_at = now + RESEND_MS;
                }
                continue;
            }
            if now < who.again_at {
                continue;
            }
            if reach.answers() || reach == Reach::NoAnswer {
                if reach != Reach::ReadOnly {
                    self.write(host, &storage, &path, who);
                }
                if reach == Reach::NoAnswer {
                    continue;
                }
            }
            if let Some(m) = self.machines.get_mut(host) {
                m.queued.remove(&(storage, path));
            }
        }
    }

    /// Whether nothing of a path waits in the client of a host any more.
    pub fn drained(&mut self, host: &str, path: &str) -> bool {
        self.flush(host);
        self.machines.get(host).is_none_or(|m| !m.queued.keys().any(|(_, p)| p == path))
    }

    /// What a storage does to hosts that have lost it: o2cb resets them, sanlock kills VMs.
    pub(super) fn storage_deadlines(&mut self, host: &str) {
        let now = self.now();
        let names: Vec<(String, StorageKind)> =
            self.stores.values().map(|s| (s.name.clone(), s.kind)).collect();
        for (name, kind) in names {
            let mounted = self.machines.get(host).is_some_and(|m| m.mounts.contains(&name));
            let well = !mounted || matches!(self.reach(host, &name), Reach::Yes | Reach::Slow);
            let Some(store) = self.stores.get_mut(&name) else { continue };
            if well {
                store.lost_since.remove(host);
                continue;
            }
            let since = *store.lost_since.entry(host.to_owned()).or_insert(now);
            let lost = now.saturating_sub(since);
            // o2cb: (threshold - 1) iterations of two seconds.
            if kind == StorageKind::OCFS2 && lost >= 60_000 {
                store.lost_since.remove(host);
                self.emit(
                    super::event::Seen::of(super::event::What::SelfFence)
                        .host(host)
                        .detail(format!("o2cb: no heartbeat on {name}")),
                );
                self.reset(host);
                return;
            }
            if lost >= 80_000 {
                self.sanlock_kills(host, &name);
            }
        }
    }
}
