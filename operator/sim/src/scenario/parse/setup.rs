//! Hosts, VMs, devices, storages and rules in shorthand.

use serde_json::Value;

use super::super::ast::{
    FenceDeviceSetup, Fencing, HostFields, HostSetup, Line, Load, Name, Rule, StorageSetup,
    VmFields, VmSetup,
};
use super::super::node::{Kind, Node};
use super::super::problem::unknown;
use super::super::words::{HostMode, StorageKind, Word as _};
use super::names::NameKind;
use super::read::{Cx, Fields};
use super::{manifest, rule_kind};

/// A host that has nothing but a name.
pub(crate) fn host_named(name: Name, fields: HostFields, line: u32) -> HostSetup {
    HostSetup { name, fields, manifest: None, line: Line(line) }
}

/// A name, shorthand or Host manifest.
pub(crate) fn host(cx: &Cx, node: &Node, defaults: &HostFields) -> Option<HostSetup> {
    if let Kind::Scalar { .. } = &node.kind {
        let name = declared(cx, node, "a host", host_name)?;
        return Some(host_named(name, defaults.clone(), node.line));
    }
    if manifest::is_object(node) {
        let m = manifest::of_kind(cx, node, "a host", "Host")?;
        let spec = &m.object["spec"];
        let mode = spec["mode"].as_str().and_then(HostMode::from_word);
        let devices = |level: &Value| {
            let names = level["devices"].as_array().into_iter().flatten();
            names.filter_map(|n| n.as_str().map(str::to_owned)).collect()
        };
        let levels = spec["fencing"].as_array();
        let fencing = levels.map(|l| Fencing::Levels(l.iter().map(devices).collect()));
        return Some(HostSetup {
            name: m.name().to_owned(),
            fields: HostFields { mode, fencing, ..HostFields::default() }.or(defaults),
            manifest: Some(m.object),
            line: m.line,
        });
    }
    let mut f = Fields::of(cx, node, "a host")?;
    let name = own_name(&mut f, "host", host_name);
    let fields = host_fields(&mut f, false).or(defaults);
    let line = f.at();
    f.finish();
    Some(HostSetup { name: name?, fields, manifest: None, line })
}

/// The shorthand fields of a host. `live`: only those that can be changed while it is there.
pub(crate) fn host_fields(f: &mut Fields<'_>, live: bool) -> HostFields {
    HostFields {
        cpu: f.whole("cpu", 1, 4096).map(|n| n as u32),
        memory_mib: f.whole("memoryMiB", 1, 1 << 30),
        labels: f.read("labels", |cx, n, w| cx.string_map(n, w)),
        mode: f.word("mode"),
        powered: if live { None } else { f.bool("powered") },
        boot: f.seconds("bootSeconds"),
        fencing: f.read("fencing", fencing),
        watchdog: f.word("watchdog"),
    }
}

fn fencing(cx: &Cx, node: &Node, what: &str) -> Option<Fencing> {
    let words = ["bmc", "self", "none"];
    match &node.kind {
        Kind::Scalar { text, .. } => match text.as_str() {
            "bmc" => Some(Fencing::Bmc),
            "self" => Some(Fencing::SelfFence),
            "none" => Some(Fencing::None),
            _ if node.is_null() => {
                cx.expected(node, what, "bmc, self, none or levels of devices");
                None
            }
            other => {
                let text = unknown("word", other, &words);
                cx.problem(node.line, format!("{what}: {text}, or a list of levels of devices"));
                None
            }
        },
        Kind::Seq(levels) if !levels.is_empty() => {
            let mut read = Vec::new();
            for level in levels {
                let devices = cx.names(level, what, NameKind::Device)?;
                if devices.is_empty() {
                    cx.problem(level.line, format!("{what}: a level without a device"));
                    return None;
                }
                read.push(devices);
            }
            Some(Fencing::Levels(read))
        }
        Kind::Seq(_) | Kind::Map(_) => {
            cx.expected(node, what, "bmc, self, none or levels of devices [[a, b], [c]]");
            None
        }
    }
}

