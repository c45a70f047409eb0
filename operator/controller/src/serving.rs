//! The serving side of storages through the agents of the hosts that serve them.
//!
//! What is to be denied and broken is the plan's to say, in the serving host's HostAgent; here its
//! agent's answer is awaited. Where no host of ours serves, or one does not answer, the server's
//! own lease must run out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::{Api, Client};
use stockade_crds::names::{AGENT_OBJECT, host_namespace};
use stockade_crds::v1alpha1::{BootReference, ExportReport, HostAgent, SharedStorage};
use stockade_host::ports::{Clock, StorageServer};
use stockade_host::{HostError, HostResult};

use crate::context::request;

/// A serving host that has not answered for so long counts as a server of others (safety §6.2).
const ANSWER_MILLIS: u64 = 30_000;
/// A server drops the state of a client some time after its lease is over.
const AFTER_LEASE_MILLIS: u64 = 5_000;

/// Storages as their serving hosts' agents serve them.
pub struct ServingHosts {
    client: Client,
    clock: Arc<dyn Clock>,
    /// When a denial was first asked for, by storage and boot.
    asked: Mutex<BTreeMap<(String, String), u64>>,
}

/// Who serves a storage, and how.
struct Served {
    host: Option<String>,
    lease_millis: u64,
}

impl ServingHosts {
    /// Asks by this client; `clock` measures how long an answer is awaited.
    #[must_use]
    pub fn new(client: Client, clock: Arc<dyn Clock>) -> Self {
        Self { client, clock, asked: Mutex::default() }
    }

    /// Milliseconds since this was first asked for.
    fn waited(&self, storage: &str, boot_id: &str) -> u64 {
        let now = self.clock.monotonic_millis();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let first = asked.entry((storage.to_owned(), boot_id.to_owned())).or_insert(now);
        now.saturating_sub(*first)
    }

    async fn served(&self, op: &'static str, storage: &str) -> HostResult<Served> {
        let api: Api<SharedStorage> = Api::all(self.client.clone());
        let object = request(|| format!("reading SharedStorage {storage}"), api.get(storage)).await;
        let object = object.map_err(|error| HostError::failed(op, storage, error.to_string()))?;
        let nfs = object.spec.nfs;
        let lease = nfs.as_ref().map_or(90, |nfs| nfs.lease_seconds);
        Ok(Served {
            host: nfs.and_then(|nfs| nfs.served_by),
            lease_millis: u64::try_from(lease).unwrap_or(90) * 1_000,
        })
    }

    /// What the agent of the serving host says of the export, read now.
    async fn report(
        &self,
        op: &'static str,
        storage: &str,
        server: &str,
    ) -> HostResult<Option<ExportReport>> {
        let api: Api<HostAgent> = Api::namespaced(self.client.clone(), &host_namespace(server));
        let words = || format!("reading HostAgent of {server}");
        let agent = request(words, api.get_opt(AGENT_OBJECT)).await;
        let agent = agent.map_err(|error| HostError::failed(op, storage, error.to_string()))?;
        let exports = agent.and_then(|agent| agent.status).map(|status| status.exports);
        Ok(exports.unwrap_or_default().into_iter().find(|export| export.storage == storage))
    }
}

fn names(boots: &[BootReference], boot_id: &str) -> bool {
    boots.iter().any(|boot| boot.boot_id == boot_id)
}

impl StorageServer for ServingHosts {
    fn deny<'a>(
        &'a self,
        storage: &'a str,
        _host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            const OP: &str = "denial";
            let waited = self.waited(storage, boot_id);
            let Some(server) = self.served(OP, storage).await?.host else {
                let message = "this storage is served by others; its own lease must run out";
                return Err(HostError::refused(OP, storage, message));
            };
            let report = self.report(OP, storage, &server).await?;
            if report.as_ref().is_some_and(|report| names(&report.denied, boot_id)) {
                return Ok(());
            }
            if waited >= ANSWER_MILLIS {
                let message =
                    format!("{server} serves it and does not answer; its lease must run out");
                return Err(HostError::refused(OP, storage, message));
            }
            let why = report.map(|report| report.message).unwrap_or_default();
            Err(HostError::unknown(OP, storage, format!("{server} has not acknowledged it: {why}")))
        }
        .boxed()
    }

    /// The plan takes a host in again by itself, as soon as nothing denies it.
    fn admit<'a>(&'a self, storage: &'a str, _host: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.retain(|(name, _), _| name != storage);
            Ok(())
        }
        .boxed()
    }

    fn break_locks<'a>(
        &'a self,
        storage: &'a str,
        _host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            const OP: &str = "break locks";
            let waited = self.waited(storage, boot_id);
            let served = self.served(OP, storage).await?;
            if let Some(server) = &served.host {
                let report = self.report(OP, storage, server).await?;
                if let Some(report) = report.filter(|report| names(&report.denied, boot_id)) {
                    if names(&report.broken, boot_id) {
                        return Ok(());
                    }
                    let message = format!("{server} has not dropped them yet: {}", report.message);
                    return Err(HostError::unknown(OP, storage, message));
                }
            }
            let lease = served.lease_millis + AFTER_LEASE_MILLIS;
            if waited >= lease {
                return Ok(());
            }
            let seconds = (lease - waited).div_ceil(1_000);
            let message = format!("they are waited for, {seconds} s more");
            Err(HostError::refused(OP, storage, message))
        }
        .boxed()
    }
}
