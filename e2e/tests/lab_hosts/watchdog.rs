//! Hosts without a power device, which reset themselves.

use std::fs;
use std::time::Instant;

use stockade_e2e::lab::cases::{
    Case, LIMIT, Outcome, comes_back, ensure, kubectl, object, runs, said, sh,
};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::play::Log;

use super::stage::{Stage, fence};

pub const RESET: Case = (
    "a_host_without_a_power_device_that_loses_every_path_is_reset_before_its_guest_writes_elsewhere",
    is_reset,
);

/// A host must stop before the server, whose lease is 30 s, gives its locks away. The watchdog is
/// QEMU's, and is named for that.
const SELF_FENCE: &str = r#"{"spec": {
    "acceptedProofs": [["Power"], ["Elapsed"], ["Human"]],
    "selfFence": {"stopSeconds": 14, "killSeconds": 3, "watchdogSeconds": 15,
                  "trustWatchdogs": ["i6300ESB timer"]}}}"#;
const AS_BEFORE: &str = r#"{"spec": {"acceptedProofs": null, "selfFence": null}}"#;

fn is_reset(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    let declared = relies_on_its_watchdog(cluster, host);
    let outcome = declared.and_then(|()| {
        log.say(format!("{} is armed", host.name()));
        cut_off(&stage, host)
    });
    let before = has_its_device_again(cluster, host.name());
    outcome.and(before)?;
    stage.ends_well()
}

fn policy(cluster: &Cluster, patch: &str) -> Outcome {
    kubectl(cluster, &["patch", "sap", "default", "--type=merge", "-p", patch]).map(drop)
}

fn spec(cluster: &Cluster, host: &str, patch: &str) -> Outcome {
    kubectl(cluster, &["patch", "shost", host, "--type=merge", "-p", patch]).map(drop)
}

/// Takes the host's power device away, and waits until its watchdog is armed in its place.
fn relies_on_its_watchdog(cluster: &Cluster, host: &Machine) -> Outcome {
    // Debian loads no driver of a watchdog by itself.
    sh(host, "modprobe i6300esb")?;
    policy(cluster, SELF_FENCE)?;
    spec(cluster, host.name(), r#"{"spec": {"selfFencing": true, "fencing": null}}"#)?;
    let namespace = format!("stockade-host-{}", host.name());
    let armed = until("its watchdog is armed", LIMIT, || {
        let agent = object(cluster, &["sha", "agent", "-n", &namespace])?;
        let status = &agent["status"];
        if status["armed"] == true { Ok(()) } else { Err(status["problems"].to_string()) }
    });
    armed.map_err(said)
}

fn has_its_device_again(cluster: &Cluster, host: &str) -> Outcome {
    let patch = format!(
        r#"{{"spec": {{"selfFencing": null, "fencing": [{{"devices": ["bmc-{host}"]}}]}}}}"#
    );
    spec(cluster, host, &patch)?;
    policy(cluster, AS_BEFORE)
}

/// How often a machine's kernel has started.
pub fn kernels(host: &Machine) -> Result<usize, String> {
    let text = fs::read(host.serial_log()).map_err(|error| error.to_string())?;
    Ok(String::from_utf8_lossy(&text).matches("Linux version").count())
}

fn cut_off(stage: &Stage<'_>, host: &Machine) -> Outcome {
    let boot = stage.boot(host.name()).to_owned();
    let before = kernels(host)?;
    host.cable(false).map_err(said)?;
    let since = Instant::now();
    stage.log.say(format!("{} has no cable", host.name()));
    let reset = until("its watchdog has reset it", LIMIT, || {
        if kernels(host)? > before { Ok(()) } else { Err("its kernel runs on".to_owned()) }
    });
    reset.map_err(said)?;
    stage.log.say(format!("it is reset after {:.1} s", since.elapsed().as_secs_f64()));
    for guest in stage.guests_on(&[host.name()], true) {
        stage.not_ordered_anew(guest)?;
        let on = runs(stage.cluster, guest.prover.name, host.name())?;
        stage.restarted(guest)?;
        let seconds = since.elapsed().as_secs_f64();
        stage.log.say(format!("{} writes on {on} after {seconds:.1} s", guest.prover.name));
    }
    stage.left_alone(&[host.name()])?;
    let fence = fence(stage.cluster, &boot)?;
    ensure(fence["status"]["proof"] == "Elapsed", || fence.to_string())?;
    host.cable(true).map_err(said)?;
    comes_back(stage.cluster, host, &boot)
}
