//! The planner on small worlds, built from the manifests that people write.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use stockade_crds::v1alpha1::{EpochState, FenceAction, Host, HostAgent, ProofKind, VmState, Want};

use super::plan;
use crate::ha::evidence::{LeaseBeat, SeenBeat};
use crate::plan::{Intent, Plan};
use crate::world::{FenceRecord, FenceResult, Key, NamespaceFact, OrderKey, World};

mod brake;
mod fencing;
mod locks;
mod moves;
mod problems;
mod settled;
mod specs;
mod writes;

const UID: &str = "0b9c4d5e-0000-4000-8000-000000000101";

fn of<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
    Arc::new(serde_json::from_value(value).unwrap())
}

/// Three hosts that beat, one storage, one VM; `seconds` of beats have passed.
struct Bed {
    world: World,
    counter: u64,
}

impl Bed {
    fn new() -> Self {
        let mut world = World { fresh: true, cluster_id: "test".into(), ..World::default() };
        world.lives.limit = 5_000;
        world.policy = Some(of(json!({
            "metadata": {"name": "default", "generation": 1}, "spec": {},
        })));
        world.storages.insert(
            "vms".into(),
            of(json!({
                "metadata": {"name": "vms", "generation": 1},
                "spec": {"mountPath": "/srv/vms", "directory": {}},
            })),
        );
        for host in ["h1", "h2", "h3"] {
            world.namespaces.insert(host.into(), NamespaceFact { ours: true, terminating: false });
            let device = format!("bmc-{host}");
            world.fence_devices.insert(
                device.clone(),
                of(json!({
                    "metadata": {"name": device, "generation": 1},
                    "spec": {"agent": "fence_ipmilan", "plugs": {host: "1"}},
                    "status": {"observedGeneration": 1, "trustedHosts": [host]},
                })),
            );
            world.hosts.insert(
                host.into(),
                host_object(host, json!({"fencing": [{"devices": [device]}]})),
            );
            world.agents.insert(host.into(), agent_object(host, &format!("boot-{host}")));
        }
        let mut bed = Self { world, counter: 0 };
        bed.add_vm(json!({}), Value::Null);
        bed.beat(&["h1", "h2", "h3"], 10);
        bed
    }

    fn add_vm(&mut self, spec: Value, status: Value) {
        let mut object = json!({
            "metadata": {
                "name": "web", "namespace": "default", "uid": UID, "generation": 1,
                "resourceVersion": "7", "finalizers": ["stockade.dev/settled"],
            },
            "spec": {"memory": "1Gi", "disks": [
                {"name": "root", "storage": "vms", "format": "raw", "existing": {"path": "web.img"}},
            ]},
        });
        object["spec"].as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        if !status.is_null() {
            object["status"] = status;
        }
        self.world.vms.insert(Key::new("default", "web"), of(object));
    }

    /// Lets these hosts beat on both paths for so many seconds; the others are silent.
    fn beat(&mut self, alive: &[&str], seconds: u64) {
        for _ in 0..seconds {
            self.world.now += 1_000;
            self.world.wall_seconds += 1;
            self.counter += 1;
            let now = self.world.now;
            self.world.lives.echo(now, now);
            let beats: BTreeMap<String, SeenBeat> = alive
                .iter()
                .map(|h| {
                    let (boot, counter) = (self.boot(h), self.counter);
                    (format!("uid-{h}"), SeenBeat { boot, counter, still: None })
                })
                .collect();
            for host in alive {
                let lease = LeaseBeat {
                    host_uid: format!("uid-{host}"),
                    boot_id: self.boot(host),
                    version: self.counter.to_string(),
                    beats: [("vms".to_owned(), beats.clone())].into(),
                    promised: 2_000,
                };
                self.world.lives.lease(host, lease, now);
            }
        }
    }

    fn boot(&self, host: &str) -> String {
        self.world.agents[host].status.as_ref().unwrap().boot_id.clone()
    }

    fn placed(&mut self, host: &str, state: &str) {
        let boot = self.boot(host);
        self.add_vm(
            json!({}),
            json!({
                "epoch": 1, "host": host, "printableStatus": "Running",
                "placements": [{
                    "epoch": 1, "host": host, "hostUid": format!("uid-{host}"), "bootId": boot,
                    "state": state,
                }],
            }),
        );
    }

