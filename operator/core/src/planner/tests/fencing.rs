//! What a silent host gets: readings, an off, a certificate, and what each of them proves.

use super::*;

#[test]
fn a_host_that_misses_one_beat_has_its_power_read_and_nothing_more() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
    bed.beat(&["h2", "h3"], 4);
    let plan = plan(&bed.world);
    assert_eq!(fence_calls(&plan, "h1"), [FenceAction::Status]);
    assert!(placements(&plan).is_empty());
}

#[test]
fn off_is_ordered_only_after_both_paths_are_silent_for_act_seconds() {
    let mut bed = Bed::doubted();
    bed.beat(&["h2", "h3"], 5);
    assert!(!bed.shots("h1").contains(&FenceAction::Off));
    bed.beat(&["h2", "h3"], 5);
    assert_eq!(bed.shots("h1"), [FenceAction::Off]);
}

#[test]
fn a_host_that_beats_on_storage_is_isolated_and_not_shot() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
    for _ in 0..30 {
        bed.world.now += 1_000;
        bed.counter += 1;
        let now = bed.world.now;
        bed.world.lives.echo(now, now);
        let beats: BTreeMap<String, SeenBeat> = ["h1", "h2", "h3"]
            .iter()
            .map(|h| {
                let (boot, counter) = (bed.boot(h), bed.counter);
                (format!("uid-{h}"), SeenBeat { boot, counter, still: None })
            })
            .collect();
        for host in ["h2", "h3"] {
            let lease = LeaseBeat {
                host_uid: format!("uid-{host}"),
                boot_id: bed.boot(host),
                version: bed.counter.to_string(),
                beats: [("vms".to_owned(), beats.clone())].into(),
                promised: 2_000,
            };
            bed.world.lives.lease(host, lease, now);
        }
    }
    assert!(!bed.shots("h1").contains(&FenceAction::Off));
    let plan = plan(&bed.world);
    let (_, h1) = plan.hosts.iter().find(|(n, _)| n == "h1").unwrap();
    assert_eq!(h1.status.printable_status, stockade_crds::v1alpha1::HostState::Isolated);
}

#[test]
fn an_observer_that_was_away_counts_no_silence() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
    // The controller itself saw nothing for three minutes, then its own beat comes back.
    bed.world.now += 180_000;
    let now = bed.world.now;
    bed.world.lives.echo(now, now);
    assert!(!bed.shots("h1").contains(&FenceAction::Off));
    let plan = plan(&bed.world);
    assert!(!plan.intents.iter().any(|i| matches!(i, Intent::OpenFence { .. })));
    let (_, h1) = plan.hosts.iter().find(|(n, _)| n == "h1").unwrap();
    assert_eq!(h1.status.printable_status, stockade_crds::v1alpha1::HostState::Ready);
}

#[test]
fn off_without_reading_it_back_proves_nothing_and_read_back_does() {
    let mut bed = Bed::doubted();
    bed.beat(&["h2", "h3"], 12);
    let at = bed.world.now - 2_000;
    bed.call("h1", FenceAction::Off, FenceResult::Done, at);
    let proof = |bed: &Bed| {
        let plan = plan(&bed.world);
        plan.fences.first().and_then(|(_, r)| r.status.proof)
    };
    assert_eq!(proof(&bed), None);
    bed.call("h1", FenceAction::Status, FenceResult::Off, at + 500);
    assert_eq!(proof(&bed), Some(ProofKind::Power));
}

#[test]
fn a_reading_of_off_from_before_the_silence_proves_nothing() {
    let mut bed = Bed::doubted();
    let early = bed.world.now - 1_000;
    bed.call("h1", FenceAction::Off, FenceResult::Done, early);
    bed.call("h1", FenceAction::Status, FenceResult::Off, early + 200);
    bed.beat(&["h2", "h3"], 12);
    let plan = plan(&bed.world);
    assert_eq!(plan.fences.first().and_then(|(_, r)| r.status.proof), None);
}

#[test]
fn a_proven_death_moves_the_vm_and_names_the_death_it_relies_on() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
    bed.beat(&["h2", "h3"], 12);
    bed.certificate("h1", json!({"proof": "Power"}));
    let plan = plan(&bed.world);
    let Some(Intent::Place { relies_on, domains, report, .. }) =
        plan.intents.iter().find(|i| matches!(i, Intent::Place { .. }))
    else {
        panic!("not placed: {:?}", plan.intents)
    };
    assert_eq!(domains[0].spec.epoch, 2);
    assert_ne!(domains[0].host, "h1");
    assert_eq!(relies_on[0].boot_id, "boot-h1");
    let dead = domains[0].spec.settled[0].dead_boot.as_ref().unwrap();
    assert_eq!(dead.boot_id, "boot-h1", "the agent is told whose record it may pass over");
    let superseded: Vec<bool> = report.status.placements.iter().map(|p| p.superseded).collect();
    assert_eq!(superseded, [true, false], "from here on the disk is newer than h1's memory");
}

