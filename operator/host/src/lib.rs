//! The host's edge: ports (traits over plain types) always; drivers behind features.
//!
//! Everything that touches a machine goes through a port, so that the same agent
//! and controller run on real hosts and on simulated ones. A port reports what
//! happened; it decides nothing.

pub mod error;
pub mod ports;

pub use error::{HostError, HostResult};

#[cfg(feature = "real")]
pub mod beat;
#[cfg(feature = "real")]
pub mod cmd;
#[cfg(feature = "libvirt")]
pub mod consoles;
#[cfg(feature = "real")]
pub mod disks;
#[cfg(feature = "real")]
pub mod exports;
#[cfg(feature = "real")]
pub mod fence;
#[cfg(feature = "real")]
pub mod files;
#[cfg(feature = "real")]
pub mod hook;
#[cfg(feature = "real")]
pub mod journal;
#[cfg(feature = "libvirt")]
pub mod libvirt;
#[cfg(feature = "real")]
pub mod logind;
#[cfg(feature = "real")]
pub mod machine;
#[cfg(feature = "real")]
pub mod process;
#[cfg(feature = "real")]
pub mod records;
#[cfg(feature = "real")]
pub mod seed;
#[cfg(feature = "real")]
pub mod storage;
#[cfg(feature = "real")]
pub mod watchdog;
