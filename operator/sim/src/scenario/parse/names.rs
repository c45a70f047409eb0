//! Every name that a scenario uses is declared somewhere in it.

use std::collections::{BTreeMap, BTreeSet};

use super::super::ast::Fencing;
use super::super::ast::{Form, Manifest, Name, Scenario, Time, Trigger, Verb, bmc_name};
use super::super::problem::nearest;
use super::read::Cx;

/// What a name is a name of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameKind {
    Host,
    Vm,
    Device,
    Storage,
    /// A step by its id.
    Step,
    /// A step that is a user's order.
    Order,
    /// A host, or `foreign`.
    Holder,
    /// A host, or `controller`.
    ApiClient,
}

impl NameKind {
    fn word(self) -> &'static str {
        match self {
            Self::Host | Self::Holder | Self::ApiClient => "host",
            Self::Vm => "VM",
            Self::Device => "fence device",
            Self::Storage => "storage",
            Self::Step | Self::Order => "step",
        }
    }
}

/// One use of a name.
pub(crate) struct Use {
    pub kind: NameKind,
    pub name: Name,
    pub line: u32,
}

#[derive(Default)]
struct Declared<'a> {
    hosts: BTreeSet<&'a str>,
    vms: BTreeSet<&'a str>,
    devices: BTreeSet<String>,
    storages: BTreeSet<&'a str>,
    steps: BTreeMap<&'a str, &'a Verb>,
}

/// Reports names that are declared twice or not at all, and times that wait for themselves.
pub(crate) fn check(cx: &Cx, scenario: &Scenario) {
    let declared = declare(cx, scenario);
    for Use { kind, name, line } in cx.take_uses() {
        let name = name.as_str();
        let (known, candidates): (bool, Vec<&str>) = match kind {
            NameKind::Host => (declared.hosts.contains(name), of(&declared.hosts)),
            NameKind::Holder => (
                name == "foreign" || declared.hosts.contains(name),
                with(&declared.hosts, "foreign"),
            ),
            NameKind::ApiClient => {
                (declared.hosts.contains(name), with(&declared.hosts, "controller"))
            }
            NameKind::Vm => (declared.vms.contains(name), of(&declared.vms)),
            NameKind::Device => (
                declared.devices.contains(name),
                declared.devices.iter().map(String::as_str).collect(),
            ),
            NameKind::Storage => (declared.storages.contains(name), of(&declared.storages)),
            NameKind::Step | NameKind::Order => {
                (declared.steps.contains_key(name), declared.steps.keys().copied().collect())
            }
        };
        if !known {
            let text = match nearest(name, candidates) {
                Some(best) => {
                    format!("no {} `{name}` is declared; did you mean `{best}`?", kind.word())
                }
                None => format!("no {} `{name}` is declared; there is none", kind.word()),
            };
            cx.problem(line, text);
        } else if kind == NameKind::Order
            && let Some(verb) = declared.steps.get(name)
            && verb.order().is_none()
        {
            cx.problem(
                line,
                format!("step `{name}` ({}) is no user's order: it has no outcome", verb.word()),
            );
        }
    }
    cycles(cx, scenario);
    conflicts(cx, scenario);
}

fn of<'a>(set: &BTreeSet<&'a str>) -> Vec<&'a str> {
    set.iter().copied().collect()
}

fn with<'a>(set: &BTreeSet<&'a str>, word: &'a str) -> Vec<&'a str> {
    set.iter().copied().chain([word]).collect()
}

