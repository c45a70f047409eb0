//! libvirt's hook: the last gate before a QEMU starts (safety §2.6).
//!
//! libvirt runs it with the domain's XML on its standard input and gives up the start if it
//! exits with an error. It lets a domain of ours start only with an open order in the journal,
//! so that `virsh start` and calls that come too late are stopped; and it keeps foreign domains
//! away from our disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stockade_core::agent::hook_allows;
use stockade_core::render::read_domain;

use crate::error::{HostError, HostResult};
use crate::files::{failed, sync_folder};
use crate::{journal::FileJournal, records};

/// Operations of libvirt's hook that come before vCPUs can run and can still be refused.
///
/// The others tell of what has happened. Above all `reconnect` must never fail: libvirt would
/// kill the running domain.
const GATED: [&str; 4] = ["prepare", "start", "migrate", "restore"];

/// Where the hook finds what it decides by.
#[derive(Clone, Debug)]
pub struct HookContext {
    /// The agent's state folder with the journal.
    pub state: PathBuf,
    /// File with the id of the running boot.
    pub boot_id: PathBuf,
}

/// Decides one call of the hook; an error refuses it, and its text goes to libvirt's log.
///
/// `operation` is the hook's second argument, `xml` what libvirt wrote to its standard input.
/// Nothing is read for an operation that is only told of: it can't fail.
pub fn decide(context: &HookContext, operation: &str, xml: &str) -> HostResult<()> {
    if !GATED.contains(&operation) {
        return Ok(());
    }
    let refused = |message: String| HostError::refused("start", operation, message);
    let domain = read_domain(xml).map_err(|error| refused(error.to_string()))?;
    let journal = FileJournal::read(&context.state);
    let boot_id = fs::read_to_string(&context.boot_id)
        .map_err(|error| refused(format!("the boot id can't be read: {error}")))?;
    hook_allows(&domain, journal.as_ref().ok(), boot_id.trim(), |disk| {
        records::is_claimed(Path::new(disk))
    })
    .map_err(|message| HostError::refused("start", domain.name, message))
}

/// Installs the hook as `qemu.d/stockade` below libvirt's hook folder. True: it changed, and a
/// libvirtd that found no hook at its start must be restarted.
///
/// `command` is the program with its first arguments; it gets `--` and libvirt's arguments after
/// them.
pub fn install(hooks: &Path, command: &[String]) -> HostResult<bool> {
    const OP: &str = "install hook";
    let folder = hooks.join("qemu.d");
    fs::create_dir_all(&folder).map_err(failed(OP, &folder))?;
    let path = folder.join("stockade");
    let quoted: Vec<String> =
        command.iter().map(|part| format!("'{}'", part.replace('\'', r"'\''"))).collect();
    let text = format!("#!/bin/sh\nexec {} -- \"$@\"\n", quoted.join(" "));
    if fs::read(&path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    // Executable before it has its name: libvirt passes over a hook that is not.
    let new = folder.join(".stockade.new");
    let executable = fs::Permissions::from_mode(0o755);
    fs::write(&new, text).map_err(failed(OP, &new))?;
    fs::set_permissions(&new, executable).map_err(failed(OP, &new))?;
    fs::rename(&new, &path).and_then(|()| sync_folder(&folder)).map_err(failed(OP, &path))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn news_about_a_running_domain_is_never_refused() {
        let context = HookContext { state: "/nonexistent".into(), boot_id: "/nonexistent".into() };
        for operation in ["started", "stopped", "release", "reconnect", "attach"] {
            assert!(decide(&context, operation, "no xml").is_ok());
        }
        assert!(decide(&context, "prepare", "no xml").is_err());
    }
}
