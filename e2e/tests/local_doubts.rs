//! Local hosts that look dead from one side and are not. Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use stockade_e2e::play::{hung_agent, on_hosts};

#[tokio::test]
async fn a_host_whose_agent_hangs_is_isolated_and_its_guest_goes_on() {
    on_hosts(2, hung_agent).await.unwrap_or_else(|why| panic!("{why}"));
}
