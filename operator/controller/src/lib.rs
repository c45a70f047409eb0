//! The controller: watches, plans, applies, reports.
//!
//! ```text
//! watches ─► Cache ─► World ─► stockade_core::planner::plan ─► apply ─► update_status
//!              ▲                                                 │
//!              └──── what a write answered ◄─────────────────────┘
//! ```
//! One planner loop on a world that the watches keep up to date: placement and
//! fencing are decisions about the whole, so no kind has a reconciler of its own.
//! Only [`apply`], `authority`, `update_status`, `leader`, `lineage` and `events` write.

mod apply;
mod authority;
mod cache;
mod context;
mod dereference;
mod error;
mod events;
mod fencing;
mod leader;
mod lineage;
mod observed;
mod requests;
mod serving;
mod update_status;
mod watch;

pub use context::Context;
pub use error::ControllerError;
pub use leader::LEASE_NAME;
pub use observed::Observed;
pub use requests::CountRequests;
pub use serving::ServingHosts;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cache::Cache;
use crate::context::Shared;

/// Changes are gathered for so long before a plan is made.
const GATHER: Duration = Duration::from_millis(20);
/// A plan is made at least so often: evidence ages without any change.
const TICK: Duration = Duration::from_secs(1);
/// One that doesn't lead looks so often whether it does.
const STANDBY: Duration = Duration::from_millis(500);

/// Runs until `shutdown` ends. Plans only while it leads; otherwise it keeps its world warm.
///
/// # Errors
/// Never while it runs: everything is retried. An error says why it could not begin.
pub async fn run(
    context: Context,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ControllerError> {
    let observed = Arc::new(Observed::new(Arc::clone(&context.clock)));
    run_observed(context, observed, shutdown).await
}

/// As [`run`], and counts what it does for others to look at.
///
/// # Errors
/// As [`run`].
pub async fn run_observed(
    context: Context,
    observed: Arc<Observed>,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ControllerError> {
    let shared = Arc::new(Shared::new(context, observed));
    let (changes, mut news) = mpsc::unbounded_channel();
    let watches = watch::all(Arc::clone(&shared), changes);
    let lead = leader::run(Arc::clone(&shared));
    let loop_shared = Arc::clone(&shared);
    let plan = async move {
        let mut cache = Cache::new(&loop_shared);
        let mut due = Instant::now();
        loop {
            // A beat that only goes on is taken in passing: a thousand hosts beat all the time.
            let mut wanted = false;
            while !wanted {
                wanted = tokio::select! {
                    biased;
                    change = news.recv() => match change {
                        Some(change) => cache.take(change, loop_shared.now()),
                        None => return,
                    },
                    () = loop_shared.fence_done.notified() => true,
                    () = tokio::time::sleep_until(due) => true,
                };
            }
            tokio::time::sleep(GATHER).await;
            while let Ok(change) = news.try_recv() {
                cache.take(change, loop_shared.now());
            }
            let (leads, listed) = (loop_shared.leads().is_some(), cache.listed());
            loop_shared.observed.turn(listed, leads);
            if !leads || !listed {
                due = Instant::now() + STANDBY;
                continue;
            }
            let world = dereference::world(&loop_shared, &mut cache);
            let begun = std::time::Instant::now();
            let plan = stockade_core::planner::plan(&world);
            loop_shared.observed.planned(&world, &plan, begun.elapsed());
            if world.tolerates.is_none() {
                cache.tolerates = Some((plan.tolerates, world.now));
            }
            cache.uneven_since = plan.uneven.then(|| cache.uneven_since.unwrap_or(world.now));
            cache.wake_at = plan.wake_at;
            let mut answers = apply::apply(&loop_shared, &world, &plan).await;
            answers.extend(update_status::update(&loop_shared, &world, &plan).await);
            cache.take_back(world);
            let learned = cache.learn(answers, loop_shared.now());
            due = Instant::now();
            if !learned {
                due += TICK.min(Duration::from_millis(cache.wake_in(&loop_shared)));
            }
        }
    };
    tokio::select! {
        biased;
        () = shutdown => {}
        () = lead => {}
        () = watches => {}
        () = plan => {}
    }
    leader::release(&shared).await;
    Ok(())
}
