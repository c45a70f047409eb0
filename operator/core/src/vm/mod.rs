//! Virtual machines: from spec and epochs to orders and status.

mod lifecycle;
mod machine;
mod order;
mod rows;

pub(crate) use lifecycle::unplaceable;
pub use lifecycle::{Decision, decide};
pub use machine::{Problem, claims, disk_path, resolve};
pub use order::{basis, domain_order, place_order};
pub use rows::cluster;
