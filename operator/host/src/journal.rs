//! The agent's journal: one small document, replaced whole and fsynced.
//!
//! An agent that can't write it starts nothing (safety §2.8). libvirt's hook reads it.

use std::io;
use std::path::{Path, PathBuf};

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::error::{HostError, HostResult};
use crate::files;
use crate::ports::{JournalPort, JournalState};

/// File name of the journal within the agent's state folder.
const FILE: &str = "journal.json";

/// The journal in a folder of this machine's own disk.
#[derive(Clone, Debug)]
pub struct FileJournal {
    path: PathBuf,
}

impl FileJournal {
    /// The journal in the agent's state folder, which is made if it is missing.
    pub fn open(folder: &Path) -> HostResult<Self> {
        std::fs::create_dir_all(folder).map_err(files::failed("open journal", folder))?;
        Ok(Self { path: folder.join(FILE) })
    }

    /// Reads the journal in a state folder without a runtime; for the hook.
    pub fn read(folder: &Path) -> HostResult<JournalState> {
        read(&folder.join(FILE))
    }
}

/// A journal that is there but spoilt is an error: forgotten epochs would be obeyed again.
fn read(path: &Path) -> HostResult<JournalState> {
    match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(JournalState::default()),
        Err(error) => Err(files::failed("read journal", path)(error)),
        Ok(text) => serde_json::from_slice(&text).map_err(|error| {
            let target = path.display().to_string();
            HostError::failed("read journal", target, format!("it is spoilt: {error}"))
        }),
    }
}

impl JournalPort for FileJournal {
    fn load(&self) -> BoxFuture<'_, HostResult<JournalState>> {
        let path = self.path.clone();
        files::blocking("read journal", FILE, move || read(&path)).boxed()
    }

    fn store<'a>(&'a self, state: &'a JournalState) -> BoxFuture<'a, HostResult<()>> {
        let path = self.path.clone();
        let text = serde_json::to_vec_pretty(state);
        async move {
            let text =
                text.map_err(|error| HostError::failed("write journal", FILE, error.to_string()))?;
            files::blocking("write journal", FILE, move || {
                files::replace(&path, &text).map_err(files::failed("write journal", &path))
            })
            .await
        }
        .boxed()
    }
}