    fn domain(&mut self, host: &str, want: &str, status: Value) {
        let boot = self.boot(host);
        let machine =
            crate::vm::resolve(&self.world, &self.world.vms[&Key::new("default", "web")]).unwrap();
        self.world.domains.insert(OrderKey::new(host, UID), of(json!({
            "metadata": {"name": UID, "namespace": format!("stockade-host-{host}"), "uid": "d", "resourceVersion": "9", "generation": 1},
            "spec": {
                "vm": {"namespace": "default", "name": "web", "uid": UID}, "hostUid": format!("uid-{host}"),
                "bootId": boot, "epoch": 1, "orderId": 1, "want": want, "graceSeconds": 60,
                "machine": machine,
            },
            "status": status,
        })));
    }

    fn call(&mut self, host: &str, action: FenceAction, result: FenceResult, started: u64) {
        let read_off = |c: &FenceRecord| c.host == host && c.result == FenceResult::Off;
        let acts = action == FenceAction::Off && !self.world.fence_log.iter().any(read_off);
        self.world.fence_log.push(FenceRecord {
            acts,
            device: format!("bmc-{host}"),
            host: host.into(),
            boot_id: self.boot(host),
            generation: 1,
            action,
            started,
            finished: Some(started + 100),
            result,
        });
    }

    /// What the API holds once the plan's statuses of hosts are written.
    fn write_hosts(&mut self) {
        for (name, report) in plan(&self.world).hosts {
            let mut host = self.world.hosts[&name].as_ref().clone();
            host.status = Some(report.status);
            self.world.hosts.insert(name, Arc::new(host));
        }
    }

    /// The calls for a host once the API knows of those that cut its power.
    fn shots(&mut self, host: &str) -> Vec<FenceAction> {
        self.write_hosts();
        fence_calls(&plan(&self.world), host)
    }

    /// The VM runs on h1, and a certificate about that boot is open.
    fn doubted() -> Self {
        let mut bed = Self::new();
        bed.placed("h1", "Ordered");
        bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
        bed.certificate("h1", json!({}));
        bed
    }

    fn certificate(&mut self, host: &str, status: Value) {
        let name = stockade_crds::names::host_fence_name(host, &self.boot(host));
        self.world.fences.insert(
            name.clone(),
            of(json!({
                "metadata": {"name": name, "generation": 1, "resourceVersion": "3", "uid": "f"},
                "spec": {"host": host, "hostUid": format!("uid-{host}"), "bootId": self.boot(host)},
                "status": status,
            })),
        );
    }
}

fn host_object(name: &str, spec: Value) -> Arc<Host> {
    of(json!({"metadata": {"name": name, "generation": 1}, "spec": spec}))
}

fn agent_object(host: &str, boot: &str) -> Arc<HostAgent> {
    of(json!({
        "metadata": {"name": "agent", "namespace": format!("stockade-host-{host}")},
        "spec": {"storages": [{"name": "vms", "mountPath": "/srv/vms", "kind": "SharedDirectory"}]},
        "status": {
            "hostUid": format!("uid-{host}"), "bootId": boot, "cpu": 8, "memoryMib": 16384,
            "hypervisors": ["KVM"], "hookReady": true, "hypervisorReady": true,
            "storages": [{"name": "vms", "ready": true}],
        },
    }))
}

fn placements(plan: &Plan) -> Vec<(String, i64, Want)> {
    plan.intents
        .iter()
        .filter_map(|i| match i {
            Intent::Place { domains, .. } => {
                domains.first().map(|d| (d.host.clone(), d.spec.epoch, d.spec.want))
            }
            _ => None,
        })
        .collect()
}

fn orders(plan: &Plan) -> Vec<Want> {
    plan.intents
        .iter()
        .filter_map(|i| match i {
            Intent::WriteDomain(write) => Some(write.spec.want),
            _ => None,
        })
        .collect()
}

fn fence_calls(plan: &Plan, host: &str) -> Vec<FenceAction> {
    plan.intents
        .iter()
        .filter_map(|i| match i {
            Intent::Fence { host: h, action, .. } if h == host => Some(*action),
            _ => None,
        })
        .collect()
}

fn word(plan: &Plan) -> VmState {
    plan.vms.first().map(|(_, r)| r.status.printable_status).unwrap()
}

