//! A witness of who writes: for each disk of a proving guest, which QEMU wrote to it and when, and
//! whether what it wrote ever went back.
//!
//! In: the disks. Out: what must never be seen. It looks at the kernel's own count of the bytes that
//! each process wrote and at the disks, some fifty times a second, and asks none of those that it
//! watches. A guest writes eighteen times a second, so a copy that runs at all is seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::ProcessId;
use super::guest::SECTOR;

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(15);
/// A process may become a QEMU by exec so long after it is first seen.
const YOUNG: Duration = Duration::from_secs(3);
/// Files are written in pages of this size, a guest's disk in sectors of 512 bytes. Where sectors
/// are as large as pages no writer is ever seen: [`Written::writer`] then stays empty.
const PAGE: u64 = 4096;
/// QEMU's name as the kernel keeps it.
const QEMU: &str = "qemu-system-x86";

/// Watches until it is dropped.
#[derive(Debug)]
pub struct Witness {
    over: Arc<AtomicBool>,
    seen: Arc<Mutex<Seen>>,
    thread: Option<JoinHandle<()>>,
}

/// What one disk's guest has done so far.
#[derive(Clone, Debug, Default)]
pub struct Written {
    /// Ticks since its last boot.
    pub ticks: u64,
    /// How often it booted.
    pub boots: u64,
    /// The QEMU that wrote last.
    pub writer: Option<i32>,
    /// Those that wrote before.
    past: BTreeSet<i32>,
}

#[derive(Debug, Default)]
struct Seen {
    disks: BTreeMap<PathBuf, Written>,
    wrong: Vec<String>,
    looks: u64,
}

