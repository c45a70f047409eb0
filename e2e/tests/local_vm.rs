//! A whole Stockade on real hosts: what `./dev play --once` shows, as a test. Needs root and the
//! built programs.
#![allow(clippy::unwrap_used, clippy::panic)]

use stockade_e2e::play::{on_hosts, tour};

#[tokio::test]
async fn a_vm_is_run_changed_mended_stopped_and_deleted_without_ever_running_twice() {
    on_hosts(3, tour).await.unwrap_or_else(|why| panic!("{why}"));
}
