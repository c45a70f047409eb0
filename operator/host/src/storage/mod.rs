//! Shared storages as one real host sees them: mounted, checked, written to.

mod aoe;
mod iscsi;
mod marker;
mod mounts;
mod nfs;
mod o2cb;
mod ocfs2;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentStorage, DomainSpec, MachineDisk, StorageKind, StorageReport};

use crate::beat::{self, BeatPlan};
use crate::error::{HostError, HostResult};
use crate::files::{self, failed};
use crate::ports::{Beat, Linked, Mounts, OwnerRecord, StoragePort};
use crate::{disks, records, seed};

pub use self::mounts::RealMounts;
pub use self::nfs::NfsClient;
pub use self::o2cb::O2cb;

/// What a real storage port needs to know of its host.
#[derive(Clone, Debug)]
pub struct StorageOptions {
    /// The agent's state folder.
    pub state: PathBuf,
    /// This host.
    pub host_uid: String,
    /// This boot.
    pub boot_id: String,
    /// Program and arguments of the process that beats; it must call [`beat::run`] with the
    /// state folder.
    pub beat_command: Vec<String>,
}

/// The storages of a real host.
pub struct RealStorage {
    options: StorageOptions,
    table: Arc<dyn Mounts>,
    nfs: NfsClient,
    o2cb: O2cb,
    /// One change of the o2cb cluster at a time.
    cluster: Arc<tokio::sync::Mutex<()>>,
    /// Storages whose check has not come back: on a server that is away it hangs in the kernel.
    checking: Arc<Mutex<BTreeSet<String>>>,
    /// Mount paths of the storages that were ensured, by name.
    mounts: Mutex<BTreeMap<String, PathBuf>>,
    beater: Mutex<Option<Child>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RealStorage {
    /// Makes the port over the mounts of this machine; nothing is mounted yet.
    pub fn new(options: StorageOptions) -> HostResult<Self> {
        let nfs = NfsClient::new(&options.host_uid);
        Self::over(options, Arc::new(RealMounts), nfs)
    }

    /// Makes the port over other mounts.
    pub fn over(
        options: StorageOptions,
        table: Arc<dyn Mounts>,
        nfs: NfsClient,
    ) -> HostResult<Self> {
        let seeds = options.state.join("seeds");
        fs::create_dir_all(&seeds).map_err(failed("open state folder", &seeds))?;
        Ok(Self {
            options,
            table,
            nfs,
            o2cb: O2cb::default(),
            cluster: Arc::default(),
            checking: Arc::default(),
            mounts: Mutex::default(),
            beater: Mutex::default(),
        })
    }

    fn mount(&self, storage: &str) -> HostResult<PathBuf> {
        lock(&self.mounts).get(storage).cloned().ok_or_else(|| {
            HostError::refused("find storage", storage, "it is not mounted and checked")
        })
    }

    /// The mount that a path lies below; the longest one if several fit.
    fn mount_of(&self, path: &str) -> HostResult<PathBuf> {
        let mounts = lock(&self.mounts);
        let fitting = mounts.values().filter(|mount| Path::new(path).starts_with(mount));
        fitting.max_by_key(|mount| mount.as_os_str().len()).cloned().ok_or_else(|| {
            HostError::refused("find storage", path, "it lies on no storage that is checked")
        })
    }

    /// Mounts and checks a storage in a task of its own, which goes on if the caller gives up: what
    /// hangs in the kernel can't be stopped, and is not begun a second time.
    async fn prepare(&self, storage: &AgentStorage) -> HostResult<()> {
        const OP: &str = "ensure storage";
        let guard = Checking::begin(&self.checking, &storage.name)?;
        let known = lock(&self.mounts).contains_key(&storage.name);
        let (table, client) = (Arc::clone(&self.table), self.nfs.clone());
        let (o2cb, cluster) = (self.o2cb.clone(), Arc::clone(&self.cluster));
        let (declared, host) = (storage.clone(), self.options.host_uid.clone());
        let task = tokio::spawn(async move {
            let _guard = guard;
            match declared.kind {
                StorageKind::SharedDirectory => {}
                StorageKind::NFS => nfs::ensure(table.as_ref(), &client, &declared).await?,
                StorageKind::OCFS2 => {
                    let _one = cluster.lock().await;
                    ocfs2::ensure(table.as_ref(), &o2cb, &declared).await?;
                }
            }
            let name = declared.name.clone();
            files::blocking(OP, &name, move || check(&declared, known, &host)).await
        });
        let checked = task.await;
        checked.map_err(|error| HostError::unknown(OP, &storage.name, error.to_string()))??;
        lock(&self.mounts).insert(storage.name.clone(), PathBuf::from(&storage.mount_path));
        Ok(())
    }

    /// Starts the process that beats unless it runs.
    fn ensure_beater(&self) -> HostResult<()> {
        let mut beater = lock(&self.beater);
        if let Some(child) = beater.as_mut()
            && matches!(child.try_wait(), Ok(None))
        {
            return Ok(());
        }
        let Some((program, arguments)) = self.options.beat_command.split_first() else {
            return Err(HostError::refused("beat", "storages", "no beat command is configured"));
        };
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null());
        // One that an earlier agent started beats on; the new one then ends at once.
        let child = command
            .spawn()
            .map_err(|error| HostError::failed("beat", program, error.to_string()))?;
        *beater = Some(child);
        Ok(())
    }
}

