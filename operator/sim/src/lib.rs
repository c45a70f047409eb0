//! In-process API and simulated hosts for the real controller and agents.

pub mod rng;
pub mod scenario;
