#![allow(clippy::unwrap_used, clippy::panic)]
//! What `examples/quickstart` declares holds together: every reference resolves.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use serde::Deserialize;
use serde_yaml::Value;
use stockade_core::validate::policy_problems;
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, FenceDevice, Host, SharedStorage, VirtualMachine,
};

fn documents() -> Vec<(String, Value)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/quickstart");
    let mut files: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut found = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).unwrap();
        for document in serde_yaml::Deserializer::from_str(&text) {
            let value = Value::deserialize(document).unwrap();
            found.push((value["kind"].as_str().unwrap().to_owned(), value));
        }
    }
    found
}

/// Every object of a kind, and no field that its type does not know.
fn of<T: for<'a> Deserialize<'a> + serde::Serialize>(kind: &str) -> Vec<T> {
    documents()
        .into_iter()
        .filter(|(found, _)| found == kind)
        .map(|(_, value)| {
            let typed: T = serde_yaml::from_value(value.clone()).unwrap();
            assert_known(kind, &value, &serde_yaml::to_value(&typed).unwrap());
            typed
        })
        .collect()
}

fn assert_known(path: &str, written: &Value, typed: &Value) {
    for (key, value) in written.as_mapping().into_iter().flatten() {
        let name = key.as_str().unwrap();
        let path = format!("{path}.{name}");
        let known = typed.get(name).unwrap_or_else(|| panic!("{path}: no such field"));
        assert_known(&path, value, known);
    }
}

#[test]
fn every_disk_of_the_quickstart_lies_on_a_declared_storage() {
    let storages: BTreeMap<String, SharedStorage> = of::<SharedStorage>("SharedStorage")
        .into_iter()
        .map(|storage| (storage.metadata.name.clone().unwrap(), storage))
        .collect();
    let vms: Vec<VirtualMachine> = of("VirtualMachine");
    assert!(!vms.is_empty());
    for disk in vms.iter().flat_map(|vm| &vm.spec.disks) {
        assert!(storages.contains_key(&disk.storage), "{}", disk.storage);
    }
    let policies: Vec<AvailabilityPolicy> = of("AvailabilityPolicy");
    assert_eq!(policies.len(), 1);
    let storages = storages.iter().map(|(name, storage)| (name.as_str(), storage));
    assert!(policy_problems(&policies[0].spec, storages, false).is_empty());
}

#[test]
fn every_host_of_the_quickstart_has_a_device_with_its_plug() {
    let devices: Vec<FenceDevice> = of("FenceDevice");
    let hosts: Vec<Host> = of("Host");
    assert!(hosts.len() >= 3, "two hosts can't lose one and still move");
    let mut used = BTreeSet::new();
    for host in hosts {
        let name = host.metadata.name.unwrap();
        for device in host.spec.fencing.iter().flat_map(|level| &level.devices) {
            let found = devices.iter().find(|d| d.metadata.name.as_ref() == Some(device));
            let found = found.unwrap_or_else(|| panic!("{name}: there is no device {device}"));
            assert!(found.spec.plugs.contains_key(&name), "{device} has no plug for {name}");
            used.insert(device.clone());
        }
    }
    assert_eq!(used.len(), devices.len(), "a device that no host uses");
}
