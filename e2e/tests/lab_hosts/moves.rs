//! Guests that go from host to host under virtlockd, and hosts that are emptied.

use std::time::Instant;

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, apply, comes_back, condition, ensure, kubectl, machine, object,
    runs, said, sh,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::stage::{Guest, LONG, Stage, fence};

pub const FOUR: Case =
    ("a_guest_that_moves_four_times_never_boots_and_its_lock_goes_with_it", four_moves);
pub const DRAIN: Case =
    ("a_drained_host_without_power_is_not_fenced_and_its_guest_never_booted", drain);

fn four_moves(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    moves_are_ready(cluster)?;
    let guest = &stage.guests[0];
    let mut from = guest.host.clone();
    for round in 1..=4 {
        let at = HOSTS.iter().position(|name| *name == from).unwrap_or_default();
        let to = HOSTS[(at + 1) % HOSTS.len()];
        moves_to(&stage, guest, to, round)?;
        from = to.to_owned();
    }
    let others = stage.guests.iter().filter(|other| other.prover.name != guest.prover.name);
    others.into_iter().try_for_each(|other| stage.goes_on(other))?;
    stage.ends_without_a_shot()
}

/// Waits until every host's certificates for moves are in force.
fn moves_are_ready(cluster: &Cluster) -> Outcome {
    let ready = until("the certificates for moves are in force", LIMIT, || {
        for name in HOSTS {
            let agent = object(cluster, &["sha", "agent", "-n", &format!("stockade-host-{name}")])?;
            if agent["status"]["movesReady"] != true {
                return Err(format!("{name}: {}", agent["status"]));
            }
        }
        Ok(())
    });
    ready.map_err(said)
}

/// Moves a guest live to a host, and looks at what came of it.
fn moves_to(stage: &Stage<'_>, guest: &Guest, to: &str, round: usize) -> Outcome {
    let (cluster, name) = (stage.cluster, guest.prover.name);
    let before = guest.prover.counters(cluster)?;
    let since = Instant::now();
    let order = format!("{name}-lab-{round}");
    let words = ["delete", "svmm", &order, "--ignore-not-found", "--wait=true"];
    kubectl(cluster, &words)?;
    apply(
        cluster,
        &format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachineMigration\n\
             metadata: {{name: {order}, namespace: default}}\n\
             spec: {{vm: {name}, target: {to}, live: true}}\n"
        ),
    )?;
    let over = until(&format!("{name} has moved to {to}"), LIMIT, || {
        let order = object(cluster, &["svmm", &order])?;
        match order["status"]["outcome"].as_str().unwrap_or_default() {
            "" | "Pending" => Err(condition(&order, "Ready").1.to_owned()),
            _ => Ok(order),
        }
    });
    let over = over.map_err(said)?;
    ensure(over["status"]["outcome"] == "Succeeded", || over["status"].to_string())?;
    let on = runs(cluster, name, "")?;
    ensure(on == to, || format!("{name} runs on {on} and not on {to}"))?;
    guest.prover.goes_on(cluster)?;
    let after = guest.prover.counters(cluster)?;
    ensure(after.1 == before.1 && after.0 > before.0, || {
        format!("{name} counts {after:?} after {before:?}")
    })?;
    only_there(cluster, name, to)?;
    // Where the hosts' clocks differ libvirt can't tell for how long it stood still.
    let still = over["status"]["downtimeMilliseconds"].as_i64();
    let still = still.map(|ms| format!(", and stood still for {ms} ms")).unwrap_or_default();
    let seconds = since.elapsed().as_secs_f64();
    stage.log.say(format!("{name} has moved to {to} in {seconds:.1} s{still}"));
    Ok(())
}

/// Its only QEMU is on this host, which holds its lock.
fn only_there(cluster: &Cluster, vm: &str, host: &str) -> Outcome {
    for name in HOSTS {
        let found =
            sh(machine(cluster, name)?, &format!("pgrep -fc '[g]uest=default.{vm},' || true"))?;
        let expected = if name == host { "1" } else { "0" };
        ensure(found.trim() == expected, || format!("{found} QEMUs of {vm} on {name}"))?;
    }
    // It is looked at for its lock once it runs.
    let locked = until(&format!("{vm} has its lock on {host}"), LIMIT, || {
        let domains = object(cluster, &["sdom", "-n", &format!("stockade-host-{host}")])?;
        let items = domains["items"].as_array();
        let found = items.into_iter().flatten().find(|domain| domain["spec"]["vm"]["name"] == vm);
        match found.map(|domain| &domain["status"]) {
            Some(status) if status["lock"]["held"] == true => Ok(()),
            status => Err(format!("{status:?}")),
        }
    });
    locked.map_err(said)
}

fn drain(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    moves_are_ready(cluster)?;
    let host = stage.victim()?;
    let (name, boot) = (host.name(), stage.boot(host.name()).to_owned());
    let since = Instant::now();
    log.say(cluster.plugin(&["drain", name]).map_err(said)?.trim());
    let empty = until("the host is empty", LIMIT, || {
        match condition(&object(cluster, &["shost", name])?, "Drained") {
            ("True", _) => Ok(()),
            (_, message) => Err(message.to_owned()),
        }
    });
    empty.map_err(said)?;
    log.say(format!("{name} is empty after {:.1} s", since.elapsed().as_secs_f64()));
    for guest in stage.guests_on(&[name], true) {
        let on = runs(cluster, guest.prover.name, name)?;
        only_there(cluster, guest.prover.name, &on)?;
    }
    host.power_cut().map_err(said)?;
    stage.holds_for(LONG, || {
        let fence = fence(cluster, &boot)?;
        ensure(fence.is_null(), || format!("there is a certificate: {fence}"))?;
        stage.left_alone(&[name])?;
        stage.guests_on(&[name], true).into_iter().try_for_each(|guest| {
            guest.prover.goes_on(cluster)?;
            let (_, boots) = guest.prover.counters(cluster)?;
            ensure(boots == guest.boots, || format!("{guest:?} has booted: {boots}"))
        })
    })?;
    log.say(cluster.plugin(&["uncordon", name]).map_err(said)?.trim());
    comes_back(cluster, host, &boot)?;
    stage.ends_well()
}
