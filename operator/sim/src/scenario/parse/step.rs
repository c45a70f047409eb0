//! Steps: when, and what.

use super::super::ast::{
    ApiClient, HostFields, LockOwner, Name, ObjectRef, PolicyFields, Step, Times, Trigger, VERBS,
    Verb, VmFields, default_paths,
};
use super::super::node::{Kind, Node};
use super::super::problem::{nearest, unknown};
use super::super::words::{ApiIs, FailAs, FailOp, Process, Stage, StorageIs, VirshAction, Way};
use super::names::NameKind;
use super::read::{Cx, Fields, is_step_id};
use super::{condition, manifest, policy, setup};

/// Keys that every step may have.
const COMMON: &[&str] = &["id", "at", "when", "delay", "after", "do"];

/// One step.
pub(crate) fn step(cx: &Cx, node: &Node) -> Option<Step> {
    let mut f = Fields::of(cx, node, "a step")?;
    let Some(verb_node) = f.take("do") else {
        let near = f.keys().find(|k| nearest(&k.text, COMMON.iter().copied()) == Some("do"));
        match near.filter(|k| !COMMON.contains(&k.text.as_str()) && k.text.len() <= 3) {
            Some(key) => {
                cx.problem(key.line, format!("a step: {}", unknown("field", &key.text, COMMON)))
            }
            None => f.missing("do"),
        }
        return None;
    };
    let Some(word) = verb_node.text() else {
        cx.expected(verb_node, "`do` of a step", "a verb");
        return None;
    };
    if !VERBS.contains(&word) {
        let best = nearest(word, VERBS.iter().copied()).unwrap_or_default();
        let text = format!("unknown verb `{word}`; did you mean `{best}`?");
        cx.problem(verb_node.line, text);
        return None;
    }
    f.what = format!("step `{word}`");
    let id = f.read("id", |cx, n, w| {
        let id = cx.bare_name(n, w)?;
        if !is_step_id(&id) {
            cx.problem(
                n.line,
                format!("{w}: `{id}` is no id: a letter, then letters, digits, `_`, `-`, `.`"),
            );
            return None;
        }
        Some(id)
    });
    let trigger = trigger(&mut f);
    let verb = verb(&mut f, word);
    let line = f.at();
    f.finish();
    Some(Step { id, trigger: trigger?, verb: verb?, line })
}

fn trigger(f: &mut Fields<'_>) -> Option<Trigger> {
    let (at, when) = (f.has("at"), f.has("when"));
    let time = f.time("at");
    let condition = f.take("when").and_then(|n| condition::condition(f.cx, n));
    let delay = f.seconds("delay");
    let after = f.time("after");
    match (at, when) {
        (true, true) => {
            f.problem(format!("{} has either `at` or `when`, not both", f.what));
            None
        }
        (false, false) => {
            f.problem(format!("{} needs `at` or `when`", f.what));
            None
        }
        (true, false) => {
            for key in ["delay", "after"] {
                if f.has(key) {
                    f.problem(format!("{}: `{key}` goes with `when` only", f.what));
                }
            }
            time.map(Trigger::At)
        }
        (false, true) => {
            Some(Trigger::When { condition: condition?, after, delay: delay.unwrap_or(0) })
        }
    }
}

fn hosts(f: &mut Fields<'_>) -> Option<Vec<Name>> {
    f.some_names("host", NameKind::Host)
}

fn vms(f: &mut Fields<'_>) -> Option<Vec<Name>> {
    f.some_names("vm", NameKind::Vm)
}

