//! Brings a cluster to second 0.

use std::time::Duration;

use serde_json::{Value, json};
use stockade_core::vm::resolve;
use stockade_core::world::{Key, World};
use stockade_crds::names::{AGENT_OBJECT, REQUEST_ANNOTATION, host_namespace};
use stockade_crds::v1alpha1::{
    DomainSpec, GoingDown, HostAgent, LockManager, SharedStorage, StorageKind as CrdStorageKind,
    VirtualMachine, VmReference, Want,
};

use super::super::ast::{HostFields, HostSetup, Load, Scenario, VmFields, VmSetup};
use super::super::words::{HostMode, Recovery, Run as RunPolicy, StorageKind, Watchdog, Word as _};
use super::{RunError, Stage, objects};
use crate::runner::{ClusterError, mount_path};
use crate::world::model::{Kernel, Profile, WatchdogKind};
use crate::world::power::Build;

/// Longest time until all hosts are Ready, and until the VMs of second 0 run: a cluster without
/// faults needs seconds.
const PATIENCE: Duration = Duration::from_secs(300);
/// How long nobody may have written for the cluster to be quiet, and how long that is waited for.
const QUIET: (Duration, Duration) = (Duration::from_secs(4), Duration::from_secs(60));
/// How often it is looked.
const LOOK: Duration = Duration::from_millis(250);

impl Stage {
    /// Applies an object as a user, at once.
    pub(super) fn apply(&self, object: &Value) -> Result<(), ClusterError> {
        self.provide(object);
        self.cluster.apply(object)
    }

    /// What an object takes for granted is there: the storage behind a SharedStorage, and the
    /// files that a VirtualMachine calls existing.
    pub(super) fn provide(&self, object: &Value) {
        match object["kind"].as_str() {
            Some("SharedStorage") => self.make_store(object),
            Some("VirtualMachine") => self.make_disks(object),
            _ => {}
        }
    }

    fn make_store(&self, object: &Value) {
        let (name, spec) = (object["metadata"]["name"].as_str(), &object["spec"]);
        let (Some(name), Some(mount)) = (name, spec["mountPath"].as_str()) else { return };
        let kind = match StorageKind::declared(object) {
            StorageKind::Nfs => CrdStorageKind::NFS,
            StorageKind::Ocfs2 => CrdStorageKind::OCFS2,
            StorageKind::SharedDirectory => CrdStorageKind::SharedDirectory,
        };
        let served = ["/nfs/servedBy", "/ocfs2/iscsi/servedBy", "/ocfs2/aoe/servedBy"];
        let by = served.iter().find_map(|at| spec.pointer(at)?.as_str()).map(str::to_owned);
        self.cluster.build_storage(name, kind, mount.trim_end_matches('/'), by);
    }

    fn make_disks(&self, object: &Value) {
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or("default");
        for disk in object["spec"]["disks"].as_array().into_iter().flatten() {
            let storage = disk["storage"].as_str().unwrap_or_default();
            if let Some(path) = disk["existing"]["path"].as_str() {
                let whole = format!("{}/{namespace}/{path}", self.mount_of(storage));
                self.cluster.sim.lock().make_disk(storage, &whole);
            }
        }
    }

    /// Where hosts see a storage.
    pub(super) fn mount_of(&self, storage: &str) -> String {
        let world = self.cluster.sim.lock();
        world.stores.get(storage).map_or_else(|| mount_path(storage), |s| s.mount.clone())
    }

    /// What a VM's guest does, by its shorthand.
    pub(super) fn profile(&self, name: &str) {
        let fields = self.vms.get(name).cloned().unwrap_or_default();
        let load = fields.load.unwrap_or_default();
        let profile = Profile {
            stop_ms: fields.stop(),
            migrate_ms: fields.migrate(),
            load_cpu: load.cpu,
            load_memory_mib: load.memory_mib.and_then(|m| i64::try_from(m).ok()),
        };
        self.cluster.sim.lock().profiles.insert(name.to_owned(), profile);
    }

    /// The VirtualMachine of second 0 or of an `add`.
    pub(super) fn vm_object(&self, setup: &VmSetup) -> Value {
        setup.manifest.clone().unwrap_or_else(|| {
            let storage = self.storage_of(&setup.fields);
            objects::vm(&setup.name, &setup.fields, &self.rules, &storage)
        })
    }

