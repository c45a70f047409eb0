//! The agent's and the beats' side of the board.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::io::Errno;
use stockade_core::agent::self_fence::distrust;
use stockade_crds::v1alpha1::SelfFence;

use super::board::{Answer, Board};
use super::{device, listed_path};
use crate::error::{HostError, HostResult};
use crate::files::{failed, replace_for_this_boot};
use crate::machine::boottime_millis;
use crate::ports::WatchdogPort;

const OP: &str = "arm";
const TARGET: &str = "watchdog";
/// How long the feeder may take to look at an order.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(50);
/// A feeder that has not looked for so long, in milliseconds, does not run.
const LOOKS: u64 = 3_000;

/// Where the agent finds feeder and device.
#[derive(Clone, Debug)]
pub struct WatchdogOptions {
    /// Folder of the board.
    pub run: PathBuf,
    /// The watchdog.
    pub device: PathBuf,
}

/// The board, opened once a feeder has made it.
#[derive(Default)]
struct Opened(Mutex<Option<Arc<Board>>>);

impl Opened {
    fn get(&self, run: &Path) -> HostResult<Option<Arc<Board>>> {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if board.is_none() {
            let found = Board::open(run).map_err(failed(OP, &Board::path(run)))?;
            *board = found.map(Arc::new);
        }
        Ok(board.clone())
    }
}

/// A machine's own watchdog and the process that feeds it.
pub struct RealWatchdog {
    options: WatchdogOptions,
    board: Opened,
}

impl RealWatchdog {
    /// Nothing is opened before a feeder is there.
    #[must_use]
    pub fn new(options: WatchdogOptions) -> Self {
        Self { options, board: Opened::default() }
    }

    /// The board of a feeder that runs.
    fn feeder(&self) -> HostResult<Arc<Board>> {
        let board = self.board.get(&self.options.run)?;
        board.filter(|board| boottime_millis().saturating_sub(board.looked()) < LOOKS).ok_or_else(
            || {
                let message = "stockade-feeder does not run: systemctl start stockade-feeder";
                HostError::refused(OP, TARGET, message)
            },
        )
    }

    async fn obeyed(&self, timings: Option<&SelfFence>) -> HostResult<()> {
        let board = self.feeder()?;
        let serial = board.order(timings.cloned());
        let answered = async {
            loop {
                if let Some(answer) = board.answer(serial) {
                    return answer;
                }
                tokio::time::sleep(PAUSE).await;
            }
        };
        let answer = tokio::time::timeout(ANSWER_LIMIT, answered).await;
        let device = self.options.device.display();
        let refused = |message: String| Err(HostError::refused(OP, TARGET, message));
        match answer {
            Ok(Answer::Done) => Ok(()),
            Ok(Answer::TooSlow(seconds)) => refused(format!(
                "{device} can't fire within less than {seconds} s: raise the policy's \
                 selfFence.watchdogSeconds"
            )),
            Ok(Answer::Failed(errno)) if errno == Errno::BUSY.raw_os_error() => refused(format!(
                "another program has {device} open (wdmd for sanlock, systemd's \
                 RuntimeWatchdogSec, watchdogd): elapsed time is no proof for this host"
            )),
            Ok(Answer::Failed(errno)) => {
                refused(format!("{device}: {}", std::io::Error::from_raw_os_error(errno)))
            }
            Err(_) => Err(HostError::unknown(OP, TARGET, "stockade-feeder has not answered")),
        }
    }
}

impl WatchdogPort for RealWatchdog {
    fn arm<'a>(
        &'a self,
        timings: &'a SelfFence,
        storages: &'a [String],
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            let identity = device::identity(&self.options.device).unwrap_or_default();
            if let Some(why) = distrust(&identity, in_a_vm(), &timings.trust_watchdogs) {
                return Err(HostError::refused(OP, TARGET, why));
            }
            // Disarmed it would go unfed, and reset a host that is well.
            if device::never_stops(&self.options.device) {
                let message = "its driver was loaded with nowayout, so that it could never be \
                               disarmed: load it with nowayout=0";
                return Err(HostError::refused(OP, TARGET, message));
            }
            let path = listed_path(&self.options.run);
            replace_for_this_boot(&path, storages.join("\n").as_bytes())
                .map_err(failed(OP, &path))?;
            self.obeyed(Some(timings)).await
        }
        .boxed()
    }

    fn disarm(&self) -> BoxFuture<'_, HostResult<()>> {
        async move { self.obeyed(None).await }.boxed()
    }

    fn armed(&self) -> BoxFuture<'_, HostResult<Option<SelfFence>>> {
        async move {
            let Some(board) = self.board.get(&self.options.run)? else { return Ok(None) };
            let order = board.in_force();
            let order =
                order.ok_or_else(|| HostError::unknown("read", TARGET, "it is being armed"))?;
            Ok(order.timings)
        }
        .boxed()
    }

    fn api_renewed(&self, sent_millis: u64) {
        // What can't be told is a sign of life less.
        if let Ok(Some(board)) = self.board.get(&self.options.run) {
            board.api_renewed(sent_millis);
        }
    }
}

/// Whether this machine is a virtual one, by its CPU's own word.
fn in_a_vm() -> bool {
    let text = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find_map(|line| line.strip_prefix("flags"));
    flags.is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

/// The beats' side: their acknowledged writes are signs of life, where they are listed.
pub struct Renewals {
    run: PathBuf,
    board: Opened,
}

impl Renewals {
    /// For the board in this folder, once there is one.
    #[must_use]
    pub fn new(run: &Path) -> Self {
        Self { run: run.to_owned(), board: Opened::default() }
    }

    /// A beat on this storage, sent at `sent` (milliseconds of CLOCK_BOOTTIME), is acknowledged.
    pub fn beaten(&self, storage: &str, sent: u64) {
        let Ok(Some(board)) = self.board.get(&self.run) else { return };
        let text = fs::read_to_string(listed_path(&self.run)).unwrap_or_default();
        let listed: BTreeSet<&str> = text.lines().collect();
        if listed.contains(storage) {
            board.storage_renewed(sent);
        }
    }
}
