//! VMs that are placed as one: the members of a group that want a host.

use std::collections::BTreeMap;
use std::rc::Rc;

use super::cluster::Cluster;
use super::ledger::Ledger;
use super::model::{FailedMoves, Movable, Refusal, Unplaceable};
use super::need::{Need, Why};

/// VMs of one group that get one host.
#[derive(Clone, Debug)]
pub(super) struct Unit {
    /// Their group.
    pub(super) group: u32,
    /// The VMs.
    pub(super) vms: Vec<u32>,
    /// Their CPU together, in thousandths.
    pub(super) cpu: i64,
    /// Their memory together in MiB.
    pub(super) mib: i64,
    /// The highest of their priorities.
    pub(super) priority: i32,
    /// Hosts that may hold them, were they empty.
    pub(super) hosts: Rc<[u32]>,
    /// Hosts that they must leave.
    pub(super) leaving: Vec<u32>,
    need: Rc<Need>,
    /// Hosts of members that run and stay: the others must join them.
    anchors: Vec<(u32, u32)>,
    /// By host, the lower the better; empty: all alike.
    ranks: Vec<u32>,
    tried: Vec<u32>,
    /// Hosts that failed moves of one of them, if it moves.
    failed: Vec<(u32, FailedMoves)>,
}

/// How a host suits a unit: the smallest is taken.
pub(super) type Score = (bool, u32, i32, i64, u32, u32);

/// What VMs need, worked out once for all that need the same.
#[derive(Default)]
pub(super) struct Classes(BTreeMap<Rc<Need>, Rc<[u32]>>);

impl Classes {
    fn hosts(&mut self, cluster: &Cluster, need: Need) -> (Rc<Need>, Rc<[u32]>) {
        if let Some((need, hosts)) = self.0.get_key_value(&need) {
            return (Rc::clone(need), Rc::clone(hosts));
        }
        let hosts: Rc<[u32]> = (0..cluster.hosts.len() as u32)
            .filter(|h| need.refuses(&cluster.hosts[*h as usize]).is_none())
            .collect();
        let need = Rc::new(need);
        self.0.insert(Rc::clone(&need), Rc::clone(&hosts));
        (need, hosts)
    }
}

impl Unit {
    /// The unit of `vms`, all of `group`, which must leave the hosts `leaving`; `moves`: it runs
    /// there.
    pub(super) fn new(
        ledger: &Ledger<'_>,
        classes: &mut Classes,
        group: u32,
        vms: Vec<u32>,
        leaving: Vec<u32>,
        moves: bool,
    ) -> Self {
        let cluster = ledger.cluster;
        let mut need = Need::new(cluster, group, &vms);
        let is_live = |vm: &u32| cluster.row(*vm).movable == Movable::Live;
        need.live = moves && vms.iter().any(is_live);
        let (need, mut hosts) = classes.hosts(cluster, need);
        let anchors: Vec<(u32, u32)> = cluster
            .rules
            .members(group)
            .iter()
            .filter(|m| !vms.contains(m))
            .filter_map(|m| ledger.place_of(*m).map(|h| (*m, h)))
            .collect();
        if !anchors.is_empty() || !leaving.is_empty() {
            let joins = |h: &u32| anchors.is_empty() || anchors.iter().any(|(_, at)| at == h);
            hosts = hosts.iter().copied().filter(|h| joins(h) && !leaving.contains(h)).collect();
        }
        let rows = || vms.iter().map(|v| cluster.row(*v));
        let mut tried: Vec<u32> =
            rows().flat_map(|r| &r.tried).filter_map(|h| cluster.host(h)).collect();
        let failed: Vec<(u32, FailedMoves)> = rows()
            .filter(|_| moves)
            .flat_map(|row| &row.failed)
            .filter_map(|(host, failed)| Some((cluster.host(host)?, *failed)))
            .collect();
        tried.extend(failed.iter().map(|(host, _)| *host));
        tried.sort_unstable();
        Self {
            cpu: rows().map(|r| r.cpu).sum(),
            mib: rows().map(|r| r.memory_mib).sum(),
            priority: rows().map(|r| r.priority).max().unwrap_or_default(),
            ranks: ranks(cluster, &vms, |_| true),
            group,
            hosts,
            leaving,
            need,
            anchors,
            tried,
            failed,
            vms,
        }
    }

    /// The unit's size as a part of a mean host's scarcer resource, in millionths.
    pub(super) fn size(&self, mean: (i64, i64)) -> i64 {
        let part = |what: i64, of: i64| what.saturating_mul(1_000_000) / of.max(1);
        part(self.cpu, mean.0).max(part(self.mib, mean.1))
    }

    /// Hosts where something runs that must be apart.
    pub(super) fn blocked(&self, ledger: &Ledger<'_>) -> Vec<u32> {
        let mut hosts: Vec<u32> = ledger.opponents(self.group).map(|(_, h)| h).collect();
        hosts.sort_unstable();
        hosts.dedup();
        hosts
    }

    /// How each soft rule speaks for (+) or against (-) a host.
    pub(super) fn leanings(&self, ledger: &Ledger<'_>) -> Vec<(u32, i32)> {
        let mut leanings: Vec<(u32, i32)> = Vec::new();
        for vm in &self.vms {
            for (other, weight) in ledger.cluster.rules.soft(*vm) {
                if self.vms.contains(other) {
                    continue;
                }
                if let Some(host) = ledger.place_of(*other) {
                    match leanings.iter_mut().find(|(h, _)| *h == host) {
                        Some((_, sum)) => *sum += weight,
                        None => leanings.push((host, *weight)),
                    }
                }
            }
        }
        leanings
    }

