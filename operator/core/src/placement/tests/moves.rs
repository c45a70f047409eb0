//! Moves: a user's, failback, drain, repair, levelling; host failures that fit.

use std::collections::BTreeSet;

use super::super::testkit::*;
use super::super::*;

fn small(n: usize, mib: i64) -> Vec<HostRow> {
    hosts(n).into_iter().map(|h| HostRow { memory_mib: mib, ..h }).collect()
}

/// `101>h2` for each VM that moves.
fn told(moves: &[Move]) -> Vec<String> {
    let each = |m: &Move| m.vms.iter().map(|v| format!("{}>{}", v.vm.name, m.to)).collect();
    moves.iter().flat_map(|m: &Move| -> Vec<String> { each(m) }).collect()
}

fn mend(hosts: Vec<HostRow>, vms: Vec<VmRow>) -> Vec<String> {
    told(&repair(&Cluster::new(hosts, vms)))
}

fn back(hosts: Vec<HostRow>, vms: Vec<VmRow>) -> Vec<String> {
    told(&failback(&Cluster::new(hosts, vms)))
}

fn level(hosts: Vec<HostRow>, vms: Vec<VmRow>, by: By) -> Vec<String> {
    told(&rebalance(&Cluster::new(hosts, vms), by, &BTreeSet::new(), 100))
}

fn failed_at(host: &str, count: u32, fresh: bool) -> (String, FailedMoves) {
    (host.to_owned(), FailedMoves { count, fresh })
}

fn prefers(name: &str, at: &str, ranks: &[&[&str]]) -> VmRow {
    let preferred = ranks.iter().map(|rank| names(rank)).collect();
    VmRow { preferred, failback: true, ..on(name, at) }
}

#[test]
fn a_users_move_takes_the_group_and_is_refused_with_the_reason() {
    let with = VmRow { together: names(&["b"]), ..on("a", "h1") };
    let vms = vec![with, VmRow { movable: Movable::Cold, ..on("b", "h1") }, on("c", "h2")];
    let cluster = Cluster::new(hosts(3), vms.clone());
    let free = move_of(&cluster, &key("a"), None).expect("a host fits");
    assert_eq!(
        free.to_string(),
        "default/a from h1, default/b from h1 (stopped for it) to h3: ordered"
    );
    let to = move_of(&cluster, &key("b"), Some("h2")).expect("h2 fits");
    assert_eq!(told(&[to]), ["a>h2", "b>h2"]);
    let no = |cluster: &Cluster, vm: &str, to: &str| {
        move_of(cluster, &key(vm), Some(to)).expect_err("refused").to_string()
    };
    assert_eq!(no(&cluster, "c", "h2"), "h2: it runs there now");
    assert_eq!(no(&cluster, "c", "h9"), "h9 is not declared");
    let mut full = hosts(3);
    full[1].memory_mib = 2048;
    let cluster = Cluster::new(full, vms);
    assert_eq!(no(&cluster, "a", "h2"), "h2: needs 2048 MiB of memory, 1024 MiB are free");
    let fixed = vec![VmRow { movable: Movable::No, ..on("a", "h1") }, vm("b")];
    let cluster = Cluster::new(hosts(2), fixed);
    assert_eq!(no(&cluster, "a", "h2"), "default/a must not be moved");
    assert_eq!(no(&cluster, "b", "h2"), "default/b runs nowhere");
}

