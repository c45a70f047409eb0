//! Moves of running VMs: what they share, a user's move, the way back.

use std::collections::BTreeSet;
use std::fmt;

use super::cluster::Cluster;
use super::ledger::Ledger;
use super::model::{Movable, Refusal, Unplaceable, VmKey};
use super::place::{Mode, Solver, reject, running};
use super::unit::{Unit, ranks};

/// VMs that move to one host as one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The VMs.
    pub vms: Vec<Mover>,
    /// Their new host.
    pub to: String,
    /// Why, a sentence for people.
    pub why: String,
}

/// A VM of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mover {
    /// The VM.
    pub vm: VmKey,
    /// Where it runs.
    pub from: String,
    /// Moved while it runs; else by stop and start.
    pub live: bool,
}

impl fmt::Display for Move {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mover) in self.vms.iter().enumerate() {
            let gap = if i == 0 { "" } else { ", " };
            let cold = if mover.live { "" } else { " (stopped for it)" };
            write!(f, "{gap}{} from {}{cold}", mover.vm, mover.from)?;
        }
        write!(f, " to {}: {}", self.to, self.why)
    }
}

impl Move {
    pub(super) fn new(cluster: &Cluster, unit: &Unit, to: u32, why: impl Into<String>) -> Self {
        let movers = unit.vms.iter().map(|vm| {
            let row = cluster.row(*vm);
            let from = cluster.on.get(*vm).first().map(|h| cluster.host_name(*h).to_owned());
            Mover {
                vm: row.key.clone(),
                from: from.unwrap_or_default(),
                live: row.movable == Movable::Live,
            }
        });
        Self { vms: movers.collect(), to: cluster.host_name(to).to_owned(), why: why.into() }
    }
}

/// A move of the VM `key`, and of all that must be together with it, to the
/// host `to` or to the best one.
///
/// # Errors
/// Why it cannot move there: nothing of it may then be begun.
pub fn move_of(cluster: &Cluster, key: &VmKey, to: Option<&str>) -> Result<Move, Unplaceable> {
    let vm = cluster.vm(key).ok_or_else(|| Unplaceable::rule(format!("{key} is not known")))?;
    let group = cluster.rules.group(vm);
    let mut solver = Solver::new(cluster);
    let why = "ordered";
    let Some(name) = to else {
        let vms: BTreeSet<u32> = running(cluster, group).chain([vm]).collect();
        if let Some(no) = reject(cluster, group, &vms, Mode::Move) {
            return Err(no);
        }
        let unit = solver.unit(group, vms, Mode::Move);
        let host = unit.best(&solver.ledger).ok_or_else(|| unit.refusals(&solver.ledger))?;
        return Ok(Move::new(cluster, &unit, host, why));
    };
    let target =
        cluster.host(name).ok_or_else(|| Unplaceable::rule(format!("{name} is not declared")))?;
    let vms: BTreeSet<u32> = running(cluster, group)
        .chain([vm])
        .filter(|m| *m == vm || cluster.on.get(*m) != [target])
        .collect();
    if let Some(no) = reject(cluster, group, &vms, Mode::Move) {
        return Err(no);
    }
    let unit = solver.unit(group, vms, Mode::Move);
    match unit.refusal(&solver.ledger, target) {
        None => Ok(Move::new(cluster, &unit, target, why)),
        Some(reason) => Err(Unplaceable {
            refusals: vec![Refusal { host: name.to_owned(), reason: reason.to_string() }],
            ..Unplaceable::default()
        }),
    }
}

/// A move of the VM `key` after members of its group that are on their way to another host;
/// `None`: none is, or not to `to`.
///
/// # Errors
/// Why it can't follow them.
pub fn join_of(
    cluster: &Cluster,
    key: &VmKey,
    to: Option<&str>,
) -> Option<Result<Move, Unplaceable>> {
    let vm = cluster.vm(key)?;
    let group = cluster.rules.group(vm);
    let ahead = running(cluster, group).find(|m| *m != vm && cluster.on.get(*m).len() > 1)?;
    let target = *cluster.on.get(ahead).last()?;
    let name = cluster.host_name(target);
    if to.is_some_and(|to| to != name) || cluster.on.get(vm).contains(&target) {
        return None;
    }
    let vms = BTreeSet::from([vm]);
    if let Some(no) = reject(cluster, group, &vms, Mode::Move) {
        return Some(Err(no));
    }
    let mut solver = Solver::new(cluster);
    let unit = solver.unit(group, vms, Mode::Move);
    Some(match unit.refusal(&solver.ledger, target) {
        None => Ok(Move::new(cluster, &unit, target, "follows its group")),
        Some(reason) => Err(Unplaceable {
            refusals: vec![Refusal { host: name.to_owned(), reason: reason.to_string() }],
            ..Unplaceable::default()
        }),
    })
}

