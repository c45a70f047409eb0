//! How many host failures still fit.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Cluster;
use super::model::Acceptance;
use super::place::Solver;
use super::unit::Unit;

/// More failures than this are not looked for.
const MOST: usize = 16;

/// So many hosts, the fullest, are tried as the first to fail.
const FIRST: usize = 16;

/// The work that each try may spend on packing tightly.
const BUDGET: i64 = 200_000;

/// How many hosts can fail, the fullest first, so that all VMs that are to be
/// recovered still find a place; at most 16. VMs whose own rules allow no other
/// host don't count.
pub fn tolerates(cluster: &Cluster) -> usize {
    let solver = Solver::new(cluster);
    let open: Vec<u32> = (0..cluster.hosts.len() as u32)
        .filter(|h| cluster.hosts[*h as usize].accepts == Acceptance::Yes)
        .collect();
    let mut worst = open.clone();
    worst.sort_by_key(|h| (-solver.ledger.load_with(*h, 0, 0), *h));
    if open.len() < 2 || !worst.iter().take(FIRST).all(|h| survives(cluster, &[*h])) {
        return 0;
    }
    let most = MOST.min(open.len() - 1);
    (2..=most).take_while(|n| survives(cluster, &worst[..*n])).last().unwrap_or(1)
}

/// Whether all VMs of these hosts find a place on the others.
fn survives(cluster: &Cluster, lost: &[u32]) -> bool {
    let mut solver = Solver::new(cluster);
    solver.limit(BUDGET);
    let mut groups: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for vm in lost.iter().flat_map(|h| cluster.residents.get(*h)).copied() {
        let group = cluster.rules.group(vm);
        let gone = cluster.on.get(vm).iter().all(|h| lost.contains(h));
        if gone && cluster.row(vm).recovers && cluster.rules.broken(group).is_none() {
            groups.entry(group).or_default().insert(vm);
        }
    }
    for vm in groups.values().flatten() {
        solver.ledger.leave(*vm);
    }
    let mut units: Vec<Unit> = Vec::new();
    for (group, vms) in groups {
        let vms = vms.into_iter().collect();
        let leaving = lost.to_vec();
        let unit = Unit::new(&solver.ledger, &mut solver.classes, group, vms, leaving, false);
        if unit.has_elsewhere(cluster) {
            units.push(unit);
        }
    }
    solver.assign(&mut units).iter().all(Option::is_some)
}
