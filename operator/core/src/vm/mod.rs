//! Virtual machines: from spec and epochs to orders and status.

mod adopt;
mod ends;
mod found;
mod lifecycle;
mod machine;
mod moving;
mod open;
mod order;
mod removal;
mod request;
mod rows;
mod seeds;
mod shutdown;
mod word;

pub(crate) use lifecycle::not_ready;
pub use lifecycle::{Decision, decide};
pub use machine::{Claims, Problem, disk_path, resolve};
pub(crate) use order::make_room;
pub use order::{basis, domain_order, next_epoch, place_order};
pub use rows::{barred, cluster};
pub use seeds::remove_copies;
pub use shutdown::{Fate, fate};
pub(crate) use word::{placed, unplaceable};
