//! The client side of NFS over a table of mounts that is not the machine's: what is refused, with
//! which remedy, and what is done before the first mount.
#![cfg(feature = "real")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentStorage, StorageKind, StorageReport};
use stockade_host::ports::{MountRequest, Mounted, Mounts, StoragePort};
use stockade_host::storage::{NfsClient, RealStorage, StorageOptions};
use stockade_host::{HostError, HostResult};

/// A table of mounts: mounting makes an entry, and the folder stays what it is.
#[derive(Default)]
struct Table {
    mounted: Mutex<BTreeMap<String, Mounted>>,
    requests: Mutex<Vec<MountRequest>>,
    /// What mount(8) says instead of mounting.
    refuses: Mutex<Option<String>>,
    /// Something lies over the mount.
    covered: bool,
}

impl Table {
    fn put(&self, path: &str, kind: &str, source: &str, options: &str) {
        let mounted = Mounted {
            kind: kind.into(),
            source: source.into(),
            options: options.split(',').map(ToOwned::to_owned).collect(),
            device: "0:1".into(),
        };
        self.mounted.lock().unwrap().insert(path.to_owned(), mounted);
    }
}

impl Mounts for Table {
    fn find<'a>(&'a self, path: &'a str) -> BoxFuture<'a, HostResult<Option<Mounted>>> {
        async move { Ok(self.mounted.lock().unwrap().get(path).cloned()) }.boxed()
    }

    fn is_on<'a>(&'a self, _: &'a str, _: &'a Mounted) -> BoxFuture<'a, HostResult<bool>> {
        async move { Ok(!self.covered) }.boxed()
    }

    fn mount<'a>(&'a self, request: &'a MountRequest) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.requests.lock().unwrap().push(request.clone());
            if let Some(words) = &*self.refuses.lock().unwrap() {
                return Err(HostError::failed("mount", &request.path, words.clone()));
            }
            self.put(&request.path, &request.kind, &request.source, &request.options.join(","));
            Ok(())
        }
        .boxed()
    }

    fn unmount<'a>(&'a self, path: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.mounted.lock().unwrap().remove(path);
            Ok(())
        }
        .boxed()
    }
}

/// A host with an NFS client, and a server that at least accepts connections.
struct Bench {
    folder: PathBuf,
    table: Arc<Table>,
    server: TcpListener,
}

impl Bench {
    fn new(name: &str, table: Table) -> Self {
        let folder = std::env::temp_dir().join(format!("nfs-client-{}-{name}", std::process::id()));
        fs::create_dir_all(folder.join("parameters")).unwrap();
        fs::write(folder.join("parameters/recover_lost_locks"), "N\n").unwrap();
        fs::write(folder.join("parameters/nfs4_unique_id"), "\n").unwrap();
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        Self { folder, table: Arc::new(table), server }
    }

    fn declared(&self) -> AgentStorage {
        AgentStorage {
            name: "vms".into(),
            mount_path: self.folder.join("vms").display().to_string(),
            cluster_id: "ours".into(),
            kind: StorageKind::NFS,
            source: "127.0.0.1:/srv/vms".into(),
            options: vec![format!("port={}", self.server.local_addr().unwrap().port())],
            ..AgentStorage::default()
        }
    }

    fn storage(&self) -> RealStorage {
        let options = StorageOptions {
            state: self.folder.join("state"),
            host_uid: "uid-1".into(),
            boot_id: "boot".into(),
            beat_command: Vec::new(),
        };
        let client =
            NfsClient { parameters: self.folder.join("parameters"), ..NfsClient::new("uid-1") };
        RealStorage::over(options, self.table.clone(), client).unwrap()
    }

