//! Shorthand → the objects that a user would apply.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};
use stockade_crds::names::SYSTEM_NAMESPACE;
use stockade_crds::v1alpha1::SelfFence;

use super::super::ast::{
    FenceDeviceSetup, Fencing, HostFields, Name, PolicyFields, Rule, RuleKind, Scenario,
    StorageSetup, VmFields, bmc_name,
};
use super::super::words::{LockManagerKind, Recovery, StorageKind, Word as _};
use crate::runner::mount_path;

/// An object of ours.
pub(super) fn object(kind: &str, name: &str, namespace: Option<&str>, spec: Value) -> Value {
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = namespace.into();
    }
    json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec,
    })
}

/// The Host of a shorthand.
pub(super) fn host(name: &str, fields: &HostFields) -> Value {
    let mut host = object("Host", name, None, host_spec(name, fields));
    if let Some(labels) = &fields.labels {
        host["metadata"]["labels"] = json!(labels);
    }
    host
}

/// Its spec: what the shorthand does not say is left to the CRD.
pub(super) fn host_spec(name: &str, fields: &HostFields) -> Value {
    let mut spec = Map::new();
    if let Some(mode) = fields.mode {
        spec.insert("mode".to_owned(), mode.word().into());
    }
    if let Some(fencing) = &fields.fencing {
        spec.insert("selfFencing".to_owned(), (*fencing == Fencing::SelfFence).into());
        spec.insert("fencing".to_owned(), levels_spec(name, fencing));
    }
    spec.into()
}

/// Names of the devices of each level of a host.
pub(super) fn levels(name: &str, fencing: &Fencing) -> Vec<Vec<Name>> {
    match fencing {
        Fencing::Bmc => vec![vec![bmc_name(name)]],
        Fencing::SelfFence | Fencing::None => Vec::new(),
        Fencing::Levels(levels) => levels.clone(),
    }
}

fn levels_spec(name: &str, fencing: &Fencing) -> Value {
    levels(name, fencing).iter().map(|devices| json!({"devices": devices})).collect()
}

/// The FenceDevice of a shorthand, and its Secret if it has one.
pub(super) fn fence_device(setup: &FenceDeviceSetup) -> Vec<Value> {
    let mut spec = json!({
        "agent": setup.agent.as_deref().unwrap_or("fence_ipmilan"),
        "plugs": setup.plugs, "parameters": setup.parameters,
    });
    let mut objects = Vec::new();
    if !setup.secret.is_empty() {
        let name = format!("fence-{}", setup.name);
        spec["secret"] = name.clone().into();
        let data: BTreeMap<&String, String> =
            setup.secret.iter().map(|(k, v)| (k, base64(v.as_bytes()))).collect();
        objects.push(json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": SYSTEM_NAMESPACE}, "data": data,
        }));
    }
    objects.push(object("FenceDevice", &setup.name, None, spec));
    objects
}

/// The device that a host with `fencing: bmc` has.
pub(super) fn bmc(host: &str) -> FenceDeviceSetup {
    FenceDeviceSetup {
        name: bmc_name(host),
        agent: None,
        plugs: BTreeMap::from([(host.to_owned(), "1".to_owned())]),
        parameters: BTreeMap::new(),
        secret: BTreeMap::new(),
        manifest: None,
        line: super::super::ast::Line(0),
    }
}

/// The SharedStorage of a shorthand.
pub(super) fn storage(setup: &StorageSetup) -> Value {
    if let Some(manifest) = &setup.manifest {
        return manifest.clone();
    }
    let name = setup.name.as_str();
    let mut spec = match setup.kind {
        StorageKind::Nfs => {
            json!({"nfs": {"server": "nfs.example", "export": format!("/export/{name}")}})
        }
        StorageKind::Ocfs2 => json!({
            "ocfs2": {"san": {"path": format!("/dev/disk/by-id/wwn-{name}")}},
        }),
        StorageKind::SharedDirectory => json!({"directory": {}}),
    };
    spec["mountPath"] = mount_path(name).into();
    if let Some(hosts) = &setup.hosts {
        spec["hosts"] = json!(hosts);
    }
    object("SharedStorage", name, None, spec)
}

/// The LockManager of the VMs on a storage, if they have one.
pub(super) fn lock_manager(setup: &StorageSetup) -> Option<Value> {
    let kind = match setup.lock_manager {
        LockManagerKind::Virtlockd => "virtlockd",
        LockManagerKind::Sanlock => "sanlock",
        LockManagerKind::None => return None,
    };
    let locks = json!({"kind": kind, "storage": setup.name});
    Some(object("LockManager", &format!("locks-{}", setup.name), None, locks))
}

/// The policy. Where a host resets itself, elapsed time is accepted unless the file says what is.
pub(super) fn policy(scenario: &Scenario) -> Value {
    let mut spec: Map<String, Value> = scenario.policy.clone().into_iter().collect();
    let resets = |h: &HostFields| h.fencing() == Fencing::SelfFence;
    let any = scenario.hosts.iter().any(|h| resets(&h.fields)) || adds_one(scenario);
    if any && !spec.contains_key("acceptedProofs") {
        spec.insert("acceptedProofs".to_owned(), json!([["Power"], ["Elapsed"], ["Human"]]));
    }
    // A file that asks for slow beats says nothing of hosts that reset themselves: not for one beat.
    let two_beats = spec.get("heartbeatSeconds").and_then(Value::as_i64).unwrap_or(0) * 2;
    if two_beats >= i64::from(SelfFence::default().stop_seconds) && !spec.contains_key("selfFence")
    {
        spec.insert("selfFence".to_owned(), json!({"stopSeconds": two_beats + 1}));
    }
    object("AvailabilityPolicy", "default", None, spec.into())
}