impl Witness {
    /// Begins to watch the guests of these disks.
    #[must_use]
    pub fn start(disks: &[PathBuf]) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let mut seen = Seen::default();
        seen.disks.extend(disks.iter().map(|disk| (disk.clone(), Written::default())));
        let seen = Arc::new(Mutex::new(seen));
        let thread = thread::spawn({
            let (over, seen, disks) = (Arc::clone(&over), Arc::clone(&seen), disks.to_vec());
            move || {
                let mut look = Look::new(disks);
                while !over.load(Ordering::Relaxed) {
                    look.once(&seen);
                    thread::sleep(PAUSE);
                }
            }
        });
        Self { over, seen, thread: Some(thread) }
    }

    /// What must never be seen and was.
    #[must_use]
    pub fn wrong(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).wrong.clone()
    }

    /// How often it has looked.
    #[must_use]
    pub fn looks(&self) -> u64 {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).looks
    }

    /// What the guest of a disk has done so far.
    #[must_use]
    pub fn written(&self, disk: &Path) -> Written {
        let seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.disks.get(disk).cloned().unwrap_or_default()
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A QEMU of one of the disks.
#[derive(Debug)]
struct Qemu {
    process: ProcessId,
    disk: PathBuf,
    bytes: u64,
}

struct Look {
    started: Instant,
    disks: Vec<PathBuf>,
    files: BTreeMap<PathBuf, File>,
    known: BTreeMap<i32, Instant>,
    qemus: Vec<Qemu>,
}

impl Look {
    fn new(disks: Vec<PathBuf>) -> Self {
        let known = BTreeMap::new();
        let files = BTreeMap::new();
        Self { started: Instant::now(), disks, files, known, qemus: Vec::new() }
    }

    fn once(&mut self, seen: &Mutex<Seen>) {
        self.find();
        let at = self.started.elapsed().as_secs_f64();
        let mut active: BTreeMap<PathBuf, Vec<i32>> = BTreeMap::new();
        self.qemus.retain_mut(|qemu| {
            let Some(bytes) = written_bytes(&qemu.process) else { return false };
            // What it writes at its start, its pid file for one, is counted in pages.
            if (bytes - qemu.bytes) % PAGE != 0 {
                active.entry(qemu.disk.clone()).or_default().push(qemu.process.pid);
            }
            qemu.bytes = bytes;
            true
        });
        let counts: Vec<_> =
            self.disks.clone().into_iter().map(|disk| (self.count(&disk), disk)).collect();
        let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.looks += 1;
        let Seen { disks, wrong, .. } = &mut *seen;
        for (count, disk) in counts {
            let written = disks.entry(disk.clone()).or_default();
            let name = disk.file_name().unwrap_or_default().to_string_lossy().into_owned();
            for pid in active.remove(&disk).unwrap_or_default() {
                if let Some(trouble) = written.by(pid) {
                    wrong.push(format!("{at:.2} s: {name}: {trouble}"));
                }
            }
            if let Some((ticks, boots)) = count
                && let Some(trouble) = written.went(ticks, boots)
            {
                wrong.push(format!("{at:.2} s: {name}: {trouble}"));
            }
        }
    }

    /// Looks for QEMUs that are new.
    fn find(&mut self) {
        let Ok(entries) = fs::read_dir("/proc") else { return };
        let pids: BTreeSet<i32> =
            entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect();
        self.known.retain(|pid, _| pids.contains(pid));
        for pid in pids {
            let first = *self.known.entry(pid).or_insert_with(Instant::now);
            let taken = self.qemus.iter().any(|qemu| qemu.process.pid == pid);
            if taken || first.elapsed() > YOUNG && self.started.elapsed() > YOUNG {
                continue;
            }
            let is_qemu = fs::read_to_string(format!("/proc/{pid}/comm"));
            if !is_qemu.is_ok_and(|name| name.trim() == QEMU) {
                continue;
            }
            let Ok(line) = fs::read(format!("/proc/{pid}/cmdline")) else { continue };
            let line = String::from_utf8_lossy(&line);
            let disk = self.disks.iter().find(|disk| line.contains(&*disk.to_string_lossy()));
            if let (Some(disk), Some(process)) = (disk, ProcessId::of(pid)) {
                self.qemus.push(Qemu { process, disk: disk.clone(), bytes: 0 });
            }
        }
    }

    /// Ticks and boots of a disk's guest.
    fn count(&mut self, disk: &Path) -> Option<(u64, u64)> {
        if !self.files.contains_key(disk) {
            self.files.insert(disk.to_owned(), File::open(disk).ok()?);
        }
        let mut bytes = [0; 16];
        self.files.get(disk)?.read_exact_at(&mut bytes, SECTOR as u64).ok()?;
        let (ticks, boots) = bytes.split_at(8);
        let number = |b: &[u8]| Some(u64::from_le_bytes(b.try_into().ok()?));
        Some((number(ticks)?, number(boots)?))
    }
}

impl Written {
    /// A QEMU wrote; what is wrong with that.
    fn by(&mut self, pid: i32) -> Option<String> {
        if self.past.contains(&pid) {
            let after = self.writer.unwrap_or_default();
            return Some(format!("QEMU {pid} wrote again after QEMU {after} had written"));
        }
        if self.writer != Some(pid) {
            self.past.extend(self.writer.replace(pid));
        }
        None
    }

    /// The disk says this of its guest; what is wrong with that.
    fn went(&mut self, ticks: u64, boots: u64) -> Option<String> {
        let back = boots < self.boots || (boots == self.boots && ticks < self.ticks);
        let trouble = back
            .then(|| format!("its guest went back from {} to {ticks} (boot {boots})", self.ticks));
        (self.ticks, self.boots) = (ticks, boots);
        trouble
    }
}

/// Bytes that a process has caused to be written to storage; `None`: it is gone.
fn written_bytes(process: &ProcessId) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{}/io", process.pid)).ok()?;
    let bytes = text.lines().find_map(|line| line.strip_prefix("write_bytes: "))?.parse().ok()?;
    process.lives().then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_that_writes_after_another_is_seen() {
        let mut written = Written::default();
        assert_eq!(written.by(1), None);
        assert_eq!(written.by(1), None);
        assert_eq!(written.by(2), None, "a hand-over");
        assert_eq!(written.by(2), None);
        assert!(written.by(1).is_some_and(|said| said.contains("QEMU 1 wrote again")));
        assert_eq!(written.by(2), None);
    }

    #[test]
    fn a_guest_that_goes_back_without_a_boot_is_seen() {
        let mut written = Written::default();
        assert_eq!(written.went(5, 1), None);
        assert_eq!(written.went(5, 1), None);
        assert_eq!(written.went(1, 2), None, "it booted anew");
        assert_eq!(written.went(9, 2), None);
        assert!(written.went(8, 2).is_some());
        assert!(written.went(80, 1).is_some());
    }
}