/// Moves of VMs with failback whose best-ranked host with room is better than theirs; a host that
/// failed one is given time first. All of them may go on at the same time.
pub fn failback(cluster: &Cluster) -> Vec<Move> {
    let mut solver = Solver::new(cluster);
    let mut moves = Vec::new();
    for group in groups(cluster, |row| row.failback && !row.preferred.is_empty()) {
        let Some((unit, here)) = settled(&mut solver, group) else { continue };
        let goes_back = |vm: u32| cluster.row(vm).failback;
        let ranks = ranks(cluster, &unit.vms, goes_back);
        let rank = |h: u32| ranks.get(h as usize).copied().unwrap_or_default();
        let best = roomy(&unit, &solver.ledger)
            .into_iter()
            .filter(|h| rank(*h) < rank(here) && !unit.shuns(*h))
            .min_by_key(|h| (rank(*h), unit.score(&solver.ledger, &[], *h)));
        if let Some(to) = best {
            solver.plan(&unit, to);
            moves.push(Move::new(cluster, &unit, to, "failback: it prefers this host"));
        }
    }
    moves
}

/// Groups with a running member that `counts`, by their first VM.
pub(super) fn groups(
    cluster: &Cluster,
    counts: impl Fn(&super::model::VmRow) -> bool,
) -> BTreeSet<u32> {
    (0..cluster.vms.len() as u32)
        .filter(|vm| !cluster.on.get(*vm).is_empty() && counts(cluster.row(*vm)))
        .map(|vm| cluster.rules.group(vm))
        .collect()
}

/// The unit of all running members of a group, and their host, if they run on
/// one host, none moves now and all may.
pub(super) fn settled(solver: &mut Solver<'_>, group: u32) -> Option<(Unit, u32)> {
    let cluster = solver.ledger.cluster;
    let vms: BTreeSet<u32> = running(cluster, group).collect();
    let here = *cluster.on.get(*vms.first()?).first()?;
    if vms.iter().any(|vm| cluster.on.get(*vm) != [here])
        || reject(cluster, group, &vms, Mode::Move).is_some()
    {
        return None;
    }
    Some((solver.unit(group, vms, Mode::Move), here))
}

/// Hosts that would take the unit now.
pub(super) fn roomy(unit: &Unit, ledger: &Ledger<'_>) -> Vec<u32> {
    let blocked = unit.blocked(ledger);
    let fits = |h: &u32| ledger.fits(*h, unit.cpu, unit.mib) && !blocked.contains(h);
    unit.hosts.iter().copied().filter(fits).collect()
}

/// The ways in which the running members of a group can come to one host: those
/// elsewhere join one that stays (fewest moves first), or all go to a third host.
/// Empty if one moves already or may not move.
pub(super) fn options(solver: &mut Solver<'_>, group: u32) -> Vec<Unit> {
    let cluster = solver.ledger.cluster;
    let all: BTreeSet<u32> = running(cluster, group).collect();
    let hosts: BTreeSet<u32> = all.iter().flat_map(|m| cluster.on.get(*m)).copied().collect();
    if all.iter().any(|m| cluster.on.get(*m).len() > 1) {
        return Vec::new();
    }
    let mut units = Vec::new();
    if hosts.len() > 1 {
        for host in &hosts {
            let movers = all.iter().copied().filter(|m| cluster.on.get(*m) != [*host]).collect();
            if reject(cluster, group, &movers, Mode::Move).is_none() {
                units.push(solver.unit(group, movers, Mode::Move));
            }
        }
        units.sort_by_key(|u| u.vms.len());
    }
    if reject(cluster, group, &all, Mode::Move).is_none() {
        units.push(solver.unit(group, all, Mode::Move));
    }
    units
}
