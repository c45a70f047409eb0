//! Moves that can't begin, and what they keep from happening.

use super::*;
use stockade_crds::names::CAUSE_LABEL;
use stockade_crds::v1alpha1::MigrationOutcome;

/// The VM runs on h1, which is to be emptied; h2 has no certificates in force.
fn drained() -> Bed {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
    let mut host = serde_json::to_value(bed.world.hosts["h1"].as_ref()).unwrap();
    host["spec"]["mode"] = json!("Maintenance");
    bed.world.hosts.insert("h1".into(), of(host));
    let mut agent = serde_json::to_value(bed.world.agents["h2"].as_ref()).unwrap();
    agent["status"]["moveRequests"] = json!({"control": "c", "memory": "m"});
    bed.world.agents.insert("h2".into(), of(agent));
    bed
}

/// Where Stockade orders moves to.
fn ordered(bed: &Bed) -> Vec<String> {
    let target = |intent: &Intent| match intent {
        Intent::CreateMigration { spec, .. } => spec.target.clone(),
        _ => None,
    };
    plan(&bed.world).intents.iter().filter_map(target).collect()
}

#[test]
fn a_drain_goes_to_the_host_whose_certificates_are_in_force() {
    assert_eq!(ordered(&drained()), ["h3"]);
}

#[test]
fn an_own_move_that_cannot_begin_is_given_up_and_bars_the_others_no_longer() {
    let mut bed = drained();
    bed.world.migrations.insert(
        Key::new("default", "web-drain-1"),
        of(json!({
            "metadata": {
                "name": "web-drain-1", "namespace": "default", "uid": "m1", "generation": 1,
                "labels": {CAUSE_LABEL: "Drain"},
            },
            "spec": {"vm": "web", "target": "h2"},
        })),
    );
    let told = |bed: &Bed| {
        let report = plan(&bed.world).migrations.remove(0).1;
        (report.status.outcome, report.conditions[0].message.clone())
    };
    let why = "h2: its certificates for live moves are not in force yet".to_owned();
    assert_eq!(told(&bed), (MigrationOutcome::Pending, why.clone()));
    assert!(ordered(&bed).is_empty());
    bed.world.seen_since.insert("migration/m1".into(), bed.world.now);
    bed.beat(&["h1", "h2", "h3"], 30);
    assert_eq!(told(&bed), (MigrationOutcome::Refused, why));
}