fn verb(f: &mut Fields<'_>, word: &str) -> Option<Verb> {
    Some(match word {
        "power-off" => Verb::PowerOff { hosts: hosts(f)? },
        "power-on" => Verb::PowerOn { hosts: hosts(f)? },
        "reset" => Verb::Reset { hosts: hosts(f)? },
        "panic" => Verb::Panic { hosts: hosts(f)? },
        "shutdown" => Verb::Shutdown { hosts: hosts(f)? },
        "reboot" => Verb::Reboot { hosts: hosts(f)? },
        "isolate" | "heal" => network(f, word == "isolate")?,
        "clock" => clock(f)?,
        "crash-agent" => {
            let (down, process) = (f.seconds("for").unwrap_or(0), process(f));
            Verb::CrashAgent { hosts: hosts(f)?, down, process }
        }
        "restart-agent" => {
            let (down, process) = (f.seconds("for").unwrap_or(1_000), process(f));
            Verb::RestartAgent { hosts: hosts(f)?, down, process }
        }
        "pause-agent" => {
            let (duration, process) = (f.seconds("for"), process(f));
            Verb::PauseAgent { hosts: hosts(f)?, duration, process }
        }
        "hang-libvirt" => {
            let duration = f.seconds("for");
            Verb::HangLibvirt { hosts: hosts(f)?, duration }
        }
        "restart-libvirt" => {
            let down = f.seconds("for").unwrap_or(1_000);
            Verb::RestartLibvirt { hosts: hosts(f)?, down }
        }
        "kill-qemu" => {
            let hosts = f.names_or_none("host", NameKind::Host);
            Verb::KillQemu { vms: vms(f)?, hosts }
        }
        "virsh" => virsh(f)?,
        "fail" => fail(f)?,
        "mend" => Verb::Mend {
            op: f.word("op"),
            vms: f.names_or_none("vm", NameKind::Vm),
            hosts: f.names_or_none("host", NameKind::Host),
        },
        "load" => {
            let load = setup::load(f);
            if !f.has("cpu") && !f.has("memoryMiB") {
                f.problem("step `load` needs `cpu`, `memoryMiB` or both".to_owned());
            }
            Verb::Load { vms: vms(f)?, load }
        }
        "bmc" => bmc(f)?,
        "storage" => storage(f)?,
        "lock-manager" => lock_manager(f)?,
        "api" => api(f)?,
        "controller" => {
            if !f.has("is") {
                f.missing("is");
            }
            Verb::Controller { is: f.word("is")? }
        }
        "apply" => apply(f)?,
        "delete" => Verb::Delete { object: object(f)? },
        "patch" => patch(f)?,
        "add" => add(f)?,
        "set" => set(f)?,
        "start" | "stop" => {
            let grace_seconds = f.whole("graceSeconds", 0, 86_400).map(|n| n as u32);
            let vms = vms(f)?;
            if word == "start" {
                Verb::Start { vms, grace_seconds }
            } else {
                Verb::Stop { vms, grace_seconds }
            }
        }
        "migrate" => {
            let (to, live) = (f.name("to", NameKind::Host), f.bool("live"));
            Verb::Migrate { vms: vms(f)?, to, live }
        }
        "abort" => abort(f)?,
        "drain" => Verb::Drain { hosts: hosts(f)? },
        "uncordon" => Verb::Uncordon { hosts: hosts(f)? },
        "cordon" => Verb::Cordon { hosts: hosts(f)? },
        "pause" => Verb::Pause,
        "resume" => Verb::Resume,
        "confirm-dead" => {
            let reason = f.string("reason");
            Verb::ConfirmDead { hosts: hosts(f)?, reason }
        }
        "adopt" => {
            let host = f.name("host", NameKind::Host);
            if !f.has("host") {
                f.missing("host");
            }
            Verb::Adopt { vms: vms(f)?, host: host? }
        }
        "restart-vm" => Verb::RestartVm { vms: vms(f)? },
        "reset-vm" => Verb::ResetVm { vms: vms(f)? },
        _ => return None,
    })
}

fn process(f: &mut Fields<'_>) -> Process {
    f.word("process").unwrap_or(Process::Agent)
}

fn network(f: &mut Fields<'_>, cut: bool) -> Option<Verb> {
    let paths = f.words("paths");
    let paths = if f.has("paths") { paths } else { default_paths() };
    let way = f.word("way").unwrap_or(Way::Both);
    let hosts = hosts(f)?;
    if paths.is_empty() {
        f.problem(format!("`paths` of {} is empty", f.what));
        return None;
    }
    Some(if cut { Verb::Isolate { hosts, paths, way } } else { Verb::Heal { hosts, paths, way } })
}

