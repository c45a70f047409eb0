use std::os::unix::fs::{FileExt, symlink};
use std::process::Command;

use stockade_crds::v1alpha1::{CreateDisk, DiskBus, Reclaim};
use tempfile::TempDir;

use super::*;
use crate::ports::OwnerRecord;

const SECRET: &[u8] = b"root:$6$of the host, and nobody else's";
const MIB: u64 = 1 << 20;

/// A storage, `vms`, and beside it what is the host's own.
struct Scratch(TempDir);

impl Scratch {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("vms/shop")).unwrap();
        fs::write(folder.path().join("shadow"), SECRET).unwrap();
        Self(folder)
    }

    fn mount(&self) -> PathBuf {
        self.0.path().join("vms")
    }

    fn secret(&self) -> PathBuf {
        self.0.path().join("shadow")
    }

    fn at(&self, name: &str) -> PathBuf {
        self.mount().join("shop").join(name)
    }

    fn disk(&self, name: &str, format: DiskFormat) -> MachineDisk {
        MachineDisk {
            name: "root".into(),
            storage: "vms".into(),
            path: self.at(name).display().to_string(),
            format,
            bus: DiskBus::Virtio,
            read_only: false,
            create: None,
            size_bytes: 0,
            reclaim: Reclaim::Retain,
        }
    }

    fn copy_of(&self, image: &str, name: &str, format: DiskFormat) -> MachineDisk {
        let image = Some(self.at(image).display().to_string());
        MachineDisk { create: Some(CreateDisk { image }), ..self.disk(name, format) }
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.mount().join("shop")).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    async fn ensure(&self, disk: &MachineDisk) -> HostResult<()> {
        ensure(&self.mount(), disk, true).await
    }

    /// Fails unless it was refused with these words, and nothing was made.
    async fn refuses(&self, disk: &MachineDisk, words: &str) {
        let before = self.names();
        let done = self.ensure(disk).await;
        let said = done.as_ref().map_err(ToString::to_string);
        assert!(matches!(done, Err(HostError::Refused { .. })), "{disk:?}: {said:?}");
        assert!(said.is_err_and(|said| said.contains(words)), "{done:?} does not say {words:?}");
        assert_eq!(self.names(), before);
    }
}

