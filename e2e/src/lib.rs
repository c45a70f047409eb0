//! What the tests and `play` stand on.

pub mod local_hosts;