/// Whether a step adds or makes a host that resets itself.
fn adds_one(scenario: &Scenario) -> bool {
    use super::super::ast::Verb;
    scenario.steps.iter().any(|step| match &step.verb {
        Verb::AddHost { hosts } => hosts.iter().any(|h| h.fields.fencing() == Fencing::SelfFence),
        Verb::SetHost { fields, .. } => fields.fencing == Some(Fencing::SelfFence),
        _ => false,
    })
}

/// A merge patch of the policy's fields.
pub(super) fn policy_patch(fields: &PolicyFields) -> Value {
    json!({"spec": fields})
}

/// The VirtualMachine of a shorthand under these rules.
pub(super) fn vm(name: &str, fields: &VmFields, rules: &[Rule], storage: &str) -> Value {
    let mut spec = vm_spec(fields);
    spec["memory"] = format!("{}Mi", fields.memory_mib()).into();
    spec["disks"] = json!([{
        "name": "disk0", "storage": storage, "existing": {"path": format!("{name}.qcow2")},
    }]);
    let bound = binds(name, fields, rules);
    if !bound.is_empty() {
        merge(&mut spec["placement"], bound.into());
    }
    object("VirtualMachine", name, Some("default"), spec)
}

/// What the shorthand says of a VM's spec, and nothing else; its rules with other VMs apart.
pub(super) fn vm_spec(fields: &VmFields) -> Value {
    let mut spec = json!({});
    if let Some(run) = fields.run {
        spec["runPolicy"] = run.word().into();
    }
    if let Some(cores) = fields.cpu {
        spec["cpu"]["cores"] = cores.into();
    }
    if let Some(memory) = fields.memory_mib {
        spec["memory"] = format!("{memory}Mi").into();
    }
    if let Some(hosts) = &fields.requires {
        spec["placement"]["requiredHosts"] = json!(hosts);
    }
    if let Some(ranks) = &fields.prefers {
        spec["placement"]["preferredHosts"] =
            ranks.iter().map(|hosts| json!({"hosts": hosts})).collect();
    }
    if let Some(failback) = fields.failback {
        spec["placement"]["failback"] = failback.into();
    }
    if let Some(n) = fields.max_restarts {
        spec["availability"]["maxRestarts"] = n.into();
    }
    if let Some(n) = fields.max_relocations {
        spec["availability"]["maxRelocations"] = n.into();
    }
    if let Some(priority) = fields.priority {
        spec["availability"]["priority"] = priority.into();
    }
    if let Some(recovery) = fields.recovery {
        spec["availability"]["recovery"] = match recovery {
            Recovery::Restart => "Restart".into(),
            Recovery::None => "None".into(),
        };
    }
    if let Some(live) = fields.migratable {
        spec["migration"]["live"] = live.into();
    }
    if let Some(seconds) = fields.grace_seconds {
        spec["stopGraceSeconds"] = seconds.into();
    }
    if let Some(managed) = fields.managed {
        spec["management"] = if managed { "Managed".into() } else { "Watched".into() };
    }
    spec
}

/// What binds a VM to others: its own fields, and the rules it is a member of.
pub(super) fn binds(name: &str, fields: &VmFields, rules: &[Rule]) -> Map<String, Value> {
    let mut lists: BTreeMap<&str, Vec<Name>> = BTreeMap::new();
    let own = [
        ("togetherWith", &fields.together_with),
        ("apartFrom", &fields.apart_from),
        ("prefersTogetherWith", &fields.prefers_together_with),
        ("prefersApartFrom", &fields.prefers_apart_from),
    ];
    for (key, list) in own {
        if let Some(list) = list {
            lists.entry(key).or_default().extend(list.iter().cloned());
        }
    }
    for rule in rules.iter().filter(|r| r.vms.iter().any(|v| v == name)) {
        let key = match (rule.kind, rule.strict) {
            (RuleKind::Together, true) => "togetherWith",
            (RuleKind::Together, false) => "prefersTogetherWith",
            (RuleKind::Apart, true) => "apartFrom",
            (RuleKind::Apart, false) => "prefersApartFrom",
        };
        let others = rule.vms.iter().filter(|v| *v != name).cloned();
        lists.entry(key).or_default().extend(others);
    }
    let unique = |mut list: Vec<Name>| {
        list.sort();
        list.dedup();
        json!(list)
    };
    lists.into_iter().map(|(key, list)| (key.to_owned(), unique(list))).collect()
}

/// Lays `over` over `under`, maps key by key.
pub(super) fn merge(under: &mut Value, over: Value) {
    match (under, over) {
        (Value::Object(under), Value::Object(over)) => {
            for (key, value) in over {
                merge(under.entry(key).or_insert(Value::Null), value);
            }
        }
        (under, over) => *under = over,
    }
}

/// Base64 with padding (RFC 4648), as `data` of a Secret carries it.
fn base64(bytes: &[u8]) -> String {
    serde_json::to_value(k8s_openapi::ByteString(bytes.to_vec()))
        .ok()
        .and_then(|v| v.as_str().map(str::to_owned))
        .unwrap_or_default()
}