fn clock(f: &mut Fields<'_>) -> Option<Verb> {
    let step = f.read("step", |cx, n, w| cx.number(n, w)).map(|s| (s * 1000.0).round() as i64);
    let rate = f.read("rate", |cx, n, w| {
        let rate = n.as_number().filter(|r| *r > 0.0);
        if rate.is_none() {
            cx.expected(n, w, "a number above 0 (1 = right)");
        }
        rate
    });
    let hosts = hosts(f)?;
    if !f.has("step") && !f.has("rate") {
        f.problem("step `clock` needs `step` or `rate`".to_owned());
        return None;
    }
    Some(Verb::Clock { hosts, step, rate })
}

fn virsh(f: &mut Fields<'_>) -> Option<Verb> {
    if !f.has("action") {
        f.missing("action");
    }
    let action: Option<VirshAction> = f.word("action");
    let host = f.name("host", NameKind::Host);
    let to = f.name("to", NameKind::Host);
    let unlocked = f.bool("unlocked").unwrap_or(false);
    let vms = vms(f)?;
    let action = action?;
    match action {
        VirshAction::Start if !f.has("host") => f.missing("host"),
        VirshAction::Migrate if !f.has("to") => f.missing("to"),
        VirshAction::Start | VirshAction::Destroy | VirshAction::Shutdown if f.has("to") => {
            f.problem("step `virsh`: `to` goes with `action: migrate` only".to_owned());
        }
        VirshAction::Start
        | VirshAction::Destroy
        | VirshAction::Shutdown
        | VirshAction::Migrate => {}
    }
    Some(Verb::Virsh { action, vms, host, to, unlocked })
}

fn fail(f: &mut Fields<'_>) -> Option<Verb> {
    if !f.has("op") {
        f.missing("op");
    }
    let op: Option<FailOp> = f.word("op");
    let vms = f.names_or_none("vm", NameKind::Vm);
    let hosts = f.names_or_none("host", NameKind::Host);
    let times = f.read("times", |cx, n, w| cx.times(n, w)).unwrap_or(Times::Count(1));
    let stage = f.word("stage").unwrap_or(Stage::Before);
    let how = f.word("as").unwrap_or(FailAs::Error);
    if matches!(how, FailAs::Lost | FailAs::Stuck) && stage != Stage::Switched {
        f.problem(format!("step `fail`: `as: {how}` goes with `stage: switched` only"));
    }
    if how == FailAs::Deaf && stage != Stage::Copying {
        f.problem(format!("step `fail`: `as: {how}` goes with `stage: copying` only"));
    }
    if f.has("stage") && op.is_some_and(|op| op != FailOp::Migrate) {
        f.problem("step `fail`: `stage` goes with `op: migrate` only".to_owned());
    }
    if op == Some(FailOp::Journal) && !vms.is_empty() {
        f.problem("step `fail`: a journal is its host's, not a VM's".to_owned());
    }
    Some(Verb::Fail { op: op?, vms, hosts, times, stage, how })
}

fn bmc(f: &mut Fields<'_>) -> Option<Verb> {
    let hosts = f.names_or_none("host", NameKind::Host);
    let devices = f.names_or_none("device", NameKind::Device);
    let is = f.word("is");
    let times = f.read("times", |cx, n, w| cx.times(n, w));
    if !f.has("is") {
        f.missing("is");
    }
    match (hosts.is_empty(), devices.is_empty()) {
        (true, true) => f.problem("step `bmc` needs `host` or `device`".to_owned()),
        (false, false) => {
            f.problem("step `bmc` has either `host` or `device`, not both".to_owned());
        }
        (true, false) | (false, true) => {}
    }
    Some(Verb::Bmc { hosts, devices, is: is?, times })
}

