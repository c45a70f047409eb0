//! What the tests and `play` stand on.
#![recursion_limit = "256"]

pub mod bmc;
pub mod conformance;
pub mod control_plane;
pub mod lab;
pub mod local_hosts;
mod owned;
pub mod play;