/// That a check of a storage is under way, until it is dropped.
struct Checking(Arc<Mutex<BTreeSet<String>>>, String);

impl Checking {
    /// One check of a storage at a time: each that hangs holds a thread.
    fn begin(all: &Arc<Mutex<BTreeSet<String>>>, storage: &str) -> HostResult<Self> {
        if lock(all).insert(storage.to_owned()) {
            return Ok(Self(Arc::clone(all), storage.to_owned()));
        }
        let message = "its server does not answer: the last check still hangs";
        Err(HostError::refused("check storage", storage, message))
    }
}

impl Drop for Checking {
    fn drop(&mut self) {
        lock(&self.0).remove(&self.1);
    }
}

/// Checks that the storage is this cluster's, and when it is first used that it can be written as
/// VMs need it; another cluster's is never written.
fn check(storage: &AgentStorage, known: bool, host: &str) -> HostResult<()> {
    let mount = Path::new(&storage.mount_path);
    marker::read(mount, &storage.cluster_id)?;
    let beats = beat::folder(mount);
    if !known {
        nfs::probe(&beats, host, storage)?;
    }
    marker::claim(mount, &storage.cluster_id)?;
    fs::create_dir_all(&beats).map_err(failed("check storage", &beats))
}

/// Makes the folder of a namespace's first disk; its record comes before the disk itself.
///
/// Only beside the marker: below a mount that has just gone it would be this host's own folder,
/// and a record in it would bind nobody.
fn ensure_folder(mount: &Path, disk: &Path) -> HostResult<()> {
    const OP: &str = "ensure folder";
    disks::inside(mount, disk)?;
    let Some(folder) = disk.parent().filter(|folder| !folder.is_dir()) else { return Ok(()) };
    if !marker::path(mount).exists() {
        let message = "the storage's marker is gone; mount the storage there";
        return Err(HostError::refused(OP, mount.display().to_string(), message));
    }
    fs::create_dir_all(folder).map_err(failed(OP, folder))?;
    files::sync_folder(mount).map_err(failed(OP, mount))
}

impl StoragePort for RealStorage {
    fn ensure<'a>(&'a self, storage: &'a AgentStorage) -> BoxFuture<'a, StorageReport> {
        async move {
            let prepared = self.prepare(storage).await;
            if prepared.is_err() {
                lock(&self.mounts).remove(&storage.name);
            }
            StorageReport {
                name: storage.name.clone(),
                ready: prepared.is_ok(),
                message: prepared.err().map(|error| error.to_string()).unwrap_or_default(),
            }
        }
        .boxed()
    }

