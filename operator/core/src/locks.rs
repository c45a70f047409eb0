//! Which lock manager serves which host (safety §6.1).

use std::collections::BTreeMap;
use std::sync::Arc;

use stockade_crds::conditions::{Decided, READY, STALLED};
use stockade_crds::v1alpha1::{Host, LockKind, LockManager, LockManagerStatus, LockMode};

use crate::hosts::selects;
use crate::plan::Report;
use crate::world::World;

/// Whether a lock manager is meant for a host: its selector takes the host, and the host uses
/// the storage that holds its lockspace.
fn takes(world: &World, manager: &LockManager, name: &str, host: &Host) -> bool {
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

/// By storage of this host: why no VM on it could take its lock here.
#[must_use]
pub fn missing(world: &World, name: &str, host: &Host) -> BTreeMap<String, String> {
    let own = of_host(world, name, host);
    let kind = own.map(|m| m.spec.kind);
    let other = |m: &&Arc<LockManager>| {
        m.spec.mode == LockMode::Active
            && Some(m.spec.kind) != kind
            && world.storages.get(&m.spec.storage).is_some_and(|s| selects(s, name, host))
    };
    let by = match own {
        Some(own) => format!("keeps its locks by LockManager {}", title(own)),
        None => "is served by no LockManager".to_owned(),
    };
    world
        .lock_managers
        .values()
        .filter(other)
        .map(|m| {
            (m.spec.storage.clone(), format!("needs LockManager {}, and {name} {by}", title(m)))
        })
        .collect()
}

/// What is to be said of a lock manager.
#[must_use]
pub fn report(world: &World, manager: &LockManager) -> Report<LockManagerStatus> {
    let mut status = manager.status.clone().unwrap_or_default();
    status.observed_generation = manager.metadata.generation.unwrap_or_default();
    let users = || {
        let kept = |storage: &String| *storage == manager.spec.storage;
        world
            .agents
            .values()
            .filter(move |a| a.spec.lock.as_ref().is_some_and(|l| kept(&l.storage)))
    };
    let ready = users().filter(|a| a.status.as_ref().is_some_and(|s| s.lock_ready)).count();
    let all = users().count();
    status.ready_hosts = i32::try_from(ready).unwrap_or(i32::MAX);
    let taken = taken(world, manager);
    let conditions = if let Some((other, hosts)) = taken {
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
    } else if ready == all && all > 0 {
        vec![Decided::new(
            READY,
            true,
            "LocksKept",
            format!("{ready} hosts keep their locks by it"),
        )]
    } else {
        let message = format!("{ready} of {all} hosts keep their locks by it");
        vec![Decided::new(READY, false, "HostsNotReady", message)]
    };
    Report { status, conditions }
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
