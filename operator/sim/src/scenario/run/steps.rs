//! Carries out steps.

use std::time::Duration;

use serde_json::{Value, json};
use stockade_crds::names::{REQUEST_ANNOTATION, host_fence_name};
use stockade_crds::v1alpha1::GoingDown;

use super::super::ast::{
    ApiClient, Fencing, HostFields, HostSetup, LockOwner, Name, ObjectRef, Rule, Times, Verb,
    VmFields, VmSetup,
};
use super::super::words::{
    ApiIs, BmcIs, ControllerIs, FailAs, FailOp, NetPath, Process, Run, Stage as FailStage,
    StorageIs, UpDown, VirshAction, Way, Word as _,
};
use super::orders::Wish;
use super::{Stage, objects, setup};
use crate::kube::{Fault, Refusal, Scope};
use crate::world::model::{self, DeviceMode, Net, StorageMode, Store};
use crate::world::power::Which;
use crate::world::virsh;

/// What the API or a preflight said to a user's order.
pub(super) type Answer = Result<(), String>;

impl Stage {
    /// Carries out the step with this index; what it wished for is followed from here on.
    pub(super) fn carry_out(&mut self, index: usize) {
        let Some(step) = self.scenario.steps.get(index).cloned() else { return };
        let beyond = !matches!(step.verb, Verb::Api { .. } | Verb::Controller { .. })
            && step.verb.order().is_none();
        let api_alone = matches!(
            &step.verb,
            Verb::Isolate { paths, .. } | Verb::Heal { paths, .. } if *paths == [NetPath::Api]
        );
        let (answer, wish) = match self.do_verb(index, &step.verb) {
            Ok(wish) => (Ok(()), wish),
            Err(why) => (Err(why), None),
        };
        // Where the policy shoots hosts that have lost the API alone, their loss is more than that.
        let policy = self.cluster.api.admin().get("AvailabilityPolicy", None, "default");
        let shoots = policy.is_some_and(|p| p.value["spec"]["isolatedHost"] == "Fence");
        if shoots || (beyond && !api_alone) {
            self.cluster.sim.lock().fault_beyond_api = true;
        }
        if matches!(step.verb, Verb::Api { .. }) {
            self.cluster.sim.lock().api_trouble = true;
        }
        self.orders.gave(index, &step.verb, answer, wish);
        self.cluster.sim.touch();
    }

