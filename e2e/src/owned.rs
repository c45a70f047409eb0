//! Folders that belong to a process: named after their owner, and removed by a later start if that
//! was killed before it could.

use std::fmt::Display;
use std::fs;
use std::io;
use std::path::Path;

use crate::local_hosts::ProcessId;

/// File in a folder that names its owner.
const OWNER: &str = "owner.json";

/// This process. One that runs has a start time; if it can't be read the owner counts as gone.
pub(crate) fn itself() -> ProcessId {
    let pid = i32::try_from(std::process::id()).unwrap_or_default();
    ProcessId::of(pid).unwrap_or(ProcessId { pid, started: 0 })
}

/// Names this process as the owner of a folder.
///
/// # Errors
/// It can't be written.
pub(crate) fn own(folder: &Path) -> io::Result<()> {
    let text = serde_json::to_string(&itself()).map_err(io::Error::other)?;
    fs::write(folder.join(OWNER), text)
}

/// Removes the temporary folders whose names begin so and whose owners are gone. Each is handed to
/// `end` first, which ends what may still live in it; if that fails the folder stays.
pub(crate) fn sweep<E: Display>(prefix: &str, end: impl Fn(&Path) -> Result<(), E>) {
    let Ok(entries) = fs::read_dir(std::env::temp_dir()) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_string_lossy().starts_with(prefix) {
            continue;
        }
        let folder = entry.path();
        // Without an owner's name, or with a part of one: it is just being made.
        let owner = fs::read(folder.join(OWNER)).ok();
        let owner = owner.and_then(|text| serde_json::from_slice::<ProcessId>(&text).ok());
        if owner.is_none_or(|owner| owner.lives()) {
            continue;
        }
        if let Err(error) = end(&folder) {
            tracing::warn!(folder = %folder.display(), %error, "what a killed owner left stays");
        } else {
            let _ = fs::remove_dir_all(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_folders_whose_owner_is_gone_are_removed_and_only_once_nothing_lives_in_them() {
        let prefix = format!("stockade-owned-{}-", std::process::id());
        let folder = || tempfile::Builder::new().prefix(&prefix).tempdir().unwrap();
        let (mine, orphan, nobodys, young) = (folder(), folder(), folder(), folder());
        own(mine.path()).unwrap();
        fs::write(young.path().join(OWNER), "").unwrap();
        // The number is taken, by a process that started at another time.
        let gone = ProcessId { started: 1, ..itself() };
        fs::write(orphan.path().join(OWNER), serde_json::to_string(&gone).unwrap()).unwrap();

        sweep(&prefix, |_| Err("it still lives"));
        assert!(orphan.path().is_dir());
        let ended = std::cell::RefCell::new(Vec::new());
        sweep(&prefix, |folder| {
            ended.borrow_mut().push(folder.to_owned());
            Ok::<(), String>(())
        });
        assert_eq!(*ended.borrow(), [orphan.path()]);
        assert!(!orphan.path().exists());
        assert!([mine, nobodys, young].iter().all(|folder| folder.path().is_dir()));
    }
}
