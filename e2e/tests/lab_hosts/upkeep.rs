//! A lock manager in maintenance.

use std::time::{Duration, Instant};

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, apply, condition, ensure, kubectl, machine, object, runs, said, sh,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::by_hand::is_locked;
use super::stage::{LOCKS_APART, Stage, allow_nfs_server, stop_nfs_server};

pub const MAINTENANCE: Case = (
    "while_its_lock_manager_is_in_maintenance_no_guest_stops_and_none_starts_and_it_says_why",
    maintenance,
);
pub const LOCK_SERVER: Case = (
    "while_the_lock_server_is_down_for_two_minutes_no_guest_stops_and_all_are_locked_afterwards",
    lock_server,
);

/// A VM that nobody has started yet.
const LATE: &str = "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
                    metadata: {name: late, namespace: default}\nspec:\n  memory: 64Mi\n  \
                    disks:\n  - {name: root, storage: vms, format: raw, blank: {}, size: 16Mi}\n";

fn mode(cluster: &Cluster, mode: &str) -> Outcome {
    let patch = format!(r#"{{"spec": {{"mode": "{mode}"}}}}"#);
    kubectl(cluster, &["patch", "slm", "locks", "--type=merge", "-p", &patch]).map(drop)
}

/// Waits until a VM waits for the end of the maintenance, and says so; gives its words.
fn waits(cluster: &Cluster, vm: &str) -> Result<String, String> {
    let waits = until(&format!("{vm} waits and says for what"), LIMIT, || {
        let object = object(cluster, &["svm", vm])?;
        let (state, message) =
            (&object["status"]["printableStatus"], condition(&object, "Ready").1);
        let told = state == "Blocked" && message.contains("locks is in maintenance");
        if told { Ok(message.to_owned()) } else { Err(format!("{state}: {message}")) }
    });
    waits.map_err(said)
}

fn is_blocked(cluster: &Cluster, vm: &str) -> Outcome {
    let vm = object(cluster, &["svm", vm])?;
    ensure(vm["status"]["printableStatus"] == "Blocked", || vm["status"].to_string())
}

fn maintenance(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    mode(cluster, "Maintenance")?;
    apply(cluster, LATE)?;
    log.say(waits(cluster, "late")?);
    stage.holds_for(20, || {
        stage.left_alone(&[])?;
        is_blocked(cluster, "late")
    })?;
    mode(cluster, "Active")?;
    let on = runs(cluster, "late", "")?;
    log.say(format!("late runs on {on}"));
    kubectl(cluster, &["delete", "svm", "late"])?;
    stage.left_alone(&[])?;
    stage.ends_without_a_shot()
}

/// The host that serves the locks: its own guest is the one that ends meanwhile, since libvirt can't
/// give back a lock whose server does not answer.
const SERVER: &str = "h3";
/// For how long its server is down.
const DOWN: Duration = Duration::from_secs(120);

/// Each guest's lock is held at the server, as another host sees it.
fn all_locked(stage: &Stage<'_>) -> Outcome {
    for guest in &stage.guests {
        let name = guest.prover.name;
        let on = runs(stage.cluster, name, "")?;
        let other = HOSTS.into_iter().find(|host| *host != on).unwrap_or_default();
        let disk = format!("/srv/stockade/vms/default/{name}.raw");
        is_locked(machine(stage.cluster, other)?, "/srv/stockade/locks", &disk)?;
    }
    Ok(())
}

/// Waits until so many hosts have the storage of the locks.
fn reached(cluster: &Cluster, hosts: i64) -> Outcome {
    let reached = until(&format!("{hosts} hosts reach the locks"), LIMIT, || {
        let storage = object(cluster, &["sst", "locks"])?;
        let ready = &storage["status"]["readyHosts"];
        if *ready == hosts { Ok(()) } else { Err(format!("{ready} hosts do")) }
    });
    reached.map_err(said)
}

fn lock_server(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set_of(cluster, log, &LOCKS_APART)?;
    let server = machine(cluster, SERVER)?;
    let of_server = stage.guests_on(&[SERVER], true);
    let Some(ends) = of_server.first() else { return Err(format!("no guest is on {SERVER}")) };
    all_locked(&stage)?;
    mode(cluster, "Maintenance")?;
    apply(cluster, LATE)?;
    log.say(waits(cluster, "late")?);
    for name in HOSTS {
        let told = until(&format!("{name} is told of the maintenance"), LIMIT, || {
            let agent = object(cluster, &["sha", "agent", "-n", &format!("stockade-host-{name}")])?;
            let lock = &agent["spec"]["lock"];
            if lock["maintenance"] == true { Ok(()) } else { Err(lock.to_string()) }
        });
        told.map_err(said)?;
    }
    stop_nfs_server(server)?;
    let since = Instant::now();
    reached(cluster, 1)?;
    log.say("the lock server is down");
    let name = ends.prover.name;
    sh(server, &format!("kill -9 $(cat /run/libvirt/qemu/default.{name}.pid)"))?;
    log.say(waits(cluster, name)?);
    let left = DOWN.saturating_sub(since.elapsed()).as_secs() + 1;
    stage.holds_for(left, || {
        stage.left_alone(&[SERVER])?;
        is_blocked(cluster, "late")?;
        is_blocked(cluster, name)
    })?;
    let runs_again = server.try_sh("systemctl is-active nfs-server", LIMIT).map_err(said)?;
    ensure(!runs_again.ok, || "its server was started".to_owned())?;
    allow_nfs_server(server)?;
    log.say(format!("the lock server may start after {:.1} s", since.elapsed().as_secs_f64()));
    reached(cluster, 3)?;
    mode(cluster, "Active")?;
    for vm in ["late", name] {
        let on = runs(cluster, vm, "")?;
        log.say(format!("{vm} runs on {on}"));
    }
    stage.restarted(ends)?;
    stage.left_alone(&[SERVER])?;
    all_locked(&stage)?;
    log.say("all guests are locked");
    kubectl(cluster, &["delete", "svm", "late"])?;
    stage.ends_without_a_shot()
}
