//! Where VMs run: pure functions of a snapshot.
//!
//! ```text
//! HostRow, VmRow ─► Cluster::new ─► place      where wanted VMs start or move to
//!                      (index,     ─► tolerates  how many host failures still fit
//!                       groups)    ─► failback, repair, relocate, rebalance, drain_plan   moves
//! ```
//!
//! Strict rules (required hosts, labels, together, apart), capacity and what a
//! host offers are never broken; a soft rule bends when the strict ones leave
//! no room for it. The same rows give the same answer, whatever their order.

mod cluster;
mod drain;
mod ledger;
mod model;
mod moves;
mod need;
mod pack;
mod place;
mod rebalance;
mod relocate;
mod repair;
mod rules;
mod suits;
mod tolerate;
mod unit;

pub use cluster::Cluster;
pub use drain::{DrainPlan, drain_plan};
pub use model::{Acceptance, FailedMoves, HostRow, Movable, Refusal, Unplaceable, VmKey, VmRow};
pub use moves::{Move, Mover, failback, join_of, move_of};
pub use place::{Mode, place};
pub use rebalance::{By, rebalance};
pub use relocate::relocate;
pub use repair::{repair, violations};
pub use suits::{Suit, is_forbidden, suits};
pub use tolerate::tolerates;

#[cfg(test)]
mod testkit;
#[cfg(test)]
mod tests;