    fn storage_of(&self, fields: &VmFields) -> String {
        let first = self.scenario.storage.first().map(|s| s.name.clone());
        fields.storage.clone().or(first).unwrap_or_else(|| "vms".to_owned())
    }

    /// Declares and builds a host with its devices, without power.
    pub(super) fn build_host(&mut self, setup: &HostSetup) -> Result<(), ClusterError> {
        let fields = &setup.fields;
        let fencing = fields.fencing();
        let levels = objects::levels(&setup.name, &fencing);
        for device in levels.iter().flatten() {
            self.build_device_of(&setup.name, device, &levels)?;
        }
        let declared = HostFields { fencing: Some(fencing), ..fields.clone() };
        let mut object =
            setup.manifest.clone().unwrap_or_else(|| objects::host(&setup.name, &declared));
        // Whatever is to be there at second 0 has to come first.
        object["spec"]["mode"] = HostMode::Active.word().into();
        self.cluster.apply(&object)?;
        self.hosts.insert(setup.name.clone(), fields.clone());
        // Declared anew it is the machine that it was.
        if self.cluster.sim.lock().machines.contains_key(&setup.name) {
            return Ok(());
        }
        self.cluster.sim.lock().build(Build {
            name: setup.name.clone(),
            cpu: i32::try_from(fields.cpu()).unwrap_or(i32::MAX),
            memory_mib: i64::try_from(fields.memory_mib()).unwrap_or(i64::MAX),
            boot_ms: fields.boot(),
            watchdog: watchdog(fields.watchdog()),
            levels,
        });
        Ok(())
    }

    /// A device that a host names and no list declares: one of its own.
    pub(super) fn build_device_of(
        &self,
        host: &str,
        device: &str,
        levels: &[Vec<String>],
    ) -> Result<(), ClusterError> {
        let declared = self.cluster.sim.lock().devices.contains_key(device);
        if !declared {
            let mut setup = objects::bmc(host);
            device.clone_into(&mut setup.name);
            // The devices of a level that only together cut the power are outlets.
            let outlet = levels.iter().any(|l| l.len() > 1 && l.iter().any(|d| d == device));
            self.cluster.build_device(device, setup.plugs.clone(), outlet);
            for object in objects::fence_device(&setup) {
                self.cluster.apply(&object)?;
            }
        }
        Ok(())
    }

