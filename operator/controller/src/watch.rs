//! The watches: one a kind, each with its own back-off, so that one that fails stalls no other.

use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use kube::api::Api;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::UnboundedSender;
use tokio::sync::watch;

use crate::cache::{Change, prune};
use crate::context::Shared;

/// Pause after a watch has failed. Fixed: many controllers don't share one API server.
const PAUSE: Duration = Duration::from_secs(1);

/// Every watch, for ever.
pub(crate) async fn all(shared: Arc<Shared>, out: UnboundedSender<Change>) {
    let mut watches: Vec<BoxFuture<'static, ()>> = Vec::new();
    macro_rules! watch {
        ($($kind:ident),*) => { $(
            let again = shared.relist.subscribe();
            let api = Api::all(shared.client());
            watches.push(Box::pin(one(api, again, out.clone(), Change::$kind)));
        )* };
    }
    watch!(
        VirtualMachine,
        VirtualMachineMigration,
        VirtualMachineConsole,
        Host,
        HostAgent,
        Domain,
        SharedStorage,
        LockManager,
        FenceDevice,
        HostFence,
        AvailabilityPolicy,
        Namespace,
        Lease
    );
    // One that has news is polled alone.
    let mut watches: FuturesUnordered<_> = watches.into_iter().collect();
    while watches.next().await.is_some() {}
}

/// One kind. It is listed anew when `again` changes: after the API went back a watch would wait in
/// silence for versions that come a second time.
async fn one<K>(
    api: Api<K>,
    mut again: watch::Receiver<u64>,
    out: UnboundedSender<Change>,
    wrap: fn(Event<K>) -> Change,
) where
    K: Resource + ResourceExt + Clone + DeserializeOwned + Debug + Send + 'static,
{
    loop {
        let mut events = watcher(api.clone(), watcher::Config::default()).boxed();
        loop {
            let event = tokio::select! {
                biased;
                _ = again.changed() => break,
                event = events.next() => event,
            };
            let Some(event) = event else { break };
            match event {
                Ok(event) => {
                    let event = event.modify(|object| prune(object.meta_mut()));
                    if out.send(wrap(event)).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "a watch failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// An error with its sources, printed once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
