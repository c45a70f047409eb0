//! Who owns the disks of VMs: libvirt is told to leave them alone.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};

use crate::error::HostResult;
use crate::files::failed;

const OP: &str = "give disk";

/// Gives the files to the user and group that own `home`, QEMU's own folder. They are the same by
/// number on all hosts, so that a start that is refused afterwards harms nobody.
///
/// Where `qemu.conf` sets `dynamic_ownership = 0` owners are the administrator's, and stay.
pub(super) fn give(config: &Path, home: &Path, disks: &[PathBuf]) -> HostResult<()> {
    let path = config.join("qemu.conf");
    let text = fs::read_to_string(&path).map_err(failed(OP, &path))?;
    if !is_dynamic(&text) {
        return Ok(());
    }
    let qemu = fs::metadata(home).map_err(failed(OP, home))?;
    for disk in disks {
        let now = fs::metadata(disk).map_err(failed(OP, disk))?;
        if (now.uid(), now.gid()) != (qemu.uid(), qemu.gid()) {
            chown(disk, Some(qemu.uid()), Some(qemu.gid())).map_err(failed(OP, disk))?;
        }
    }
    Ok(())
}

/// Whether libvirt changes owners by itself, which it does unless told otherwise.
fn is_dynamic(text: &str) -> bool {
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("dynamic_ownership"));
    let values = lines.filter_map(|line| line.trim().strip_prefix('='));
    values.map(str::trim).next_back() != Some("0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_left_alone_where_the_administrator_says_so() {
        assert!(is_dynamic("") && is_dynamic("#dynamic_ownership = 0\ndynamic_ownership = 1\n"));
        assert!(!is_dynamic("user = \"root\"\n dynamic_ownership = 0\n"));
    }
}