#[test]
fn failback_goes_to_the_best_rank_that_has_room() {
    let ranks: &[&[&str]] = &[&["h1"], &["h2", "h3"]];
    assert_eq!(back(hosts(4), vec![prefers("a", "h4", ranks)]), ["a>h1"]);
    let mut h = hosts(4);
    h[0].accepts = Acceptance::No("cordoned".into());
    assert_eq!(back(h.clone(), vec![prefers("a", "h4", ranks)]), ["a>h2"]);
    assert!(back(h, vec![prefers("a", "h3", ranks)]).is_empty(), "h2 is no better than h3");
    assert!(back(hosts(4), vec![prefers("a", "h1", ranks)]).is_empty());
    let stays = VmRow { failback: false, ..prefers("a", "h4", ranks) };
    assert!(back(hosts(4), vec![stays]).is_empty());
    let fixed = VmRow { movable: Movable::No, ..prefers("a", "h4", ranks) };
    assert!(back(hosts(4), vec![fixed]).is_empty());
}

#[test]
fn failback_gives_a_host_time_that_failed_a_move() {
    let ranks: &[&[&str]] = &[&["h1"], &["h2"]];
    let failed = |fresh: &[&str]| VmRow {
        failed: ["h1", "h2"].map(|h| failed_at(h, 1, fresh.contains(&h))).into(),
        ..prefers("a", "h4", ranks)
    };
    assert_eq!(back(hosts(4), vec![failed(&["h1"])]), ["a>h2"]);
    assert_eq!(back(hosts(4), vec![failed(&[])]), ["a>h1"]);
    assert!(back(hosts(4), vec![failed(&["h1", "h2"])]).is_empty());
}

#[test]
fn a_drain_goes_where_no_move_failed_before_where_one_did() {
    let failed = [failed_at("h2", 1, true)].into();
    let failed = VmRow { failed, ..prefers("a", "h1", &[&["h2"]]) };
    let again = VmRow { on: Vec::new(), ..failed.clone() };
    assert_eq!(start(hosts(3), vec![again], &["a"]), ["h2"], "a start is another thing");
    let plan = drain_plan(&Cluster::new(hosts(3), vec![failed.clone()]), "h1", 1);
    assert_eq!(told(&plan.waves.concat()), ["a>h3"]);
    let plan = drain_plan(&Cluster::new(hosts(2), vec![failed]), "h1", 1);
    assert_eq!(told(&plan.waves.concat()), ["a>h2"], "there is no other");
}

#[test]
fn a_host_without_certificates_is_no_end_of_a_live_move() {
    let no_live = Some("its certificates are not in force yet".to_owned());
    let mut h = hosts(3);
    h[1].no_live.clone_from(&no_live);
    let cold = VmRow { movable: Movable::Cold, ..on("b", "h1") };
    let cluster = Cluster::new(h, vec![on("a", "h1"), cold, on("c", "h2")]);
    let to = |vm: &str, to: Option<&str>| {
        move_of(&cluster, &key(vm), to).map(|m| m.to).map_err(|no| no.to_string())
    };
    assert_eq!(to("a", None), Ok("h3".into()));
    assert_eq!(to("a", Some("h2")), Err("h2: its certificates are not in force yet".into()));
    assert_eq!(to("b", Some("h2")), Ok("h2".into()), "stopped and started it goes anywhere");
    let why = "default/c can't leave h2: its certificates are not in force yet";
    assert_eq!(to("c", Some("h3")), Err(why.into()));
    let plan = drain_plan(&cluster, "h2", 1);
    assert_eq!(plan.blocked[0].1.to_string(), why);
    let anyway = move_of(&cluster.all_live(), &key("c"), Some("h3"));
    assert_eq!(anyway.map(|m| m.to), Ok("h3".into()));
    let mut only = hosts(2);
    only[1].no_live.clone_from(&no_live);
    assert_eq!(tolerates(&Cluster::new(only, vec![on("a", "h1")])), 1, "a start needs none");
}

#[test]
fn what_stays_for_a_while_is_named_with_the_reason() {
    let stays = Some("is paused; resume it first".to_owned());
    let cluster = Cluster::new(hosts(2), vec![VmRow { stays, ..on("a", "h1") }]);
    let plan = drain_plan(&cluster, "h1", 1);
    assert_eq!(plan.blocked[0].1.to_string(), "default/a is paused; resume it first");
}

