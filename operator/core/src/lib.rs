//! Stockade's decisions: synchronous functions of a snapshot and a time.
//!
//! ```text
//! reflectors ─► World ─► plan() ─► Plan { intents, statuses } ─► apply ─► update_status
//! ports ─► Observed ─► agent::decide() ─► HostAction … ─► act ─► report
//! ```
//!
//! Nothing in here knows a client, a file, a clock or a random number: whoever
//! calls passes the time in. The same inputs give the same outputs, so that a
//! decision can be replayed from a log and tried a thousand times a second.

pub mod agent;
pub mod certificates;
pub mod consoles;
pub mod exports;
pub mod gate;
pub mod ha;
pub mod hosts;
pub mod lineage;
pub mod locks;
pub mod moves;
pub mod numbers;
pub mod placement;
pub mod plan;
pub mod planner;
pub mod render;
pub mod storages;
pub mod validate;
pub mod vm;
pub mod world;
