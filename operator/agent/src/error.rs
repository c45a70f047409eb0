//! Why an agent ends by itself.

use thiserror::Error;

/// Errors that end an agent.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The machine has no identity, or no boot id.
    #[error("this machine says neither who it is nor which boot it runs; join it first")]
    Identity,
}