fn storage(f: &mut Fields<'_>) -> Option<Verb> {
    if !f.has("is") {
        f.missing("is");
    }
    let name = match f.take("name") {
        Some(_) => f.name("name", NameKind::Storage)?,
        None => String::new(),
    };
    let is = f.word("is");
    let only = f.names_or_none("only", NameKind::Host);
    if is == Some(StorageIs::Foreign) && !only.is_empty() {
        f.problem("step `storage`: another cluster takes it from all hosts".to_owned());
        return None;
    }
    Some(Verb::Storage { name, is: is?, only })
}

fn lock_manager(f: &mut Fields<'_>) -> Option<Verb> {
    // `is: stale-lock, vm: x` says the same as `stale-lock: x`.
    let stale = f.take("is").is_some_and(|is| is.text() == Some("stale-lock"));
    let named = if stale { "vm" } else { "stale-lock" };
    if stale || f.has("stale-lock") {
        let owner = f.read("owner", |cx, n, w| {
            let name = cx.bare_name(n, w)?;
            Some(match name.as_str() {
                "foreign" => LockOwner::Foreign,
                "host" => LockOwner::AnyHost,
                _ => {
                    cx.uses(NameKind::Holder, &name, n.line);
                    LockOwner::Host(name)
                }
            })
        });
        let vms = f.some_names(named, NameKind::Vm)?;
        if (f.has("is") && !stale) || f.has("host") {
            f.problem("step `lock-manager`: `stale-lock` goes with `owner` only".to_owned());
        }
        return Some(Verb::StaleLock { vms, owner: owner.unwrap_or(LockOwner::Foreign) });
    }
    f.take("stale-lock");
    let hosts = f.names_or_none("host", NameKind::Host);
    if f.has("vm") {
        for name in ["vm", "is", "owner"] {
            f.take(name);
        }
        f.problem("step `lock-manager`: write the VM as `stale-lock: <vm>`".to_owned());
        return None;
    }
    let is = f.word("is");
    if !f.has("is") {
        f.problem("step `lock-manager` needs `is` or `stale-lock`".to_owned());
    }
    if f.has("owner") {
        f.take("owner");
        f.problem("step `lock-manager`: `owner` goes with `stale-lock` only".to_owned());
    }
    Some(Verb::LockManager { is: is?, hosts })
}

fn api(f: &mut Fields<'_>) -> Option<Verb> {
    if !f.has("is") {
        f.missing("is");
    }
    let is = f.word("is");
    let only = f
        .read("only", |cx, n, w| {
            Some(cx.one_or_many(n, |cx, n| {
                let name = cx.bare_name(n, w)?;
                if name == "controller" {
                    return Some(ApiClient::Controller);
                }
                cx.uses(NameKind::ApiClient, &name, n.line);
                Some(ApiClient::Host(name))
            }))
        })
        .unwrap_or_default();
    let back = f.seconds("back");
    let is = is?;
    if (is == ApiIs::Restored) != back.is_some() {
        f.problem("step `api`: `back` goes with `is: restored`, which needs it".to_owned());
        return None;
    }
    if is == ApiIs::Restored && !only.is_empty() {
        f.problem("step `api`: what is restored is so for all".to_owned());
        return None;
    }
    Some(Verb::Api { is, only, back })
}

fn apply(f: &mut Fields<'_>) -> Option<Verb> {
    let Some(node) = f.take("manifest") else {
        f.missing("manifest");
        return None;
    };
    let manifests = manifest::many(f.cx, node, "`manifest` of step `apply`");
    (!manifests.is_empty()).then_some(Verb::Apply { manifests })
}

fn object(f: &mut Fields<'_>) -> Option<ObjectRef> {
    for key in ["kind", "name"] {
        if !f.has(key) {
            f.missing(key);
        }
    }
    let kind = f.read("kind", condition::object_kind);
    let name = f.read("name", |cx, n, w| {
        let name = cx.bare_name(n, w)?;
        if let Some(kind) = &kind {
            condition::uses_object(cx, kind, &name, n.line);
        }
        Some(name)
    });
    Some(ObjectRef { kind: kind?, name: name? })
}

