//! Holds the init system back at a clean shutdown: a delay lock of systemd-logind.
//!
//! logind tells who holds such a lock that the machine is to go down, and waits until it is let go,
//! for `InhibitDelayMaxSec` at most. Until then no unit has been stopped: libvirt, mounts and
//! network all work.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use stockade_crds::v1alpha1::GoingDown;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use zbus::{Connection, MatchRule, MessageStream, Variant};

/// Pause before logind is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// How long an answer of logind may take.
const CALL: Duration = Duration::from_secs(10);
/// How long facts wait for logind's first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// A call that asked for a shutdown speaks for one that begins within so many microseconds: it may
/// have waited for a person's password.
const ASKED: u64 = 120_000_000;
/// How much later than logind's signal the call that asked for it may be heard.
const LATE: Duration = Duration::from_secs(1);
/// The signal that says how the machine goes down, since systemd 255.
const WITH_METADATA: &str = "PrepareForShutdownWithMetadata";

#[zbus::proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Login1 {
    fn inhibit(&self, what: &str, who: &str, why: &str, mode: &str) -> zbus::Result<zbus::OwnedFd>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn preparing_for_shutdown(&self) -> zbus::Result<bool>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn scheduled_shutdown(&self) -> zbus::Result<(String, u64)>;
    #[zbus(property(emits_changed_signal = "false"), name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> zbus::Result<u64>;
    #[zbus(signal)]
    fn prepare_for_shutdown(&self, start: bool) -> zbus::Result<()>;
    #[zbus(signal)]
    fn prepare_for_shutdown_with_metadata(
        &self,
        start: bool,
        metadata: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
}

/// What is known of the machine's way down.
#[derive(Clone, Debug, Default)]
struct State {
    /// logind was asked at least once, or could not be.
    asked: bool,
    going_down: Option<GoingDown>,
    /// Seconds that logind waits for a delay lock.
    holds_back: Option<u64>,
    /// Why no lock is held, or what of it does not work.
    trouble: Option<String>,
}

/// Somebody asked for a way down.
#[derive(Clone, Copy, Debug)]
struct Asked {
    /// Microseconds since the Unix epoch.
    at: u64,
    how: GoingDown,
}

/// Tells how the machine goes down, where logind does not say so itself.
struct Asking {
    /// The calls that ask logind for it, as the bus shows them.
    calls: BoxStream<'static, GoingDown>,
    /// The last call since the machine was last about to go down.
    heard: Option<Asked>,
    /// When the schedule was due that an earlier way down has used up: logind keeps it, also when
    /// that came to nothing.
    spent: Option<u64>,
}

/// A delay lock on shutdowns, taken again whenever it was lost, as long as this lives.
#[derive(Debug)]
pub struct ShutdownLock {
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    /// Address of the bus; `None`: the system's.
    bus: Option<String>,
    state: watch::Sender<State>,
    /// Open as long as logind is to wait.
    lock: Mutex<Option<OwnedFd>>,
    changed: Notify,
}

impl ShutdownLock {
    /// Begins to take the lock, within a tokio runtime. `bus` is the address of the bus that logind
    /// is on, if not the system's.
    #[must_use]
    pub fn hold(bus: Option<String>) -> Self {
        let shared = Arc::new(Shared {
            bus,
            state: watch::Sender::default(),
            lock: Mutex::default(),
            changed: Notify::new(),
        });
        let task = tokio::spawn(keep(Arc::clone(&shared)));
        Self { shared, task }
    }

    /// Whether and how the machine goes down.
    #[must_use]
    pub fn going_down(&self) -> Option<GoingDown> {
        self.shared.state.borrow().going_down
    }

    /// Wakes when [`Self::going_down`] may have changed.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Lets the machine go down, if it is about to.
    pub fn let_go(&self) {
        if self.going_down().is_some() && self.shared.lock().take().is_some() {
            tracing::info!("the machine may go down");
        }
    }

    /// Seconds that logind waits for the lock, and what of it does not work; waits a moment for
    /// logind's first answer.
    pub async fn facts(&self) -> (Option<u64>, Option<String>) {
        let mut state = self.shared.state.subscribe();
        let answered = tokio::time::timeout(FIRST_ANSWER, state.wait_for(|s| s.asked)).await;
        match answered {
            Ok(Ok(state)) => (state.holds_back, state.trouble.clone()),
            _ => (None, Some(not_held("no answer"))),
        }
    }
}

