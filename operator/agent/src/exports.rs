//! Serves what HostAgent.spec says, in a task of its own: starting a server takes its time.

use std::sync::Arc;

use stockade_crds::v1alpha1::{AgentExport, ExportReport};

use crate::context::{Context, locked, timed};

/// What is served as declared is looked at again after so long, in milliseconds.
const CHECK: u64 = 10_000;
/// What is not is tried again after so long, in milliseconds.
const RETRY: u64 = 1_000;
/// How long one round may take, in seconds.
const LIMIT: u64 = 300;

/// Follows HostAgent.spec, for ever. A host that serves nothing is looked at once, for what an earlier
/// agent may have left there, and costs nothing then.
pub(crate) async fn run(context: Arc<Context>) {
    let (mut serves, mut looked) = (false, false);
    loop {
        let spec = context.joined_spec();
        let known = spec.is_some();
        let exports = spec.map(|spec| spec.exports.clone()).unwrap_or_default();
        serves |= !exports.is_empty();
        if !serves && (!known || std::mem::replace(&mut looked, true)) {
            context.spec_changed.notified().await;
            continue;
        }
        let ready = apply(&context, &exports).await;
        tokio::select! {
            biased;
            () = context.spec_changed.notified() => {}
            () = context.ports.clock.sleep(if ready { CHECK } else { RETRY }) => {}
        }
    }
}

/// Makes it so, and notes what came of it. True: all of it is served as declared.
async fn apply(context: &Context, exports: &[AgentExport]) -> bool {
    let call = async { Ok(context.ports.exports.ensure(exports).await) };
    let reports = timed("export", "storages", LIMIT, call).await;
    let reports = reports.unwrap_or_else(|error| unknown(exports, &error.to_string()));
    let ready = reports.iter().all(|report| report.ready);
    let before = std::mem::replace(&mut *locked(&context.exports), reports.clone());
    if before != reports {
        for report in reports.iter().filter(|report| !report.ready) {
            tracing::warn!(storage = report.storage, report.message, "not served");
        }
        context.wake.notify_one();
    }
    ready
}

fn unknown(exports: &[AgentExport], why: &str) -> Vec<ExportReport> {
    let report = |export: &AgentExport| ExportReport {
        storage: export.storage.clone(),
        ready: false,
        message: why.to_owned(),
        denied: Vec::new(),
        broken: Vec::new(),
    };
    exports.iter().map(report).collect()
}
