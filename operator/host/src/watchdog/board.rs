//! What agent, beats and feeder tell each other: one page of a file on a tmpfs, mapped by all.
#![allow(unsafe_code, reason = "memory that processes share has no safe wrapper")]

use std::fs::File;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::ptr::{NonNull, null_mut};
use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use stockade_core::agent::self_fence::Stamps;
use stockade_crds::v1alpha1::SelfFence;

/// Bytes of the page.
const SIZE: usize = 4096;

/// What the feeder is to do, by the agent's word.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Order {
    /// Tells it from the order before.
    pub serial: u64,
    /// Timings to be armed with; `None`: disarmed.
    pub timings: Option<SelfFence>,
}

/// What came of the last order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is in force.
    Done,
    /// The device could not be used, for this reason (errno); the order before is in force.
    Failed(i32),
    /// The device's time-out is no shorter than this, in seconds.
    TooSlow(u32),
}

/// Every field is a whole of its own; times are milliseconds of CLOCK_BOOTTIME, 0 is never.
#[repr(C)]
struct Page {
    /// When the newest acknowledged API renewal was sent. Written by the agent.
    api: AtomicU64,
    /// When the newest acknowledged beat of a listed storage was sent. Written by the beats.
    storage: AtomicU64,
    /// Written by the agent.
    wanted: Slot,
    /// Written by the feeder, like everything below.
    in_force: Slot,
    /// Serial of the last order that was looked at, and its answer: kind and detail.
    answered: AtomicU64,
    answer: [AtomicU64; 2],
    armed_at: AtomicU64,
    looked: AtomicU64,
    let_go: AtomicU64,
}

/// An order. `turn` is twice the serial, and odd while the fields are being written.
#[repr(C)]
struct Slot {
    turn: AtomicU64,
    fields: [AtomicU64; 6],
}

impl Slot {
    fn write(&self, order: &Order) {
        let words = match &order.timings {
            None => [0; 6],
            Some(t) => [
                1,
                unsigned(t.stop_seconds),
                unsigned(t.kill_seconds),
                unsigned(t.watchdog_seconds),
                unsigned(t.drift_per_mille),
                unsigned(t.margin_seconds),
            ],
        };
        self.turn.store(order.serial * 2 + 1, SeqCst);
        for (field, word) in self.fields.iter().zip(words) {
            field.store(word, SeqCst);
        }
        self.turn.store((order.serial + 1) * 2, SeqCst);
    }

    /// `None` while it is being written.
    fn read(&self) -> Option<Order> {
        let turn = self.turn.load(SeqCst);
        let [armed, stop, kill, watchdog, drift, margin] =
            self.fields.each_ref().map(|field| field.load(SeqCst));
        if turn % 2 == 1 || self.turn.load(SeqCst) != turn {
            return None;
        }
        let timings = (armed == 1).then(|| SelfFence {
            stop_seconds: signed(stop),
            kill_seconds: signed(kill),
            watchdog_seconds: signed(watchdog),
            drift_per_mille: signed(drift),
            margin_seconds: signed(margin),
            ..SelfFence::default()
        });
        Some(Order { serial: (turn / 2).saturating_sub(1), timings })
    }
}

fn unsigned(value: i32) -> u64 {
    value.unsigned_abs().into()
}

fn signed(value: u64) -> i32 {
    i32::try_from(value).unwrap_or(i32::MAX)
}

/// The shared page, mapped.
pub struct Board {
    page: NonNull<Page>,
}

// SAFETY: the page holds nothing but atomics and stays mapped until the board is dropped.
unsafe impl Send for Board {}
// SAFETY: as above.
unsafe impl Sync for Board {}

impl Board {
    /// The board's file; its name changes with its layout.
    #[must_use]
    pub fn path(run: &Path) -> PathBuf {
        run.join("watchdog-1")
    }

    /// Makes the board in this folder, or takes the one that an earlier feeder left.
    pub fn make(run: &Path) -> io::Result<Self> {
        let file = File::options()
            .create(true)
            .read(true)
            .write(true)
            .truncate(false)
            .mode(0o600)
            .open(Self::path(run))?;
        // New bytes are zeros: no order, no sign of life.
        file.set_len(SIZE as u64)?;
        Self::map(&file)
    }

    /// Opens the board that a feeder made; `None`: there never was one in this boot.
    pub fn open(run: &Path) -> io::Result<Option<Self>> {
        match File::options().read(true).write(true).open(Self::path(run)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            // A feeder that has just begun to make it.
            Ok(file) if file.metadata()?.len() < SIZE as u64 => Ok(None),
            Ok(file) => Self::map(&file).map(Some),
        }
    }

    fn map(file: &File) -> io::Result<Self> {
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new mapping of SIZE bytes; the file is as long and nobody shortens it.
        let start = unsafe { mmap(null_mut(), SIZE, access, MapFlags::SHARED, file, 0) }?;
        let page = NonNull::new(start.cast::<Page>());
        Ok(Self { page: page.ok_or_else(|| io::Error::other("mapped at address 0"))? })
    }

    fn page(&self) -> &Page {
        // SAFETY: mapped, page-aligned and SIZE bytes long, which is more than a Page; all of it is
        // atomics, for which every bit pattern is valid.
        unsafe { self.page.as_ref() }
    }

