//! The host's edge: ports (traits over plain types) always; drivers behind features.
//!
//! Everything that touches a machine goes through a port, so that the same agent
//! and controller run on real hosts and on simulated ones. A port reports what
//! happened; it decides nothing.

pub mod error;
pub mod ports;

pub use error::{HostError, HostResult};
