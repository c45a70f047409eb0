//! The watchdog of a host that resets itself when it has lost every path of life (safety §4).
//!
//! ```text
//! agent ── order, API renewals ──┐
//!                                ├─► board (locked memory) ─► feeder ─► /dev/watchdog0
//! beats ── storage renewals ─────┘                              └─► cgroups of the QEMUs
//! ```
//! The feeder is a process of its own that does no I/O but these two: neither a storage that hangs
//! nor an agent that does keeps it from feeding, or from letting go.

mod board;
mod device;
mod feeder;
mod port;

pub use board::{Answer, Board, Order};
pub use device::{Device, RealDevice, identity};
pub use feeder::{Feeder, FeederOptions, run};
pub use port::{RealWatchdog, Renewals, WatchdogOptions};

use std::path::{Path, PathBuf};

/// Folder of the board, on a tmpfs.
pub const RUN: &str = "/run/stockade";
/// The machine's first watchdog.
pub const DEVICE: &str = "/dev/watchdog0";

/// The storages whose beats count as signs of life, one name a line.
fn listed_path(run: &Path) -> PathBuf {
    run.join("watchdog-storages")
}
