//! Shared storages: which host uses which and how, and what is to be said of them.

use std::collections::{BTreeMap, BTreeSet};

use stockade_crds::conditions::{Decided, READY};
use stockade_crds::v1alpha1::{
    AgentAoe, AgentIscsi, AgentOcfs2, AgentStorage, Aoe, Host, LockKind, Ocfs2, OcfsNode,
    SharedStorage, SharedStorageStatus, StorageKind,
};

use crate::exports::storage_address;
use crate::locks;
use crate::numbers;
use crate::plan::Report;
use crate::world::World;

/// A server drops the state of a client that has fallen silent so long after its lease is over, in
/// seconds.
pub const AFTER_LEASE_SECONDS: i32 = 5;
/// How long denial and the breaking of locks may take where a Host serves, in seconds.
const SERVED_SECONDS: i32 = 5;

/// Whether a storage is meant for a host.
pub(crate) fn selects(storage: &SharedStorage, name: &str, host: &Host) -> bool {
    let labels = host.metadata.labels.as_ref();
    let named = storage.spec.hosts.is_empty() || storage.spec.hosts.iter().any(|h| h == name);
    named
        && storage.spec.host_selector.iter().all(|(k, v)| labels.and_then(|l| l.get(k)) == Some(v))
}

/// Seconds from a host's last sign of life until what guards the disks of this storage lets go of
/// them by itself: the server's lease, o2cb's threshold, or the release of the lock managers that
/// keep their locks there (safety §11).
#[must_use]
pub fn release_seconds(storage: &SharedStorage, locks: impl IntoIterator<Item = LockKind>) -> i32 {
    let own = match (&storage.spec.nfs, &storage.spec.ocfs2) {
        (Some(nfs), _) => nfs.lease_seconds + AFTER_LEASE_SECONDS,
        // A node is dead to the others after one round less than the threshold.
        (None, Some(ocfs2)) => (ocfs2.heartbeat_threshold - 1) * 2 + AFTER_LEASE_SECONDS,
        (None, None) => 0,
    };
    locks.into_iter().map(locks::release_seconds).fold(own, i32::max)
}

/// The longest time from a proof of death to a start, in seconds: where a Host serves the storage
/// the dead one is denied and its locks are broken at once, but sanlock's leases can't be broken.
fn worst_case(world: &World, name: &str, storage: &SharedStorage) -> i32 {
    let managers = || world.lock_managers.values().filter(|m| m.spec.covers(name));
    let of_server = |storage: &SharedStorage| {
        let served = serving_host(storage).is_some() && storage.spec.nfs.is_some();
        if served { SERVED_SECONDS } else { release_seconds(storage, []) }
    };
    // The lockspace may lie elsewhere, and its server have its own lease.
    let spaces = managers().filter_map(|manager| world.storages.get(&manager.spec.storage));
    let servers = spaces.map(|space| of_server(space));
    let leases = managers().map(|manager| locks::release_seconds(manager.spec.kind));
    servers.chain(leases).fold(of_server(storage), i32::max)
}

/// The Host that serves a storage, if one of ours does.
#[must_use]
pub fn serving_host(storage: &SharedStorage) -> Option<&str> {
    let spec = &storage.spec;
    let by = match (&spec.nfs, &spec.ocfs2) {
        (Some(nfs), _) => &nfs.served_by,
        (None, Some(Ocfs2 { iscsi: Some(iscsi), .. })) => &iscsi.served_by,
        (None, Some(Ocfs2 { aoe: Some(aoe), .. })) => &aoe.served_by,
        (None, _) => &None,
    };
    by.as_deref()
}

/// The AoE device below a storage, if it is one.
fn aoe(storage: &SharedStorage) -> Option<&Aoe> {
    storage.spec.ocfs2.as_ref()?.aoe.as_ref()
}

/// The Host that serves a storage, if it can shut a dead one out of it. On AoE none can: it knows
/// neither addresses that are worth a proof nor sessions (safety §6.2).
#[must_use]
pub fn denying_host(storage: &SharedStorage) -> Option<&str> {
    serving_host(storage).filter(|_| aoe(storage).is_none())
}

