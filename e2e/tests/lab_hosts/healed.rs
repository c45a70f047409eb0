//! A host that was taken for dead, and is back before anything was placed in its stead.

use std::time::Instant;

use stockade_e2e::lab::cases::{Case, LIMIT, Outcome, ensure, kubectl, machine, object, said, sh};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::local_hosts::Signal;
use stockade_e2e::play::Log;

use super::stage::{Stage, fence, signal_agent};

pub const HEALED: Case = (
    "a_host_that_is_back_between_its_certificate_and_the_placement_goes_on_and_nothing_is_placed",
    healed,
);

/// A host is Suspect sooner, so that the person's word comes while what is cut off from its storage
/// is still waited for; it is not shot any sooner.
const SOON_SUSPECT: &str = r#"{"spec": {"suspectSeconds": 12}}"#;

fn healed(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let before = object(cluster, &["sap", "default"])?["spec"]["suspectSeconds"].clone();
    policy(cluster, SOON_SUSPECT)?;
    let outcome = taken_for_dead(&stage, stage.victim()?);
    policy(cluster, &format!(r#"{{"spec": {{"suspectSeconds": {before}}}}}"#))?;
    outcome?;
    stage.ends_without_a_shot()
}

fn policy(cluster: &Cluster, patch: &str) -> Outcome {
    kubectl(cluster, &["patch", "sap", "default", "--type=merge", "-p", patch]).map(drop)
}

/// A host is cut off, and a person says wrongly that it is dead. Between the certificate and the
/// placement lies the denial, and the agent that would deny sleeps. So does the controller from then
/// on: when both go on, the host has beaten, and what was planned before that is to be done.
fn taken_for_dead(stage: &Stage<'_>, host: &Machine) -> Outcome {
    let (cluster, log) = (stage.cluster, stage.log);
    let server = machine(cluster, "s1")?;
    let boot = stage.boot(host.name()).to_owned();
    signal_agent(server, "STOP")?;
    // Its power would read on, and a word against that is another case.
    host.bmc().deaf(true).map_err(|error| error.to_string())?;
    host.cable(false).map_err(said)?;
    let since = Instant::now();
    log.say(format!("{} has no cable, and its BMC no power", host.name()));
    stage.host_is(host.name(), "Suspect", since)?;
    let word = ["fence", "confirm", host.name(), "--reason", "it looks dead", "--yes"];
    let word: Vec<&str> = word.into_iter().chain(["--boot", &boot]).collect();
    log.say(cluster.plugin(&word).map_err(said)?.trim());
    cluster.signal_controller(Signal::STOP).map_err(said)?;
    host.cable(true).map_err(said)?;
    log.say(format!("it has its cable again after {:.1} s", since.elapsed().as_secs_f64()));
    let certificate = fence(cluster, &boot)?;
    let status = &certificate["status"];
    let stands = status["proof"] == "Human" && status["revoked"].is_null();
    let nothing = |field: &str| status[field].as_array().is_none_or(Vec::is_empty);
    ensure(stands && nothing("denied") && nothing("locksBroken"), || certificate.to_string())?;
    let last = renewed(cluster, host)?;
    let beats = until("it renews its Lease", LIMIT, || {
        let now = renewed(cluster, host)?;
        if now == last { Err(now) } else { Ok(()) }
    });
    beats.map_err(said)?;
    log.say(format!("it beats again after {:.1} s", since.elapsed().as_secs_f64()));
    stage.guests.iter().try_for_each(|guest| stage.not_ordered_anew(guest))?;
    signal_agent(server, "CONT")?;
    cluster.signal_controller(Signal::CONT).map_err(said)?;
    let revoked = until("its certificate is revoked", LIMIT, || {
        let certificate = fence(cluster, &boot)?;
        let why = certificate["status"]["revoked"].as_str().unwrap_or_default().to_owned();
        if why.is_empty() { Err(certificate.to_string()) } else { Ok(why) }
    });
    log.say(format!("its certificate is revoked: {}", revoked.map_err(said)?));
    host.bmc().deaf(false).map_err(|error| error.to_string())?;
    stage.host_is(host.name(), "Ready", since)?;
    // What was planned before the host was back would be done by now.
    stage.holds_for(30, || {
        stage.nobody_is_shot()?;
        stage.left_alone(&[])
    })?;
    let exports = sh(server, "cat /etc/exports.d/stockade.exports")?;
    let entry = format!("{}(", host.address());
    ensure(exports.contains(&entry), || format!("it is still denied: {exports}"))?;
    let over = until("the certificate is closed", LIMIT, || {
        let certificate = fence(cluster, &boot)?;
        if certificate.is_null() { Ok(()) } else { Err(certificate.to_string()) }
    });
    over.map_err(said)
}

/// When a host last renewed its Lease, by its own word.
fn renewed(cluster: &Cluster, host: &Machine) -> Result<String, String> {
    let namespace = format!("stockade-host-{}", host.name());
    let lease = object(cluster, &["lease", "agent", "-n", &namespace])?;
    Ok(lease["spec"]["renewTime"].as_str().unwrap_or_default().to_owned())
}