impl Drop for ShutdownLock {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn not_held(why: &str) -> String {
    let why: String = why.chars().take(300).collect();
    format!(
        "systemd-logind does not hold a shutdown back ({why}): a clean shutdown of this host ends \
         its VMs unasked and looks like a power cut; install dbus and run systemd-logind.service"
    )
}

/// Takes the lock again and again, whatever becomes of logind and of the bus.
async fn keep(shared: Arc<Shared>) {
    loop {
        if let Err(error) = shared.watch().await {
            let trouble = Some(not_held(&error.to_string()));
            shared.state.send_modify(|state| {
                if state.trouble != trouble {
                    tracing::warn!(%error, "no lock on shutdowns");
                }
                state.asked = true;
                state.trouble = trouble;
            });
            tokio::time::sleep(RETRY).await;
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Option<OwnedFd>> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> zbus::Result<Connection> {
        let builder = match &self.bus {
            Some(address) => zbus::conn::Builder::address(address.as_str()),
            None => zbus::conn::Builder::system(),
        };
        builder.method_timeout(CALL).build().await
    }

    /// Takes the lock and listens, until logind or the bus has another owner.
    async fn watch(&self) -> zbus::Result<()> {
        let bus = self.connect().await?;
        let logind = Login1Proxy::new(&bus).await?;
        // Subscribed before anything is read, so that nothing is missed in between.
        let mut owners = logind.inner().receive_owner_changed().await?;
        let mut told = logind.receive_prepare_for_shutdown_with_metadata().await?;
        let mut signals = logind.receive_prepare_for_shutdown().await?;
        let mut hearing = Ok(());
        let mut asking =
            Asking { calls: futures::stream::pending().boxed(), heard: None, spent: None };
        if !logind.inner().introspect().await?.contains(WITH_METADATA) {
            match self.calls().await {
                Ok(stream) => asking.calls = stream,
                Err(error) => hearing = Err(error),
            }
        }
        let going = logind.preparing_for_shutdown().await?;
        let how = if going { Some(asking.how(&logind).await?) } else { None };
        self.goes_down(how);
        if !going {
            self.take(&logind).await?;
        }
        let holds_back = logind.inhibit_delay_max_usec().await? / 1_000_000;
        self.state.send_modify(|state| {
            state.asked = true;
            state.holds_back = Some(holds_back);
            state.trouble = hearing.err().map(|error| {
                format!(
                    "every reboot of this host counts as a shutdown, since the calls that logind \
                     gets can't be read: {error}"
                )
            });
        });
        loop {
            tokio::select! {
                biased;
                () = bus.closed() => return Err(zbus::Error::InputOutput(Arc::new(
                    std::io::Error::other("the bus is gone"),
                ))),
                owner = owners.next() => {
                    tracing::info!(?owner, "logind has another owner");
                    // Whoever comes is asked anew; a start of it on demand is the bus's affair.
                    return Ok(());
                }
                Some(how) = asking.calls.next() => {
                    asking.heard = Some(Asked { at: wall_micros(), how });
                }
                Some(signal) = told.next() => {
                    let args = signal.args()?;
                    let kind = args.metadata.get("type").and_then(|v| v.downcast_ref().ok());
                    let how = kind.map_or(GoingDown::Shutdown, meaning);
                    self.news(&logind, args.start.then_some(how)).await?;
                }
                Some(signal) = signals.next() => {
                    let start = signal.args()?.start;
                    // What the signal before it has said stands.
                    if start && self.state.borrow().going_down.is_none() {
                        let how = asking.how(&logind).await?;
                        self.news(&logind, Some(how)).await?;
                    } else if !start {
                        asking.heard = None;
                        self.news(&logind, None).await?;
                    }
                }
            }
        }
    }

    /// The machine is about to go down, or is not any more: then the lock is taken again.
    async fn news(&self, logind: &Login1Proxy<'_>, how: Option<GoingDown>) -> zbus::Result<()> {
        self.goes_down(how);
        if how.is_none() && self.lock().is_none() {
            self.take(logind).await?;
        }
        Ok(())
    }

    fn goes_down(&self, how: Option<GoingDown>) {
        let before = self.state.send_if_modified(|state| {
            let changed = state.going_down != how;
            state.going_down = how;
            changed
        });
        if before {
            tracing::info!(?how, "logind on going down");
            self.changed.notify_one();
        }
    }

    /// Takes a lock; one that was held until now goes only then.
    async fn take(&self, logind: &Login1Proxy<'_>) -> zbus::Result<()> {
        let why = "Virtual machines are stopped or moved first";
        let lock = logind.inhibit("shutdown", "Stockade", why, "delay").await?;
        *self.lock() = Some(lock.into());
        Ok(())
    }

    /// The calls that ask logind to let the machine go down, as the bus shows them to root.
    async fn calls(&self) -> zbus::Result<BoxStream<'static, GoingDown>> {
        let bus = self.connect().await?;
        let messages = MessageStream::from(&bus);
        let rule = MatchRule::builder()
            .msg_type(zbus::message::Type::MethodCall)
            .interface("org.freedesktop.login1.Manager")
            .build()?;
        zbus::fdo::MonitoringProxy::new(&bus).await?.become_monitor(&[rule], 0).await?;
        let asked = messages.filter_map(|message| async move {
            let message = message.ok()?;
            let member = message.header().member()?.to_string();
            let shutdown = member.starts_with("PowerOff") || member.starts_with("Halt");
            let how = if shutdown { Some(GoingDown::Shutdown) } else { None };
            if member.starts_with("Reboot") { Some(GoingDown::Reboot) } else { how }
        });
        Ok(asked.boxed())
    }
}

impl Asking {
    /// How the machine goes down that logind says is about to.
    async fn how(&mut self, logind: &Login1Proxy<'_>) -> zbus::Result<GoingDown> {
        let (kind, due) = logind.scheduled_shutdown().await?;
        let now = wall_micros();
        let scheduled = (!kind.is_empty() && self.spent != Some(due))
            .then(|| Asked { at: due, how: meaning(&kind) });
        if due <= now {
            self.spent = Some(due);
        }
        if let Some(how) = latest(now, scheduled, self.heard.take()) {
            return Ok(how);
        }
        // The bus may show the call later than the signal; a power button asks without a call.
        let call = tokio::time::timeout(LATE, self.calls.next()).await;
        Ok(call.ok().flatten().unwrap_or(GoingDown::Shutdown))
    }
}

/// What was asked for last, if that was lately.
fn latest(now: u64, scheduled: Option<Asked>, heard: Option<Asked>) -> Option<GoingDown> {
    let lately = |asked: &Asked| asked.at <= now && now - asked.at <= ASKED;
    let all = scheduled.into_iter().chain(heard).filter(lately);
    all.max_by_key(|asked| asked.at).map(|asked| asked.how)
}

/// What logind's word for a way down means to the VMs.
fn meaning(kind: &str) -> GoingDown {
    match kind {
        "reboot" | "kexec" | "soft-reboot" => GoingDown::Reboot,
        _ => GoingDown::Shutdown,
    }
}

/// Microseconds since the Unix epoch, as logind counts them.
fn wall_micros() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_last_and_lately_says_how_the_machine_goes_down() {
        let (reboot, off) = (GoingDown::Reboot, GoingDown::Shutdown);
        let asked = |at, how| Some(Asked { at, how });
        let now = 10 * ASKED;
        assert_eq!(latest(now, None, None), None);
        assert_eq!(latest(now, asked(now, reboot), None), Some(reboot));
        assert_eq!(latest(now, asked(now - 9, reboot), asked(now - 5, off)), Some(off));
        assert_eq!(latest(now, asked(now - 5, reboot), asked(now - 9, off)), Some(reboot));
        assert_eq!(latest(now, asked(now + 1, reboot), None), None, "it is not due yet");
        assert_eq!(latest(now, asked(now - ASKED - 1, reboot), None), None, "it came to nothing");
        assert_eq!(latest(now, None, asked(now - ASKED - 1, reboot)), None);
    }
}
