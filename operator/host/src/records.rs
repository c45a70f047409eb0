//! Owner records: the truth about who may write a disk lies with the disk (safety §1).
//!
//! Beside a disk `x.raw` stands the folder `x.raw.stockade` with one file an epoch. A record is
//! written under a temporary name, fsynced, linked to its final name, and the folder fsynced:
//! the server decides by EEXIST which of two hosts was first, never a cache.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use stockade_crds::names::{RECORDS_SUFFIX, VARIABLES_SUFFIX};

use crate::error::{HostError, HostResult};
use crate::files::{beside, failed, remove, replace, sync_folder};
use crate::ports::{Linked, OwnerRecord, RecordState};

/// The folder with a disk's records.
#[must_use]
pub fn folder(disk: &Path) -> PathBuf {
    beside(disk, RECORDS_SUFFIX)
}

fn record_path(disk: &Path, epoch: i64) -> PathBuf {
    folder(disk).join(format!("{epoch}.json"))
}

/// Every record of a disk, lowest epoch first. One that can't be read is there all the same.
pub fn read_all(disk: &Path) -> HostResult<Vec<OwnerRecord>> {
    let folder = folder(disk);
    let entries = match fs::read_dir(&folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(failed("read records", &folder))?,
    };
    let mut records = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed("read records", &folder))?.path();
        // Temporary files do not end like this and are nobody's record yet.
        let Some(epoch) = epoch_of(&path) else { continue };
        records.push(read_one(&path, epoch));
    }
    records.sort_by_key(|record| record.epoch);
    Ok(records)
}

fn epoch_of(path: &Path) -> Option<i64> {
    path.file_name()?.to_str()?.strip_suffix(".json")?.parse().ok()
}

fn read_one(path: &Path, epoch: i64) -> OwnerRecord {
    let unreadable = OwnerRecord {
        cluster_id: String::new(),
        vm_uid: String::new(),
        epoch,
        host_uid: String::new(),
        boot_id: String::new(),
        state: RecordState::Unreadable,
    };
    // NFS storages are mounted with `noac,lookupcache=none`, so that the server is asked.
    let file = File::options().read(true).custom_flags(libc::O_NOFOLLOW).open(path);
    let record = file.and_then(|mut file| {
        let mut text = Vec::new();
        file.read_to_end(&mut text)?;
        serde_json::from_slice::<OwnerRecord>(&text).map_err(io::Error::other)
    });
    match record {
        Ok(record) if record.epoch == epoch => record,
        _ => unreadable,
    }
}

/// Links a record under its epoch; never replaces one.
pub fn link(disk: &Path, record: &OwnerRecord) -> HostResult<Linked> {
    const OP: &str = "link record";
    let folder = folder(disk);
    match fs::create_dir(&folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(failed(OP, &folder)(error));
        }
        _ => {}
    }
    // The folder's own name must be on the disk before a record in it counts.
    if let Some(parent) = folder.parent() {
        sync_folder(parent).map_err(failed(OP, parent))?;
    }
    let text = serde_json::to_vec(record)
        .map_err(|error| HostError::failed(OP, disk.display().to_string(), error.to_string()))?;
    let temporary = folder.join(format!(".{}-{}.new", record.boot_id, record.epoch));
    let written = File::create(&temporary).and_then(|mut file| {
        file.write_all(&text)?;
        file.sync_all()
    });
    written.map_err(failed(OP, &temporary))?;
    let path = record_path(disk, record.epoch);
    let linked = rustix::fs::linkat(
        rustix::fs::CWD,
        &temporary,
        rustix::fs::CWD,
        &path,
        rustix::fs::AtFlags::empty(),
    );
    let linked = match linked {
        Ok(()) => Linked::Created,
        // A link whose answer was lost on the way is answered with EEXIST when it is sent
        // again: it is ours if it is the very file that we have just written.
        Err(Errno::EXIST) if same_file(&temporary, &path) => Linked::Created,
        Err(Errno::EXIST) => Linked::Exists,
        Err(error) => return Err(failed(OP, &path)(error.into())),
    };
    fs::remove_file(&temporary).map_err(failed(OP, &temporary))?;
    sync_folder(&folder).map_err(failed(OP, &folder))?;
    Ok(linked)
}

fn same_file(a: &Path, b: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (fs::symlink_metadata(a), fs::symlink_metadata(b)) {
        (Ok(a), Ok(b)) => (a.dev(), a.ino()) == (b.dev(), b.ino()),
        _ => false,
    }
}

/// Marks this host's record of an epoch as released; fsynced. A void record stays void.
pub fn release(disk: &Path, epoch: i64, host_uid: &str) -> HostResult<()> {
    const OP: &str = "release record";
    let path = record_path(disk, epoch);
    let target = || path.display().to_string();
    if !path.exists() {
        return Err(HostError::failed(OP, target(), "there is no such record"));
    }
    let record = read_one(&path, epoch);
    match record.state {
        RecordState::Released | RecordState::Void => return Ok(()),
        RecordState::Unreadable => {
            return Err(HostError::refused(OP, target(), "the record can't be read"));
        }
        RecordState::Held if record.host_uid != host_uid => {
            let holder = &record.host_uid;
            return Err(HostError::refused(OP, target(), format!("it is held by host {holder}")));
        }
        RecordState::Held => {}
    }
    let released = OwnerRecord { state: RecordState::Released, ..record };
    let text = serde_json::to_vec(&released)
        .map_err(|error| HostError::failed(OP, target(), error.to_string()))?;
    replace(&path, &text).map_err(failed(OP, &path))
}

/// Removes a settled record; the highest one stays, for it holds the count of epochs.
pub fn remove_settled(disk: &Path, epoch: i64) -> HostResult<()> {
    let path = record_path(disk, epoch);
    if read_all(disk)?.last().is_none_or(|highest| highest.epoch <= epoch) {
        let message = "it is the highest record of its disk";
        return Err(HostError::refused("remove record", path.display().to_string(), message));
    }
    remove(&path).map_err(failed("remove record", &path))
}

/// Removes a disk's whole folder of records, because the disk is deleted.
pub fn remove_all(disk: &Path) -> HostResult<()> {
    let folder = folder(disk);
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(failed("remove records", &folder)(error))
        }
        _ => Ok(()),
    }
}

/// True if the path is, or lies beside, a disk that Stockade ever gave to a VM: what it keeps there
/// itself is nobody else's either.
#[must_use]
pub fn is_claimed(path: &Path) -> bool {
    let claimed = |path: &Path| {
        let mut parts = path.iter().filter_map(|part| part.to_str());
        let own = parts.any(|part| part.ends_with(RECORDS_SUFFIX));
        let disk = path.to_str().and_then(|path| path.strip_suffix(VARIABLES_SUFFIX));
        own || folder(path).exists() || disk.is_some_and(|disk| folder(Path::new(disk)).exists())
    };
    claimed(path) || fs::canonicalize(path).is_ok_and(|resolved| claimed(&resolved))
}

#[cfg(test)]
#[path = "records_tests.rs"]
mod tests;
