//! A whole Stockade on real hosts: what `./dev play --once` shows, as a test. Needs root and the
//! built programs.
#![allow(clippy::unwrap_used, clippy::panic)]

use stockade_e2e::play::{Cluster, Log, tour};

#[tokio::test]
async fn a_vm_is_run_changed_mended_stopped_and_deleted_without_ever_running_twice() {
    let log = Log::new();
    let mut cluster = Cluster::start(3, false, &log).await.unwrap();
    let mut done = cluster.wait_ready().await;
    if done.is_ok() {
        done = tour(&mut cluster, &log).await;
    }
    if let Err(error) = done {
        let dump = cluster.dump();
        drop(cluster);
        panic!("{error}: {:?}\n{dump}", std::error::Error::source(&error).map(ToString::to_string));
    }
}
