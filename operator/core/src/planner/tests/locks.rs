//! Locks that lie on a storage of their own.

use super::*;

/// A further storage that every host has mounted, and a LockManager there that guards `vms`.
fn guarded(mode: &str) -> Bed {
    let mut bed = Bed::new();
    let nfs = json!({"server": "nas", "export": "/locks"});
    bed.world.storages.insert(
        "locks".into(),
        of(json!({
            "metadata": {"name": "locks", "generation": 1},
            "spec": {"mountPath": "/srv/locks", "nfs": nfs},
        })),
    );
    let spec = json!({"kind": "virtlockd", "storage": "locks", "guards": ["vms"], "mode": mode});
    bed.world.lock_managers.insert(
        "locks".into(),
        of(json!({"metadata": {"name": "locks", "generation": 1}, "spec": spec})),
    );
    for host in ["h1", "h2", "h3"] {
        let mut agent = serde_json::to_value(bed.world.agents[host].as_ref()).unwrap();
        let told = json!({"name": "locks", "mountPath": "/srv/locks", "kind": "NFS"});
        agent["spec"]["storages"].as_array_mut().unwrap().push(told);
        agent["status"]["storages"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": "locks", "ready": true}));
        agent["status"]["lock"] = json!("virtlockd");
        bed.world.agents.insert(host.into(), of(agent));
    }
    bed
}

#[test]
fn a_host_is_told_of_every_storage_whose_vms_are_locked_there() {
    let plan = plan(&guarded("Active").world);
    let told = plan.intents.iter().find_map(|intent| match intent {
        Intent::WriteHostAgent { host, spec, .. } if host == "h1" => spec.lock.as_ref(),
        _ => None,
    });
    let told = told.expect("a lock manager");
    assert_eq!(told.lockspace, "/srv/locks/.stockade/locks");
    assert_eq!(told.guards, ["locks", "vms"]);
    assert_eq!(placements(&plan).len(), 1);
}

#[test]
fn in_maintenance_nothing_of_a_guarded_storage_starts_and_it_says_why() {
    let bed = guarded("Maintenance");
    let plan = plan(&bed.world);
    assert!(placements(&plan).is_empty());
    assert_eq!(word(&plan), VmState::Blocked);
    assert!(plan.vms[0].1.conditions[0].message.contains("LockManager locks is in maintenance"));
    let (_, locks) = &plan.lock_managers[0];
    assert_eq!(locks.conditions[0].reason, "InMaintenance");
}

#[test]
fn a_manager_that_guards_what_is_not_there_says_so() {
    let mut bed = guarded("Active");
    bed.world.storages.remove("vms");
    let (_, locks) = plan(&bed.world).lock_managers.remove(0);
    assert_eq!(locks.conditions[0].reason, "NoSuchStorage");
}

#[test]
fn a_death_settles_nothing_before_the_locks_on_their_own_storage_are_broken() {
    for broken in [vec![], vec!["locks"]] {
        let mut bed = guarded("Active");
        bed.placed("h1", "Ordered");
        bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
        bed.beat(&["h2", "h3"], 12);
        bed.certificate("h1", json!({"proof": "Power", "locksBroken": broken}));
        assert_eq!(placements(&plan(&bed.world)).is_empty(), broken.is_empty());
    }
}