    fn do_verb(&mut self, index: usize, verb: &Verb) -> Result<Option<Wish>, String> {
        match verb {
            Verb::PowerOff { hosts } => self.world(hosts, |w, h| w.switch_off(h)),
            Verb::PowerOn { hosts } => self.world(hosts, |w, h| w.switch_on(h)),
            Verb::Reset { hosts } => self.world(hosts, |w, h| w.reset(h)),
            Verb::Panic { hosts } => self.world(hosts, |w, h| w.panic(h)),
            Verb::Shutdown { hosts } => {
                self.world(hosts, |w, h| w.go_down(h, GoingDown::Shutdown));
            }
            Verb::Reboot { hosts } => self.world(hosts, |w, h| w.go_down(h, GoingDown::Reboot)),
            Verb::Isolate { hosts, paths, way } => self.isolate(hosts, paths, *way, true),
            Verb::Heal { hosts, paths, way } => self.isolate(hosts, paths, *way, false),
            Verb::Clock { hosts, step, rate } => self.world(hosts, |w, h| {
                w.set_clock(h, step.unwrap_or(0), *rate);
            }),
            Verb::CrashAgent { hosts, down, process } => self.world(hosts, |w, h| {
                processes(*process).iter().for_each(|p| w.crash_process(h, *p, *down));
            }),
            Verb::RestartAgent { hosts, down, process } => self.world(hosts, |w, h| {
                processes(*process).iter().for_each(|p| w.restart_process(h, *p, *down));
            }),
            Verb::PauseAgent { hosts, duration, process } => self.world(hosts, |w, h| {
                processes(*process).iter().for_each(|p| w.pause_for(h, *p, *duration));
            }),
            Verb::HangLibvirt { hosts, duration } => {
                self.world(hosts, |w, h| w.hang_libvirt(h, *duration));
            }
            Verb::RestartLibvirt { hosts, down } => {
                self.world(hosts, |w, h| w.restart_libvirt(h, *down));
            }
            Verb::KillQemu { vms, hosts } => self.at(vms, hosts, |w, h, vm| w.kill_vm(h, vm)),
            Verb::Virsh { action, vms, host, to, unlocked } => {
                self.virsh(*action, vms, host.as_deref(), to.as_deref(), *unlocked)?;
            }
            Verb::Fail { op, vms, hosts, times, stage, how } => {
                let fail = model::Fail {
                    op: fail_op(*op),
                    vms: vms.clone(),
                    hosts: hosts.clone(),
                    times: match times {
                        Times::Count(n) => Some(*n),
                        Times::Always => None,
                    },
                    stage: match stage {
                        FailStage::Before => model::Stage::Before,
                        FailStage::Copying => model::Stage::Copying,
                        FailStage::Switched => model::Stage::Switched,
                    },
                    how: match how {
                        FailAs::Error => model::FailAs::Error,
                        FailAs::Hang => model::FailAs::Hang,
                        FailAs::Unknown => model::FailAs::Unknown,
                        FailAs::Lost => model::FailAs::Lost,
                        FailAs::Stuck => model::FailAs::Stuck,
                        FailAs::Deaf => model::FailAs::Deaf,
                    },
                };
                self.cluster.sim.lock().fails.push(fail);
            }
            Verb::Mend { op, vms, hosts } => {
                let ends = |own: &[Name], named: &[Name]| {
                    named.is_empty() || own.is_empty() || own.iter().any(|n| named.contains(n))
                };
                self.cluster.sim.lock().mend(|f| {
                    op.is_none_or(|op| f.op == fail_op(op))
                        && ends(&f.vms, vms)
                        && ends(&f.hosts, hosts)
                });
            }
            Verb::Load { vms, load } => {
                for vm in vms {
                    let fields = VmFields { load: Some(*load), ..VmFields::default() };
                    self.remember(vm, &fields);
                    self.profile(vm);
                }
            }
            Verb::Bmc { hosts, devices, is, times } => self.bmc(hosts, devices, *is, *times),
            Verb::Storage { name, is, only } => {
                let mode = match is {
                    StorageIs::Up | StorageIs::Foreign => StorageMode::Up,
                    StorageIs::Down => StorageMode::Down,
                    StorageIs::Slow => StorageMode::Slow,
                    StorageIs::ReadOnly => StorageMode::ReadOnly,
                };
                let mut world = self.cluster.sim.lock();
                let named = |s: &Store| name.is_empty() || s.name == *name;
                if only.is_empty() {
                    let meant = world.stores.values().filter(|s| named(s));
                    let names: Vec<Name> = meant.map(|s| s.name.clone()).collect();
                    let foreign = *is == StorageIs::Foreign;
                    names.iter().for_each(|name| world.set_foreign(name, foreign));
                }
                for store in world.stores.values_mut().filter(|s| named(s)) {
                    if only.is_empty() {
                        store.mode = mode;
                        store.mode_for.clear();
                    }
                    for host in only {
                        store.mode_for.insert(host.clone(), mode);
                    }
                }
            }
            Verb::LockManager { is, hosts } => {
                let all = self.all_hosts();
                let hosts = if hosts.is_empty() { &all } else { hosts };
                self.world(hosts, |w, h| {
                    if let Some(m) = w.machines.get_mut(h) {
                        m.lock_daemon = *is == UpDown::Up;
                    }
                });
            }
            Verb::StaleLock { vms, owner } => self.stale_lock(vms, owner),
            Verb::Api { is: ApiIs::Restored, back, .. } => {
                let now = tokio::time::Instant::now();
                let then = now.checked_sub(Duration::from_millis(back.unwrap_or(0)));
                self.cluster.api.faults().restore_backup(then.unwrap_or(now));
            }
            Verb::Api { is, only, .. } => self.api(*is, only),
            Verb::Controller { is } => self.controller(*is),
            Verb::Apply { manifests } => {
                for manifest in manifests {
                    self.provide(&manifest.object);
                    said(self.user().apply(&manifest.object))?;
                }
            }
            Verb::Delete { object } => {
                said(self.user().delete(&object.kind, Some("default"), &object.name))?;
            }
            Verb::Patch { object, patch } => self.patch(object, patch)?,
            Verb::AddVm { vms } => {
                for vm in vms {
                    self.add_vm(vm)?;
                }
            }
            Verb::AddHost { hosts } => {
                for host in hosts {
                    self.add_host(host)?;
                }
            }
            Verb::AddFenceDevice { devices } => {
                for device in devices {
                    self.build_device(device).map_err(|e| e.to_string())?;
                }
            }
            Verb::SetVm { vms, fields } => {
                for vm in vms {
                    self.set_vm(vm, fields)?;
                }
            }
            Verb::SetHost { hosts, fields } => {
                for host in hosts {
                    self.set_host(host, fields)?;
                }
            }
            Verb::SetPolicy { fields } => self.policy(&objects::policy_patch(fields))?,
            Verb::SetRule { rule } => self.set_rule(rule)?,
            Verb::Start { vms, grace_seconds } => {
                for vm in vms {
                    let mut patch = json!({"spec": {"runPolicy": "Always"}});
                    if let Some(seconds) = grace_seconds {
                        patch["spec"]["stopGraceSeconds"] = (*seconds).into();
                    }
                    let id = format!("start/{index}");
                    patch["metadata"]["annotations"] = json!({REQUEST_ANNOTATION: id});
                    let run = VmFields { run: Some(Run::Always), ..VmFields::default() };
                    self.remember(vm, &run);
                    self.patch(&ObjectRef::vm(vm), &patch)?;
                }
                return Ok(Some(Wish::Start(vms.clone())));
            }
            Verb::Stop { vms, grace_seconds } => {
                for vm in vms {
                    let mut patch = json!({"spec": {"runPolicy": "Halted"}});
                    if let Some(seconds) = grace_seconds {
                        patch["spec"]["stopGraceSeconds"] = (*seconds).into();
                    }
                    let run = VmFields { run: Some(Run::Halted), ..VmFields::default() };
                    self.remember(vm, &run);
                    self.patch(&ObjectRef::vm(vm), &patch)?;
                }
                return Ok(Some(Wish::Stop(vms.clone())));
            }
            Verb::Migrate { vms, to, live } => {
                let mut names = Vec::new();
                for vm in vms {
                    let name = format!("move-{index}-{vm}");
                    let can = self.vms.get(vm).is_none_or(VmFields::migratable);
                    let mut spec = json!({"vm": vm, "live": live.unwrap_or(can)});
                    if let Some(to) = to {
                        spec["target"] = to.clone().into();
                    }
                    let kind = "VirtualMachineMigration";
                    let object = objects::object(kind, &name, Some("default"), spec);
                    said(self.user().create(&object))?;
                    names.push(name);
                }
                return Ok(Some(Wish::Migrate(names)));
            }
            Verb::AbortVm { vms } => {
                let mut names = Vec::new();
                for migration in self.user().list("VirtualMachineMigration", None) {
                    let of = migration.value["spec"]["vm"].as_str().unwrap_or_default();
                    let outcome = migration.value["status"]["outcome"].as_str();
                    let open = matches!(outcome, None | Some("Pending"));
                    if open && vms.iter().any(|vm| vm == of) {
                        let name = migration.value["metadata"]["name"].as_str().unwrap_or_default();
                        names.push(name.to_owned());
                    }
                }
                return self.abort(names);
            }
            Verb::AbortStep { step } => {
                let at = self.scenario.steps.iter().position(|s| s.id.as_ref() == Some(step));
                let vms = match at.and_then(|i| self.scenario.steps.get(i)).map(|s| &s.verb) {
                    Some(Verb::Migrate { vms, .. }) => vms.clone(),
                    _ => Vec::new(),
                };
                let at = at.unwrap_or_default();
                return self.abort(vms.iter().map(|vm| format!("move-{at}-{vm}")).collect());
            }
            Verb::Drain { hosts } => {
                self.mode(hosts, "Maintenance")?;
                return Ok(Some(Wish::Drain(hosts.clone())));
            }
            Verb::Uncordon { hosts } => self.mode(hosts, "Active")?,
            Verb::Cordon { hosts } => self.mode(hosts, "Cordoned")?,
            Verb::Pause => self.policy(&json!({"spec": {"automation": "Paused"}}))?,
            Verb::Resume => self.policy(&json!({"spec": {"automation": "Active"}}))?,
            Verb::ConfirmDead { hosts, reason } => {
                let mut names = Vec::new();
                for host in hosts {
                    names.push(self.confirm_dead(host, reason.as_deref())?);
                }
                return Ok(Some(Wish::Confirm(names)));
            }
            Verb::Adopt { vms, host } => {
                let id = format!("adopt/{host}/{index}");
                self.request(vms, &id)?;
                return Ok(Some(Wish::Adopt(vms.clone(), host.clone(), id)));
            }
            Verb::RestartVm { vms } => {
                return self.ask_running(vms, format!("restart/{index}"));
            }
            Verb::ResetVm { vms } => {
                return self.ask_running(vms, format!("reset/{index}"));
            }
        }
        Ok(None)
    }

