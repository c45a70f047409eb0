//! What the driver remembers of processes and of starts while the machine is up, whatever becomes
//! of the agent.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use crate::error::HostResult;
use crate::files::{failed, remove, replace_for_this_boot};
use crate::ports::Presence;
use crate::process::{ProcessId, is_populated, qemus_of};

/// The QEMU of one epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct QemuRecord {
    pub(super) vm_uid: String,
    pub(super) epoch: i64,
    boot_id: String,
    /// The process, once it was seen.
    pub(super) process: Option<ProcessId>,
    /// The cgroup that libvirt made for it.
    cgroup: Option<PathBuf>,
    /// A start whose answer is not known: it can take effect while this daemon lives.
    pub(super) pending_in: Option<Pending>,
    /// It comes, or came, in by a live move and was not resumed yet.
    pub(super) incoming: bool,
}

/// Which daemon has a call that may still take effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Pending {
    /// This process.
    Daemon(ProcessId),
    /// It could not be told; the call is over with the boot.
    Unidentified,
}

/// The folder of records, one a VM and epoch.
#[derive(Clone, Debug)]
pub(super) struct Records {
    folder: PathBuf,
    boot_id: String,
    /// Held from reading a record until it is written: a look at the domains and a start that has
    /// just returned both note what they saw.
    writing: Arc<Mutex<()>>,
}

impl Records {
    /// Opens the folder and forgets the processes of earlier boots: none of them can be left.
    pub(super) fn open(state: &Path, boot_id: &str) -> HostResult<Self> {
        let folder = state.join("qemus");
        fs::create_dir_all(&folder).map_err(failed("open records", &folder))?;
        let records = Self { folder, boot_id: boot_id.to_owned(), writing: Arc::default() };
        for record in records.all() {
            if record.boot_id != boot_id {
                records.forget(&record.vm_uid, record.epoch)?;
            }
        }
        Ok(records)
    }

    fn path(&self, vm_uid: &str, epoch: i64) -> PathBuf {
        self.folder.join(format!("{vm_uid}.{epoch}.json"))
    }

    /// Every record of this boot and of earlier ones.
    pub(super) fn all(&self) -> Vec<QemuRecord> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let texts = entries.filter_map(|entry| fs::read(entry.path()).ok());
        texts.filter_map(|text| serde_json::from_slice(&text).ok()).collect()
    }

    pub(super) fn of(&self, vm_uid: &str) -> Vec<QemuRecord> {
        self.all().into_iter().filter(|record| record.vm_uid == vm_uid).collect()
    }

    pub(super) fn get(&self, vm_uid: &str, epoch: i64) -> Option<QemuRecord> {
        serde_json::from_slice(&fs::read(self.path(vm_uid, epoch)).ok()?).ok()
    }

    fn writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, record: &QemuRecord) -> HostResult<()> {
        let path = self.path(&record.vm_uid, record.epoch);
        let text = serde_json::to_vec(record).unwrap_or_default();
        // Processes and calls end with the boot, so no record has to outlive it.
        replace_for_this_boot(&path, &text).map_err(failed("record process", &path))
    }

    pub(super) fn forget(&self, vm_uid: &str, epoch: i64) -> HostResult<()> {
        let path = self.path(vm_uid, epoch);
        remove(&path).map_err(failed("forget process", &path))
    }

    /// Remembers that a start is about to be asked of the daemon.
    ///
    /// Earlier epochs of the VM that are gone are forgotten.
    pub(super) fn begin(&self, vm_uid: &str, epoch: i64, pending: Pending) -> HostResult<()> {
        for old in self.of(vm_uid).into_iter().filter(|record| record.epoch < epoch) {
            if self.presence(vm_uid, old.epoch) == Presence::Gone {
                self.forget(vm_uid, old.epoch)?;
            }
        }
        let _writing = self.writing();
        let record = QemuRecord {
            pending_in: Some(pending),
            ..self.get(vm_uid, epoch).unwrap_or_else(|| self.fresh(vm_uid, epoch))
        };
        self.put(&record)
    }

    /// Remembers that a live move may come in.
    pub(super) fn expect_incoming(&self, vm_uid: &str, epoch: i64) -> HostResult<()> {
        let _writing = self.writing();
        self.put(&QemuRecord { incoming: true, ..self.fresh(vm_uid, epoch) })
    }

    /// Remembers that the answer of a start has come.
    pub(super) fn answered(&self, vm_uid: &str, epoch: i64) -> HostResult<()> {
        let _writing = self.writing();
        match self.get(vm_uid, epoch) {
            Some(record) => self.put(&QemuRecord { pending_in: None, ..record }),
            None => Ok(()),
        }
    }

    /// Remembers that an incoming domain was resumed.
    pub(super) fn resumed(&self, vm_uid: &str) -> HostResult<()> {
        let _writing = self.writing();
        for record in self.of(vm_uid).into_iter().filter(|record| record.incoming) {
            self.put(&QemuRecord { incoming: false, ..record })?;
        }
        Ok(())
    }

    /// Remembers which process runs an epoch.
    pub(super) fn saw(&self, vm_uid: &str, epoch: i64, process: ProcessId) -> HostResult<()> {
        let _writing = self.writing();
        let old = self.get(vm_uid, epoch);
        if old.as_ref().is_some_and(|old| old.process.as_ref() == Some(&process)) {
            return Ok(());
        }
        let cgroup = process.scope();
        let record = old.unwrap_or_else(|| self.fresh(vm_uid, epoch));
        self.put(&QemuRecord { process: Some(process), cgroup, ..record })
    }

    fn fresh(&self, vm_uid: &str, epoch: i64) -> QemuRecord {
        QemuRecord {
            vm_uid: vm_uid.to_owned(),
            epoch,
            boot_id: self.boot_id.clone(),
            process: None,
            cgroup: None,
            pending_in: None,
            incoming: false,
        }
    }

    /// Whether anything of an epoch is there, by the kernel's word alone.
    pub(super) fn presence(&self, vm_uid: &str, epoch: i64) -> Presence {
        let records = self.of(vm_uid);
        let own = records.iter().find(|record| record.epoch == epoch);
        if let Some(record) = own {
            let there = record.process.as_ref().is_some_and(ProcessId::is_there);
            if there || record.cgroup.as_deref().is_some_and(is_populated) {
                return Presence::Present;
            }
        }
        let Ok(found) = qemus_of(vm_uid) else { return Presence::Unknown };
        let others = |process: &ProcessId| {
            let mut others = records.iter().filter(|record| record.epoch != epoch);
            others.any(|record| record.process.as_ref() == Some(process))
        };
        if found.iter().any(|process| !others(process)) {
            return Presence::Present;
        }
        // A call that may still take effect in a daemon that lives: nobody can say.
        match own.and_then(|record| record.pending_in.as_ref()) {
            Some(Pending::Daemon(daemon)) if !daemon.is_there() => Presence::Gone,
            Some(_) => Presence::Unknown,
            None => Presence::Gone,
        }
    }

    /// Every process of a VM that there is to kill for this epoch.
    pub(super) fn processes(&self, vm_uid: &str, epoch: i64) -> Vec<ProcessId> {
        let records = self.of(vm_uid);
        let of_other = |process: &ProcessId| {
            let mut others = records.iter().filter(|record| record.epoch != epoch);
            others.any(|record| record.process.as_ref() == Some(process))
        };
        let mut found = qemus_of(vm_uid).unwrap_or_default();
        found.extend(self.get(vm_uid, epoch).and_then(|record| record.process));
        found.retain(|process| !of_other(process));
        found
    }
}
