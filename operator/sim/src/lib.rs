//! In-process API and simulated hosts for the real controller and agents.

#[cfg(feature = "hooks")]
pub mod hooks;
pub mod host;
pub mod kube;
pub mod oracle;
pub mod random;
pub mod rng;
pub mod runner;
pub mod scenario;
pub mod world;

#[cfg(all(test, feature = "hooks"))]
crate::link_hooks!();
