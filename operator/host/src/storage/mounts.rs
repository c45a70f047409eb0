//! Mounting by mount(8), umount(8) and findmnt(8): they know the helpers of each file system.

use std::os::linux::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files;
use crate::ports::{MountRequest, Mounted, Mounts};

/// How long mounting may take; an NFS server that is just starting answers late.
const MOUNT_LIMIT: Duration = Duration::from_secs(60);
/// How long looking may take: it asks the kernel and no server.
const LOOK_LIMIT: Duration = Duration::from_secs(10);

/// The mounts of this machine, in this process's mount namespace.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealMounts;

#[derive(Deserialize)]
struct Listed {
    filesystems: Vec<Row>,
}

/// One line of findmnt.
#[derive(Deserialize)]
struct Row {
    target: String,
    source: Option<String>,
    fstype: String,
    options: String,
    #[serde(rename = "maj:min")]
    device: String,
}

impl Mounts for RealMounts {
    fn find<'a>(&'a self, path: &'a str) -> BoxFuture<'a, HostResult<Option<Mounted>>> {
        async move {
            // The whole table, and names as the kernel has them: to look a path up findmnt would
            // ask a server that may be dead.
            let columns = "TARGET,SOURCE,FSTYPE,OPTIONS,MAJ:MIN";
            let arguments = ["--kernel", "--nocanonicalize", "--list", "--json", "-o", columns];
            let text = cmd::run("look for mount", path, "findmnt", &arguments, LOOK_LIMIT).await?;
            newest(&text, path)
        }
        .boxed()
    }

    fn is_on<'a>(&'a self, path: &'a str, mounted: &'a Mounted) -> BoxFuture<'a, HostResult<bool>> {
        let (at, device) = (path.to_owned(), mounted.device.clone());
        files::blocking("look at mount", path, move || {
            let data = std::fs::metadata(&at).map_err(files::failed("look at", Path::new(&at)))?;
            let number = data.st_dev();
            Ok(format!("{}:{}", rustix::fs::major(number), rustix::fs::minor(number)) == device)
        })
        .boxed()
    }

    fn mount<'a>(&'a self, request: &'a MountRequest) -> BoxFuture<'a, HostResult<()>> {
        async move {
            let options = request.options.join(",");
            let mut arguments = Vec::new();
            if !request.kind.is_empty() {
                arguments.extend(["-t", &request.kind]);
            }
            if !options.is_empty() {
                arguments.extend(["-o", &options]);
            }
            arguments.extend([&*request.source, &request.path]);
            cmd::run("mount", &request.path, "mount", &arguments, MOUNT_LIMIT).await.map(drop)
        }
        .boxed()
    }

    fn unmount<'a>(&'a self, path: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            // Neither lazily nor by force: the kernel refuses while anything uses it, and that is
            // the check.
            let done = cmd::run("unmount", path, "umount", &[path], MOUNT_LIMIT).await;
            done.map(drop).map_err(|error| match error {
                HostError::Failed { op, target, message } if message.contains("busy") => {
                    HostError::refused(op, target, "it is in use")
                }
                other => other,
            })
        }
        .boxed()
    }
}

/// The mount that is seen at a path: of several there, the last one covers the others.
fn newest(text: &str, path: &str) -> HostResult<Option<Mounted>> {
    if text.trim().is_empty() {
        return Ok(None);
    }
    let listed: Listed = serde_json::from_str(text)
        .map_err(|error| HostError::failed("look for mount", path, error.to_string()))?;
    let here = listed.filesystems.into_iter().filter(|row| row.target == path);
    Ok(here
        .map(|row| Mounted {
            kind: row.fstype,
            source: row.source.unwrap_or_default(),
            options: row.options.split(',').map(ToOwned::to_owned).collect(),
            device: row.device.trim().to_owned(),
        })
        .next_back())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_mounts_over_each_other_the_last_one_counts_and_names_are_taken_whole() {
        let text = r#"{"filesystems": [
            {"target":"/a","source":"s:/x","fstype":"nfs4","options":"rw,hard","maj:min":"0:5"},
            {"target":"/a/b","source":"s:/y","fstype":"nfs4","options":"rw","maj:min":"0:6"},
            {"target":"/a","source":null,"fstype":"tmpfs","options":"ro","maj:min":"  0:7 "}]}"#;
        let found = newest(text, "/a").unwrap().unwrap();
        assert_eq!((found.kind.as_str(), found.device.as_str()), ("tmpfs", "0:7"));
        assert_eq!(newest(text, "/a/b").unwrap().unwrap().source, "s:/y");
        assert_eq!(newest(text, "/b").unwrap(), None);
        assert_eq!(newest("", "/b").unwrap(), None);
    }
}
