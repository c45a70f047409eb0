//! What is wrong with a VM is told at once, all of it.

use super::*;

#[test]
fn a_vm_with_several_wrong_fields_is_told_all_of_them_at_once_and_placed_nowhere() {
    let mut bed = Bed::new();
    let closed = json!({
        "metadata": {"name": "closed", "generation": 1},
        "spec": {"mountPath": "/srv/closed", "directory": {}, "namespaces": ["accounts"]},
    });
    bed.world.storages.insert("closed".into(), of(closed));
    let disk = |name: &str, storage: &str, path: &str| json!({"name": name, "storage": storage, "format": "raw", "existing": {"path": path}});
    let disks = [
        disk("root", "vms", "web.img"),
        disk("lost", "nowhere", "lost.img"),
        disk("locked", "closed", "locked.img"),
        disk("twice", "vms", "web.img"),
    ];
    bed.add_vm(json!({"memory": "plenty", "disks": disks}), Value::Null);
    let plan = plan(&bed.world);
    assert!(placements(&plan).is_empty());
    assert_eq!(word(&plan), VmState::Blocked);
    let ready = &plan.vms[0].1.conditions[0];
    assert_eq!((ready.type_, ready.status), ("Ready", Some(false)));
    for (field, remedy) in [
        ("spec.memory: ", "write it like 512Mi"),
        ("spec.disks[lost].storage: ", "name one that exists"),
        ("spec.disks[locked].storage: ", "add it to the storage's spec.namespaces"),
        ("spec.disks[twice].existing.path: ", "name it once"),
    ] {
        let said = ready.message.contains(field) && ready.message.contains(remedy);
        assert!(said, "{field}{remedy}: {}", ready.message);
    }
    assert!(!ready.message.contains("disks[root]"), "that one is right: {}", ready.message);
}
