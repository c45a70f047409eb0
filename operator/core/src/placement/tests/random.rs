//! Random clusters: strict rules and capacity hold whatever is asked.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::testkit::*;
use super::super::*;

#[derive(Clone, Debug)]
struct Seed {
    hosts: Vec<(i64, u8)>,
    vms: Vec<(i64, u8, u8, u8, u8, u8)>,
}

fn seed() -> impl Strategy<Value = Seed> {
    let host = (2i64..12, any::<u8>());
    let vm = (1i64..4, any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>());
    (prop::collection::vec(host, 2..6), prop::collection::vec(vm, 1..14))
        .prop_map(|(hosts, vms)| Seed { hosts, vms })
}

/// A cluster in which what runs breaks nothing yet: VMs run where `place` puts them.
fn grow(seed: &Seed) -> (Vec<HostRow>, Vec<VmRow>) {
    let n = seed.hosts.len();
    let hosts: Vec<HostRow> = seed
        .hosts
        .iter()
        .enumerate()
        .map(|(i, (gib, dice))| {
            let name = format!("h{}", i + 1);
            let row = HostRow { memory_mib: gib * 1024, ..host(&name) };
            if dice % 8 == 0 {
                HostRow { accepts: Acceptance::No("cordoned".into()), ..row }
            } else {
                row
            }
        })
        .collect();
    let total = seed.vms.len();
    let at = |dice: u8| format!("h{}", usize::from(dice) % n + 1);
    let mate = |dice: u8| vec![format!("{:02}", usize::from(dice) % total)];
    let vms = seed.vms.iter().enumerate().map(|(i, (gib, a, b, c, d, e))| VmRow {
        memory_mib: gib * 1024,
        priority: i32::from(a % 3),
        required: (a % 5 == 0).then(|| BTreeSet::from([at(*b), at(*c)])),
        preferred: if b % 3 == 0 { vec![vec![at(*d)], vec![at(*e)]] } else { Vec::new() },
        failback: c % 2 == 0,
        together: if c % 5 == 0 { mate(*a) } else { Vec::new() },
        apart: if d % 4 == 0 { mate(*b) } else { Vec::new() },
        prefers_apart: if e % 4 == 0 { mate(*c) } else { Vec::new() },
        movable: if e % 7 == 0 { Movable::Cold } else { Movable::Live },
        usage: (a % 2 == 0).then(|| (i64::from(*b) * 20, i64::from(*c) * 8)),
        ..vm(&format!("{i:02}"))
    });
    (hosts, vms.collect())
}

fn settle(hosts: &[HostRow], vms: &mut [VmRow]) {
    let keys: Vec<VmKey> = vms.iter().map(|v| v.key.clone()).collect();
    let cluster = Cluster::new(hosts.to_vec(), vms.to_vec());
    for (key, answer) in place(&cluster, &keys, Mode::Start) {
        if let (Ok(host), Some(vm)) = (answer, vms.iter_mut().find(|v| v.key == key)) {
            vm.on = vec![host];
        }
    }
}

/// Judges by the rows alone, without the index that placement uses.
fn faults(hosts: &[HostRow], vms: &[VmRow]) -> BTreeSet<String> {
    let mut faults = BTreeSet::new();
    let mut used: BTreeMap<&String, i64> = BTreeMap::new();
    for vm in vms {
        for host in &vm.on {
            *used.entry(host).or_default() += vm.memory_mib;
            if vm.required.as_ref().is_some_and(|r| !r.contains(host)) {
                faults.insert(format!("{} may not run on {host}", vm.key));
            }
        }
        let others = |names: &[String]| -> Vec<&VmRow> {
            vms.iter().filter(|o| names.contains(&o.key.name) && o.key != vm.key).collect()
        };
        for other in others(&vm.apart) {
            if other.on.iter().any(|h| vm.on.contains(h)) {
                faults.insert(format!("{} with {}", vm.key, other.key));
            }
        }
        for other in others(&vm.together) {
            if !other.on.is_empty() && !vm.on.is_empty() && other.on != vm.on {
                faults.insert(format!("{} without {}", vm.key, other.key));
            }
        }
    }
    for host in hosts {
        if used.get(&host.name).copied().unwrap_or_default() > host.memory_mib {
            faults.insert(format!("{} is overfull", host.name));
        }
    }
    faults
}

/// All moves at once, each on both of its hosts.
fn under_way(vms: &[VmRow], moves: &[Move]) -> Vec<VmRow> {
    let mut both = vms.to_vec();
    for one in moves {
        for mover in &one.vms {
            let row = both.iter_mut().find(|v| v.key == mover.vm).expect("it is there");
            assert_eq!(row.on, std::slice::from_ref(&mover.from));
            row.on.push(one.to.clone());
        }
    }
    both
}

