//! Rules between VMs.

use super::super::testkit::*;
use super::super::*;

fn together(name: &str, with: &[&str]) -> VmRow {
    VmRow { together: names(with), ..vm(name) }
}

fn apart(name: &str, from: &[&str]) -> VmRow {
    VmRow { apart: names(from), ..vm(name) }
}

#[test]
fn a_group_is_linked_by_any_member_and_placed_as_a_whole() {
    let mut h = hosts(2);
    h[0].memory_mib = 2048;
    let vms = vec![together("a", &["b"]), vm("b"), together("c", &["b"]), on("1", "h2")];
    assert_eq!(start(h, vms, &["a", "b", "c"]), ["h2", "h2", "h2"]);
}

#[test]
fn a_group_that_fits_nowhere_as_a_whole_is_left_out_as_a_whole() {
    let mut h = hosts(2);
    h[0].memory_mib = 1024;
    h[1].memory_mib = 1024;
    let vms = vec![together("a", &["b"]), vm("b")];
    let no = "no: h1: needs 2048 MiB of memory, 1024 MiB are free; h2: needs 2048 MiB of memory, 1024 MiB are free";
    assert_eq!(start(h, vms, &["a", "b"]), [no, no]);
}

#[test]
fn names_bind_within_a_namespace_only() {
    let mut other = vm("b");
    other.key.namespace = "elsewhere".into();
    other.on = names(&["h2"]);
    let vms = vec![together("a", &["b"]), apart("c", &["b"]), other, on("1", "h1")];
    assert_eq!(start(hosts(2), vms, &["a"]), ["h1"]);
}

#[test]
fn who_comes_later_joins_the_member_that_runs() {
    let vms = vec![together("a", &["b"]), on("b", "h2"), on("1", "h2")];
    assert_eq!(start(hosts(3), vms.clone(), &["a"]), ["h2"]);
    let mut h = hosts(3);
    h[1].memory_mib = 2048;
    let text = &start(h, vms, &["a"])[0];
    assert_eq!(
        text,
        "no: h1: must run together with default/b, which is on h2; \
         h2: needs 1024 MiB of memory, 0 MiB are free; \
         h3: must run together with default/b, which is on h2"
    );
}

#[test]
fn who_comes_during_a_move_joins_at_its_target() {
    let moving = VmRow { on: names(&["h1", "h3"]), ..vm("b") };
    assert_eq!(start(hosts(3), vec![together("a", &["b"]), moving], &["a"]), ["h3"]);
}

#[test]
fn apart_holds_both_ways_and_on_both_sides_of_a_move() {
    let moving = VmRow { on: names(&["h1", "h2"]), ..vm("b") };
    let vms = vec![vm("a"), VmRow { apart: names(&["a"]), ..moving }];
    assert_eq!(start(hosts(3), vms.clone(), &["a"]), ["h3"]);
    assert_eq!(
        start(hosts(2), vms, &["a"]),
        ["no: h1: runs default/b, which must be apart; h2: runs default/b, which must be apart"]
    );
}

#[test]
fn what_binds_one_of_a_group_binds_all() {
    let tied = VmRow { required: Some(set(&["h2"])), ..vm("b") };
    let vms = vec![together("a", &["b"]), tied, on("1", "h2")];
    assert_eq!(start(hosts(2), vms, &["a"]), ["h2"]);
    let vms = vec![
        together("a", &["b"]),
        apart("b", &["x"]),
        on("x", "h3"),
        together("y", &["x"]),
        on("1", "h1"),
    ];
    assert_eq!(start(hosts(3), vms, &["a", "y"]), ["h2", "h3"]);
}

#[test]
fn contradictory_rules_are_named() {
    let vms = vec![together("a", &["b"]), together("b", &["c"]), apart("c", &["a"])];
    let rule = "no: rules contradict: default/c must be apart from default/a and, by the \
                together rules, on one host with it";
    assert_eq!(start(hosts(3), vms, &["a", "b", "c"]), [rule, rule, rule]);

    let on1 = VmRow { required: Some(set(&["h1"])), ..together("a", &["b"]) };
    let on2 = VmRow { required: Some(set(&["h2", "h3"])), ..vm("b") };
    assert_eq!(
        start(hosts(3), vec![on1, on2], &["a"]),
        ["no: rules contradict: default/b requires h2 or h3, and default/a, which must be \
          together with it, requires h1"]
    );

    let label = |name: &str, value: &str| VmRow {
        selector: [("zone".to_owned(), value.to_owned())].into(),
        together: names(&["a"]),
        ..vm(name)
    };
    let text = &start(hosts(1), vec![label("a", "x"), label("b", "y")], &["a"])[0];
    assert!(text.contains("default/b selects zone=y, and default/a"), "{text}");
}

#[test]
fn more_vms_apart_than_hosts_leave_the_rest_unplaced() {
    let vms = vec![apart("a", &["b", "c"]), apart("b", &["c"]), vm("c")];
    let mut got = start(hosts(2), vms, &["a", "b", "c"]);
    got.sort();
    assert_eq!(got[0], "h1");
    assert_eq!(got[1], "h2");
    assert!(got[2].starts_with("no: h1: runs default/"), "{got:?}");
}

#[test]
fn soft_rules_lean_and_bend() {
    let near = VmRow { prefers_together: names(&["b"]), ..vm("a") };
    let busy = [on("b", "h2"), on("1", "h2"), on("2", "h2")];
    let vms = [vec![near], busy.to_vec()].concat();
    assert_eq!(start(hosts(3), vms.clone(), &["a"]), ["h2"]);
    let h = vec![host("h1"), closed("h2", "cordoned"), host("h3")];
    assert_eq!(start(h, vms, &["a"]), ["h1"]);

    let off = |name: &str| VmRow { prefers_apart: names(&["a", "b", "c"]), ..vm(name) };
    let got = start(hosts(2), vec![off("a"), off("b"), off("c")], &["a", "b", "c"]);
    assert_eq!(got, ["h1", "h2", "h1"]);
}

#[test]
fn running_vms_are_never_moved_to_make_room() {
    let mut h = hosts(2);
    h[0].memory_mib = 2048;
    h[1].memory_mib = 2048;
    let big = VmRow { memory_mib: 2048, ..vm("a") };
    let text = &start(h, vec![big, on("1", "h1"), on("2", "h2")], &["a"])[0];
    assert!(text.starts_with("no: h1: needs 2048 MiB of memory, 1024 MiB are free"), "{text}");
}