    /// Wires and declares the devices of `fenceDevices`, or of an `add`.
    pub(super) fn build_device(
        &self,
        setup: &super::super::ast::FenceDeviceSetup,
    ) -> Result<(), ClusterError> {
        let levels_with = |host: &HostSetup| match host.fields.fencing() {
            super::super::ast::Fencing::Levels(levels) => {
                levels.into_iter().filter(|l| l.contains(&setup.name)).collect()
            }
            _ => Vec::new(),
        };
        let hosts = &self.scenario.hosts;
        // A device without plugs is wired to the hosts that name it.
        let mut setup = setup.clone();
        if setup.manifest.is_none() && setup.plugs.is_empty() {
            let wired = hosts.iter().filter(|h| !levels_with(h).is_empty());
            setup.plugs = wired.map(|h| (h.name.clone(), "1".to_owned())).collect();
        }
        let setup = &setup;
        let switches = ["fence_apc", "fence_raritan", "fence_eaton", "fence_pdu"];
        let agent = setup.agent.as_deref().unwrap_or_default();
        let outlet = hosts.iter().any(|h| levels_with(h).iter().any(|l| l.len() > 1))
            || switches.iter().any(|s| agent.starts_with(s));
        let plugs = match &setup.manifest {
            Some(object) => object["spec"]["plugs"]
                .as_object()
                .into_iter()
                .flatten()
                .map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned()))
                .collect(),
            None => setup.plugs.clone(),
        };
        self.cluster.build_device(&setup.name, plugs, outlet);
        match &setup.manifest {
            Some(object) => self.cluster.apply(object)?,
            None => {
                for object in objects::fence_device(setup) {
                    self.cluster.apply(&object)?;
                }
            }
        }
        Ok(())
    }

    /// Everything up to second 0.
    pub(super) async fn bring_up(&mut self) -> Result<(), RunError> {
        let scenario = self.scenario.clone();
        let mut policy = objects::policy(&scenario);
        // A policy that is paused is paused last of all: the cluster has to come up first.
        let automation = policy["spec"].as_object_mut().and_then(|spec| spec.remove("automation"));
        let paused = automation.is_some_and(|value| value == "Paused");
        self.cluster.apply(&policy)?;
        for storage in &scenario.storage {
            let declared = scenario.manifests.iter().any(|m| {
                m.kind() == "LockManager" && m.object["spec"]["storage"] == storage.name.as_str()
            });
            self.apply(&objects::storage(storage))?;
            if !declared && let Some(locks) = objects::lock_manager(storage) {
                self.apply(&locks)?;
            }
        }
        for device in &scenario.fence_devices {
            self.build_device(device)?;
        }
        let machines = |m: &&super::super::ast::Manifest| m.kind() == "VirtualMachine";
        for manifest in scenario.manifests.iter().filter(|m| !machines(m)) {
            self.apply(&manifest.object)?;
        }
        for host in &scenario.hosts {
            self.build_host(host)?;
            self.cluster.sim.lock().boot_now(&host.name);
        }
        for _ in 0..scenario.controllers {
            self.cluster.start_controller();
        }
        let hosts: Vec<String> = scenario.hosts.iter().map(|h| h.name.clone()).collect();
        self.until("all hosts are Ready", |stage| {
            let ready = |h: &String| stage.word("Host", h).as_deref() == Some("Ready");
            hosts.iter().find(|h| !ready(h)).map(|h| stage.describe("Host", h))
        })
        .await?;
        self.make_room(&scenario, true);
        self.place_hosted().await?;
        self.make_room(&scenario, false);
        self.until("hosts report their own size", |stage| {
            let reported = |host: &HostSetup| {
                let namespace = host_namespace(&host.name);
                let agent: Option<HostAgent> =
                    stage.cluster.api.admin().get_as(Some(&namespace), AGENT_OBJECT);
                agent.and_then(|a| a.status).is_some_and(|s| {
                    u32::try_from(s.cpu).ok() == Some(host.fields.cpu())
                        && u64::try_from(s.memory_mib).ok() == Some(host.fields.memory_mib())
                })
            };
            scenario.hosts.iter().find(|h| !reported(h)).map(|h| stage.describe("Host", &h.name))
        })
        .await?;
        self.switch_off_those_that_are_off().await?;
        for host in &scenario.hosts {
            if host.fields.mode() != HostMode::Active {
                let patch = json!({"spec": {"mode": host.fields.mode().word()}});
                self.user_patch("Host", &host.name, &patch)?;
            }
        }
        // What of the state at second 0 asks for moves gets them after it.
        self.cluster.api.faults().bar_creation("VirtualMachineMigration", true);
        for vm in scenario.vms.iter().filter(|v| v.host.is_some() && v.fields.managed()) {
            self.final_placement(vm)?;
        }
        // Ready hosts may be mounting yet: all of them are there to choose from.
        self.until_quiet().await;
        for vm in scenario.vms.iter().filter(|v| v.host.is_none()) {
            self.apply(&self.vm_object(vm))?;
        }
        for manifest in scenario.manifests.iter().filter(machines) {
            self.apply(&manifest.object)?;
        }
        self.until_placed().await;
        self.until_quiet().await;
        if paused {
            let patch = json!({"spec": {"automation": "Paused"}});
            self.user_patch("AvailabilityPolicy", "default", &patch)?;
            self.until_quiet().await;
        }
        Ok(())
    }

    /// This instant is second 0; what was held back until then is let go.
    pub(super) fn begin(&mut self) -> Result<(), RunError> {
        self.cluster.api.faults().bar_creation("VirtualMachineMigration", false);
        self.cluster.sim.lock().begin();
        let scenario = self.scenario.clone();
        for vm in scenario.vms.iter().filter(|v| self.was_off(v)) {
            if vm.fields.run() != RunPolicy::Halted {
                let mut patch = json!({"spec": {"runPolicy": vm.fields.run().word()}});
                // What it was asked for so that it had run there once is over.
                if vm.fields.run() == RunPolicy::Manual {
                    patch["metadata"]["annotations"] = json!({REQUEST_ANNOTATION: "stop/begin"});
                }
                self.user_patch("VirtualMachine", &vm.name, &patch)?;
            }
        }
        Ok(())
    }

    /// Gives hosts room for all VMs that are to run there, or their own size again: what runs at
    /// second 0 may be more than a host would be given.
    fn make_room(&self, scenario: &Scenario, wide: bool) {
        let mut world = self.cluster.sim.lock();
        for host in &scenario.hosts {
            let on_it = || scenario.vms.iter().filter(|vm| vm.host.as_ref() == Some(&host.name));
            let cpu: u32 = on_it().map(|vm| vm.fields.cpu()).sum();
            let memory: u64 = on_it().map(|vm| vm.fields.memory_mib()).sum();
            let (most_cpu, most_memory) = (host.fields.cpu(), host.fields.memory_mib());
            let Some(machine) = world.machines.get_mut(&host.name) else { continue };
            let (cpu, memory) = if wide {
                (cpu.max(most_cpu), memory.max(most_memory))
            } else {
                (most_cpu, most_memory)
            };
            machine.cpu = i32::try_from(cpu).unwrap_or(i32::MAX);
            machine.memory_mib = i64::try_from(memory).unwrap_or(i64::MAX);
        }
    }

    /// Whether a VM waits for its host when that goes down, so that it need not be stopped first.
    fn waits_for_its_host(&self, vm: &VmSetup) -> bool {
        let frozen = self.scenario.policy.get("hostShutdown").is_some_and(|how| how == "Freeze");
        vm.fields.run() == RunPolicy::Always
            && (frozen || vm.fields.recovery == Some(Recovery::None))
    }

    /// Whether a VM is to have run last on a host that is off.
    fn was_off(&self, vm: &VmSetup) -> bool {
        vm.host.as_ref().is_some_and(|host| {
            self.scenario.hosts.iter().any(|h| h.name == *host && !h.fields.powered())
        })
    }

    /// VMs with a `host` run there; then those that are to be stopped are stopped.
    async fn place_hosted(&mut self) -> Result<(), RunError> {
        let scenario = self.scenario.clone();
        let mut hosted: Vec<(&VmSetup, &String)> =
            scenario.vms.iter().filter_map(|vm| Some((vm, vm.host.as_ref()?))).collect();
        // Nobody stops what is only watched: it runs from the beginning, or never did.
        let idle = |vm: &VmSetup| vm.fields.run() == RunPolicy::Halted || self.was_off(vm);
        let watched = |vm: &VmSetup| !vm.fields.managed();
        for (vm, _) in hosted.extract_if(.., |(vm, _)| watched(vm) && idle(vm)) {
            self.apply(&self.vm_object(vm))?;
        }
        for (vm, host) in &hosted {
            let mut object = self.vm_object(vm);
            if watched(vm) {
                self.apply(&object)?;
                self.hand_start(&vm.name, host, false)?;
                continue;
            }
            object["spec"]["placement"] = json!({"requiredHosts": [host]});
            if vm.fields.run() == RunPolicy::Manual {
                object["metadata"]["annotations"] = json!({REQUEST_ANNOTATION: "start/begin"});
            } else if vm.fields.run() == RunPolicy::Halted {
                object["spec"]["runPolicy"] = "Always".into();
            }
            self.apply(&object)?;
        }
        self.until("VMs run where they are to", |stage| {
            let runs = |vm: &VmSetup, host: &String| {
                let shown = !vm.fields.managed()
                    || stage.word("VirtualMachine", &vm.name).as_deref() == Some("Running");
                shown && stage.cluster.running(&vm.name) == [host.clone()]
            };
            hosted
                .iter()
                .find(|(vm, host)| !runs(vm, host))
                .map(|(vm, _)| stage.describe("VirtualMachine", &vm.name))
        })
        .await?;
        let stopped: Vec<&VmSetup> = hosted
            .iter()
            .map(|(vm, _)| *vm)
            .filter(|vm| {
                vm.fields.run() == RunPolicy::Halted
                    || (self.was_off(vm) && !self.waits_for_its_host(vm))
            })
            .collect();
        for vm in &stopped {
            let patch = json!({"spec": {"runPolicy": "Halted"}});
            self.user_patch("VirtualMachine", &vm.name, &patch)?;
        }
        self.until("VMs are stopped", |stage| {
            let is = |vm: &VmSetup| stage.word("VirtualMachine", &vm.name);
            let running = |vm: &&&VmSetup| is(vm).as_deref() != Some("Stopped");
            stopped.iter().find(running).map(|vm| stage.describe("VirtualMachine", &vm.name))
        })
        .await
    }

    async fn switch_off_those_that_are_off(&mut self) -> Result<(), RunError> {
        let scenario = self.scenario.clone();
        let off: Vec<&HostSetup> = scenario.hosts.iter().filter(|h| !h.fields.powered()).collect();
        for host in &off {
            self.cluster.sim.lock().go_down(&host.name, GoingDown::Shutdown);
        }
        self.until("hosts that are off have shut down", |stage| {
            let world = stage.cluster.sim.lock();
            let down = |h: &HostSetup| {
                world.machines.get(&h.name).is_some_and(|m| m.kernel == Kernel::Off)
            };
            let found = off.iter().find(|h| !down(h)).map(|h| h.name.clone());
            drop(world);
            found.map(|name| stage.describe("Host", &name))
        })
        .await?;
        self.until("hosts that are off are known to be", |stage| {
            let known = |h: &HostSetup| stage.word("Host", &h.name).as_deref() == Some("Stopped");
            off.iter().find(|h| !known(h)).map(|h| stage.describe("Host", &h.name))
        })
        .await
    }

    /// In place of the host that a VM was bound to for its start: what its shorthand says.
    fn final_placement(&self, vm: &VmSetup) -> Result<(), RunError> {
        let object = self.vm_object(vm);
        let empty = json!({
            "requiredHosts": [], "preferredHosts": [], "failback": false, "togetherWith": [],
            "apartFrom": [], "prefersTogetherWith": [], "prefersApartFrom": [], "hostSelector": null,
        });
        let mut placement = empty;
        objects::merge(&mut placement, object["spec"]["placement"].clone());
        if placement.is_null() {
            placement = json!({"requiredHosts": []});
        }
        let patch = json!({"spec": {"placement": placement}});
        self.user_patch("VirtualMachine", &vm.name, &patch)
    }

    /// A VM of which nobody says where it runs: placed, or said why not.
    async fn until_placed(&self) {
        let all = || {
            self.cluster.api.admin().list("VirtualMachine", None).into_iter().all(|vm| {
                let word = vm.value["status"]["printableStatus"].as_str().unwrap_or_default();
                let wants = vm.value["spec"]["runPolicy"].as_str();
                match word {
                    "Running" | "Unplaceable" | "Blocked" | "Error" | "Unmanaged" | "Held"
                    | "Recovering" => true,
                    "Stopped" => wants != Some("Always"),
                    _ => false,
                }
            })
        };
        let mut waited = Duration::ZERO;
        while !all() && waited < Duration::from_secs(60) {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }

    async fn until_quiet(&self) {
        let mut writes = self.cluster.api.admin().subscribe();
        let (mut quiet, mut waited) = (Duration::ZERO, Duration::ZERO);
        while quiet < QUIET.0 && waited < QUIET.1 {
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
            quiet += LOOK;
            while let Ok(write) = writes.try_recv() {
                if write.kind != "Lease" {
                    quiet = Duration::ZERO;
                }
            }
        }
    }

    async fn until(
        &self,
        what: &str,
        missing: impl Fn(&Self) -> Option<String>,
    ) -> Result<(), RunError> {
        let mut waited = Duration::ZERO;
        loop {
            let Some(first) = missing(self) else { return Ok(()) };
            if waited >= PATIENCE {
                let text = format!("{what}: {first}");
                return Err(ClusterError::NotReached(text).into());
            }
            tokio::time::sleep(LOOK).await;
            waited += LOOK;
        }
    }

    /// The STATUS column of an object.
    pub(super) fn word(&self, kind: &str, name: &str) -> Option<String> {
        let object = self.cluster.api.admin().get(kind, Some("default"), name)?;
        object.value["status"]["printableStatus"].as_str().map(str::to_owned)
    }

    fn describe(&self, kind: &str, name: &str) -> String {
        let object = self.cluster.api.admin().get(kind, Some("default"), name);
        let status = object.map(|o| o.value["status"].clone()).unwrap_or_default();
        let ready = status["conditions"]
            .as_array()
            .and_then(|c| c.iter().find(|c| c["type"] == "Ready"))
            .map(|c| format!("{}: {}", c["reason"], c["message"]).replace('"', ""))
            .unwrap_or_default();
        format!("{name} is {} ({ready})", status["printableStatus"]).replace('"', "")
    }

    /// A patch by a user that no rule of ours should refuse.
    fn user_patch(&self, kind: &str, name: &str, patch: &Value) -> Result<(), RunError> {
        let admin = self.cluster.api.admin().named("user");
        let refused = |e: crate::kube::Refusal| ClusterError::Refused {
            what: format!("{kind} {name}"),
            message: e.message,
        };
        admin.apply_merge(kind, Some("default"), name, patch, false).map_err(refused)?;
        Ok(())
    }

    /// Someone starts a VM with libvirt, past the hook; `unlocked`: past the lock manager too.
    pub(super) fn hand_start(&self, vm: &str, host: &str, unlocked: bool) -> Result<(), RunError> {
        let admin = self.cluster.api.admin();
        let refused = |why: String| {
            RunError::from(ClusterError::Refused { what: format!("start of {vm}"), message: why })
        };
        let object: VirtualMachine = admin
            .get_as(Some("default"), vm)
            .ok_or_else(|| refused("there is no such VM".to_owned()))?;
        let mut world = World::default();
        for storage in admin.list_as::<SharedStorage>(None) {
            let name = storage.metadata.name.clone().unwrap_or_default();
            world.storages.insert(name, storage.into());
        }
        for locks in admin.list_as::<LockManager>(None) {
            let name = locks.metadata.name.clone().unwrap_or_default();
            world.lock_managers.insert(name, locks.into());
        }
        let machine = resolve(&world, &object).map_err(|problems| {
            let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
            refused(text.join("; "))
        })?;
        let key = Key::of(&object.metadata);
        let order = DomainSpec {
            vm: VmReference {
                namespace: key.namespace,
                name: key.name,
                uid: object.metadata.uid.clone().unwrap_or_default(),
            },
            host_uid: String::new(),
            boot_id: String::new(),
            // Whoever starts it by hand knows nothing of epochs.
            epoch: 0,
            order_id: 0,
            want: Want::Running,
            settled: Vec::new(),
            settled_through: 0,
            paused: false,
            grace_seconds: 60,
            reset: None,
            migration: None,
            adopt: false,
            delete_disks: Vec::new(),
            machine,
        };
        let started = self.cluster.sim.lock().virsh_start(host, &order, unlocked);
        started.map_err(refused)
    }

    /// The fields of a VM in force: what a `set` changes is laid over what was.
    pub(super) fn remember(&mut self, name: &str, fields: &VmFields) {
        let now = self.vms.entry(name.to_owned()).or_default();
        *now = over(now.clone(), fields.clone());
    }
}