/// The storage that has the same AoE device and comes first by name: it alone is served. The kernel
/// takes two servers of one shelf and slot for two ways to one disk, and writes to both.
pub(crate) fn aoe_taken_by<'a>(
    world: &'a World,
    name: &str,
    storage: &SharedStorage,
) -> Option<&'a str> {
    let place = |storage: &SharedStorage| aoe(storage).map(|aoe| (aoe.shelf, aoe.slot));
    let own = place(storage)?;
    let mut others = world.storages.iter().take_while(|(other, _)| other.as_str() < name);
    others.find(|(_, other)| place(other) == Some(own)).map(|(other, _)| other.as_str())
}

/// An AoE device as agents are told of it.
pub(crate) fn agent_aoe(aoe: &Aoe) -> AgentAoe {
    AgentAoe { shelf: aoe.shelf, slot: aoe.slot, interface: aoe.interface.clone() }
}

/// Node numbers that o2cb has room for.
const NODES: std::ops::RangeInclusive<i32> = 1..=254;

/// The node numbers of all hosts that mount OCFS2, by host uid. A kernel is in one o2cb cluster
/// alone, so a host has the same number on every storage.
fn node_numbers(world: &World) -> BTreeMap<String, i32> {
    let clustered = || world.storages.values().filter(|storage| storage.spec.ocfs2.is_some());
    let given = clustered().flat_map(|s| s.status.iter().flat_map(|s| s.node_numbers.clone()));
    let hosts = world.hosts.iter();
    let hosts = hosts.filter(|(name, host)| clustered().any(|s| selects(s, name, host)));
    numbers::allot(world, &given.collect(), hosts.map(|(name, _)| name), NODES)
}

/// The o2cb cluster and the device, as a host is told of them: of numbers only those that are
/// stored, since two controllers could mean different ones by the same host.
fn ocfs2(world: &World, storage: &SharedStorage, host: &Host, spec: &Ocfs2) -> AgentOcfs2 {
    let stored = |storage: &SharedStorage, host: &Host| {
        let uid = host.status.as_ref()?.host_uid.as_ref()?;
        storage.status.as_ref()?.node_numbers.get(uid).copied()
    };
    let mut nodes: Vec<OcfsNode> = Vec::new();
    for (name, other) in &world.hosts {
        let all = world.storages.values().filter(|s| s.spec.ocfs2.is_some());
        if let Some(number) = all.filter_map(|s| stored(s, other)).next() {
            let address = storage_address(name, other);
            nodes.push(OcfsNode { name: name.clone(), number, address });
        }
    }
    let own = stored(storage, host).unwrap_or_default();
    let users = world.hosts.iter().filter(|(name, host)| selects(storage, name, host));
    // One host makes the file system: two at once would spoil it.
    let first = users.filter_map(|(_, host)| stored(storage, host)).min();
    AgentOcfs2 {
        iscsi: spec.iscsi.as_ref().map(|iscsi| AgentIscsi {
            portal: iscsi.portal.clone(),
            target: iscsi.target.clone(),
            lun: iscsi.lun,
        }),
        aoe: spec.aoe.as_ref().map(agent_aoe),
        node_number: own,
        nodes,
        heartbeat_threshold: spec.heartbeat_threshold,
        slots: spec.slots,
        format_if_blank: spec.format_if_blank,
        format_here: own != 0 && first == Some(own),
    }
}

/// The storages that a host is to mount.
#[must_use]
pub fn of_host(world: &World, host_name: &str, host: &Host) -> Vec<AgentStorage> {
    world
        .storages
        .iter()
        .filter(|(_, s)| selects(s, host_name, host))
        .map(|(name, s)| {
            let (kind, source, options) = match (&s.spec.nfs, &s.spec.ocfs2) {
                (Some(nfs), _) => (
                    StorageKind::NFS,
                    format!("{}:{}", nfs.server, nfs.export),
                    nfs.options.clone(),
                ),
                (None, Some(ocfs2)) => {
                    let path = ocfs2.san.as_ref().map(|san| san.path.clone());
                    (StorageKind::OCFS2, path.unwrap_or_default(), Vec::new())
                }
                (None, None) => (StorageKind::SharedDirectory, String::new(), Vec::new()),
            };
            AgentStorage {
                name: name.clone(),
                mount_path: s.spec.mount_path.clone(),
                cluster_id: world.cluster_id.clone(),
                kind,
                source,
                options,
                served_here: serving_host(s).is_some_and(|server| server == host_name),
                owner: s.spec.owner,
                ocfs2: s.spec.ocfs2.as_ref().map(|spec| ocfs2(world, s, host, spec)),
            }
        })
        .collect()
}