#[test]
fn what_was_given_a_host_since_counts_there() {
    let mut h = hosts(3);
    h[2].memory_mib = 1024;
    let apart = VmRow { apart: names(&["a"]), ..on("b", "h2") };
    let before = Cluster::new(h, vec![on("a", "h1"), apart, on("c", "h2")]);
    let to = |cluster: &Cluster, vm: &str, to: &str| {
        move_of(cluster, &key(vm), Some(to)).map(|_| ()).map_err(|no| no.to_string())
    };
    assert_eq!((to(&before, "b", "h3"), to(&before, "c", "h3")), (Ok(()), Ok(())));
    let after = before.with(vec![(key("a"), names(&["h1", "h3"]))]);
    let full = "h3: needs 1024 MiB of memory, 0 MiB are free";
    assert_eq!(to(&after, "b", "h3"), Err("h3: runs default/a, which must be apart".into()));
    assert_eq!(to(&after, "c", "h3"), Err(full.into()));
}

#[test]
fn a_torn_group_is_mended_where_its_user_moved_one_of_it() {
    let a = VmRow { moved_to: Some("h2".into()), together: names(&["b"]), ..on("a", "h2") };
    assert_eq!(mend(hosts(3), vec![a.clone(), on("b", "h1")]), ["b>h2"]);
    let b = VmRow { moved_to: Some("h1".into()), ..on("b", "h1") };
    let there = VmRow { moved_to: None, ..a.clone() };
    assert_eq!(mend(hosts(3), vec![there, b]), ["a>h1"]);
    let fails = |count| VmRow { failed: [failed_at("h2", count, false)].into(), ..on("b", "h1") };
    assert_eq!(mend(hosts(3), vec![a.clone(), fails(2)]), ["b>h2"]);
    assert_eq!(mend(hosts(3), vec![a, fails(3)]), ["a>h1"], "it never arrives");
}

#[test]
fn failbacks_at_once_leave_room_for_each_other() {
    let mut h = hosts(3);
    h[0].memory_mib = 1024;
    let vms = vec![prefers("a", "h2", &[&["h1"]]), prefers("b", "h3", &[&["h1"]])];
    assert_eq!(back(h, vms), ["a>h1"]);
}

#[test]
fn a_group_fails_back_as_one() {
    let with = VmRow { together: names(&["b"]), ..prefers("a", "h2", &[&["h1"]]) };
    let vms = vec![with, on("b", "h2")];
    assert_eq!(back(hosts(2), vms.clone()), ["a>h1", "b>h1"]);
    let mut h = hosts(2);
    h[0].memory_mib = 1024;
    assert!(back(h, vms).is_empty(), "half a group does not go");
}

#[test]
fn a_drain_moves_all_in_waves_and_names_who_stays() {
    let vms: Vec<VmRow> = (0..5).map(|i| on(&format!("a{i}"), "h1")).collect();
    let fixed = VmRow { movable: Movable::No, ..on("f", "h1") };
    let tied = VmRow { required: Some(set(&["h1"])), ..on("t", "h1") };
    let away = VmRow { on: names(&["h1", "h3"]), ..vm("m") };
    let cluster = Cluster::new(hosts(3), [vms, vec![fixed, tied, away]].concat());
    let plan = drain_plan(&cluster, "h1", 2);
    let sizes: Vec<usize> = plan.waves.iter().map(Vec::len).collect();
    assert_eq!(sizes, [2, 2, 1]);
    assert_eq!(told(&plan.waves.concat()), ["a0>h2", "a1>h2", "a2>h3", "a3>h2", "a4>h3"]);
    assert_eq!(plan.moving, [key("m")]);
    let blocked: Vec<String> = plan.blocked.iter().map(|(k, no)| format!("{k}: {no}")).collect();
    assert_eq!(
        blocked,
        [
            "default/f: default/f must not be moved",
            "default/t: h1: it runs there now; h2: not required by default/t, which wants h1; h3: not required by default/t, which wants h1",
        ]
    );
}

