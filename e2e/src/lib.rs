//! What the tests and `play` stand on.

pub mod control_plane;
pub mod local_hosts;
pub mod play;