fn qemu_img(arguments: &[&str]) -> String {
    let output = Command::new("qemu-img").args(arguments).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// What `qemu-img` says that a file is.
fn shown(path: &Path) -> (String, u64) {
    let info = qemu_img(&["info", "--output=json", text(path)]);
    let info: serde_json::Value = serde_json::from_str(&info).unwrap();
    (info["format"].as_str().unwrap().into(), info["virtual-size"].as_u64().unwrap())
}

/// What a guest that writes this onto its raw disk can make of it.
fn hostile(scratch: &Scratch, name: &str, kind: &str) -> PathBuf {
    let (path, secret) = (scratch.at(name), scratch.secret());
    match kind {
        "backing file" => qemu_img(&[
            "create",
            "-q",
            "-f",
            "qcow2",
            "-F",
            "raw",
            "-b",
            text(&secret),
            text(&path),
        ]),
        "data file" => {
            let option = format!("data_file={},data_file_raw=on", secret.display());
            qemu_img(&["create", "-q", "-f", "qcow2", "-o", &option, text(&path), "1M"])
        }
        other => panic!("{other}"),
    };
    // It made the data file anew.
    fs::write(&secret, SECRET).unwrap();
    path
}

#[tokio::test]
async fn an_image_that_names_files_of_the_host_is_not_copied() {
    for (kind, says) in [("backing file", "a backing file"), ("data file", "in another file")] {
        let scratch = Scratch::new();
        let evil = hostile(&scratch, "evil.raw", kind);
        for format in [DiskFormat::Raw, DiskFormat::Qcow2] {
            scratch.refuses(&scratch.copy_of("evil.raw", "db", format), says).await;
        }
        // The attack is a real one: QEMU itself follows the header.
        qemu_img(&["convert", "-O", "raw", text(&evil), text(&scratch.at("stolen"))]);
        let stolen = fs::read(scratch.at("stolen")).unwrap();
        assert_eq!(&stolen[..SECRET.len()], SECRET, "{kind}");
    }
}

#[tokio::test]
async fn a_disk_that_names_other_files_is_not_run_whatever_its_size() {
    for (kind, says) in [("backing file", "a backing file"), ("data file", "in another file")] {
        let scratch = Scratch::new();
        hostile(&scratch, "evil", kind);
        let disk = scratch.disk("evil", DiskFormat::Qcow2);
        scratch.refuses(&disk, says).await;
        let larger = MachineDisk { size_bytes: 1 << 30, ..disk };
        scratch.refuses(&larger, says).await;
        // As a raw disk it is no more than its bytes.
        scratch.ensure(&scratch.disk("evil", DiskFormat::Raw)).await.unwrap();
    }
}

#[tokio::test]
async fn an_image_is_copied_as_what_it_is_and_grows_to_its_size() {
    let scratch = Scratch::new();
    let bytes: Vec<u8> = (0..MIB).map(|n| (n % 251) as u8).collect();
    fs::write(scratch.at("golden.img"), &bytes).unwrap();
    let larger = MachineDisk {
        size_bytes: 4 * MIB as i64,
        ..scratch.copy_of("golden.img", "a.qcow2", DiskFormat::Qcow2)
    };
    scratch.ensure(&larger).await.unwrap();
    assert_eq!(shown(&scratch.at("a.qcow2")), ("qcow2".into(), 4 * MIB));
    scratch.ensure(&scratch.copy_of("a.qcow2", "b.raw", DiskFormat::Raw)).await.unwrap();
    let copied = fs::read(scratch.at("b.raw")).unwrap();
    assert_eq!(copied.len() as u64, 4 * MIB);
    assert!(copied.starts_with(&bytes) && copied[bytes.len()..].iter().all(|byte| *byte == 0));
    assert_eq!(scratch.names(), ["a.qcow2", "b.raw", "golden.img"], "something was left");
}

#[tokio::test]
async fn an_image_of_another_format_is_named_and_refused() {
    let scratch = Scratch::new();
    for format in ["vmdk", "vhdx", "vpc", "vdi", "qed", "qcow", "parallels"] {
        let image = scratch.at("image");
        qemu_img(&["create", "-q", "-f", format, text(&image), "4M"]);
        let disk = scratch.copy_of("image", "db.raw", DiskFormat::Raw);
        scratch.refuses(&disk, "make it qcow2 or raw").await;
    }
    fs::write(scratch.at("bytes"), [7; 4096]).unwrap();
    scratch.refuses(&scratch.disk("bytes", DiskFormat::Qcow2), "spec.disks.format").await;
    scratch.refuses(&scratch.copy_of("none", "db", DiskFormat::Raw), "does not exist").await;
}

#[tokio::test]
async fn the_disk_of_a_vm_that_may_run_is_no_image() {
    let scratch = Scratch::new();
    fs::write(scratch.at("other.raw"), [1; 4096]).unwrap();
    let record = OwnerRecord {
        cluster_id: "c".into(),
        vm_uid: "other".into(),
        epoch: 1,
        host_uid: "h1".into(),
        boot_id: "b".into(),
        state: RecordState::Held,
    };
    records::link(&scratch.at("other.raw"), &record).unwrap();
    let disk = scratch.copy_of("other.raw", "db.raw", DiskFormat::Raw);
    scratch.refuses(&disk, "may run").await;
    records::release(&scratch.at("other.raw"), 1, "h1").unwrap();
    scratch.ensure(&disk).await.unwrap();
    assert_eq!(fs::read(scratch.at("db.raw")).unwrap(), [1; 4096]);
}

#[tokio::test]
async fn only_a_plain_file_on_the_storage_is_a_disk_or_an_image() {
    let scratch = Scratch::new();
    let raw = |name: &str| scratch.disk(name, DiskFormat::Raw);
    symlink(scratch.secret(), scratch.at("link")).unwrap();
    symlink(scratch.0.path(), scratch.at("folder")).unwrap();
    fs::create_dir(scratch.at("directory")).unwrap();
    let pipe = scratch.at("pipe");
    rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
        .unwrap();
    for (name, says) in [
        ("link", "without links"),
        ("folder/shadow", "without links"),
        ("directory", "no plain file"),
        ("pipe", "no plain file"),
    ] {
        scratch.refuses(&raw(name), says).await;
        scratch.refuses(&scratch.copy_of(name, "db.raw", DiskFormat::Raw), says).await;
    }
    // QEMU would write a guest's UEFI variables there.
    fs::write(scratch.at("db.raw"), [0; 4096]).unwrap();
    symlink(scratch.secret(), scratch.at("db.raw.nvram")).unwrap();
    scratch.refuses(&raw("db.raw"), "without links").await;
    assert_eq!(fs::read(scratch.secret()).unwrap(), SECRET);
}

#[tokio::test]
async fn what_is_stockades_own_is_no_disk_and_no_image() {
    let scratch = Scratch::new();
    for folder in ["db.raw.stockade", ".stockade"] {
        fs::create_dir_all(scratch.at(folder)).unwrap();
    }
    for name in ["db.raw.stockade/3.json", ".stockade/cluster", "db.raw.nvram"] {
        fs::write(scratch.at(name), [0; 512]).unwrap();
        scratch.refuses(&scratch.disk(name, DiskFormat::Raw), "Stockade's own").await;
        let copy = scratch.copy_of(name, "copy.raw", DiskFormat::Raw);
        scratch.refuses(&copy, "Stockade's own").await;
        let blank = Some(CreateDisk { image: None });
        let new = format!("{name}.stockade");
        let made = MachineDisk { create: blank, ..scratch.disk(&new, DiskFormat::Raw) };
        scratch.refuses(&made, "Stockade's own").await;
        assert!(delete(&scratch.mount(), &scratch.at(name)).is_err());
        assert!(scratch.at(name).exists());
    }
}

#[test]
fn the_uefi_variables_are_drained_and_deleted_with_their_disk() {
    let scratch = Scratch::new();
    let disk = scratch.at("db.raw");
    for file in [&disk, &variables(&disk)] {
        fs::write(file, [0; 512]).unwrap();
    }
    assert!(drain(&disk).unwrap());
    delete(&scratch.mount(), &disk).unwrap();
    assert!(scratch.names().is_empty());
    assert!(drain(&disk).unwrap(), "nothing is there that could be outstanding");
    // What can't be fsynced is not drained.
    fs::write(&disk, [0; 512]).unwrap();
    fs::create_dir(variables(&disk)).unwrap();
    assert!(drain(&disk).is_err());
}

#[tokio::test]
async fn a_disk_grows_and_never_shrinks() {
    let scratch = Scratch::new();
    for (name, format) in [("a.raw", DiskFormat::Raw), ("a.qcow2", DiskFormat::Qcow2)] {
        let blank = Some(CreateDisk { image: None });
        let sized = |size: u64| MachineDisk {
            create: blank.clone(),
            size_bytes: size as i64,
            ..scratch.disk(name, format)
        };
        scratch.ensure(&sized(2 * MIB)).await.unwrap();
        let file = File::options().write(true).open(scratch.at(name)).unwrap();
        if format == DiskFormat::Raw {
            file.write_all_at(b"end", 2 * MIB - 3).unwrap();
        }
        for (size, then) in [(MIB, 2 * MIB), (0, 2 * MIB), (3 * MIB, 3 * MIB)] {
            scratch.ensure(&sized(size)).await.unwrap();
            let path = scratch.at(name);
            let size = match format {
                DiskFormat::Raw => fs::metadata(path).unwrap().len(),
                DiskFormat::Qcow2 => shown(&path).1,
            };
            assert_eq!(size, then, "{name}");
        }
        let read_only = MachineDisk { read_only: true, ..sized(9 * MIB) };
        scratch.ensure(&read_only).await.unwrap();
    }
    assert_eq!(fs::metadata(scratch.at("a.raw")).unwrap().len(), 3 * MIB);
    let mut end = [0; 3];
    File::open(scratch.at("a.raw")).unwrap().read_exact_at(&mut end, 2 * MIB - 3).unwrap();
    assert_eq!(&end, b"end");
}