fn patch(f: &mut Fields<'_>) -> Option<Verb> {
    let object = object(f);
    let Some(node) = f.take("patch") else {
        f.missing("patch");
        return None;
    };
    if !matches!(node.kind, Kind::Map(_)) {
        f.cx.expected(node, "`patch` of step `patch`", "a mapping");
        return None;
    }
    let object = object?;
    manifest::fields_known(f.cx, node, &object.kind, "`patch` of step `patch`");
    Some(Verb::Patch { object, patch: node.to_json() })
}

fn add(f: &mut Fields<'_>) -> Option<Verb> {
    let (vm, host, device) = (f.take("vm"), f.take("host"), f.take("fenceDevice"));
    let cx = f.cx;
    match (vm, host, device) {
        (Some(n), None, None) => {
            let vms = cx.one_or_many(n, setup::vm);
            (!vms.is_empty()).then_some(Verb::AddVm { vms })
        }
        (None, Some(n), None) => {
            let hosts = cx.one_or_many(n, |cx, n| setup::host(cx, n, &HostFields::default()));
            (!hosts.is_empty()).then_some(Verb::AddHost { hosts })
        }
        (None, None, Some(n)) => {
            let devices = cx.one_or_many(n, setup::fence_device);
            (!devices.is_empty()).then_some(Verb::AddFenceDevice { devices })
        }
        _ => {
            f.problem("step `add` needs one of `vm`, `host`, `fenceDevice`".to_owned());
            None
        }
    }
}

fn set(f: &mut Fields<'_>) -> Option<Verb> {
    let subjects = ["vm", "host", "policy", "rule"];
    let given: Vec<&str> = subjects.into_iter().filter(|s| f.has(s)).collect();
    match given.as_slice() {
        ["vm"] => {
            let vms = vms(f);
            let fields = setup::vm_fields(f);
            if fields == VmFields::default() {
                f.problem("step `set` changes no field of the VM".to_owned());
                return None;
            }
            Some(Verb::SetVm { vms: vms?, fields })
        }
        ["host"] => {
            let hosts = hosts(f);
            let fields = setup::host_fields(f, true);
            if fields == HostFields::default() {
                f.problem("step `set` changes no field of the host".to_owned());
                return None;
            }
            Some(Verb::SetHost { hosts: hosts?, fields })
        }
        ["policy"] => set_policy(f),
        ["rule"] => {
            let node = f.take("rule")?;
            Some(Verb::SetRule { rule: setup::rule(f.cx, node)? })
        }
        _ => {
            for subject in subjects {
                f.take(subject);
            }
            f.problem(
                "step `set` needs one of `vm`, `host`, `policy`, `rule` (one a step)".to_owned(),
            );
            None
        }
    }
}

/// The fields stand in `policy`, or beside it where `policy` is its name.
fn set_policy(f: &mut Fields<'_>) -> Option<Verb> {
    let node = f.take("policy")?;
    let mut fields = PolicyFields::new();
    match &node.kind {
        Kind::Map(_) => fields = policy::fields(f.cx, node, "`policy`"),
        Kind::Scalar { text, .. }
            if node.is_null() || node.as_bool() == Some(true) || text == "default" => {}
        Kind::Scalar { .. } | Kind::Seq(_) => {
            f.cx.expected(node, "`policy` of step `set`", "a mapping of policy fields");
            return None;
        }
    }
    for (key, value) in f.beside(COMMON) {
        fields.extend(policy::field(f.cx, key, value, "step `set`"));
    }
    if fields.is_empty() {
        f.problem("step `set` changes no field of the policy".to_owned());
        return None;
    }
    Some(Verb::SetPolicy { fields })
}

fn abort(f: &mut Fields<'_>) -> Option<Verb> {
    let vms = f.names_or_none("vm", NameKind::Vm);
    let step = f.name("step", NameKind::Step);
    match (vms.is_empty(), step) {
        (false, None) => Some(Verb::AbortVm { vms }),
        (true, Some(step)) => Some(Verb::AbortStep { step }),
        _ => {
            f.problem("step `abort` needs `vm` or `step`".to_owned());
            None
        }
    }
}
