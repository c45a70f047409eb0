//! One VM and its host: capacity, mode, what a host offers, preferences, load.

use std::collections::BTreeMap;

use stockade_crds::v1alpha1::HypervisorKind;

use super::super::testkit::*;
use super::super::*;

#[test]
fn the_emptiest_host_is_taken_and_the_name_breaks_ties() {
    let vms = vec![on("1", "h1"), on("2", "h2"), vm("a"), vm("b"), vm("c"), vm("d")];
    assert_eq!(start(hosts(3), vms, &["a", "b", "c", "d"]), ["h3", "h1", "h2", "h3"]);
}

#[test]
fn a_host_without_room_says_what_is_free() {
    let mut h = hosts(2);
    h[0].memory_mib = 2048;
    h[1].cpu = 1500;
    let big = VmRow { cpu: 2000, memory_mib: 4096, ..vm("a") };
    assert_eq!(
        start(h, vec![big, on("1", "h1")], &["a"]),
        ["no: h1: needs 4096 MiB of memory, 1024 MiB are free; h2: needs 2 CPUs, 1.5 are free"]
    );
}

#[test]
fn a_closed_host_says_why() {
    let h = vec![closed("h1", "cordoned"), closed("h2", "silent for 8 s")];
    let answer = start(h, vec![vm("a")], &["a"]);
    assert_eq!(answer, ["no: h1: cordoned; h2: silent for 8 s"]);
}

#[test]
fn what_a_host_lacks_is_named() {
    let mut h = hosts(4);
    h[0].hypervisors.clear();
    h[1].storages.clear();
    h[2].storages.clear();
    h[2].unready.insert("vms".into(), "its lock manager is in maintenance".into());
    let picky = VmRow {
        selector: BTreeMap::from([("zone".into(), "a".into())]),
        barred: BTreeMap::from([("h1".into(), "a copy was found there".into())]),
        ..vm("a")
    };
    for row in &mut h[..3] {
        row.labels.insert("zone".into(), "a".into());
    }
    let xen = VmRow { hypervisor: HypervisorKind::Xen, ..vm("x") };
    assert_eq!(
        start(h, vec![picky, xen], &["a", "x"]),
        [
            "no: h1: a copy was found there; h2: storage vms is not ready there; \
             h3: its lock manager is in maintenance; \
             h4: lacks the label zone=a that default/a selects",
            "no: h1: runs no Xen; h2: runs no Xen; h3: runs no Xen; h4: runs no Xen",
        ]
    );
}

#[test]
fn required_hosts_are_a_must() {
    let tied = VmRow { required: Some(set(&["h2", "h3"])), ..vm("a") };
    assert_eq!(start(hosts(3), vec![tied.clone(), on("1", "h2")], &["a"]), ["h3"]);
    let h = vec![host("h1"), closed("h2", "cordoned"), closed("h3", "in maintenance")];
    assert_eq!(
        start(h, vec![tied], &["a"]),
        [
            "no: h2: cordoned; h3: in maintenance; h1: not required by default/a, which wants h2 or h3"
        ]
    );
    let lost = VmRow { required: Some(set(&["h9"])), ..vm("a") };
    assert_eq!(
        start(hosts(1), vec![lost], &["a"]),
        ["no: h1: not required by default/a, which wants h9"]
    );
}

#[test]
fn preferred_ranks_come_first_and_bend() {
    let ranked =
        |name: &str| VmRow { preferred: vec![names(&["h3"]), names(&["h1", "h2"])], ..vm(name) };
    let busy: Vec<VmRow> = (0..4).map(|i| on(&format!("b{i}"), "h3")).collect();
    let with = |extra: Vec<VmRow>| [busy.clone(), extra].concat();
    assert_eq!(start(hosts(4), with(vec![ranked("a")]), &["a"]), ["h3"]);
    let mut h = hosts(4);
    h[2].accepts = Acceptance::No("cordoned".into());
    let more = vec![ranked("a"), on("1", "h1")];
    assert_eq!(start(h.clone(), with(more.clone()), &["a"]), ["h2"]);
    h[0].accepts = Acceptance::No("cordoned".into());
    h[1].accepts = Acceptance::No("cordoned".into());
    assert_eq!(start(h, with(more), &["a"]), ["h4"]);
}

#[test]
fn untried_hosts_go_first_even_before_preferred_ones() {
    let failed = VmRow { preferred: vec![names(&["h1"])], tried: set(&["h1"]), ..vm("a") };
    assert_eq!(start(hosts(2), vec![failed.clone()], &["a"]), ["h2"]);
    let h = vec![host("h1"), closed("h2", "cordoned")];
    assert_eq!(start(h, vec![failed], &["a"]), ["h1"]);
}

#[test]
fn higher_priority_gets_the_room() {
    let mut h = hosts(1);
    h[0].memory_mib = 4096;
    let low = VmRow { memory_mib: 4096, ..vm("a") };
    let high = VmRow { memory_mib: 1024, priority: 5, ..vm("b") };
    assert_eq!(
        start(h, vec![low, high], &["a", "b"]),
        ["no: h1: needs 4096 MiB of memory, 3072 MiB are free", "h1"]
    );
}

#[test]
fn a_move_counts_both_sides_and_leaves_the_source() {
    let mut h = hosts(2);
    h[1].memory_mib = 1024;
    let moving = VmRow { on: names(&["h1", "h2"]), ..vm("m") };
    assert_eq!(
        answer(h, vec![on("a", "h1"), moving], &["a", "m"], Mode::Move),
        [
            "no: h1: it runs there now; h2: needs 1024 MiB of memory, 0 MiB are free",
            "no: default/m is being moved already",
        ]
    );
}

#[test]
fn a_host_that_nobody_declared_takes_nothing() {
    let answer = start(vec![], vec![on("1", "h7"), vm("a")], &["a"]);
    assert_eq!(answer, ["no: h7: not declared"]);
    assert_eq!(start(vec![], vec![vm("a")], &["a", "z"])[0], "no: no host is declared");
    assert_eq!(start(vec![], vec![vm("a")], &["z"]), ["no: default/z is not known"]);
}

#[test]
fn many_refusals_are_cut_short() {
    let h: Vec<HostRow> = (10..40).map(|i| closed(&format!("h{i}"), "cordoned")).collect();
    let text = &start(h, vec![vm("a")], &["a"])[0];
    assert!(text.ends_with("h25: cordoned; and 14 hosts more"), "{text}");
}
