//! Opens consoles to those who show the tickets that HostAgent.spec knows, in a task of its own.

use std::sync::Arc;

use crate::context::{Context, locked, timed};

/// While there are tickets, they are looked at again after so long, in milliseconds.
const LOOK: u64 = 500;
/// How long one round may take, in seconds.
const LIMIT: u64 = 10;

/// Follows HostAgent.spec, for ever. A host without tickets listens nowhere, and this costs nothing.
pub(crate) async fn run(context: Arc<Context>) {
    let mut before = Vec::new();
    loop {
        let tickets = context.joined_spec().map(|spec| spec.consoles.clone()).unwrap_or_default();
        if !tickets.is_empty() || !before.is_empty() {
            let call = async { Ok(context.ports.consoles.serve(&tickets).await) };
            match timed("serve", "consoles", LIMIT, call).await {
                Ok(reports) if reports != *locked(&context.consoles) => {
                    *locked(&context.consoles) = reports;
                    context.wake.notify_one();
                }
                Ok(_) => {}
                Err(error) => tracing::warn!(%error, "consoles are not served"),
            }
        }
        let idle = tickets.is_empty();
        before = tickets;
        tokio::select! {
            biased;
            () = context.tickets_changed.notified() => {}
            () = context.ports.clock.sleep(LOOK), if !idle => {}
        }
    }
}