    /// How `host` suits: untried before tried, better rank, soft rules, emptier,
    /// fewer VMs, name.
    pub(super) fn score(&self, ledger: &Ledger<'_>, leanings: &[(u32, i32)], host: u32) -> Score {
        let leaning = leanings.iter().find(|(h, _)| *h == host).map_or(0, |(_, sum)| *sum);
        (
            self.tried.contains(&host),
            self.rank(host),
            -leaning,
            ledger.load_with(host, self.cpu, self.mib),
            ledger.count[host as usize],
            host,
        )
    }

    /// Whether moves of one of them failed on `host` too lately to try again for a preference.
    pub(super) fn shuns(&self, host: u32) -> bool {
        self.failed.iter().any(|(at, failed)| *at == host && failed.fresh)
    }

    /// Whether moves of one of them to `host` failed so often that no other way is worse.
    pub(super) fn despairs_of(&self, host: u32) -> bool {
        self.failed.iter().any(|(at, failed)| *at == host && failed.count >= 3)
    }

    /// How far down `host` is in the members' preferences.
    pub(super) fn rank(&self, host: u32) -> u32 {
        self.ranks.get(host as usize).copied().unwrap_or_default()
    }

    /// The best host with room, or none.
    pub(super) fn best(&self, ledger: &Ledger<'_>) -> Option<u32> {
        let blocked = self.blocked(ledger);
        let leanings = self.leanings(ledger);
        self.hosts
            .iter()
            .copied()
            .filter(|h| ledger.fits(*h, self.cpu, self.mib) && !blocked.contains(h))
            .map(|h| self.score(ledger, &leanings, h))
            .min()
            .map(|score| score.5)
    }

    /// Whether the rules allow any host but those that it leaves.
    pub(super) fn has_elsewhere(&self, cluster: &Cluster) -> bool {
        let others = (0..cluster.hosts.len() as u32).filter(|h| !self.leaving.contains(h));
        others.into_iter().any(|h| self.need.forbids(&cluster.hosts[h as usize]).is_none())
    }

    /// Whether it would have room on `host` once `away` is gone from there.
    pub(super) fn fits_without(&self, ledger: &Ledger<'_>, host: u32, away: &Self) -> bool {
        let blocked =
            ledger.opponents(self.group).any(|(vm, at)| at == host && !away.vms.contains(&vm));
        !blocked && ledger.fits(host, self.cpu - away.cpu, self.mib - away.mib)
    }

    /// Why not `host`, as the books stand; none if it would do.
    pub(super) fn refusal<'a>(&'a self, ledger: &'a Ledger<'_>, host: u32) -> Option<Why<'a>> {
        let cluster = ledger.cluster;
        if self.leaving.contains(&host) {
            return Some(Why::Here);
        }
        if let Some(why) = self.need.refuses(&cluster.hosts[host as usize]) {
            return Some(why);
        }
        if let Some((vm, at)) = self.anchors.first()
            && !self.anchors.iter().any(|(_, h)| *h == host)
        {
            return Some(Why::Elsewhere(&cluster.row(*vm).key, cluster.host_name(*at)));
        }
        if let Some((vm, _)) = ledger.opponents(self.group).find(|(_, h)| *h == host) {
            return Some(Why::Apart(&cluster.row(vm).key));
        }
        let h = host as usize;
        if ledger.free_mib[h] < self.mib {
            return Some(Why::Memory(self.mib, ledger.free_mib[h]));
        }
        (ledger.free_cpu[h] < self.cpu).then(|| Why::Cpu(self.cpu, ledger.free_cpu[h]))
    }

    /// All that speaks against each host, as the books stand.
    pub(super) fn refusals(&self, ledger: &Ledger<'_>) -> Unplaceable {
        let cluster = ledger.cluster;
        if cluster.hosts.is_empty() {
            return Unplaceable::rule("no host is declared");
        }
        let mut all = Unplaceable::default();
        let mut left_out = Vec::new();
        for host in 0..cluster.hosts.len() as u32 {
            let Some(why) = self.refusal(ledger, host) else { continue };
            let refusal =
                Refusal { host: cluster.host_name(host).to_owned(), reason: why.to_string() };
            match why {
                // Hosts that a rule of the VM's own leaves out say little: they come last.
                Why::NotRequired { .. } => left_out.push(refusal),
                _ => all.refusals.push(refusal),
            }
        }
        all.refusals.extend(left_out);
        all.more = all.refusals.len().saturating_sub(Unplaceable::LISTED);
        all.refusals.truncate(Unplaceable::LISTED);
        all
    }
}

/// The sum of the ranks of each host over those of `vms` that `counts`; empty if
/// none of them prefers any.
pub(super) fn ranks(cluster: &Cluster, vms: &[u32], counts: impl Fn(u32) -> bool) -> Vec<u32> {
    let mut sums = Vec::new();
    for vm in vms.iter().copied().filter(|v| counts(*v)) {
        let preferred = &cluster.row(vm).preferred;
        if preferred.is_empty() {
            continue;
        }
        sums.resize(cluster.hosts.len(), 0);
        let mut of_vm = vec![preferred.len() as u32; cluster.hosts.len()];
        for (rank, hosts) in preferred.iter().enumerate().rev() {
            for host in hosts.iter().filter_map(|h| cluster.host(h)) {
                of_vm[host as usize] = rank as u32;
            }
        }
        sums.iter_mut().zip(of_vm).for_each(|(sum, rank)| *sum += rank);
    }
    sums
}
