//! The lock manager of libvirt's QEMU driver: one a driver, named in `qemu.conf`.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::Path;

use stockade_crds::v1alpha1::LockKind;

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

/// The lock manager that `qemu.conf` names, if it is one that we know.
pub(super) fn kind(config: &Path) -> HostResult<Option<LockKind>> {
    Ok(match configured(config)?.as_deref() {
        Some("lockd") => Some(LockKind::Virtlockd),
        Some("sanlock") => Some(LockKind::Sanlock),
        _ => None,
    })
}

/// A configuration file of libvirt's with these values, each said once, at its end.
pub(super) fn with_values(old: &str, values: &[(&str, String)]) -> String {
    let sets = |line: &&str, key: &str| {
        let rest = line.trim_start().strip_prefix(key);
        rest.is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let other = old.lines().filter(|line| !values.iter().any(|(key, _)| sets(line, key)));
    let wanted = values.iter().map(|(key, value)| format!("{key} = {value}"));
    other.map(ToOwned::to_owned).chain(wanted).map(|line| line + "\n").collect()
}

/// Names the lock manager in `qemu.conf`. True: the daemon must be restarted to use it. `idle`: no
/// domain runs here.
///
/// # Errors
/// [`HostError::Refused`] where another is named and domains run: they hold locks of that one.
pub(super) fn choose(config: &Path, kind: LockKind, idle: bool) -> HostResult<bool> {
    const OP: &str = "use lock manager";
    let name = match kind {
        LockKind::Virtlockd => "lockd",
        LockKind::Sanlock => "sanlock",
    };
    match configured(config)?.as_deref() {
        Some(now) if now == name => return Ok(false),
        Some(other) if !idle => {
            let message = format!(
                "qemu.conf names {other}, and domains run here under it: move them away or stop \
                 them, then it is changed"
            );
            return Err(HostError::refused(OP, name, message));
        }
        _ => {}
    }
    let path = config.join("qemu.conf");
    let text = fs::read_to_string(&path).map_err(failed(OP, &path))?;
    let text = with_values(&text, &[("lock_manager", format!("\"{name}\""))]);
    replace(&path, text.as_bytes()).map_err(failed(OP, &path))?;
    Ok(true)
}

/// Points virtlockd's locks at the storage. True: that was not so before.
///
/// # Errors
/// [`HostError::Refused`] while the lockspace's storage is not mounted: virtlockd would make the
/// folder on the host's own disk, and locks there bind nobody else.
pub(super) fn set_lockspace(config: &Path, lockspace: &str) -> HostResult<bool> {
    const OP: &str = "use lockspace";
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
    let old = fs::read_to_string(&path).map_err(failed(OP, &path))?;
    let text = with_values(&old, &[("file_lockspace_dir", format!("\"{lockspace}\""))]);
    if text == old {
        return Ok(false);
    }
    replace(&path, text.as_bytes()).map_err(failed(OP, &path))?;
    Ok(true)
}

/// virtlockd listens; `run` is libvirt's run-time folder of QEMU.
pub(super) fn daemon_answers(run: &Path) -> HostResult<()> {
    let socket = run.parent().unwrap_or(run).join("virtlockd-sock");
    UnixStream::connect(&socket).map(drop).map_err(failed("reach virtlockd", &socket))
}

/// libvirt takes virtlockd's locks before vCPUs run and gives them back while they are suspended.
pub(super) fn held_while_running(domain: Option<&LiveDomain>) -> bool {
    domain.is_some_and(|domain| domain.state == LiveState::Running)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_manager_is_changed_only_where_no_domain_runs() {
        let folder = tempfile::tempdir().unwrap();
        let conf = folder.path().join("qemu.conf");
        let read = || fs::read_to_string(&conf).unwrap();
        fs::write(&conf, "user = \"root\"\n").unwrap();
        let choose = |kind, idle| choose(folder.path(), kind, idle);
        assert!(choose(LockKind::Virtlockd, false).unwrap(), "none was named, so none is held");
        assert_eq!(read(), "user = \"root\"\nlock_manager = \"lockd\"\n");
        assert!(!choose(LockKind::Virtlockd, true).unwrap());
        assert!(choose(LockKind::Sanlock, false).is_err());
        assert_eq!(kind(folder.path()).unwrap(), Some(LockKind::Virtlockd));
        assert!(choose(LockKind::Sanlock, true).unwrap());
        assert_eq!(read(), "user = \"root\"\nlock_manager = \"sanlock\"\n");
    }
}
