//! The storage port.

use std::collections::BTreeMap;

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_core::agent::judge_marker;
use stockade_crds::v1alpha1::{AgentStorage, DomainSpec, MachineDisk, StorageReport};
use stockade_host::error::{HostError, HostResult};
use stockade_host::ports::{Beat, Linked, OwnerRecord, RecordState, StoragePort};

use super::Seat;
use crate::oracle::Rule;
use crate::world::{Reach, World};

/// A driver gives up on a storage that does not answer after so long.
const GIVE_UP_MS: u64 = 5_000;

pub(super) struct SimStorage(pub Seat);

impl SimStorage {
    /// Waits for the storage to answer; `writes`: with a write.
    async fn io(&self, op: &'static str, storage: &str, writes: bool) -> HostResult<()> {
        self.0.enter(1, 4).await;
        let mut waited = 0;
        loop {
            let reach = self.0.sim.lock().reach(&self.0.host, storage);
            match reach {
                Reach::Yes => return Ok(()),
                Reach::ReadOnly if !writes => return Ok(()),
                Reach::ReadOnly => {
                    return Err(HostError::failed(op, storage, "read-only file system"));
                }
                Reach::Slow => {
                    self.0.sim.latency("slow", 500, 2_500).await;
                    self.0.gate.pass().await;
                    return Ok(());
                }
                Reach::Denied => {
                    return Err(HostError::failed(op, storage, "its server refuses this host"));
                }
                Reach::Cut | Reach::NoAnswer if waited >= GIVE_UP_MS => {
                    let why = "its server does not answer";
                    return Err(HostError::failed(op, storage, why));
                }
                Reach::Cut | Reach::NoAnswer => {
                    self.0.sim.wait(250).await;
                    self.0.gate.pass().await;
                    waited += 250;
                }
            }
        }
    }

    async fn disk_io(&self, op: &'static str, disk: &str, writes: bool) -> HostResult<()> {
        let storage = self.0.sim.lock().storage_of(disk);
        let Some(storage) = storage else {
            return Err(HostError::failed(op, disk, "it is on no storage"));
        };
        self.io(op, &storage, writes).await?;
        if writes {
            self.0.sim.lock().acted(&self.0.host);
        }
        let mounted = {
            let w = self.0.sim.lock();
            w.machines.get(&self.0.host).is_some_and(|m| m.mounts.contains(&storage))
        };
        if mounted {
            Ok(())
        } else {
            Err(HostError::failed(op, disk, "its storage is not mounted"))
        }
    }
}

fn used(w: &World, path: &str) -> Option<String> {
    w.machines
        .values()
        .find(|m| m.qemus.values().any(|q| q.disks.iter().any(|d| d.path == path)))
        .map(|m| m.name.clone())
}

impl StoragePort for SimStorage {
    fn ensure<'a>(&'a self, storage: &'a AgentStorage) -> BoxFuture<'a, StorageReport> {
        async move {
            let name = &storage.name;
            let not = |message: String| StorageReport { name: name.clone(), ready: false, message };
            if let Err(why) = self.io("mount", name, true).await {
                return not(why.to_string());
            }
            let mut w = self.0.sim.lock();
            let checked = w.marker_checked;
            let Some(s) = w.stores.get_mut(name) else {
                return not(format!("{name}: the server has no such export"));
            };
            let marker = s.marker.get_or_insert_with(|| storage.cluster_id.clone());
            if checked && let Err(why) = judge_marker(marker, &storage.cluster_id) {
                return not(format!("{name}: {why}"));
            }
            if let Some(m) = w.machines.get_mut(&self.0.host) {
                m.mounts.insert(name.clone());
            }
            w.renew(&self.0.host);
            StorageReport { name: name.clone(), ready: true, message: String::new() }
        }
        .boxed()
    }

    /// A simulated storage is nothing that is mounted.
    fn forget<'a>(&'a self, _storage: &'a AgentStorage) -> BoxFuture<'a, HostResult<()>> {
        async { Ok(()) }.boxed()
    }

