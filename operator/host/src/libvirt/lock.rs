//! The lock manager of libvirt's QEMU driver: one a driver, named in `qemu.conf`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use stockade_crds::v1alpha1::{AgentLock, LockKind, LockReport};

use crate::error::{HostError, HostResult};
use crate::files::{failed, replace};
use crate::ports::{LiveDomain, LiveState};

/// The value that `lock_manager` has in `qemu.conf`, the last one if there are several.
fn configured(config: &Path) -> HostResult<Option<String>> {
    let path = config.join("qemu.conf");
    let text = fs::read_to_string(&path).map_err(failed("read lock manager", &path))?;
    let lines = text.lines().filter_map(|line| line.trim().strip_prefix("lock_manager"));
    let values = lines.filter_map(|line| line.trim().strip_prefix('='));
    Ok(values.map(|value| value.trim().trim_matches('"').to_owned()).next_back())
}

/// True if virtlockd guards the disks of this host's domains.
pub(super) fn is_lockd(config: &Path) -> HostResult<bool> {
    Ok(configured(config)?.as_deref() == Some("lockd"))
}

/// Names the lock manager in `qemu.conf` and its lockspace in `qemu-lockd.conf`. True: the daemon
/// must be restarted to use it.
///
/// # Errors
/// [`HostError::Refused`] while the lockspace's storage is not mounted: virtlockd would make the
/// folder on the host's own disk, and locks there bind nobody else.
pub(super) fn ensure(config: &Path, lock: &AgentLock) -> HostResult<bool> {
    const OP: &str = "use lock manager";
    if lock.kind != LockKind::Virtlockd {
        return Err(HostError::refused(OP, "sanlock", "this agent can't run sanlock yet"));
    }
    let spaced = set_lockspace(config, &lock.lockspace)?;
    let path = config.join("qemu.conf");
    match configured(config)?.as_deref() {
        Some("lockd") => Ok(spaced),
        Some(other) => {
            let message = format!("qemu.conf names {other}; stop all domains, then change it");
            Err(HostError::refused(OP, "virtlockd", message))
        }
        None => {
            let text = fs::read_to_string(&path).map_err(failed(OP, &path))?;
            let text = format!("{}\nlock_manager = \"lockd\"\n", text.trim_end());
            replace(&path, text.as_bytes()).map_err(failed(OP, &path))?;
            Ok(true)
        }
    }
}

/// Points virtlockd's locks at the storage. True: that was not so before.
fn set_lockspace(config: &Path, lockspace: &str) -> HostResult<bool> {
    const OP: &str = "use lockspace";
    const KEY: &str = "file_lockspace_dir";
    if lockspace.is_empty() {
        return Ok(false);
    }
    let marker = Path::new(lockspace).with_file_name("cluster");
    if !marker.exists() {
        let message = "its storage is not mounted and checked here yet";
        return Err(HostError::refused(OP, lockspace, message));
    }
    fs::create_dir_all(lockspace).map_err(failed(OP, Path::new(lockspace)))?;
    let path = config.join("qemu-lockd.conf");
    let text = fs::read_to_string(&path).map_err(failed(OP, &path))?;
    let wanted = format!("{KEY} = \"{lockspace}\"");
    if text.lines().any(|line| line.trim() == wanted) {
        return Ok(false);
    }
    let other = text.lines().filter(|line| !line.trim_start().starts_with(KEY));
    let text: String = other.chain([wanted.as_str()]).map(|line| format!("{line}\n")).collect();
    replace(&path, text.as_bytes()).map_err(failed(OP, &path))?;
    Ok(true)
}

/// True if virtlockd listens; `run` is libvirt's run-time folder of QEMU.
pub(super) fn daemon_answers(run: &Path) -> bool {
    let folder = run.parent().unwrap_or(run);
    UnixStream::connect(folder.join("virtlockd-sock")).is_ok()
}

/// libvirt takes the locks before vCPUs run and gives them back while they are suspended.
pub(super) fn report(domain: Option<&LiveDomain>) -> LockReport {
    LockReport {
        manager: LockKind::Virtlockd,
        held: domain.is_some_and(|domain| domain.state == LiveState::Running),
        holder: String::new(),
    }
}
