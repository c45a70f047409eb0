//! Moves of VMs on simulated hosts: the real controllers and agents, every end defined.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use serde_json::{Value, json};
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;
use stockade_crds::v1alpha1::{MigrationOutcome, VirtualMachineMigration};
use stockade_sim::runner::{Cluster, HostPlan};
use stockade_sim::world::event::What;
use stockade_sim::world::model::{Fail, FailAs, FailOp, Net, Profile, Stage};
use stockade_sim::world::power::Which;

struct Rig {
    c: Cluster,
}

fn plans(names: &[&str]) -> Vec<HostPlan> {
    names.iter().map(|n| HostPlan::new(n)).collect()
}

impl Rig {
    /// Three hosts; these VMs run on h1.
    async fn on_h1(seed: u64, vms: &[&str]) -> Self {
        let vms: Vec<(&str, Value)> = vms.iter().map(|vm| (*vm, json!({}))).collect();
        Self::with(seed, Guards::default(), &vms).await
    }

    async fn with(seed: u64, guards: Guards, vms: &[(&str, Value)]) -> Self {
        let hosts = plans(&["h1", "h2", "h3"]);
        let c = Cluster::new(seed, &hosts, guards, AgentGuards::default()).unwrap();
        let rig = Self { c };
        rig.c.pass(30).await;
        for (vm, spec) in vms {
            let mut spec = spec.clone();
            let placement = json!({"preferredHosts": [{"hosts": ["h1"]}]});
            let known = spec.as_object_mut().unwrap();
            known.entry("placement").or_insert(placement);
            known.entry("runPolicy").or_insert(json!("Always"));
            rig.c.add_vm(vm, spec).unwrap();
        }
        for (vm, _) in vms {
            assert!(rig.c.until_running(vm, "", 60).await.is_some(), "{vm}\n{}", rig.history());
        }
        rig.c.pass(15).await;
        rig
    }

    fn order(&self, name: &str, vm: &str, to: Option<&str>, live: Option<bool>) {
        let mut spec = json!({"vm": vm});
        if let Some(to) = to {
            spec["target"] = json!(to);
        }
        if let Some(live) = live {
            spec["live"] = json!(live);
        }
        self.c
            .apply(&json!({
                "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachineMigration",
                "metadata": {"name": name, "namespace": "default"}, "spec": spec,
            }))
            .unwrap();
    }

    fn delete(&self, name: &str) {
        let admin = self.c.api.admin().named("user");
        admin.delete("VirtualMachineMigration", Some("default"), name).unwrap();
    }

    fn mode(&self, host: &str, mode: &str) {
        self.c
            .apply(&json!({
                "apiVersion": "stockade.dev/v1alpha1", "kind": "Host",
                "metadata": {"name": host},
                "spec": {"mode": mode, "fencing": [{"devices": [format!("bmc-{host}")]}]},
            }))
            .unwrap();
    }

    fn migration(&self, name: &str) -> Option<VirtualMachineMigration> {
        self.c.api.admin().get_as(Some("default"), name)
    }

    fn outcome(&self, name: &str) -> Option<MigrationOutcome> {
        Some(self.migration(name)?.status.unwrap_or_default().outcome)
    }

    fn message(&self, name: &str) -> String {
        let status = self.migration(name).and_then(|m| m.status).unwrap_or_default();
        status.conditions.first().map(|c| c.message.clone()).unwrap_or_default()
    }