    fn records<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<Vec<OwnerRecord>>> {
        async move {
            self.disk_io("read records", disk, false).await?;
            let w = self.0.sim.lock();
            Ok(w.disks.get(disk).map(|d| d.records.values().cloned().collect()).unwrap_or_default())
        }
        .boxed()
    }

    fn link_record<'a>(
        &'a self,
        disk: &'a str,
        record: &'a OwnerRecord,
    ) -> BoxFuture<'a, HostResult<Linked>> {
        async move {
            self.disk_io("link record", disk, true).await?;
            let mut w = self.0.sim.lock();
            let storage = w.storage_of(disk).unwrap_or_default();
            let entry = w.disks.entry(disk.to_owned()).or_default();
            entry.storage = storage;
            if entry.records.contains_key(&record.epoch) {
                return Ok(Linked::Exists);
            }
            entry.records.insert(record.epoch, record.clone());
            Ok(Linked::Created)
        }
        .boxed()
    }

    fn release_record<'a>(&'a self, disk: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.disk_io("release record", disk, true).await?;
            let mut w = self.0.sim.lock();
            let uid = w.machines.get(&self.0.host).map(|m| m.uid.clone());
            let record = w.disks.get_mut(disk).and_then(|d| d.records.get_mut(&epoch));
            if let Some(r) = record.filter(|r| Some(&r.host_uid) == uid.as_ref())
                && r.state == RecordState::Held
            {
                r.state = RecordState::Released;
            }
            Ok(())
        }
        .boxed()
    }

    fn remove_record<'a>(&'a self, disk: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.disk_io("remove record", disk, true).await?;
            if let Some(d) = self.0.sim.lock().disks.get_mut(disk) {
                d.records.remove(&epoch);
            }
            Ok(())
        }
        .boxed()
    }

    fn ensure_disk<'a>(
        &'a self,
        disk: &'a MachineDisk,
        may_create: bool,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.io("disk", &disk.storage, false).await?;
            let mut w = self.0.sim.lock();
            if w.disks.get(&disk.path).is_some_and(|d| d.exists) {
                return Ok(());
            }
            if disk.create.is_some() && may_create {
                w.make_disk(&disk.storage, &disk.path);
                return Ok(());
            }
            Err(HostError::refused("disk", &disk.path, "it does not exist"))
        }
        .boxed()
    }

    fn ensure_seed<'a>(&'a self, _order: &'a DomainSpec) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.0.enter(1, 3).await;
            Ok(())
        }
        .boxed()
    }

    fn remove_seed<'a>(&'a self, _vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.0.enter(1, 3).await;
            Ok(())
        }
        .boxed()
    }

    fn delete_disk<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.disk_io("delete", disk, true).await?;
            let mut w = self.0.sim.lock();
            let broken = used(&w, disk).map(|h| format!("{disk} was deleted while {h} uses it"));
            let at = w.since_zero();
            w.oracle.judge(at, Rule::NotInUse, broken, false);
            w.disks.remove(disk);
            Ok(())
        }
        .boxed()
    }

    fn drain<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<bool>> {
        async move {
            self.0.enter(2, 10).await;
            Ok(self.0.sim.lock().drained(&self.0.host, disk))
        }
        .boxed()
    }

    fn beats<'a>(&'a self, storage: &'a str) -> BoxFuture<'a, HostResult<BTreeMap<String, Beat>>> {
        async move {
            self.io("read beats", storage, false).await?;
            let w = self.0.sim.lock();
            Ok(w.stores.get(storage).map(|s| s.beats.clone()).unwrap_or_default())
        }
        .boxed()
    }

    fn keep_beating<'a>(
        &'a self,
        storages: &'a [String],
        heartbeat_seconds: i32,
        lineage: i64,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.0.enter(1, 3).await;
            let mut w = self.0.sim.lock();
            let Some(m) = w.machines.get_mut(&self.0.host) else { return Ok(()) };
            if !m.beat.works() {
                let why = "the beat writer does not answer";
                return Err(HostError::failed("beat", &self.0.host, why));
            }
            m.beating = storages.to_vec();
            m.beat_ms = u64::try_from(heartbeat_seconds).unwrap_or(2).max(1) * 1000;
            m.lineage = lineage;
            Ok(())
        }
        .boxed()
    }
}
