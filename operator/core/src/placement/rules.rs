//! Rules between VMs: groups that run together, groups that run apart.

use std::collections::{BTreeMap, BTreeSet};

use super::cluster::Lists;
use super::model::VmRow;

/// Rules between VMs, by number.
///
/// A VM that nothing links is a group of its own. What binds one of a group
/// binds all (scenario-format §2), so `apart` is kept between groups.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    group_of: Vec<u32>,
    members: Lists,
    apart: BTreeMap<u32, BTreeSet<u32>>,
    broken: BTreeMap<u32, String>,
    soft: BTreeMap<u32, Vec<(u32, i32)>>,
}

impl Rules {
    /// Links `vms`, which are sorted by key. Names of VMs that are not there bind nobody.
    pub(super) fn new(vms: &[VmRow]) -> Self {
        let mut links = Links((0..vms.len() as u32).collect());
        for (v, vm) in vms.iter().enumerate() {
            for other in named(vms, vm, &vm.together) {
                links.join(v as u32, other);
            }
        }
        let group_of: Vec<u32> = (0..vms.len() as u32).map(|v| links.root(v)).collect();
        let pairs: Vec<(u32, u32)> =
            group_of.iter().enumerate().map(|(v, g)| (*g, v as u32)).collect();
        let members = Lists::new(vms.len(), &pairs);
        let mut rules = Self {
            group_of,
            members,
            apart: BTreeMap::new(),
            broken: BTreeMap::new(),
            soft: BTreeMap::new(),
        };
        for (v, vm) in vms.iter().enumerate() {
            rules.take_apart(vms, v as u32, vm);
            rules.take_soft(vms, v as u32, vm);
        }
        for root in 0..vms.len() as u32 {
            if rules.members(root).len() > 1 {
                rules.check_hosts(vms, root);
            }
        }
        rules
    }

    /// The group of a VM.
    pub(super) fn group(&self, vm: u32) -> u32 {
        self.group_of[vm as usize]
    }

    /// The VMs of a group, by key.
    pub(super) fn members(&self, group: u32) -> &[u32] {
        self.members.get(group)
    }

    /// Groups that must be apart from this one.
    pub(super) fn apart(&self, group: u32) -> impl Iterator<Item = u32> + '_ {
        self.apart.get(&group).into_iter().flatten().copied()
    }

    /// Whether the two groups must be apart.
    pub(super) fn are_apart(&self, a: u32, b: u32) -> bool {
        self.apart.get(&a).is_some_and(|others| others.contains(&b))
    }

    /// Why this group's own rules cannot all hold.
    pub(super) fn broken(&self, group: u32) -> Option<&str> {
        self.broken.get(&group).map(String::as_str)
    }

    /// VMs that this one should be near (1) or away from (-1).
    pub(super) fn soft(&self, vm: u32) -> &[(u32, i32)] {
        self.soft.get(&vm).map_or(&[], Vec::as_slice)
    }

    fn take_apart(&mut self, vms: &[VmRow], v: u32, vm: &VmRow) {
        for other in named(vms, vm, &vm.apart) {
            let (a, b) = (self.group(v), self.group(other));
            if other == v {
                continue;
            }
            if a == b {
                let rule = format!(
                    "rules contradict: {} must be apart from {} and, by the together rules, \
                     on one host with it",
                    vm.key, vms[other as usize].key
                );
                self.broken.entry(a).or_insert(rule);
                continue;
            }
            self.apart.entry(a).or_default().insert(b);
            self.apart.entry(b).or_default().insert(a);
        }
    }

    fn take_soft(&mut self, vms: &[VmRow], v: u32, vm: &VmRow) {
        for (names, weight) in [(&vm.prefers_together, 1), (&vm.prefers_apart, -1)] {
            for other in named(vms, vm, names) {
                if other != v {
                    self.soft.entry(v).or_default().push((other, weight));
                    self.soft.entry(other).or_default().push((v, weight));
                }
            }
        }
    }

    /// Looks for required hosts and labels that no host can meet for all of a group.
    fn check_hosts(&mut self, vms: &[VmRow], root: u32) {
        let rows = || self.members(root).iter().map(|m| &vms[*m as usize]);
        let mut left: Option<(BTreeSet<&String>, &VmRow)> = None;
        let mut wanted: BTreeMap<&String, (&String, &VmRow)> = BTreeMap::new();
        let mut broken = None;
        for vm in rows() {
            if let Some(required) = &vm.required {
                let (narrowed, by) = match &left {
                    None => (required.iter().collect::<BTreeSet<_>>(), vm),
                    Some((hosts, by)) => {
                        (hosts.iter().copied().filter(|h| required.contains(*h)).collect(), *by)
                    }
                };
                if narrowed.is_empty() {
                    broken.get_or_insert_with(|| {
                        format!(
                            "rules contradict: {} requires {}, and {}, which must be together \
                             with it, requires {}",
                            vm.key,
                            words(required.iter()),
                            by.key,
                            words(by.required.iter().flatten()),
                        )
                    });
                }
                left = Some((narrowed, by));
            }
            for (label, value) in &vm.selector {
                let (first, by) = wanted.entry(label).or_insert((value, vm));
                if *first != value {
                    broken.get_or_insert_with(|| {
                        format!(
                            "rules contradict: {} selects {label}={value}, and {}, which must be \
                             together with it, selects {label}={first}",
                            vm.key, by.key
                        )
                    });
                }
            }
        }
        if let Some(rule) = broken {
            self.broken.entry(root).or_insert(rule);
        }
    }
}

/// Joins words as people write them: `h1`, `h1 or h2`, `h1, h2 or h3`.
pub(super) fn words<'a>(names: impl Iterator<Item = &'a String>) -> String {
    let names: Vec<&str> = names.map(String::as_str).collect();
    match names.split_last() {
        None => "no host".to_owned(),
        Some((one, [])) => (*one).to_owned(),
        Some((last, front)) => format!("{} or {last}", front.join(", ")),
    }
}

/// Numbers of the VMs of `names` in the namespace of `vm`.
fn named<'a>(
    vms: &'a [VmRow],
    vm: &'a VmRow,
    names: &'a [String],
) -> impl Iterator<Item = u32> + 'a {
    names.iter().filter_map(|name| {
        let wanted = (vm.key.namespace.as_str(), name.as_str());
        vms.binary_search_by(|v| (v.key.namespace.as_str(), v.key.name.as_str()).cmp(&wanted))
            .ok()
            .map(|i| i as u32)
    })
}

/// Union-find; the root of a group is its first VM by key.
struct Links(Vec<u32>);

impl Links {
    fn root(&mut self, mut v: u32) -> u32 {
        while self.0[v as usize] != v {
            let up = self.0[self.0[v as usize] as usize];
            self.0[v as usize] = up;
            v = up;
        }
        v
    }

    fn join(&mut self, a: u32, b: u32) {
        let (a, b) = (self.root(a), self.root(b));
        self.0[a.max(b) as usize] = a.min(b);
    }
}
