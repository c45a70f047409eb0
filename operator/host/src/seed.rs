//! cloud-init seed images (NoCloud): a small ISO 9660 file on the host's own disk.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stockade_crds::v1alpha1::DomainSpec;

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::{failed, remove};

/// Where the seed image of a VM lies within the agent's state folder.
#[must_use]
pub fn path(state: &Path, vm_uid: &str) -> PathBuf {
    state.join("seeds").join(format!("{vm_uid}.iso"))
}

/// Makes the seed image of an order, if it has a seed.
///
/// The secret of a seed must have been put in its place in `user_data` before.
pub async fn ensure(state: &Path, order: &DomainSpec) -> HostResult<()> {
    const OP: &str = "make seed image";
    let Some(seed) = &order.machine.seed else { return Ok(()) };
    if let (Some(secret), None) = (&seed.secret, &seed.user_data) {
        let message = format!("secret {secret} has not been read");
        return Err(HostError::refused(OP, &order.vm.uid, message));
    }
    let image = path(state, &order.vm.uid);
    let folder = image.with_extension("d");
    make_private(&folder).map_err(failed(OP, &folder))?;
    let metadata = format!("instance-id: {}\nlocal-hostname: {}\n", order.vm.uid, order.vm.name);
    let mut names = Vec::new();
    let contents = [
        ("meta-data", Some(&metadata)),
        ("user-data", seed.user_data.as_ref()),
        ("network-config", seed.network_data.as_ref()),
    ];
    for (name, text) in contents {
        let Some(text) = text else { continue };
        let file = folder.join(name);
        fs::write(&file, text).map_err(failed(OP, &file))?;
        names.push(file.display().to_string());
    }
    let new = image.with_extension("new");
    let new_text = new.display().to_string();
    let mut arguments =
        vec!["-quiet", "-output", &new_text, "-volid", "cidata", "-joliet", "-rock"];
    arguments.extend(names.iter().map(String::as_str));
    let made =
        cmd::run(OP, &order.vm.uid, "genisoimage", &arguments, Duration::from_secs(30)).await;
    fs::remove_dir_all(&folder).map_err(failed(OP, &folder))?;
    made?;
    // It may hold a password; libvirt gives it to the user that runs the QEMU.
    fs::set_permissions(&new, Permissions::from_mode(0o600)).map_err(failed(OP, &new))?;
    fs::rename(&new, &image).map_err(failed(OP, &image))
}

/// Makes a folder whose content nobody else reads.
fn make_private(folder: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    fs::set_permissions(folder, Permissions::from_mode(0o700))
}

/// Removes the seed image of a VM.
pub fn delete(state: &Path, vm_uid: &str) -> HostResult<()> {
    let image = path(state, vm_uid);
    remove(&image).map_err(failed("remove seed image", &image))
}