#[test]
fn a_dry_run_of_a_drain_equals_the_drain() {
    let vms: Vec<VmRow> = (0..7)
        .map(|i| VmRow { memory_mib: 1024 * (1 + i % 3), ..on(&format!("a{i}"), "h1") })
        .chain([on("b", "h2")])
        .collect();
    let dry = drain_plan(&Cluster::new(hosts(4), vms.clone()), "h1", 1);
    let mut h = hosts(4);
    h[0].accepts = Acceptance::No("in maintenance".into());
    let mut now = vms;
    let mut done = Vec::new();
    while let Some(next) = drain_plan(&Cluster::new(h.clone(), now.clone()), "h1", 1).moves().next()
    {
        done.push(next.clone());
        apply(&mut now, std::slice::from_ref(next));
    }
    assert_eq!(dry.moves().cloned().collect::<Vec<_>>(), done);
}

#[test]
fn a_drained_group_goes_together_or_joins_who_runs_elsewhere() {
    let with = |name: &str, at: &str| VmRow { together: names(&["a"]), ..on(name, at) };
    let whole = vec![with("a", "h1"), with("b", "h1")];
    let plan = drain_plan(&Cluster::new(hosts(3), whole), "h1", 1);
    assert_eq!(told(&plan.waves[0]), ["a>h2", "b>h2"]);
    let split = vec![with("a", "h1"), with("b", "h3")];
    let plan = drain_plan(&Cluster::new(hosts(3), split.clone()), "h1", 1);
    assert_eq!(told(&plan.waves.concat()), ["a>h3"]);
    let mut h = hosts(3);
    h[2].memory_mib = 1024;
    let plan = drain_plan(&Cluster::new(h, split), "h1", 1);
    assert_eq!(told(&plan.waves.concat()), ["a>h2", "b>h2"], "h3 is full: both to h2");
}

#[test]
fn rules_after_the_fact_are_repaired_by_fewest_moves() {
    let off = |name: &str, from: &[&str]| VmRow { apart: names(from), ..on(name, "h1") };
    let star = vec![off("a", &["b", "c", "d"]), on("b", "h1"), on("c", "h1"), on("d", "h1")];
    assert_eq!(mend(hosts(3), star), ["a>h2"]);
    let all = vec![off("a", &["b", "c"]), off("b", &["c"]), on("c", "h1")];
    assert_eq!(mend(hosts(3), all), ["a>h2", "b>h3"]);
    let tied = VmRow { required: Some(set(&["h3"])), ..on("a", "h1") };
    assert_eq!(mend(hosts(3), vec![tied, on("b", "h1")]), ["a>h3"]);
    let fine = vec![VmRow { apart: names(&["b"]), ..on("a", "h2") }, on("b", "h1")];
    assert!(mend(hosts(3), fine).is_empty());
}

#[test]
fn vms_that_must_be_together_are_brought_together() {
    let with = |name: &str, at: &str| VmRow { together: names(&["a"]), ..on(name, at) };
    let vms = vec![with("a", "h1"), with("b", "h2"), with("c", "h2")];
    assert_eq!(mend(hosts(3), vms.clone()), ["a>h2"]);
    let mut h = hosts(3);
    h[1].memory_mib = 2048;
    assert_eq!(mend(h.clone(), vms.clone()), ["b>h1", "c>h1"]);
    h[0].memory_mib = 2048;
    assert_eq!(mend(h, vms.clone()), ["a>h3", "b>h3", "c>h3"], "no member's host has room");
    let mut h = hosts(3);
    h[1].accepts = Acceptance::No("cordoned".into());
    assert_eq!(mend(h, vms), ["b>h1", "c>h1"]);
}

