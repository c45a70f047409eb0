//! The process that feeds the watchdog, and lets go for good when no path of life is left.

use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::mm::{MlockAllFlags, mlockall};
use stockade_core::agent::self_fence::{Feed, feed};
use stockade_crds::v1alpha1::SelfFence;

use super::board::{Answer, Board, Order};
use super::device::{Device, RealDevice};
use crate::error::{HostError, HostResult};
use crate::files::failed;
use crate::machine::boottime_millis;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// The watchdog is fed so often within its time-out.
const FEEDS: u64 = 5;

/// Where the feeder finds what it works with.
#[derive(Clone, Debug)]
pub struct FeederOptions {
    /// Folder of the board.
    pub run: PathBuf,
    /// The watchdog.
    pub device: PathBuf,
    /// The cgroup that holds the scopes of all QEMUs.
    pub cgroups: PathBuf,
}

/// Feeds until killed. Returns at once if another process feeds for this folder.
///
/// # Errors
/// If the board can't be made, or memory can't be locked.
pub fn run(options: &FeederOptions) -> HostResult<Infallible> {
    const OP: &str = "feed";
    let run = &options.run;
    fs::create_dir_all(run).map_err(failed(OP, run))?;
    let path = run.join("feeder.lock");
    let lock = File::create(&path).map_err(failed(OP, &path))?;
    if lock.try_lock().is_err() {
        return Err(HostError::refused(OP, path.display().to_string(), "it is fed already"));
    }
    let board = Board::make(run).map_err(failed(OP, &Board::path(run)))?;
    let device = RealDevice::new(&options.device);
    let mut feeder = Feeder::new(board, device, &options.cgroups);
    // Nothing of it may wait for a disk from here on.
    mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE)
        .map_err(|error| HostError::failed(OP, "memory", error.to_string()))?;
    let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    loop {
        feeder.look(boottime_millis());
        thread::sleep(PAUSE);
    }
}

/// The feeder's state between two looks.
pub struct Feeder<D> {
    board: Board,
    device: D,
    cgroups: PathBuf,
    in_force: Order,
    /// The device runs with the time-out in force.
    running: bool,
    fed: Option<u64>,
}

impl<D: Device> Feeder<D> {
    /// Goes on with what an earlier feeder of this boot had in force.
    pub fn new(board: Board, device: D, cgroups: &Path) -> Self {
        // An earlier one that died while it wrote has answered nothing: the order is looked at anew.
        let in_force = board.in_force().unwrap_or_default();
        Self { board, device, cgroups: cgroups.to_owned(), in_force, running: false, fed: None }
    }

    /// One look, at `now` in milliseconds of CLOCK_BOOTTIME.
    pub fn look(&mut self, now: u64) {
        self.board.looks(now);
        if self.board.let_go().is_some() {
            // What the agent may have started since.
            self.kill();
            return;
        }
        if let Some(wanted) = self.board.wanted().filter(|w| w.serial != self.in_force.serial) {
            self.obey(wanted, now);
        }
        let timings = self.in_force.timings.as_ref();
        match feed(now, self.board.stamps(), timings) {
            Feed::KillAndStop => {
                self.board.lets_go(now);
                self.kill();
            }
            Feed::Feed => {
                if let Some(timings) = timings.cloned() {
                    self.feed(&timings, now);
                }
            }
        }
    }

    fn obey(&mut self, wanted: Order, now: u64) {
        if self.board.answer(wanted.serial).is_some() {
            return;
        }
        let answer = match &wanted.timings {
            None => {
                self.device.stop();
                self.running = false;
                Answer::Done
            }
            Some(timings) => self.start(timings),
        };
        if answer == Answer::Done {
            if wanted.timings.is_some() && self.in_force.timings.is_none() {
                self.board.armed_at(now);
            }
            self.in_force = wanted.clone();
            self.fed = None;
        } else if self.in_force.timings.is_none() {
            self.device.stop();
        } else {
            // What was in force goes on, with its own time-out.
            self.running = false;
        }
        self.board.answers(&wanted, answer);
    }

