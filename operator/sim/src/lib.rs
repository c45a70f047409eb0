//! In-process API and simulated hosts for the real controller and agents.

pub mod kube;
pub mod rng;
pub mod scenario;
