//! Stops a simulated process as SIGSTOP, SIGKILL and a power cut do.
//!
//! A process is a future that is polled only while its gate is open and is dropped once the gate
//! is dead. Tasks that the process spawned escape that, so every port and the API client pass the
//! same gate: nothing that a stopped process began can touch the world.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};

/// Whether a process may run now. Clones are the same gate.
#[derive(Clone, Debug, Default)]
pub struct Gate(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    closed: bool,
    dead: bool,
    wakers: Vec<Waker>,
}

impl Gate {
    /// An open gate.
    #[must_use]
    pub fn open() -> Self {
        Self::default()
    }

    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Opens or closes it; a dead one stays dead.
    pub fn set_open(&self, open: bool) {
        let woken = self.with(|inner| {
            inner.closed = !open;
            if open { std::mem::take(&mut inner.wakers) } else { Vec::new() }
        });
        woken.into_iter().for_each(Waker::wake);
    }

    /// Ends whoever passes this gate, for good.
    pub fn kill(&self) {
        let woken = self.with(|inner| {
            inner.dead = true;
            std::mem::take(&mut inner.wakers)
        });
        woken.into_iter().for_each(Waker::wake);
    }

    /// Whether [`Gate::kill`] was called.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        self.with(|inner| inner.dead)
    }

    /// Whether one passes now.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.with(|inner| !inner.closed && !inner.dead)
    }

    /// Whether one passes now; if not, `cx` is woken when that changes.
    pub fn poll_pass(&self, cx: &mut Context<'_>) -> Poll<()> {
        self.with(|inner| {
            if !inner.closed && !inner.dead {
                return Poll::Ready(());
            }
            if !inner.wakers.iter().any(|w| w.will_wake(cx.waker())) {
                inner.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
    }

    /// Waits until one passes: for ever, if the gate is dead.
    pub async fn pass(&self) {
        poll_fn(|cx| self.poll_pass(cx)).await;
    }

    /// Runs `process` behind this gate; `None` once the gate is dead.
    pub fn run<F: Future>(&self, process: F) -> Gated<F> {
        Gated { gate: self.clone(), process: Some(Box::pin(process)) }
    }
}

/// A process behind a gate.
pub struct Gated<F> {
    gate: Gate,
    process: Option<Pin<Box<F>>>,
}

impl<F: Future> Future for Gated<F> {
    type Output = Option<F::Output>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.gate.is_dead() {
            // Dropped here: what its destructors do meets dead ports.
            self.process = None;
            return Poll::Ready(None);
        }
        if self.gate.poll_pass(cx).is_pending() {
            return Poll::Pending;
        }
        match self.process.as_mut() {
            Some(process) => process.as_mut().poll(cx).map(Some),
            None => Poll::Ready(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn a_stopped_process_goes_on_where_it_was_and_a_killed_one_never() {
        let gate = Gate::open();
        let counter = Arc::new(Mutex::new(0));
        let count = counter.clone();
        let task = tokio::spawn(gate.run(async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                *count.lock().unwrap() += 1;
            }
        }));
        let wait = |s| tokio::time::sleep(Duration::from_millis(s));
        wait(3500).await;
        gate.set_open(false);
        wait(10_000).await;
        assert_eq!(*counter.lock().unwrap(), 3);
        gate.set_open(true);
        wait(100).await;
        assert_eq!(*counter.lock().unwrap(), 4);
        gate.kill();
        gate.set_open(true);
        assert!(task.await.unwrap().is_none());
    }
}
