//! A Kubernetes API in this process, on virtual time, with faults.
//!
//! In: the requests that our controller and agents send through an ordinary [`kube::Client`].
//! Out: the answers that kube-apiserver would give, after a seeded delay. It serves GET, LIST,
//! WATCH, POST, PUT, merge PATCH and DELETE of our CRDs and of the built-in kinds we use, and
//! refuses by name whatever else is asked. `stockade-e2e` compares it with kube-apiserver.
//!
//! Deterministic: one seed, no clock but tokio's, no hash maps. A run's random numbers come
//! from one stream an identity, so that one client more disturbs no other.

mod admin;
mod builtin;
mod faults;
mod format;
mod kinds;
mod meta;
mod refusal;
mod request;
mod rules;
mod schema;
mod selector;
mod server;
mod store;
#[cfg(test)]
mod tests;
mod verbs;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::json;

pub use admin::Admin;
pub use faults::{Fault, FaultId, Faults, Scope};
pub use kinds::{Kinds, Shape};
pub use refusal::{Cause, Refusal};
pub use request::Verb;
pub use schema::{Place, SchemaError};
pub use server::Write;
pub use store::{Backup, Object};

/// Virtual time begins at 2026-01-01T00:00:00Z.
const EPOCH_SECONDS: i64 = 1_767_225_600;

/// The wall-clock time after so much virtual time, in whole seconds, as objects carry it.
#[must_use]
pub fn timestamp(elapsed: Duration) -> String {
    let seconds = EPOCH_SECONDS + i64::try_from(elapsed.as_secs()).unwrap_or_default();
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// The API.
#[derive(Clone)]
pub struct SimApi {
    shared: Arc<server::Shared>,
}

impl SimApi {
    /// An API that serves `crds`, with the namespaces that every cluster has. Virtual time
    /// begins now: call it inside the runtime.
    ///
    /// # Errors
    /// A CRD with a schema that is not served.
    pub fn new(crds: &[CustomResourceDefinition], seed: u64) -> Result<Self, SchemaError> {
        Ok(Self::serving(Arc::new(kinds::Kinds::new(crds)?), seed))
    }

    /// [`Self::new`] with Stockade's own CRDs.
    ///
    /// # Errors
    /// A CRD with a schema that is not served.
    pub fn ours(seed: u64) -> Result<Self, SchemaError> {
        Ok(Self::serving(kinds::Kinds::ours()?, seed))
    }

    fn serving(kinds: Arc<kinds::Kinds>, seed: u64) -> Self {
        let api = Self { shared: Arc::new(server::Shared::new(kinds, seed)) };
        for name in ["default", "kube-system"] {
            let namespace =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            // The first objects of an empty store: nothing can be in their way.
            let _ = api.admin().named("cluster").create(&namespace);
        }
        api.shared.lock().writes.clear();
        api
    }

    /// A client that comes as `identity` (`controller/0`, `host/h1`), whose faults are its own.
    #[must_use]
    pub fn client(&self, identity: &str) -> kube::Client {
        let identity: Arc<str> = Arc::from(identity);
        self.shared.lock().epochs.entry(identity.clone()).or_default();
        let endpoint = server::Endpoint { shared: self.shared.clone(), identity };
        kube::Client::new(endpoint, "default")
    }

    /// The simulator's own access.
    #[must_use]
    pub fn admin(&self) -> Admin {
        Admin { shared: self.shared.clone(), identity: Arc::from("admin") }
    }

    /// What may go wrong.
    #[must_use]
    pub fn faults(&self) -> Faults {
        Faults(self.shared.clone())
    }
}
