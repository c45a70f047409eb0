//! Shared storages as one real host sees them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentStorage, DomainSpec, MachineDisk, StorageKind, StorageReport};

use crate::beat::{self, BeatPlan};
use crate::error::{HostError, HostResult};
use crate::files::{self, failed};
use crate::ports::{Beat, Linked, OwnerRecord, StoragePort};
use crate::{cmd, disks, records, seed};

/// How long a mount may take.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// Options without which an owner record could be read from a cache.
const NFS_OPTIONS: &str = "vers=4.2,hard,noac,lookupcache=none";

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
#[derive(Debug)]
pub struct RealStorage {
    options: StorageOptions,
    /// Mount paths of the storages that were ensured, by name.
    mounts: Mutex<BTreeMap<String, PathBuf>>,
    beater: Mutex<Option<Child>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl RealStorage {
    /// Makes the port; nothing is mounted yet.
    pub fn new(options: StorageOptions) -> HostResult<Self> {
        let seeds = options.state.join("seeds");
        fs::create_dir_all(&seeds).map_err(failed("open state folder", &seeds))?;
        Ok(Self { options, mounts: Mutex::default(), beater: Mutex::default() })
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

    async fn prepare(&self, storage: &AgentStorage) -> HostResult<()> {
        const OP: &str = "ensure storage";
        let mount = PathBuf::from(&storage.mount_path);
        match storage.kind {
            StorageKind::SharedDirectory => {}
            StorageKind::NFS => mount_nfs(storage).await?,
            StorageKind::OCFS2 => {
                let message = "this agent can't mount OCFS2 yet; mount it and declare the path \
                               as a SharedDirectory";
                return Err(HostError::refused(OP, &storage.name, message));
            }
        }
        let cluster_id = storage.cluster_id.clone();
        let checked = mount.clone();
        files::blocking(OP, &storage.name, move || check_marker(&checked, &cluster_id)).await?;
        lock(&self.mounts).insert(storage.name.clone(), mount);
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

async fn mount_nfs(storage: &AgentStorage) -> HostResult<()> {
    const OP: &str = "mount";
    let mount = &storage.mount_path;
    let mounted = fs::read_to_string("/proc/self/mountinfo")
        .map_err(failed(OP, Path::new("/proc/self/mountinfo")))?;
    let mut here = mounted.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        (left.split(' ').nth(4)? == mount).then_some(right)
    });
    match here.next_back() {
        Some(right) if right.starts_with("nfs4 ") && right.contains(&storage.source) => Ok(()),
        Some(other) => {
            let message = format!("something else is mounted there: {other}; unmount it");
            Err(HostError::refused(OP, mount, message))
        }
        None => {
            fs::create_dir_all(mount).map_err(failed(OP, Path::new(mount)))?;
            let mut options = NFS_OPTIONS.to_owned();
            for option in &storage.options {
                options.push(',');
                options.push_str(option);
            }
            let arguments = ["-t", "nfs4", "-o", &options, &storage.source, mount];
            cmd::run(OP, mount, "mount", &arguments, MOUNT_LIMIT).await.map(drop)
        }
    }
}

/// Checks that the storage is this cluster's; a storage without a marker gets one, by link, so
/// that of two clusters one loses.
fn check_marker(mount: &Path, cluster_id: &str) -> HostResult<()> {
    const OP: &str = "check storage";
    if !mount.is_dir() {
        let message = "the folder does not exist; mount the storage there";
        return Err(HostError::refused(OP, mount.display().to_string(), message));
    }
    let beats = beat::folder(mount);
    fs::create_dir_all(&beats).map_err(failed(OP, &beats))?;
    let marker = mount.join(".stockade/cluster");
    if !marker.exists() {
        let temporary = marker.with_extension(format!("new-{cluster_id}-{}", std::process::id()));
        let written = fs::File::create(&temporary).and_then(|mut file| {
            file.write_all(cluster_id.as_bytes())?;
            file.sync_all()?;
            match fs::hard_link(&temporary, &marker) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
                _ => files::sync_folder(&mount.join(".stockade")),
            }
        });
        files::remove(&temporary).map_err(failed(OP, &temporary))?;
        written.map_err(failed(OP, &marker))?;
    }
    let found = fs::read_to_string(&marker).map_err(failed(OP, &marker))?;
    if found.trim() == cluster_id {
        return Ok(());
    }
    let message = format!("it belongs to cluster {}, this is {cluster_id}", found.trim());
    Err(HostError::refused(OP, mount.display().to_string(), message))
}

/// Makes the folder of a namespace's first disk; its record comes before the disk itself.
///
/// Only beside the marker: below a mount that has just gone it would be this host's own folder,
/// and a record in it would bind nobody.
fn ensure_folder(mount: &Path, disk: &Path) -> HostResult<()> {
    const OP: &str = "ensure folder";
    let Some(folder) = disk.parent().filter(|folder| !folder.is_dir()) else { return Ok(()) };
    if !mount.join(".stockade/cluster").exists() {
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
