//! Hosts that go down cleanly, by the real systemd: what was on them is released, and nothing has to
//! be proven.

use std::time::Instant;

use stockade_e2e::lab::cases::{
    Case, LIMIT, Outcome, comes_back, ensure, kubectl, object, runs, said, sh,
};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::play::Log;

use super::stage::{Stage, fence};

pub const REBOOT: Case = ("a_clean_reboot_keeps_its_guest_for_the_host_and_nobody_is_shot", reboot);
pub const POWER_OFF: Case =
    ("a_clean_power_off_starts_its_guest_elsewhere_and_nobody_is_shot", power_off);

/// The stage, with the policy that tells a reboot from a power-off, and the host that goes down; its
/// agent holds the lock that the package lets it hold for long enough.
fn stage<'a>(cluster: &'a Cluster, log: &'a Log) -> Result<(Stage<'a>, &'a Machine), String> {
    let stage = Stage::set(cluster, log)?;
    let policy = r#"{"spec": {"hostShutdown": "Conditional"}}"#;
    kubectl(cluster, &["patch", "sap", "default", "--type=merge", "-p", policy])?;
    let host = stage.victim()?;
    let logind = "org.freedesktop.login1 /org/freedesktop/login1 org.freedesktop.login1.Manager";
    let locks = sh(host, &format!("busctl call {logind} ListInhibitors"))?;
    ensure(locks.contains(r#""shutdown" "Stockade""#), || format!("no lock of ours: {locks}"))?;
    let delay = sh(host, &format!("busctl get-property {logind} InhibitDelayMaxUSec"))?;
    ensure(delay.trim() == "t 900000000", || format!("logind waits for {delay}"))?;
    let agent = object(cluster, &["sha", "agent", "-n", &space(host)])?;
    let problems = agent["status"]["problems"].to_string();
    ensure(!problems.contains("logind"), || problems.clone())?;
    Ok((stage, host))
}

fn space(host: &Machine) -> String {
    format!("stockade-host-{}", host.name())
}

/// Goes down by this verb of systemctl; waits until the host has said that all is released.
fn goes_down(stage: &Stage<'_>, host: &Machine, verb: &str, how: &str) -> Outcome {
    let since = Instant::now();
    sh(host, &format!("systemctl {verb}"))?;
    let released = until("the host says that this boot is over", LIMIT, || {
        let agent = object(stage.cluster, &["sha", "agent", "-n", &space(host)])?;
        let status = &agent["status"];
        let said = status["goingDown"] == how && status["down"] == true;
        if said { Ok(()) } else { Err(status.to_string()) }
    });
    released.map_err(said)?;
    let (name, seconds) = (host.name(), since.elapsed().as_secs_f64());
    stage.log.say(format!("{name} has released everything after {seconds:.1} s"));
    Ok(())
}

/// Nobody tried to prove the end of a boot that was said to be over.
fn not_fenced(stage: &Stage<'_>, boot: &str) -> Outcome {
    let fence = fence(stage.cluster, boot)?;
    ensure(fence.is_null(), || format!("there is a certificate: {fence}"))
}

fn reboot(cluster: &Cluster, log: &Log) -> Outcome {
    let (stage, host) = stage(cluster, log)?;
    let boot = stage.boot(host.name()).to_owned();
    goes_down(&stage, host, "reboot", "Reboot")?;
    let held = stage.guests_on(&[host.name()], true);
    for guest in &held {
        let vm = object(cluster, &["svm", guest.prover.name])?;
        let status = &vm["status"];
        let waits =
            status["printableStatus"] == "Held" && status["waitsFor"]["host"] == host.name();
        ensure(waits, || format!("it does not wait for its host: {status}"))?;
    }
    comes_back(cluster, host, &boot)?;
    not_fenced(&stage, &boot)?;
    for guest in held {
        let on = runs(cluster, guest.prover.name, "")?;
        ensure(on == host.name(), || format!("{} runs on {on}", guest.prover.name))?;
        stage.restarted(guest)?;
    }
    stage.left_alone(&[host.name()])?;
    stage.nobody_is_shot()?;
    stage.ends_well()
}

fn power_off(cluster: &Cluster, log: &Log) -> Outcome {
    let (stage, host) = stage(cluster, log)?;
    let boot = stage.boot(host.name()).to_owned();
    let since = Instant::now();
    goes_down(&stage, host, "poweroff", "Shutdown")?;
    for guest in stage.guests_on(&[host.name()], true) {
        let on = runs(cluster, guest.prover.name, host.name())?;
        stage.restarted(guest)?;
        let (name, seconds) = (guest.prover.name, since.elapsed().as_secs_f64());
        log.say(format!("{name} writes on {on} after {seconds:.1} s"));
    }
    let off = until("it has no power", LIMIT, || {
        if host.is_on() { Err("it is on".to_owned()) } else { Ok(()) }
    });
    off.map_err(said)?;
    stage.left_alone(&[host.name()])?;
    not_fenced(&stage, &boot)?;
    comes_back(cluster, host, &boot)?;
    stage.ends_well()
}
