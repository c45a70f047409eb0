//! The counter of the API's history (safety §2.9): read with each turn of leadership, raised
//! before each certificate and placement.

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use stockade_crds::names::{LINEAGE_ANNOTATION, LINEAGE_LEASE};
use stockade_crds::v1alpha1::Lineage;

use crate::context::{Shared, locked, request};
use crate::error::ControllerError;

/// What this process knows of the API's history.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// How far the API says it goes; `None`: not read yet.
    pub(crate) now: Option<Lineage>,
    /// How far this process has seen it go.
    highest: Option<Lineage>,
}

impl Known {
    /// What this process remembers.
    pub(crate) fn highest(&self) -> Option<&Lineage> {
        self.highest.as_ref()
    }

    /// Takes what the API says; true: it went back.
    fn read(&mut self, found: Lineage) -> bool {
        let further = match &self.highest {
            Some(known) => known.uid == found.uid && known.counter <= found.counter,
            None => true,
        };
        if further {
            self.highest = Some(found.clone());
        }
        self.now = Some(found);
        !further
    }
}

/// Reads how far the API's history goes; the first time ever it begins one.
pub(crate) async fn read(shared: &Shared) -> Result<(), ControllerError> {
    let _turn = shared.lineage_turn.lock().await;
    let lease = match found(shared).await? {
        Some(lease) => lease,
        None if shared.leads().is_none() => return Ok(()),
        None => {
            let mut lease = Lease {
                metadata: ObjectMeta {
                    name: Some(LINEAGE_LEASE.to_owned()),
                    ..ObjectMeta::default()
                },
                spec: None,
            };
            set(&mut lease, 0);
            let call = api(shared);
            let params = PostParams::default();
            request(|| "beginning the history".into(), call.create(&params, &lease)).await?
        }
    };
    let now = pair(&lease);
    let mut known = locked(&shared.lineage);
    if known.now.as_ref() != Some(&now) {
        if known.read(now) {
            tracing::error!("the API went back: everything is listed anew");
            shared.relist.send_modify(|times| *times += 1);
        }
        // What was planned on another history is planned again.
        shared.fence_done.notify_one();
    }
    Ok(())
}

/// Raises the counter by one; true: the API was where the plan saw it, and now is one further.
pub(crate) async fn raise(
    shared: &Shared,
    planned: Option<&Lineage>,
) -> Result<bool, ControllerError> {
    match planned {
        Some(planned) => raise_to(shared, planned, planned.counter + 1).await,
        None => read(shared).await.map(|()| false),
    }
}

/// Sets the counter, if the API still is at `from`.
pub(crate) async fn raise_to(
    shared: &Shared,
    from: &Lineage,
    counter: i64,
) -> Result<bool, ControllerError> {
    let turn = shared.lineage_turn.lock().await;
    let lease = found(shared).await?.filter(|lease| pair(lease) == *from);
    let Some(mut lease) = lease else {
        drop(turn);
        return read(shared).await.map(|()| false);
    };
    set(&mut lease, counter);
    let call = api(shared);
    let params = PostParams::default();
    let call = call.replace(LINEAGE_LEASE, &params, &lease);
    let raised = request(|| "raising the history's counter".into(), call).await?;
    locked(&shared.lineage).read(pair(&raised));
    Ok(true)
}

fn api(shared: &Shared) -> Api<Lease> {
    Api::namespaced(shared.client(), &shared.context.namespace)
}

/// Read from the API itself, not from a watch: by quorum.
async fn found(shared: &Shared) -> Result<Option<Lease>, ControllerError> {
    let call = api(shared);
    request(|| "reading the history's counter".into(), call.get_opt(LINEAGE_LEASE)).await
}

fn set(lease: &mut Lease, counter: i64) {
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(LINEAGE_ANNOTATION.to_owned(), counter.to_string());
}

/// A counter that can't be read is below all.
fn pair(lease: &Lease) -> Lineage {
    let text = lease.metadata.annotations.as_ref().and_then(|a| a.get(LINEAGE_ANNOTATION));
    Lineage {
        uid: lease.metadata.uid.clone().unwrap_or_default(),
        counter: text.and_then(|t| t.parse().ok()).unwrap_or(-1),
    }
}
