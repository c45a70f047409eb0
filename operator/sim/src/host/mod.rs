//! The host ports over the simulated world.

mod consoles;
mod exports;
pub mod gate;
mod hypervisor;
mod machine;
mod server;
mod storage;

use std::sync::Arc;

use stockade_host::ports::AgentPorts;

use crate::world::Sim;
use gate::Gate;

pub use server::{SimFence, SimServer};

/// One agent life's view of its host: dead once its gate is.
#[derive(Clone)]
pub(crate) struct Seat {
    sim: Arc<Sim>,
    host: String,
    gate: Gate,
}

impl Seat {
    /// Passes the gate, with a call's own latency.
    async fn enter(&self, low: u64, high: u64) {
        self.gate.pass().await;
        self.sim.latency(&format!("port/{}", self.host), low, high).await;
        self.gate.pass().await;
    }
}

/// The ports of one life of an agent.
#[must_use]
pub fn agent_ports(sim: &Arc<Sim>, host: &str, gate: &Gate) -> AgentPorts {
    let seat = Seat { sim: sim.clone(), host: host.to_owned(), gate: gate.clone() };
    AgentPorts {
        machine: Arc::new(machine::SimMachine(seat.clone())),
        hypervisor: Arc::new(hypervisor::SimHypervisor(seat.clone())),
        storage: Arc::new(storage::SimStorage(seat.clone())),
        exports: Arc::new(exports::SimExports),
        consoles: Arc::new(consoles::SimConsoles),
        journal: Arc::new(machine::SimJournal(seat.clone())),
        watchdog: Arc::new(machine::SimWatchdog(seat.clone())),
        clock: Arc::new(machine::SimClock { sim: sim.clone(), host: Some(host.to_owned()) }),
    }
}

/// The clock of whoever is no simulated host: it is always right.
#[must_use]
pub fn true_clock(sim: &Arc<Sim>) -> Arc<dyn stockade_host::ports::Clock> {
    Arc::new(machine::SimClock { sim: sim.clone(), host: None })
}

#[cfg(test)]
mod tests;
