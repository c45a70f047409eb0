//! High availability: signs of life, host states, fencing and certificates.

pub mod brake;
pub mod evidence;
pub mod fencing;
pub mod host_state;
pub mod reported;
