//! The world as placement sees it.

use std::collections::{BTreeMap, BTreeSet};

use stockade_crds::quantity;
use stockade_crds::v1alpha1::{LockKind, Recovery, RunPolicy, WaitsFor};

use super::found::found;
use super::machine::Claims;
use crate::certificates::unproven;
use crate::ha::host_state::{HostFacts, facts_of};
use crate::locks;
use crate::moves::{self, cold};
use crate::placement::{Acceptance, Cluster, HostRow, Movable, VmKey, VmRow, is_forbidden};
use crate::world::{Key, World};

/// Hosts and VMs of this moment. `pinned` binds a VM to one host for this plan.
#[must_use]
pub fn cluster(world: &World, hosts: &[HostFacts], pinned: &BTreeMap<Key, String>) -> Cluster {
    // A cordoned host takes its own VMs again, and no other.
    let own: BTreeSet<&str> = hosts
        .iter()
        .filter(|h| h.keeps_its_own && pinned.values().any(|p| *p == h.name))
        .map(|h| h.name.as_str())
        .collect();
    let rows = hosts
        .iter()
        .map(|facts| {
            let mut row = host_row(world, facts);
            if own.contains(facts.name.as_str()) {
                row.accepts = Acceptance::Yes;
            }
            row
        })
        .collect();
    let claims = Claims::new(world);
    let failed = moves::Failed::new(world);
    let vms = world
        .vms
        .iter()
        .map(|(key, vm)| {
            let status = vm.status.clone().unwrap_or_default();
            let spec = &vm.spec;
            let failures = status.failures.clone().unwrap_or_default();
            let allowed: BTreeSet<String> = spec.placement.required_hosts.iter().cloned().collect();
            // A strict rule is never broken, not even to start it again where it was.
            let required = match pinned.get(key) {
                Some(host) if allowed.is_empty() || allowed.contains(host) => {
                    BTreeSet::from([host.clone()])
                }
                _ => allowed,
            };
            let given_up = failures.error_generation.is_some();
            let mut row = VmRow {
                key: VmKey::new(&key.namespace, &key.name),
                cpu: i64::from(spec.cpu.cores) * 1000,
                memory_mib: quantity::mib(&spec.memory).unwrap_or(0),
                priority: spec.availability.priority,
                hypervisor: spec.hypervisor,
                storages: spec.disks.iter().map(|d| d.storage.clone()).collect(),
                required: (!required.is_empty()).then_some(required),
                selector: spec.placement.host_selector.clone(),
                preferred: spec.placement.preferred_hosts.iter().map(|r| r.hosts.clone()).collect(),
                together: spec.placement.together_with.clone(),
                apart: spec.placement.apart_from.clone(),
                prefers_together: spec.placement.prefers_together_with.clone(),
                prefers_apart: spec.placement.prefers_apart_from.clone(),
                on: status
                    .placements
                    .iter()
                    .filter(|p| !p.state.is_settled())
                    .map(|p| p.host.clone())
                    .collect(),
                tried: if given_up || spec.run_policy == RunPolicy::Halted {
                    BTreeSet::new()
                } else {
                    failures.tried_hosts.iter().cloned().collect()
                },
                failed: failed.of(key),
                barred: own
                    .iter()
                    .filter(|host| pinned.get(key).is_none_or(|p| p != *host))
                    .map(|host| ((*host).to_owned(), "cordoned".to_owned()))
                    .collect(),
                moved_to: status.moved_to.clone(),
                failback: spec.placement.failback,
                usage: vm.metadata.uid.as_ref().and_then(|u| world.usage.get(u)).copied(),
                movable: if spec.migration.live { Movable::Live } else { Movable::Cold },
                stays: spec.paused.then(|| "is paused; resume it first".to_owned()),
                recovers: spec.availability.recovery == Recovery::Restart
                    && spec.run_policy != RunPolicy::Manual,
            };
            row.failed.retain(|host, _| !row.on.contains(host));
            // What runs without an order has its room and binds rules all the same; no order moves it.
            let uid = vm.metadata.uid.as_deref().unwrap_or_default();
            let found = found(world, vm, &status.placements, claims.inventories(uid));
            if !found.is_empty() {
                row.movable = Movable::No;
                row.recovers = false;
                let hosts = found.into_iter().map(|copy| copy.host);
                let unordered: Vec<String> = hosts.filter(|host| !row.on.contains(host)).collect();
                row.on.splice(0..0, unordered);
            }
            // What moves by stop and start keeps its place on its target from the beginning.
            if let Some(m) = status.migration.as_ref().filter(|m| cold::leads_away(m))
                && m.epoch == 0
                && !row.on.contains(&m.target)
            {
                row.on.push(m.target.clone());
            }
            row
        })
        .collect();
    Cluster::new(rows, vms)
}