#[test]
fn what_was_taken_for_dead_is_ended_and_never_goes_on_though_the_later_epoch_has_ended() {
    // Without the mark it is open again and goes on: nothing later was ever ordered.
    for (state, superseded) in [("ProvenDead", true), ("Ordered", true), ("Ordered", false)] {
        let mut bed = Bed::new();
        let of_host = |epoch: i64, host: &str, state: &str| {
            json!({
                "epoch": epoch, "host": host, "hostUid": format!("uid-{host}"),
                "bootId": bed.boot(host), "state": state, "superseded": superseded && epoch == 1,
            })
        };
        let both = [of_host(1, "h1", state), of_host(2, "h2", "Released")];
        let status = json!({"epoch": 2, "host": "h2", "placements": both});
        bed.add_vm(json!({}), status);
        bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Paused"}));
        bed.certificate("h1", json!({"proof": "Power", "revoked": "it lives"}));
        bed.beat(&["h1", "h2", "h3"], 12);
        let plan = plan(&bed.world);
        let order = plan.intents.iter().find_map(|intent| match intent {
            Intent::WriteDomain(write) if write.host == "h1" => Some(write.spec.want),
            _ => None,
        });
        let told = plan.intents.iter().find_map(|intent| match intent {
            Intent::WriteHostAgent { host, spec, .. } if host == "h1" => Some(&spec.dead_boots),
            _ => None,
        });
        let stays_suspended = told.is_some_and(|dead| dead.iter().any(|d| d.boot_id == "boot-h1"));
        let wanted = (superseded.then_some(Want::Killed), superseded);
        assert_eq!((order, stays_suspended), wanted, "superseded: {superseded}");
        assert!(placements(&plan).is_empty(), "its copy is there still");
    }
}

#[test]
fn a_certificate_for_another_boot_or_a_revoked_one_moves_nothing() {
    for status in [json!({"proof": "Power", "revoked": "it lives"}), json!({})] {
        let mut bed = Bed::new();
        bed.placed("h1", "Ordered");
        bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
        bed.beat(&["h2", "h3"], 7);
        bed.certificate("h1", status);
        assert!(placements(&plan(&bed.world)).is_empty());
    }
}

#[test]
fn life_after_the_proof_revokes_the_certificate() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.certificate("h1", json!({"proof": "Power"}));
    bed.beat(&["h1", "h2", "h3"], 3);
    let plan = plan(&bed.world);
    assert!(plan.fences[0].1.status.revoked.is_some());
}

#[test]
fn what_was_asked_of_a_server_about_a_boot_that_lives_is_taken_back_though_it_never_answered() {
    let admits = |bed: &Bed| {
        let is = |i: &&Intent| matches!(i, Intent::Admit { storage, .. } if storage == "vms");
        plan(&bed.world).intents.iter().filter(is).count()
    };
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.certificate("h1", json!({"proof": "Power"}));
    bed.beat(&["h1", "h2", "h3"], 3);
    assert_eq!(admits(&bed), 0, "nothing was asked");
    let key = ("vms".to_owned(), "boot-h1".to_owned());
    bed.world.server.asked.insert(key.clone(), 0);
    bed.world.server.pending.insert(key.clone());
    assert_eq!(admits(&bed), 0, "its answer is awaited");
    bed.world.server.pending.clear();
    bed.world.server.refused.insert(key.clone(), (0, "it has not acknowledged it".into()));
    assert_eq!(admits(&bed), 1);
    bed.world.server.forget(&key);
    assert_eq!(bed.world.server, crate::world::ServerCalls::default());
    assert_eq!(admits(&bed), 0, "it is taken back once");
}

#[test]
fn a_server_that_can_deny_nobody_is_asked_once_and_no_more_after_its_locks_are_broken() {
    let asked = |bed: &Bed| -> Vec<&str> {
        let word = |intent: &Intent| match intent {
            Intent::Deny { .. } => Some("deny"),
            Intent::BreakLocks { .. } => Some("break"),
            _ => None,
        };
        plan(&bed.world).intents.iter().filter_map(word).collect()
    };
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.certificate("h1", json!({"proof": "Power"}));
    bed.beat(&["h2", "h3"], 10);
    assert_eq!(asked(&bed), ["deny"]);
    bed.world.server.undeniable.insert(("vms".to_owned(), "boot-h1".to_owned()));
    assert_eq!(asked(&bed), ["break"]);
    bed.certificate("h1", json!({"proof": "Power", "locksBroken": ["vms"]}));
    assert!(asked(&bed).is_empty(), "{:?}", asked(&bed));
}

