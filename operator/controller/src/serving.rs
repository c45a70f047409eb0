//! The serving side of storages through the agents of the hosts that serve them.
//!
//! What is to be denied and broken is the plan's to say, in the serving host's HostAgent; here its
//! agent's answer is awaited. Where no host of ours serves, or one does not answer, the server's
//! own lease must run out; sanlock's leases can't be broken, and are always waited for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use futures::FutureExt;
use futures::future::BoxFuture;
use kube::api::ListParams;
use kube::{Api, Client};
use stockade_core::locks;
use stockade_core::storages::{denying_host, release_seconds};
use stockade_crds::names::{AGENT_OBJECT, host_namespace};
use stockade_crds::v1alpha1::{
    BootReference, ExportReport, HostAgent, LockKind, LockManager, SharedStorage,
};
use stockade_host::ports::{Clock, StorageServer};
use stockade_host::{HostError, HostResult};

use crate::context::request;

/// A serving host that has not answered for so long counts as a server of others (safety §6.2).
const ANSWER_MILLIS: u64 = 30_000;

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
    /// What a dead boot holds is dropped there; else it is o2cb's to recover.
    breaks: bool,
    /// Until what a silent host holds is free by itself.
    release_millis: u64,
    /// Until sanlock gives its leases away, whatever the server does; 0: it keeps none.
    sanlock_millis: u64,
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
        let managers: Api<LockManager> = Api::all(self.client.clone());
        let params = ListParams::default();
        let listed = request(|| "listing LockManagers".to_owned(), managers.list(&params)).await;
        let listed = listed.map_err(|error| HostError::failed(op, storage, error.to_string()))?;
        let here = listed.items.iter().filter(|manager| manager.spec.storage == storage);
        let kinds: Vec<LockKind> = here.map(|manager| manager.spec.kind).collect();
        let sanlock = kinds.iter().copied().map(locks::release_seconds).max().unwrap_or_default();
        let millis = |seconds: i32| u64::try_from(seconds).unwrap_or_default() * 1_000;
        Ok(Served {
            release_millis: millis(release_seconds(&object, kinds)),
            sanlock_millis: millis(sanlock),
            breaks: object.spec.nfs.is_some(),
            host: denying_host(&object).map(ToOwned::to_owned),
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

/// What can't be broken is waited for, from when it was first asked for: not before the proof.
fn wait(op: &'static str, storage: &str, what: &str, waited: u64, millis: u64) -> HostResult<()> {
    if waited >= millis {
        return Ok(());
    }
    // In tens: it is kept in a status, which is written when it changes.
    let seconds = (millis - waited).div_ceil(10_000) * 10;
    Err(HostError::refused(op, storage, format!("{what} are waited for, about {seconds} s more")))
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
                let message =
                    "this storage is served by others, or by AoE; its own lease must run out";
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
    fn admit<'a>(
        &'a self,
        storage: &'a str,
        _host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            asked.remove(&(storage.to_owned(), boot_id.to_owned()));
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
            wait(OP, storage, "sanlock's leases", waited, served.sanlock_millis)?;
            if let Some(server) = served.host.as_ref().filter(|_| served.breaks) {
                let report = self.report(OP, storage, server).await?;
                if let Some(report) = report.filter(|report| names(&report.denied, boot_id)) {
                    if names(&report.broken, boot_id) {
                        return Ok(());
                    }
                    let message = format!("{server} has not dropped them yet: {}", report.message);
                    return Err(HostError::unknown(OP, storage, message));
                }
            }
            wait(OP, storage, "its locks", waited, served.release_millis)
        }
        .boxed()
    }
}
