//! What is kept of an epoch that is over, or of a move, for as long as somebody may ask.

use super::*;
use stockade_crds::v1alpha1::{MigrationSide, MigrationStep};

/// The VM runs on h2 by its second epoch; its first, on h1, was released.
fn second_epoch(unmarked: bool) -> Bed {
    let mut bed = Bed::new();
    let of_host = |epoch: i64, host: &str, state: &str| {
        json!({
            "epoch": epoch, "host": host, "hostUid": format!("uid-{host}"),
            "bootId": bed.boot(host), "state": state, "unmarked": unmarked && epoch == 1,
        })
    };
    let both = [of_host(1, "h1", "Released"), of_host(2, "h2", "Ordered")];
    bed.add_vm(json!({}), json!({"epoch": 2, "host": "h2", "placements": both}));
    bed.domain("h2", "Running", json!({"epoch": 2, "orderId": 1, "state": "Running"}));
    let key = OrderKey::new("h2", UID);
    let mut order = bed.world.domains[&key].as_ref().clone();
    order.spec.epoch = 2;
    bed.world.domains.insert(key, Arc::new(order));
    bed
}

#[test]
fn a_release_without_a_mark_beside_the_disk_stays_named_and_one_with_it_is_forgotten() {
    for unmarked in [true, false] {
        let plan = plan(&second_epoch(unmarked).world);
        let (_, report) = &plan.vms[0];
        let kept: Vec<i64> = report.status.placements.iter().map(|p| p.epoch).collect();
        assert_eq!(kept, if unmarked { vec![1, 2] } else { vec![2] });
    }
}

#[test]
fn what_the_release_says_of_its_marks_is_kept_with_the_placement() {
    for unmarked in [true, false] {
        let mut bed = Bed::new();
        bed.placed("h1", "Ordered");
        let said = json!({
            "epoch": 1, "orderId": 1, "state": "Ended", "released": true, "end": "HostRestarted",
            "unmarked": unmarked,
        });
        bed.domain("h1", "Running", said);
        let placed = crate::gate::settle(&bed.world, &bed.world.vms[&Key::new("default", "web")]);
        assert_eq!((placed[0].state, placed[0].unmarked), (EpochState::Released, unmarked));
    }
}

/// What the order for h1 says of a move in the next plan, if its source was told `step` and has since
/// said `state` of it.
fn part_kept(want: &str, step: &str, state: Option<&str>) -> Option<MigrationStep> {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    let told = state.map(|state| json!({"id": "m1", "state": state}));
    let said = json!({"epoch": 1, "orderId": 1, "state": "Running", "migration": told});
    bed.domain("h1", want, said);
    let key = OrderKey::new("h1", UID);
    let mut order = serde_json::to_value(bed.world.domains[&key].as_ref()).unwrap();
    order["spec"]["migration"] = json!({"id": "m1", "side": "Source", "peer": "h2", "step": step});
    bed.world.domains.insert(key.clone(), of(order));
    let written = plan(&bed.world).intents.into_iter().find_map(|intent| match intent {
        Intent::WriteDomain(write) if write.host == "h1" => Some(write.spec),
        _ => None,
    });
    let order = written.unwrap_or_else(|| bed.world.domains[&key].spec.clone());
    order.migration.filter(|m| m.side == MigrationSide::Source).map(|m| m.step)
}

#[test]
fn a_source_that_was_away_finds_its_part_of_a_move_that_is_over_until_it_has_answered() {
    // It left by our own move: an agent that comes back must not take that for somebody's hand.
    assert_eq!(part_kept("Killed", "Commit", None), Some(MigrationStep::Commit));
    // Nothing begins any more.
    assert_eq!(part_kept("Running", "Copy", None), Some(MigrationStep::Abort));
    assert_eq!(part_kept("Running", "Copy", Some("Unknown")), Some(MigrationStep::Abort));
    assert_eq!(part_kept("Running", "Abort", Some("Failed")), None);
}