fn declare<'a>(cx: &Cx, scenario: &'a Scenario) -> Declared<'a> {
    let mut d = Declared::default();
    let twice = |line: u32, what: &str, name: &str| {
        cx.problem(line, format!("the {what} `{name}` is declared twice"));
    };
    for host in &scenario.hosts {
        if !d.hosts.insert(&host.name) {
            twice(host.line.0, "host", &host.name);
        }
        if host.fields.fencing() == Fencing::Bmc {
            d.devices.insert(bmc_name(&host.name));
        }
    }
    for device in &scenario.fence_devices {
        if !d.devices.insert(device.name.clone()) {
            twice(device.line.0, "fence device", &device.name);
        }
    }
    // Without a list of devices each host has those that it names.
    let listed = |m: &Manifest| m.kind() == "FenceDevice";
    if scenario.fence_devices.is_empty() && !scenario.manifests.iter().any(listed) {
        for host in &scenario.hosts {
            if let Fencing::Levels(levels) = host.fields.fencing() {
                d.devices.extend(levels.into_iter().flatten());
            }
        }
    }
    for storage in &scenario.storage {
        if !d.storages.insert(&storage.name) {
            twice(storage.line.0, "storage", &storage.name);
        }
    }
    for vm in &scenario.vms {
        if !d.vms.insert(&vm.name) {
            twice(vm.line.0, "VM", &vm.name);
        }
    }
    for manifest in &scenario.manifests {
        applied(&mut d, manifest);
    }
    for step in &scenario.steps {
        if let Some(id) = &step.id
            && d.steps.insert(id, &step.verb).is_some()
        {
            cx.problem(step.line.0, format!("the step id `{id}` stands twice"));
        }
        // Something deleted may be added again: only the start may not declare twice.
        match &step.verb {
            Verb::AddVm { vms } => d.vms.extend(vms.iter().map(|vm| vm.name.as_str())),
            Verb::AddHost { hosts } => {
                for host in hosts {
                    d.hosts.insert(&host.name);
                    if host.fields.fencing() == Fencing::Bmc {
                        d.devices.insert(bmc_name(&host.name));
                    }
                }
            }
            Verb::AddFenceDevice { devices } => {
                d.devices.extend(devices.iter().map(|device| device.name.clone()));
            }
            Verb::Apply { manifests } => {
                for manifest in manifests {
                    applied(&mut d, manifest);
                }
            }
            _ => {}
        }
    }
    d
}

fn applied<'a>(d: &mut Declared<'a>, manifest: &'a Manifest) {
    let name = manifest.name();
    match manifest.kind() {
        "Host" => {
            d.hosts.insert(name);
        }
        "VirtualMachine" => {
            d.vms.insert(name);
        }
        "FenceDevice" => {
            d.devices.insert(name.to_owned());
        }
        "SharedStorage" => {
            d.storages.insert(name);
        }
        _ => {}
    }
}

/// A step whose time is another's must not wait for itself.
fn cycles(cx: &Cx, scenario: &Scenario) {
    let waits: BTreeMap<&str, (&str, u32)> = scenario
        .steps
        .iter()
        .filter_map(|step| {
            let time = match &step.trigger {
                Trigger::At(time) => Some(time),
                Trigger::When { after, .. } => after.as_ref(),
            };
            match (time, &step.id) {
                (Some(Time::After(on, _)), Some(id)) => {
                    Some((id.as_str(), (on.as_str(), step.line.0)))
                }
                _ => None,
            }
        })
        .collect();
    for (&id, &(first, line)) in &waits {
        let mut on = first;
        for _ in 0..waits.len() {
            if on == id {
                cx.problem(line, format!("step `{id}` waits for itself"));
                break;
            }
            match waits.get(on) {
                Some(&(next, _)) => on = next,
                None => break,
            }
        }
    }
}

/// What the words allow and no run could show.
fn conflicts(cx: &Cx, scenario: &Scenario) {
    let until = match &scenario.until {
        Some(Time::At(until)) => *until,
        Some(Time::After(..)) | None => return,
    };
    for step in &scenario.steps {
        if let Trigger::At(Time::At(at)) = step.trigger
            && at > until
        {
            let word = step.verb.word();
            cx.problem(step.line.0, format!("step `{word}` comes after `until`: it never fires"));
        }
    }
    for expectation in &scenario.expect {
        if let Form::At(_, Time::At(at)) = &expectation.form
            && *at > until
        {
            cx.problem(expectation.line.0, "`at` comes after `until`".to_owned());
        }
    }
}
