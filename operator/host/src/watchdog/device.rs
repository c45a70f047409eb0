//! A watchdog device of the kernel (Documentation/watchdog/watchdog-api.rst).
#![allow(unsafe_code, reason = "the time-out is set by an ioctl that has no safe wrapper")]

use std::ffi::c_int;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, BorrowedFd, FromRawFd as _};
use std::path::{Path, PathBuf};

use rustix::ioctl::{Opcode, Updater, ioctl, opcode};

/// `WDIOC_SETTIMEOUT` of linux/watchdog.h: seconds in, those that the device took out.
const SET_TIMEOUT: Opcode = opcode::read_write::<c_int>(b'W', 6);
/// The byte before a close that stops the device.
const MAGIC: &[u8] = b"V";

/// What the feeder does with a watchdog.
pub trait Device {
    /// Starts it if it does not run, with a time-out in seconds; the one that it took.
    fn start(&mut self, seconds: u32) -> io::Result<u32>;
    /// Puts its end off by the time-out.
    fn feed(&mut self) -> io::Result<()>;
    /// Stops it.
    fn stop(&mut self);
}

/// What a watchdog calls itself; `None`: there is none.
#[must_use]
pub fn identity(device: &Path) -> Option<String> {
    attribute(device, "identity")
}

/// Whether its driver runs on for good once it is started.
#[must_use]
pub fn never_stops(device: &Path) -> bool {
    attribute(device, "nowayout").is_some_and(|text| text != "0")
}

fn attribute(device: &Path, name: &str) -> Option<String> {
    let path = Path::new("/sys/class/watchdog").join(device.file_name()?).join(name);
    fs::read_to_string(path).ok().map(|text| text.trim().to_owned())
}

/// A device of this machine.
pub struct RealDevice {
    path: PathBuf,
    file: Option<File>,
}

impl RealDevice {
    /// A device that is opened when it is started, unless systemd has kept it open for us while we
    /// were started anew.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let kept = sd_notify::listen_fds().ok().and_then(|mut all| all.next());
        // SAFETY: systemd hands each descriptor to this process alone, and this is called once.
        let file = kept.map(|number| unsafe { File::from_raw_fd(number) });
        Self { path: path.to_owned(), file }
    }
}

/// Has systemd keep it open while this process is started anew; nothing where there is no systemd.
fn keep(descriptor: BorrowedFd<'_>) {
    use sd_notify::NotifyState::{FdName, FdStore};
    let _ = sd_notify::notify_with_fds(&[FdStore, FdName("watchdog")], &[descriptor]);
}

/// It may be closed by us, and is to be forgotten.
fn forget() {
    use sd_notify::NotifyState::{FdName, FdStoreRemove};
    let _ = sd_notify::notify(&[FdStoreRemove, FdName("watchdog")]);
}

impl Device for RealDevice {
    fn start(&mut self, seconds: u32) -> io::Result<u32> {
        let file = match self.file.take() {
            Some(file) => file,
            None => File::options().write(true).open(&self.path)?,
        };
        let mut value = c_int::try_from(seconds).unwrap_or(c_int::MAX);
        // SAFETY: the driver reads and writes one int through this pointer.
        let set = unsafe { ioctl(&file, Updater::<SET_TIMEOUT, c_int>::new(&mut value)) };
        // Open is running, whatever comes of the time-out.
        keep(file.as_fd());
        self.file = Some(file);
        set?;
        u32::try_from(value).map_err(|_| io::Error::other("a negative time-out"))
    }

    fn feed(&mut self) -> io::Result<()> {
        match &mut self.file {
            Some(file) => file.write_all(b"."),
            None => Err(io::Error::other("it is not open")),
        }
    }

    fn stop(&mut self) {
        let Some(mut file) = self.file.take() else { return };
        // What could not be told to stop runs on, and stays ours.
        if file.write_all(MAGIC).is_err() {
            self.file = Some(file);
            return;
        }
        forget();
    }
}
