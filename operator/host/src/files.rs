//! Files that must survive a power cut.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{HostError, HostResult};

/// Replaces a file as a whole; returns once the new text and the name are on the disk.
pub fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let folder = parent(path)?;
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    let mut file = File::create(&temporary)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    sync_folder(folder)
}

/// Replaces a file as a whole, for readers of the running boot alone: after a power cut it may be
/// the old one, the new one, or spoilt.
pub fn replace_for_this_boot(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension(format!("new-{}", std::process::id()));
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

/// What lies beside a file, by a longer name.
#[must_use]
pub fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

/// Brings the names in a folder onto the disk.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes a file if it is there; returns once its name is gone from the disk.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(parent(path)?),
    }
}

fn parent(path: &Path) -> io::Result<&Path> {
    path.parent().ok_or_else(|| io::Error::other("the path has no folder"))
}

/// Runs blocking work on files away from the executor's threads.
pub async fn blocking<T: Send + 'static>(
    op: &'static str,
    target: &str,
    work: impl FnOnce() -> HostResult<T> + Send + 'static,
) -> HostResult<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(HostError::unknown(op, target, error.to_string())))
}

/// Turns what the kernel says about a path into a certain failure.
pub fn failed(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> HostError {
    let target = path.display().to_string();
    move |error| HostError::failed(op, target, error.to_string())
}
