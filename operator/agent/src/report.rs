//! Writes statuses, on change only.

use std::sync::Arc;

use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};
use stockade_crds::names::AGENT_OBJECT;
use stockade_crds::v1alpha1::{DomainStatus, HostAgentStatus};

use crate::context::{Context, request};

/// Optional fields of a status: left out when absent, so they are cleared by name.
const DOMAIN_OPTIONAL: [&str; 4] = ["end", "lock", "reset", "migration"];
/// The same for a host.
const HOST_OPTIONAL: [&str; 5] = ["lock", "selfFence", "goingDown", "lineage", "moveRequests"];

/// Statuses to write.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// Name of the Domain and its status.
    pub(crate) domains: Vec<(String, DomainStatus)>,
    /// Status of the HostAgent.
    pub(crate) host: Option<HostAgentStatus>,
}

/// What became of them.
#[derive(Debug, Default)]
pub(crate) struct Reported {
    /// Acknowledged, with the resource version.
    pub(crate) domains: Vec<(String, DomainStatus, u64)>,
    /// Acknowledged.
    pub(crate) host: Option<HostAgentStatus>,
    /// Something was not acknowledged.
    pub(crate) failed: bool,
    /// The host's status was written, or was not: no answer came.
    pub(crate) host_unsure: bool,
}

/// Writes them, several at once.
pub(crate) async fn report(context: Arc<Context>, report: Report) -> Reported {
    let mut reported = Reported::default();
    let params = PatchParams::default();
    for chunk in report.domains.chunks(8) {
        let writes = chunk.iter().map(|(name, status)| {
            let patch = merge_patch(&json!(status), &DOMAIN_OPTIONAL);
            let api = context.domains();
            let params = &params;
            async move {
                let call = api.patch_status(name, params, &patch);
                (name, status, request(call).await)
            }
        });
        for (name, status, result) in futures::future::join_all(writes).await {
            match result {
                Ok(domain) => {
                    let version = domain.metadata.resource_version.as_deref();
                    let version = version.and_then(|v| v.parse().ok()).unwrap_or(0);
                    reported.domains.push((name.clone(), status.clone(), version));
                }
                Err(error) => {
                    reported.failed = true;
                    tracing::warn!(error, domain = name, "a status was not written");
                }
            }
        }
    }
    // The host's own word comes last: that this boot is over also covers its VMs.
    if let Some(status) = report.host {
        let patch = merge_patch(&json!(status), &HOST_OPTIONAL);
        let api = context.agents();
        let call = api.patch_status(AGENT_OBJECT, &params, &patch);
        match request(call).await {
            Ok(_) => reported.host = Some(status),
            Err(error) => {
                reported.failed = true;
                reported.host_unsure = true;
                tracing::warn!(error, "the host's status was not written");
            }
        }
    }
    reported
}

fn merge_patch(status: &Value, optional: &[&str]) -> Patch<Value> {
    let mut status = status.clone();
    if let Some(fields) = status.as_object_mut() {
        for name in optional {
            fields.entry(*name).or_insert(Value::Null);
        }
    }
    Patch::Merge(json!({ "status": status }))
}
