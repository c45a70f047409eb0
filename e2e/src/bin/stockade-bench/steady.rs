//! Row `plan`, whole plans: what the controller's loop costs where everything is as it should be,
//! and where everything starts at once.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};
use stockade_core::ha::evidence::{LeaseBeat, SeenBeat};
use stockade_core::plan::{Intent, Plan};
use stockade_core::planner;
use stockade_core::world::{Key, NamespaceFact, OrderKey, World};
use stockade_crds::v1alpha1::{Domain, DomainState, EpochState};

use crate::report::{Error, Figure, quantile};

const HOSTS: usize = 1_000;
const VMS: usize = 10_000;
/// Hosts that share a storage.
const RACK: usize = 50;
const N: usize = 10;

fn of<K: serde::de::DeserializeOwned>(value: Value) -> Result<Arc<K>, Error> {
    Ok(Arc::new(serde_json::from_value(value)?))
}

/// Hosts that beat, and VMs that nobody has looked at.
fn world() -> Result<World, Error> {
    let mut world = World { now: 100_000, fresh: true, ..World::default() };
    world.lives.limit = 5_000;
    let policy = json!({"metadata": {"name": "default", "generation": 1}, "spec": {}});
    world.policy = Some(of(policy)?);
    let racks = HOSTS / RACK;
    for number in 0..racks {
        let name = format!("rack-{number}");
        let storage = json!({
            "metadata": {"name": name, "generation": 1},
            "spec": {
                "mountPath": format!("/srv/{name}"), "directory": {},
                "hostSelector": {"rack": name},
            },
        });
        world.storages.insert(name, of(storage)?);
    }
    for number in 0..HOSTS {
        let (name, rack) = (format!("h{number}"), format!("rack-{}", number % racks));
        let meta = json!({"name": name, "generation": 1, "labels": {"rack": rack}});
        world.hosts.insert(name.clone(), of(json!({"metadata": meta, "spec": {}}))?);
        world.namespaces.insert(name.clone(), NamespaceFact { ours: true, terminating: false });
        let agent = json!({
            "metadata": {"name": "agent", "namespace": format!("stockade-host-{name}")},
            "spec": {},
            "status": {
                "hostUid": format!("uid-{name}"), "bootId": format!("boot-{name}"), "cpu": 64,
                "memoryMib": 262_144, "hypervisors": ["KVM"], "hookReady": true,
                "hypervisorReady": true, "storages": [{"name": rack, "ready": true}],
            },
        });
        world.agents.insert(name, of(agent)?);
    }
    for number in 0..VMS {
        let (name, rack) = (format!("vm{number}"), format!("rack-{}", number % racks));
        let vm = json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": format!("uid-{name}"),
                "generation": 1, "resourceVersion": "1", "finalizers": ["stockade.dev/settled"],
            },
            "spec": {"memory": "1Gi", "disks": [
                {"name": "root", "storage": rack, "existing": {"path": format!("{name}.img")}},
            ]},
        });
        world.vms.insert(Key::new("default", name), of(vm)?);
    }
    beat(&mut world, 1);
    beat(&mut world, 2);
    beat(&mut world, 3);
    Ok(world)
}

/// Every host beats once, on both paths.
fn beat(world: &mut World, counter: u64) {
    world.now += 1_000;
    let now = world.now;
    world.lives.echo(now, now);
    for number in 0..HOSTS {
        let racks = HOSTS / RACK;
        let peers = (number % racks..HOSTS).step_by(racks);
        let beats: BTreeMap<String, SeenBeat> = peers
            .map(|peer| {
                let boot = format!("boot-h{peer}");
                (format!("uid-h{peer}"), SeenBeat { boot, counter, still: Some(0) })
            })
            .collect();
        let lease = LeaseBeat {
            host_uid: format!("uid-h{number}"),
            boot_id: format!("boot-h{number}"),
            version: counter.to_string(),
            beats: [(format!("rack-{}", number % racks), beats)].into(),
            promised: 2_000,
        };
        world.lives.lease(&format!("h{number}"), lease, now);
    }
}

/// Carries a plan out as the API and the agents do when all goes well; how many VMs were placed.
fn carry_out(world: &mut World, plan: Plan) -> Result<usize, Error> {
    let mut placed = 0;
    for intent in plan.intents {
        match intent {
            Intent::WriteHostAgent { host, spec, .. } => {
                if let Some(agent) = world.agents.get_mut(&host) {
                    Arc::make_mut(agent).spec = spec;
                }
            }
            Intent::Place { vm, report, domains, .. } => {
                placed += 1;
                for write in domains {
                    let mut order = Domain::new(&write.vm_uid, write.spec);
                    let status = order.status.get_or_insert_default();
                    status.epoch = order.spec.epoch;
                    status.order_id = order.spec.order_id;
                    status.boot_id.clone_from(&order.spec.boot_id);
                    status.state = DomainState::Running;
                    let key = OrderKey::new(write.host, write.vm_uid);
                    world.domains.insert(key, Arc::new(order));
                }
                if let Some(vm) = world.vms.get_mut(&vm) {
                    Arc::make_mut(vm).status = Some(report.status);
                }
            }
            _ => {}
        }
    }
    for (key, report) in plan.vms {
        if let Some(vm) = world.vms.get_mut(&key) {
            Arc::make_mut(vm).status = Some(report.status);
        }
    }
    for (name, report) in plan.hosts {
        if let Some(host) = world.hosts.get_mut(&name) {
            Arc::make_mut(host).status = Some(report.status);
        }
    }
    world.tolerates = Some(plan.tolerates);
    Ok(placed)
}

/// Measures it.
///
/// # Errors
/// If the VMs are not placed.
pub fn run() -> Result<(), Error> {
    let mut world = world()?;
    let first = planner::plan(&world);
    carry_out(&mut world, first)?;
    // The storages are known now: everything can be placed.
    world.vms.values_mut().for_each(|vm| Arc::make_mut(vm).status = None);
    let begin = Instant::now();
    let all = planner::plan(&world);
    let took = begin.elapsed().as_secs_f64() * 1000.0;
    let placed = carry_out(&mut world, all)?;
    let open = |vm: &&Arc<stockade_crds::v1alpha1::VirtualMachine>| {
        let placements = vm.status.iter().flat_map(|s| &s.placements);
        placements.into_iter().any(|p| p.state != EpochState::Released)
    };
    let placed = placed.max(world.vms.values().filter(open).count());
    if placed != VMS {
        return Err(Error::Ours(format!("{placed} of {VMS} VMs were placed")));
    }
    Figure {
        row: "plan",
        figure: "whole plan that places 10000 VMs on 1000 hosts at once",
        unit: "ms",
        ours: took,
        n: 1,
        ..Figure::default()
    }
    .print()?;
    for _ in 0..2 {
        let plan = planner::plan(&world);
        carry_out(&mut world, plan)?;
    }
    let mut samples = Vec::new();
    for _ in 0..N {
        let begin = Instant::now();
        let plan = std::hint::black_box(planner::plan(&world));
        samples.push(begin.elapsed().as_secs_f64() * 1000.0);
        if plan.intents.iter().any(|intent| !matches!(intent, Intent::Event(_))) {
            return Err(Error::Ours(format!("{} writes in peace", plan.intents.len())));
        }
    }
    Figure {
        row: "plan",
        figure: "whole plan of 1000 hosts and 10000 VMs with nothing to do, P50",
        unit: "ms",
        ours: quantile(&mut samples, 0.5),
        n: N,
        ..Figure::default()
    }
    .print()
}