/// VMs whose wait for a host is over because strict rules that came meanwhile let them run there no
/// more: to wait on would be for ever, and nothing of them runs. One that is to start nowhere else
/// (recovery None) waits until its host is back all the same.
#[must_use]
pub fn barred(world: &World, hosts: &[HostFacts]) -> BTreeSet<Key> {
    let is_back = |host: &str| {
        facts_of(hosts, host).is_some_and(|facts| facts.refuses.is_none() || facts.keeps_its_own)
    };
    let waiting: Vec<(&Key, &WaitsFor)> = world
        .vms
        .iter()
        .filter_map(|(key, vm)| {
            let waits = vm.status.as_ref()?.waits_for.as_ref()?;
            let may_leave = vm.spec.availability.recovery == Recovery::Restart;
            (may_leave || is_back(&waits.host)).then_some((key, waits))
        })
        .collect();
    if waiting.is_empty() {
        return BTreeSet::new();
    }
    let books = cluster(world, hosts, &BTreeMap::new());
    let barred = waiting.into_iter().filter(|(key, waits)| {
        is_forbidden(&books, &VmKey::new(&key.namespace, &key.name), &waits.host)
    });
    barred.map(|(key, _)| key.clone()).collect()
}

fn host_row(world: &World, facts: &HostFacts) -> HostRow {
    let host = world.hosts.get(&facts.name);
    let report = world.agents.get(&facts.name).and_then(|a| a.status.as_ref());
    let reserved = host.map(|h| h.spec.reserved.clone()).unwrap_or_default();
    let kept = reserved.memory.as_ref().and_then(|m| quantity::mib(m).ok()).unwrap_or(0);
    let mut row = HostRow {
        name: facts.name.clone(),
        cpu: report.map_or(0, |r| i64::from(r.cpu - reserved.cpu).max(0) * 1000),
        memory_mib: report.map_or(0, |r| (r.memory_mib - kept).max(0)),
        labels: host.and_then(|h| h.metadata.labels.clone()).unwrap_or_default(),
        accepts: facts.refuses.clone().map_or(Acceptance::Yes, Acceptance::No),
        no_live: unproven(world, &facts.name)
            .then(|| "its certificates for live moves are not in force yet".to_owned()),
        ..HostRow::default()
    };
    let missing = host.map(|h| locks::missing(world, &facts.name, h)).unwrap_or_default();
    let lock = world.agents.get(&facts.name).and_then(|a| a.spec.lock.as_ref());
    // One daemon serves every storage whose LockManager is of its kind.
    let guards = |kind: LockKind, storage: &str| {
        let mut all = world.lock_managers.values();
        all.any(|m| m.spec.kind == kind && m.spec.covers(storage))
    };
    if let Some(report) = report {
        row.hypervisors = report.hypervisors.iter().copied().collect();
        for storage in &report.storages {
            let unlocked = lock.is_some_and(|l| {
                !l.maintenance && report.lock != Some(l.kind) && guards(l.kind, &storage.name)
            });
            if let Some(manager) = locks::in_maintenance(world, &storage.name) {
                let manager = manager.metadata.name.as_deref().unwrap_or_default();
                let why = format!("LockManager {manager} is in maintenance");
                row.unready.insert(storage.name.clone(), why);
            } else if let Some(why) = missing.get(&storage.name) {
                row.unready.insert(storage.name.clone(), why.clone());
            } else if unlocked {
                let why = format!("the lock manager of {} does not work", storage.name);
                row.unready.insert(storage.name.clone(), why);
            } else if storage.ready {
                row.storages.insert(storage.name.clone());
            } else {
                row.unready.insert(storage.name.clone(), storage.message.clone());
            }
        }
    }
    row
}
