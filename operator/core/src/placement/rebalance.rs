//! Levelling the load of hosts by few moves.

use std::collections::BTreeSet;

use super::cluster::Cluster;
use super::ledger::NOWHERE;
use super::model::{Acceptance, Movable, VmKey};
use super::moves::{Move, groups, roomy, settled};
use super::place::Solver;
use super::unit::{Unit, ranks};

/// What the load of a host is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The declared sizes of its VMs.
    Requests,
    /// What is measured of them; the declared size where nothing is.
    Usage,
}

/// A move that takes this much (of 1) off the fullest host is worth it.
const CLEAR: f64 = 0.05;

/// Between hosts that differ this much, small VMs may move too, each of at least `SMALL`.
const GAP: f64 = 0.15;
const SMALL: f64 = 0.01;

/// At most `most` moves, each of which makes the fullest host clearly less full.
///
/// A host's load is that of its scarcer resource. Only live moves count; none
/// breaks a strict rule, worsens a preference or a soft rule, moves a VM of
/// `hold` (those that moved lately) or one whose user chose this very host (unless it
/// fails back anyway). Nothing moves while another move is under way, so that each
/// round sees the outcome of the last.
pub fn rebalance(cluster: &Cluster, by: By, hold: &BTreeSet<VmKey>, most: usize) -> Vec<Move> {
    if (0..cluster.vms.len() as u32).any(|vm| cluster.on.get(vm).len() > 1) {
        return Vec::new();
    }
    let mut loads = Loads::new(cluster, by);
    let mut solver = Solver::new(cluster);
    let mut candidates: Vec<(Unit, u32)> = groups(cluster, |_| true)
        .into_iter()
        .filter_map(|group| settled(&mut solver, group))
        .filter(|(unit, here)| may_go(cluster, unit, *here, hold))
        .collect();
    let mut moves = Vec::new();
    while moves.len() < most {
        let Some(from) = loads.fullest() else { break };
        let before = loads.of(from, 0, 0);
        let mut best: Option<Choice> = None;
        for (n, (unit, here)) in candidates.iter().enumerate() {
            if *here != from {
                continue;
            }
            let leanings = unit.leanings(&solver.ledger);
            let lean = |h: u32| leanings.iter().find(|(at, _)| *at == h).map_or(0, |(_, sum)| *sum);
            // What failback would undo is not done.
            let back = ranks(cluster, &unit.vms, |vm| cluster.row(vm).failback);
            let back = |h: u32| back.get(h as usize).copied().unwrap_or_default();
            let (cpu, mib) = loads.size(&unit.vms);
            for to in roomy(unit, &solver.ledger) {
                let worse = unit.rank(to) > unit.rank(from) || back(to) > back(from);
                if worse || lean(to) < lean(from) || unit.shuns(to) {
                    continue;
                }
                let filled = loads.of(to, cpu, mib);
                let gain = before - loads.of(from, -cpu, -mib).max(filled);
                let wide = before - loads.of(to, 0, 0) >= GAP;
                let worth = gain >= CLEAR || (wide && gain >= SMALL);
                let choice = Choice { gain, filled, unit: n, to };
                if worth && best.as_ref().is_none_or(|b| choice.beats(b)) {
                    best = Some(choice);
                }
            }
        }
        let Some(Choice { unit: n, to, .. }) = best else { break };
        let (unit, _) = candidates.swap_remove(n);
        candidates.sort_by_key(|(unit, _)| unit.group);
        loads.shift(&unit.vms, from, to);
        solver.plan(&unit, to);
        let after = loads.of(from, 0, 0).max(loads.of(to, 0, 0));
        let why = format!(
            "{} is {:.0} % full, it will be {:.0} %, and no host more than it",
            cluster.host_name(from),
            before * 100.0,
            after * 100.0
        );
        moves.push(Move::new(cluster, &unit, to, why));
    }
    moves
}

fn may_go(cluster: &Cluster, unit: &Unit, here: u32, hold: &BTreeSet<VmKey>) -> bool {
    unit.vms.iter().all(|vm| {
        let row = cluster.row(*vm);
        let chosen = row.moved_to.as_deref() == Some(cluster.host_name(here)) && !row.failback;
        row.movable == Movable::Live && !hold.contains(&row.key) && !chosen
    })
}

/// A move that would do.
struct Choice {
    /// What it takes off the fullest host.
    gain: f64,
    /// How full its target will be.
    filled: f64,
    unit: usize,
    to: u32,
}

impl Choice {
    /// A hair's breadth is no reason to prefer one to another.
    fn beats(&self, other: &Self) -> bool {
        const HAIR: f64 = 1e-6;
        self.gain > other.gain + HAIR
            || (self.gain > other.gain - HAIR && self.filled < other.filled - HAIR)
    }
}

struct Loads<'a> {
    cluster: &'a Cluster,
    sizes: Vec<(i64, i64)>,
    used: Vec<(i64, i64)>,
}

impl<'a> Loads<'a> {
    fn new(cluster: &'a Cluster, by: By) -> Self {
        let sizes: Vec<(i64, i64)> = cluster
            .vms
            .iter()
            .map(|vm| match (by, vm.usage) {
                (By::Usage, Some(usage)) => usage,
                _ => (vm.cpu, vm.memory_mib),
            })
            .collect();
        let used = (0..cluster.hosts.len() as u32)
            .map(|h| total(&sizes, cluster.residents.get(h)))
            .collect();
        Self { cluster, sizes, used }
    }

    fn size(&self, vms: &[u32]) -> (i64, i64) {
        total(&self.sizes, vms)
    }

    /// How full a host is with so much more, as a part of 1.
    fn of(&self, host: u32, cpu: i64, mib: i64) -> f64 {
        let row = &self.cluster.hosts[host as usize];
        let used = self.used[host as usize];
        let part = |used: i64, of: i64| used as f64 / of.max(1) as f64;
        part(used.0 + cpu, row.cpu).max(part(used.1 + mib, row.memory_mib))
    }

    fn fullest(&self) -> Option<u32> {
        let mut fullest = (0.0, NOWHERE);
        for (h, row) in self.cluster.hosts.iter().enumerate() {
            let load = self.of(h as u32, 0, 0);
            if row.accepts == Acceptance::Yes && load > fullest.0 {
                fullest = (load, h as u32);
            }
        }
        (fullest.1 != NOWHERE).then_some(fullest.1)
    }

    fn shift(&mut self, vms: &[u32], from: u32, to: u32) {
        let (cpu, mib) = self.size(vms);
        let used = &mut self.used;
        used[from as usize] = (used[from as usize].0 - cpu, used[from as usize].1 - mib);
        used[to as usize] = (used[to as usize].0 + cpu, used[to as usize].1 + mib);
    }
}

fn total(sizes: &[(i64, i64)], vms: &[u32]) -> (i64, i64) {
    vms.iter().fold((0, 0), |sum, vm| {
        let size = sizes[*vm as usize];
        (sum.0 + size.0, sum.1 + size.1)
    })
}