fn without_together(faults: BTreeSet<String>) -> BTreeSet<String> {
    faults.into_iter().filter(|f| !f.contains("without")).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, failure_persistence: None, ..Default::default() })]

    #[test]
    fn placed_vms_break_no_strict_rule_and_fit(seed in seed()) {
        let (hosts, mut vms) = grow(&seed);
        settle(&hosts, &mut vms);
        prop_assert_eq!(faults(&hosts, &vms), BTreeSet::new());
        let on_closed = vms.iter().flat_map(|v| &v.on).any(|h| {
            hosts.iter().any(|row| row.name == *h && row.accepts != Acceptance::Yes)
        });
        prop_assert!(!on_closed);
    }

    #[test]
    fn the_order_of_the_rows_makes_no_difference(seed in seed()) {
        let (hosts, vms) = grow(&seed);
        let keys: Vec<VmKey> = vms.iter().map(|v| v.key.clone()).collect();
        let there = place(&Cluster::new(hosts.clone(), vms.clone()), &keys, Mode::Start);
        let turned = |mut rows: Vec<HostRow>| { rows.reverse(); rows };
        let mut back = vms;
        back.reverse();
        let keys: Vec<VmKey> = back.iter().map(|v| v.key.clone()).collect();
        let again = place(&Cluster::new(turned(hosts), back), &keys, Mode::Start);
        prop_assert_eq!(there, again);
    }

    #[test]
    fn a_drain_breaks_nothing_on_the_way_and_empties_the_host(seed in seed()) {
        let (hosts, mut vms) = grow(&seed);
        settle(&hosts, &mut vms);
        let plan = drain_plan(&Cluster::new(hosts.clone(), vms.clone()), "h1", 2);
        let moves: Vec<Move> = plan.moves().cloned().collect();
        prop_assert_eq!(without_together(faults(&hosts, &under_way(&vms, &moves))), BTreeSet::new());
        apply(&mut vms, &moves);
        prop_assert_eq!(faults(&hosts, &vms), BTreeSet::new());
        let stay: BTreeSet<&VmKey> = plan.blocked.iter().map(|(k, _)| k).collect();
        let left: BTreeSet<&VmKey> =
            vms.iter().filter(|v| v.on == ["h1"]).map(|v| &v.key).collect();
        prop_assert_eq!(stay, left);
    }

    #[test]
    fn failback_and_levelling_come_to_rest(seed in seed()) {
        let (hosts, mut vms) = grow(&seed);
        settle(&hosts, &mut vms);
        for by in [By::Requests, By::Usage] {
            let mut rounds = 0;
            loop {
                let cluster = Cluster::new(hosts.clone(), vms.clone());
                let mut moves = failback(&cluster);
                if moves.is_empty() {
                    moves = rebalance(&cluster, by, &BTreeSet::new(), 3);
                }
                if moves.is_empty() {
                    break;
                }
                let both = under_way(&vms, &moves);
                prop_assert_eq!(without_together(faults(&hosts, &both)), BTreeSet::new());
                apply(&mut vms, &moves);
                prop_assert_eq!(faults(&hosts, &vms), BTreeSet::new());
                rounds += 1;
                prop_assert!(rounds < 50, "moves without end");
            }
        }
    }

    #[test]
    fn a_repair_lessens_what_is_broken_and_breaks_nothing_new(seed in seed()) {
        let (hosts, free) = grow(&seed);
        // Rules come after the fact: the VMs were placed without any.
        let mut vms: Vec<VmRow> = free
            .iter()
            .map(|v| VmRow {
                required: None, together: Vec::new(), apart: Vec::new(), ..v.clone()
            })
            .collect();
        settle(&hosts, &mut vms);
        for (vm, ruled) in vms.iter_mut().zip(&free) {
            *vm = VmRow { on: vm.on.clone(), ..ruled.clone() };
        }
        for round in 0.. {
            prop_assert!(round < 40, "moves without end");
            let before = faults(&hosts, &vms);
            let moves = repair(&Cluster::new(hosts.clone(), vms.clone()));
            if moves.is_empty() {
                break;
            }
            let new: Vec<String> = without_together(faults(&hosts, &under_way(&vms, &moves)))
                .difference(&before).cloned().collect();
            prop_assert!(new.is_empty(), "on the way: {new:?}");
            apply(&mut vms, &moves);
            let new: Vec<String> = faults(&hosts, &vms).difference(&before).cloned().collect();
            prop_assert!(new.is_empty(), "afterwards: {new:?}");
        }
    }
}
