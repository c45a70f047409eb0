//! How each host suits one VM: the answer to "why is it there, and not elsewhere".

use std::collections::BTreeSet;

use super::cluster::Cluster;
use super::model::{Unplaceable, VmKey};
use super::need::Need;
use super::place::{Mode, Solver, reject, running};

/// A host, as one VM sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suit {
    /// The host.
    pub host: String,
    /// What speaks against it, the end of a sentence; `None`: it would do.
    pub against: Option<String>,
}

/// Every host, were the VM to be started now: those that would do first, the best of them
/// first, in the order in which [`super::place`] takes them.
///
/// # Errors
/// Rules that cannot all hold, or a VM that is not known: then no host is looked at.
pub fn suits(cluster: &Cluster, key: &VmKey) -> Result<Vec<Suit>, Unplaceable> {
    let vm = cluster.vm(key).ok_or_else(|| Unplaceable::rule(format!("{key} is not known")))?;
    let group = cluster.rules.group(vm);
    let vms = BTreeSet::from([vm]);
    if let Some(no) = reject(cluster, group, &vms, Mode::Start) {
        return Err(no);
    }
    let mut solver = Solver::new(cluster);
    solver.ledger.leave(vm);
    let unit = solver.unit(group, vms, Mode::Start);
    let leanings = unit.leanings(&solver.ledger);
    let mut hosts: Vec<_> = (0..cluster.hosts.len() as u32)
        .map(|host| {
            let against = unit.refusal(&solver.ledger, host).map(|why| why.to_string());
            let score = unit.score(&solver.ledger, &leanings, host);
            (against.is_some(), score, Suit { host: cluster.host_name(host).to_owned(), against })
        })
        .collect();
    hosts.sort_by_key(|(refused, score, _)| (*refused, *score));
    Ok(hosts.into_iter().map(|(_, _, suit)| suit).collect())
}

/// Whether strict rules forbid a host to a VM that runs nowhere, whatever room is there and whether
/// or not it takes VMs now. Where rules contradict each other no host is any better.
pub fn is_forbidden(cluster: &Cluster, key: &VmKey, host: &str) -> bool {
    let Some((vm, host)) = cluster.vm(key).zip(cluster.host(host)) else { return false };
    let rules = &cluster.rules;
    let group = rules.group(vm);
    if rules.broken(group).is_some() {
        return false;
    }
    let mut anchors = running(cluster, group).filter(|member| *member != vm).peekable();
    let elsewhere =
        anchors.peek().is_some() && !anchors.any(|m| cluster.on.get(m).last() == Some(&host));
    let mut opponents = rules.apart(group).flat_map(|other| rules.members(other));
    Need::new(cluster, group, &[]).forbids(&cluster.hosts[host as usize]).is_some()
        || elsewhere
        || opponents.any(|other| cluster.on.get(*other).contains(&host))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;
    use crate::placement::testkit::{closed, hosts, key, names, on, set, vm};
    use crate::placement::{VmRow, place};

    #[test]
    fn the_first_host_is_the_one_that_would_be_taken_and_refused_ones_say_why() {
        let mut all = hosts(3);
        all.push(closed("h4", "cordoned"));
        all[0].memory_mib = 512;
        let wanted = VmRow { preferred: vec![vec!["h3".to_owned()]], ..vm("a") };
        let cluster = Cluster::new(all, vec![wanted, on("b", "h2")]);
        let told = suits(&cluster, &key("a")).unwrap();
        let taken = place(&cluster, &[key("a")], Mode::Start);
        assert_eq!(taken[&key("a")].as_ref().unwrap(), &told[0].host);
        let told: Vec<(&str, &str)> = told
            .iter()
            .map(|s| (s.host.as_str(), s.against.as_deref().unwrap_or("would do")))
            .collect();
        let no = "needs 1024 MiB of memory, 512 MiB are free";
        assert_eq!(told, [("h3", "would do"), ("h2", "would do"), ("h4", "cordoned"), ("h1", no)]);
    }

    #[test]
    fn a_running_vm_takes_no_room_from_itself() {
        let mut all = hosts(1);
        all[0].memory_mib = 1024;
        let cluster = Cluster::new(all, vec![on("a", "h1")]);
        assert_eq!(suits(&cluster, &key("a")).unwrap()[0].against, None);
    }

    #[test]
    fn strict_rules_forbid_a_host_whatever_else_it_lacks() {
        let forbidden = |row: VmRow| {
            let mut all = hosts(2);
            all.push(closed("h3", "rebooting"));
            let cluster = Cluster::new(all, vec![row, on("b", "h2"), vm("halted")]);
            ["h1", "h2", "h3"].map(|host| is_forbidden(&cluster, &key("a"), host))
        };
        let a = || vm("a");
        assert_eq!(forbidden(VmRow { memory_mib: 1 << 30, ..a() }), [false; 3]);
        let required = Some(set(&["h2", "h3"]));
        assert_eq!(forbidden(VmRow { required, ..a() }), [true, false, false]);
        let selector = [("rack".to_owned(), "1".to_owned())].into();
        assert_eq!(forbidden(VmRow { selector, ..a() }), [true; 3]);
        let together = names(&["b"]);
        assert_eq!(forbidden(VmRow { together, ..a() }), [true, false, true]);
        let together = names(&["halted"]);
        assert_eq!(forbidden(VmRow { together, ..a() }), [false; 3]);
        let apart = names(&["b"]);
        assert_eq!(forbidden(VmRow { apart, ..a() }), [false, true, false]);
    }
}
