//! Groups on whose host one of them could not be started: the others go on to another host, so
//! that it can follow.

use std::collections::BTreeMap;

use super::cluster::Cluster;
use super::model::VmKey;
use super::moves::{Move, roomy, settled};
use super::place::Solver;

/// By VM that could not be started where its group runs: the move of its group to the best host
/// that no start of it failed on and that has room for all of them. A VM whose group can't move
/// there is not among them: it is tried again where it is.
#[must_use]
pub fn relocate(cluster: &Cluster) -> BTreeMap<VmKey, Move> {
    let mut moves = BTreeMap::new();
    if cluster.vms.iter().all(|row| row.tried.is_empty()) {
        return moves;
    }
    let mut solver = Solver::new(cluster);
    for (vm, row) in cluster.vms.iter().enumerate() {
        let vm = vm as u32;
        let group = cluster.rules.group(vm);
        if row.tried.is_empty() || !cluster.on.get(vm).is_empty() {
            continue;
        }
        let Some((unit, here)) = settled(&mut solver, group) else { continue };
        if !row.tried.contains(cluster.host_name(here)) {
            continue;
        }
        let need = super::need::Need::new(cluster, group, &[vm]);
        let follows = |h: &u32| {
            let host = &cluster.hosts[*h as usize];
            !row.tried.contains(&host.name)
                && need.refuses(host).is_none()
                && solver.ledger.fits(*h, unit.cpu + row.cpu, unit.mib + row.memory_mib)
        };
        let leanings = unit.leanings(&solver.ledger);
        let to = roomy(&unit, &solver.ledger)
            .into_iter()
            .filter(follows)
            .min_by_key(|h| unit.score(&solver.ledger, &leanings, *h));
        if let Some(to) = to {
            let why = format!("{} could not be started on {}", row.key, cluster.host_name(here));
            solver.plan(&unit, to);
            moves.insert(row.key.clone(), Move::new(cluster, &unit, to, why));
        }
    }
    moves
}
