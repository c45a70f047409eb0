//! Where wanted VMs go.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Cluster;
use super::ledger::{Ledger, NOWHERE};
use super::model::{Movable, Unplaceable, VmKey};
use super::need::Need;
use super::pack::{Bins, Item, pack};
use super::unit::{Classes, Unit};

/// What the wanted VMs want a host for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// To start: they run nowhere (hosts they still name in `on` are left out of account).
    Start,
    /// To move: they run, and count where they are and where they go. All
    /// members of their groups that run move with them.
    Move,
}

/// So many comparisons a plan may spend on packing tightly before it gives up.
const BUDGET: i64 = 1_500_000;

/// Finds a host for each of `wanted`, best first: priority, then size. VMs that
/// must be together get one host. What fits nowhere gets the reasons.
///
/// Of the hosts that are allowed and have room, one is taken that no start
/// failed on, then by the VM's own ranks, then by soft rules between VMs, then
/// the emptiest, then by name. If that leaves VMs unplaced, the wanted ones
/// (never running ones) are shifted among the hosts until all fit or a bound
/// on the work is reached; lower priorities give way.
pub fn place(
    cluster: &Cluster,
    wanted: &[VmKey],
    mode: Mode,
) -> BTreeMap<VmKey, Result<String, Unplaceable>> {
    let mut answers = BTreeMap::new();
    let mut solver = Solver::new(cluster);
    let mut groups: BTreeMap<u32, BTreeSet<u32>> = BTreeMap::new();
    for key in wanted {
        let Some(vm) = cluster.vm(key) else {
            answers.insert(key.clone(), Err(Unplaceable::rule(format!("{key} is not known"))));
            continue;
        };
        let group = cluster.rules.group(vm);
        let unit = groups.entry(group).or_default();
        unit.insert(vm);
        match mode {
            Mode::Start => solver.ledger.leave(vm),
            Mode::Move => unit.extend(running(cluster, group)),
        }
    }
    let mut units = Vec::new();
    for (group, vms) in groups {
        match reject(cluster, group, &vms, mode) {
            Some(no) => {
                let all = vms.iter().map(|vm| (cluster.row(*vm).key.clone(), Err(no.clone())));
                answers.extend(all);
            }
            None => units.push(solver.unit(group, vms, mode)),
        }
    }
    let places = solver.assign(&mut units);
    for (unit, place) in units.iter().zip(places) {
        let answer = match place {
            Some(host) => Ok(cluster.host_name(host).to_owned()),
            None => Err(unit.refusals(&solver.ledger)),
        };
        for vm in &unit.vms {
            answers.insert(cluster.row(*vm).key.clone(), answer.clone());
        }
    }
    answers
}

/// The members of a group that occupy a host.
pub(super) fn running(cluster: &Cluster, group: u32) -> impl Iterator<Item = u32> + '_ {
    let members = cluster.rules.members(group).iter().copied();
    members.filter(|m| !cluster.on.get(*m).is_empty())
}

/// Why these VMs are not even tried.
pub(super) fn reject(
    cluster: &Cluster,
    group: u32,
    vms: &BTreeSet<u32>,
    mode: Mode,
) -> Option<Unplaceable> {
    if let Some(rule) = cluster.rules.broken(group) {
        return Some(Unplaceable::rule(rule));
    }
    if mode == Mode::Start {
        return None;
    }
    vms.iter().find_map(|vm| {
        let row = cluster.row(*vm);
        let stuck = |host: u32| match &cluster.hosts[host as usize].no_live {
            Some(why) if row.movable == Movable::Live => {
                Some(format!("can't leave {}: {why}", cluster.host_name(host)))
            }
            _ => None,
        };
        let why = match cluster.on.get(*vm) {
            [] => "runs nowhere".to_owned(),
            [_] if row.movable == Movable::No => "must not be moved".to_owned(),
            [host] => row.stays.clone().or_else(|| stuck(*host))?,
            _ => "is being moved already".to_owned(),
        };
        Some(Unplaceable::rule(format!("{} {why}", row.key)))
    })
}

/// Places units on the books.
pub(super) struct Solver<'a> {
    pub(super) ledger: Ledger<'a>,
    pub(super) classes: Classes,
    mean: (i64, i64),
    budget: i64,
}

