//! What `./dev play --simulated --once` shows, as a test: neither root nor libvirt is needed.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use stockade_e2e::play::{Log, Simulated};

#[tokio::test]
async fn a_vm_lives_through_the_whole_tour_on_a_real_kube_apiserver_and_never_runs_twice() {
    let log = Log::new();
    let hosts = Simulated::start(3, false, &log).await.unwrap();
    assert!(hosts.obey("cut h9").unwrap_err().contains("h1, h2, h3"));
    assert!(hosts.obey("burn h1").unwrap_err().contains("cut, on, panic"));
    let mut done = hosts.wait_ready().await;
    if done.is_ok() {
        done = hosts.tour(&log).await;
    }
    if let Err(error) = done {
        panic!("{error}\n{}", hosts.dump());
    }
}
