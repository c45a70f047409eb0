//! The Lease: this host's path of life through the API. It goes on whatever a VM does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use kube::core::ObjectMeta;
use serde_json::json;
use stockade_crds::names::{AGENT_OBJECT, BEATS_ANNOTATION, LINEAGE_ANNOTATION};

use crate::context::{Context, locked, request};
use crate::looks::Seen;

/// Annotation of the Lease: measured use, `{vm uid: [thousandths of a CPU, MiB]}`.
const USAGE_ANNOTATION: &str = "stockade.dev/usage";

/// How long a restart may take before the host's silence counts: an upgrade of the package on a
/// slow machine.
const RESTART_SECONDS: i32 = 60;
/// How long the announcement may take: systemd waits for the agent to end.
const LEAVE_LIMIT: Duration = Duration::from_secs(2);

/// Renews the Lease every `heartbeatSeconds`, for ever.
pub(crate) async fn run(context: Arc<Context>) {
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), &context.namespace);
    let mut known: Option<Lease> = None;
    let mut failing = true;
    loop {
        let sent = context.now();
        let interval = match context.joined_spec() {
            None => 1_000,
            Some(spec) => {
                match beat(&context, &leases, known.take(), spec.heartbeat_seconds).await {
                    Ok(lease) => {
                        known = Some(lease);
                        context.ports.watchdog.api_renewed(sent);
                        *locked(&context.renewed) = sent;
                        if std::mem::take(&mut failing) {
                            context.api_back.notify_one();
                        }
                    }
                    Err(error) => {
                        failing = true;
                        tracing::warn!(%error, "the heartbeat was not acknowledged");
                    }
                }
                context.interval()
            }
        };
        let due = sent.saturating_add(interval);
        tokio::select! {
            biased;
            // A beat of another host is missed, or comes again: that is told at once.
            () = context.beat_now.notified() => {}
            () = context.ports.clock.sleep(due.saturating_sub(context.now()).max(50)) => {}
        }
    }
}

/// Says with a last beat that this agent is being restarted, so that its silence is no sign of
/// death for a while. A machine that goes down says nothing of the kind.
pub(crate) async fn leave(context: &Context) {
    if context.ports.machine.going_down().is_some() || context.joined_spec().is_none() {
        return;
    }
    let leases: Api<Lease> = Api::namespaced(context.client.clone(), &context.namespace);
    let said = beat(context, &leases, None, RESTART_SECONDS);
    if let Ok(Err(error)) = tokio::time::timeout(LEAVE_LIMIT, said).await {
        tracing::info!(%error, "the restart was not announced");
    }
}

async fn beat(
    context: &Context,
    leases: &Api<Lease>,
    known: Option<Lease>,
    heartbeat_seconds: i32,
) -> Result<Lease, String> {
    let params = PostParams::default();
    let base = match known {
        Some(lease) => Some(lease),
        None => request(leases.get_opt(AGENT_OBJECT)).await?,
    };
    let exists = base.is_some();
    let lease = renewed(context, base.unwrap_or_default(), heartbeat_seconds);
    if exists {
        request(leases.replace(AGENT_OBJECT, &params, &lease)).await
    } else {
        request(leases.create(&params, &lease)).await
    }
}

fn renewed(context: &Context, base: Lease, heartbeat_seconds: i32) -> Lease {
    let beats: BTreeMap<String, BTreeMap<String, serde_json::Value>> = locked(&context.looks)
        .iter()
        .map(|(storage, look)| {
            let told = |seen: &Seen| {
                json!({
                    "boot": seen.beat.boot_id,
                    "counter": seen.beat.counter,
                    "still": look.still(seen),
                })
            };
            let hosts = look.beats.iter().map(|(uid, seen)| (uid.clone(), told(seen))).collect();
            (storage.clone(), hosts)
        })
        .collect();
    let mut metadata = ObjectMeta { name: Some(AGENT_OBJECT.into()), ..base.metadata };
    let annotations = metadata.annotations.get_or_insert_default();
    annotations.insert(BEATS_ANNOTATION.into(), json!(beats).to_string());
    if let Some(lineage) = context.journal.lineage() {
        annotations.insert(LINEAGE_ANNOTATION.into(), lineage.to_string());
    }
    let usage: BTreeMap<String, [i64; 2]> = locked(&context.usage)
        .iter()
        .map(|(uid, (cpu, mem))| (uid.clone(), [*cpu, *mem]))
        .collect();
    annotations.insert(USAGE_ANNOTATION.into(), json!(usage).to_string());
    let time = k8s_openapi::jiff::Timestamp::from_millisecond(context.ports.clock.wall_millis());
    let spec = base.spec.unwrap_or_default();
    Lease {
        metadata,
        spec: Some(LeaseSpec {
            holder_identity: Some(format!("{}/{}", context.host_uid, context.boot_id)),
            lease_duration_seconds: Some(heartbeat_seconds.max(1)),
            renew_time: time.ok().map(MicroTime),
            ..spec
        }),
    }
}
