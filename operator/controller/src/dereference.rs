//! From the cache to the snapshot that a plan is made of.

use std::collections::BTreeMap;
use std::mem::take;

use stockade_core::world::{NamespaceFact, OrderKey, World};
use stockade_crds::names::{FENCE_TEST_ANNOTATION, HOST_LABEL, POLICY_NAME};
use stockade_crds::v1alpha1::End;

use crate::authority;
use crate::cache::Cache;
use crate::context::{Shared, locked};

/// How many host failures fit is counted so often: it takes long in a large cluster, and
/// nobody acts on it at once.
const COUNT_AGAIN_MILLIS: u64 = 10_000;

/// The world as it is known now. What it holds is lent: [`Cache::take_back`] wants it again.
pub(crate) fn world(shared: &Shared, cache: &mut Cache) -> World {
    let now = shared.now();
    let policy = cache.policies.objects.get(POLICY_NAME).cloned();
    if let Some(policy) = &policy {
        let beat = u64::try_from(policy.spec.heartbeat_seconds).unwrap_or(2);
        // The leader renews every 2 s whatever the hosts' heartbeat is.
        cache.lives.limit = beat.max(2) * 2_000 + 1_000;
        cache.lives.late = beat * 1_500;
        cache.lives.any_echo = !shared.context.guards.round_trip;
    }
    if !cache.noted {
        note_since(cache, now);
    }
    locked(&shared.seeds_gone).retain(|(host, uid, epoch)| {
        let key = OrderKey::new(host, uid.clone());
        cache.domains.objects.get(&key).is_some_and(|domain| domain.spec.epoch == *epoch)
    });
    let namespaces = cache.namespaces.objects.iter().map(|(host, ns)| {
        let label = ns.metadata.labels.as_ref().and_then(|l| l.get(HOST_LABEL));
        let fact = NamespaceFact {
            ours: label == Some(host),
            terminating: ns.metadata.deletion_timestamp.is_some(),
        };
        (host.clone(), fact)
    });
    let known = locked(&shared.lineage).clone();
    World {
        now,
        cluster_id: shared.context.cluster_id.clone(),
        fresh: cache.listed() && cache.lives.api_fresh(now),
        policy,
        namespaces: namespaces.collect(),
        vms: take(&mut cache.vms.objects),
        migrations: take(&mut cache.migrations.objects),
        consoles: take(&mut cache.consoles.objects),
        hosts: take(&mut cache.hosts.objects),
        agents: take(&mut cache.agents.objects),
        domains: take(&mut cache.domains.objects),
        storages: take(&mut cache.storages.objects),
        lock_managers: take(&mut cache.lock_managers.objects),
        fence_devices: take(&mut cache.fence_devices.objects),
        fences: take(&mut cache.fences.objects),
        lives: take(&mut cache.lives),
        fence_log: locked(&shared.fence_log).iter().cloned().collect(),
        server: locked(&shared.server).clone(),
        seen_since: take(&mut cache.seen_since),
        usage: take(&mut cache.usage),
        seed_refusals: locked(&shared.seed_refusals).clone(),
        seeds_gone: locked(&shared.seeds_gone).clone(),
        tolerates: cache
            .tolerates
            .filter(|(_, at)| now.saturating_sub(*at) < COUNT_AGAIN_MILLIS)
            .map(|(n, _)| n),
        wall_seconds: shared.context.clock.wall_millis() / 1000,
        authority: authority::known(shared),
        identities: locked(&shared.identities).clone(),
        uneven_since: cache.uneven_since,
        lineage: known.now.clone(),
        lineages: cache
            .lineages
            .iter()
            .map(|(host, lineage)| (host.clone(), lineage.clone()))
            .chain(known.highest().map(|own| ("the controller".to_owned(), own.clone())))
            .collect(),
        guards: shared.context.guards,
    }
}

/// Notes since when things are as they are: the base of every delay.
fn note_since(cache: &mut Cache, now: u64) {
    let mut facts: BTreeMap<String, String> = BTreeMap::new();
    for (OrderKey { vm_uid, host }, domain) in &cache.domains.objects {
        let generation = domain.metadata.generation.unwrap_or_default();
        facts.insert(format!("domain/{host}/{vm_uid}"), generation.to_string());
        if let Some(status) = domain.status.as_ref().filter(|s| s.released) {
            facts.insert(format!("settled/{vm_uid}/{}", status.epoch), String::new());
        } else if let Some(status) = &domain.status
            && status.end == Some(End::Migrated)
        {
            facts.insert(format!("left/{host}/{vm_uid}"), status.epoch.to_string());
        }
    }
    for (host, agent) in &cache.agents.objects {
        let Some(status) = &agent.status else { continue };
        for storage in &status.storages {
            facts.insert(format!("storage/{host}/{}", storage.name), storage.ready.to_string());
        }
        if status.going_down.is_some() {
            facts.insert(format!("going-down/{host}"), status.boot_id.clone());
        }
    }
    for (name, host) in &cache.hosts.objects {
        let asked = host.metadata.annotations.as_ref().and_then(|a| a.get(FENCE_TEST_ANNOTATION));
        if let Some(id) = asked {
            facts.insert(format!("fence-test/{name}"), id.clone());
        }
        if let Some(at) = host.status.as_ref().and_then(|s| s.last_shot_time.as_ref()) {
            facts.insert(format!("shot/{name}"), at.0.to_string());
        }
    }
    for (name, fence) in &cache.fences.objects {
        facts.insert(format!("fence-open/{name}"), String::new());
        let status = fence.status.as_ref();
        if status.is_some_and(|s| s.proof.is_some() && s.revoked.is_none()) {
            facts.insert(format!("fence-proof/{name}"), String::new());
        }
        if let Some(word) = &fence.spec.confirmation {
            facts.insert(format!("fence-word/{name}"), format!("{}/{}", word.by, word.reason));
        }
    }
    for migration in cache.migrations.objects.values() {
        let outcome = migration.status.as_ref().map(|s| s.outcome).unwrap_or_default();
        let uid = migration.metadata.uid.as_deref().unwrap_or_default();
        facts.insert(format!("migration/{uid}"), format!("{outcome:?}"));
    }
    for console in cache.consoles.objects.values() {
        let state = console.status.as_ref().map(|s| s.state).unwrap_or_default();
        let uid = console.metadata.uid.as_deref().unwrap_or_default();
        facts.insert(format!("console/{uid}"), format!("{state:?}"));
        facts.insert(format!("ticket/{uid}"), String::new());
    }
    cache.seen_since.retain(|what, _| facts.contains_key(what));
    for (what, print) in &facts {
        if cache.prints.get(what) != Some(print) || !cache.seen_since.contains_key(what) {
            cache.seen_since.insert(what.clone(), now);
        }
    }
    cache.prints = facts;
    cache.noted = true;
}
