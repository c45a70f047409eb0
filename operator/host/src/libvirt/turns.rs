//! Calls that a QEMU can hold for long: few at once, and none twice.
//!
//! A QEMU that sends its last memory into a network that has gone answers its monitor no more, and a
//! call about it waits in the daemon for half a minute or longer. The daemon answers five calls of a
//! connection at once (`max_client_requests`): what waits must leave room for all others.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{HostError, HostResult};

/// Such calls at once, of the five that a connection has.
const AT_ONCE: usize = 3;

type Call = (&'static str, String);

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns {
    room: Arc<Semaphore>,
    asked: Arc<Mutex<BTreeSet<Call>>>,
}

/// One call's turn: over when its answer is there, however long nobody waits for that any more.
#[derive(Debug)]
pub(super) struct Turn {
    call: Call,
    asked: Arc<Mutex<BTreeSet<Call>>>,
    _room: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(AT_ONCE)), asked: Arc::default() }
    }
}

fn lock(asked: &Mutex<BTreeSet<Call>>) -> MutexGuard<'_, BTreeSet<Call>> {
    asked.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turns {
    /// A turn for this call about this VM.
    ///
    /// # Errors
    /// The same was asked before and is not answered, or there is no room within `limit`.
    pub(super) async fn take(
        &self,
        op: &'static str,
        target: &str,
        limit: Duration,
    ) -> HostResult<Turn> {
        let call = (op, target.to_owned());
        let hangs = || HostError::unknown(op, target, "an earlier call of its kind still hangs");
        if lock(&self.asked).contains(&call) {
            return Err(hangs());
        }
        let room = tokio::time::timeout(limit, Arc::clone(&self.room).acquire_owned()).await;
        let Ok(Ok(room)) = room else { return Err(hangs()) };
        if !lock(&self.asked).insert(call.clone()) {
            return Err(hangs());
        }
        Ok(Turn { call, asked: Arc::clone(&self.asked), _room: room })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.asked).remove(&self.call);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);

    #[tokio::test(start_paused = true)]
    async fn what_hangs_is_not_asked_again_and_leaves_room_for_others() {
        let turns = Turns::default();
        let read = turns.take("read move", "a", LIMIT).await.unwrap();
        let refused = turns.take("read move", "a", LIMIT).await.unwrap_err();
        assert!(refused.is_unknown(), "it may still be done: {refused}");
        let abort = turns.take("abort migration", "a", LIMIT).await.unwrap();
        let other = turns.take("read move", "b", LIMIT).await.unwrap();
        assert!(turns.take("read move", "c", LIMIT).await.is_err(), "all room is taken");
        drop(other);
        drop(turns.take("read move", "c", LIMIT).await.unwrap());
        drop((read, abort));
        drop(turns.take("read move", "a", LIMIT).await.unwrap());
    }
}
