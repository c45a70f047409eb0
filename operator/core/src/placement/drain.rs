//! Emptying a host.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Cluster;
use super::model::{Unplaceable, VmKey};
use super::moves::{Move, options};
use super::place::{Mode, Solver, reject, running};

/// How a host is emptied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DrainPlan {
    /// Moves, in waves of as many at once as each host may take part in.
    pub waves: Vec<Vec<Move>>,
    /// VMs that are on their way already.
    pub moving: Vec<VmKey>,
    /// VMs that cannot leave, and why.
    pub blocked: Vec<(VmKey, Unplaceable)>,
}

impl DrainPlan {
    /// All moves, in order.
    pub fn moves(&self) -> impl Iterator<Item = &Move> {
        self.waves.iter().flatten()
    }
}

/// How all VMs leave `host`, at most `per_host` moves at once on each host (a group
/// that moves as one may exceed it). Whether the host takes VMs meanwhile makes no
/// difference, so that a plan made before the drain equals the drain.
pub fn drain_plan(cluster: &Cluster, host: &str, per_host: usize) -> DrainPlan {
    let mut plan = DrainPlan::default();
    let Some(host) = cluster.host(host) else { return plan };
    let why = format!("{} is being emptied", cluster.host_name(host));
    let residents = cluster.residents.get(host);
    let groups: BTreeSet<u32> = residents.iter().map(|vm| cluster.rules.group(*vm)).collect();
    let mut solver = Solver::new(cluster);
    let (mut units, mut moves) = (Vec::new(), Vec::new());
    for group in groups {
        let here = || residents.iter().filter(|vm| cluster.rules.group(**vm) == group);
        let keys = || here().map(|vm| cluster.row(*vm).key.clone());
        if running(cluster, group).any(|vm| cluster.on.get(vm).len() > 1) {
            plan.moving.extend(keys());
            continue;
        }
        let vms: BTreeSet<u32> = here().copied().collect();
        if let Some(no) = reject(cluster, group, &vms, Mode::Move) {
            plan.blocked.extend(keys().map(|key| (key, no.clone())));
            continue;
        }
        let mut ways = options(&mut solver, group);
        // A way that joins members on the host itself would not empty it.
        ways.retain(|unit| unit.leaving.contains(&host));
        if let [unit] = &ways[..]
            && unit.vms.len() == vms.len()
        {
            units.push(unit.clone());
            continue;
        }
        let way = ways.iter().find_map(|unit| Some((unit, unit.best(&solver.ledger)?)));
        match (way, ways.first()) {
            (Some((unit, to)), _) => {
                moves.push(Move::new(cluster, unit, to, &*why));
                let unit = unit.clone();
                solver.plan(&unit, to);
            }
            (None, Some(unit)) => {
                let no = unit.refusals(&solver.ledger);
                plan.blocked.extend(keys().map(|key| (key, no.clone())));
            }
            (None, None) => {
                let all = running(cluster, group).collect();
                let no = reject(cluster, group, &all, Mode::Move).unwrap_or_default();
                plan.blocked.extend(keys().map(|key| (key, no.clone())));
            }
        }
    }
    let places = solver.assign(&mut units);
    for (unit, place) in units.iter().zip(places) {
        match place {
            Some(to) => moves.push(Move::new(cluster, unit, to, &*why)),
            None => {
                let no = unit.refusals(&solver.ledger);
                let keys = unit.vms.iter().map(|vm| cluster.row(*vm).key.clone());
                plan.blocked.extend(keys.map(|key| (key, no.clone())));
            }
        }
    }
    plan.blocked.sort_by(|a, b| a.0.cmp(&b.0));
    plan.waves = waves(moves, per_host.max(1));
    plan
}

/// Puts each move into the first wave in which its hosts have a place left.
fn waves(moves: Vec<Move>, per_host: usize) -> Vec<Vec<Move>> {
    let mut waves: Vec<(BTreeMap<String, usize>, Vec<Move>)> = Vec::new();
    for one in moves {
        let mut takes: BTreeMap<String, usize> = BTreeMap::new();
        *takes.entry(one.to.clone()).or_default() += one.vms.len();
        for mover in &one.vms {
            *takes.entry(mover.from.clone()).or_default() += 1;
        }
        let has_place = |used: &BTreeMap<String, usize>| {
            takes.iter().all(|(host, n)| match used.get(host) {
                None => true,
                Some(used) => used + n <= per_host,
            })
        };
        let at = match waves.iter().position(|(used, _)| has_place(used)) {
            Some(at) => at,
            None => {
                waves.push(Default::default());
                waves.len() - 1
            }
        };
        for (host, n) in takes {
            *waves[at].0.entry(host).or_default() += n;
        }
        waves[at].1.push(one);
    }
    waves.into_iter().map(|(_, wave)| wave).collect()
}