impl<'a> Solver<'a> {
    /// A solver on the snapshot as it is.
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let hosts = cluster.hosts.len().max(1) as i64;
        let mean = (
            cluster.hosts.iter().map(|h| h.cpu).sum::<i64>() / hosts,
            cluster.hosts.iter().map(|h| h.memory_mib).sum::<i64>() / hosts,
        );
        Self { ledger: Ledger::new(cluster), classes: Classes::default(), mean, budget: BUDGET }
    }

    /// The unit of `vms`.
    pub(super) fn unit(&mut self, group: u32, vms: BTreeSet<u32>, mode: Mode) -> Unit {
        let mut leaving = Vec::new();
        if mode == Mode::Move {
            let on = vms.iter().flat_map(|vm| self.ledger.cluster.on.get(*vm));
            leaving.extend(on);
            leaving.sort_unstable();
            leaving.dedup();
        }
        let vms = vms.into_iter().collect();
        let moves = mode == Mode::Move;
        Unit::new(&self.ledger, &mut self.classes, group, vms, leaving, moves)
    }

    /// What all of a group need of a host, rules alone.
    pub(super) fn need(&self, group: u32) -> Need {
        Need::new(self.ledger.cluster, group, &[])
    }

    /// Bounds the work of packing tightly.
    pub(super) fn limit(&mut self, budget: i64) {
        self.budget = budget;
    }

    /// Plans `unit` on `host`.
    pub(super) fn plan(&mut self, unit: &Unit, host: u32) {
        for vm in &unit.vms {
            self.ledger.plan(*vm, host);
        }
    }

    /// Takes the plan for `unit` back.
    pub(super) fn unplan(&mut self, unit: &Unit) {
        for vm in &unit.vms {
            self.ledger.unplan(*vm);
        }
    }

    /// Sorts `units` by priority and size, plans them and says where each is.
    pub(super) fn assign(&mut self, units: &mut [Unit]) -> Vec<Option<u32>> {
        let mean = self.mean;
        units.sort_by_cached_key(|u| (-i64::from(u.priority), -u.size(mean), u.vms.clone()));
        let units = &*units;
        let mut at = vec![None; units.len()];
        let (mut shifted, mut tried_all) = (false, false);
        for i in 0..units.len() {
            if at[i].is_some() {
                continue;
            }
            if let Some(host) = units[i].best(&self.ledger) {
                self.plan(&units[i], host);
                at[i] = Some(host);
                continue;
            }
            if self.eject(units, &mut at, i) {
                shifted = true;
                continue;
            }
            if !tried_all {
                tried_all = true;
                let all: Vec<usize> = (0..units.len()).collect();
                if self.repack(units, &mut at, &all) {
                    shifted = true;
                    continue;
                }
            }
            let so_far: Vec<usize> = (0..=i).filter(|j| *j == i || at[*j].is_some()).collect();
            shifted |= self.repack(units, &mut at, &so_far);
        }
        if shifted {
            self.polish(units, &mut at);
        }
        at
    }

    /// Makes room for unit `i` by one planned unit that finds another host.
    fn eject(&mut self, units: &[Unit], at: &mut [Option<u32>], i: usize) -> bool {
        let unit = &units[i];
        for j in 0..units.len() {
            let Some(host) = at[j] else { continue };
            let other = &units[j];
            let would_fit = self.ledger.free_cpu[host as usize] + other.cpu >= unit.cpu
                && self.ledger.free_mib[host as usize] + other.mib >= unit.mib;
            if !would_fit || !unit.hosts.contains(&host) {
                continue;
            }
            self.unplan(other);
            if !unit.blocked(&self.ledger).contains(&host) {
                self.plan(unit, host);
                if let Some(new) = other.best(&self.ledger) {
                    self.plan(other, new);
                    (at[i], at[j]) = (Some(host), Some(new));
                    return true;
                }
                self.unplan(unit);
            }
            self.plan(other, host);
        }
        false
    }

    /// Places all of `which` anew, tightly; if that fails, nothing changes.
    fn repack(&mut self, units: &[Unit], at: &mut [Option<u32>], which: &[usize]) -> bool {
        for i in which {
            if at[*i].is_some() {
                self.unplan(&units[*i]);
            }
        }
        let found = self.packed(units, at, which);
        for (n, i) in which.iter().enumerate() {
            if let Some(found) = &found {
                at[*i] = Some(found[n]);
            }
            if let Some(host) = at[*i] {
                self.plan(&units[*i], host);
            }
        }
        found.is_some()
    }

    fn packed(&mut self, units: &[Unit], at: &[Option<u32>], which: &[usize]) -> Option<Vec<u32>> {
        let mut items = Vec::with_capacity(which.len());
        for i in which {
            let unit = &units[*i];
            let blocked = unit.blocked(&self.ledger);
            let fits = |h: &u32| self.ledger.fits(*h, unit.cpu, unit.mib) && !blocked.contains(h);
            let hosts: Vec<u32> = unit.hosts.iter().copied().filter(fits).collect();
            if hosts.is_empty() {
                return None;
            }
            let rules = &self.ledger.cluster.rules;
            let apart = which
                .iter()
                .enumerate()
                .filter(|(_, j)| rules.are_apart(unit.group, units[**j].group))
                .map(|(n, _)| n as u32)
                .collect();
            items.push(Item { cpu: unit.cpu, mib: unit.mib, hosts, apart });
        }
        let bins = Bins { cpu: self.ledger.free_cpu.clone(), mib: self.ledger.free_mib.clone() };
        let start = which.iter().map(|i| at[*i].unwrap_or(NOWHERE)).collect();
        pack(&items, &bins, start, &mut self.budget)
    }

    /// Lets each unit go to the host that suits it best, now that all have one.
    fn polish(&mut self, units: &[Unit], at: &mut [Option<u32>]) {
        for (unit, at) in units.iter().zip(at) {
            if let Some(host) = *at {
                self.unplan(unit);
                let host = unit.best(&self.ledger).unwrap_or(host);
                self.plan(unit, host);
                *at = Some(host);
            }
        }
    }
}
