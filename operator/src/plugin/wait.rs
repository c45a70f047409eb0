//! Waiting for what was ordered, and telling how it goes.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::error::PluginError;

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// How long to wait.
#[derive(clap::Args, Clone, Copy, Debug)]
pub(super) struct Wait {
    /// Wait until it is done.
    #[arg(long)]
    pub(super) wait: bool,
    /// Longest time to wait, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 600, requires = "wait")]
    pub(super) timeout: u64,
}

/// What one look saw.
pub(super) enum Seen<T> {
    /// It is over.
    Over(T),
    /// Not yet: how it stands. Told whenever it changes.
    Pending(String),
}

/// Looks until it is over, printing how it stands at each change.
///
/// # Errors
/// [`PluginError::NotInTime`] with the last state and `remedy`; what a look failed with.
pub(super) async fn until<T>(
    seconds: u64,
    remedy: &str,
    mut look: impl AsyncFnMut() -> Result<Seen<T>, PluginError>,
) -> Result<T, PluginError> {
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut told = String::new();
    loop {
        match look().await? {
            Seen::Over(value) => return Ok(value),
            Seen::Pending(state) => {
                if state != told {
                    println!("{state}");
                    told = state;
                }
            }
        }
        if Instant::now() >= end {
            return Err(PluginError::NotInTime { what: format!("{told}; {remedy}"), seconds });
        }
        sleep(PAUSE).await;
    }
}
