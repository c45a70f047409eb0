//! Calls that a QEMU can hold for long: one about a VM at a time, and few in all.
//!
//! A QEMU that sends its last memory into a network that has gone answers its monitor no more, and a
//! call about it waits in the daemon for half a minute or longer. The daemon answers five calls of a
//! connection at once (`max_client_requests`): what waits must leave room for all others.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::error::{HostError, HostResult};

/// Such calls at once, of the five that a connection has.
const AT_ONCE: usize = 3;

/// Whose turn it is.
#[derive(Debug)]
pub(super) struct Turns {
    room: Arc<Semaphore>,
    vms: Mutex<BTreeMap<String, Arc<Semaphore>>>,
}

/// One call's turn: over when its answer is there, however long nobody waits for that any more.
#[derive(Debug)]
pub(super) struct Turn {
    _vm: OwnedSemaphorePermit,
    _room: OwnedSemaphorePermit,
}

impl Default for Turns {
    fn default() -> Self {
        Self { room: Arc::new(Semaphore::new(AT_ONCE)), vms: Mutex::default() }
    }
}

impl Turns {
    /// A turn for a call about this VM.
    ///
    /// # Errors
    /// Those before it hang for longer than `wait`: the call is not made.
    pub(super) async fn take(
        &self,
        op: &'static str,
        vm_uid: &str,
        wait: Duration,
    ) -> HostResult<Turn> {
        let vm = self.of(vm_uid);
        let both = async {
            let vm = vm.acquire_owned().await.ok()?;
            let room = Arc::clone(&self.room).acquire_owned().await.ok()?;
            Some(Turn { _vm: vm, _room: room })
        };
        let turn = tokio::time::timeout(wait, both).await.ok().flatten();
        turn.ok_or_else(|| HostError::failed(op, vm_uid, "earlier calls about moves still hang"))
    }

    fn of(&self, vm_uid: &str) -> Arc<Semaphore> {
        let mut vms = self.vms.lock().unwrap_or_else(PoisonError::into_inner);
        // A turn that is taken or waited for holds its own.
        vms.retain(|_, vm| Arc::strong_count(vm) > 1);
        let vm = vms.entry(vm_uid.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(1)));
        Arc::clone(vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(2);

    #[tokio::test(start_paused = true)]
    async fn a_vm_that_hangs_is_asked_once_and_leaves_room_for_others() {
        let turns = Turns::default();
        let hangs = turns.take("read move", "a", Duration::ZERO).await.unwrap();
        let refused = turns.take("abort migration", "a", WAIT).await.unwrap_err();
        assert!(!refused.is_unknown(), "it was not sent: {refused}");
        let b = turns.take("read move", "b", Duration::ZERO).await.unwrap();
        let c = turns.take("read move", "c", Duration::ZERO).await.unwrap();
        assert!(turns.take("read move", "d", WAIT).await.is_err(), "all room is taken");
        let later = turns.take("abort migration", "b", WAIT);
        let (later, ()) = tokio::join!(later, async { drop(b) });
        drop((hangs, c, later.unwrap()));
        drop(turns.take("read move", "a", Duration::ZERO).await.unwrap());
        assert_eq!(
            turns.vms.lock().unwrap().len(),
            1,
            "those that are not asked about are forgotten"
        );
    }
}
