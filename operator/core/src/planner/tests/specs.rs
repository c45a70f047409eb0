//! Specs that can't work, though the server took them.

use super::*;

/// What the VM's Ready condition says of a spec with this in it; nothing is placed for it.
fn refused(spec: Value) -> String {
    let mut bed = Bed::new();
    bed.add_vm(spec, Value::Null);
    let plan = plan(&bed.world);
    assert!(placements(&plan).is_empty());
    assert_eq!(word(&plan), VmState::Blocked);
    plan.vms[0].1.conditions[0].message.clone()
}

#[test]
fn every_problem_of_a_spec_is_told_at_once() {
    let said = refused(json!({"disks": [
        {"name": "a", "storage": "none", "existing": {"path": "a.img"}},
        {"name": "b", "storage": "vms", "existing": {"path": "b.img"}},
        {"name": "c", "storage": "vms", "existing": {"path": "b.img"}},
        {"name": "d", "storage": "vms", "blank": {}, "size": "much"},
    ]}));
    for field in ["spec.disks[a].storage", "spec.disks[c].existing.path", "spec.disks[d].size"] {
        assert!(said.contains(field), "{field} is not in {said:?}");
    }
}

#[test]
fn no_guest_gets_what_is_stockades_own_on_a_storage() {
    for own in ["web.raw.stockade/3.json", ".stockade/cluster", "web.raw.nvram", "a.nvram/b"] {
        for kind in ["existing", "image"] {
            let disk = json!({"name": "root", "storage": "vms", kind: {"path": own}});
            let said = refused(json!({"disks": [disk]}));
            assert!(said.contains(&format!("spec.disks[root].{kind}.path")), "{own}: {said}");
        }
    }
}

#[test]
fn uefi_variables_have_one_vm_that_writes_them() {
    let shared = json!({
        "name": "cd", "storage": "vms", "existing": {"path": "cd.img"}, "readOnly": true,
    });
    let own = json!({"name": "root", "storage": "vms", "existing": {"path": "web.img"}});
    for disks in [json!([]), json!([shared, own])] {
        let said = refused(json!({"firmware": {"kind": "UEFI"}, "disks": disks}));
        assert!(said.contains("spec.firmware.kind"), "{said}");
    }
    let mut bed = Bed::new();
    bed.add_vm(json!({"firmware": {"kind": "UEFI"}, "disks": [own, shared]}), Value::Null);
    assert_eq!(placements(&plan(&bed.world)).len(), 1);
}