    /// A request that makes sense of running VMs alone.
    fn ask_running(&self, vms: &[Name], id: String) -> Result<Option<Wish>, String> {
        let runs = |vm: &&Name| !self.cluster.running(vm).is_empty();
        let ran = vms.iter().filter(runs).cloned().collect();
        self.request(vms, &id)?;
        Ok(Some(Wish::Request(vms.to_vec(), id, ran)))
    }

    fn user(&self) -> crate::kube::Admin {
        self.cluster.api.admin().named("user")
    }

    fn patch(&self, object: &ObjectRef, patch: &Value) -> Answer {
        said(self.user().apply_merge(&object.kind, Some("default"), &object.name, patch, false))
    }

    fn policy(&self, patch: &Value) -> Answer {
        said(self.user().apply_merge("AvailabilityPolicy", None, "default", patch, false))
    }

    fn request(&self, vms: &[Name], id: &str) -> Answer {
        let patch = json!({"metadata": {"annotations": {REQUEST_ANNOTATION: id}}});
        vms.iter().try_for_each(|vm| self.patch(&ObjectRef::vm(vm), &patch))
    }

    fn mode(&mut self, hosts: &[Name], mode: &str) -> Answer {
        let patch = json!({"spec": {"mode": mode}});
        hosts.iter().try_for_each(|host| self.patch(&ObjectRef::host(host), &patch))
    }

