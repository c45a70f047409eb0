//! Small clusters for tests.

use std::collections::BTreeSet;

use stockade_crds::v1alpha1::HypervisorKind;

use super::*;

pub(super) fn host(name: &str) -> HostRow {
    HostRow {
        name: name.to_owned(),
        cpu: 16_000,
        memory_mib: 65_536,
        hypervisors: BTreeSet::from([HypervisorKind::KVM]),
        storages: BTreeSet::from(["vms".to_owned()]),
        ..HostRow::default()
    }
}

pub(super) fn hosts(n: usize) -> Vec<HostRow> {
    (1..=n).map(|i| host(&format!("h{i}"))).collect()
}

pub(super) fn key(name: &str) -> VmKey {
    VmKey::new("default", name)
}

pub(super) fn vm(name: &str) -> VmRow {
    VmRow { key: key(name), storages: BTreeSet::from(["vms".to_owned()]), ..VmRow::default() }
}

pub(super) fn on(name: &str, host: &str) -> VmRow {
    VmRow { on: vec![host.to_owned()], ..vm(name) }
}

pub(super) fn names(list: &[&str]) -> Vec<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

pub(super) fn set(list: &[&str]) -> BTreeSet<String> {
    list.iter().map(|s| (*s).to_owned()).collect()
}

pub(super) fn closed(name: &str, why: &str) -> HostRow {
    HostRow { accepts: Acceptance::No(why.to_owned()), ..host(name) }
}

/// Where the wanted VMs start, or the sentences against it.
pub(super) fn start(hosts: Vec<HostRow>, vms: Vec<VmRow>, wanted: &[&str]) -> Vec<String> {
    answer(hosts, vms, wanted, Mode::Start)
}

pub(super) fn answer(
    hosts: Vec<HostRow>,
    vms: Vec<VmRow>,
    wanted: &[&str],
    mode: Mode,
) -> Vec<String> {
    let keys: Vec<VmKey> = wanted.iter().map(|w| key(w)).collect();
    let answers = place(&Cluster::new(hosts, vms), &keys, mode);
    keys.iter()
        .map(|k| match &answers[k] {
            Ok(host) => host.clone(),
            Err(no) => format!("no: {no}"),
        })
        .collect()
}

/// Carries moves out.
pub(super) fn apply(vms: &mut [VmRow], moves: &[Move]) {
    for one in moves {
        for mover in &one.vms {
            let row = vms.iter_mut().find(|v| v.key == mover.vm).expect("it is there");
            assert_eq!(row.on, std::slice::from_ref(&mover.from), "it moves from where it runs");
            row.on = vec![one.to.clone()];
        }
    }
}
