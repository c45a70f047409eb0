//! Disks on shared storages: found, made once, grown, deleted; never replaced.
//!
//! What a file holds is read here before QEMU opens it: guests write onto raw disks what they like.

mod image;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use stockade_crds::names::{VARIABLES_SUFFIX, is_reserved_path};
use stockade_crds::v1alpha1::{DiskFormat, MachineDisk};

use self::image::Content;
use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::{beside, failed, remove, sync_folder};
use crate::ports::RecordState;
use crate::records;

/// How long copying an image may take.
const COPY_LIMIT: Duration = Duration::from_secs(3600);

/// The file with the UEFI variables of a guest that boots from this disk.
#[must_use]
pub fn variables(disk: &Path) -> PathBuf {
    beside(disk, VARIABLES_SUFFIX)
}

/// Makes sure that a disk is there as its order describes it.
///
/// A missing one is made only if the order says how and `may_create` (a VM that has ever run
/// never gets a new disk, safety §6.4). It appears under its name complete, and only if nothing
/// else has that name by then.
pub async fn ensure(mount: &Path, disk: &MachineDisk, may_create: bool) -> HostResult<()> {
    const OP: &str = "ensure disk";
    let path = Path::new(&disk.path);
    inside(mount, path)?;
    let found = match find(mount, path)? {
        Some(file) => file,
        None => {
            let Some(create) = &disk.create else {
                let message = "the file does not exist; put it there or correct spec.disks";
                return Err(HostError::refused(OP, &disk.path, message));
            };
            if !may_create {
                let message = "the disk of a VM that has run before is missing; restore it";
                return Err(HostError::refused(OP, &disk.path, message));
            }
            make(mount, path, disk, create.image.as_deref()).await?;
            find(mount, path)?
                .ok_or_else(|| HostError::failed(OP, &disk.path, "it is gone again"))?
        }
    };
    let virtual_size = size(&found, path, disk.format)?;
    if !disk.read_only {
        // QEMU writes there, whatever has the name.
        find(mount, &variables(path))?;
    }
    if !disk.read_only && u64::try_from(disk.size_bytes).is_ok_and(|wanted| wanted > virtual_size) {
        let size = disk.size_bytes.to_string();
        let arguments = ["resize", "-f", format_name(disk.format), &disk.path, &size];
        cmd::run(OP, &disk.path, "qemu-img", &arguments, COPY_LIMIT).await?;
    }
    Ok(())
}

const fn format_name(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

/// Bytes that a guest sees of a disk. A raw one is no more than its bytes, whatever they say; any
/// other must be what its order says, and stand by itself.
fn size(file: &File, path: &Path, format: DiskFormat) -> HostResult<u64> {
    const OP: &str = "look at disk";
    match format {
        DiskFormat::Raw => Ok(file.metadata().map_err(failed(OP, path))?.len()),
        DiskFormat::Qcow2 => match image::read(file).map_err(failed(OP, path))? {
            Content::Qcow2(header) => {
                alone(&header, path)?;
                Ok(header.virtual_size)
            }
            Content::Other(_) | Content::Bytes => {
                let message = "it is no qcow2 file; correct spec.disks.format";
                Err(HostError::refused(OP, path.display().to_string(), message))
            }
        },
    }
}

/// Refuses a file that names others: QEMU would open them, and no owner record covers them.
fn alone(header: &image::Header, path: &Path) -> HostResult<()> {
    let what = match (header.backing_file, header.data_file) {
        (false, false) => return Ok(()),
        (true, _) => "a backing file",
        (false, true) => "its data in another file",
    };
    let message = format!("it has {what}; make one file of it with qemu-img convert");
    Err(HostError::refused("look at disk", path.display().to_string(), message))
}

/// Deletes a disk's file and the UEFI variables beside it.
pub fn delete(mount: &Path, path: &Path) -> HostResult<()> {
    const OP: &str = "delete disk";
    inside(mount, path)?;
    // The variables first: what is cut off in between finds the disk again.
    for file in [variables(path), path.to_owned()] {
        if find(mount, &file)?.is_some() {
            remove(&file).map_err(failed(OP, &file))?;
        }
    }
    Ok(())
}

/// fsyncs a disk's file and the UEFI variables beside it. True: nothing of them is outstanding on
/// this host any more.
pub fn drain(path: &Path) -> HostResult<bool> {
    for path in [path, &variables(path)] {
        match File::options().write(true).open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => {
                let file = other.map_err(failed("drain", path))?;
                file.sync_all().map_err(failed("drain", path))?;
            }
        }
    }
    Ok(true)
}

/// Refuses a path that is no guest's: Stockade's own, above all owner records, or one whose folder,
/// or that of its records, leads out of the storage, where a record would bind nobody else.
pub fn inside(mount: &Path, path: &Path) -> HostResult<()> {
    let rest = below(mount, path)?;
    if rest.to_str().is_none_or(is_reserved_path) {
        let message = "the name is Stockade's own; name another file";
        return Err(HostError::refused("find disk", path.display().to_string(), message));
    }
    let records = records::folder(&rest);
    let folders = rest.parent().into_iter().chain([records.as_path()]);
    for folder in folders.filter(|folder| *folder != Path::new("")) {
        match open_below(mount, folder, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(_) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(outside(&mount.join(folder), error)),
        }
    }
    Ok(())
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

/// Opens a file on the storage to look at it; `None` if there is none.
///
/// # Errors
/// [`HostError::Refused`] if the path leads out of the storage or names no plain file.
fn find(mount: &Path, path: &Path) -> HostResult<Option<File>> {
    // What hangs when it is opened, a pipe, is no file.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = match open_below(mount, &below(mount, path)?, flags) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(error) => return Err(outside(path, error)),
    };
    if file.metadata().map_err(failed("find disk", path))?.is_file() {
        return Ok(Some(file));
    }
    let message = "it is no plain file; name one";
    Err(HostError::refused("find disk", path.display().to_string(), message))
}

fn outside(path: &Path, error: rustix::io::Errno) -> HostError {
    let message = format!("it can't be opened without links and '..': {error}");
    HostError::refused("find disk", path.display().to_string(), message)
}

async fn make(
    mount: &Path,
    path: &Path,
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
    let format = format_name(disk.format);
    let made = match image {
        Some(image) => {
            let from = image_format(mount, Path::new(image))?;
            let arguments = ["convert", "-f", from, "-O", format, image, &temporary_text];
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

/// The format in which an image is to be read. It is not declared, so the file's own word is taken,
/// and only for one that names no other file: then nobody gets more than the file itself.
///
/// # Errors
/// [`HostError::Refused`] for any other, and for the disk of a VM that may run: its guest could
/// give it another header after it was looked at here.
fn image_format(mount: &Path, image: &Path) -> HostResult<&'static str> {
    const OP: &str = "read image";
    let refused = |message: String| HostError::refused(OP, image.display().to_string(), message);
    inside(mount, image)?;
    let Some(file) = find(mount, image)? else {
        return Err(refused("the image does not exist".into()));
    };
    let open = |state| matches!(state, RecordState::Held | RecordState::Unreadable);
    if records::read_all(image)?.iter().any(|record| open(record.state)) {
        return Err(refused("it is the disk of a VM that may run; stop that, or copy it".into()));
    }
    match image::read(&file).map_err(failed(OP, image))? {
        Content::Bytes => Ok("raw"),
        Content::Qcow2(header) => alone(&header, image).map(|()| "qcow2"),
        Content::Other(kind) => {
            Err(refused(format!("it is a {kind} file; make it qcow2 or raw with qemu-img convert")))
        }
    }
}

#[cfg(test)]
mod tests;
