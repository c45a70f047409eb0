//! What every part of the controller shares.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kube::Client;
use stockade_core::certificates::Authority;
use stockade_core::world::{FenceRecord, Guards, Millis, ServerCalls};
use stockade_crds::v1alpha1::MoveIdentity;
use stockade_host::ports::{Clock, FenceRunner, StorageServer};
use tokio::sync::{Notify, watch};

use crate::error::ControllerError;
use crate::lineage;
use crate::observed::Observed;

/// Longest time that one API request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// What a controller is started with.
#[derive(Clone)]
pub struct Context {
    /// The API; built without retries of its own.
    pub client: Client,
    /// Unique for each start of the process: the holder in the leader's Lease.
    pub identity: String,
    /// Its machine's time.
    pub clock: Arc<dyn Clock>,
    /// Runs fence devices; `None`: none can be run here, and nothing is fenced by power.
    pub fence: Option<Arc<dyn FenceRunner>>,
    /// The serving side of storages.
    pub storage_server: Option<Arc<dyn StorageServer>>,
    /// Namespace of the controller's Lease and of the fence secrets.
    pub namespace: String,
    /// Name of the Lease by which one of several controllers leads: [`crate::LEASE_NAME`].
    pub lease: String,
    /// Identity of the cluster, named by the marker on each storage.
    pub cluster_id: String,
    /// All on in production.
    pub guards: Guards,
}

/// The context with what changes while it runs.
pub(crate) struct Shared {
    pub(crate) context: Context,
    pub(crate) observed: Arc<Observed>,
    /// Until when this process leads.
    pub(crate) term: Mutex<Option<Millis>>,
    pub(crate) fence_log: Mutex<VecDeque<FenceRecord>>,
    pub(crate) server: Mutex<ServerCalls>,
    pub(crate) fence_done: Notify,
    /// The authority for live moves, and when it was read.
    pub(crate) authority: Mutex<Option<(Authority, Millis)>>,
    /// What was signed for hosts, until their HostAgents say so.
    pub(crate) identities: Mutex<BTreeMap<String, MoveIdentity>>,
    /// Changes when everything is to be listed anew.
    pub(crate) relist: watch::Sender<u64>,
    pub(crate) lineage: Mutex<lineage::Known>,
    /// Held while the history's counter is read and written.
    pub(crate) lineage_turn: tokio::sync::Mutex<()>,
    /// Why the secret of a VM's seed could not be had, and when: by VM uid.
    pub(crate) seed_refusals: Mutex<BTreeMap<String, (Millis, String)>>,
    /// Seed secrets that were removed: host, VM uid, epoch.
    pub(crate) seeds_gone: Mutex<BTreeSet<(String, String, i64)>>,
}

impl Shared {
    pub(crate) fn new(context: Context, observed: Arc<Observed>) -> Self {
        Self {
            context,
            observed,
            term: Mutex::new(None),
            fence_log: Mutex::new(VecDeque::new()),
            server: Mutex::new(ServerCalls::default()),
            fence_done: Notify::new(),
            authority: Mutex::default(),
            identities: Mutex::default(),
            relist: watch::Sender::new(0),
            lineage: Mutex::default(),
            lineage_turn: tokio::sync::Mutex::new(()),
            seed_refusals: Mutex::default(),
            seeds_gone: Mutex::default(),
        }
    }

    pub(crate) fn now(&self) -> Millis {
        self.context.clock.monotonic_millis()
    }

    /// Asked before every write: until when this process leads, if it does.
    pub(crate) fn leads(&self) -> Option<Millis> {
        locked(&self.term).filter(|until| self.now() < *until)
    }

    pub(crate) fn client(&self) -> Client {
        self.context.client.clone()
    }
}

/// A lock whose holder can't have broken what it guards: every section is a plain assignment.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request within its time.
pub(crate) async fn request<T>(
    what: impl FnOnce() -> String,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ControllerError> {
    match tokio::time::timeout(REQUEST_TIMEOUT, call).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(source)) => Err(ControllerError::Api { what: what(), source }),
        Err(_) => Err(ControllerError::TimedOut { what: what() }),
    }
}