#[test]
fn a_group_under_way_is_no_violation() {
    let a = VmRow { together: names(&["b"]), on: names(&["h1", "h2"]), ..vm("a") };
    let cluster = Cluster::new(hosts(3), vec![a, on("b", "h1")]);
    assert!(repair(&cluster).is_empty() && violations(&cluster).is_empty());
}

#[test]
fn a_repair_never_breaks_another_strict_rule() {
    // a must leave b; on h2 and h3 run VMs that it must be apart from as well.
    let a = VmRow { apart: names(&["b", "c", "d"]), ..on("a", "h1") };
    let b = VmRow { movable: Movable::No, ..on("b", "h1") };
    let vms = vec![a, b, on("c", "h2"), VmRow { movable: Movable::No, ..on("d", "h3") }];
    let first = repair(&Cluster::new(hosts(3), vms.clone()));
    assert_eq!(told(&first), ["c>h3"], "c makes room for a");
    let mut now = vms;
    apply(&mut now, &first);
    assert_eq!(mend(hosts(3), now), ["a>h2"]);
}

#[test]
fn a_repair_makes_room_where_all_is_full() {
    let tied = VmRow { required: Some(set(&["h2"])), ..on("a", "h1") };
    let vms = vec![tied, on("b", "h2"), on("c", "h3")];
    let h = small(4, 1024);
    let first = repair(&Cluster::new(h.clone(), vms.clone()));
    assert_eq!(told(&first), ["b>h4"]);
    let mut now = vms;
    apply(&mut now, &first);
    assert_eq!(mend(h, now), ["a>h2"]);
}

#[test]
fn contradictory_rules_leave_running_vms_untouched() {
    let a = VmRow { together: names(&["b"]), apart: names(&["b"]), ..on("a", "h1") };
    assert!(mend(hosts(3), vec![a, on("b", "h2")]).is_empty());
}

#[test]
fn violations_are_told_by_vm() {
    let a = VmRow { apart: names(&["b"]), ..on("a", "h1") };
    let c = VmRow { required: Some(set(&["h2"])), ..on("c", "h3") };
    let told = violations(&Cluster::new(hosts(3), vec![a, on("b", "h1"), c]));
    let told: Vec<String> = told.into_iter().map(|(k, why)| format!("{k}: {why}")).collect();
    assert_eq!(
        told,
        [
            "default/a: default/a must be apart from default/b",
            "default/b: default/a must be apart from default/b",
            "default/c: h3: not required by default/c, which wants h2",
        ]
    );
}

#[test]
fn levelling_takes_few_moves_and_then_rests() {
    let vms: Vec<VmRow> = (0..6).map(|i| on(&format!("a{i}"), "h1")).collect();
    let moves = rebalance(&Cluster::new(hosts(3), vms.clone()), By::Requests, &BTreeSet::new(), 9);
    assert_eq!(moves.len(), 4);
    let mut now = vms;
    apply(&mut now, &moves);
    assert!(level(hosts(3), now, By::Requests).is_empty());
    let even = vec![on("a", "h1"), on("b", "h1"), on("c", "h2")];
    assert!(level(hosts(2), even, By::Requests).is_empty(), "swapping places is no gain");
}

#[test]
fn levelling_by_usage_looks_at_what_is_measured() {
    let busy = |name: &str, at: &str, cpu: i64| VmRow { usage: Some((cpu, 512)), ..on(name, at) };
    let vms = vec![busy("a", "h1", 6000), busy("b", "h1", 5000), busy("c", "h2", 100)];
    assert_eq!(level(hosts(2), vms.clone(), By::Usage), ["b>h2"]);
    assert!(level(hosts(2), vms, By::Requests).is_empty());
}

