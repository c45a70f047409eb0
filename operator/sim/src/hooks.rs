//! Runs that are bit-exact: clock and randomness of the whole program, std and every crate
//! included, come from the seed while a run's thread asks.
//!
//! Hash maps of std and ahash, `SystemTime`, `Instant`, jittered back-offs: all of them reach
//! the kernel through two functions, which [`crate::link_hooks`] puts this module in front of.
//! Threads outside a run are served by the kernel as ever. A program has them only if it says
//! so: `stockade-simulate` and tests do. Nothing that touches real hosts may have its clock
//! made up.
#![allow(unsafe_code, reason = "two C functions are replaced, which Rust has no safe word for")]

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::sync::Once;
use std::time::{Duration, SystemTime};

use libc::{c_int, c_uint, c_void, clockid_t, size_t, ssize_t, timespec};
use tokio::time::Instant;

use crate::rng::Rng;

/// Wall-clock time at the start of a run: 2026-01-01T00:00:00Z.
const WALL_SECONDS: u64 = 1_767_225_600;
/// Monotonic clocks start here, so that going back a little is no underflow.
const MONOTONIC_SECONDS: u64 = 100_000;

thread_local! {
    static RANDOM: RefCell<Option<Rng>> = const { RefCell::new(None) };
    static RUNNING: Cell<bool> = const { Cell::new(false) };
    static ASKING: Cell<bool> = const { Cell::new(false) };
    static START: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// The allocator of programs that simulate. They live on small pieces of JSON: a run takes a fifth
/// less time with it.
pub use mimalloc::MiMalloc as Allocator;

/// Puts this module in front of the kernel's clock and random numbers in the whole program that
/// says it, once, in its main file, and has it use [`Allocator`].
#[macro_export]
macro_rules! link_hooks {
    () => {
        #[global_allocator]
        static ALLOCATOR: $crate::hooks::Allocator = $crate::hooks::Allocator;

        #[allow(unsafe_code, reason = "a C function is replaced")]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn getrandom(
            buffer: *mut ::core::ffi::c_void,
            length: usize,
            flags: ::core::ffi::c_uint,
        ) -> isize {
            // SAFETY: the caller keeps to the same terms.
            unsafe { $crate::hooks::getrandom(buffer, length, flags) }
        }

        #[allow(unsafe_code, reason = "a C function is replaced")]
        #[unsafe(no_mangle)]
        unsafe extern "C" fn clock_gettime(
            clock: ::core::ffi::c_int,
            time: *mut ::core::ffi::c_void,
        ) -> ::core::ffi::c_int {
            // SAFETY: the caller keeps to the same terms.
            unsafe { $crate::hooks::clock_gettime(clock, time.cast()) }
        }
    };
}

/// `getrandom(2)`: from the seed inside a run, from the kernel otherwise.
///
/// # Safety
/// As the system call: `buffer` must be writable for `length` bytes.
pub unsafe fn getrandom(buffer: *mut c_void, length: size_t, flags: c_uint) -> ssize_t {
    let seeded = RANDOM.with(|random| {
        let Ok(mut random) = random.try_borrow_mut() else { return false };
        let Some(random) = random.as_mut() else { return false };
        if buffer.is_null() {
            return false;
        }
        // SAFETY: not null, and the caller says that it is writable for that length.
        random.fill(unsafe { std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length) });
        true
    });
    if seeded {
        return ssize_t::try_from(length).unwrap_or(ssize_t::MAX);
    }
    // SAFETY: the caller's arguments, unchanged, to the call that it meant.
    unsafe { libc::syscall(libc::SYS_getrandom, buffer, length, flags) as ssize_t }
}

/// `clock_gettime(2)`: virtual time inside a run, the kernel's otherwise.
///
/// # Safety
/// As the system call: `time` must be writable.
pub unsafe fn clock_gettime(clock: clockid_t, time: *mut timespec) -> c_int {
    // Reading virtual time may ask for real time underneath: that question goes to the kernel.
    if RUNNING.get() && !time.is_null() && !ASKING.replace(true) {
        let elapsed = START.get().map_or(Duration::ZERO, |start| Instant::now() - start);
        ASKING.set(false);
        let base = match clock {
            libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE => WALL_SECONDS,
            _ => MONOTONIC_SECONDS,
        };
        let now = Duration::from_secs(base) + elapsed;
        let told = timespec {
            tv_sec: libc::time_t::try_from(now.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: libc::c_long::from(now.subsec_nanos()),
        };
        // SAFETY: not null, and the caller says that it is writable.
        unsafe { time.write(told) };
        return 0;
    }
    // SAFETY: the caller's arguments, unchanged, to the call that it meant.
    unsafe { libc::syscall(libc::SYS_clock_gettime, clock, time) as c_int }
}

struct Fixed;

impl ahash::random_state::RandomSource for Fixed {
    fn gen_hasher_seed(&self) -> usize {
        // Not a count of calls: runs of one process would see different maps.
        0x5eed
    }
}

/// Fixes what ahash draws once a process, before anything can have drawn it.
fn prepare() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // Refused only if a map of ahash exists already: then runs agree within this process.
        let _ = ahash::random_state::set_random_source(Fixed);
        RANDOM.with(|random| *random.borrow_mut() = Some(Rng::new(0)));
        let _ = ahash::RandomState::new();
        RANDOM.with(|random| *random.borrow_mut() = None);
    });
}

