//! Hosts that are dead, or can't be told from dead ones.

use std::time::{Duration, Instant};

use serde_json::Value;
use stockade_e2e::lab::cases::{Case, Outcome, comes_back, ensure, object, said, sh};
use stockade_e2e::lab::{Cluster, Machine};
use stockade_e2e::play::Log;

use super::stage::{Stage, fence};

pub const PANIC: Case =
    ("a_host_that_panics_is_shot_and_read_back_before_its_guest_writes_elsewhere", panic);
pub const NO_CABLE: Case =
    ("a_host_cut_off_from_everything_is_shot_before_its_guest_writes_elsewhere", no_cable);
pub const NO_PROOF: Case = (
    "a_host_without_power_and_bmc_awaits_proof_until_a_persons_word_has_its_guest_write_elsewhere",
    no_proof,
);

fn panic(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    // It hangs as it stands: one that boots again by itself is another case.
    let script = "echo 0 >/proc/sys/kernel/panic; \
                  (sleep 1; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 </dev/null &";
    sh(host, script)?;
    let since = Instant::now();
    log.say(format!("{} panics", host.name()));
    shot(stage, host, since)
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
