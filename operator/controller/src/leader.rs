//! Leader election by our own rules: no wall clock decides, every write is a compare-and-swap,
//! and a term counts from before the request that won it.

use std::sync::Arc;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, PostParams};
use kube::core::ObjectMeta;
use stockade_core::world::Millis;

use crate::context::{Shared, locked, request};
use crate::lineage;
use crate::watch::chain;

/// Name of the leader's Lease unless [`crate::Context::lease`] says otherwise.
pub const LEASE_NAME: &str = "stockade-controller";
/// When the leader sent this renewal, in milliseconds on the clock of the process that holds the
/// Lease: how long its own beat took to come back tells how old what it watches is.
pub(crate) const SENT_ANNOTATION: &str = "stockade.dev/sent";
/// The leader writes this often.
const RENEW_MILLIS: Millis = 2_000;
/// A term ends this long after the last renewal was sent.
const TERM_MILLIS: Millis = 10_000;
/// Others wait this long, on their own clock, after the Lease last changed.
const WAIT_MILLIS: Millis = 15_000;

/// Leads when it can, for ever.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut seen: Option<(String, Millis)> = None;
    loop {
        // A standby must know as well that the API went back: its watches are then worth nothing.
        let turned = turn(&shared, &mut seen).await;
        let read = lineage::read(&shared).await;
        if let Err(error) = turned.and(read) {
            tracing::warn!(error = %chain(&error), "the leader's Lease was not renewed");
        }
        shared.context.clock.sleep(RENEW_MILLIS).await;
    }
}

fn api(shared: &Shared) -> Api<Lease> {
    Api::namespaced(shared.client(), &shared.context.namespace)
}

async fn turn(
    shared: &Shared,
    seen: &mut Option<(String, Millis)>,
) -> Result<(), crate::ControllerError> {
    let sent = shared.now();
    let leases = api(shared);
    let me = &shared.context.identity;
    let found =
        request(|| "reading the leader's Lease".into(), leases.get_opt(&shared.context.lease))
            .await?;
    let stamp = Timestamp::from_millisecond(shared.context.clock.wall_millis()).ok().map(MicroTime);
    let Some(mut lease) = found else {
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(shared.context.lease.clone()),
                annotations: Some([(SENT_ANNOTATION.to_owned(), shared.now().to_string())].into()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(me.clone()),
                lease_duration_seconds: Some(15),
                lease_transitions: Some(1),
                acquire_time: stamp.clone(),
                renew_time: stamp,
                ..LeaseSpec::default()
            }),
        };
        let params = PostParams::default();
        request(|| "creating the leader's Lease".into(), leases.create(&params, &lease)).await?;
        *locked(&shared.term) = Some(sent + TERM_MILLIS);
        return Ok(());
    };
    let version = lease.metadata.resource_version.clone().unwrap_or_default();
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    let holder = spec.holder_identity.clone().unwrap_or_default();
    let mine = holder == *me;
    if !mine && !holder.is_empty() {
        match seen {
            Some((known, at)) if *known == version => {
                if shared.now().saturating_sub(*at) <= WAIT_MILLIS {
                    return Ok(());
                }
            }
            _ => {
                *seen = Some((version, shared.now()));
                return Ok(());
            }
        }
    }
    if !mine {
        spec.holder_identity = Some(me.clone());
        spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0) + 1);
        spec.acquire_time.clone_from(&stamp);
    }
    spec.renew_time = stamp;
    let annotations = lease.metadata.annotations.get_or_insert_default();
    annotations.insert(SENT_ANNOTATION.to_owned(), shared.now().to_string());
    let params = PostParams::default();
    request(
        || "renewing the leader's Lease".into(),
        leases.replace(&shared.context.lease, &params, &lease),
    )
    .await?;
    *locked(&shared.term) = Some(sent + TERM_MILLIS);
    Ok(())
}

/// Gives the Lease back, so that a standby need not wait for it to run out.
pub(crate) async fn release(shared: &Shared) {
    if shared.leads().is_none() {
        return;
    }
    *locked(&shared.term) = None;
    let leases = api(shared);
    let Ok(Some(mut lease)) =
        request(|| "reading the leader's Lease".into(), leases.get_opt(&shared.context.lease))
            .await
    else {
        return;
    };
    let spec = lease.spec.get_or_insert_with(LeaseSpec::default);
    if spec.holder_identity.as_ref() != Some(&shared.context.identity) {
        return;
    }
    spec.holder_identity = Some(String::new());
    let params = PostParams::default();
    let done = leases.replace(&shared.context.lease, &params, &lease);
    if let Err(error) = request(|| "releasing the leader's Lease".into(), done).await {
        tracing::warn!(error = %chain(&error), "the leader's Lease was not released");
    }
}
