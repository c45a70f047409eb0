//! Strict rules that running VMs break: rules that came later, hosts that
//! are no longer allowed, groups that run apart.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Cluster;
use super::model::{Movable, VmKey};
use super::moves::{Move, groups, options, roomy, settled};
use super::place::{Solver, running};
use super::unit::Unit;

/// What running VMs break of the strict rules now, by VM, as a sentence. What a
/// move under way will mend is no violation.
pub fn violations(cluster: &Cluster) -> BTreeMap<VmKey, String> {
    let mut told = BTreeMap::new();
    for breach in breaches(&mut Solver::new(cluster)) {
        for vm in breach.groups.iter().flat_map(|g| running(cluster, *g)) {
            told.entry(cluster.row(vm).key.clone()).or_insert_with(|| breach.why.clone());
        }
    }
    told
}

/// The fewest moves that mend the strict rules as far as they can be mended
/// at once. All of the moves may go on at the same time, and none of them leads
/// through a state that breaks another strict rule. Where a host must be made free
/// first, that move comes alone and the rest with the next call.
pub fn repair(cluster: &Cluster) -> Vec<Move> {
    let mut solver = Solver::new(cluster);
    let mut open = breaches(&mut solver);
    let mut moves = Vec::new();
    loop {
        let mut concerned: BTreeMap<u32, usize> = BTreeMap::new();
        for group in open.iter().flat_map(|b| &b.groups) {
            *concerned.entry(*group).or_default() += 1;
        }
        let mut best: Option<(Cost, Unit, u32)> = None;
        for (group, mends) in concerned {
            for unit in options(&mut solver, group) {
                let Some(to) = unit.best(&solver.ledger) else { continue };
                let cost = cost(cluster, &unit, to, mends);
                if best.as_ref().is_none_or(|(least, ..)| cost < *least) {
                    best = Some((cost, unit, to));
                }
            }
        }
        let Some((_, unit, to)) = best else { break };
        let why = open.iter().find(|b| b.groups.contains(&unit.group)).map(|b| b.why.clone());
        open.retain(|b| !b.groups.contains(&unit.group));
        solver.plan(&unit, to);
        moves.push(Move::new(cluster, &unit, to, why.unwrap_or_default()));
    }
    if moves.is_empty() {
        moves.extend(open.iter().flat_map(|b| &b.groups).find_map(|g| make_room(&mut solver, *g)));
    }
    moves
}

/// Strict rules that are broken, and the groups of which one must move.
struct Breach {
    groups: Vec<u32>,
    why: String,
}

/// What a move costs; the least is taken: breaches mended per call come first, then a target that did
/// not fail again and again, few VMs that leave where their user moved them, few VMs, live moves, low
/// priority, the first name.
type Cost = (isize, bool, usize, usize, usize, i32, u32);

fn cost(cluster: &Cluster, unit: &Unit, to: u32, mends: usize) -> Cost {
    let rows = || unit.vms.iter().map(|vm| (cluster.row(*vm), cluster.on.get(*vm)));
    let cold = rows().filter(|(row, _)| row.movable != Movable::Live).count();
    let chosen = |row: &super::model::VmRow, on: &[u32]| {
        on.iter().any(|host| row.moved_to.as_deref() == Some(cluster.host_name(*host)))
    };
    let undone = rows().filter(|(row, on)| chosen(row, on)).count();
    let vain = unit.despairs_of(to);
    (-(mends as isize), vain, undone, unit.vms.len(), cold, unit.priority, unit.group)
}

fn breaches(solver: &mut Solver<'_>) -> Vec<Breach> {
    let cluster = solver.ledger.cluster;
    let mut found = Vec::new();
    let moves = |g: u32| running(cluster, g).any(|vm| cluster.on.get(vm).len() > 1);
    let bound = |row: &super::model::VmRow| row.required.is_some() || !row.selector.is_empty();
    let tied: BTreeSet<u32> = (0..cluster.vms.len() as u32)
        .filter(|vm| bound(cluster.row(*vm)))
        .map(|vm| cluster.rules.group(vm))
        .collect();
    for group in groups(cluster, |_| true) {
        let lone = cluster.rules.members(group).len() == 1;
        let is_tied = tied.contains(&group);
        if lone && !is_tied && cluster.rules.apart(group).next().is_none() {
            continue;
        }
        if cluster.rules.broken(group).is_some() || moves(group) {
            continue;
        }
        let hosts: BTreeSet<u32> =
            running(cluster, group).flat_map(|vm| cluster.on.get(vm)).copied().collect();
        if is_tied {
            let why = hosts.iter().find_map(|h| {
                solver
                    .need(group)
                    .forbids(&cluster.hosts[*h as usize])
                    .map(|why| format!("{}: {why}", cluster.host_name(*h)))
            });
            found.extend(why.map(|why| Breach { groups: vec![group], why }));
        }
        if hosts.len() > 1 {
            let mut names = running(cluster, group).map(|vm| cluster.row(vm).key.to_string());
            let (first, rest) = (names.next().unwrap_or_default(), names.collect::<Vec<_>>());
            let why = format!("{first} must be together with {}", rest.join(", "));
            found.push(Breach { groups: vec![group], why });
        }
        for other in cluster.rules.apart(group).filter(|o| *o > group && !moves(*o)) {
            let pair = running(cluster, group).find_map(|a| {
                let at = cluster.on.get(a);
                let b = running(cluster, other).find(|b| cluster.on.get(*b) == at)?;
                Some((a, b))
            });
            if let Some((a, b)) = pair
                && cluster.rules.broken(other).is_none()
            {
                let (a, b) = (&cluster.row(a).key, &cluster.row(b).key);
                let why = format!("{a} must be apart from {b}");
                found.push(Breach { groups: vec![group, other], why });
            }
        }
    }
    found
}

/// Moves one other group away so that `group` finds a host with the next call.
fn make_room(solver: &mut Solver<'_>, group: u32) -> Option<Move> {
    let cluster = solver.ledger.cluster;
    for unit in options(solver, group) {
        for host in unit.hosts.iter().copied() {
            for vm in cluster.residents.get(host) {
                let other = cluster.rules.group(*vm);
                let Some((away, _)) = settled(solver, other) else { continue };
                if other == group || roomy(&away, &solver.ledger).is_empty() {
                    continue;
                }
                let clears = unit.fits_without(&solver.ledger, host, &away);
                // It must not go where the group could have gone itself.
                if let (true, Some(to)) = (clears, away.best(&solver.ledger)) {
                    let first = &cluster.row(*unit.vms.first()?).key;
                    let why = format!("makes room for {first}, which the rules send there");
                    return Some(Move::new(cluster, &away, to, why));
                }
            }
        }
    }
    None
}
