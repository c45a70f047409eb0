//! What an agent is told at its start.

use stockade_core::agent::Guards;

/// Configuration of one agent.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    /// Name of the Host.
    pub host: String,
    /// The cluster's id, as owner records carry it; `stockade` until joined.
    pub cluster_id: String,
    /// Version that is reported.
    pub version: String,
    /// Tests drop one guard each to show that it is needed; programs pass the default.
    pub guards: Guards,
}

impl AgentConfig {
    /// The configuration of a host's agent, all guards on.
    #[must_use]
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            cluster_id: "stockade".into(),
            version: env!("CARGO_PKG_VERSION").into(),
            guards: Guards::default(),
        }
    }
}