    async fn until(&self, what: &str, seconds: u64, mut holds: impl FnMut(&Self) -> bool) {
        for _ in 0..seconds * 20 {
            if holds(self) {
                return;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        panic!("never: {what}\n{}", self.history());
    }

    async fn until_over(&self, name: &str, seconds: u64) -> MigrationOutcome {
        let over = |r: &Self| r.outcome(name).is_some_and(|o| o != MigrationOutcome::Pending);
        self.until(&format!("{name} is over"), seconds, over).await;
        self.outcome(name).unwrap()
    }

    async fn until_copying(&self, vm: &str) {
        self.until("it copies", 30, |r| r.count(What::Migrate, vm) > 0).await;
    }

    fn count(&self, what: What, vm: &str) -> usize {
        let w = self.c.sim.lock();
        w.events.iter().filter(|e| e.what == what && e.vm.as_deref() == Some(vm)).count()
    }

    fn slow(&self, vm: &str, migrate_ms: u64) {
        let profile = Profile { migrate_ms, ..Profile::default() };
        self.c.sim.lock().profiles.insert(vm.to_owned(), profile);
    }

    fn fail(&self, op: FailOp, host: Option<&str>, stage: Stage, how: FailAs) {
        self.c.sim.lock().fails.push(Fail {
            op,
            vms: Vec::new(),
            hosts: host.iter().map(|h| (*h).to_owned()).collect(),
            times: Some(1),
            stage,
            how,
        });
    }

    fn state(&self, vm: &str) -> String {
        let status = self.c.vm(vm).and_then(|vm| vm.status).unwrap_or_default();
        format!("{:?}", status.printable_status)
    }

    fn history(&self) -> String {
        let mut lines: Vec<String> =
            self.c.sim.lock().events.iter().map(ToString::to_string).collect();
        for kind in ["Host", "Domain", "VirtualMachine", "VirtualMachineMigration", "Event"] {
            for object in self.c.api.admin().list(kind, None) {
                let (spec, status) = (&object.value["spec"], &object.value["status"]);
                let name = &object.value["metadata"]["name"];
                let note = &object.value["message"];
                lines.push(format!("{kind} {name} {spec} {status} {note}"));
            }
        }
        lines.join("\n")
    }

    #[track_caller]
    fn clean(&self) {
        assert!(self.c.violations().is_empty(), "{:?}\n{}", self.c.violations(), self.history());
    }

    /// Nothing of the move is left over: the VM runs once, and its record of the move is gone.
    async fn settled(&self, vm: &str, seconds: u64) {
        self.until(&format!("{vm} is settled"), seconds, |r| {
            let status = r.c.vm(vm).and_then(|vm| vm.status).unwrap_or_default();
            r.c.running(vm).len() == 1
                && status.migration.is_none()
                && status.placements.iter().filter(|p| !p.state.is_settled()).count() == 1
                && r.state(vm) == "Running"
        })
        .await;
        self.clean();
    }
}

#[tokio::test(start_paused = true)]
async fn a_live_move_keeps_one_copy_and_takes_the_lock_along() {
    for seed in 1..=5 {
        let rig = Rig::on_h1(seed, &["101"]).await;
        assert_eq!(rig.c.running("101"), ["h1"]);
        rig.order("mv", "101", Some("h2"), None);
        rig.until("Migrating", 20, |r| r.state("101") == "Migrating").await;
        assert_eq!(rig.until_over("mv", 30).await, MigrationOutcome::Succeeded);
        assert_eq!(rig.c.running("101"), ["h2"]);
        rig.settled("101", 5).await;
        assert_eq!(rig.count(What::Start, "101"), 1, "{}", rig.history());
        assert_eq!(rig.count(What::Stop, "101") + rig.count(What::Kill, "101"), 0);
        assert_eq!(rig.count(What::Migrated, "101"), 1);
        // And back.
        rig.order("back", "101", Some("h1"), None);
        assert_eq!(rig.until_over("back", 30).await, MigrationOutcome::Succeeded);
        rig.settled("101", 5).await;
        assert_eq!(rig.c.running("101"), ["h1"]);
        let status = rig.c.vm("101").unwrap().status.unwrap();
        assert_eq!((status.epoch, status.moved_to.as_deref()), (3, Some("h1")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_move_is_refused_before_anything_is_done() {
    let rig = Rig::with(
        2,
        Guards::default(),
        &[
            ("101", json!({})),
            ("102", json!({"migration": {"live": false}})),
            ("103", json!({"memory": "60Gi", "placement": {"requiredHosts": ["h2"]}})),
        ],
    )
    .await;
    rig.c.add_vm("104", json!({"runPolicy": "Halted"})).unwrap();
    rig.c.pass(5).await;
    let before = rig.c.sim.lock().host_actions;
    for (name, vm, to, live, word) in [
        ("nobody", "999", Some("h2"), None, "no VM 999"),
        ("there", "101", Some("h1"), None, "runs there now"),
        ("nowhere", "101", Some("h9"), None, "not declared"),
        ("halted", "104", Some("h2"), None, "not running"),
        ("unmovable", "102", Some("h2"), Some(true), "can't be moved live"),
        ("bound", "103", Some("h1"), None, "h2"),
    ] {
        rig.order(name, vm, to, live);
        assert_eq!(rig.until_over(name, 10).await, MigrationOutcome::Refused, "{name}");
        assert!(rig.message(name).contains(word), "{name}: {}", rig.message(name));
    }
    assert_eq!(rig.c.sim.lock().host_actions, before, "nothing was done at any host");
    rig.c.add_vm("105", json!({"memory": "8Gi"})).unwrap();
    rig.c.until_running("105", "", 30).await.unwrap();
    rig.c.pass(5).await;
    rig.order("full", "105", Some("h2"), None);
    assert_eq!(rig.until_over("full", 10).await, MigrationOutcome::Refused);
    assert!(rig.message("full").contains("memory"), "{}", rig.message("full"));
    rig.mode("h3", "Cordoned");
    rig.c.pass(2).await;
    rig.order("cordoned", "101", Some("h3"), None);
    assert_eq!(rig.until_over("cordoned", 10).await, MigrationOutcome::Refused);
    assert_eq!(rig.count(What::Migrate, "101"), 0);
    rig.clean();
}

#[tokio::test(start_paused = true)]
async fn a_deleted_move_is_aborted_and_the_vm_stays() {
    for (seed, delay) in [(1, 0), (2, 1), (3, 5), (4, 20)] {
        let rig = Rig::on_h1(seed, &["101"]).await;
        rig.slow("101", 60_000);
        rig.order("mv", "101", Some("h2"), None);
        rig.until_copying("101").await;
        rig.c.pass(delay).await;
        let mut last = None;
        rig.delete("mv");
        rig.until("it is gone", 40, |r| {
            last = r.outcome("mv").or(last);
            r.migration("mv").is_none()
        })
        .await;
        assert_eq!(last, Some(MigrationOutcome::Aborted));
        rig.settled("101", 20).await;
        assert_eq!(rig.c.running("101"), ["h1"]);
        // Its epoch is burnt: the next move has a higher one.
        rig.slow("101", 2_000);
        rig.order("again", "101", Some("h2"), None);
        assert_eq!(rig.until_over("again", 30).await, MigrationOutcome::Succeeded);
        rig.settled("101", 10).await;
        assert_eq!(rig.c.vm("101").unwrap().status.unwrap().epoch, 3);
    }
}

#[tokio::test(start_paused = true)]
async fn every_failure_of_the_call_has_a_defined_end() {
    use MigrationOutcome::{Failed, Succeeded};
    for (seed, stage, how, outcome, at) in [
        (1, Stage::Before, FailAs::Error, Failed, "h1"),
        (2, Stage::Before, FailAs::Hang, Failed, "h1"),
        (3, Stage::Before, FailAs::Unknown, Succeeded, "h2"),
        (4, Stage::Copying, FailAs::Error, Failed, "h1"),
        (5, Stage::Copying, FailAs::Hang, Failed, "h1"),
        (6, Stage::Copying, FailAs::Unknown, Succeeded, "h2"),
        (7, Stage::Switched, FailAs::Hang, Succeeded, "h2"),
        (8, Stage::Switched, FailAs::Unknown, Succeeded, "h2"),
    ] {
        let rig = Rig::on_h1(seed, &["101"]).await;
        rig.fail(FailOp::Migrate, None, stage, how);
        rig.order("mv", "101", Some("h2"), None);
        let got = rig.until_over("mv", 90).await;
        assert_eq!(got, outcome, "{stage:?} {how:?}\n{}", rig.history());
        rig.settled("101", 20).await;
        assert_eq!(rig.c.running("101"), [at], "{stage:?} {how:?}");
        assert_eq!(rig.count(What::Start, "101"), 1, "{stage:?} {how:?}\n{}", rig.history());
        // A later move works.
        let to = if at == "h1" { "h2" } else { "h1" };
        rig.order("next", "101", Some(to), None);
        let got = rig.until_over("next", 60).await;
        assert_eq!(got, Succeeded, "{stage:?} {how:?}\n{}", rig.history());
        rig.settled("101", 20).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_copy_that_dies_after_the_switch_over_starts_cold() {
    let rig = Rig::on_h1(1, &["101"]).await;
    rig.fail(FailOp::Migrate, None, Stage::Switched, FailAs::Error);
    rig.order("mv", "101", Some("h2"), None);
    assert_eq!(rig.until_over("mv", 90).await, MigrationOutcome::Failed);
    rig.settled("101", 60).await;
    assert_eq!(rig.count(What::Start, "101"), 2);
}

#[tokio::test(start_paused = true)]
async fn a_host_that_dies_in_a_move_leaves_one_copy() {
    for (n, delay) in [0, 300, 900, 3_500, 5_100, 5_600].iter().enumerate() {
        for host in ["h1", "h2"] {
            let rig = Rig::on_h1(n as u64 + 1, &["101"]).await;
            rig.order("mv", "101", Some("h2"), None);
            tokio::time::sleep(std::time::Duration::from_millis(*delay)).await;
            rig.c.sim.lock().fault_beyond_api = true;
            rig.c.sim.lock().switch_off(host);
            rig.until("it runs and is settled", 240, |r| {
                let status = r.c.vm("101").and_then(|vm| vm.status).unwrap_or_default();
                r.c.running("101").len() == 1
                    && r.state("101") == "Running"
                    && status.migration.is_none()
                    && r.outcome("mv") != Some(MigrationOutcome::Pending)
            })
            .await;
            rig.c.pass(60).await;
            assert_eq!(rig.c.running("101").len(), 1, "{host} {delay}\n{}", rig.history());
            rig.clean();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn agents_and_controllers_that_crash_lose_no_move() {
    for (n, delay) in [200, 600, 4_500, 5_500].iter().enumerate() {
        for who in ["h1", "h2", "controller", "both"] {
            let mut rig = Rig::on_h1(n as u64 + 1, &["101"]).await;
            rig.order("mv", "101", Some("h2"), None);
            tokio::time::sleep(std::time::Duration::from_millis(*delay)).await;
            match who {
                "controller" => rig.c.crash_controller(),
                "both" => {
                    rig.c.sim.lock().crash_process("h1", Which::Agent, 0);
                    rig.c.sim.lock().crash_process("h2", Which::Agent, 0);
                }
                host => rig.c.sim.lock().crash_process(host, Which::Agent, 0),
            }
            let got = rig.until_over("mv", 120).await;
            rig.settled("101", 60).await;
            assert_eq!(got, MigrationOutcome::Succeeded, "{who} {delay}\n{}", rig.history());
            assert_eq!(rig.c.running("101"), ["h2"], "{who} {delay}");
            assert_eq!(rig.count(What::Start, "101"), 1, "{who} {delay}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cut_migration_network_fails_the_move_and_keeps_the_vm() {
    for delay in [0, 1, 3] {
        let mut rig = Rig::on_h1(3 + delay, &["101"]).await;
        rig.order("mv", "101", Some("h2"), None);
        rig.c.pass(delay).await;
        rig.c.isolate("h2", &[Net::Migration], true);
        assert_eq!(rig.until_over("mv", 60).await, MigrationOutcome::Failed);
        rig.settled("101", 20).await;
        assert_eq!(rig.c.running("101"), ["h1"]);
        assert!(!rig.c.sim.lock().events.iter().any(|e| e.what == What::FenceOff));
    }
}

#[tokio::test(start_paused = true)]
async fn a_user_who_stops_the_vm_ends_its_move_too() {
    let rig = Rig::on_h1(4, &["101"]).await;
    rig.slow("101", 60_000);
    rig.order("mv", "101", Some("h2"), None);
    rig.until_copying("101").await;
    rig.c.pass(5).await;
    rig.c.add_vm("101", json!({"runPolicy": "Halted"})).unwrap();
    rig.until("stopped", 60, |r| r.state("101") == "Stopped").await;
    assert!(rig.c.running("101").is_empty());
    assert_eq!(rig.until_over("mv", 20).await, MigrationOutcome::Failed);
    rig.c.pass(20).await;
    let status = rig.c.vm("101").unwrap().status.unwrap();
    assert!(status.migration.is_none(), "{}", rig.history());
    rig.clean();
}

#[tokio::test(start_paused = true)]
async fn one_move_a_vm_and_so_many_a_host() {
    let rig = Rig::on_h1(5, &["101", "102", "103"]).await;
    for vm in ["101", "102", "103"] {
        rig.slow(vm, 20_000);
    }
    rig.order("a", "101", Some("h2"), None);
    rig.order("b", "102", Some("h3"), None);
    rig.until_copying("101").await;
    rig.order("c", "103", Some("h2"), None);
    rig.order("twice", "101", Some("h3"), None);
    assert_eq!(rig.until_over("twice", 10).await, MigrationOutcome::Refused);
    rig.c.pass(5).await;
    assert_eq!(rig.outcome("c"), Some(MigrationOutcome::Pending));
    assert_eq!(rig.count(What::Migrate, "103"), 0, "two at once take part in h1's limit");
    for name in ["a", "b", "c"] {
        assert_eq!(rig.until_over(name, 60).await, MigrationOutcome::Succeeded);
    }
    rig.clean();
}

#[tokio::test(start_paused = true)]
async fn a_cold_move_stops_before_it_starts_and_goes_back_if_it_must() {
    let rig = Rig::on_h1(6, &["101"]).await;
    rig.order("mv", "101", Some("h2"), Some(false));
    assert_eq!(rig.until_over("mv", 60).await, MigrationOutcome::Succeeded);
    rig.settled("101", 10).await;
    assert_eq!(rig.c.running("101"), ["h2"]);
    assert_eq!(rig.count(What::Migrate, "101"), 0);
    for _ in 0..2 {
        rig.fail(FailOp::Start, Some("h3"), Stage::Before, FailAs::Error);
    }
    rig.order("no", "101", Some("h3"), Some(false));
    assert_eq!(rig.until_over("no", 60).await, MigrationOutcome::Failed);
    rig.settled("101", 60).await;
    assert_eq!(rig.c.running("101"), ["h2"], "{}", rig.history());
}

#[tokio::test(start_paused = true)]
async fn a_drained_host_is_empty_and_what_moved_stays() {
    let rig = Rig::with(
        7,
        Guards::default(),
        &[
            ("101", json!({})),
            ("102", json!({})),
            ("103", json!({})),
            ("104", json!({"migration": {"live": false}})),
        ],
    )
    .await;
    rig.mode("h1", "Maintenance");
    rig.until("h1 is empty", 120, |r| {
        ["101", "102", "103", "104"].iter().all(|vm| {
            let at = r.c.running(vm);
            at.len() == 1 && at[0] != "h1"
        })
    })
    .await;
    rig.until("drained", 20, |r| {
        let host = r.c.api.admin().get("Host", None, "h1").unwrap();
        let conditions = host.value["status"]["conditions"].to_string();
        conditions.contains("Drained") && conditions.contains("Empty")
    })
    .await;
    for vm in ["101", "102", "103"] {
        assert_eq!(rig.count(What::Start, vm), 1);
        assert_eq!(rig.count(What::Migrate, vm), 1);
    }
    assert_eq!(rig.count(What::Migrate, "104"), 0);
    assert_eq!(rig.count(What::Start, "104"), 2);
    rig.mode("h1", "Active");
    rig.c.pass(120).await;
    for vm in ["101", "102", "103", "104"] {
        assert!(!rig.c.running(vm).contains(&"h1".to_owned()));
    }
    let left = rig.c.api.admin().list("VirtualMachineMigration", None);
    assert!(left.is_empty(), "Stockade's own moves are removed");
    rig.clean();
}

#[tokio::test(start_paused = true)]
async fn an_uncordoned_host_keeps_what_is_still_there() {
    let rig = Rig::on_h1(8, &["101", "102", "103"]).await;
    for vm in ["101", "102", "103"] {
        rig.slow(vm, 20_000);
    }
    rig.mode("h1", "Maintenance");
    rig.until_copying("101").await;
    rig.c.pass(5).await;
    rig.mode("h1", "Active");
    rig.c.pass(60).await;
    for vm in ["101", "102", "103"] {
        assert_eq!(rig.c.running(vm), ["h1"], "{}", rig.history());
        rig.settled(vm, 1).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_group_moves_as_one() {
    let rig = Rig::with(
        9,
        Guards::default(),
        &[
            ("101", json!({})),
            ("102", json!({"placement": {"togetherWith": ["101"]}})),
            ("103", json!({"placement": {"togetherWith": ["101"]}})),
        ],
    )
    .await;
    rig.order("mv", "102", Some("h2"), None);
    assert_eq!(rig.until_over("mv", 60).await, MigrationOutcome::Succeeded);
    for vm in ["101", "102", "103"] {
        rig.settled(vm, 60).await;
        assert_eq!(rig.c.running(vm), ["h2"], "{}", rig.history());
    }
    rig.c.pass(60).await;
    for vm in ["101", "102", "103"] {
        assert_eq!(rig.count(What::Migrate, vm), 1, "{}", rig.history());
    }
    rig.clean();
}

#[tokio::test(start_paused = true)]
async fn a_broken_rule_is_mended_once() {
    let rig = Rig::on_h1(10, &["101", "102"]).await;
    rig.c.add_vm("102", json!({"placement": {"apartFrom": ["101"]}})).unwrap();
    rig.until("apart", 60, |r| r.c.running("101") != r.c.running("102")).await;
    rig.c.pass(120).await;
    let moves = rig.count(What::Migrate, "101") + rig.count(What::Migrate, "102");
    assert_eq!(moves, 1, "{}", rig.history());
    rig.clean();
}

#[tokio::test(start_paused = true)]
async fn a_vm_with_failback_goes_home_once() {
    let placement = json!({"preferredHosts": [{"hosts": ["h1"]}], "failback": true});
    let rig = Rig::with(11, Guards::default(), &[("101", json!({"placement": placement}))]).await;
    rig.c.sim.lock().fault_beyond_api = true;
    rig.c.sim.lock().switch_off("h1");
    rig.c.until_running("101", "h1", 60).await.unwrap();
    rig.c.pass(30).await;
    rig.c.sim.lock().switch_on("h1");
    rig.until("home", 240, |r| r.c.running("101") == ["h1"]).await;
    rig.settled("101", 20).await;
    rig.c.pass(120).await;
    assert_eq!(rig.count(What::Migrate, "101"), 1, "{}", rig.history());
}

#[tokio::test(start_paused = true)]
async fn a_vm_starts_and_moves_again_after_its_host_died() {
    let rig = Rig::on_h1(13, &["101"]).await;
    rig.c.sim.lock().fault_beyond_api = true;
    rig.c.sim.lock().switch_off("h1");
    rig.c.until_running("101", "h1", 60).await.unwrap();
    rig.c.pass(20).await;
    // The dead boot's record is in nobody's way.
    let here = rig.c.running("101").remove(0);
    let there = if here == "h2" { "h3" } else { "h2" };
    rig.order("mv", "101", Some(there), None);
    assert_eq!(
        rig.until_over("mv", 60).await,
        MigrationOutcome::Succeeded,
        "{}",
        rig.message("mv")
    );
    rig.order("cold", "101", Some(&here), Some(false));
    assert_eq!(rig.until_over("cold", 60).await, MigrationOutcome::Succeeded);
    rig.settled("101", 10).await;
    assert_eq!(rig.c.running("101"), [here]);
}

#[tokio::test(start_paused = true)]
async fn a_cluster_at_rest_after_moves_writes_nothing() {
    let rig = Rig::on_h1(12, &["101"]).await;
    rig.order("mv", "101", Some("h2"), None);
    rig.until_over("mv", 60).await;
    rig.c.pass(60).await;
    let before = rig.c.api.admin().writes_without_leases(|_| true);
    rig.c.pass(120).await;
    assert_eq!(rig.c.api.admin().writes_without_leases(|_| true), before, "{}", rig.history());
}
