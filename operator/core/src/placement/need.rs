//! What VMs need of a host, whatever else runs there.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use stockade_crds::v1alpha1::HypervisorKind;

use super::cluster::Cluster;
use super::model::{Acceptance, HostRow, VmKey};
use super::rules::words;

/// What the VMs that are placed as one need of their host.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Need {
    required: Option<(BTreeSet<String>, VmKey)>,
    selector: BTreeMap<String, (String, VmKey)>,
    hypervisors: BTreeSet<HypervisorKind>,
    storages: BTreeSet<String>,
    barred: BTreeMap<String, String>,
    /// Some of them come while they run.
    pub(super) live: bool,
}

impl Need {
    /// The need of `vms`, all of one group. Rules bind also by members that are
    /// not placed now; disks and hypervisor only of those that are.
    pub(super) fn new(cluster: &Cluster, group: u32, vms: &[u32]) -> Self {
        let mut need = Self::default();
        for member in cluster.rules.members(group) {
            let row = cluster.row(*member);
            if let Some(required) = &row.required {
                need.required = Some(match need.required.take() {
                    None => (required.clone(), row.key.clone()),
                    Some((hosts, by)) => (&hosts & required, by),
                });
            }
            for (label, value) in &row.selector {
                need.selector
                    .entry(label.clone())
                    .or_insert_with(|| (value.clone(), row.key.clone()));
            }
        }
        for vm in vms {
            let row = cluster.row(*vm);
            need.hypervisors.insert(row.hypervisor);
            need.storages.extend(row.storages.iter().cloned());
            need.barred.extend(row.barred.iter().map(|(h, why)| (h.clone(), why.clone())));
        }
        need
    }

    /// The strict rules about hosts alone: whether VMs that run there may stay.
    pub(super) fn forbids(&self, host: &HostRow) -> Option<Why<'_>> {
        if let Some((hosts, by)) = &self.required
            && !hosts.contains(&host.name)
        {
            return Some(Why::NotRequired { hosts, by });
        }
        let lacks = |(label, (value, _)): &(&String, &(String, VmKey))| {
            host.labels.get(*label) != Some(value)
        };
        self.selector.iter().find(lacks).map(|(label, (value, by))| Why::Label { label, value, by })
    }

    /// Why the VMs may not come to `host`, were it empty.
    pub(super) fn refuses<'a>(&'a self, host: &'a HostRow) -> Option<Why<'a>> {
        if let Some(why) = self.forbids(host) {
            return Some(why);
        }
        if let Acceptance::No(reason) = &host.accepts {
            return Some(Why::Closed(reason));
        }
        if let Some(reason) = self.barred.get(&host.name) {
            return Some(Why::Closed(reason));
        }
        if let Some(reason) = host.no_live.as_ref().filter(|_| self.live) {
            return Some(Why::Closed(reason));
        }
        if let Some(kind) = self.hypervisors.iter().find(|k| !host.hypervisors.contains(k)) {
            return Some(Why::Hypervisor(*kind));
        }
        let storage = self.storages.iter().find(|s| !host.storages.contains(*s))?;
        Some(match host.unready.get(storage) {
            Some(reason) => Why::Closed(reason),
            None => Why::Storage(storage),
        })
    }
}

/// A reason against a host, not yet a sentence.
#[derive(Debug)]
pub(super) enum Why<'a> {
    /// Another is required.
    NotRequired {
        /// What is.
        hosts: &'a BTreeSet<String>,
        /// By whom.
        by: &'a VmKey,
    },
    /// A label is missing.
    Label {
        /// Its name.
        label: &'a str,
        /// Its value.
        value: &'a str,
        /// Whose rule it is.
        by: &'a VmKey,
    },
    /// A sentence from outside.
    Closed(&'a str),
    /// The hypervisor is missing.
    Hypervisor(HypervisorKind),
    /// A storage is missing.
    Storage(&'a str),
    /// It is there already, and is to move.
    Here,
    /// Its group runs elsewhere.
    Elsewhere(&'a VmKey, &'a str),
    /// One that must be apart is there.
    Apart(&'a VmKey),
    /// Too little memory: wanted, free, MiB.
    Memory(i64, i64),
    /// Too little CPU: wanted, free, thousandths.
    Cpu(i64, i64),
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRequired { hosts, by } => {
                write!(f, "not required by {by}, which wants {}", words(hosts.iter()))
            }
            Self::Label { label, value, by } => {
                write!(f, "lacks the label {label}={value} that {by} selects")
            }
            Self::Closed(reason) => f.write_str(reason),
            Self::Hypervisor(kind) => write!(f, "runs no {kind:?}"),
            Self::Storage(name) => write!(f, "storage {name} is not ready there"),
            Self::Here => f.write_str("it runs there now"),
            Self::Elsewhere(vm, host) => {
                write!(f, "must run together with {vm}, which is on {host}")
            }
            Self::Apart(vm) => write!(f, "runs {vm}, which must be apart"),
            Self::Memory(needs, free) => {
                write!(f, "needs {needs} MiB of memory, {} MiB are free", (*free).max(0))
            }
            Self::Cpu(needs, free) => {
                write!(f, "needs {} CPUs, {} are free", cpus(*needs), cpus((*free).max(0)))
            }
        }
    }
}

/// Thousandths of a CPU as people write them: `2`, `1.5`.
fn cpus(milli: i64) -> String {
    let text = format!("{}.{:03}", milli / 1000, milli % 1000);
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}
