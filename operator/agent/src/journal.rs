//! The journal, shared by the tasks of all VMs.

use std::sync::{Arc, Mutex};

use stockade_core::agent::types::{JournalState, JournalVm};
use stockade_crds::names::LINEAGE_ANNOTATION;
use stockade_crds::v1alpha1::{Domain, Lineage};
use stockade_host::error::HostResult;
use stockade_host::ports::JournalPort;

use crate::context::{locked, timed};

/// The journal: what is in memory is what was last known to be stored.
pub(crate) struct Journal {
    port: Arc<dyn JournalPort>,
    /// Safety §2.8; a test drops it: what can't be stored is remembered all the same.
    guarded: bool,
    writer: tokio::sync::Mutex<()>,
    state: Mutex<Option<JournalState>>,
    /// The history of the newest order seen; it is stored with the next change.
    noted: Mutex<Option<Lineage>>,
}

impl Journal {
    pub(crate) fn new(port: Arc<dyn JournalPort>, guarded: bool) -> Self {
        Self {
            port,
            guarded,
            writer: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
            noted: Mutex::default(),
        }
    }

    /// Reads it unless that was done. Reading it also proves that it can be written.
    pub(crate) async fn load(&self) {
        let _writer = self.writer.lock().await;
        if locked(&self.state).is_some() {
            return;
        }
        let loaded = match timed("load", "journal", 10, self.port.load()).await {
            Ok(state) => match self.store(&state).await {
                Ok(()) => state,
                Err(error) => return tracing::error!(%error, "the journal can't be written"),
            },
            Err(error) => return tracing::error!(%error, "the journal can't be read"),
        };
        *locked(&self.state) = Some(loaded);
    }

    pub(crate) fn state(&self) -> Option<JournalState> {
        locked(&self.state).clone()
    }

    pub(crate) fn vm(&self, uid: &str) -> Option<JournalVm> {
        locked(&self.state).as_ref()?.vms.get(uid).cloned()
    }

    /// Notes the history of the API in which an order was given (safety §2.9). Another uid is
    /// another history: the controller gives no order in it before a person has resumed.
    pub(crate) fn note(&self, order: &Domain) {
        let text = order.metadata.annotations.as_ref().and_then(|a| a.get(LINEAGE_ANNOTATION));
        let Some(given) = text.and_then(|text| text.parse::<Lineage>().ok()) else { return };
        let known = self.lineage();
        let lower = known.is_some_and(|k| k.uid == given.uid && k.counter >= given.counter);
        if !lower {
            *locked(&self.noted) = Some(given);
        }
    }

    /// The highest history known here.
    pub(crate) fn lineage(&self) -> Option<Lineage> {
        let noted = locked(&self.noted).clone();
        noted.or_else(|| locked(&self.state).as_ref()?.lineage.clone())
    }

    /// As [`update`](Self::update), of what nothing speaks against.
    pub(crate) async fn set(
        &self,
        uid: &str,
        change: impl FnOnce(&mut JournalVm),
    ) -> Result<(), String> {
        let change = |vm: &mut JournalVm| {
            change(vm);
            Ok(())
        };
        self.update(uid, change).await
    }

    /// Changes what is remembered of one VM; returns once that is on the disk.
    pub(crate) async fn update(
        &self,
        uid: &str,
        change: impl FnOnce(&mut JournalVm) -> Result<(), String>,
    ) -> Result<(), String> {
        let _writer = self.writer.lock().await;
        let mut next = self.state().ok_or("the journal can't be used")?;
        let vm = next.vms.entry(uid.to_owned()).or_default();
        let before = vm.clone();
        change(vm)?;
        if *vm != before {
            next.lineage = self.lineage();
            self.store(&next).await.map_err(|error| error.to_string())?;
        }
        *locked(&self.state) = Some(next);
        Ok(())
    }

    async fn store(&self, state: &JournalState) -> HostResult<()> {
        let stored = timed("store", "journal", 10, self.port.store(state)).await;
        if self.guarded { stored } else { Ok(()) }
    }
}