/// Runs `body` on a thread, a runtime and a virtual clock of its own, and returns its result:
/// the same for the same seed, on every machine. A panic in `body` goes on in the caller.
///
/// # Errors
/// The thread or the runtime cannot be made, or the program does not [`crate::link_hooks`].
pub fn run_deterministic<F, T, B>(seed: u64, body: B) -> std::io::Result<T>
where
    B: FnOnce() -> F + Send + 'static,
    F: Future<Output = T>,
    T: Send + 'static,
{
    prepare();
    // A fresh thread: std draws a thread's hash keys once.
    let thread = std::thread::Builder::new()
        .name(format!("run-{seed}"))
        .stack_size(8 << 20)
        .spawn(move || {
            RANDOM.with(|random| *random.borrow_mut() = Some(Rng::stream(seed, "hooks")));
            RUNNING.set(true);
            let began = SystemTime::UNIX_EPOCH + Duration::from_secs(WALL_SECONDS);
            if SystemTime::now() != began {
                let why = "no hooks: say stockade_sim::link_hooks!() in this program's main file";
                return Err(std::io::Error::other(why));
            }
            fastrand::seed(seed);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_time()
                .start_paused(true)
                .build()?;
            let result = runtime.block_on(async move {
                START.set(Some(Instant::now()));
                body().await
            });
            drop(runtime);
            RUNNING.set(false);
            Ok(result)
        })?;
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use futures::StreamExt;
    use k8s_openapi::api::coordination::v1::Lease;
    use kube::Api;
    use kube::runtime::{WatchStreamExt, watcher};
    use serde_json::json;

    use super::*;
    use crate::kube::{Fault, Scope, SimApi};

    /// All that is known to differ from run to run without the hooks, in one log.
    async fn log(seed: u64) -> Vec<String> {
        let mut log = Vec::new();
        let map: HashMap<u32, ()> = (0..100).map(|i| (i, ())).collect();
        log.push(format!("{:?}", map.keys().collect::<Vec<_>>()));
        log.push(format!("{}", fastrand::u64(..)));
        let api = SimApi::new(&[], seed).unwrap();
        api.faults().inject(Scope::All, Fault::Errors(0.4));
        let leases: Api<Lease> = Api::all(api.client("controller/0"));
        let admin = api.admin();
        tokio::spawn(async move {
            for i in 0..60 {
                let lease = json!({
                    "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
                    "metadata": {"name": format!("l{}", i % 5)},
                    "spec": {"holderIdentity": i.to_string()},
                });
                admin.apply(&lease).unwrap();
                tokio::time::sleep(Duration::from_secs(7)).await;
                if i % 10 == 9 {
                    api.faults().drop_watches(&Scope::All);
                    api.faults().compact();
                }
            }
        });
        let mut events = watcher(leases, watcher::Config::default()).default_backoff().boxed();
        let end = Instant::now() + Duration::from_secs(400);
        while let Ok(Some(event)) = tokio::time::timeout_at(end, events.next()).await {
            let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
            let event = match event {
                Ok(watcher::Event::Apply(l) | watcher::Event::InitApply(l)) => l.metadata.name,
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            };
            log.push(format!("{now:?} {event:?}"));
        }
        log
    }

    #[test]
    fn the_same_seed_gives_the_same_log() {
        let run = |seed| run_deterministic(seed, move || log(seed)).unwrap();
        let first = run(1);
        assert!(first.len() > 50, "{}", first.len());
        assert_eq!(first, run(1));
        assert_ne!(first, run(2));
    }

    #[test]
    fn threads_outside_a_run_keep_their_clock() {
        let before = SystemTime::now();
        let inside = run_deterministic(1, || async { SystemTime::now() }).unwrap();
        let base = SystemTime::UNIX_EPOCH + Duration::from_secs(WALL_SECONDS);
        assert_eq!(inside, base);
        assert!(SystemTime::now() >= before && before != base);
    }
}
