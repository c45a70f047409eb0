//! Which lock manager serves which host (safety §6.1).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stockade_crds::conditions::{Decided, READY, STALLED};
use stockade_crds::v1alpha1::{
    AgentLock, Host, LockKind, LockManager, LockManagerSpec, LockManagerStatus, LockMode,
};

use crate::numbers::allot;
use crate::plan::Report;
use crate::storages::selects;
use crate::world::World;

/// sanlock's time-out of one read or write of its leases, in seconds.
const SANLOCK_IO_SECONDS: i32 = 10;
/// After so many of them without a renewal a host has killed what holds its leases, or its watchdog
/// is about to fire.
const SANLOCK_RENEWALS: i32 = 8;
/// Seconds of wdmd's watchdog.
const SANLOCK_WATCHDOG_SECONDS: i32 = 60;
/// Host ids that a lockspace of sanlock has room for.
const SANLOCK_HOSTS: i32 = 2000;

/// Seconds from a host's last renewal until another may have its locks; 0: as soon as the storage's
/// server has dropped them. sanlock's own formula: 8 · io + watchdog.
#[must_use]
pub const fn release_seconds(kind: LockKind) -> i32 {
    match kind {
        LockKind::Virtlockd => 0,
        LockKind::Sanlock => SANLOCK_RENEWALS * SANLOCK_IO_SECONDS + SANLOCK_WATCHDOG_SECONDS,
    }
}

/// Whether a lock manager is meant for a host: its selector takes the host, the host uses the
/// storage that holds its lockspace, and locks there bind other hosts.
fn takes(world: &World, manager: &LockManager, name: &str, host: &Host) -> bool {
    if binds_nobody(world, manager).is_some() {
        return false;
    }
    let labels = host.metadata.labels.as_ref();
    let label = |key: &String| labels.and_then(|all| all.get(key));
    manager.spec.host_selector.iter().all(|(key, value)| label(key) == Some(value))
        && world.storages.get(&manager.spec.storage).is_some_and(|s| selects(s, name, host))
}

/// The lock manager by which a host keeps its locks: libvirt has one a driver, so of several that
/// take the host the oldest serves it.
#[must_use]
pub fn of_host<'a>(world: &'a World, name: &str, host: &Host) -> Option<&'a Arc<LockManager>> {
    world
        .lock_managers
        .values()
        .filter(|manager| takes(world, manager, name, host))
        .min_by_key(|m| (m.metadata.creation_timestamp.clone(), m.metadata.name.clone()))
}

/// What a host's agent is told of its lock manager; `uid` is the machine that is the host.
#[must_use]
pub fn agent_lock(world: &World, name: &str, host: &Host, uid: &str) -> Option<AgentLock> {
    let manager = of_host(world, name, host)?;
    let storage = world.storages.get(&manager.spec.storage);
    // Only what is stored binds: two controllers could mean different numbers by the same host.
    let ids = manager.status.as_ref().map(|status| &status.host_ids);
    Some(AgentLock {
        kind: manager.spec.kind,
        storage: manager.spec.storage.clone(),
        lockspace: storage
            .map(|storage| format!("{}/.stockade/locks", storage.spec.mount_path))
            .unwrap_or_default(),
        guards: covered(manager).map(ToOwned::to_owned).collect(),
        host_id: ids.and_then(|ids| ids.get(uid)).copied().unwrap_or_default(),
        maintenance: manager.spec.mode == LockMode::Maintenance,
    })
}

/// The storages whose VMs a manager locks, its own first, each once.
fn covered(manager: &LockManager) -> impl Iterator<Item = &str> {
    let LockManagerSpec { storage, guards, .. } = &manager.spec;
    let others: BTreeSet<&str> = guards.iter().map(String::as_str).collect();
    let others = others.into_iter().filter(move |name| *name != storage.as_str());
    std::iter::once(storage.as_str()).chain(others)
}

/// The storages beside its own on which the locks of a storage's VMs lie too.
pub(crate) fn spaces_of<'a>(world: &'a World, storage: &str) -> impl Iterator<Item = &'a str> {
    let managers = world.lock_managers.values().filter(move |m| m.spec.covers(storage));
    managers.map(|m| m.spec.storage.as_str()).filter(move |space| *space != storage)
}

/// The manager in maintenance for which nothing that writes to this storage is started or moved.
#[must_use]
pub(crate) fn in_maintenance<'a>(world: &'a World, storage: &str) -> Option<&'a Arc<LockManager>> {
    let mut all = world.lock_managers.values();
    all.find(|m| m.spec.mode == LockMode::Maintenance && m.spec.covers(storage))
}

