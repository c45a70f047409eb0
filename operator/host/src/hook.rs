//! libvirt's hook: the last gate before a QEMU starts (safety §2.6).
//!
//! libvirt runs it with the domain's XML on its standard input and gives up the start if it
//! exits with an error. It lets a domain of ours start only with an open order in the journal,
//! so that `virsh start` and calls that come too late are stopped; and it keeps foreign domains
//! away from our disks.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use stockade_core::render::{DomainView, read_domain};

use crate::error::{HostError, HostResult};
use crate::files::{failed, sync_folder};
use crate::ports::JournalState;
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
    judge(&domain, journal.as_ref().ok(), boot_id.trim(), &|disk| {
        records::is_claimed(Path::new(disk))
    })
    .map_err(|message| HostError::refused("start", domain.name, message))
}

/// The decision itself. `journal` is `None` if it can't be read; `claimed` says whether
/// Stockade ever gave that path to a VM.
fn judge(
    domain: &DomainView,
    journal: Option<&JournalState>,
    boot_id: &str,
    claimed: &dyn Fn(&str) -> bool,
) -> Result<(), String> {
    let Some(epoch) = domain.epoch else {
        let known = |path: &String| {
            let vms = journal.into_iter().flat_map(|journal| journal.vms.values());
            vms.flat_map(|vm| &vm.disks).any(|disk| disk == path)
        };
        if journal.is_some_and(|journal| journal.vms.contains_key(&domain.uuid)) {
            return Err("its UUID is that of a VM of Stockade".into());
        }
        let ours = domain.writable().into_iter().find(|path| known(path) || claimed(path));
        return ours.map_or(Ok(()), |path| Err(format!("{path} is a disk of Stockade")));
    };
    let Some(journal) = journal else {
        return Err("the agent's journal can't be read".into());
    };
    let Some(vm) = journal.vms.get(&domain.uuid) else {
        return Err("no order for it was ever taken here".into());
    };
    if (vm.epoch, vm.boot_id.as_str()) != (epoch, boot_id) {
        return Err(format!("the order taken is for epoch {}, not for epoch {epoch}", vm.epoch));
    }
    if !vm.open {
        return Err(format!("its order for epoch {epoch} is not open"));
    }
    Ok(())
}

/// Installs the hook as `qemu.d/stockade` below libvirt's hook folder. True: it changed, and a
/// libvirtd that found no hook at its start must be restarted.
///
/// `agent` is the program with its first arguments; it gets `hook` and libvirt's arguments
/// after them.
pub fn install(hooks: &Path, agent: &[String]) -> HostResult<bool> {
    const OP: &str = "install hook";
    let folder = hooks.join("qemu.d");
    fs::create_dir_all(&folder).map_err(failed(OP, &folder))?;
    let path = folder.join("stockade");
    let quoted: Vec<String> =
        agent.iter().map(|part| format!("'{}'", part.replace('\'', r"'\''"))).collect();
    let text = format!("#!/bin/sh\nexec {} hook \"$@\"\n", quoted.join(" "));
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
    use crate::ports::JournalVm;
    use stockade_core::render::ViewedDisk;

    const UID: &str = "6a1b2c3d-0000-4000-8000-000000000001";

    fn ours(epoch: i64) -> DomainView {
        DomainView {
            name: "shop.db".into(),
            uuid: UID.into(),
            epoch: Some(epoch),
            boot_id: "boot".into(),
            ..DomainView::default()
        }
    }

    fn foreign(path: &str) -> DomainView {
        let disk = ViewedDisk { path: path.into(), ..ViewedDisk::default() };
        DomainView { uuid: "other".into(), disks: vec![disk], ..DomainView::default() }
    }

    fn journal(open: bool) -> JournalState {
        let vm = JournalVm {
            epoch: 7,
            boot_id: "boot".into(),
            open,
            disks: vec!["/srv/db.raw".into()],
            ..JournalVm::default()
        };
        JournalState { vms: [(UID.to_owned(), vm)].into(), ..JournalState::default() }
    }

    fn asked(domain: &DomainView, journal: Option<&JournalState>, boot: &str) -> bool {
        judge(domain, journal, boot, &|path| path == "/srv/claimed.raw").is_ok()
    }

    #[test]
    fn only_the_open_order_of_this_epoch_and_this_boot_starts() {
        let open = journal(true);
        assert!(asked(&ours(7), Some(&open), "boot"));
        assert!(!asked(&ours(6), Some(&open), "boot"), "an earlier epoch");
        assert!(!asked(&ours(8), Some(&open), "boot"), "a later epoch");
        assert!(!asked(&ours(7), Some(&open), "next-boot"), "an order of an earlier boot");
        assert!(!asked(&ours(7), Some(&journal(false)), "boot"), "a closed order");
        assert!(!asked(&ours(7), Some(&JournalState::default()), "boot"), "no order");
        assert!(!asked(&ours(7), None, "boot"), "no journal");
    }

    #[test]
    fn a_foreign_domain_runs_unless_it_names_a_disk_or_a_uuid_of_ours() {
        let open = journal(true);
        assert!(asked(&foreign("/srv/their.raw"), Some(&open), "boot"));
        assert!(asked(&foreign("/srv/their.raw"), None, "boot"));
        assert!(!asked(&foreign("/srv/db.raw"), Some(&open), "boot"));
        assert!(!asked(&foreign("/srv/claimed.raw"), None, "boot"));
        let stripped = DomainView { epoch: None, ..ours(7) };
        assert!(!asked(&stripped, Some(&open), "boot"), "ours without its metadata");
    }

    #[test]
    fn news_about_a_running_domain_is_never_refused() {
        let context = HookContext { state: "/nonexistent".into(), boot_id: "/nonexistent".into() };
        for operation in ["started", "stopped", "release", "reconnect", "attach"] {
            assert!(decide(&context, operation, "no xml").is_ok());
        }
        assert!(decide(&context, "prepare", "no xml").is_err());
    }
}
