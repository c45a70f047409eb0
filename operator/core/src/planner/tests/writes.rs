//! How often a VM's status is written, and what waits for its secret.

use super::*;
use crate::plan::Report;
use stockade_crds::v1alpha1::VirtualMachineStatus;

const KEY: (&str, &str) = ("default", "web");

/// The VM with its status as a plan reports it, all conditions included.
fn store(bed: &mut Bed, report: &Report<VirtualMachineStatus>) {
    let key = Key::new(KEY.0, KEY.1);
    let mut vm = bed.world.vms[&key].as_ref().clone();
    vm.status = Some(report.status.clone());
    bed.world.vms.insert(key, Arc::new(vm));
}

fn placement(plan: &Plan) -> (Report<VirtualMachineStatus>, String) {
    let found = plan.intents.iter().find_map(|intent| match intent {
        Intent::Place { report, domains, .. } => Some((report.clone(), domains[0].host.clone())),
        _ => None,
    });
    found.expect("a placement")
}

fn spec(bed: &mut Bed, change: Value) {
    let key = Key::new(KEY.0, KEY.1);
    let mut value = serde_json::to_value(bed.world.vms[&key].as_ref()).unwrap();
    value["metadata"]["generation"] = json!(2);
    value["spec"].as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    bed.world.vms.insert(key, of(value));
}

#[test]
fn the_swap_says_all_that_is_to_be_said_until_the_host_answers() {
    let mut bed = Bed::new();
    let (report, host) = placement(&plan(&bed.world));
    assert_eq!(report.status.printable_status, VmState::Starting);
    store(&mut bed, &report);
    bed.domain(&host, "Running", Value::Null);
    let (_, next) = plan(&bed.world).vms.remove(0);
    assert_eq!(next, report, "a second write would say nothing new");
}

#[test]
fn a_stop_that_passes_in_moments_is_said_once_it_is_over() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    let running = json!({"epoch": 1, "orderId": 1, "state": "Running"});
    bed.domain("h1", "Running", running.clone());
    let (_, runs) = plan(&bed.world).vms.remove(0);
    store(&mut bed, &runs);
    spec(&mut bed, json!({"runPolicy": "Halted"}));
    let ordered = plan(&bed.world);
    assert_eq!(orders(&ordered), [Want::Stopped]);
    assert!(ordered.vms.is_empty(), "only its order is written");
    bed.domain("h1", "Stopped", running);
    bed.world.seen_since.insert(format!("domain/h1/{UID}"), bed.world.now);
    let waits = plan(&bed.world);
    assert!(waits.vms.is_empty());
    let again = waits.wake_at.expect("it looks again by itself");
    bed.world.now = again;
    assert_eq!(word(&plan(&bed.world)), VmState::Stopping, "one that lasts is said");
}

#[test]
fn a_stop_leaves_nothing_unsaid_but_itself() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    let running = json!({
        "epoch": 1, "orderId": 1, "state": "Running", "machineType": "q35", "cpuModel": "max",
    });
    bed.domain("h1", "Running", running);
    spec(&mut bed, json!({"runPolicy": "Halted"}));
    let (_, said) = plan(&bed.world).vms.remove(0);
    assert!(said.status.pinned.is_some(), "what was pinned is kept at once");
}

#[test]
fn a_vm_without_its_secret_is_blocked_and_asked_for_again() {
    let mut bed = Bed::new();
    let selector = json!({"name": "seed", "key": "userdata"});
    spec(&mut bed, json!({"cloudInit": {"userDataSecret": selector}}));
    let (_, host) = placement(&plan(&bed.world));
    assert_eq!(host, "h1", "nothing is known against it");
    let why = "there is no Secret \"seed\"; create it";
    bed.world.seed_refusals.insert(UID.into(), (bed.world.now, why.into()));
    let refused = plan(&bed.world);
    assert!(placements(&refused).is_empty());
    assert_eq!(word(&refused), VmState::Blocked);
    let ready = &refused.vms[0].1.conditions[0];
    assert_eq!(ready.message, format!("spec.cloudInit.userDataSecret: {why}"));
    assert!(refused.wake_at.is_some(), "it asks again by itself");
    bed.beat(&["h1", "h2", "h3"], 6);
    placement(&plan(&bed.world));
}

#[test]
fn the_copy_of_a_secret_goes_once_its_epoch_is_released_and_not_before() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    spec(
        &mut bed,
        json!({
            "runPolicy": "Halted", "cloudInit": {"userDataSecret": {"name": "s", "key": "k"}},
        }),
    );
    let removals = |bed: &Bed| {
        let intents = plan(&bed.world).intents;
        intents.iter().filter(|i| matches!(i, Intent::RemoveSeed { epoch: 1, .. })).count()
    };
    bed.domain("h1", "Stopped", json!({"epoch": 1, "orderId": 2, "state": "Running"}));
    assert_eq!(removals(&bed), 0, "it may still be started by it");
    let ended = json!({"epoch": 1, "orderId": 2, "state": "Ended", "released": true});
    bed.domain("h1", "Stopped", ended);
    assert_eq!(removals(&bed), 1);
    bed.world.seeds_gone.insert(("h1".into(), UID.into(), 1));
    assert_eq!(removals(&bed), 0, "once is enough");
}

#[test]
fn an_epoch_that_its_disk_has_seen_before_is_followed_by_a_higher_one_at_once() {
    let refused = |highest: i64| {
        let mut bed = Bed::new();
        bed.placed("h1", "Ordered");
        let status = json!({
            "epoch": 1, "orderId": 1, "state": "StartFailed", "end": "Refused", "released": true,
            "message": "epoch 4 came later", "highestRecord": highest,
        });
        bed.domain("h1", "Running", status);
        bed.world.seen_since.insert(format!("settled/{UID}/1"), bed.world.now);
        plan(&bed.world)
    };
    let plan = refused(4);
    assert_eq!(placements(&plan), [("h1".to_owned(), 5, Want::Running)]);
    assert!(!plan.intents.iter().any(|i| matches!(i, Intent::Event(_))), "nothing is wrong");
    assert!(placements(&refused(0)).is_empty(), "any other refusal is waited after");
}