/// What a watchdog of this word is.
pub(super) fn watchdog(word: Watchdog) -> WatchdogKind {
    match word {
        Watchdog::Reset => WatchdogKind::Reset,
        Watchdog::Poweroff => WatchdogKind::PowerOff,
        Watchdog::Absent => WatchdogKind::Absent,
        Watchdog::Dead => WatchdogKind::Dead,
    }
}

/// The fields of `new` where it has them, else those of `old`.
fn over(old: VmFields, new: VmFields) -> VmFields {
    VmFields {
        run: new.run.or(old.run),
        cpu: new.cpu.or(old.cpu),
        memory_mib: new.memory_mib.or(old.memory_mib),
        load: match (new.load, old.load) {
            (Some(new), Some(old)) => Some(Load {
                cpu: new.cpu.or(old.cpu),
                memory_mib: new.memory_mib.or(old.memory_mib),
            }),
            (new, old) => new.or(old),
        },
        requires: new.requires.or(old.requires),
        prefers: new.prefers.or(old.prefers),
        failback: new.failback.or(old.failback),
        together_with: new.together_with.or(old.together_with),
        apart_from: new.apart_from.or(old.apart_from),
        prefers_together_with: new.prefers_together_with.or(old.prefers_together_with),
        prefers_apart_from: new.prefers_apart_from.or(old.prefers_apart_from),
        max_restarts: new.max_restarts.or(old.max_restarts),
        max_relocations: new.max_relocations.or(old.max_relocations),
        priority: new.priority.or(old.priority),
        recovery: new.recovery.or(old.recovery),
        migratable: new.migratable.or(old.migratable),
        migrate: new.migrate.or(old.migrate),
        stop: new.stop.or(old.stop),
        grace_seconds: new.grace_seconds.or(old.grace_seconds),
        managed: new.managed.or(old.managed),
        storage: new.storage.or(old.storage),
    }
}
