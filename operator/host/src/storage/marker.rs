//! The marker file that names the cluster a storage belongs to.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use stockade_core::agent::judge_marker;

use crate::error::{HostError, HostResult};
use crate::files::{self, failed};

const OP: &str = "check storage";

/// The marker of a storage.
pub(super) fn path(mount: &Path) -> PathBuf {
    mount.join(".stockade/cluster")
}

/// Reads the marker: true if it names this cluster, false if there is none. Writes nothing.
///
/// # Errors
/// [`HostError::Refused`] if it names another cluster.
pub(super) fn read(mount: &Path, cluster_id: &str) -> HostResult<bool> {
    if !mount.is_dir() {
        let message = "the folder does not exist; mount the storage there";
        return Err(HostError::refused(OP, mount.display().to_string(), message));
    }
    let marker = path(mount);
    let found = match fs::read_to_string(&marker) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed(OP, &marker)(error)),
    };
    judge_marker(found.trim(), cluster_id)
        .map(|()| true)
        .map_err(|message| HostError::refused(OP, mount.display().to_string(), message))
}

/// Marks a storage that has no marker as this cluster's, by link, so that of two clusters one
/// loses.
pub(super) fn claim(mount: &Path, cluster_id: &str) -> HostResult<()> {
    if read(mount, cluster_id)? {
        return Ok(());
    }
    let marker = path(mount);
    let folder = mount.join(".stockade");
    fs::create_dir_all(&folder).map_err(failed(OP, &folder))?;
    let temporary = marker.with_extension(format!("new-{cluster_id}-{}", std::process::id()));
    let written = fs::File::create(&temporary).and_then(|mut file| {
        file.write_all(cluster_id.as_bytes())?;
        file.sync_all()?;
        match fs::hard_link(&temporary, &marker) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => files::sync_folder(&folder),
        }
    });
    files::remove(&temporary).map_err(failed(OP, &temporary))?;
    written.map_err(failed(OP, &marker))?;
    if read(mount, cluster_id)? {
        return Ok(());
    }
    Err(HostError::failed(OP, marker.display().to_string(), "the marker is gone again"))
}