    /// The agent's newest order; `None` while it is being written.
    #[must_use]
    pub fn wanted(&self) -> Option<Order> {
        self.page().wanted.read()
    }

    /// Orders; what was ordered before in this boot is overruled. Returns the order's serial.
    pub fn order(&self, timings: Option<SelfFence>) -> u64 {
        // An agent that died while it wrote left an odd turn.
        let serial = self.page().wanted.turn.load(SeqCst) / 2 + 1;
        self.page().wanted.write(&Order { serial, timings });
        serial
    }

    /// What the feeder does.
    #[must_use]
    pub fn in_force(&self) -> Option<Order> {
        self.page().in_force.read()
    }

    /// What came of the order with this serial; `None`: the feeder has not looked at it yet.
    #[must_use]
    pub fn answer(&self, serial: u64) -> Option<Answer> {
        let page = self.page();
        if page.answered.load(SeqCst) != serial {
            return None;
        }
        let [kind, detail] = page.answer.each_ref().map(|word| word.load(SeqCst));
        Some(match kind {
            0 => Answer::Done,
            1 => Answer::Failed(signed(detail)),
            _ => Answer::TooSlow(u32::try_from(detail).unwrap_or(u32::MAX)),
        })
    }

    /// Called by the feeder, once the order is in force or refused.
    pub(super) fn answers(&self, order: &Order, answer: Answer) {
        let page = self.page();
        let (kind, detail) = match answer {
            Answer::Done => {
                page.in_force.write(order);
                (0, 0)
            }
            Answer::Failed(errno) => (1, unsigned(errno)),
            Answer::TooSlow(seconds) => (2, seconds.into()),
        };
        page.answer[0].store(kind, SeqCst);
        page.answer[1].store(detail, SeqCst);
        page.answered.store(order.serial, SeqCst);
    }

    /// An API renewal that was sent at this time is acknowledged.
    pub fn api_renewed(&self, sent: u64) {
        self.page().api.fetch_max(sent, SeqCst);
    }

    /// A beat of a listed storage that was sent at this time is acknowledged.
    pub fn storage_renewed(&self, sent: u64) {
        self.page().storage.fetch_max(sent, SeqCst);
    }

    pub(super) fn armed_at(&self, now: u64) {
        self.page().armed_at.store(now, SeqCst);
    }

    /// The newest signs of life, arming among them.
    #[must_use]
    pub fn stamps(&self) -> Stamps {
        let page = self.page();
        let known = |at: u64| (at > 0).then_some(at);
        let api = page.api.load(SeqCst).max(page.armed_at.load(SeqCst));
        Stamps { storage: known(page.storage.load(SeqCst)), api: known(api) }
    }

    /// When the feeder looked last.
    #[must_use]
    pub fn looked(&self) -> u64 {
        self.page().looked.load(SeqCst)
    }

    pub(super) fn looks(&self, now: u64) {
        self.page().looked.store(now, SeqCst);
    }

    /// When the feeder let go for good.
    #[must_use]
    pub fn let_go(&self) -> Option<u64> {
        Some(self.page().let_go.load(SeqCst)).filter(|at| *at > 0)
    }

    pub(super) fn lets_go(&self, now: u64) {
        self.page().let_go.store(now.max(1), SeqCst);
    }
}

impl Drop for Board {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; nothing borrows from it any more.
        let _ = unsafe { munmap(self.page.as_ptr().cast(), SIZE) };
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn two_who_map_it_see_the_same_and_an_order_under_way_is_none() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Board::open(folder.path()).unwrap().is_none(), "no feeder ever ran");
        let feeder = Board::make(folder.path()).unwrap();
        let agent = Board::open(folder.path()).unwrap().unwrap();
        assert_eq!(feeder.wanted(), Some(Order::default()));
        let timings = SelfFence { watchdog_seconds: 9, ..SelfFence::default() };
        let serial = agent.order(Some(timings.clone()));
        let order = Order { serial, timings: Some(timings) };
        assert_eq!(feeder.wanted().as_ref(), Some(&order));
        assert_eq!(agent.answer(serial), None);
        feeder.answers(&order, Answer::TooSlow(60));
        assert_eq!(agent.answer(serial), Some(Answer::TooSlow(60)));
        assert_eq!(agent.in_force(), Some(Order::default()), "refused");
        feeder.answers(&order, Answer::Done);
        assert_eq!(agent.in_force(), Some(order));

        feeder.page().wanted.turn.store(serial * 2 + 3, SeqCst);
        assert_eq!(feeder.wanted(), None, "its writer died in the middle");
        assert!(agent.order(None) > serial);
        assert_eq!(feeder.wanted().unwrap().timings, None);
    }

    #[test]
    fn stamps_never_fall_and_arming_is_a_sign_of_life() {
        let folder = tempfile::tempdir().unwrap();
        let board = Board::make(folder.path()).unwrap();
        assert_eq!(board.stamps(), Stamps::default());
        board.storage_renewed(40);
        board.storage_renewed(30);
        board.armed_at(50);
        board.api_renewed(20);
        assert_eq!(board.stamps(), Stamps { storage: Some(40), api: Some(50) });
    }
}