#[test]
fn life_after_the_proof_is_remembered_until_the_certificate_says_so() {
    for after in [true, false] {
        let mut bed = Bed::new();
        bed.placed("h1", "Ordered");
        bed.certificate("h1", json!({"proof": "Power"}));
        let name = stockade_crds::names::host_fence_name("h1", "boot-h1");
        let proven = bed.world.now + if after { 500 } else { 1_500 };
        bed.world.seen_since.insert(format!("fence-proof/{name}"), proven);
        bed.beat(&["h1", "h2", "h3"], 1);
        // The API took no write for so long.
        bed.beat(&["h2", "h3"], 20);
        let plan = plan(&bed.world);
        assert_eq!(plan.fences[0].1.status.revoked.is_some(), after);
    }
}

#[test]
fn an_off_whose_reading_counts_no_more_is_ordered_again_on_the_next() {
    let mut bed = Bed::doubted();
    let last = bed.world.now;
    bed.beat(&["h2", "h3"], 5);
    // Read before the last beat of all was told of.
    bed.call("h1", FenceAction::Status, FenceResult::Off, last - 500);
    bed.call("h1", FenceAction::Off, FenceResult::Done, last + 500);
    assert_eq!(fence_calls(&plan(&bed.world), "h1"), [FenceAction::Status]);
    bed.call("h1", FenceAction::Status, FenceResult::Off, last + 4_000);
    assert_eq!(fence_calls(&plan(&bed.world), "h1"), [FenceAction::Off]);
}

#[test]
fn a_human_word_does_not_count_while_the_host_shows_life() {
    let mut bed = Bed::new();
    bed.placed("h1", "Ordered");
    bed.certificate("h1", json!({}));
    let name = stockade_crds::names::host_fence_name("h1", "boot-h1");
    let mut fence = bed.world.fences[&name].as_ref().clone();
    fence.spec.confirmation = Some(stockade_crds::v1alpha1::Confirmation {
        reason: "I pulled the plug".into(),
        by: "ann".into(),
        although_device_reads_on: false,
    });
    bed.world.fences.insert(name, Arc::new(fence));
    assert_eq!(plan(&bed.world).fences[0].1.status.proof, None);
    bed.beat(&["h2", "h3"], 12);
    assert_eq!(plan(&bed.world).fences[0].1.status.proof, Some(ProofKind::Human));
}

#[test]
fn a_host_that_was_off_and_boots_again_keeps_its_plugs_trust_and_is_tested_anew() {
    let mut bed = Bed::new();
    bed.beat(&["h2", "h3"], 5);
    bed.call("h1", FenceAction::Status, FenceResult::Off, bed.world.now - 1_000);
    bed.beat(&["h2", "h3"], 5);
    bed.world.agents.insert("h1".into(), agent_object("h1", "boot-h1-again"));
    bed.beat(&["h1", "h2", "h3"], 6);
    let plan = plan(&bed.world);
    let (_, report) = plan.fence_devices.iter().find(|(name, _)| name == "bmc-h1").unwrap();
    assert_eq!(report.status.untrusted_hosts, Vec::<String>::new());
    assert_eq!(report.status.trusted_hosts, ["h1"]);
    assert_eq!(fence_calls(&plan, "h1"), [FenceAction::Status]);
}

#[test]
fn a_humans_word_about_a_host_that_goes_on_beating_never_counts() {
    let mut bed = Bed::doubted();
    let name = stockade_crds::names::host_fence_name("h1", &bed.boot("h1"));
    let say = |bed: &mut Bed, status: Value| {
        let mut fence = serde_json::to_value(bed.world.fences[&name].as_ref()).unwrap();
        fence["spec"]["confirmation"] = json!({"reason": "wrong rack", "by": "user"});
        fence["status"] = status;
        bed.world.fences.insert(name.clone(), of(fence));
    };
    say(&mut bed, json!({}));
    bed.world.seen_since.insert(format!("fence-word/{name}"), bed.world.now);
    bed.beat(&["h1", "h2", "h3"], 10);
    let said = plan(&bed.world).fences[0].1.status.clone();
    assert!(said.refused_confirmation.is_some() && said.proof.is_none());
    let mut kept = serde_json::to_value(&said).unwrap();
    kept["attempts"] = json!([]);
    say(&mut bed, kept);
    bed.beat(&["h2", "h3"], 60);
    assert_eq!(plan(&bed.world).fences[0].1.status.proof, None);
}

#[test]
fn power_is_cut_only_where_it_counts_as_a_proof() {
    let mut bed = Bed::new();
    bed.world.policy = Some(of(json!({
        "metadata": {"name": "default", "generation": 1}, "spec": {"acceptedProofs": [["Human"]]},
    })));
    bed.placed("h1", "Ordered");
    bed.domain("h1", "Running", json!({"epoch": 1, "orderId": 1, "state": "Running"}));
    bed.certificate("h1", json!({}));
    bed.beat(&["h2", "h3"], 30);
    let plan = plan(&bed.world);
    assert!(fence_calls(&plan, "h1").is_empty());
    let (_, h1) = plan.hosts.iter().find(|(n, _)| n == "h1").unwrap();
    let awaits = stockade_crds::v1alpha1::HostState::AwaitingProof;
    assert_eq!(h1.status.printable_status, awaits);
}
