//! The state of a running cluster, as conditions ask for it.

use serde_json::Value;

use super::super::ast::{Name, ObjectRef};
use super::super::observe::{ConditionObs, View};
use super::super::words::Proof;
use crate::runner::Cluster;
use crate::world::model::{Kernel, Machine, QemuState};

/// Hosts and VMs as they are, objects as the API has them.
pub(super) struct ClusterView<'a>(pub &'a Cluster);

impl ClusterView<'_> {
    fn printed(&self, kind: &str, namespace: Option<&str>, name: &str) -> Option<String> {
        let object = self.0.api.admin().get(kind, namespace, name)?;
        let word = object.value["status"]["printableStatus"].as_str()?;
        (!word.is_empty()).then(|| word.to_owned())
    }

    fn machine<T>(&self, host: &str, ask: impl FnOnce(&Machine) -> T) -> Option<T> {
        self.0.sim.lock().machines.get(host).map(ask)
    }

    fn find(&self, object: &ObjectRef) -> Option<std::sync::Arc<crate::kube::Object>> {
        let admin = self.0.api.admin();
        admin.get(&object.kind, Some("default"), &object.name).or_else(|| {
            let named = |o: &std::sync::Arc<crate::kube::Object>| {
                o.value["metadata"]["name"].as_str() == Some(object.name.as_str())
            };
            admin.list(&object.kind, None).into_iter().find(named)
        })
    }
}

impl View for ClusterView<'_> {
    fn vm_hosts(&self, vm: &str) -> Vec<Name> {
        self.0.sim.lock().executing_vm(vm)
    }

    fn vm_migrating(&self, vm: &str) -> bool {
        let moves = |m: &Machine| {
            m.kernel == Kernel::Up && m.qemus.values().any(|q| q.vm == vm && q.moving_to.is_some())
        };
        self.0.sim.lock().machines.values().any(moves)
    }

    fn vm_lock_holder(&self, vm: &str) -> Option<Name> {
        let world = self.0.sim.lock();
        let mut uids = world.vm_names.iter().filter(|(_, name)| *name == vm);
        uids.find_map(|(uid, _)| world.lock_holder(uid))
    }

    fn vm_state(&self, vm: &str) -> Option<String> {
        self.printed("VirtualMachine", Some("default"), vm)
    }

    fn host_powered(&self, host: &str) -> bool {
        self.machine(host, Machine::powered).unwrap_or(false)
    }

    fn host_state(&self, host: &str) -> Option<String> {
        self.printed("Host", None, host)
    }

    fn host_proof(&self, host: &str) -> Option<Proof> {
        self.0.api.admin().list("HostFence", None).iter().find_map(|fence| {
            let status = &fence.value["status"];
            if fence.value["spec"]["host"].as_str() != Some(host) || status["revoked"].is_string() {
                return None;
            }
            match status["proof"].as_str()? {
                "Power" => Some(Proof::Power),
                "Elapsed" => Some(Proof::Elapsed),
                "Human" => Some(Proof::Human),
                _ => None,
            }
        })
    }

    fn host_armed(&self, host: &str) -> bool {
        self.machine(host, |m| m.feeding.timings.is_some()).unwrap_or(false)
    }

    fn host_agent_running(&self, host: &str) -> bool {
        self.machine(host, |m| m.kernel == Kernel::Up && m.agent.works()).unwrap_or(false)
    }

    fn host_vms(&self, host: &str) -> Vec<Name> {
        let running = |m: &Machine| {
            let runs = m.qemus.values().filter(|q| q.state == QemuState::Running);
            let mut names: Vec<Name> = runs.map(|q| q.vm.clone()).collect();
            names.sort();
            if m.executes() { names } else { Vec::new() }
        };
        self.machine(host, running).unwrap_or_default()
    }

    fn host_memory_mib(&self, host: &str) -> u64 {
        let sum = |m: &Machine| {
            let runs = m.qemus.values().filter(|q| q.state == QemuState::Running);
            let mib: i64 = runs.map(|q| q.memory_mib).sum();
            if m.executes() { u64::try_from(mib).unwrap_or(0) } else { 0 }
        };
        self.machine(host, sum).unwrap_or(0)
    }

    fn exists(&self, object: &ObjectRef) -> bool {
        self.find(object).is_some()
    }

    fn conditions(&self, object: &ObjectRef) -> Vec<ConditionObs> {
        let Some(object) = self.find(object) else { return Vec::new() };
        let text = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let conditions = object.value["status"]["conditions"].as_array();
        conditions
            .into_iter()
            .flatten()
            .map(|c| ConditionObs {
                type_: text(c, "type"),
                status: text(c, "status"),
                reason: text(c, "reason"),
                message: text(c, "message"),
            })
            .collect()
    }
}