    async fn ensure(&self, storage: &AgentStorage) -> StorageReport {
        self.storage().ensure(storage).await
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

#[tokio::test]
async fn the_server_knows_a_host_by_its_uid_before_anything_is_mounted() {
    let bench = Bench::new("uid", Table::default());
    let report = bench.ensure(&bench.declared()).await;
    assert!(report.ready, "{report:?}");
    let identity = fs::read_to_string(bench.folder.join("parameters/nfs4_unique_id")).unwrap();
    assert_eq!(identity, "uid-1");
    let requests = bench.table.requests.lock().unwrap().clone();
    let [request] = &requests[..] else { panic!("{requests:?}") };
    assert_eq!((request.kind.as_str(), request.source.as_str()), ("nfs4", "127.0.0.1:/srv/vms"));
    for option in ["vers=4.2", "hard", "noac", "lookupcache=none"] {
        assert!(request.options.iter().any(|given| given == option), "{option}: {request:?}");
    }
}

#[tokio::test]
async fn what_was_unmounted_is_mounted_again_and_what_is_mounted_is_left() {
    let bench = Bench::new("again", Table::default());
    let (storage, declared) = (bench.storage(), bench.declared());
    for _ in 0..2 {
        assert!(storage.ensure(&declared).await.ready);
    }
    assert_eq!(bench.table.requests.lock().unwrap().len(), 1);
    bench.table.unmount(&declared.mount_path).await.unwrap();
    assert!(storage.ensure(&declared).await.ready);
    assert_eq!(bench.table.requests.lock().unwrap().len(), 2);
    storage.forget(&declared).await.unwrap();
    assert!(bench.table.mounted.lock().unwrap().is_empty());
    let gone = storage.beats("vms").await;
    assert!(matches!(gone, Err(HostError::Refused { .. })), "{gone:?}");
}

#[tokio::test]
async fn each_thing_that_a_person_must_mend_is_named_with_its_remedy() {
    let bench = Bench::new("remedies", Table::default());
    let declared = bench.declared();
    // Nobody listens there.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let unreachable = AgentStorage { options: vec![format!("port={port}")], ..declared.clone() };
    let report = bench.ensure(&unreachable).await;
    assert!(!report.ready && report.message.contains("start the NFS server"), "{report:?}");

    for (words, remedy) in [
        (
            "mount.nfs4: mounting 127.0.0.1:/srv/vms failed, reason given by server: No such file or \
          directory",
            "has no export /srv/vms",
        ),
        ("mount.nfs4: access denied by server while mounting", "to this host's address"),
    ] {
        *bench.table.refuses.lock().unwrap() = Some(words.into());
        let report = bench.ensure(&declared).await;
        assert!(!report.ready && report.message.contains(remedy), "{report:?}");
    }

    fs::write(bench.folder.join("parameters/recover_lost_locks"), "Y\n").unwrap();
    let before = bench.table.requests.lock().unwrap().len();
    let report = bench.ensure(&declared).await;
    assert!(!report.ready && report.message.contains("write N to it"), "{report:?}");
    assert_eq!(bench.table.requests.lock().unwrap().len(), before, "it was mounted all the same");
}

#[tokio::test]
async fn an_empty_directory_or_another_mount_in_its_place_is_never_taken_for_the_storage() {
    let bench = Bench::new("place", Table::default());
    let declared = bench.declared();
    let folder = PathBuf::from(&declared.mount_path);
    for (kind, source) in [("ext4", "/dev/vdb"), ("nfs4", "127.0.0.1:/srv/others")] {
        bench.table.put(&declared.mount_path, kind, source, "rw");
        let report = bench.ensure(&declared).await;
        assert!(!report.ready && report.message.contains("something else"), "{report:?}");
    }
    bench.table.unmount(&declared.mount_path).await.unwrap();
    *bench.table.refuses.lock().unwrap() = Some("mount.nfs4: Connection timed out".into());
    let report = bench.ensure(&declared).await;
    assert!(!report.ready, "{report:?}");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "the bare folder was written to");

    let covered = Bench::new("covered", Table { covered: true, ..Table::default() });
    let report = covered.ensure(&covered.declared()).await;
    assert!(!report.ready && report.message.contains("covers it"), "{report:?}");
    assert_eq!(fs::read_dir(covered.folder.join("vms")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_storage_of_another_cluster_is_not_even_probed() {
    let bench = Bench::new("marker", Table::default());
    let declared = bench.declared();
    let ours = PathBuf::from(&declared.mount_path).join(".stockade");
    fs::create_dir_all(&ours).unwrap();
    fs::write(ours.join("cluster"), "theirs").unwrap();
    let report = bench.ensure(&declared).await;
    assert!(!report.ready && report.message.contains("belongs to cluster theirs"), "{report:?}");
    assert_eq!(fs::read_dir(&ours).unwrap().count(), 1, "something was written beside the marker");
}