/// Shorthand or FenceDevice manifest.
pub(crate) fn fence_device(cx: &Cx, node: &Node) -> Option<FenceDeviceSetup> {
    if manifest::is_object(node) {
        let m = manifest::of_kind(cx, node, "a fence device", "FenceDevice")?;
        return Some(FenceDeviceSetup {
            name: m.name().to_owned(),
            agent: None,
            plugs: [].into(),
            parameters: [].into(),
            secret: [].into(),
            manifest: Some(m.object),
            line: m.line,
        });
    }
    let mut f = Fields::of(cx, node, "a fence device")?;
    let name = own_name(&mut f, "fence device", object_name);
    let agent = f.string("agent");
    let plugs = f.read("plugs", |cx, n, w| {
        if let Kind::Map(entries) = &n.kind {
            for (k, _) in entries {
                cx.uses(NameKind::Host, &k.text, k.line);
            }
        }
        cx.string_map(n, w)
    });
    let parameters = f.read("parameters", |cx, n, w| cx.string_map(n, w));
    let secret = f.read("secret", |cx, n, w| cx.string_map(n, w));
    let line = f.at();
    f.finish();
    Some(FenceDeviceSetup {
        name: name?,
        agent,
        plugs: plugs.unwrap_or_default(),
        parameters: parameters.unwrap_or_default(),
        secret: secret.unwrap_or_default(),
        manifest: None,
        line,
    })
}

/// Shorthand or SharedStorage manifest.
pub(crate) fn storage(cx: &Cx, node: &Node) -> Option<StorageSetup> {
    if manifest::is_object(node) {
        let m = manifest::of_kind(cx, node, "a storage", "SharedStorage")?;
        let kind = StorageKind::declared(&m.object);
        return Some(StorageSetup {
            name: m.name().to_owned(),
            kind,
            lock_manager: kind.usual_lock(),
            manifest: Some(m.object),
            line: m.line,
            ..StorageSetup::standard()
        });
    }
    let mut f = Fields::of(cx, node, "a storage")?;
    let name = own_name(&mut f, "storage", object_name);
    let kind = f.word("kind").unwrap_or(StorageKind::Nfs);
    let hosts = f.names("hosts", NameKind::Host);
    let lock_manager = f.word("lockManager").unwrap_or_else(|| kind.usual_lock());
    let line = f.at();
    f.finish();
    Some(StorageSetup { name: name?, kind, hosts, lock_manager, manifest: None, line })
}

/// Shorthand or VirtualMachine manifest.
pub(crate) fn vm(cx: &Cx, node: &Node) -> Option<VmSetup> {
    if let Kind::Scalar { .. } = &node.kind {
        let name = declared(cx, node, "a VM", object_name)?;
        let fields = VmFields::default();
        return Some(VmSetup { name, host: None, fields, manifest: None, line: Line(node.line) });
    }
    if manifest::is_object(node) {
        let m = manifest::of_kind(cx, node, "a VM", "VirtualMachine")?;
        return Some(VmSetup {
            name: m.name().to_owned(),
            host: None,
            fields: VmFields::default(),
            manifest: Some(m.object),
            line: m.line,
        });
    }
    let mut f = Fields::of(cx, node, "a VM")?;
    let name = own_name(&mut f, "VM", object_name);
    let host = f.name("host", NameKind::Host);
    let fields = vm_fields(&mut f);
    let line = f.at();
    f.finish();
    Some(VmSetup { name: name?, host, fields, manifest: None, line })
}

/// The shorthand fields of a VM but for its name and where it runs.
pub(crate) fn vm_fields(f: &mut Fields<'_>) -> VmFields {
    VmFields {
        run: f.word("run"),
        cpu: f.whole("cpu", 1, 4096).map(|n| n as u32),
        memory_mib: f.whole("memoryMiB", 1, 1 << 30),
        load: f.read("load", |cx, n, w| {
            let mut f = Fields::of(cx, n, w)?;
            let load = load(&mut f);
            f.finish();
            Some(load)
        }),
        requires: clearable(f, "requires", NameKind::Host),
        prefers: f.read("prefers", ranks),
        failback: f.bool("failback"),
        together_with: clearable(f, "togetherWith", NameKind::Vm),
        apart_from: clearable(f, "apartFrom", NameKind::Vm),
        prefers_together_with: clearable(f, "prefersTogetherWith", NameKind::Vm),
        prefers_apart_from: clearable(f, "prefersApartFrom", NameKind::Vm),
        max_restarts: f.whole("maxRestarts", 0, 1000).map(|n| n as u32),
        max_relocations: f.whole("maxRelocations", 0, 1000).map(|n| n as u32),
        priority: f.read("priority", |cx, n, w| {
            let value = n.text().filter(|_| n.as_number().is_some()).and_then(|t| t.parse().ok());
            if value.is_none() {
                cx.expected(n, w, "a whole number");
            }
            value
        }),
        recovery: f.word("recovery"),
        migratable: f.bool("migratable"),
        migrate: f.seconds("migrateSeconds"),
        stop: f.seconds("stopSeconds"),
        grace_seconds: f.whole("graceSeconds", 0, 86_400).map(|n| n as u32),
        managed: f.bool("managed"),
        storage: f.name("storage", NameKind::Storage),
    }
}

