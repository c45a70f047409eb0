//! What the hypervisor's hook lets pass (safety §2.6).

use super::types::JournalState;

/// What a hypervisor is about to do when it asks the hook.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HookOp {
    /// A process is about to be made.
    Prepare,
    /// It is about to run.
    Start,
    /// A saved image is about to be restored.
    Restore,
    /// A domain comes in by a live move.
    Migrate,
    /// Something that begins no process: started, stopped, release, reconnect, attach.
    Other,
}

impl HookOp {
    /// The operation that libvirt names in the hook's second argument.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        match text {
            "prepare" => Self::Prepare,
            "start" => Self::Start,
            "restore" => Self::Restore,
            "migrate" => Self::Migrate,
            _ => Self::Other,
        }
    }
}

/// Whether a domain may begin here.
///
/// `vm_uid` is the domain's UUID, `epoch` the one in its metadata (0: none), `boot` the
/// running boot, `disks` the paths of its writable disks.
///
/// # Errors
/// Why it may not, in a sentence for the hypervisor's log.
pub fn hook_allows(
    journal: &JournalState,
    vm_uid: &str,
    epoch: i64,
    boot: &str,
    op: HookOp,
    disks: &[String],
) -> Result<(), String> {
    if op == HookOp::Other {
        return Ok(());
    }
    if let Some(vm) = journal.vms.get(vm_uid) {
        if vm.boot_id != boot {
            return Err(format!(
                "the last order for VM {vm_uid} is for boot {}, this is boot {boot}",
                vm.boot_id
            ));
        }
        if vm.epoch != epoch {
            return Err(format!(
                "the order for VM {vm_uid} is for epoch {}, this is epoch {epoch}",
                vm.epoch
            ));
        }
        if !vm.open {
            return Err(format!("epoch {epoch} of VM {vm_uid} has no open order to start"));
        }
        return Ok(());
    }
    if epoch != 0 {
        return Err(format!("there is no order to start epoch {epoch} of VM {vm_uid} here"));
    }
    for (owner, vm) in &journal.vms {
        if let Some(disk) = disks.iter().find(|d| vm.disks.contains(d)) {
            return Err(format!("disk {disk} belongs to VM {owner}, which Stockade runs"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::types::JournalVm;
    use super::*;

    fn journal() -> JournalState {
        let vm = JournalVm {
            epoch: 3,
            boot_id: "b1".into(),
            open: true,
            disks: vec!["/vms/a.qcow2".into()],
            ..JournalVm::default()
        };
        JournalState { vms: [("u".to_owned(), vm)].into(), ..JournalState::default() }
    }

    #[test]
    fn only_the_open_order_starts() {
        let j = journal();
        assert!(hook_allows(&j, "u", 3, "b1", HookOp::Start, &[]).is_ok());
        for (epoch, boot) in [(2, "b1"), (4, "b1"), (0, "b1"), (3, "b0")] {
            assert!(hook_allows(&j, "u", epoch, boot, HookOp::Prepare, &[]).is_err());
        }
        let mut closed = journal();
        closed.vms.get_mut("u").expect("there").open = false;
        for op in [HookOp::Prepare, HookOp::Start, HookOp::Restore, HookOp::Migrate] {
            assert!(hook_allows(&closed, "u", 3, "b1", op, &[]).is_err());
        }
        assert!(hook_allows(&closed, "u", 3, "b1", HookOp::Other, &[]).is_ok());
    }

    #[test]
    fn an_unknown_vm_with_an_epoch_never_starts() {
        assert!(hook_allows(&journal(), "other", 1, "b1", HookOp::Start, &[]).is_err());
    }

    #[test]
    fn a_foreign_domain_may_run_but_not_on_our_disks() {
        let j = journal();
        assert!(hook_allows(&j, "f", 0, "b1", HookOp::Start, &["/x".into()]).is_ok());
        let ours = ["/vms/a.qcow2".to_owned()];
        assert!(hook_allows(&j, "f", 0, "b1", HookOp::Start, &ours).is_err());
    }
}