    fn abort(&self, names: Vec<Name>) -> Result<Option<Wish>, String> {
        if names.is_empty() {
            return Err("no migration of it is under way".to_owned());
        }
        for name in &names {
            said(self.user().delete("VirtualMachineMigration", Some("default"), name))?;
        }
        Ok(Some(Wish::Abort(names)))
    }

    fn world(&self, hosts: &[Name], act: impl Fn(&mut crate::world::World, &str)) {
        let mut world = self.cluster.sim.lock();
        hosts.iter().for_each(|host| act(&mut world, host));
    }

    fn all_hosts(&self) -> Vec<Name> {
        self.cluster.sim.lock().machines.keys().cloned().collect()
    }

    /// Each VM at each of these hosts, or wherever it is.
    fn at(&self, vms: &[Name], hosts: &[Name], act: impl Fn(&mut crate::world::World, &str, &str)) {
        let all = self.all_hosts();
        let hosts = if hosts.is_empty() { &all } else { hosts };
        let mut world = self.cluster.sim.lock();
        for vm in vms {
            for host in hosts {
                act(&mut world, host, vm);
            }
        }
    }

    fn isolate(&mut self, hosts: &[Name], paths: &[NetPath], way: Way, cut: bool) {
        let net = |path: &NetPath| match path {
            NetPath::Api => Net::Api,
            NetPath::Peers => Net::Peers,
            NetPath::Storage => Net::Storage,
            NetPath::Bmc => Net::Bmc,
            NetPath::Migration => Net::Migration,
        };
        let nets: Vec<Net> = paths.iter().map(net).collect();
        let ways: &[model::Way] = match way {
            Way::Both => &[model::Way::In, model::Way::Out],
            Way::In => &[model::Way::In],
            Way::Out => &[model::Way::Out],
        };
        for host in hosts {
            self.cluster.isolate_way(host, &nets, ways, cut);
        }
    }