    fn start(&mut self, timings: &SelfFence) -> Answer {
        let asked = timings.watchdog_seconds.unsigned_abs();
        match self.device.start(asked) {
            // The proof counts on the time-out that was ordered: a longer one would end too late.
            Ok(took) if took > asked => Answer::TooSlow(took),
            Ok(_) => {
                self.running = true;
                Answer::Done
            }
            Err(error) => Answer::Failed(error.raw_os_error().unwrap_or_default()),
        }
    }

    fn feed(&mut self, timings: &SelfFence, now: u64) {
        // A feeder that was started anew, and a device that did not answer.
        if !self.running && self.start(timings) != Answer::Done {
            return;
        }
        let pause = u64::from(timings.watchdog_seconds.unsigned_abs()) * 1000 / FEEDS;
        let due = self.fed.is_none_or(|fed| now >= fed + pause);
        if due && self.device.feed().is_ok() {
            self.fed = Some(now);
        }
    }

    /// Kills every QEMU of the host: those that are not ours would end with it in a moment.
    fn kill(&self) {
        let Ok(entries) = fs::read_dir(&self.cgroups) else { return };
        for entry in entries.flatten() {
            if entry.file_name().as_encoded_bytes().starts_with(b"machine-qemu") {
                // One that has just ended has no such file.
                let _ = fs::write(entry.path().join("cgroup.kill"), "1");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::io;

    use rustix::io::Errno;

    use super::*;

    /// A device that remembers what is done to it.
    #[derive(Default)]
    struct Toy {
        /// Its time-out can't be shorter.
        least: u32,
        busy: bool,
        limit: Option<u32>,
        fed: Vec<u64>,
        now: u64,
    }

    impl Device for Toy {
        fn start(&mut self, seconds: u32) -> io::Result<u32> {
            if self.busy {
                return Err(Errno::BUSY.into());
            }
            self.limit = Some(seconds.max(self.least));
            Ok(seconds.max(self.least))
        }

        fn feed(&mut self) -> io::Result<()> {
            self.fed.push(self.now);
            Ok(())
        }

        fn stop(&mut self) {
            self.limit = None;
        }
    }

    struct Case {
        agent: Board,
        feeder: Feeder<Toy>,
        folder: tempfile::TempDir,
    }

    fn timings() -> SelfFence {
        SelfFence { stop_seconds: 20, watchdog_seconds: 10, ..SelfFence::default() }
    }

    impl Case {
        fn new(device: Toy) -> Self {
            let folder = tempfile::tempdir().unwrap();
            for scope in ["machine-qemu\\x2d1\\x2ddefault.web.scope", "session-1.scope"] {
                fs::create_dir(folder.path().join(scope)).unwrap();
            }
            let board = Board::make(folder.path()).unwrap();
            let agent = Board::open(folder.path()).unwrap().unwrap();
            let feeder = Feeder::new(board, device, folder.path());
            Self { agent, feeder, folder }
        }

        fn look(&mut self, now: u64) {
            self.feeder.device.now = now;
            self.feeder.look(now);
        }

        fn killed(&self, scope: &str) -> bool {
            self.folder.path().join(scope).join("cgroup.kill").exists()
        }

        /// The next process, with the same device and board.
        fn restarted(self) -> Self {
            let Self { agent, feeder, folder } = self;
            let feeder = Feeder::new(feeder.board, feeder.device, folder.path());
            Self { agent, feeder, folder }
        }
    }

    const VM: &str = "machine-qemu\\x2d1\\x2ddefault.web.scope";

    #[test]
    fn it_touches_no_device_before_it_is_armed_and_stops_it_when_it_is_disarmed() {
        let mut c = Case::new(Toy::default());
        c.look(1_000);
        assert!(c.feeder.device.limit.is_none() && c.feeder.device.fed.is_empty());
        let serial = c.agent.order(Some(timings()));
        c.look(1_200);
        assert_eq!(c.agent.answer(serial), Some(Answer::Done));
        assert_eq!(c.agent.in_force().unwrap().timings, Some(timings()));
        assert_eq!((c.feeder.device.limit, c.feeder.device.fed.len()), (Some(10), 1));
        let serial = c.agent.order(None);
        c.look(1_400);
        assert_eq!(c.agent.answer(serial), Some(Answer::Done));
        assert_eq!(c.feeder.device.limit, None);
        c.look(1_000_000);
        assert!(c.agent.let_go().is_none(), "a disarmed host is never reset");
    }

    #[test]
    fn either_path_of_life_feeds_and_with_none_the_vms_are_killed_and_it_lets_go_for_good() {
        let mut c = Case::new(Toy::default());
        c.agent.order(Some(timings()));
        c.look(1_000);
        for (now, storage) in [(10_000, true), (25_000, false), (40_000, true)] {
            if storage {
                c.agent.storage_renewed(now)
            } else {
                c.agent.api_renewed(now)
            }
            c.look(now + 19_999);
            assert_eq!(c.feeder.device.fed.last(), Some(&(now + 19_999)));
        }
        assert!(!c.killed(VM));
        c.look(60_000);
        assert_eq!(c.agent.let_go(), Some(60_000));
        assert!(c.killed(VM) && !c.killed("session-1.scope"));
        let fed = c.feeder.device.fed.len();
        c.agent.api_renewed(60_100);
        let order = c.agent.order(None);
        c.look(60_200);
        let mut c = c.restarted();
        c.look(60_400);
        assert_eq!(
            c.feeder.device.fed.len(),
            fed,
            "life that comes back late resets it all the same"
        );
        assert_eq!(c.agent.answer(order), None, "nor is it disarmed any more");
        assert_eq!(c.feeder.device.limit, Some(10));
    }

    #[test]
    fn a_feeder_that_is_started_anew_goes_on_armed() {
        let mut c = Case::new(Toy::default());
        c.agent.order(Some(timings()));
        c.look(1_000);
        let mut c = c.restarted();
        c.agent.api_renewed(2_000);
        c.look(2_500);
        assert_eq!(c.feeder.device.fed, [1_000, 2_500]);
        c.look(22_000);
        assert!(c.agent.let_go().is_some());
    }

    #[test]
    fn a_device_that_fires_later_than_ordered_or_is_not_ours_is_refused_and_left_alone() {
        let mut c = Case::new(Toy { least: 30, ..Toy::default() });
        let serial = c.agent.order(Some(timings()));
        c.look(1_000);
        assert_eq!(c.agent.answer(serial), Some(Answer::TooSlow(30)));
        assert_eq!(c.feeder.device.limit, None);
        assert_eq!(c.agent.in_force().unwrap().timings, None);

        let mut c = Case::new(Toy { busy: true, ..Toy::default() });
        let serial = c.agent.order(Some(timings()));
        c.look(1_000);
        assert_eq!(c.agent.answer(serial), Some(Answer::Failed(Errno::BUSY.raw_os_error())));
        c.look(1_000_000);
        assert!(c.agent.let_go().is_none());
    }

    #[test]
    fn other_timings_take_the_place_of_those_in_force_and_refused_ones_do_not() {
        let mut c = Case::new(Toy { least: 8, ..Toy::default() });
        c.agent.order(Some(timings()));
        c.look(1_000);
        let refused = c.agent.order(Some(SelfFence { watchdog_seconds: 5, ..timings() }));
        c.look(1_200);
        assert_eq!(c.agent.answer(refused), Some(Answer::TooSlow(8)));
        assert_eq!(c.feeder.device.limit, Some(10), "its own again");
        let longer = SelfFence { stop_seconds: 60, ..timings() };
        c.agent.order(Some(longer.clone()));
        c.look(1_400);
        assert_eq!(c.agent.in_force().unwrap().timings, Some(longer));
        c.look(60_999);
        assert!(c.agent.let_go().is_none());
        c.look(61_000);
        assert!(c.agent.let_go().is_some(), "60 s after it was armed, the second order is no life");
    }
}
