//! OCFS2 under o2cb on a device that every host sees.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stockade_crds::v1alpha1::{AgentOcfs2, AgentStorage};

use super::o2cb::{O2cb, cluster_name};
use super::{aoe, iscsi};
use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::{self, failed};
use crate::ports::{MountRequest, Mounted, Mounts};

const OP: &str = "mount";
/// How long looking at a device may take.
const LOOK_LIMIT: Duration = Duration::from_secs(30);
/// How long making the file system may take.
const FORMAT_LIMIT: Duration = Duration::from_secs(1800);
/// How much of either end of a blank device is read, and must be zeros.
const BLANK_ENDS: u64 = 64 << 20;

/// Makes sure that the file system is mounted at the storage's path, its cluster's nodes known;
/// idempotent.
///
/// # Errors
/// [`HostError::Refused`] with the remedy for what a person must mend.
pub(super) async fn ensure(
    mounts: &dyn Mounts,
    o2cb: &O2cb,
    storage: &AgentStorage,
) -> HostResult<()> {
    let path = &storage.mount_path;
    let refused = |message: String| Err(HostError::refused(OP, path, message));
    let Some(wanted) = &storage.ocfs2 else {
        return refused("the order says nothing of the device".into());
    };
    if storage.served_here {
        return refused(
            "this host serves the device, and a host must not use its own: leave it out by \
             spec.hosts or spec.hostSelector"
                .into(),
        );
    }
    if wanted.node_number == 0 {
        return refused("the storage's status has no node number for this host yet".into());
    }
    let name = cluster_name(&storage.cluster_id);
    o2cb.ensure(&name, wanted).await?;
    let mut found = mounts.find(path).await?;
    if found.is_none() {
        let device = device(storage, wanted).await?;
        format_if_wanted(&device, &name, storage, wanted).await?;
        fs::create_dir_all(path).map_err(failed(OP, Path::new(path)))?;
        let request = MountRequest {
            kind: "ocfs2".into(),
            source: device.display().to_string(),
            path: path.clone(),
            options: vec!["noatime".into()],
        };
        mounts.mount(&request).await.map_err(explained)?;
        found = mounts.find(path).await?;
    }
    let Some(mounted) = found else {
        return refused("mount(8) said that it is mounted, and it is not".into());
    };
    fits(&mounted, path, &device(storage, wanted).await?)?;
    if mounts.is_on(path, &mounted).await? {
        return Ok(());
    }
    refused(
        "what is seen there is not what is mounted there: something covers it; unmount what lies \
         over it"
            .into(),
    )
}

/// Unmounts what is no longer declared, and lets go of its device.
pub(super) async fn forget(mounts: &dyn Mounts, storage: &AgentStorage) -> HostResult<()> {
    if mounts.find(&storage.mount_path).await?.is_some() {
        mounts.unmount(&storage.mount_path).await?;
    }
    match &storage.ocfs2 {
        Some(AgentOcfs2 { iscsi: Some(target), .. }) => iscsi::logout(target).await,
        Some(AgentOcfs2 { aoe: Some(wanted), .. }) => aoe::forget(wanted),
        _ => Ok(()),
    }
}

/// The device, logged in to where that is needed.
async fn device(storage: &AgentStorage, wanted: &AgentOcfs2) -> HostResult<PathBuf> {
    if let Some(target) = &wanted.iscsi {
        return iscsi::login(target).await;
    }
    if let Some(wanted) = &wanted.aoe {
        return aoe::find(wanted).await;
    }
    let path = PathBuf::from(&storage.source);
    if path.exists() {
        return Ok(path);
    }
    let message = "this host has no such device: connect it, or correct spec.ocfs2.san.path";
    Err(HostError::refused(OP, &storage.source, message))
}

/// Whether what is mounted there is this device's file system.
fn fits(mounted: &Mounted, path: &str, device: &Path) -> HostResult<()> {
    let refused = |message: String| Err(HostError::refused(OP, path, message));
    let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if mounted.kind != "ocfs2" || real(Path::new(&mounted.source)) != real(device) {
        return refused(format!(
            "something else is mounted there, {} of {}: unmount it, or correct spec.ocfs2",
            mounted.kind, mounted.source
        ));
    }
    if mounted.options.iter().any(|option| option == "ro") {
        return refused(
            "it is read-only: the kernel found its file system spoilt; unmount it on every host \
             and run fsck.ocfs2"
                .into(),
        );
    }
    Ok(())
}

