//! The storage driver on a plain shared directory.
#![cfg(feature = "real")]
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use stockade_crds::v1alpha1::{
    AgentStorage, CreateDisk, DiskBus, DiskFormat, MachineDisk, Reclaim, StorageKind,
};
use stockade_host::HostError;
use stockade_host::machine::{MachineOptions, RealMachine};
use stockade_host::ports::{Linked, OwnerRecord, RecordState, StoragePort};
use stockade_host::storage::{RealStorage, StorageOptions};

struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("stockade-{}-{name}", std::process::id()));
        fs::create_dir_all(path.join("vms")).unwrap();
        Self(path)
    }

    fn mount(&self) -> PathBuf {
        self.0.join("vms")
    }

    fn storage(&self) -> RealStorage {
        RealStorage::new(StorageOptions {
            state: self.0.join("state"),
            host_uid: "h1".into(),
            boot_id: "boot".into(),
            beat_command: Vec::new(),
        })
        .unwrap()
    }

    fn declared(&self, cluster: &str) -> AgentStorage {
        AgentStorage {
            name: "vms".into(),
            mount_path: self.mount().display().to_string(),
            cluster_id: cluster.into(),
            kind: StorageKind::SharedDirectory,
            ..AgentStorage::default()
        }
    }

    fn disk(&self, path: &str) -> MachineDisk {
        MachineDisk {
            name: "root".into(),
            storage: "vms".into(),
            path: self.mount().join(path).display().to_string(),
            format: DiskFormat::Qcow2,
            bus: DiskBus::Virtio,
            read_only: false,
            create: Some(CreateDisk { image: None }),
            size_bytes: 1 << 20,
            reclaim: Reclaim::Delete,
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn record() -> OwnerRecord {
    OwnerRecord {
        cluster_id: "ours".into(),
        vm_uid: "vm".into(),
        epoch: 1,
        host_uid: "h1".into(),
        boot_id: "boot".into(),
        state: RecordState::Held,
    }
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[tokio::test]
async fn a_storage_of_another_cluster_is_refused_and_none_of_its_disks_is_touched() {
    let scratch = Scratch::new("marker");
    let storage = scratch.storage();
    assert!(storage.ensure(&scratch.declared("ours")).await.ready);
    assert!(storage.ensure(&scratch.declared("ours")).await.ready);
    let report = scratch.storage().ensure(&scratch.declared("theirs")).await;
    assert!(!report.ready && report.message.contains("belongs to cluster ours"), "{report:?}");
    // A storage that is not ready any more is none that disks can be made on.
    storage.ensure(&scratch.declared("theirs")).await;
    let made = storage.ensure_disk(&scratch.disk("a.qcow2"), true).await;
    assert!(matches!(made, Err(HostError::Refused { .. })), "{made:?}");
}

#[tokio::test]
async fn a_disk_is_made_once_grows_and_is_never_made_again_for_a_vm_that_ran() {
    let scratch = Scratch::new("disk");
    let storage = scratch.storage();
    assert!(storage.ensure(&scratch.declared("ours")).await.ready);
    let disk = scratch.disk("shop/db.qcow2");
    let missing = storage.ensure_disk(&disk, false).await;
    assert!(matches!(missing, Err(HostError::Refused { .. })), "{missing:?}");
    storage.ensure_disk(&disk, true).await.unwrap();
    assert_eq!(names(&scratch.mount().join("shop")), ["db.qcow2"], "a temporary file was left");
    let first = fs::read(&disk.path).unwrap();
    storage.ensure_disk(&disk, true).await.unwrap();
    assert_eq!(fs::read(&disk.path).unwrap(), first, "the disk was made again");
    let larger = MachineDisk { size_bytes: 2 << 20, ..disk.clone() };
    storage.ensure_disk(&larger, false).await.unwrap();
    assert_ne!(fs::read(&disk.path).unwrap(), first);
    assert!(storage.drain(&disk.path).await.unwrap());
    storage.delete_disk(&disk.path).await.unwrap();
    assert!(names(&scratch.mount().join("shop")).is_empty());
}

#[tokio::test]
async fn a_path_that_leads_out_of_its_storage_is_refused() {
    let scratch = Scratch::new("escape");
    let storage = scratch.storage();
    assert!(storage.ensure(&scratch.declared("ours")).await.ready);
    fs::create_dir(scratch.0.join("outside")).unwrap();
    symlink(scratch.0.join("outside"), scratch.mount().join("link")).unwrap();
    for path in ["../outside/x.qcow2", "link/x.qcow2"] {
        let made = storage.ensure_disk(&scratch.disk(path), true).await;
        assert!(made.is_err(), "{path}");
        assert!(names(&scratch.0.join("outside")).is_empty(), "{path}");
    }
    // Its owner record comes before the disk, and would bind nobody out there.
    let folder = scratch.disk("shop/db.qcow2.stockade").path;
    fs::create_dir_all(scratch.mount().join("shop")).unwrap();
    symlink(scratch.0.join("outside"), folder).unwrap();
    for path in ["../outside/x.qcow2", "link/x.qcow2", "link/new/x.qcow2", "shop/db.qcow2"] {
        let linked = storage.link_record(&scratch.disk(path).path, &record()).await;
        assert!(matches!(linked, Err(HostError::Refused { .. })), "{path}: {linked:?}");
        assert!(names(&scratch.0.join("outside")).is_empty(), "{path}");
    }
}

#[test]
fn an_identity_stays_with_its_machine() {
    let scratch = Scratch::new("identity");
    let smbios = scratch.0.join("uuid");
    fs::write(&smbios, "machine-a\n").unwrap();
    let options = MachineOptions { smbios_uuid: smbios.clone(), ..MachineOptions::new(&scratch.0) };
    let first = RealMachine::open(&options).unwrap();
    assert_eq!(RealMachine::open(&options).unwrap().host_uid(), first.host_uid());
    fs::write(&smbios, "machine-b\n").unwrap();
    assert!(matches!(RealMachine::open(&options), Err(HostError::Refused { .. })));
}

#[tokio::test]
async fn beats_rise_on_every_planned_storage_and_stop_when_it_is_left_out() {
    let scratch = Scratch::new("beat");
    let storage = RealStorage::new(StorageOptions {
        state: scratch.0.join("state"),
        host_uid: "h1".into(),
        boot_id: "boot".into(),
        // The process itself is played by a thread of this test.
        beat_command: vec!["true".into()],
    })
    .unwrap();
    assert!(storage.ensure(&scratch.declared("ours")).await.ready);
    storage.keep_beating(&["vms".into()], 1, 5).await.unwrap();
    let state = scratch.0.join("state");
    std::thread::spawn(move || stockade_host::beat::run(&state, &state));
    let counter = async || {
        let beats = storage.beats("vms").await.unwrap();
        beats.get("h1").map_or(0, |beat| {
            assert_eq!((beat.boot_id.as_str(), beat.lineage), ("boot", 5));
            beat.counter
        })
    };
    let pause = async |millis| tokio::time::sleep(std::time::Duration::from_millis(millis)).await;
    pause(700).await;
    let first = counter().await;
    assert!(first > 0);
    pause(1500).await;
    assert!(counter().await > first);
    let second = stockade_host::beat::run(&scratch.0.join("state"), &scratch.0);
    assert!(matches!(second, Err(HostError::Refused { .. })), "two processes beat for one host");
    storage.keep_beating(&[], 1, 5).await.unwrap();
    pause(1500).await;
    let last = counter().await;
    pause(1500).await;
    assert_eq!(counter().await, last, "a storage that was left out is still beaten on");
}

#[tokio::test]
async fn the_first_disk_of_a_namespace_gets_its_record_and_never_beside_a_storage_that_is_gone() {
    let scratch = Scratch::new("first");
    let storage = scratch.storage();
    assert!(storage.ensure(&scratch.declared("ours")).await.ready);
    let (record, disk) = (record(), scratch.disk("shop/db.qcow2"));
    assert_eq!(storage.link_record(&disk.path, &record).await.unwrap(), Linked::Created);
    assert_eq!(storage.records(&disk.path).await.unwrap(), std::slice::from_ref(&record));

    fs::remove_file(scratch.mount().join(".stockade/cluster")).unwrap();
    let gone = storage.link_record(&scratch.disk("other/db.qcow2").path, &record).await;
    assert!(matches!(gone, Err(HostError::Refused { .. })), "{gone:?}");
    assert!(!scratch.mount().join("other").exists());
}