#[test]
fn levelling_leaves_alone_what_must_stay() {
    let many = |change: fn(&mut VmRow)| -> Vec<VmRow> {
        let mut vms: Vec<VmRow> = (0..4).map(|i| on(&format!("a{i}"), "h1")).collect();
        vms.iter_mut().for_each(change);
        vms
    };
    assert_eq!(level(hosts(2), many(|_| ()), By::Requests).len(), 2);
    let chosen = many(|v| v.moved_to = Some("h1".into()));
    assert!(level(hosts(2), chosen, By::Requests).is_empty(), "a user's last move stands");
    let liked = many(|v| v.preferred = vec![names(&["h1"])]);
    assert!(level(hosts(2), liked, By::Requests).is_empty(), "failback would undo it");
    let cold = many(|v| v.movable = Movable::Cold);
    assert!(level(hosts(2), cold, By::Requests).is_empty(), "nobody is stopped for it");
    let cluster = Cluster::new(hosts(2), many(|_| ()));
    let hold: BTreeSet<VmKey> = (0..4).map(|i| key(&format!("a{i}"))).collect();
    assert!(rebalance(&cluster, By::Requests, &hold, 9).is_empty());
    let mut moving = many(|_| ());
    moving[0].on = names(&["h1", "h2"]);
    assert!(level(hosts(2), moving, By::Requests).is_empty(), "one round sees the last one's end");
}

#[test]
fn host_failures_that_still_fit_are_counted() {
    let count = |hosts: Vec<HostRow>, vms: Vec<VmRow>| tolerates(&Cluster::new(hosts, vms));
    let three = vec![on("a", "h1"), on("b", "h2"), on("c", "h3")];
    assert_eq!(count(small(3, 1024), three.clone()), 0);
    assert_eq!(count(small(3, 2048), three.clone()), 1);
    assert_eq!(count(small(3, 3072), three.clone()), 2);
    let mut h = small(3, 2048);
    h[2].accepts = Acceptance::No("cordoned".into());
    assert_eq!(count(h, three), 1, "what runs on a closed host stays there");
    let off = VmRow { apart: names(&["b"]), ..on("a", "h1") };
    assert_eq!(count(hosts(2), vec![off, on("b", "h2")]), 0);
    let waits = VmRow { recovers: false, memory_mib: 4096, ..on("a", "h1") };
    let mut h = hosts(2);
    h[1].memory_mib = 2048;
    assert_eq!(count(h, vec![waits, on("b", "h2")]), 1);
    let tied = VmRow { required: Some(set(&["h1"])), ..on("a", "h1") };
    assert_eq!(count(hosts(2), vec![tied]), 1, "no failure of capacity");
    assert_eq!(count(hosts(1), vec![on("a", "h1")]), 0);
}

#[test]
fn a_group_goes_on_to_where_its_failed_member_was_not_tried() {
    let failed = |tried: &[&str], mib: i64| VmRow {
        tried: set(tried),
        memory_mib: mib,
        together: names(&["b"]),
        ..vm("a")
    };
    let go = |failed: VmRow, third: HostRow| {
        let rows = vec![failed, on("b", "h1"), on("c", "h2")];
        let cluster = Cluster::new([hosts(2), vec![third]].concat(), rows);
        relocate(&cluster).into_iter().map(|(who, m)| format!("{who}: {m}")).collect::<Vec<_>>()
    };
    assert_eq!(
        go(failed(&["h1"], 1024), host("h3")),
        ["default/a: default/b from h1 to h3: default/a could not be started on h1"]
    );
    assert_eq!(
        go(failed(&["h1", "h3"], 1024), host("h3")),
        ["default/a: default/b from h1 to h2: default/a could not be started on h1"]
    );
    // Nowhere else is room for both, or every host was tried: the group stays.
    assert_eq!(go(failed(&["h1", "h2"], 65_000), host("h3")), [""; 0]);
    assert_eq!(go(failed(&["h1", "h2", "h3"], 1024), host("h3")), [""; 0]);
    // It was not tried where its group is.
    assert_eq!(go(failed(&["h3"], 1024), host("h3")), [""; 0]);
}
