//! Disks on shared storages: found, made once, grown, deleted; never replaced.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use serde::Deserialize;
use stockade_crds::v1alpha1::{DiskFormat, MachineDisk};

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::{failed, remove, sync_folder};

/// How long copying an image may take.
const COPY_LIMIT: Duration = Duration::from_secs(3600);
/// How long a look at a disk may take.
const LOOK_LIMIT: Duration = Duration::from_secs(30);

/// What `qemu-img info` says; other fields are left alone.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    virtual_size: i64,
    #[serde(default)]
    backing_filename: Option<String>,
}

/// Makes sure that a disk is there as its order describes it.
///
/// A missing one is made only if the order says how and `may_create` (a VM that has ever run
/// never gets a new disk, safety §6.4). It appears under its name complete, and only if nothing
/// else has that name by then.
pub async fn ensure(mount: &Path, disk: &MachineDisk, may_create: bool) -> HostResult<()> {
    const OP: &str = "ensure disk";
    let path = Path::new(&disk.path);
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    if !is_there(mount, path)? {
        let Some(create) = &disk.create else {
            let message = "the file does not exist; put it there or correct spec.disks";
            return Err(HostError::refused(OP, &disk.path, message));
        };
        if !may_create {
            let message = "the disk of a VM that has run before is missing; restore it";
            return Err(HostError::refused(OP, &disk.path, message));
        }
        make(mount, path, format, disk, create.image.as_deref()).await?;
    }
    let info = look(path, disk).await?;
    if let Some(backing) = info.backing_filename {
        let message =
            format!("it has a backing file ({backing}); flatten it with qemu-img convert");
        return Err(HostError::refused(OP, &disk.path, message));
    }
    if !disk.read_only && disk.size_bytes > info.virtual_size {
        let size = disk.size_bytes.to_string();
        let arguments = ["resize", "-f", format, &disk.path, &size];
        cmd::run(OP, &disk.path, "qemu-img", &arguments, COPY_LIMIT).await?;
    }
    Ok(())
}

/// Reads what there is to know of a disk. A raw one is no more than its bytes; all other formats
/// are QEMU's to read.
async fn look(path: &Path, disk: &MachineDisk) -> HostResult<Info> {
    const OP: &str = "look at disk";
    let format = match disk.format {
        DiskFormat::Raw => {
            let length = fs::symlink_metadata(path).map_err(failed(OP, path))?.len();
            let virtual_size = i64::try_from(length).unwrap_or(i64::MAX);
            return Ok(Info { virtual_size, backing_filename: None });
        }
        DiskFormat::Qcow2 => "qcow2",
    };
    let arguments = ["info", "-U", "-f", format, "--output=json", &disk.path];
    let shown = cmd::run(OP, &disk.path, "qemu-img", &arguments, LOOK_LIMIT).await?;
    serde_json::from_str(&shown)
        .map_err(|error| HostError::failed(OP, &disk.path, error.to_string()))
}

/// Deletes a disk's file.
pub fn delete(mount: &Path, path: &Path) -> HostResult<()> {
    if is_there(mount, path)? {
        remove(path).map_err(failed("delete disk", path))?;
    }
    Ok(())
}

/// fsyncs a disk's file. True: nothing of it is outstanding on this host any more.
pub fn drain(path: &Path) -> HostResult<bool> {
    match File::options().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        other => {
            let file = other.map_err(failed("drain", path))?;
            file.sync_all().map_err(failed("drain", path))?;
            Ok(true)
        }
    }
}

/// The path below the mount, if it has no part that could lead elsewhere.
fn below(mount: &Path, path: &Path) -> HostResult<PathBuf> {
    let plain = |rest: &Path| rest.components().all(|part| matches!(part, Component::Normal(_)));
    path.strip_prefix(mount).ok().filter(|rest| plain(rest)).map(Path::to_owned).ok_or_else(|| {
        let message = format!("the path does not lie below {}", mount.display());
        HostError::refused("find disk", path.display().to_string(), message)
    })
}

/// Opens below the mount; the kernel refuses `..` and symbolic links on the way (openat2).
fn open_below(mount: &Path, path: &Path, flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
    let root = rustix::fs::open(mount, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn is_there(mount: &Path, path: &Path) -> HostResult<bool> {
    match open_below(mount, &below(mount, path)?, OFlags::PATH) {
        Ok(_) => Ok(true),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(HostError::refused(
            "find disk",
            path.display().to_string(),
            format!("it can't be opened without links and '..': {error}"),
        )),
    }
}

async fn make(
    mount: &Path,
    path: &Path,
    format: &str,
    disk: &MachineDisk,
    image: Option<&str>,
) -> HostResult<()> {
    const OP: &str = "create disk";
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(HostError::refused(OP, &disk.path, "the path names no file"));
    };
    let below_mount = below(mount, path)?;
    if let Some(folder_below) = below_mount.parent().filter(|folder| *folder != Path::new("")) {
        fs::create_dir_all(folder).map_err(failed(OP, folder))?;
        open_below(mount, folder_below, OFlags::PATH | OFlags::DIRECTORY)
            .map_err(|error| failed(OP, folder)(error.into()))?;
    }
    let temporary = folder.join(format!(".{}.new-{}", name.display(), std::process::id()));
    let temporary_text = temporary.display().to_string();
    let size = disk.size_bytes.to_string();
    let made = match image {
        Some(image) => {
            if !is_there(mount, Path::new(image))? {
                return Err(HostError::refused(OP, image, "the image does not exist"));
            }
            let arguments = ["convert", "-O", format, image, &temporary_text];
            cmd::run(OP, &disk.path, "qemu-img", &arguments, COPY_LIMIT).await
        }
        None => {
            let arguments = ["create", "-q", "-f", format, &temporary_text, &size];
            cmd::run(OP, &disk.path, "qemu-img", &arguments, COPY_LIMIT).await
        }
    };
    let named = made.and_then(|_| {
        let file = File::options().write(true).open(&temporary).map_err(failed(OP, &temporary))?;
        file.sync_all().map_err(failed(OP, &temporary))?;
        // A link, for NFS knows no rename that does not replace.
        rustix::fs::linkat(CWD, &temporary, CWD, path, AtFlags::empty())
            .map_err(|error| failed(OP, path)(error.into()))
    });
    remove(&temporary).map_err(failed(OP, &temporary))?;
    named?;
    sync_folder(folder).map_err(failed(OP, folder))
}