#[test]
fn a_wanted_vm_is_placed_with_a_new_epoch_and_ordered_for_the_running_boot() {
    let bed = Bed::new();
    let plan = plan(&bed.world);
    assert_eq!(placements(&plan), [("h1".to_owned(), 1, Want::Running)]);
    let Some(Intent::Place { report, domains, basis, .. }) =
        plan.intents.iter().find(|i| matches!(i, Intent::Place { .. }))
    else {
        panic!("no placement")
    };
    assert_eq!(basis.version, "7", "the swap compares the version that was read");
    assert_eq!(domains[0].spec.boot_id, "boot-h1");
    assert_eq!(report.status.placements[0].state, EpochState::Ordered);
    assert_eq!(domains[0].spec.machine.disks[0].path, "/srv/vms/default/web.img");
}

#[test]
fn an_open_epoch_is_never_placed_again() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain(
        "h1",
        "Running",
        json!({"epoch": 1, "orderId": 1, "state": "Running", "bootId": "boot-h1"}),
    );
    let plan = plan(&bed.world);
    assert!(placements(&plan).is_empty() && orders(&plan).is_empty(), "{:?}", plan.intents);
    assert_eq!(word(&plan), VmState::Running);
}

#[test]
fn a_missing_domain_is_no_release_but_made_again_as_a_stop_order() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    let plan = plan(&bed.world);
    assert!(placements(&plan).is_empty());
    assert_eq!(orders(&plan), [Want::Stopped]);
}

#[test]
fn an_end_that_is_not_drained_settles_nothing() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    let status =
        json!({"epoch": 1, "orderId": 1, "state": "Ended", "end": "Crashed", "released": false});
    bed.domain("h1", "Running", status);
    assert!(placements(&plan(&bed.world)).is_empty());
}

#[test]
fn a_crashed_vm_is_started_again_on_its_host_with_a_higher_epoch() {
    let mut bed = Bed::new();
    bed.placed("h2", "Ordered");
    let status =
        json!({"epoch": 1, "orderId": 1, "state": "Ended", "end": "Crashed", "released": true});
    bed.domain("h2", "Running", status);
    assert_eq!(placements(&plan(&bed.world)), [("h2".to_owned(), 2, Want::Running)]);
}

#[test]
fn a_clean_guest_shutdown_ends_it_under_rerun_on_failure_and_not_under_always() {
    for (policy, restarted) in [("RerunOnFailure", false), ("Always", true)] {
        let mut bed = Bed::new();
        bed.placed("h2", "Ordered");
        let status = json!({"epoch": 1, "orderId": 1, "state": "Ended", "end": "GuestShutdown", "released": true});
        bed.domain("h2", "Running", status);
        let vm = bed.world.vms[&Key::new("default", "web")].as_ref().clone();
        let mut value = serde_json::to_value(&vm).unwrap();
        value["spec"]["runPolicy"] = json!(policy);
        bed.world.vms.insert(Key::new("default", "web"), of(value));
        assert_eq!(!placements(&plan(&bed.world)).is_empty(), restarted, "{policy}");
    }
}

#[test]
fn a_halted_vm_gets_a_stop_order_and_is_ready_once_stopped() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
    let halt = |bed: &mut Bed| {
        let vm = bed.world.vms[&Key::new("default", "web")].as_ref().clone();
        let mut value = serde_json::to_value(&vm).unwrap();
        value["spec"]["runPolicy"] = json!("Halted");
        bed.world.vms.insert(Key::new("default", "web"), of(value));
    };
    halt(&mut bed);
    assert_eq!(orders(&plan(&bed.world)), [Want::Stopped]);
    bed.domain(
        "h1",
        "Stopped",
        json!({"epoch": 1, "orderId": 2, "state": "Ended", "end": "Stopped", "released": true}),
    );
    let plan = plan(&bed.world);
    assert_eq!(word(&plan), VmState::Stopped);
    let ready = &plan.vms[0].1.conditions[0];
    assert_eq!((ready.type_, ready.status), ("Ready", Some(true)));
}

#[test]
fn the_second_vm_that_names_a_disk_is_blocked_and_told_the_owner() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    let mut second =
        serde_json::to_value(bed.world.vms[&Key::new("default", "web")].as_ref()).unwrap();
    second["metadata"]["name"] = json!("thief");
    second["metadata"]["uid"] = json!("0b9c4d5e-0000-4000-8000-000000000102");
    second.as_object_mut().unwrap().remove("status");
    bed.world.vms.insert(Key::new("default", "thief"), of(second));
    let plan = plan(&bed.world);
    let (_, thief) = plan.vms.iter().find(|(k, _)| k.name == "thief").unwrap();
    assert_eq!(thief.status.printable_status, VmState::Blocked);
    assert!(thief.conditions[0].message.contains("default/web"), "{:?}", thief.conditions[0]);
    assert!(placements(&plan).is_empty());
}

