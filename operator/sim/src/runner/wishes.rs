//! Judges what is placed by what users want, as the API's writes say it (S17, S20).

use std::collections::BTreeMap;

use serde_json::Value;

use crate::kube::Write;
use crate::oracle::Rule;
use crate::world::World;
use crate::world::event::Doer;

/// A rule that is this old is known to everyone who may place a VM, and a placement too where the
/// API was in trouble, milliseconds.
const KNOWN_MS: u64 = 20_000;

/// VMs as the API has them.
#[derive(Default)]
pub(super) struct Wishes {
    vms: BTreeMap<String, Vm>,
}

struct Vm {
    object: Value,
    /// When its strict rules were last changed, milliseconds of the world.
    bound_at: u64,
    /// When each epoch was first seen.
    placed_at: BTreeMap<i64, u64>,
}

fn epochs(object: &Value) -> impl Iterator<Item = (i64, &Value)> {
    let placed = object["status"]["placements"].as_array().into_iter().flatten();
    placed.filter_map(|p| Some((p["epoch"].as_i64()?, p)))
}

fn is_open(placed: &Value) -> bool {
    matches!(placed["state"].as_str(), Some("Ordered" | "Incoming"))
}

fn names<'a>(object: &'a Value, rule: &str) -> impl Iterator<Item = &'a str> {
    let named = object["spec"]["placement"][rule].as_array().into_iter().flatten();
    named.filter_map(Value::as_str)
}

/// Why a VM is not to be started, if it is not.
fn unwanted(object: &Value) -> Option<&'static str> {
    let (spec, status) = (&object["spec"], &object["status"]);
    let is = |flag: &str| status[flag].as_bool() == Some(true);
    let given_up = &status["failures"]["errorGeneration"];
    match spec["runPolicy"].as_str().unwrap_or("Always") {
        _ if spec["management"] == "Watched" => Some("only watched"),
        _ if object["metadata"]["deletionTimestamp"].is_string() => Some("being deleted"),
        _ if given_up.is_i64() && *given_up == object["metadata"]["generation"] => Some("in error"),
        "Halted" => Some("to be stopped"),
        "Manual" if !is("manualRun") => Some("not asked to run"),
        "RerunOnFailure" if is("completed") => Some("done"),
        _ => None,
    }
}

impl Wishes {
    /// A VirtualMachine was written.
    pub(super) fn written(&mut self, world: &mut World, write: &Write) {
        let now = world.now();
        let Some(after) = &write.after else {
            self.vms.remove(&write.name);
            return;
        };
        let object = &after.value;
        let new = Vm { object: Value::Null, bound_at: now, placed_at: BTreeMap::new() };
        let vm = self.vms.entry(write.name.clone()).or_insert(new);
        if vm.object["spec"]["placement"] != object["spec"]["placement"] {
            vm.bound_at = now;
        }
        let adopted = |value: &Value| {
            let handled = value["status"]["lastHandledRequest"].as_str().unwrap_or_default();
            handled.starts_with("adopt/").then(|| handled.to_owned())
        };
        // A human's word that a copy is the VM is about where it is, and what it does.
        let by_word = adopted(object).is_some() && adopted(object) != adopted(&vm.object);
        let mut placed = Vec::new();
        for (epoch, p) in epochs(object).filter(|(_, p)| is_open(p)) {
            if vm.placed_at.insert(epoch, now).is_none() && !by_word {
                let host = p["host"].as_str().unwrap_or_default().to_owned();
                placed.push((host, p["state"] == "Incoming"));
            }
        }
        vm.placed_at.retain(|epoch, _| epochs(object).any(|(e, _)| e == *epoch));
        vm.object = object.clone();
        for (host, incoming) in placed {
            self.judge(world, &write.name, &host, incoming);
        }
    }

    /// A VirtualMachineMigration was written.
    pub(super) fn moved(&self, world: &mut World, write: &Write) {
        let succeeded = |object: &Value| object["status"]["outcome"] == "Succeeded";
        let Some(after) = write.after.as_ref().filter(|after| succeeded(&after.value)) else {
            return;
        };
        if write.before.as_ref().is_some_and(|before| succeeded(&before.value)) {
            return;
        }
        let status = &after.value["status"];
        let vm = after.value["spec"]["vm"].as_str().unwrap_or_default();
        let uid = self.vms.get(vm).and_then(|vm| vm.object["metadata"]["uid"].as_str());
        let (Some(uid), Some(source), Some(epoch)) =
            (uid, status["source"].as_str(), status["epoch"].as_i64())
        else {
            return;
        };
        let left = world.machines.get(source).and_then(|m| m.qemus.get(uid));
        let left = left.filter(|q| q.epoch < epoch && q.by != Doer::Virsh);
        let broken = if let Some(left) = left {
            Some(format!("{vm} has moved, and epoch {} of it is left on {source}", left.epoch))
        } else {
            let ran = world.executed.contains(&(uid.to_owned(), epoch));
            (!ran).then(|| format!("{vm} has moved, and epoch {epoch} of it never ran"))
        };
        let at = world.since_zero();
        world.oracle.judge(at, Rule::LeftNothing, broken, false);
    }

    fn judge(&self, world: &mut World, name: &str, host: &str, incoming: bool) {
        let (at, now) = (world.since_zero(), world.now());
        let Some(vm) = self.vms.get(name) else { return };
        if !incoming {
            let broken = unwanted(&vm.object).map(|why| format!("{name} on {host}: it is {why}"));
            world.oracle.judge(at, Rule::WantedToRun, broken, false);
        }
        let mut required = names(&vm.object, "requiredHosts").peekable();
        if required.peek().is_some() {
            let broken = (!required.any(|h| h == host))
                .then(|| format!("{name} was placed on {host}, which it does not name"));
            world.oracle.judge(at, Rule::StrictRules, broken, false);
        }
        for (other, o) in self.vms.iter().filter(|(other, _)| *other != name) {
            let binds = |a: &Vm, b: &str| {
                names(&a.object, "apartFrom").any(|n| n == b) && a.bound_at + KNOWN_MS <= now
            };
            if !binds(vm, other) && !binds(o, name) {
                continue;
            }
            let there = epochs(&o.object).any(|(epoch, p)| {
                // Who places VMs knows at once where it has placed others.
                let late = if world.api_trouble { KNOWN_MS } else { 0 };
                let known = o.placed_at.get(&epoch).is_some_and(|at| at + late <= now);
                is_open(p) && p["host"] == host && known
            });
            let broken = there.then(|| format!("{name} was placed on {host} beside {other}"));
            // Two leaders see each other's placements late: that they are one is not promised.
            world.oracle.judge(at, Rule::StrictRules, broken, world.two_leaders);
        }
    }
}
