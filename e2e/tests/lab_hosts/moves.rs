//! Guests that go from host to host with their locks, and what the wire shows of them.

use std::time::{Duration, Instant};

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, Prover, apply, condition, ensure, kubectl, machine, object, runs,
    said, sh,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::stage::Stage;

pub const FOUR: Case =
    ("a_guest_that_moves_four_times_never_boots_and_its_lock_goes_with_it", four_moves);
pub const CANARY: Case =
    ("the_memory_of_a_guest_that_moves_never_crosses_the_wire_in_clear", canary);

fn four_moves(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let guest = &stage.guests[0];
    moves_around(cluster, log, guest.prover, VIRTLOCKD)?;
    let others = stage.guests.iter().filter(|other| other.prover.name != guest.prover.name);
    others.into_iter().try_for_each(|other| stage.goes_on(other))?;
    stage.ends_without_a_shot()
}

/// Shell that counts the locks that virtlockd holds on this host for the VM's disk.
pub const VIRTLOCKD: &str = r#"lock=$(printf "/srv/stockade/vms/default/$vm.raw" | sha256sum | cut -d' ' -f1)
lslocks -n -o COMMAND,PATH | grep -c "^virtlockd.*$lock""#;

/// Moves a running guest four times, each time to the next host. `locks` is shell that writes how
/// many locks a host holds for the VM that `$vm` names.
pub fn moves_around(cluster: &Cluster, log: &Log, prover: Prover<'_>, locks: &str) -> Outcome {
    moves_are_ready(cluster)?;
    for round in 1..=4 {
        let from = runs(cluster, prover.name, "")?;
        let at = HOSTS.iter().position(|name| *name == from).unwrap_or_default();
        moves_to(cluster, log, prover, (&from, HOSTS[(at + 1) % HOSTS.len()]), round, locks)?;
    }
    Ok(())
}

/// Waits until every host's certificates for moves are in force.
pub fn moves_are_ready(cluster: &Cluster) -> Outcome {
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

/// Orders a live move, in the place of an earlier one of that name.
pub fn order_move(cluster: &Cluster, order: &str, vm: &str, to: &str) -> Outcome {
    let words = ["delete", "svmm", order, "--ignore-not-found", "--wait=true"];
    kubectl(cluster, &words)?;
    apply(
        cluster,
        &format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachineMigration\n\
             metadata: {{name: {order}, namespace: default}}\n\
             spec: {{vm: {vm}, target: {to}, live: true}}\n"
        ),
    )
}

/// Moves a guest live from a host to another, and looks at what came of it; at each look meanwhile
/// its lock is held where it runs and nowhere else.
fn moves_to(
    cluster: &Cluster,
    log: &Log,
    prover: Prover<'_>,
    (from, to): (&str, &str),
    round: usize,
    locks: &str,
) -> Outcome {
    let name = prover.name;
    let before = prover.counters(cluster)?;
    let since = Instant::now();
    let order = format!("{name}-lab-{round}");
    order_move(cluster, &order, name, to)?;
    let mut looks = 0;
    let over = until(&format!("{name} has moved to {to}"), LIMIT, || {
        for host in [from, to] {
            match locked_where_it_runs(cluster, name, host, locks) {
                Ok(looked) => looks += usize::from(looked),
                Err(why) => return Ok(Err(why)),
            }
        }
        // Each look takes the hosts' only CPUs for a moment.
        std::thread::sleep(Duration::from_secs(1));
        let order = object(cluster, &["svmm", &order])?;
        match order["status"]["outcome"].as_str().unwrap_or_default() {
            "" | "Pending" => Err(condition(&order, "Ready").1.to_owned()),
            _ => Ok(Ok(order)),
        }
    });
    let over = over.map_err(said)??;
    ensure(over["status"]["outcome"] == "Succeeded", || over["status"].to_string())?;
    let on = runs(cluster, name, "")?;
    ensure(on == to, || format!("{name} runs on {on} and not on {to}"))?;
    prover.goes_on(cluster)?;
    let after = prover.counters(cluster)?;
    ensure(after.1 == before.1 && after.0 > before.0, || {
        format!("{name} counts {after:?} after {before:?}")
    })?;
    only_there(cluster, name, to)?;
    // Where the hosts' clocks differ libvirt can't tell for how long it stood still.
    let still = over["status"]["downtimeMilliseconds"].as_i64();
    let still = still.map(|ms| format!(", and stood still for {ms} ms")).unwrap_or_default();
    let seconds = since.elapsed().as_secs_f64();
    log.say(format!("{name} has moved to {to} in {seconds:.1} s, {looks} looks{still}"));
    Ok(())
}

/// Looks once at a host: it holds the VM's lock if the VM runs there, and does not if it does not.
/// False: the VM came or went just then, which says nothing.
pub fn locked_where_it_runs(
    cluster: &Cluster,
    vm: &str,
    host: &str,
    locks: &str,
) -> Result<bool, String> {
    let script = format!(
        "vm={vm}; state() {{ timeout 20 virsh domstate default.{vm} 2>/dev/null || echo gone; }}\n\
         state; {locks}; state"
    );
    let seen = machine(cluster, host)?.try_sh(&script, LIMIT).map_err(said)?;
    let words: Vec<&str> = seen.out.split('\n').map(str::trim).filter(|s| !s.is_empty()).collect();
    let [before, held, after] = words[..] else { return Err(format!("{host}: {seen:?}")) };
    if before != after {
        return Ok(false);
    }
    ensure((held == "1") == (before == "running"), || {
        format!("{host} holds {held} locks of {vm}, which is {before} there")
    })?;
    Ok(true)
}

/// The guest's own program is the canary: it lies in its memory, and on its disk.
fn canary(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    moves_are_ready(cluster)?;
    let (host, prover) = (stage.victim()?, stage.guests[0].prover);
    let capture = cluster.lab().capture(&Prover::disk()[..64]).map_err(said)?;
    // NFS is in clear, so that it is seen whether the canary would be.
    let path = format!("/srv/stockade/vms/default/{}.raw", prover.name);
    sh(host, &format!("dd if={path} of=/dev/null bs=4096 count=1 iflag=direct"))?;
    moves_around(cluster, log, prover, VIRTLOCKD)?;
    let seen = capture.end().map_err(said)?;
    log.say(format!("{seen:?}"));
    ensure(seen.in_nfs > 0 && seen.missed == 0, || format!("it did not look well: {seen:?}"))?;
    ensure(seen.elsewhere_bytes > 4 << 20, || format!("no memory crossed: {seen:?}"))?;
    ensure(seen.elsewhere == 0, || format!("memory crossed in clear: {seen:?}"))?;
    stage.ends_without_a_shot()
}

/// Its only QEMU is on this host, which holds its lock.
pub fn only_there(cluster: &Cluster, vm: &str, host: &str) -> Outcome {
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