/// By storage of this host: why no VM on it could take its lock here.
#[must_use]
pub fn missing(world: &World, name: &str, host: &Host) -> BTreeMap<String, String> {
    let own = of_host(world, name, host);
    let kind = own.map(|m| m.spec.kind);
    let other =
        |m: &&Arc<LockManager>| m.spec.mode == LockMode::Active && Some(m.spec.kind) != kind;
    let here = |storage: &&str| {
        world.storages.get(*storage).is_some_and(|storage| selects(storage, name, host))
    };
    let by = match own {
        Some(own) => format!("keeps its locks by LockManager {}", title(own)),
        None => "is served by no LockManager".to_owned(),
    };
    world
        .lock_managers
        .values()
        .filter(other)
        .flat_map(|m| covered(m).filter(here).map(move |storage| (storage, m)))
        .map(|(storage, m)| {
            (storage.to_owned(), format!("needs LockManager {}, and {name} {by}", title(m)))
        })
        .collect()
}

/// What is to be said of a lock manager.
#[must_use]
pub fn report(world: &World, manager: &LockManager) -> Report<LockManagerStatus> {
    let mut status = manager.status.clone().unwrap_or_default();
    status.observed_generation = manager.metadata.generation.unwrap_or_default();
    status.release_seconds = release_seconds(manager.spec.kind);
    if manager.spec.kind == LockKind::Sanlock {
        let hosts = world.hosts.iter().filter(|(name, host)| takes(world, manager, name, host));
        let names = hosts.map(|(name, _)| name);
        status.host_ids = allot(world, &status.host_ids, names, 1..=SANLOCK_HOSTS);
    }
    let users = world.agents.iter().filter(|(_, agent)| {
        let lock = agent.spec.lock.as_ref();
        lock.is_some_and(|lock| {
            lock.storage == manager.spec.storage && lock.kind == manager.spec.kind
        })
    });
    let (mut all, mut ready, mut trouble) = (0, 0, Vec::new());
    for (name, agent) in users {
        all += 1;
        match agent.status.as_ref() {
            Some(seen) if seen.lock_ready && seen.lock == Some(manager.spec.kind) => ready += 1,
            Some(seen) if !seen.lock_message.is_empty() => {
                trouble.push(format!("{name}: {}", seen.lock_message));
            }
            _ => {}
        }
    }
    status.ready_hosts = ready;
    let taken = taken(world, manager);
    let conditions = if let Some(why) = binds_nobody(world, manager) {
        vec![
            Decided::new(READY, false, "LocksAreLocal", why),
            Decided::new(STALLED, true, "LocksAreLocal", why),
        ]
    } else if let Some((other, hosts)) = taken {
        let message = format!(
            "{} kept by LockManager {other} already; set hostSelector or the hosts of the storages \
             so that one LockManager takes a host",
            if hosts.len() == 1 {
                format!("{} is", hosts[0])
            } else {
                format!("{} are", hosts.join(", "))
            },
        );
        vec![
            Decided::new(READY, false, "HostsTaken", message.clone()),
            Decided::new(STALLED, true, "HostsTaken", message),
        ]
    } else if let Some(name) = covered(manager).find(|name| !world.storages.contains_key(*name)) {
        let message = format!("there is no SharedStorage {name:?}; make it, or correct the spec");
        vec![Decided::new(READY, false, "NoSuchStorage", message)]
    } else if manager.spec.mode == LockMode::Maintenance {
        let message = "in maintenance: VMs run on without its lock server, and none is started or \
                       moved until it is Active";
        vec![Decided::new(READY, false, "InMaintenance", message)]
    } else if ready == all && all > 0 {
        vec![Decided::new(
            READY,
            true,
            "LocksKept",
            format!("{ready} hosts keep their locks by it"),
        )]
    } else {
        trouble.insert(0, format!("{ready} of {all} hosts keep their locks by it"));
        vec![Decided::new(READY, false, "HostsNotReady", trouble.join("; "))]
    };
    Report { status, conditions }
}

/// Why the locks of a manager would keep no other host away.
pub(crate) fn binds_nobody(world: &World, manager: &LockManager) -> Option<&'static str> {
    let storage = world.storages.get(&manager.spec.storage)?;
    (manager.spec.kind == LockKind::Virtlockd && storage.spec.ocfs2.is_some()).then_some(
        "virtlockd's locks are POSIX locks, and on OCFS2 under o2cb those are local to a host: make \
         a LockManager of kind sanlock",
    )
}

/// Hosts that a lock manager of another kind serves though this one takes them too, and which.
fn taken<'a>(world: &'a World, manager: &LockManager) -> Option<(String, Vec<&'a str>)> {
    let mut first = None;
    let mut hosts = Vec::new();
    for (name, host) in &world.hosts {
        let other = of_host(world, name, host)
            .filter(|own| takes(world, manager, name, host) && own.spec.kind != manager.spec.kind);
        if let Some(other) = other {
            first.get_or_insert_with(|| title(other));
            hosts.push(name.as_str());
        }
    }
    first.map(|first| (first, hosts))
}

fn title(manager: &LockManager) -> String {
    let kind = match manager.spec.kind {
        LockKind::Virtlockd => "virtlockd",
        LockKind::Sanlock => "sanlock",
    };
    format!("{} ({kind})", manager.metadata.name.as_deref().unwrap_or_default())
}
