//! What the host shows its peers in live moves: asked for once, put in force when it is signed.

use std::sync::Arc;

use stockade_crds::v1alpha1::MoveIdentity;

use crate::context::{Context, locked, timed};

/// Milliseconds between two looks at what is signed, and after a failure.
const LOOK: u64 = 500;
const AFTER_FAILURE: u64 = 5_000;

/// Follows HostAgent.spec, for ever.
pub(crate) async fn run(context: Arc<Context>) {
    let hypervisor = &context.ports.hypervisor;
    let Some(requests) = hypervisor.move_requests() else { return };
    *locked(&context.move_requests) = Some(requests);
    context.wake.notify_one();
    let mut installed: Option<MoveIdentity> = None;
    loop {
        let wanted = context.joined_spec().and_then(|spec| spec.migration.clone());
        let mut wait = LOOK;
        if let Some(wanted) = wanted.filter(|wanted| installed.as_ref() != Some(wanted)) {
            let call = hypervisor.install_identity(&wanted);
            match timed("install", "certificates", 150, call).await {
                Ok(()) => {
                    *locked(&context.moves_serial) = wanted.serial;
                    installed = Some(wanted);
                    *locked(&context.moves_ready) = true;
                    context.wake.notify_one();
                }
                Err(error) => {
                    tracing::warn!(%error, "live moves over TLS are not set up");
                    wait = AFTER_FAILURE;
                }
            }
        }
        context.ports.clock.sleep(wait).await;
    }
}