    fn virsh(
        &mut self,
        action: VirshAction,
        vms: &[Name],
        host: Option<&str>,
        to: Option<&str>,
        unlocked: bool,
    ) -> Answer {
        for vm in vms {
            let there = match host {
                Some(host) => vec![host.to_owned()],
                None => self.cluster.running(vm),
            };
            let sim = self.cluster.sim.clone();
            match action {
                VirshAction::Start => {
                    let Some(host) = there.first().cloned().or_else(|| self.last_host(vm)) else {
                        return Err(format!("say on which host {vm} is to be started"));
                    };
                    // Refused by the lock manager, most likely: someone's own affair.
                    if let Err(why) = self.hand_start(vm, &host, unlocked) {
                        tracing::info!(%vm, %host, %why, "virsh start was refused");
                    }
                }
                VirshAction::Destroy => {
                    there.iter().for_each(|h| sim.lock().virsh_destroy(h, vm));
                }
                VirshAction::Shutdown => there.iter().for_each(|h| virsh::shutdown(&sim, h, vm)),
                VirshAction::Migrate => {
                    let Some(to) = to else { return Err("`to` is missing".to_owned()) };
                    there.iter().for_each(|h| virsh::migrate(&sim, h, to, vm, unlocked));
                }
            }
        }
        Ok(())
    }

    fn last_host(&self, vm: &str) -> Option<String> {
        let vm = self.user().get("VirtualMachine", Some("default"), vm)?;
        vm.value["status"]["placements"].as_array()?.last()?["host"].as_str().map(str::to_owned)
    }

    fn bmc(&self, hosts: &[Name], devices: &[Name], is: BmcIs, times: Option<Times>) {
        let mode = match is {
            BmcIs::Ok => DeviceMode::Ok,
            BmcIs::Timeout => DeviceMode::Timeout,
            BmcIs::LiesOn => DeviceMode::LiesOn,
            BmcIs::LiesOff => DeviceMode::LiesOff,
            BmcIs::AlreadyOff => DeviceMode::AlreadyOff,
            BmcIs::WrongHost => DeviceMode::WrongHost,
            BmcIs::BadCredentials => DeviceMode::BadCredentials,
            BmcIs::DiesWithHost => DeviceMode::DiesWithHost,
        };
        let mut world = self.cluster.sim.lock();
        for device in world.devices.values_mut() {
            let meant = devices.contains(&device.name)
                || hosts.iter().any(|host| device.wired.contains_key(host));
            if meant {
                device.mode = mode;
                device.times = match times {
                    Some(Times::Count(n)) => Some(n),
                    Some(Times::Always) | None => None,
                };
            }
        }
    }

