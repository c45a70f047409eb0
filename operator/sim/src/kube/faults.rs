//! What goes wrong between a client and the API, and inside the API: set and ended at run time.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::kinds::KindId;
use super::server::{End, Inner, Shared};
use super::store::Backup;

/// Whose requests a fault touches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Everyone's.
    All,
    /// Those of these identities.
    Only(Vec<String>),
    /// Those of identities that begin so: `host/`, `controller/`.
    Prefix(String),
}

impl Scope {
    /// Whether it holds for `identity`.
    #[must_use]
    pub fn covers(&self, identity: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(names) => names.iter().any(|n| n == identity),
            Self::Prefix(prefix) => identity.starts_with(prefix),
        }
    }
}

/// Something that is wrong for as long as it is set.
#[derive(Debug, Clone, PartialEq)]
pub enum Fault {
    /// Connections are refused, watches end in an error.
    Down,
    /// Packets vanish: requests get no answer, watches fall silent, until it ends.
    BlackHole,
    /// Packets towards the client vanish: requests are carried out, but no answer and no event
    /// of a watch arrives, until it ends.
    Deaf,
    /// Every request takes so much longer (least, most).
    Slow(Duration, Duration),
    /// This fraction of requests is answered by 500 or 429.
    Errors(f64),
    /// This fraction of requests is carried out, and the connection lost before the answer.
    ReplyLost(f64),
    /// Watches, and reads at version 0, show what was so much earlier.
    Stale(Duration),
}

/// Names a fault that was set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct FaultId(u64);

/// The faults that are set.
#[derive(Debug, Default)]
pub struct FaultState {
    next: u64,
    active: Vec<(FaultId, Scope, Fault)>,
    /// Kinds of which nobody but the simulator creates objects now.
    pub barred: std::collections::BTreeSet<String>,
}

impl FaultState {
    fn of<'a>(&'a self, identity: &'a str) -> impl Iterator<Item = &'a Fault> {
        self.active.iter().filter(|(_, s, _)| s.covers(identity)).map(|(_, _, fault)| fault)
    }

    /// Whether `fault` is set for `identity`.
    pub fn has(&self, identity: &str, fault: &Fault) -> bool {
        self.of(identity).any(|f| f == fault)
    }

    /// The longest lag of `identity`'s view.
    pub fn lag(&self, identity: &str) -> Option<Duration> {
        self.of(identity)
            .filter_map(|f| if let Fault::Stale(lag) = f { Some(*lag) } else { None })
            .max()
    }

    /// Further delay, fraction of errors and of lost replies.
    pub fn odds(&self, identity: &str) -> (Option<(Duration, Duration)>, f64, f64) {
        let (mut slow, mut errors, mut lost) = (None, 0.0, 0.0);
        for fault in self.of(identity) {
            match fault {
                Fault::Slow(low, high) => slow = Some((*low, *high)),
                Fault::Errors(p) => errors = p.max(errors),
                Fault::ReplyLost(p) => lost = p.max(lost),
                Fault::Down | Fault::BlackHole | Fault::Deaf | Fault::Stale(_) => {}
            }
        }
        (slow, errors, lost)
    }
}

impl Inner {
    /// The revision that `identity`'s lagging view of `kind` shows; none: its view is fresh.
    pub fn view(&self, identity: &str, kind: KindId, now: Instant) -> Option<u64> {
        let lag = self.faults.lag(identity)?;
        let then = now.checked_sub(lag).unwrap_or(self.start).max(self.start);
        Some(self.store.revision_at(kind, then))
    }
}

/// The switches.
#[derive(Clone)]
pub struct Faults(pub(super) Arc<Shared>);

impl Faults {
    /// Sets `fault` for `scope` until [`Self::clear`].
    pub fn inject(&self, scope: Scope, fault: Fault) -> FaultId {
        let mut inner = self.0.lock();
        if fault == Fault::Down {
            inner.end_watches(|identity| scope.covers(identity), End::Broken);
        }
        let id = FaultId(inner.faults.next);
        inner.faults.next += 1;
        inner.faults.active.push((id, scope, fault));
        inner.wake_all();
        id
    }

    /// Ends a fault; nothing if it has ended.
    pub fn clear(&self, id: FaultId) {
        let mut inner = self.0.lock();
        inner.faults.active.retain(|(i, _, _)| *i != id);
        inner.wake_all();
    }

    /// Ends every fault.
    pub fn clear_all(&self) {
        let mut inner = self.0.lock();
        inner.faults.active.clear();
        inner.wake_all();
    }

    /// Refuses (503) to create objects of a kind, as a webhook that is not ready does, or no more.
    pub fn bar_creation(&self, kind: &str, barred: bool) {
        let mut inner = self.0.lock();
        if barred {
            inner.faults.barred.insert(kind.to_owned());
        } else {
            inner.faults.barred.remove(kind);
        }
    }

    /// Ends the watches of `scope`, once.
    pub fn drop_watches(&self, scope: &Scope) {
        self.0.lock().end_watches(|identity| scope.covers(identity), End::Clean);
    }

    /// Ends the watches of `scope` in 410, once: who watched has to list anew.
    pub fn expire_watches(&self, scope: &Scope) {
        self.0.lock().end_watches(|identity| scope.covers(identity), End::Expired);
    }

    /// The machines of `scope` lost power or their processes died: requests that have not
    /// reached the API never will, watches end.
    pub fn cut(&self, scope: &Scope) {
        let mut inner = self.0.lock();
        inner.end_watches(|identity| scope.covers(identity), End::Broken);
        let inner = &mut *inner;
        for (_, epoch) in inner.epochs.iter_mut().filter(|(i, _)| scope.covers(i)) {
            *epoch += 1;
        }
        inner.wake_all();
    }

    /// Forgets history: watches that fell behind, and pages of older lists, end in 410.
    pub fn compact(&self) {
        let mut inner = self.0.lock();
        inner.store.compact();
        inner.wake_all();
    }

    /// What is stored now.
    #[must_use]
    pub fn backup(&self) -> Backup {
        self.0.lock().store.backup()
    }

    /// Goes back to `backup`, resourceVersions included; all watches end.
    pub fn restore(&self, backup: &Backup) {
        let mut inner = self.0.lock();
        inner.store.restore(backup);
        inner.end_watches(|_| true, End::Broken);
    }

    /// Goes back to what was stored at `taken_at`, as far as history reaches (10 minutes at
    /// least); all watches end.
    pub fn restore_backup(&self, taken_at: Instant) {
        let backup = self.0.lock().store.backup_at(taken_at);
        self.restore(&backup);
    }
}
