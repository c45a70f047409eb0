//! Steps.

use super::super::ast::{
    ApiClient, HostFields, LockOwner, Name, ObjectRef, Step, Times, Trigger, Verb, default_paths,
};
use super::super::words::{FailAs, FailOp, NetPath, Process, Stage, Way, Word as _};
use super::yaml::{Map, Yaml};
use super::{expect, setup, time};

pub(super) fn step(step: &Step) -> Yaml {
    let mut m = Map::default();
    m.some("id", &step.id, |id| Yaml::text(id));
    match &step.trigger {
        Trigger::At(at) => m.put("at", time(at)),
        Trigger::When { condition, after, delay } => {
            m.put("when", expect::condition(condition).done());
            m.some("after", after, time);
            if *delay > 0 {
                m.put("delay", Yaml::seconds(*delay));
            }
        }
    }
    m.put("do", Yaml::raw(step.verb.word()));
    verb(&mut m, &step.verb);
    m.done()
}

fn verb(m: &mut Map, verb: &Verb) {
    match verb {
        Verb::PowerOff { hosts }
        | Verb::PowerOn { hosts }
        | Verb::Reset { hosts }
        | Verb::Panic { hosts }
        | Verb::Shutdown { hosts }
        | Verb::Reboot { hosts }
        | Verb::Drain { hosts }
        | Verb::Uncordon { hosts }
        | Verb::Cordon { hosts } => m.names("host", hosts),
        Verb::RestartVm { vms } | Verb::ResetVm { vms } | Verb::AbortVm { vms } => {
            m.names("vm", vms);
        }
        Verb::Pause | Verb::Resume => {}
        Verb::Isolate { hosts, paths, way } | Verb::Heal { hosts, paths, way } => {
            network(m, hosts, paths, *way);
        }
        Verb::Clock { hosts, step, rate } => {
            m.names("host", hosts);
            m.some("step", step, |s| Yaml::number(&(*s as f64 / 1000.0)));
            m.some("rate", rate, Yaml::number);
        }
        Verb::CrashAgent { hosts, down, process } | Verb::RestartAgent { hosts, down, process } => {
            m.names("host", hosts);
            m.put("for", Yaml::seconds(*down));
            process_of(m, *process);
        }
        Verb::PauseAgent { hosts, duration, process } => {
            m.names("host", hosts);
            m.some("for", duration, |t| Yaml::seconds(*t));
            process_of(m, *process);
        }
        Verb::HangLibvirt { hosts, duration } => {
            m.names("host", hosts);
            m.some("for", duration, |t| Yaml::seconds(*t));
        }
        Verb::RestartLibvirt { hosts, down } => {
            m.names("host", hosts);
            m.put("for", Yaml::seconds(*down));
        }
        Verb::KillQemu { vms, hosts } => {
            m.names("vm", vms);
            m.names("host", hosts);
        }
        Verb::Virsh { action, vms, host, to, unlocked } => {
            m.put("action", Yaml::raw(action.word()));
            m.names("vm", vms);
            m.some("host", host, |h| Yaml::text(h));
            m.some("to", to, |h| Yaml::text(h));
            if *unlocked {
                m.put("unlocked", Yaml::raw("true"));
            }
        }
        Verb::Fail { op, vms, hosts, times, stage, how } => {
            m.put("op", Yaml::raw(op.word()));
            m.names("vm", vms);
            m.names("host", hosts);
            if *times != Times::Count(1) {
                m.put("times", self::times(times));
            }
            if *op == FailOp::Migrate && *stage != Stage::Before {
                m.put("stage", Yaml::raw(stage.word()));
            }
            if *how != FailAs::Error {
                m.put("as", Yaml::raw(how.word()));
            }
        }
        Verb::Mend { op, vms, hosts } => {
            m.word("op", *op);
            m.names("vm", vms);
            m.names("host", hosts);
        }
        Verb::Load { vms, load } => {
            m.names("vm", vms);
            m.append(setup::load(load));
        }
        Verb::Bmc { hosts, devices, is, times } => {
            m.names("host", hosts);
            m.names("device", devices);
            m.put("is", Yaml::raw(is.word()));
            m.some("times", times, self::times);
        }
        Verb::Storage { name, is, only } => {
            if !name.is_empty() {
                m.put("name", Yaml::text(name));
            }
            m.put("is", Yaml::raw(is.word()));
            m.names("only", only);
        }
        Verb::LockManager { is, hosts } => {
            m.put("is", Yaml::raw(is.word()));
            m.names("host", hosts);
        }
        Verb::StaleLock { vms, owner } => {
            m.names("stale-lock", vms);
            m.put(
                "owner",
                match owner {
                    LockOwner::Host(host) => Yaml::text(host),
                    LockOwner::AnyHost => Yaml::raw("host"),
                    LockOwner::Foreign => Yaml::raw("foreign"),
                },
            );
        }
        Verb::Api { is, only, back } => {
            m.put("is", Yaml::raw(is.word()));
            m.some("back", back, |t| Yaml::seconds(*t));
            let only: Vec<Name> = only
                .iter()
                .map(|client| match client {
                    ApiClient::Host(host) => host.clone(),
                    ApiClient::Controller => "controller".to_owned(),
                })
                .collect();
            m.names("only", &only);
        }
        Verb::Controller { is } => m.put("is", Yaml::raw(is.word())),
        Verb::Apply { manifests } => {
            let objects = manifests.iter().map(|o| Yaml::json(&o.object)).collect();
            m.put("manifest", Yaml::Seq(objects));
        }
        Verb::Delete { object } => object_of(m, object),
        Verb::Patch { object, patch } => {
            object_of(m, object);
            m.put("patch", Yaml::json(patch));
        }
        Verb::AddVm { vms } => m.put("vm", Yaml::Seq(vms.iter().map(setup::vm).collect())),
        Verb::AddHost { hosts } => {
            m.put(
                "host",
                Yaml::Seq(hosts.iter().map(|h| setup::host(h, &HostFields::default())).collect()),
            );
        }
        Verb::AddFenceDevice { devices } => {
            m.put("fenceDevice", Yaml::Seq(devices.iter().map(setup::fence_device).collect()));
        }
        Verb::SetVm { vms, fields } => {
            m.names("vm", vms);
            m.append(setup::vm_fields(fields));
        }
        Verb::SetHost { hosts, fields } => {
            m.names("host", hosts);
            m.append(setup::host_fields(fields));
        }
        Verb::SetPolicy { fields } => m.put("policy", setup::policy(fields)),
        Verb::SetRule { rule } => m.put("rule", setup::rule(rule)),
        Verb::Start { vms, grace_seconds } | Verb::Stop { vms, grace_seconds } => {
            m.names("vm", vms);
            m.some("graceSeconds", grace_seconds, Yaml::number);
        }
        Verb::Migrate { vms, to, live } => {
            m.names("vm", vms);
            m.some("to", to, |h| Yaml::text(h));
            m.some("live", live, Yaml::number);
        }
        Verb::AbortStep { step } => m.put("step", Yaml::text(step)),
        Verb::ConfirmDead { hosts, reason } => {
            m.names("host", hosts);
            m.some("reason", reason, |r| Yaml::text(r));
        }
        Verb::Adopt { vms, host } => {
            m.names("vm", vms);
            m.put("host", Yaml::text(host));
        }
    }
}

fn network(m: &mut Map, hosts: &[Name], paths: &[NetPath], way: Way) {
    m.names("host", hosts);
    if paths != default_paths() {
        m.words("paths", paths);
    }
    if way != Way::Both {
        m.put("way", Yaml::raw(way.word()));
    }
}

fn process_of(m: &mut Map, process: Process) {
    if process != Process::Agent {
        m.put("process", Yaml::raw(process.word()));
    }
}

fn times(times: &Times) -> Yaml {
    match times {
        Times::Count(n) => Yaml::number(n),
        Times::Always => Yaml::raw("always"),
    }
}

fn object_of(m: &mut Map, object: &ObjectRef) {
    m.put("kind", Yaml::text(&object.kind));
    m.put("name", Yaml::text(&object.name));
}
