//! The journal, shared by the tasks of all VMs.

use std::sync::{Arc, Mutex};

use stockade_core::agent::types::{JournalState, JournalVm};
use stockade_host::ports::JournalPort;

use crate::context::{locked, timed};

/// The journal: what is in memory is what was last known to be stored.
pub(crate) struct Journal {
    port: Arc<dyn JournalPort>,
    writer: tokio::sync::Mutex<()>,
    state: Mutex<Option<JournalState>>,
}

impl Journal {
    pub(crate) fn new(port: Arc<dyn JournalPort>) -> Self {
        Self { port, writer: tokio::sync::Mutex::new(()), state: Mutex::default() }
    }

    /// Reads it unless that was done. Reading it also proves that it can be written.
    pub(crate) async fn load(&self) {
        let _writer = self.writer.lock().await;
        if locked(&self.state).is_some() {
            return;
        }
        let loaded = match timed("load", "journal", 10, self.port.load()).await {
            Ok(state) => match timed("store", "journal", 10, self.port.store(&state)).await {
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
            timed("store", "journal", 10, self.port.store(&next))
                .await
                .map_err(|error| error.to_string())?;
        }
        *locked(&self.state) = Some(next);
        Ok(())
    }
}
