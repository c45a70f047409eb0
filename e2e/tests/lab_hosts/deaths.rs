//! Hosts that are dead, or can't be told from dead ones.

use std::time::{Duration, Instant};

use serde_json::Value;
use stockade_e2e::lab::cases::{Case, LIMIT, Outcome, comes_back, ensure, object, said, sh};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::play::Log;

use super::stage::{Stage, fence};

pub const PANIC: Case =
    ("a_host_that_panics_is_shot_and_read_back_before_its_guest_writes_elsewhere", panic);
pub const CONTROLLERS: Case = (
    "where_a_controller_is_killed_at_each_step_of_a_failover_the_next_goes_on_and_nothing_runs_twice",
    controllers_die,
);
pub const NO_CABLE: Case =
    ("a_host_cut_off_from_everything_is_shot_before_its_guest_writes_elsewhere", no_cable);
pub const NO_PROOF: Case = (
    "a_host_without_power_and_bmc_awaits_proof_until_a_persons_word_has_its_guest_write_elsewhere",
    no_proof,
);

fn panic(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    let since = panics(log, host)?;
    shot(stage, host, since)
}

/// Has a host's kernel panic. It hangs as it stands: one that boots again by itself is another case.
fn panics(log: &Log, host: &Machine) -> Result<Instant, String> {
    let script = "echo 0 >/proc/sys/kernel/panic; \
                  (sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &";
    sh(host, script)?;
    log.say(format!("{} panics", host.name()));
    Ok(Instant::now())
}

/// The steps of a failover that can be seen by now.
fn steps(stage: &Stage<'_>, host: &Machine) -> Result<Vec<&'static str>, String> {
    let fence = fence(stage.cluster, stage.boot(host.name()))?;
    let status = &fence["status"];
    let some = |field: &str| status[field].as_array().is_some_and(|all| !all.is_empty());
    let guests = stage.guests_on(&[host.name()], true);
    let ordered = guests.into_iter().any(|guest| stage.not_ordered_anew(guest).is_err());
    let all = [
        ("certified", !fence.is_null()),
        ("shot", calls(&fence).iter().any(|call| call.starts_with("PowerOff"))),
        ("proven", !status["proof"].is_null()),
        ("denied", some("denied")),
        ("its locks broken", some("locksBroken")),
        ("ordered elsewhere", ordered),
    ];
    Ok(all.into_iter().filter(|(_, seen)| *seen).map(|(step, _)| step).collect())
}

fn controllers_die(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    let boot = stage.boot(host.name()).to_owned();
    let since = panics(log, host)?;
    let mut before = Vec::new();
    let mut killed = 0;
    let ordered = until("its guest is ordered elsewhere", 2 * LIMIT, || {
        let now = steps(&stage, host)?;
        if now != before {
            cluster.kill_controller().map_err(said)?;
            killed += 1;
            let seconds = since.elapsed().as_secs_f64();
            log.say(format!("after {seconds:.1} s a controller is killed: {now:?}"));
            before.clone_from(&now);
        }
        if now.contains(&"ordered elsewhere") { Ok(()) } else { Err(format!("{now:?}")) }
    });
    ordered.map_err(said)?;
    ensure(killed >= 3, || format!("controllers were killed {killed} times only"))?;
    stage.restarted_elsewhere(host, since)?;
    comes_back(cluster, host, &boot)?;
    stage.ends_well()
}

fn no_cable(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    host.cable(false).map_err(said)?;
    let since = Instant::now();
    log.say(format!("{} has no cable", host.name()));
    shot(stage, host, since)
}

/// A host whose plug reads on is shot, and what was on it goes on elsewhere; it is taken in again.
fn shot(stage: Stage<'_>, host: &Machine, since: Instant) -> Outcome {
    let boot = stage.boot(host.name()).to_owned();
    stage.host_is(host.name(), "Fenced", since)?;
    stage.restarted_elsewhere(host, since)?;
    let fence = fence(stage.cluster, &boot)?;
    ensure(fence["status"]["proof"] == "Power", || fence.to_string())?;
    let calls = calls(&fence);
    let off = calls.iter().position(|call| call.starts_with("PowerOff"));
    let read = calls.iter().rposition(|call| *call == "Status Off");
    ensure(off.is_some() && off < read, || format!("off was not read back: {calls:?}"))?;
    host.cable(true).map_err(said)?;
    comes_back(stage.cluster, host, &boot)?;
    stage.ends_well()
}

/// What was asked of the devices, and what came of it.
fn calls(fence: &Value) -> Vec<String> {
    let attempts = fence["status"]["attempts"].as_array();
    let word = |attempt: &Value, field| attempt[field].as_str().unwrap_or_default().to_owned();
    let call = |attempt| format!("{} {}", word(attempt, "action"), word(attempt, "result"));
    attempts.into_iter().flatten().map(call).collect()
}

fn no_proof(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    let boot = stage.boot(host.name()).to_owned();
    host.bmc().deaf(true).map_err(|error| error.to_string())?;
    host.power_cut().map_err(said)?;
    let since = Instant::now();
    log.say(format!("{} and its BMC have no power", host.name()));
    stage.host_is(host.name(), "AwaitingProof", since)?;
    stage.holds_for(20, || {
        stage.guests_on(&[host.name()], true).into_iter().try_for_each(|guest| {
            stage.not_ordered_anew(guest)?;
            let vm = object(cluster, &["svm", guest.prover.name])?;
            let state = &vm["status"]["printableStatus"];
            ensure(state == "Recovering", || format!("{} is {state}", guest.prover.name))
        })
    })?;
    let word = ["fence", "confirm", host.name(), "--reason", "both cords are out", "--yes"];
    let word: Vec<&str> = word.into_iter().chain(["--boot", &boot]).collect();
    log.say(cluster.plugin(&word).map_err(said)?.trim());
    let said_at = Instant::now();
    stage.restarted_elsewhere(host, said_at)?;
    let fence = fence(cluster, &boot)?;
    ensure(fence["status"]["proof"] == "Human", || fence.to_string())?;
    host.bmc().deaf(false).map_err(|error| error.to_string())?;
    std::thread::sleep(Duration::from_secs(1));
    comes_back(cluster, host, &boot)?;
    stage.ends_well()
}