#[test]
fn failed_starts_are_retried_on_the_host_then_elsewhere_then_end_in_error() {
    let mut bed = Bed::new();
    let failures = json!({"restarts": 1, "triedHosts": ["h1"], "exits": 0, "message": ""});
    let boot = bed.boot("h2");
    bed.add_vm(
        json!({}),
        json!({
            "epoch": 4, "failures": failures, "placements": [{
                "epoch": 4, "host": "h2", "hostUid": "uid-h2", "bootId": boot, "state": "Ordered",
            }],
        }),
    );
    let mut domain = json!({"epoch": 4, "orderId": 1, "state": "StartFailed", "end": "StartFailed", "released": true, "message": "no"});
    bed.domain("h2", "Running", domain.take());
    let plan = plan(&bed.world);
    assert!(placements(&plan).is_empty());
    assert_eq!(word(&plan), VmState::Error);
}

#[test]
fn paused_automation_orders_nothing() {
    let mut bed = Bed::new();
    bed.world.policy = Some(of(json!({
        "metadata": {"name": "default"}, "spec": {"automation": "Paused"},
    })));
    let plan = plan(&bed.world);
    assert!(placements(&plan).is_empty());
    assert_eq!(word(&plan), VmState::Held);
}

#[test]
fn without_a_host_that_fits_the_vm_says_why_for_each() {
    let mut bed = Bed::new();
    bed.add_vm(json!({"memory": "64Gi"}), Value::Null);
    let plan = plan(&bed.world);
    assert_eq!(word(&plan), VmState::Unplaceable);
    let message = &plan.vms[0].1.conditions[0].message;
    for host in ["h1", "h2", "h3"] {
        assert!(message.contains(host), "{message}");
    }
}

#[test]
fn a_host_that_is_not_ready_says_what_comes_next() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.beat(&["h2", "h3"], 12);
    let said = |bed: &Bed| {
        let plan = plan(&bed.world);
        let (_, report) = plan.hosts.iter().find(|(name, _)| name == "h1").unwrap();
        report.conditions.iter().find(|c| c.type_ == "Ready").unwrap().message.clone()
    };
    assert!(said(&bed).contains("wait for proof"), "{}", said(&bed));
    bed.certificate("h1", json!({"proof": "Power"}));
    assert!(said(&bed).contains("proven dead (Power); give it power"), "{}", said(&bed));
    bed.world.fences.clear();
    bed.world.hosts.insert("h1".into(), host_object("h1", json!({})));
    assert!(said(&bed).contains("human's word; see HostFence h1-"), "{}", said(&bed));
}

/// Changes what the agent of a host has reported.
fn report(bed: &mut Bed, host: &str, change: impl FnOnce(&mut Value)) {
    let mut agent = serde_json::to_value(bed.world.agents[host].as_ref()).unwrap();
    change(&mut agent["status"]);
    bed.world.agents.insert(host.into(), of(agent));
}

#[test]
fn a_boot_that_its_own_host_says_is_over_needs_no_proof() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", Value::Null);
    report(&mut bed, "h1", |s| s["goingDown"] = json!("Shutdown"));
    assert_eq!(orders(&plan(&bed.world)), [Want::Stopped], "it is stopped first");
    report(&mut bed, "h1", |s| s["down"] = json!(true));
    report(&mut bed, "h1", |s| s["goingDown"] = Value::Null);
    let called_off = plan(&bed.world);
    assert_eq!(placements(&called_off), [("h2".to_owned(), 2, Want::Running)], "not in that boot");
    bed.beat(&["h2", "h3"], 20);
    let after = plan(&bed.world);
    assert_eq!(placements(&after), [("h2".to_owned(), 2, Want::Running)]);
    assert!(fence_calls(&after, "h1").is_empty(), "{:?}", after.intents);
    report(&mut bed, "h1", |s| s["bootId"] = json!("another"));
    assert!(placements(&plan(&bed.world)).is_empty(), "the word is about one boot");
}

