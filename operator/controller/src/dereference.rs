//! From the cache to the snapshot that a plan is made of.

use stockade_core::world::{Key, NamespaceFact, World};
use stockade_crds::names::{
    FENCE_TEST_ANNOTATION, HOST_LABEL, POLICY_NAME, host_namespace, host_of_namespace,
};

use crate::cache::{Cache, Kind};
use crate::context::{Shared, locked};

/// How many host failures fit is counted so often: it takes long in a large cluster, and
/// nobody acts on it at once.
const COUNT_AGAIN_MILLIS: u64 = 10_000;

fn by_name<K>(kind: &Kind<K>) -> std::collections::BTreeMap<String, std::sync::Arc<K>> {
    kind.objects.iter().map(|(k, v)| (k.name.clone(), v.clone())).collect()
}

/// The world as it is known now.
pub(crate) fn world(shared: &Shared, cache: &mut Cache) -> World {
    let now = shared.now();
    let policy = cache.policies.objects.get(&Key::new("", POLICY_NAME)).cloned();
    if let Some(policy) = &policy {
        let beat = u64::try_from(policy.spec.heartbeat_seconds).unwrap_or(2);
        // The leader renews every 2 s whatever the hosts' heartbeat is.
        cache.lives.limit = beat.max(2) * 2_000 + 1_000;
        cache.lives.any_echo = !shared.context.guards.round_trip;
    }
    note_since(cache, now);
    locked(&shared.seeds_gone).retain(|(host, uid, epoch)| {
        let key = Key::new(host_namespace(host), uid);
        cache.domains.objects.get(&key).is_some_and(|domain| domain.spec.epoch == *epoch)
    });
    let host_of = |namespace: &str| host_of_namespace(namespace).map(str::to_owned);
    let known = locked(&shared.lineage).clone();
    World {
        now,
        cluster_id: shared.context.cluster_id.clone(),
        fresh: cache.listed() && cache.lives.api_fresh(now),
        policy,
        vms: cache.vms.objects.clone(),
        migrations: cache.migrations.objects.clone(),
        hosts: by_name(&cache.hosts),
        agents: cache
            .agents
            .objects
            .iter()
            .filter_map(|(k, v)| Some((host_of(&k.namespace)?, v.clone())))
            .collect(),
        namespaces: cache
            .namespaces
            .objects
            .iter()
            .filter_map(|(k, ns)| {
                let host = host_of(&k.name)?;
                let label = ns.metadata.labels.as_ref().and_then(|l| l.get(HOST_LABEL));
                let fact = NamespaceFact {
                    ours: label == Some(&host),
                    terminating: ns.metadata.deletion_timestamp.is_some(),
                };
                Some((host, fact))
            })
            .collect(),
        domains: cache
            .domains
            .objects
            .iter()
            .filter_map(|(k, v)| Some(((host_of(&k.namespace)?, k.name.clone()), v.clone())))
            .collect(),
        storages: by_name(&cache.storages),
        lock_managers: by_name(&cache.lock_managers),
        fence_devices: by_name(&cache.fence_devices),
        fences: by_name(&cache.fences),
        lives: cache.lives.clone(),
        fence_log: locked(&shared.fence_log).iter().cloned().collect(),
        server: locked(&shared.server).clone(),
        seen_since: cache.seen.iter().map(|(k, (_, at))| (k.clone(), *at)).collect(),
        usage: cache.usage.clone(),
        seed_refusals: locked(&shared.seed_refusals).clone(),
        seeds_gone: locked(&shared.seeds_gone).clone(),
        tolerates: cache
            .tolerates
            .filter(|(_, at)| now.saturating_sub(*at) < COUNT_AGAIN_MILLIS)
            .map(|(n, _)| n),
        wall_seconds: shared.context.clock.wall_millis() / 1000,
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
    let mut facts = Vec::new();
    for (key, domain) in &cache.domains.objects {
        let Some(host) = host_of_namespace(&key.namespace) else { continue };
        let generation = domain.metadata.generation.unwrap_or_default();
        facts.push((format!("domain/{host}/{}", key.name), generation.to_string()));
        if let Some(status) = domain.status.as_ref().filter(|s| s.released) {
            facts.push((format!("settled/{}/{}", key.name, status.epoch), String::new()));
        }
    }
    for (key, agent) in &cache.agents.objects {
        let (Some(host), Some(status)) = (host_of_namespace(&key.namespace), &agent.status) else {
            continue;
        };
        for storage in &status.storages {
            facts.push((format!("storage/{host}/{}", storage.name), storage.ready.to_string()));
        }
        if status.going_down.is_some() {
            facts.push((format!("going-down/{host}"), status.boot_id.clone()));
        }
    }
    for (key, host) in &cache.hosts.objects {
        let asked = host.metadata.annotations.as_ref().and_then(|a| a.get(FENCE_TEST_ANNOTATION));
        if let Some(id) = asked {
            facts.push((format!("fence-test/{}", key.name), id.clone()));
        }
    }
    for key in cache.fences.objects.keys() {
        facts.push((format!("fence-open/{}", key.name), String::new()));
    }
    for (key, fence) in &cache.fences.objects {
        let Some(word) = &fence.spec.confirmation else { continue };
        facts.push((format!("fence-word/{}", key.name), format!("{}/{}", word.by, word.reason)));
    }
    for migration in cache.migrations.objects.values() {
        let outcome = migration.status.as_ref().map(|s| s.outcome).unwrap_or_default();
        let uid = migration.metadata.uid.clone().unwrap_or_default();
        facts.push((format!("migration/{uid}"), format!("{outcome:?}")));
    }
    let live: std::collections::BTreeSet<String> = facts.iter().map(|(k, _)| k.clone()).collect();
    cache.seen.retain(|what, _| live.contains(what));
    for (what, print) in facts {
        cache.since(what, print, now);
    }
}
