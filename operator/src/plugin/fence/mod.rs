//! `fence`: reading plugs, looking back, and a human's word.

mod confirm;
mod history;
mod test;

use clap::Subcommand;

use super::error::PluginError;
use super::session::Session;

/// The verbs about fencing.
#[derive(Subcommand)]
pub(super) enum Verb {
    /// Have a host's plugs read now. Nothing is switched.
    Test(test::Arguments),
    /// What was done and read, and what was proven.
    History(history::Arguments),
    /// Say that a host's last boot is dead, because you have seen it yourself.
    Confirm(confirm::Arguments),
}

pub(super) async fn run(session: &Session, verb: Verb) -> Result<(), PluginError> {
    match verb {
        Verb::Test(a) => test::run(session, &a).await,
        Verb::History(a) => history::run(session, &a).await,
        Verb::Confirm(a) => confirm::run(session, &a).await,
    }
}