#[test]
fn a_reboot_is_waited_for_and_a_failover_policy_does_not() {
    for (policy, waits) in [("Conditional", true), ("Failover", false)] {
        let mut bed = Bed::new();
        bed.world.policy = Some(of(json!({
            "metadata": {"name": "default", "generation": 1}, "spec": {"hostShutdown": policy},
        })));
        bed.placed("h1", "Ordered");
        let running = json!({"epoch": 1, "orderId": 1, "state": "Running"});
        bed.domain("h1", "Running", running);
        report(&mut bed, "h1", |s| s["goingDown"] = json!("Reboot"));
        let first = plan(&bed.world);
        assert_eq!(orders(&first), [Want::Stopped]);
        assert_eq!(word(&first), if waits { VmState::Held } else { VmState::Recovering });
        let status = &first.vms[0].1.status;
        assert_eq!(status.waits_for.as_ref().map(|w| w.host.as_str()), waits.then_some("h1"));
    }
}

#[test]
fn the_wait_for_a_host_ends_where_a_strict_rule_forbids_it() {
    for (recovery, away, ends) in
        [("Restart", true, true), ("None", true, false), ("None", false, true)]
    {
        let mut bed = Bed::new();
        let status = json!({
            "epoch": 1, "waitsFor": {"host": "h1", "held": true},
            "placements": [{
                "epoch": 1, "host": "h1", "hostUid": "uid-h1", "bootId": "boot-h1",
                "state": "Released",
            }],
        });
        let recovery = json!({"recovery": recovery});
        report(&mut bed, "h1", |s| {
            s["goingDown"] = json!("Reboot");
            s["down"] = json!(true);
        });
        bed.beat(&["h2", "h3"], 20);
        bed.add_vm(json!({"availability": recovery}), status.clone());
        assert!(placements(&plan(&bed.world)).is_empty(), "no rule: it waits");
        if !away {
            report(&mut bed, "h1", |s| {
                *s = json!({
                    "hostUid": "uid-h1", "bootId": "second", "cpu": 8, "memoryMib": 16384,
                    "hypervisors": ["KVM"], "hookReady": true, "hypervisorReady": true,
                    "storages": [{"name": "vms", "ready": true}],
                })
            });
            bed.beat(&["h1", "h2", "h3"], 20);
        }
        let rule = json!({"apartFrom": ["other"]});
        bed.add_vm(json!({"availability": recovery, "placement": rule}), status.clone());
        assert_eq!(!placements(&plan(&bed.world)).is_empty(), !away, "it forbids nothing");
        let rule = json!({"requiredHosts": ["h3"]});
        bed.add_vm(json!({"availability": recovery, "placement": rule}), status);
        let there = [("h3".to_owned(), 2, Want::Running)];
        let got = placements(&plan(&bed.world));
        assert_eq!(got, if ends { &there[..] } else { &[] }, "{recovery}, away {away}");
    }
}

#[test]
fn a_start_that_a_lock_refuses_is_blocked_and_uses_up_no_limit() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    let refused = json!({
        "epoch": 1, "orderId": 1, "state": "StartFailed", "end": "LockHeld", "released": true,
        "message": "held by a stranger",
    });
    bed.domain("h1", "Running", refused);
    bed.world.seen_since.insert(format!("settled/{UID}/1"), bed.world.now);
    let plan = plan(&bed.world);
    assert_eq!(word(&plan), VmState::Blocked);
    let failures = plan.vms[0].1.status.failures.clone().unwrap();
    assert_eq!((failures.refusals, failures.restarts), (1, 0));
    assert!(plan.vms[0].1.conditions[0].message.contains("held by a stranger"));
}

#[test]
fn a_second_copy_is_named_and_ended_where_the_policy_says_so() {
    for (policy, ends) in [("Block", false), ("StopStale", true)] {
        let mut bed = Bed::new();
        bed.world.policy = Some(of(json!({
            "metadata": {"name": "default", "generation": 1}, "spec": {"doubleRun": policy},
        })));
        bed.placed("h1", "Ordered");
        bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
        let item = json!([{"name": "default.web", "uuid": UID, "epoch": 1, "running": true}]);
        report(&mut bed, "h2", |s| s["inventory"] = item);
        let plan = plan(&bed.world);
        assert_eq!(word(&plan), VmState::Blocked);
        assert_eq!(orders(&plan), if ends { vec![Want::Killed] } else { vec![] });
    }
}