/// What a spec asks for that agents can't do yet.
fn not_yet(storage: &SharedStorage) -> Option<&'static str> {
    let ocfs2 = storage.spec.ocfs2.as_ref()?;
    let chap = ocfs2.iscsi.as_ref().is_some_and(|iscsi| iscsi.chap_secret.is_some());
    chap.then_some("CHAP is not done yet: leave spec.ocfs2.iscsi.chapSecret out")
}

/// What is to be said of a storage.
#[must_use]
pub fn report(world: &World, name: &str, storage: &SharedStorage) -> Report<SharedStorageStatus> {
    let mut status = storage.status.clone().unwrap_or_default();
    status.observed_generation = storage.metadata.generation.unwrap_or_default();
    let mut wanted = 0;
    let mut ready = 0;
    let mut trouble = Vec::new();
    for (host, agent) in &world.agents {
        if !agent.spec.storages.iter().any(|s| s.name == name) {
            continue;
        }
        wanted += 1;
        let seen = agent.status.as_ref().and_then(|s| s.storages.iter().find(|r| r.name == name));
        match seen {
            Some(r) if r.ready => ready += 1,
            Some(r) => trouble.push(format!("{host}: {}", r.message)),
            None => trouble.push(format!("{host}: not mounted yet")),
        }
    }
    if let Some(server) = serving_host(storage) {
        let report = world.agents.get(server).and_then(|agent| agent.status.as_ref());
        let report = report.and_then(|s| s.exports.iter().find(|e| e.storage == name));
        match report {
            Some(report) if report.ready => {}
            Some(report) => trouble.insert(0, format!("{server} serves it: {}", report.message)),
            None => trouble.insert(0, format!("{server} does not serve it yet")),
        }
    }
    status.ready_hosts = ready;
    if storage.spec.ocfs2.is_some() {
        let mut numbers = node_numbers(world);
        let users = world.hosts.iter().filter(|(name, host)| selects(storage, name, host));
        let uids = users.filter_map(|(_, host)| host.status.as_ref()?.host_uid.as_ref());
        let uids: BTreeSet<String> = uids.chain(status.node_numbers.keys()).cloned().collect();
        numbers.retain(|uid, _| uids.contains(uid));
        status.node_numbers = numbers;
    }
    status.worst_case_failover_seconds = worst_case(world, name, storage);
    let condition = if let Some(why) = not_yet(storage) {
        Decided::new(READY, false, "NotSupported", why)
    } else if let Some(other) = aoe_taken_by(world, name, storage) {
        let why = format!(
            "SharedStorage {other} has this shelf and slot: correct spec.ocfs2.aoe of either"
        );
        Decided::new(READY, false, "Conflict", why)
    } else if wanted > 0 && ready == wanted {
        Decided::new(READY, true, "Mounted", format!("mounted and checked on {ready} hosts"))
    } else if wanted == 0 {
        Decided::new(READY, None, "NoHosts", "no host is declared for it")
    } else {
        Decided::new(READY, false, "NotMounted", trouble.join("; "))
    };
    Report { status, conditions: vec![condition] }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stockade_crds::v1alpha1::{HostSpec, HostStatus};

    use super::*;

    const SAN: &str = "{mountPath: /srv/san, hosts: [h1, h2], ocfs2: {formatIfBlank: true, iscsi: \
                       {portal: nas, target: 'iqn.2026-01.x:y', lun: 1, servedBy: s1, \
                       backing: /dev/x}}}";

    fn world(numbers: &[(&str, i32)]) -> World {
        let mut world = World::default();
        for name in ["h1", "h2", "h3", "s1"] {
            let mut host = Host::new(name, HostSpec::default());
            host.spec.addresses.storage = Some(format!("10.0.0.{}", &name[1..]));
            let host_uid = Some(format!("uid-{name}"));
            host.status = Some(HostStatus { host_uid, ..HostStatus::default() });
            world.hosts.insert(name.into(), Arc::new(host));
        }
        let mut storage = SharedStorage::new("san", serde_yaml::from_str(SAN).unwrap());
        let numbers = numbers.iter().map(|(host, number)| (format!("uid-{host}"), *number));
        let node_numbers = numbers.collect();
        storage.status = Some(SharedStorageStatus { node_numbers, ..Default::default() });
        world.storages.insert("san".into(), Arc::new(storage));
        world
    }

    fn told(world: &World, host: &str) -> AgentOcfs2 {
        let all = of_host(world, host, &world.hosts[host]);
        all.into_iter().next().and_then(|storage| storage.ocfs2).unwrap()
    }

    #[test]
    fn hosts_that_mount_ocfs2_get_numbers_and_are_told_those_that_are_stored() {
        let bare = world(&[]);
        let numbers = report(&bare, "san", &bare.storages["san"]).status.node_numbers;
        assert_eq!(numbers, [("uid-h1".into(), 1), ("uid-h2".into(), 2)].into());
        assert_eq!((told(&bare, "h1").node_number, told(&bare, "h1").format_here), (0, false));
        let world = world(&[("h1", 4), ("h2", 2)]);
        let (one, two) = (told(&world, "h1"), told(&world, "h2"));
        assert_eq!((one.node_number, two.node_number), (4, 2));
        assert_eq!((one.format_here, two.format_here), (false, true), "one host makes it");
        let node = |name: &str, number, address: &str| OcfsNode {
            name: name.into(),
            number,
            address: address.into(),
        };
        assert_eq!(one.nodes, [node("h1", 4, "10.0.0.1"), node("h2", 2, "10.0.0.2")]);
        assert!(of_host(&world, "h3", &world.hosts["h3"]).is_empty());
    }

    #[test]
    fn a_host_has_one_number_on_every_storage() {
        let mut world = world(&[("h1", 4)]);
        let other = SAN.replace("/srv/san", "/srv/other");
        let other = SharedStorage::new("other", serde_yaml::from_str(&other).unwrap());
        world.storages.insert("other".into(), Arc::new(other));
        let numbers = report(&world, "other", &world.storages["other"]).status.node_numbers;
        assert_eq!(numbers, [("uid-h1".into(), 4), ("uid-h2".into(), 1)].into());
    }

    #[test]
    fn two_storages_on_one_aoe_device_are_told_of_each_other() {
        let mut world = world(&[]);
        let spec = "{mountPath: /srv/e, ocfs2: {aoe: {shelf: 1, slot: 2, interface: eth1}}}";
        for name in ["one", "two"] {
            let storage = SharedStorage::new(name, serde_yaml::from_str(spec).unwrap());
            world.storages.insert(name.into(), Arc::new(storage));
        }
        let said = |name: &str| {
            let conditions = report(&world, name, &world.storages[name]).conditions;
            (conditions[0].reason.to_string(), conditions[0].message.clone())
        };
        assert_eq!(said("one").0, "NoHosts");
        let (reason, message) = said("two");
        assert!(reason == "Conflict" && message.contains("SharedStorage one"), "{message}");
    }

    #[test]
    fn what_guards_the_disks_says_how_long_a_failover_may_take() {
        let storage = |spec: &str| SharedStorage::new("s", serde_yaml::from_str(spec).unwrap());
        let nfs = storage("{mountPath: /m, nfs: {server: nas, export: /x, leaseSeconds: 90}}");
        let san = storage(SAN);
        assert_eq!(release_seconds(&nfs, []), 95);
        assert_eq!(release_seconds(&nfs, [LockKind::Virtlockd]), 95);
        assert_eq!(release_seconds(&nfs, [LockKind::Sanlock]), 140);
        assert_eq!(release_seconds(&san, []), 65);
    }
}
