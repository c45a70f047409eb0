//! Virtual machines: from spec and epochs to orders and status.

mod ends;
mod lifecycle;
mod machine;
mod order;
mod removal;
mod request;
mod rows;
mod word;

pub use lifecycle::{Decision, decide};
pub use machine::{Problem, claims, disk_path, resolve};
pub use order::{basis, domain_order, place_order};
pub use rows::cluster;
pub(crate) use word::unplaceable;
