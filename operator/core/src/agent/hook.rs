//! What the hypervisor's hook lets pass (safety §2.6).

use stockade_crds::names::VARIABLES_SUFFIX;

use super::types::JournalState;
use crate::render::DomainView;

/// Whether a domain may begin here: one of ours only by an open order of this epoch and boot, with no
/// disk to write that the order does not name (what comes in by a move is described by its source), a
/// foreign one unless it names a UUID or a disk of ours, or the UEFI variables beside one.
///
/// `journal` is `None` if it can't be read; `claimed` says whether Stockade ever gave that path
/// to a VM.
///
/// # Errors
/// Why it may not, the end of a sentence that begins with the domain.
pub fn hook_allows(
    domain: &DomainView,
    journal: Option<&JournalState>,
    boot_id: &str,
    claimed: impl Fn(&str) -> bool,
) -> Result<(), String> {
    let Some(epoch) = domain.epoch else {
        let known = |path: &String| {
            let vms = journal.into_iter().flat_map(|journal| journal.vms.values());
            let disk = path.strip_suffix(VARIABLES_SUFFIX).unwrap_or(path);
            vms.flat_map(|vm| &vm.disks).any(|d| d == path || d == disk)
        };
        if journal.is_some_and(|journal| journal.vms.contains_key(&domain.uuid)) {
            return Err("its UUID is that of a VM of Stockade".into());
        }
        let mut paths = domain.writable();
        paths.extend((!domain.variables.is_empty()).then(|| domain.variables.clone()));
        let ours = paths.into_iter().find(|path| known(path) || claimed(path));
        return ours.map_or(Ok(()), |path| Err(format!("{path} is a disk of Stockade")));
    };
    let Some(journal) = journal else {
        return Err("the agent's journal can't be read".into());
    };
    let Some(vm) = journal.vms.get(&domain.uuid) else {
        return Err("no order for it was ever taken here".into());
    };
    if vm.boot_id != boot_id {
        return Err(format!("the order taken is for boot {}, this is {boot_id}", vm.boot_id));
    }
    if vm.epoch != epoch {
        return Err(format!("the order taken is for epoch {}, not for epoch {epoch}", vm.epoch));
    }
    if !vm.open {
        return Err(format!("its order for epoch {epoch} is not open"));
    }
    let strange = domain.writable().into_iter().find(|path| !vm.disks.contains(path));
    strange.map_or(Ok(()), |path| Err(format!("its order does not name the disk {path}")))
}

#[cfg(test)]
mod tests {
    use super::super::types::JournalVm;
    use super::*;
    use crate::render::ViewedDisk;

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
        hook_allows(domain, journal, boot, |path| path == "/srv/claimed.raw").is_ok()
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
    fn what_comes_in_brings_no_disk_that_its_order_does_not_name() {
        let open = journal(true);
        let with = |path: &str, read_only| {
            let disk = ViewedDisk { path: path.into(), read_only, ..ViewedDisk::default() };
            DomainView { disks: vec![disk], ..ours(7) }
        };
        assert!(asked(&with("/srv/db.raw", false), Some(&open), "boot"));
        assert!(asked(&with("/var/lib/stockade/seed.iso", true), Some(&open), "boot"));
        assert!(!asked(&with("/srv/other.raw", false), Some(&open), "boot"));
        assert!(!asked(&with("/dev/sda", false), Some(&open), "boot"));
    }

    #[test]
    fn a_foreign_domain_runs_unless_it_names_a_disk_or_a_uuid_of_ours() {
        let open = journal(true);
        assert!(asked(&foreign("/srv/their.raw"), Some(&open), "boot"));
        assert!(asked(&foreign("/srv/their.raw"), None, "boot"));
        assert!(!asked(&foreign("/srv/db.raw"), Some(&open), "boot"));
        assert!(!asked(&foreign("/srv/claimed.raw"), None, "boot"));
        assert!(!asked(&foreign("/srv/db.raw.nvram"), Some(&open), "boot"), "its UEFI variables");
        let variables = "/srv/db.raw.nvram".to_owned();
        let borrowed = DomainView { variables, ..foreign("/srv/their.raw") };
        assert!(!asked(&borrowed, Some(&open), "boot"), "our UEFI variables as its own");
        let stripped = DomainView { epoch: None, ..ours(7) };
        assert!(!asked(&stripped, Some(&open), "boot"), "ours without its metadata");
    }
}