    fn stale_lock(&self, vms: &[Name], owner: &LockOwner) {
        for vm in vms {
            let Some(object) = self.cluster.vm(vm) else { continue };
            let uid = object.metadata.uid.clone().unwrap_or_default();
            let on = self.cluster.running(vm);
            let client = match owner {
                LockOwner::Host(host) => host.clone(),
                LockOwner::Foreign => "foreign".to_owned(),
                LockOwner::AnyHost => {
                    let all = self.all_hosts();
                    let other = all.iter().find(|h| !on.contains(h)).cloned();
                    other.or_else(|| all.first().cloned()).unwrap_or_default()
                }
            };
            let foreign = *owner == LockOwner::Foreign;
            for disk in &object.spec.disks {
                let path = disk
                    .existing
                    .as_ref()
                    .map(|e| format!("{}/default/{}", self.mount_of(&disk.storage), e.path));
                if let Some(path) = path {
                    self.cluster.sim.lock().stale_lock(&path, &uid, &client, foreign);
                }
            }
        }
    }

    /// What the API is for clients, each by itself: a later word for some leaves the others alone.
    fn api(&mut self, is: ApiIs, only: &[ApiClient]) {
        let clients = if only.is_empty() {
            self.api_for_new_hosts = is;
            let hosts = self.all_hosts().into_iter().map(ApiClient::Host);
            hosts.chain([ApiClient::Controller]).collect()
        } else {
            only.to_vec()
        };
        for client in clients {
            self.api_for(&client, is);
        }
    }

    fn api_for(&mut self, client: &ApiClient, is: ApiIs) {
        let scope = match client {
            ApiClient::Host(host) => Scope::Only(vec![format!("host/{host}")]),
            ApiClient::Controller => Scope::Prefix("controller/".to_owned()),
        };
        let fault = match is {
            ApiIs::Up | ApiIs::Restored => None,
            ApiIs::Down => Some(Fault::Down),
            // There and back within what counts as fresh: slow is no outage.
            ApiIs::Slow => {
                Some(Fault::Slow(Duration::from_millis(200), Duration::from_millis(1_500)))
            }
            ApiIs::Stale => Some(Fault::Stale(Duration::from_secs(30))),
            ApiIs::Errors => Some(Fault::Errors(0.5)),
            ApiIs::ReplyLost => Some(Fault::ReplyLost(0.5)),
        };
        let faults = self.cluster.api.faults();
        if let Some((was, id)) = self.api_faults.remove(client) {
            faults.clear(id);
            if was == ApiIs::Errors {
                faults.expire_watches(&scope);
            }
        }
        if is == ApiIs::Errors {
            faults.drop_watches(&scope);
        }
        if let Some(fault) = fault {
            self.api_faults.insert(client.clone(), (is, faults.inject(scope, fault)));
        }
    }

    fn controller(&mut self, is: ControllerIs) {
        match is {
            ControllerIs::Crash => self.cluster.crash_controller(),
            ControllerIs::Stop => self.cluster.stop_controllers(),
            ControllerIs::Start => self.start_controllers(),
            ControllerIs::Restart => {
                self.cluster.stop_controllers();
                self.start_controllers();
            }
            ControllerIs::SecondLeader => self.cluster.start_second_leader(),
        }
    }

    fn start_controllers(&self) {
        for _ in 0..self.scenario.controllers {
            self.cluster.start_controller();
        }
    }

