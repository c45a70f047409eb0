//! What happens in a cluster, as events of the format.

use std::collections::BTreeMap;

use serde_json::Value;
use stockade_crds::names::host_of_namespace;

use super::super::ast::Name;
use super::super::observe::SimEvent;
use super::super::words::{By, Word as _, WorldEvent};
use crate::kube::Write;
use crate::runner::Cluster;
use crate::world::event::{Doer, Seen};

/// Gathers events between two looks.
#[derive(Default)]
pub(super) struct Told {
    /// How many events of the world are told already.
    world: usize,
    /// How many calls of each device are.
    calls: BTreeMap<Name, usize>,
    writes: Vec<SimEvent>,
    changed: bool,
}

impl Told {
    /// Something was written to the API.
    pub(super) fn written(&mut self, write: &Write) {
        let Some(object) = write.after.as_ref().or(write.before.as_ref()) else { return };
        let object = &object.value;
        self.writes.push(api_write(write, object));
        // A beat changes nothing that a condition could ask for.
        if write.kind == "Lease" {
            return;
        }
        self.changed = true;
        if write.kind == "Event" && write.after.is_some() {
            self.writes.push(kubernetes_event(object));
        }
    }

    /// Something was done that is no event.
    pub(super) fn changed(&mut self) {
        self.changed = true;
    }

    /// The events since the last look, in order; and whether nothing can have changed.
    pub(super) fn news(&mut self, cluster: &Cluster, now: u64) -> (Vec<SimEvent>, bool) {
        let world = cluster.sim.lock();
        let seen = world.events.get(self.world..).unwrap_or_default();
        let mut events: Vec<SimEvent> = seen.iter().filter_map(of_world).collect();
        self.world = world.events.len();
        let touched = world.touches;
        drop(world);
        let written = std::mem::take(&mut self.writes);
        let quiet = events.is_empty() && !std::mem::take(&mut self.changed) && !touched;
        cluster.sim.lock().touches = false;
        events.extend(written.into_iter().map(|event| SimEvent { t: now, ..event }));
        (events, quiet)
    }

    /// The calls of fence devices since the last look.
    pub(super) fn calls(&mut self, cluster: &Cluster) -> Vec<(Name, BTreeMap<String, String>)> {
        let world = cluster.sim.lock();
        let mut calls = Vec::new();
        for device in world.devices.values() {
            let known = self.calls.entry(device.name.clone()).or_default();
            let new = device.calls.get(*known..).unwrap_or_default();
            calls.extend(new.iter().map(|call| (device.name.clone(), call.clone())));
            *known = device.calls.len();
        }
        calls
    }
}

fn of_world(seen: &Seen) -> Option<SimEvent> {
    let mut event = SimEvent::world(seen.at, WorldEvent::from_word(seen.what.word())?);
    event.vm.clone_from(&seen.vm);
    event.host.clone_from(&seen.host);
    event.to.clone_from(&seen.to);
    event.by = seen.by.map(|by| match by {
        Doer::Agent => By::Agent,
        Doer::Controller => By::Controller,
        Doer::Virsh => By::Virsh,
        Doer::User => By::User,
    });
    event.device.clone_from(&seen.device);
    event.holder.clone_from(&seen.holder);
    event.detail = (!seen.detail.is_empty()).then(|| seen.detail.clone());
    Some(event)
}

fn by(identity: &str) -> By {
    match identity.split('/').next() {
        Some("controller") => By::Controller,
        Some("host") => By::Agent,
        _ => By::User,
    }
}

fn api_write(write: &Write, object: &Value) -> SimEvent {
    let mut event = SimEvent::world(0, WorldEvent::Write);
    event.by = Some(by(&write.identity));
    event.object_kind = Some(write.kind.clone());
    match write.kind.as_str() {
        "VirtualMachine" => event.vm = Some(write.name.clone()),
        "Host" => event.host = Some(write.name.clone()),
        "Domain" => event.vm = object["spec"]["vm"]["name"].as_str().map(str::to_owned),
        "HostFence" => event.host = object["spec"]["host"].as_str().map(str::to_owned),
        "VirtualMachineMigration" => {
            event.vm = object["spec"]["vm"].as_str().map(str::to_owned);
        }
        _ => {}
    }
    if event.host.is_none() {
        let of = write.namespace.as_deref().and_then(host_of_namespace);
        event.host = of.map(str::to_owned);
    }
    event.detail = Some(format!("{} {}", format!("{:?}", write.verb).to_lowercase(), write.name));
    event
}

fn kubernetes_event(object: &Value) -> SimEvent {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut event = SimEvent::reason(0, &text(&object["reason"]));
    let about = if object["regarding"].is_null() {
        &object["involvedObject"]
    } else {
        &object["regarding"]
    };
    let (kind, name) = (text(&about["kind"]), text(&about["name"]));
    match kind.as_str() {
        "VirtualMachine" => event.vm = Some(name),
        "Host" => event.host = Some(name),
        _ => {}
    }
    event.object_kind = Some(kind);
    let note = if object["note"].is_null() { &object["message"] } else { &object["note"] };
    event.detail = Some(text(note));
    let who = text(&object["reportingController"]);
    event.by = if who.contains("agent") { Some(By::Agent) } else { Some(By::Controller) };
    event
}
