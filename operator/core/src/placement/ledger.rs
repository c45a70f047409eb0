//! The books of one plan: what is free while VMs are placed on paper.

use super::cluster::Cluster;

/// No host.
pub(super) const NOWHERE: u32 = u32::MAX;

/// Free capacity and planned places, over a snapshot that stays as it is.
#[derive(Clone)]
pub(super) struct Ledger<'a> {
    pub(super) cluster: &'a Cluster,
    /// Free CPU by host, in thousandths; below zero if a host is overfull already.
    pub(super) free_cpu: Vec<i64>,
    /// Free memory by host in MiB.
    pub(super) free_mib: Vec<i64>,
    /// VMs by host.
    pub(super) count: Vec<u32>,
    planned: Vec<u32>,
    left: Vec<bool>,
    per_cpu: Vec<f64>,
    per_mib: Vec<f64>,
}

impl<'a> Ledger<'a> {
    /// Opens the books at what the snapshot says.
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let hosts = &cluster.hosts;
        let each = 0..hosts.len();
        Self {
            cluster,
            free_cpu: each.clone().map(|h| hosts[h].cpu - cluster.used_cpu[h]).collect(),
            free_mib: each.clone().map(|h| hosts[h].memory_mib - cluster.used_mib[h]).collect(),
            count: each.map(|h| cluster.residents.get(h as u32).len() as u32).collect(),
            planned: vec![NOWHERE; cluster.vms.len()],
            left: vec![false; cluster.vms.len()],
            per_cpu: hosts.iter().map(|h| 1.0 / h.cpu.max(1) as f64).collect(),
            per_mib: hosts.iter().map(|h| 1.0 / h.memory_mib.max(1) as f64).collect(),
        }
    }

    /// Plans `vm` on `host`, beside the hosts that it occupies now.
    pub(super) fn plan(&mut self, vm: u32, host: u32) {
        self.planned[vm as usize] = host;
        self.count(vm, host, 1);
    }

    /// Takes back what was planned for `vm`.
    pub(super) fn unplan(&mut self, vm: u32) {
        let host = std::mem::replace(&mut self.planned[vm as usize], NOWHERE);
        if host != NOWHERE {
            self.count(vm, host, -1);
        }
    }

    /// Lets `vm` leave the hosts that it occupies now.
    pub(super) fn leave(&mut self, vm: u32) {
        if !std::mem::replace(&mut self.left[vm as usize], true) {
            for host in self.cluster.on.get(vm) {
                self.count(vm, *host, -1);
            }
        }
    }

    fn count(&mut self, vm: u32, host: u32, sign: i64) {
        let row = self.cluster.row(vm);
        self.free_cpu[host as usize] -= sign * row.cpu;
        self.free_mib[host as usize] -= sign * row.memory_mib;
        let n = &mut self.count[host as usize];
        *n = if sign > 0 { *n + 1 } else { n.saturating_sub(1) };
    }

    /// The hosts that `vm` occupies or is planned on.
    pub(super) fn hosts_of(&self, vm: u32) -> impl Iterator<Item = u32> + '_ {
        let now: &[u32] = if self.left[vm as usize] { &[] } else { self.cluster.on.get(vm) };
        let then = self.planned[vm as usize];
        now.iter().copied().chain((then != NOWHERE && !now.contains(&then)).then_some(then))
    }

    /// The host that `vm` is planned on, else the last that it occupies.
    pub(super) fn place_of(&self, vm: u32) -> Option<u32> {
        self.hosts_of(vm).last()
    }

    /// Whether so much is free on `host`.
    pub(super) fn fits(&self, host: u32, cpu: i64, mib: i64) -> bool {
        self.free_cpu[host as usize] >= cpu && self.free_mib[host as usize] >= mib
    }

    /// How full `host` is with so much more on it, in millionths of its scarcer resource.
    pub(super) fn load_with(&self, host: u32, cpu: i64, mib: i64) -> i64 {
        let h = host as usize;
        let by_cpu = 1.0 - (self.free_cpu[h] - cpu) as f64 * self.per_cpu[h];
        let by_mib = 1.0 - (self.free_mib[h] - mib) as f64 * self.per_mib[h];
        (by_cpu.max(by_mib) * 1e6) as i64
    }

    /// VMs of groups that must be apart from `group`, with the hosts that each is on.
    pub(super) fn opponents(&self, group: u32) -> impl Iterator<Item = (u32, u32)> + '_ {
        let rules = &self.cluster.rules;
        rules
            .apart(group)
            .flat_map(|other| rules.members(other))
            .flat_map(|vm| self.hosts_of(*vm).map(|host| (*vm, host)))
    }
}