    fn forget<'a>(&'a self, storage: &'a AgentStorage) -> BoxFuture<'a, HostResult<()>> {
        async move {
            let path = &storage.mount_path;
            if storage.kind == StorageKind::SharedDirectory {
                return Ok(());
            }
            // Off the list first: nothing may be written below a mount that is just going.
            let known = lock(&self.mounts).remove(&storage.name);
            let gone = match (storage.kind, self.table.find(path).await) {
                (StorageKind::OCFS2, Ok(_)) => ocfs2::forget(self.table.as_ref(), storage).await,
                (_, Ok(None)) => Ok(()),
                (_, Ok(Some(_))) => self.table.unmount(path).await,
                (_, Err(error)) => Err(error),
            };
            if let (Err(_), Some(mount)) = (&gone, known) {
                lock(&self.mounts).insert(storage.name.clone(), mount);
            }
            gone
        }
        .boxed()
    }

    fn records<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<Vec<OwnerRecord>>> {
        async move {
            self.mount_of(disk)?;
            let path = PathBuf::from(disk);
            files::blocking("read records", disk, move || records::read_all(&path)).await
        }
        .boxed()
    }

    fn link_record<'a>(
        &'a self,
        disk: &'a str,
        record: &'a OwnerRecord,
    ) -> BoxFuture<'a, HostResult<Linked>> {
        async move {
            let mount = self.mount_of(disk)?;
            let (path, record) = (PathBuf::from(disk), record.clone());
            files::blocking("link record", disk, move || {
                ensure_folder(&mount, &path)?;
                records::link(&path, &record)
            })
            .await
        }
        .boxed()
    }

    fn release_record<'a>(&'a self, disk: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>> {
        let (path, host) = (PathBuf::from(disk), self.options.host_uid.clone());
        files::blocking("release record", disk, move || records::release(&path, epoch, &host))
            .boxed()
    }

    fn remove_record<'a>(&'a self, disk: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>> {
        let path = PathBuf::from(disk);
        files::blocking("remove record", disk, move || records::remove_settled(&path, epoch))
            .boxed()
    }

    fn ensure_disk<'a>(
        &'a self,
        disk: &'a MachineDisk,
        may_create: bool,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move { disks::ensure(&self.mount(&disk.storage)?, disk, may_create).await }.boxed()
    }

    fn ensure_seed<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<()>> {
        seed::ensure(&self.options.state, order).boxed()
    }

    fn remove_seed<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move { seed::delete(&self.options.state, vm_uid) }.boxed()
    }

    fn delete_disk<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            let (mount, path) = (self.mount_of(disk)?, PathBuf::from(disk));
            files::blocking("delete disk", disk, move || {
                disks::delete(&mount, &path)?;
                records::remove_all(&path)
            })
            .await
        }
        .boxed()
    }

    fn drain<'a>(&'a self, disk: &'a str) -> BoxFuture<'a, HostResult<bool>> {
        let path = PathBuf::from(disk);
        files::blocking("drain", disk, move || disks::drain(&path)).boxed()
    }

    fn beats<'a>(&'a self, storage: &'a str) -> BoxFuture<'a, HostResult<BTreeMap<String, Beat>>> {
        async move {
            let mount = self.mount(storage)?;
            files::blocking("read beats", storage, move || beat::read_all(&mount)).await
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
            let mut mounts = BTreeMap::new();
            for storage in storages {
                mounts.insert(storage.clone(), self.mount(storage)?);
            }
            let plan = BeatPlan {
                host_uid: self.options.host_uid.clone(),
                boot_id: self.options.boot_id.clone(),
                lineage,
                heartbeat_seconds,
                storages: mounts,
            };
            let path = beat::plan_path(&self.options.state);
            files::blocking("beat", "storages", move || {
                let text = serde_json::to_vec(&plan)
                    .map_err(|error| HostError::failed("beat", "storages", error.to_string()))?;
                if fs::read(&path).is_ok_and(|old| old == text) {
                    return Ok(());
                }
                files::replace(&path, &text).map_err(failed("beat", &path))
            })
            .await?;
            self.ensure_beater()
        }
        .boxed()
    }
}
