//! The agent's decisions.
//!
//! ```text
//! API ─┐                                    ┌─► HostAction, one a VM ─► ports
//!      ├─► Observed ─► decide(observed, now) ┤
//! host ┘                                    └─► status_of(…) ─► Domain.status
//! ```
//!
//! An epoch is one start attempt: one process on one boot of one host. It goes
//! one way, and never back:
//!
//! | state | means | left by |
//! |---|---|---|
//! | (none) | the journal does not know it | `Start`, `Void` |
//! | open | its start is allowed, nothing was handed to the hypervisor | launch, `Void` |
//! | launched | its process may exist | the process's end |
//! | ended | its process is gone, its writes may be under way | `Release` |
//! | released | nothing of it can write any more | never |

pub mod decide;
pub mod hook;
pub mod marker;
pub mod moves;
pub mod observed;
pub mod records;
pub mod self_fence;
pub mod status;
pub mod types;

#[cfg(test)]
mod moves_tests;
#[cfg(test)]
mod tests;

pub use decide::{HostAction, decide};
pub use hook::hook_allows;
pub use marker::judge_marker;
pub use observed::{Live, Observed, Order, VmMemory};
pub use records::{Refusal, Verdict, judge};
pub use status::status_of;

/// The guards of the agent's side of the gate (safety §2). All are on; tests drop one at a time
/// to show that it is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Guards {
    /// An order for an epoch below the journal's is refused.
    pub epoch: bool,
    /// Only orders for the running boot are obeyed.
    pub boot: bool,
    /// An epoch that ended is never started again.
    pub once: bool,
    /// Gate 2: an order that is missing is no stop order.
    pub missing_is_no_stop: bool,
    /// Gate 5: a storage with the marker of another cluster is not used.
    pub marker: bool,
    /// Gate 8: what can't be journalled is not done.
    pub journal: bool,
    /// Gate 8: a start is journalled before it is handed to the hypervisor.
    pub journal_first: bool,
    /// An owner record is linked beside each writable disk.
    pub record: bool,
    /// A newer owner record beside a disk refuses the start.
    pub newer_record: bool,
    /// An older owner record must be settled.
    pub older_record: bool,
    /// The own record must be new, and is read again after it was linked.
    pub own_record: bool,
    /// An epoch is released only once its process is gone.
    pub gone: bool,
    /// An epoch is released only once its disks are drained.
    pub drained: bool,
    /// The order is read again right before the start.
    pub fresh_read: bool,
    /// A boot named dead that beats on the storage stops the start.
    pub dead_beats: bool,
    /// Gate 4: an agent that reads a certificate against its own running boot suspends its VMs.
    pub suspends: bool,
    /// Gate 6: the hypervisor's hook lets in only what has an open order in the journal.
    pub hook: bool,
    /// Safety §8.2: without a lock that spans hosts a copy comes in paused.
    pub leave_paused: bool,
    /// Safety §8.3: what a move left paused on its source is not resumed by guess.
    pub source_waits: bool,
    /// Safety §8.4: what came in whole stays, though the move was called off since.
    pub completed_wins: bool,
    /// A move is handed to the hypervisor once.
    pub move_once: bool,
    /// The order is read again right before a move begins.
    pub fresh_move: bool,
    /// Safety §8.2: the source keeps its lock until the switch-over.
    pub lock_kept: bool,
    /// Gate 7: domains are transient, so that nothing starts by itself.
    pub transient: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            epoch: true,
            boot: true,
            once: true,
            missing_is_no_stop: true,
            marker: true,
            journal: true,
            journal_first: true,
            record: true,
            newer_record: true,
            older_record: true,
            own_record: true,
            gone: true,
            drained: true,
            fresh_read: true,
            dead_beats: true,
            suspends: true,
            hook: true,
            leave_paused: true,
            source_waits: true,
            completed_wins: true,
            move_once: true,
            fresh_move: true,
            lock_kept: true,
            transient: true,
        }
    }
}