/// Gives what mount(8) says the words that say what to do.
fn explained(error: HostError) -> HostError {
    let HostError::Failed { op, target, message } = error else { return error };
    let remedy = if message.contains("luster") && message.contains("match") {
        "the file system belongs to another o2cb cluster: use another device"
    } else if message.contains("No space left") || message.contains("slots") {
        "all of its slots are taken: add some by tunefs.ocfs2 -N, and raise spec.ocfs2.slots"
    } else if message.contains("Transport endpoint") {
        "the other nodes don't answer, or don't know this one yet: check that port 7777 is open \
         among the hosts' storage addresses"
    } else {
        return HostError::Failed { op, target, message };
    };
    HostError::refused(op, target, format!("{remedy} ({message})"))
}

/// Makes the file system where there is none, on the one host that may, if the spec says so and the
/// device is proven blank (safety §6.8).
async fn format_if_wanted(
    device: &Path,
    cluster: &str,
    storage: &AgentStorage,
    wanted: &AgentOcfs2,
) -> HostResult<()> {
    const OP: &str = "make file system";
    let name = device.display().to_string();
    let refused = |message: String| Err(HostError::refused(OP, &name, message));
    let arguments = ["--noheadings", "--output", "TYPE", &name];
    let text = cmd::run(OP, &name, "wipefs", &arguments, LOOK_LIMIT).await?;
    let kinds: Vec<&str> = text.split_whitespace().collect();
    if kinds == ["ocfs2"] {
        return Ok(());
    }
    if !kinds.is_empty() {
        return refused(format!(
            "it holds {} and no OCFS2: use another device; if nothing on it is needed, clear it by \
             hand",
            kinds.join(", ")
        ));
    }
    if !wanted.format_if_blank {
        return refused(
            "it holds no file system: set spec.ocfs2.formatIfBlank, or make one by mkfs.ocfs2"
                .into(),
        );
    }
    if !wanted.format_here {
        return refused("it holds no file system yet; another host makes it".into());
    }
    let path = device.to_owned();
    let blank = files::blocking(OP, &name, move || {
        is_blank(&path).map_err(|error| failed(OP, &path)(error))
    });
    if !blank.await? {
        return refused(
            "it holds no file system, but it is not blank: clear it by hand if nothing on it is \
             needed"
                .into(),
        );
    }
    let slots = wanted.slots.to_string();
    let cluster = format!("--cluster-name={cluster}");
    let arguments =
        ["-q", "-N", &slots, "-L", &storage.name, "--cluster-stack=o2cb", &cluster, &name];
    cmd::run(OP, &name, "mkfs.ocfs2", &arguments, FORMAT_LIMIT).await.map(drop)
}

/// Whether a device that carries no known signature holds nothing but zeros at either end.
fn is_blank(device: &Path) -> io::Result<bool> {
    let mut file = File::open(device)?;
    let size = file.seek(SeekFrom::End(0))?;
    let mut chunk = vec![0_u8; 1 << 20];
    for start in [0, size.saturating_sub(BLANK_ENDS)] {
        file.seek(SeekFrom::Start(start))?;
        let mut left = BLANK_ENDS.min(size);
        while left > 0 {
            let read = file.read(&mut chunk)?;
            if read == 0 {
                break;
            }
            if chunk[..read].iter().any(|byte| *byte != 0) {
                return Ok(false);
            }
            left = left.saturating_sub(u64::try_from(read).unwrap_or(u64::MAX));
        }
    }
    Ok(size > 0)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn a_device_with_a_byte_at_either_end_is_not_blank() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("device");
        let size = 3 * BLANK_ENDS;
        for (at, expected) in [(None, true), (Some(5), false), (Some(size - 1), false)] {
            let file = File::create(&path).unwrap();
            file.set_len(size).unwrap();
            if let Some(at) = at {
                file.write_all_at(&[1], at).unwrap();
            }
            assert_eq!(is_blank(&path).unwrap(), expected, "{at:?}");
        }
        File::create(&path).unwrap();
        assert!(!is_blank(&path).unwrap(), "a device of no size is none");
    }

    #[test]
    fn only_the_declared_device_is_taken_for_the_storage() {
        let mounted = |kind: &str, source: &str, options: &str| Mounted {
            kind: kind.into(),
            source: source.into(),
            options: options.split(',').map(ToOwned::to_owned).collect(),
            device: "8:0".into(),
        };
        let device = Path::new("/dev/sdz");
        assert!(fits(&mounted("ocfs2", "/dev/sdz", "rw,noatime"), "/m", device).is_ok());
        for other in [
            mounted("ext4", "/dev/sdz", "rw"),
            mounted("ocfs2", "/dev/sdy", "rw"),
            mounted("ocfs2", "/dev/sdz", "ro"),
        ] {
            assert!(fits(&other, "/m", device).is_err(), "{other:?}");
        }
    }
}
