//! The state at second 0.

use super::super::ast::{
    FenceDeviceSetup, Fencing, HostFields, HostSetup, Load, PolicyFields, Rule, StorageSetup,
    VmFields, VmSetup,
};
use super::super::words::{StorageKind, Word as _};
use super::yaml::{Map, Yaml};

/// The number that stands for these hosts, if one does.
pub(super) fn counted(hosts: &[HostSetup], defaults: &HostFields) -> Option<usize> {
    let plain = hosts.iter().enumerate().all(|(i, host)| {
        host.name == format!("h{}", i + 1) && host.fields == *defaults && host.manifest.is_none()
    });
    (plain && !hosts.is_empty()).then_some(hosts.len())
}

pub(super) fn policy(fields: &PolicyFields) -> Yaml {
    Yaml::Map(fields.iter().map(|(k, v)| (k.clone(), Yaml::json(v))).collect())
}

pub(super) fn host(host: &HostSetup, defaults: &HostFields) -> Yaml {
    if let Some(manifest) = &host.manifest {
        return Yaml::json(manifest);
    }
    if host.fields == *defaults {
        return Yaml::text(&host.name);
    }
    let mut m = Map::default();
    m.put("name", Yaml::text(&host.name));
    m.append(host_fields(&host.fields));
    m.done()
}

pub(super) fn host_fields(fields: &HostFields) -> Map {
    let HostFields { cpu, memory_mib, labels, mode, powered, boot, fencing, watchdog } = fields;
    let mut m = Map::default();
    m.some("cpu", cpu, Yaml::number);
    m.some("memoryMiB", memory_mib, Yaml::number);
    m.some("labels", labels, Yaml::strings);
    m.word("mode", *mode);
    m.some("powered", powered, Yaml::number);
    m.some("bootSeconds", boot, |t| Yaml::seconds(*t));
    m.some("fencing", fencing, |f| match f {
        Fencing::Bmc => Yaml::raw("bmc"),
        Fencing::SelfFence => Yaml::raw("self"),
        Fencing::None => Yaml::raw("none"),
        Fencing::Levels(levels) => Yaml::Seq(levels.iter().map(|l| Yaml::names(l)).collect()),
    });
    m.word("watchdog", *watchdog);
    m
}

pub(super) fn fence_device(device: &FenceDeviceSetup) -> Yaml {
    let FenceDeviceSetup { name, agent, plugs, parameters, secret, manifest, line: _ } = device;
    if let Some(manifest) = manifest {
        return Yaml::json(manifest);
    }
    let mut m = Map::default();
    m.put("name", Yaml::text(name));
    m.some("agent", agent, |a| Yaml::text(a));
    for (key, map) in [("plugs", plugs), ("parameters", parameters), ("secret", secret)] {
        if !map.is_empty() {
            m.put(key, Yaml::strings(map));
        }
    }
    m.done()
}

pub(super) fn storage(storage: &StorageSetup) -> Yaml {
    let StorageSetup { name, kind, hosts, lock_manager, manifest, line: _ } = storage;
    if let Some(manifest) = manifest {
        return Yaml::json(manifest);
    }
    let mut m = Map::default();
    m.put("name", Yaml::text(name));
    if *kind != StorageKind::Nfs {
        m.put("kind", Yaml::raw(kind.word()));
    }
    m.some("hosts", hosts, |h| Yaml::names(h));
    if *lock_manager != kind.usual_lock() {
        m.put("lockManager", Yaml::raw(lock_manager.word()));
    }
    m.done()
}

pub(super) fn vm(vm: &VmSetup) -> Yaml {
    if let Some(manifest) = &vm.manifest {
        return Yaml::json(manifest);
    }
    let mut m = Map::default();
    m.put("name", Yaml::text(&vm.name));
    m.some("host", &vm.host, |h| Yaml::text(h));
    m.append(vm_fields(&vm.fields));
    m.done()
}

pub(super) fn vm_fields(fields: &VmFields) -> Map {
    let VmFields {
        run,
        cpu,
        memory_mib,
        load,
        requires,
        prefers,
        failback,
        together_with,
        apart_from,
        prefers_together_with,
        prefers_apart_from,
        max_restarts,
        max_relocations,
        priority,
        recovery,
        migratable,
        migrate,
        stop,
        grace_seconds,
        managed,
        storage,
    } = fields;
    let mut m = Map::default();
    m.word("run", *run);
    m.some("cpu", cpu, Yaml::number);
    m.some("memoryMiB", memory_mib, Yaml::number);
    m.some("load", load, |l| self::load(l).done());
    m.some("requires", requires, |n| Yaml::names(n));
    m.some("prefers", prefers, |ranks| {
        Yaml::Seq(ranks.iter().map(|rank| Yaml::one_or_many(rank)).collect())
    });
    m.some("failback", failback, Yaml::number);
    m.some("togetherWith", together_with, |n| Yaml::names(n));
    m.some("apartFrom", apart_from, |n| Yaml::names(n));
    m.some("prefersTogetherWith", prefers_together_with, |n| Yaml::names(n));
    m.some("prefersApartFrom", prefers_apart_from, |n| Yaml::names(n));
    m.some("maxRestarts", max_restarts, Yaml::number);
    m.some("maxRelocations", max_relocations, Yaml::number);
    m.some("priority", priority, Yaml::number);
    m.word("recovery", *recovery);
    m.some("migratable", migratable, Yaml::number);
    m.some("migrateSeconds", migrate, |t| Yaml::seconds(*t));
    m.some("stopSeconds", stop, |t| Yaml::seconds(*t));
    m.some("graceSeconds", grace_seconds, Yaml::number);
    m.some("managed", managed, Yaml::number);
    m.some("storage", storage, |s| Yaml::text(s));
    m
}

pub(super) fn load(load: &Load) -> Map {
    let mut m = Map::default();
    m.some("cpu", &load.cpu, Yaml::number);
    m.some("memoryMiB", &load.memory_mib, Yaml::number);
    m
}

pub(super) fn rule(rule: &Rule) -> Yaml {
    let mut m = Map::default();
    m.put(rule.kind.word(), Yaml::names(&rule.vms));
    if !rule.strict {
        m.put("strict", Yaml::raw("false"));
    }
    m.done()
}
