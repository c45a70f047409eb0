//! The connection to the daemon: opened, watched and opened again by a thread of its own.
//!
//! A call runs on a thread of its own too: it can't be cancelled, and a frozen daemon holds it
//! until keepalive ends the connection. The caller waits no longer than its deadline.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use virt::connect::Connect;
use virt::error::{Error, ErrorNumber};

use super::events::{self, Signal};
use crate::error::{HostError, HostResult};
use crate::ports::HypervisorEvent;

/// Seconds between two keepalive probes, and how many may stay unanswered.
const KEEPALIVE: (i32, u32) = (2, 3);
/// Pause between two attempts to connect.
const RETRY: Duration = Duration::from_millis(300);

/// A connection that comes back by itself.
pub(super) struct Connection {
    uri: String,
    current: Arc<Mutex<Option<Connect>>>,
    up: watch::Receiver<bool>,
    events: Mutex<Option<mpsc::UnboundedReceiver<HypervisorEvent>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Connection {
    /// Starts to connect; returns at once. The thread ends when this is dropped.
    pub(super) fn start(uri: &str) -> HostResult<Self> {
        let failed = |error: String| HostError::failed("connect", uri, error);
        events::start_loop().map_err(failed)?;
        let current = Arc::new(Mutex::new(None));
        let (up_sender, up) = watch::channel(false);
        let (news, receiver) = mpsc::unbounded_channel();
        let (shared, uri_text) = (current.clone(), uri.to_owned());
        thread::Builder::new()
            .name("libvirt-connect".into())
            .spawn(move || keep_connected(&uri_text, &shared, &up_sender, &news))
            .map_err(|error| failed(error.to_string()))?;
        Ok(Self { uri: uri.to_owned(), current, up, events: Mutex::new(Some(receiver)) })
    }

    /// The stream of news; an empty one for every caller but the first.
    pub(super) fn events(&self) -> mpsc::UnboundedReceiver<HypervisorEvent> {
        lock(&self.events).take().unwrap_or_else(|| mpsc::unbounded_channel().1)
    }

    /// Runs a call that reads. A lost answer is a failure: nothing was changed by it.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        op: &'static str,
        target: &str,
        limit: Duration,
        call: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> HostResult<T> {
        let result = self.change(op, target, limit, call).await;
        result.map_err(|error| match error {
            HostError::Unknown { op, target, message } => HostError::Failed { op, target, message },
            other => other,
        })
    }

    /// Runs a call that changes something. A lost answer is unknown: it may still be done.
    pub(super) async fn change<T: Send + 'static>(
        &self,
        op: &'static str,
        target: &str,
        limit: Duration,
        call: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> HostResult<T> {
        let connect = self.connected(op, target, limit).await?;
        Self::call(op, target, limit, move || Ok(connect), call).await
    }

    /// As [`Connection::change`], over a connection that is opened for this call alone.
    ///
    /// The daemon answers five calls of a connection at once (`max_client_requests`) and lets all
    /// others wait: calls as long as a move must not be among them.
    pub(super) async fn change_alone<T: Send + 'static>(
        &self,
        op: &'static str,
        target: &str,
        limit: Duration,
        call: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> HostResult<T> {
        let uri = self.uri.clone();
        Self::call(op, target, limit, move || open(&uri), call).await
    }

    async fn call<T: Send + 'static>(
        op: &'static str,
        target: &str,
        limit: Duration,
        connect: impl FnOnce() -> Result<Connect, Error> + Send + 'static,
        call: impl FnOnce(&Connect) -> Result<T, Error> + Send + 'static,
    ) -> HostResult<T> {
        let (answer, answered) = oneshot::channel();
        let name = target.to_owned();
        let run = move || {
            let connect = match connect() {
                Ok(connect) => connect,
                Err(error) => {
                    // Nothing was asked yet.
                    let _ = answer.send(Err(host_error(op, &name, &error, true)));
                    return;
                }
            };
            let result = call(&connect);
            // libvirt's errors belong to the thread, so both are asked for here.
            let alive = result.is_ok() || connect.is_alive().unwrap_or(false);
            let _ = answer.send(result.map_err(|error| host_error(op, &name, &error, alive)));
        };
        thread::Builder::new()
            .name("libvirt-call".into())
            .spawn(run)
            .map_err(|error| HostError::failed(op, target, error.to_string()))?;
        match tokio::time::timeout(limit, answered).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(HostError::unknown(op, target, "the call ended without an answer")),
            Err(_) => {
                let seconds = limit.as_secs();
                let message = format!("libvirt has not answered within {seconds} s");
                Err(HostError::unknown(op, target, message))
            }
        }
    }

    /// The connection, waited for if it is just being opened.
    async fn connected(
        &self,
        op: &'static str,
        target: &str,
        limit: Duration,
    ) -> HostResult<Connect> {
        let mut up = self.up.clone();
        // Sending fails only when the thread is gone, which the next line sees.
        let _ = tokio::time::timeout(limit, up.wait_for(|up| *up)).await;
        lock(&self.current)
            .clone()
            .ok_or_else(|| HostError::failed(op, target, "libvirt does not answer"))
    }
}

/// A refusal by the daemon is certain; an error of a connection that died is not.
fn host_error(op: &'static str, target: &str, error: &Error, alive: bool) -> HostError {
    let message = error.message().trim().to_owned();
    if !alive {
        return HostError::unknown(op, target, message);
    }
    if error.code().is(ErrorNumber::HookScriptFailed) {
        return HostError::refused(op, target, message);
    }
    if error.code().is(ErrorNumber::ResourceBusy) {
        let holder = "another host or process".to_owned();
        return HostError::Locked { target: target.to_owned(), holder, message };
    }
    HostError::failed(op, target, message)
}

/// Opens a connection that ends when the daemon is frozen.
fn open(uri: &str) -> Result<Connect, Error> {
    let connect = Connect::open(Some(uri))?;
    // The test driver has no RPC and refuses keepalive.
    let (interval, count) = KEEPALIVE;
    match connect.set_keep_alive(interval, count) {
        Err(error) if !error.code().is(ErrorNumber::NoSupport) => Err(error),
        _ => Ok(connect),
    }
}

/// Opens, waits until it is gone, opens again; ends when nobody listens any more.
fn keep_connected(
    uri: &str,
    shared: &Mutex<Option<Connect>>,
    up: &watch::Sender<bool>,
    news: &mpsc::UnboundedSender<HypervisorEvent>,
) {
    let mut generation = 0;
    while !up.is_closed() {
        generation += 1;
        let (signals, mut received) = mpsc::unbounded_channel();
        // Blocks while the daemon is frozen; callers wait on their own deadlines.
        let opened = open(uri).and_then(|connect| {
            events::register(&connect, &signals, generation)?;
            Ok(connect)
        });
        let connect = match opened {
            Ok(connect) => connect,
            Err(error) => {
                tracing::debug!(uri, %error, "libvirt can't be reached");
                thread::sleep(RETRY);
                continue;
            }
        };
        *lock(shared) = Some(connect);
        up.send_replace(true);
        let _ = news.send(HypervisorEvent::Connection { up: true });
        loop {
            match received.blocking_recv() {
                Some(Signal::Event(event)) => {
                    let _ = news.send(event);
                }
                Some(Signal::Closed(closed)) if closed != generation => {}
                Some(Signal::Closed(_)) | None => break,
            }
        }
        up.send_replace(false);
        if let Some(connect) = lock(shared).take() {
            events::forget(&connect);
        }
        let _ = news.send(HypervisorEvent::Connection { up: false });
    }
}
