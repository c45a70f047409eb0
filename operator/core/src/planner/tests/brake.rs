//! The storm brake counts what the API says of shots, whoever led when they were made.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;

use super::*;

/// A host that is silent for long, with a VM on it and a certificate open.
fn silent() -> Bed {
    let mut bed = Bed::doubted();
    bed.beat(&["h2", "h3"], 10);
    bed
}

/// The API says that a host was shot so many seconds ago; that has been seen for as many.
fn shot(bed: &mut Bed, host: &str, seconds: i64) {
    let at = Timestamp::from_second(bed.world.wall_seconds - seconds).unwrap();
    let mut object = bed.world.hosts[host].as_ref().clone();
    object.status.get_or_insert_default().last_shot_time = Some(Time(at));
    bed.world.hosts.insert(host.into(), Arc::new(object));
}

fn noted(bed: &Bed, host: &str) -> Option<i64> {
    let status = bed.world.hosts[host].status.as_ref()?;
    Some(status.last_shot_time.as_ref()?.0.as_second())
}

#[test]
fn a_shot_is_ordered_only_once_the_api_says_so() {
    let mut bed = silent();
    let first = plan(&bed.world);
    assert_eq!(fence_calls(&first, "h1"), []);
    assert_eq!(first.wake_at, Some(bed.world.now + 1_000), "if it can't be written");
    bed.write_hosts();
    assert_eq!(noted(&bed, "h1"), Some(bed.world.wall_seconds));
    assert_eq!(noted(&bed, "h2"), None);
    assert_eq!(fence_calls(&plan(&bed.world), "h1"), [FenceAction::Off]);
    // An order of long after is noted anew.
    bed.beat(&["h2", "h3"], 40);
    assert_eq!(fence_calls(&plan(&bed.world), "h1"), []);
    bed.write_hosts();
    assert_eq!(noted(&bed, "h1"), Some(bed.world.wall_seconds));
}

#[test]
fn an_off_that_is_ordered_on_a_reading_of_off_is_no_shot() {
    let mut bed = Bed::doubted();
    bed.beat(&["h2", "h3"], 5);
    bed.call("h1", FenceAction::Status, FenceResult::Off, bed.world.now - 1_000);
    assert_eq!(fence_calls(&plan(&bed.world), "h1"), [FenceAction::Off]);
    bed.write_hosts();
    assert_eq!(noted(&bed, "h1"), None);
}

#[test]
fn a_shot_of_an_earlier_leader_counts_for_ten_minutes() {
    for (seconds, held) in [(0, true), (599, true), (700, false), (-3_600, true)] {
        let mut bed = silent();
        shot(&mut bed, "h2", seconds);
        let shot = bed.shots("h1").contains(&FenceAction::Off);
        assert_eq!(!shot, held, "{seconds} s ago");
    }
}

#[test]
fn a_shot_of_a_clock_that_was_ahead_is_forgotten_in_time_all_the_same() {
    let mut bed = silent();
    shot(&mut bed, "h2", -3_600);
    bed.world.seen_since.insert("shot/h2".into(), bed.world.now);
    bed.beat(&["h2", "h3"], 700);
    assert_eq!(bed.shots("h1"), [FenceAction::Off]);
}

#[test]
fn the_shots_that_a_host_got_itself_do_not_save_it_from_the_next() {
    let mut bed = silent();
    shot(&mut bed, "h1", 60);
    assert_eq!(bed.shots("h1"), [FenceAction::Off]);
}

#[test]
fn the_shots_of_a_host_whose_vm_will_not_end_do_not_save_it_either() {
    let mut bed = Bed::new();
    let spec = json!({"stopFailure": "Fence", "stormBrakeHosts": 1});
    bed.world.policy =
        Some(of(json!({"metadata": {"name": "default", "generation": 1}, "spec": spec})));
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Stopped", json!({"epoch": 1, "orderId": 1, "state": "StopFailed"}));
    bed.world.seen_since.insert(format!("domain/h1/{UID}"), 0);
    bed.certificate("h1", json!({}));
    assert!(bed.shots("h1").contains(&FenceAction::Off));
    shot(&mut bed, "h2", 60);
    assert!(!bed.shots("h1").contains(&FenceAction::Off), "another host counts");
}

#[test]
fn two_of_three_hosts_silent_at_once_shoot_nobody() {
    let mut bed = Bed::doubted();
    bed.beat(&["h3"], 20);
    bed.call("h1", FenceAction::Status, FenceResult::On, bed.world.now - 3_000);
    assert!(!bed.shots("h1").contains(&FenceAction::Off));
}

#[test]
fn a_host_that_is_back_only_just_still_counts_for_the_brake() {
    let mut bed = Bed::doubted();
    bed.beat(&["h3"], 20);
    bed.beat(&["h2", "h3"], 2);
    assert!(!bed.shots("h1").contains(&FenceAction::Off));
    bed.beat(&["h2", "h3"], 20);
    assert_eq!(bed.shots("h1"), [FenceAction::Off]);
}
