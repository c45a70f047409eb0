//! The agent of one host: observes, decides, acts, reports.
//!
//! ```text
//! watches ─┐                              ┌─► act (a task a VM) ─► ports
//! events ──┼─► reconcile: observe ─► decide ┤
//! timer ───┘                              └─► report ─► Domain.status, HostAgent.status
//! heartbeat ─► Lease          storages ─► mounts, beats seen          exports ─► what is served
//! identity ─► certificates    consoles ─► who shows a ticket
//! ```
//!
//! All decisions are [`stockade_core::agent`]'s. Dropping [`run`] at any await point is
//! safe: the next run starts from the journal and from what it observes.

mod act;
mod config;
mod consoles;
mod context;
mod error;
mod exports;
mod heartbeat;
mod identity;
mod inventory;
mod journal;
mod looks;
mod observe;
mod reconcile;
mod report;
mod shutdown;
mod storages;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use stockade_host::ports::AgentPorts;
use tokio::task::JoinSet;

pub use config::AgentConfig;
pub use error::AgentError;

/// Runs the agent until `shutdown` completes. It needs no right outside its host's namespace.
///
/// # Errors
/// [`AgentError::Identity`] if the machine does not say who it is.
pub async fn run(
    client: kube::Client,
    ports: AgentPorts,
    config: AgentConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), AgentError> {
    tokio::pin!(shutdown);
    let facts = loop {
        let facts = context::timed("read", "machine", 10, ports.machine.facts());
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            facts = facts => match facts {
                Ok(facts) => break facts,
                Err(error) => tracing::warn!(%error, "the machine does not say who it is"),
            }
        }
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(1)) => {}
        }
    };
    if facts.host_uid.is_empty() || facts.boot_id.is_empty() {
        return Err(AgentError::Identity);
    }
    let context = Arc::new(context::Context::new(client, ports, config, facts));
    // Dropped with this future, and then every task with it.
    let mut tasks = JoinSet::new();
    tasks.spawn(heartbeat::run(Arc::clone(&context)));
    tasks.spawn(storages::run(Arc::clone(&context)));
    tasks.spawn(exports::run(Arc::clone(&context)));
    tasks.spawn(identity::run(Arc::clone(&context)));
    tasks.spawn(consoles::run(Arc::clone(&context)));
    tokio::select! {
        biased;
        () = &mut shutdown => {
            // Nothing may beat after the last word.
            tasks.shutdown().await;
            heartbeat::leave(&context).await;
        }
        () = reconcile::run(Arc::clone(&context)) => {}
    }
    Ok(())
}