    fn add_vm(&mut self, vm: &VmSetup) -> Answer {
        self.remember(&vm.name, &vm.fields);
        self.profile(&vm.name);
        let mut object = self.vm_object(vm);
        self.provide(&object);
        let Some(host) = &vm.host else { return said(self.user().create(&object)) };
        if vm.fields.run() == Run::Halted {
            return said(self.user().create(&object));
        }
        // It runs there before Stockade hears of it, so it is wanted only once that is seen.
        let wanted = object["spec"]["runPolicy"].clone();
        object["spec"]["runPolicy"] = "Halted".into();
        said(self.user().create(&object))?;
        self.hand_start(&vm.name, host, false).map_err(|e| e.to_string())?;
        let (admin, name) = (self.user(), vm.name.clone());
        let wanted = if wanted.is_null() { "Always".into() } else { wanted };
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_secs(2)).await;
            let patch = json!({"spec": {"runPolicy": wanted}});
            // Gone again by now: then there is nothing to want.
            let _ = admin.apply_merge("VirtualMachine", Some("default"), &name, &patch, false);
        });
        Ok(())
    }

    fn add_host(&mut self, host: &HostSetup) -> Answer {
        self.build_host(host).map_err(|e| e.to_string())?;
        self.api_for(&ApiClient::Host(host.name.clone()), self.api_for_new_hosts);
        if host.fields.powered() {
            self.cluster.sim.lock().switch_on(&host.name);
        }
        if let Some(mode) = host.fields.mode {
            self.mode(std::slice::from_ref(&host.name), mode.word())?;
        }
        Ok(())
    }

    fn set_vm(&mut self, vm: &str, fields: &VmFields) -> Answer {
        self.remember(vm, fields);
        self.profile(vm);
        let mut spec = objects::vm_spec(fields);
        let binds = fields.together_with.is_some()
            || fields.apart_from.is_some()
            || fields.prefers_together_with.is_some()
            || fields.prefers_apart_from.is_some();
        if binds {
            let now = self.vms.get(vm).cloned().unwrap_or_default();
            let bound = objects::binds(vm, &now, &self.rules);
            objects::merge(&mut spec["placement"], bound.into());
        }
        if let Some(storage) = &fields.storage {
            // The API says that a disk can't go to another storage.
            let path = format!("{vm}.qcow2");
            spec["disks"] =
                json!([{"name": "disk0", "storage": storage, "existing": {"path": path}}]);
        }
        if spec.as_object().is_none_or(serde_json::Map::is_empty) {
            return Ok(());
        }
        self.patch(&ObjectRef::vm(vm), &json!({"spec": spec}))
    }

    fn set_host(&mut self, host: &str, fields: &HostFields) -> Answer {
        let old = self.hosts.get(host).cloned().unwrap_or_default();
        self.hosts.insert(host.to_owned(), fields.clone().or(&old));
        if let Some(fencing) = &fields.fencing {
            let levels = objects::levels(host, fencing);
            for device in levels.iter().flatten() {
                self.build_device_of(host, device, &levels).map_err(|e| e.to_string())?;
            }
            if let Some(m) = self.cluster.sim.lock().machines.get_mut(host) {
                m.levels = levels;
            }
            if *fencing == Fencing::SelfFence
                && !self.scenario.policy.contains_key("acceptedProofs")
            {
                let proofs = json!([["Power"], ["Elapsed"], ["Human"]]);
                self.policy(&json!({"spec": {"acceptedProofs": proofs}}))?;
            }
        }
        {
            let mut world = self.cluster.sim.lock();
            if let Some(m) = world.machines.get_mut(host) {
                m.cpu = fields.cpu.and_then(|n| i32::try_from(n).ok()).unwrap_or(m.cpu);
                let memory = fields.memory_mib.and_then(|n| i64::try_from(n).ok());
                m.memory_mib = memory.unwrap_or(m.memory_mib);
                m.boot_ms = fields.boot.unwrap_or(m.boot_ms);
                m.watchdog = fields.watchdog.map_or(m.watchdog, setup::watchdog);
            }
            match fields.powered {
                Some(true) => world.switch_on(host),
                Some(false) => world.go_down(host, GoingDown::Shutdown),
                None => {}
            }
        }
        let mut patch = json!({"spec": objects::host_spec(host, fields)});
        if let Some(labels) = &fields.labels {
            patch["metadata"]["labels"] = json!(labels);
        }
        self.patch(&ObjectRef::host(host), &patch)
    }

    fn set_rule(&mut self, rule: &Rule) -> Answer {
        self.rules.push(rule.clone());
        for vm in &rule.vms {
            if self.user().get("VirtualMachine", Some("default"), vm).is_none() {
                // It is bound by the rule once it is added.
                continue;
            }
            let now = self.vms.get(vm).cloned().unwrap_or_default();
            let bound = objects::binds(vm, &now, &self.rules);
            self.patch(&ObjectRef::vm(vm), &json!({"spec": {"placement": bound}}))?;
        }
        Ok(())
    }

    /// Uid of a host and the boot that it was last seen in. Of one that is not declared any more its
    /// certificate, or a VM that is placed there, still says so.
    fn last_boot(&self, host: &str) -> Result<(String, String), String> {
        let admin = self.user();
        let of = |value: &Value, uid: &str| {
            let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
            (text(uid), text("bootId"))
        };
        if let Some(object) = admin.get("Host", None, host) {
            let (uid, boot) = of(&object.value["status"], "hostUid");
            if boot.is_empty() {
                return Err(format!("{host} was never seen to boot: there is nothing to confirm"));
            }
            return Ok((uid, boot));
        }
        let fences = admin.list("HostFence", None);
        let fence = fences.iter().rfind(|f| f.value["spec"]["host"] == host);
        if let Some(fence) = fence {
            return Ok(of(&fence.value["spec"], "hostUid"));
        }
        let vms = admin.list("VirtualMachine", None);
        let placed = vms.iter().filter_map(|vm| vm.value["status"]["placements"].as_array());
        let there = placed.flatten().rfind(|p| p["host"] == host);
        there
            .map(|placed| of(placed, "hostUid"))
            .ok_or_else(|| format!("there is no Host {host:?}, and no VM is placed there"))
    }

    /// A human's word on the certificate of the boot that a host was last seen in; its name.
    fn confirm_dead(&self, host: &str, reason: Option<&str>) -> Result<Name, String> {
        let word = json!({
            "reason": reason.unwrap_or("seen with my own eyes"),
            "by": "user", "althoughDeviceReadsOn": true,
        });
        let admin = self.user();
        let (uid, boot_id) = self.last_boot(host)?;
        let of = |f: &std::sync::Arc<crate::kube::Object>| {
            f.value["spec"]["host"] == host && f.value["spec"]["bootId"] == boot_id.as_str()
        };
        let open = admin.list("HostFence", None).into_iter().find(of);
        if let Some(fence) = open {
            let name = fence.value["metadata"]["name"].as_str().unwrap_or_default().to_owned();
            let patch = json!({"spec": {"confirmation": word}});
            said(admin.apply_merge("HostFence", None, &name, &patch, false))?;
            return Ok(name);
        }
        let name = host_fence_name(host, &boot_id);
        let spec = json!({
            "host": host, "hostUid": uid, "bootId": boot_id,
            "reason": "confirmed by a human", "confirmation": word,
        });
        said(admin.create(&objects::object("HostFence", &name, None, spec)))?;
        Ok(name)
    }
}

fn said(answer: Result<Value, Refusal>) -> Answer {
    answer.map(|_| ()).map_err(|refusal| refusal.message)
}

fn processes(word: Process) -> &'static [Which] {
    match word {
        Process::Agent => &[Which::Agent],
        Process::Beat => &[Which::Beat],
        Process::Feeder => &[Which::Feeder],
        Process::All => &[Which::Agent, Which::Beat, Which::Feeder],
    }
}

fn fail_op(word: FailOp) -> model::FailOp {
    match word {
        FailOp::Start => model::FailOp::Start,
        FailOp::Stop => model::FailOp::Stop,
        FailOp::Kill => model::FailOp::Kill,
        FailOp::Migrate => model::FailOp::Migrate,
        FailOp::Journal => model::FailOp::Journal,
    }
}
