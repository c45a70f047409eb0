//! Local hosts that look dead from one side and are not. Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use stockade_e2e::play::{Cluster, Log, hung_agent};

#[tokio::test]
async fn a_host_whose_agent_hangs_is_isolated_and_its_guest_goes_on() {
    let log = Log::new();
    let mut cluster = Cluster::start(2, false, &log).await.unwrap();
    let mut done = cluster.wait_ready().await;
    if done.is_ok() {
        done = hung_agent(&mut cluster, &log).await;
    }
    if let Err(why) = cluster.end(done) {
        panic!("{why}");
    }
}
