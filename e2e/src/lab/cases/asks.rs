//! What the lab's cases ask and do.

use std::time::Duration;

use serde_json::Value;

use crate::lab::{Cluster, LabError, Machine, until};

/// How long one thing may take on machines that are emulated, on a machine that is busy.
pub const LIMIT: Duration = Duration::from_secs(600);
/// The hypervisor hosts.
pub const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Why a case does not hold.
pub type Outcome = Result<(), String>;

/// An error with its causes.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

/// Why a case does not hold, in the words of an error.
#[must_use]
pub fn said(error: LabError) -> String {
    chain(&error)
}

/// An object as JSON; null if it is not there.
///
/// # Errors
/// kubectl's words.
pub fn object(cluster: &Cluster, words: &[&str]) -> Result<Value, String> {
    let words: Vec<&str> =
        ["get", "--ignore-not-found", "-o", "json"].into_iter().chain(words.to_vec()).collect();
    let text = cluster.plane().kubectl(&words).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

/// Status and message of a condition; empty if it is not there.
#[must_use]
pub fn condition<'a>(object: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    let text = |field| found.and_then(|c: &Value| c[field].as_str()).unwrap_or_default();
    (text("status"), text("message"))
}

/// Runs a shell command line in a machine; gives its standard output.
///
/// # Errors
/// It failed.
pub fn sh(machine: &Machine, script: &str) -> Result<String, String> {
    machine.sh(script).map_err(said)
}

/// A machine by its name.
///
/// # Errors
/// There is none.
pub fn machine<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Machine, String> {
    cluster.lab().machine(name).map_err(said)
}

/// Applies manifests.
///
/// # Errors
/// kubectl's words.
pub fn apply(cluster: &Cluster, text: &str) -> Outcome {
    let applied = cluster.plane().kubectl_stdin(&["apply", "-f", "-"], text);
    applied.map(drop).map_err(|error| error.to_string())
}

/// Holds if the first word does.
///
/// # Errors
/// Why it does not.
pub fn ensure(true_: bool, why: impl FnOnce() -> String) -> Outcome {
    if true_ { Ok(()) } else { Err(why()) }
}

/// Waits until a VM runs on another host than `not_on`, and gives its host.
///
/// # Errors
/// What it is instead.
pub fn runs(cluster: &Cluster, vm: &str, not_on: &str) -> Result<String, String> {
    let found = until(&format!("{vm} runs"), LIMIT, || {
        let object = object(cluster, &["svm", vm])?;
        let state = object["status"]["printableStatus"].as_str().unwrap_or_default();
        let host = object["status"]["host"].as_str().unwrap_or_default().to_owned();
        let well = state == "Running" && !host.is_empty() && host != not_on;
        if well {
            Ok(host)
        } else {
            Err(format!("{state} on {host}; {}", condition(&object, "Ready").1))
        }
    });
    found.map_err(said)
}

/// Silence that counts takes longer on machines that are emulated: here order and proof are
/// judged, not seconds.
const SLOW_POLICY: &str =
    r#"{"spec": {"heartbeatSeconds": 5, "suspectSeconds": 30, "actSeconds": 45}}"#;

/// Applies an example with its hosts, once their fence devices are declared.
///
/// # Errors
/// kubectl's words.
pub fn hosts_declared(cluster: &Cluster, example: &str) -> Outcome {
    apply(cluster, &cluster.fence_devices())?;
    let policy = ["patch", "sap", "default", "--type=merge", "-p", SLOW_POLICY];
    kubectl(cluster, &policy)?;
    kubectl(cluster, &["apply", "-f", example]).map(drop)
}

/// Runs kubectl with the rights of the one who installs.
///
/// # Errors
/// Its words.
pub fn kubectl(cluster: &Cluster, words: &[&str]) -> Result<String, String> {
    cluster.plane().kubectl(words).map_err(|error| error.to_string())
}

/// Deletes every VM and lock manager, and waits until they are gone.
///
/// # Errors
/// What is left.
pub fn without_vms(cluster: &Cluster) -> Outcome {
    // A guest that obeys nobody would be given its minute.
    for vm in kubectl(cluster, &["get", "svm", "-o", "name"])?.lines() {
        let hurry = r#"{"spec": {"stopGraceSeconds": 1}}"#;
        kubectl(cluster, &["patch", vm, "--type=merge", "-p", hurry])?;
    }
    for kind in ["svm", "slm"] {
        kubectl(cluster, &["delete", kind, "--all", "--all-namespaces", "--wait=false"])?;
    }
    let gone = until("all VMs and lock managers are gone", LIMIT, || {
        let left = kubectl(cluster, &["get", "svm,slm", "--all-namespaces", "-o", "name"])?;
        if left.trim().is_empty() { Ok(()) } else { Err(left) }
    });
    gone.map_err(said)
}

/// Waits until every host is Ready and its plug is trusted.
///
/// # Errors
/// Which one is not.
pub fn all_ready(cluster: &Cluster) -> Outcome {
    let all = until("all hosts are Ready and their plugs are trusted", LIMIT, || {
        for name in HOSTS {
            let host = object(cluster, &["shost", name])?;
            for kind in ["Ready", "FencingReady"] {
                let (status, message) = condition(&host, kind);
                if status != "True" {
                    return Err(format!("{name}: {kind}: {message}"));
                }
            }
        }
        Ok(())
    });
    all.map_err(said)
}

/// The boot that a host beats with.
///
/// # Errors
/// kubectl's words.
pub fn boot(cluster: &Cluster, host: &str) -> Result<String, String> {
    let host = object(cluster, &["shost", host])?;
    Ok(host["status"]["bootId"].as_str().unwrap_or_default().to_owned())
}

/// Gives the host its power back, and waits until it is Ready with a boot after `before`.
///
/// # Errors
/// Why it is not.
pub fn comes_back(cluster: &Cluster, dead: &Machine, before: &str) -> Outcome {
    dead.power_on().map_err(said)?;
    let back = until("the host is Ready again", LIMIT, || {
        let host = object(cluster, &["shost", dead.name()])?;
        let (ready, message) = condition(&host, "Ready");
        let next = host["status"]["bootId"] != before;
        if ready == "True" && next { Ok(()) } else { Err(message.to_owned()) }
    });
    back.map_err(said)
}