/// `cpu` and `memoryMiB` as measured.
pub(crate) fn load(f: &mut Fields<'_>) -> Load {
    Load {
        cpu: f.read("cpu", |cx, n, w| {
            let value = n.as_number().filter(|c| *c >= 0.0);
            if value.is_none() {
                cx.expected(n, w, "a number of CPUs");
            }
            value
        }),
        memory_mib: f.whole("memoryMiB", 0, 1 << 30),
    }
}

/// Names; null clears the list.
fn clearable(f: &mut Fields<'_>, key: &'static str, kind: NameKind) -> Option<Vec<Name>> {
    f.read(key, |cx, n, w| if n.is_null() { Some(Vec::new()) } else { cx.names(n, w, kind) })
}

fn ranks(cx: &Cx, node: &Node, what: &str) -> Option<Vec<Vec<Name>>> {
    match &node.kind {
        Kind::Seq(items) => {
            let mut ranks = Vec::new();
            for item in items {
                ranks.push(cx.names(item, what, NameKind::Host)?);
            }
            Some(ranks)
        }
        Kind::Scalar { .. } if node.is_null() => Some(Vec::new()),
        Kind::Scalar { .. } => Some(vec![cx.names(node, what, NameKind::Host)?]),
        Kind::Map(_) => {
            cx.expected(node, what, "a list of hosts and ranks [h1, [h2, h3]]");
            None
        }
    }
}

/// `{together|apart: [a, b], strict: true}`.
pub(crate) fn rule(cx: &Cx, node: &Node) -> Option<Rule> {
    let mut f = Fields::of(cx, node, "a rule")?;
    let kind = rule_kind(&mut f, "a rule");
    let strict = f.bool("strict").unwrap_or(true);
    let line = f.at();
    f.finish();
    let (kind, vms) = kind?;
    if vms.len() < 2 {
        cx.problem(line.0, "a rule needs at least two VMs".to_owned());
        return None;
    }
    Some(Rule { kind, vms, strict, line })
}

fn own_name(
    f: &mut Fields<'_>,
    what: &str,
    valid: fn(&str) -> Result<(), &'static str>,
) -> Option<Name> {
    match f.take("name") {
        Some(node) => declared(f.cx, node, &format!("`name` of a {what}"), valid),
        None => {
            f.missing("name");
            None
        }
    }
}

fn declared(
    cx: &Cx,
    node: &Node,
    what: &str,
    valid: fn(&str) -> Result<(), &'static str>,
) -> Option<Name> {
    let name = cx.bare_name(node, what)?;
    if let Err(why) = valid(&name) {
        cx.problem(node.line, format!("{what}: `{name}` {why}"));
        return None;
    }
    Some(name)
}

/// Host names are DNS labels of at most 49 characters.
fn host_name(name: &str) -> Result<(), &'static str> {
    if is_label(name) && name.len() <= 49 {
        return Ok(());
    }
    Err("is no host name: lower case letters, digits and `-`, at most 49")
}

/// Other names are what Kubernetes takes.
fn object_name(name: &str) -> Result<(), &'static str> {
    if name.len() <= 253 && name.split('.').all(is_label) {
        return Ok(());
    }
    Err("is no name: lower case letters, digits, `-` and `.`")
}

fn is_label(label: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !label.is_empty()
        && label.chars().all(inner)
        && !label.starts_with('-')
        && !label.ends_with('-')
}
