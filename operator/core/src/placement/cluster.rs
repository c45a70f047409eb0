//! The snapshot with its index: who is where, who belongs together.

use std::collections::{BTreeMap, BTreeSet};

use super::model::{Acceptance, HostRow, VmKey, VmRow};
use super::rules::Rules;

/// Lists of numbers by number, in one piece of memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Lists {
    start: Vec<u32>,
    flat: Vec<u32>,
}

impl Lists {
    /// Groups `pairs` (list, value) into `n` lists; values keep their order.
    pub(super) fn new(n: usize, pairs: &[(u32, u32)]) -> Self {
        let mut start = vec![0u32; n + 1];
        for (list, _) in pairs {
            start[*list as usize + 1] += 1;
        }
        for i in 0..n {
            start[i + 1] += start[i];
        }
        let mut next = start.clone();
        let mut flat = vec![0u32; pairs.len()];
        for (list, value) in pairs {
            let at = &mut next[*list as usize];
            flat[*at as usize] = *value;
            *at += 1;
        }
        Self { start, flat }
    }

    /// The list `i`.
    pub(super) fn get(&self, i: u32) -> &[u32] {
        &self.flat[self.start[i as usize] as usize..self.start[i as usize + 1] as usize]
    }
}

/// Hosts and VMs of one moment, indexed.
#[derive(Clone, Debug)]
pub struct Cluster {
    pub(super) hosts: Vec<HostRow>,
    pub(super) vms: Vec<VmRow>,
    /// Hosts a VM occupies.
    pub(super) on: Lists,
    /// VMs that occupy a host.
    pub(super) residents: Lists,
    pub(super) used_cpu: Vec<i64>,
    pub(super) used_mib: Vec<i64>,
    pub(super) rules: Rules,
}

impl Cluster {
    /// Indexes the rows. Two rows of one name: the first counts. A host that a
    /// VM occupies but that nobody declared is added; it takes nothing.
    pub fn new(mut hosts: Vec<HostRow>, mut vms: Vec<VmRow>) -> Self {
        sort_by_name(&mut hosts);
        vms.sort_by(|a, b| a.key.cmp(&b.key));
        vms.dedup_by(|later, first| later.key == first.key);
        let occupied = match places(&hosts, &vms) {
            Ok(places) => places,
            Err(unknown) => {
                hosts.extend(unknown.iter().map(|name| ghost(name)));
                sort_by_name(&mut hosts);
                places(&hosts, &vms).unwrap_or_default()
            }
        };
        let on = Lists::new(vms.len(), &occupied);
        let flipped: Vec<(u32, u32)> = occupied.iter().map(|(v, h)| (*h, *v)).collect();
        let residents = Lists::new(hosts.len(), &flipped);
        let (mut used_cpu, mut used_mib) = (vec![0; hosts.len()], vec![0; hosts.len()]);
        for (v, h) in &occupied {
            used_cpu[*h as usize] += vms[*v as usize].cpu;
            used_mib[*h as usize] += vms[*v as usize].memory_mib;
        }
        let rules = Rules::new(&vms);
        Self { hosts, vms, on, residents, used_cpu, used_mib, rules }
    }

    /// The same, with VMs on the hosts that they were given since.
    #[must_use]
    pub fn with(&self, given: Vec<(VmKey, Vec<String>)>) -> Self {
        let mut vms = self.vms.clone();
        for (key, on) in given {
            if let Some(at) = self.vm(&key) {
                vms[at as usize].on = on;
            }
        }
        Self::new(self.hosts.clone(), vms)
    }

    /// The same, as if every host could give and take VMs live.
    #[must_use]
    pub fn all_live(&self) -> Self {
        let mut all = self.clone();
        for host in &mut all.hosts {
            host.no_live = None;
        }
        all
    }

    /// The number of the host `name`.
    pub(super) fn host(&self, name: &str) -> Option<u32> {
        find(&self.hosts, name)
    }

    /// The number of the VM `key`.
    pub(super) fn vm(&self, key: &VmKey) -> Option<u32> {
        self.vms.binary_search_by(|v| v.key.cmp(key)).ok().map(|i| i as u32)
    }

    /// The row of a VM.
    pub(super) fn row(&self, vm: u32) -> &VmRow {
        &self.vms[vm as usize]
    }

    /// The name of a host.
    pub(super) fn host_name(&self, host: u32) -> &str {
        &self.hosts[host as usize].name
    }
}

/// All pairs of a VM and a host that it occupies, or the names of hosts that are not there.
fn places(hosts: &[HostRow], vms: &[VmRow]) -> Result<Vec<(u32, u32)>, BTreeSet<String>> {
    let names: Vec<&str> = hosts.iter().map(|h| h.name.as_str()).collect();
    let mut places = Vec::with_capacity(vms.len());
    let mut unknown = BTreeSet::new();
    for (v, vm) in vms.iter().enumerate() {
        for (i, name) in vm.on.iter().enumerate() {
            if vm.on[..i].contains(name) {
                continue;
            }
            match names.binary_search(&name.as_str()) {
                Ok(h) => places.push((v as u32, h as u32)),
                Err(_) => {
                    unknown.insert(name.clone());
                }
            }
        }
    }
    if unknown.is_empty() { Ok(places) } else { Err(unknown) }
}

fn sort_by_name(hosts: &mut Vec<HostRow>) {
    hosts.sort_by(|a, b| a.name.cmp(&b.name));
    hosts.dedup_by(|later, first| later.name == first.name);
}

fn find(hosts: &[HostRow], name: &str) -> Option<u32> {
    hosts.binary_search_by(|h| h.name.as_str().cmp(name)).ok().map(|i| i as u32)
}

fn ghost(name: &str) -> HostRow {
    HostRow {
        name: name.to_owned(),
        accepts: Acceptance::No("not declared".to_owned()),
        labels: BTreeMap::new(),
        ..HostRow::default()
    }
}
