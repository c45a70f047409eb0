//! `status`: the whole on one screen.
//!
//! How old a host's life is on each path is not stored while all is well (nothing is written
//! then), so it is looked at: the Leases say when each host last reached the API, and two looks a
//! heartbeat apart say whose storage beats others see going on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::ResourceExt as _;
use stockade_core::ha::evidence::SeenBeats;
use stockade_crds::names::{AGENT_OBJECT, BEATS_ANNOTATION, POLICY_NAME, host_namespace};
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, Host, HostFence, HostState, VirtualMachine, VmState,
};

use super::error::PluginError;
use super::session::{Session, wall_millis};
use super::table::{ago, or_dash, span, table};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Do not wait a heartbeat to see whose storage beats go on.
    #[arg(long)]
    quick: bool,
}

/// What one look at the Leases sees.
#[derive(Default)]
struct Look {
    /// Seconds since each host renewed its Lease, by this machine's clock.
    renewed: BTreeMap<String, i64>,
    /// By storage and host uid: the highest counter that anyone sees, and who.
    beats: BTreeMap<(String, String), (u64, String)>,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let (hosts, policies, fences) = tokio::try_join!(
        session.all::<Host>(),
        session.all::<AvailabilityPolicy>(),
        session.all::<HostFence>(),
    )?;
    let vms = match session.all::<VirtualMachine>().await {
        Ok(vms) => Some(vms),
        Err(error) if error.is_forbidden() => None,
        Err(error) => return Err(error),
    };
    let policy = policies.into_iter().find(|p| p.name_any() == POLICY_NAME);
    let first = look(session, &hosts).await?;
    let second = match &first {
        Some(_) if !arguments.quick => {
            let beat = policy.as_ref().map_or(2, |p| p.spec.heartbeat_seconds);
            let beat = Duration::from_secs(u64::try_from(beat).unwrap_or(2));
            tokio::time::sleep(beat + beat / 2).await;
            look(session, &hosts).await?
        }
        _ => None,
    };
    print!("{}", summary(policy.as_ref(), vms.as_deref()));
    println!();
    let looks = (first.as_ref(), second.as_ref());
    print!("{}", host_table(&hosts, vms.as_deref(), looks, wall_millis()));
    let waiting = certificates(&fences, wall_millis());
    if !waiting.is_empty() {
        println!("\nCertificates of dead boots:\n{waiting}");
    }
    Ok(())
}

/// Every host's Lease; `None`: this person may not read them.
async fn look(session: &Session, hosts: &[Host]) -> Result<Option<Look>, PluginError> {
    let mut look = Look::default();
    let now = wall_millis();
    for host in hosts {
        let name = host.name_any();
        let api = session.within::<Lease>(&host_namespace(&name));
        let lease = match api.get_opt(AGENT_OBJECT).await {
            Ok(Some(lease)) => lease,
            Ok(None) => continue,
            Err(source) => {
                let error = PluginError::api(format!("read the Lease of host {name}"))(source);
                if error.is_forbidden() {
                    return Ok(None);
                }
                return Err(error);
            }
        };
        let renewed = lease.spec.as_ref().and_then(|s| s.renew_time.as_ref());
        if let Some(at) = renewed {
            look.renewed.insert(name.clone(), (now / 1000 - at.0.as_second()).max(0));
        }
        let beats: BTreeMap<String, SeenBeats> = lease
            .annotations()
            .get(BEATS_ANNOTATION)
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        for (storage, seen) in beats {
            for (uid, beat) in seen {
                let best = look.beats.entry((storage.clone(), uid)).or_default();
                if beat.counter >= best.0 {
                    *best = (beat.counter, name.clone());
                }
            }
        }
    }
    Ok(Some(look))
}

fn summary(policy: Option<&AvailabilityPolicy>, vms: Option<&[VirtualMachine]>) -> String {
    let mut text = String::new();
    match policy {
        None => text.push_str(
            "Policy: there is none, so no host is fenced; the chart makes AvailabilityPolicy \
             default\n",
        ),
        Some(policy) => {
            let status = policy.status.clone().unwrap_or_default();
            let valid = status.conditions.iter().find(|c| c.type_ == "Valid");
            text.push_str(&format!("Policy: automation {:?}\n", policy.spec.automation));
            if let Some(c) = valid.filter(|c| c.status == "False") {
                text.push_str(&format!("  not valid: {}\n", c.message));
            }
            let tolerates = match status.tolerates {
                0 => "Tolerates: no host failure: VMs of the next host that dies find no room"
                    .to_owned(),
                1 => "Tolerates: 1 host failure".to_owned(),
                n => format!("Tolerates: {n} host failures"),
            };
            text.push_str(&format!("{tolerates}\n"));
            if status.brake_count > 0 {
                text.push_str(&format!(
                    "Brake: {} hosts are silent without a proof\n",
                    status.brake_count
                ));
            }
        }
    }
    let Some(vms) = vms else {
        text.push_str("VMs: not shown, you may not list those of all namespaces\n");
        return text;
    };
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for vm in vms {
        let state = vm.status.as_ref().map(|s| s.printable_status).unwrap_or_default();
        *counts.entry(format!("{state:?}")).or_default() += 1;
    }
    let counts: Vec<String> = counts.iter().map(|(state, n)| format!("{n} {state}")).collect();
    text.push_str(&format!("VMs: {}\n", or_dash(counts.join(", "))));
    for vm in vms {
        let Some(status) = &vm.status else { continue };
        let troubled = matches!(
            status.printable_status,
            VmState::Recovering | VmState::Unplaceable | VmState::Blocked | VmState::Error
        );
        if troubled {
            let why = status.conditions.iter().find(|c| c.type_ == "Ready");
            let why = why.map_or("", |c| c.message.as_str());
            let (namespace, name) = (vm.namespace().unwrap_or_default(), vm.name_any());
            text.push_str(&format!("  {namespace}/{name} {:?}: {why}\n", status.printable_status));
        }
    }
    text
}

/// VMs that are placed on each host: it may run them.
fn placed(vms: &[VirtualMachine]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    for status in vms.iter().filter_map(|vm| vm.status.as_ref()) {
        let open = status.placements.iter().filter(|p| !p.state.is_settled());
        let hosts: BTreeSet<&str> = open.map(|p| p.host.as_str()).collect();
        for host in hosts {
            *counts.entry(host).or_default() += 1;
        }
    }
    counts
}

fn host_table(
    hosts: &[Host],
    vms: Option<&[VirtualMachine]>,
    (first, second): (Option<&Look>, Option<&Look>),
    now: i64,
) -> String {
    let placed = vms.map(placed);
    let mut rows = Vec::new();
    for host in hosts {
        let name = host.name_any();
        let status = host.status.clone().unwrap_or_default();
        let condition = |type_: &str| status.conditions.iter().find(|c| c.type_ == type_);
        let uid = status.host_uid.clone().unwrap_or_default();
        let api = first.and_then(|l| second.unwrap_or(l).renewed.get(&name)).copied();
        let well = status.printable_status == HostState::Ready;
        let ready = condition("Ready");
        rows.push(vec![
            name.clone(),
            format!("{:?}", status.printable_status),
            or_dash(
                placed
                    .as_ref()
                    .map(|on| on.get(&*name).copied().unwrap_or(0).to_string())
                    .unwrap_or_default(),
            ),
            or_dash(status.capacity.map(|c| c.memory.0).unwrap_or_default()),
            or_dash(condition("FencingReady").map(|c| c.reason.clone()).unwrap_or_default()),
            api.map_or_else(|| "-".to_owned(), span),
            or_dash(storage_beats(&uid, first, second)),
            ago(ready.map(|c| &c.last_transition_time), now),
            ready.filter(|_| !well).map(|c| c.message.clone()).unwrap_or_default(),
        ]);
    }
    table(
        &["HOST", "STATE", "VMS", "MEMORY", "FENCING", "API", "STORAGE", "SINCE", "MESSAGE"],
        &rows,
    )
}

/// Whose beats of this host go on, by storage: "shared beats (seen by h2)".
fn storage_beats(uid: &str, first: Option<&Look>, second: Option<&Look>) -> String {
    let Some(first) = first else { return String::new() };
    let latest = second.unwrap_or(first);
    let of_host = latest.beats.iter().filter(|((_, of), _)| of == uid && !uid.is_empty());
    let paths = of_host.map(|(path, (counter, observer))| {
        let storage = &path.0;
        match second.and_then(|_| first.beats.get(path)) {
            None => format!("{storage} seen by {observer}"),
            Some((before, _)) if counter > before => {
                format!("{storage} beats (seen by {observer})")
            }
            Some(_) => format!("{storage} silent (seen by {observer})"),
        }
    });
    paths.collect::<Vec<_>>().join(", ")
}

/// Certificates, those without a proof first.
fn certificates(fences: &[HostFence], now: i64) -> String {
    let mut rows: Vec<(bool, Vec<String>)> = fences
        .iter()
        .map(|fence| {
            let status = fence.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            let proof = match (&status.proof, &status.revoked) {
                (_, Some(_)) => "revoked".to_owned(),
                (Some(kind), None) => format!("{kind:?}"),
                (None, None) => "awaited".to_owned(),
            };
            let last = status.attempts.last();
            let row = vec![
                fence.spec.host.clone(),
                proof,
                or_dash(
                    last.map(|a| format!("{:?} by {}: {}", a.action, a.device, a.result))
                        .unwrap_or_default(),
                ),
                ago(fence.metadata.creation_timestamp.as_ref(), now),
                ready.map_or_else(String::new, |c| c.message.clone()),
            ];
            (status.proof.is_some() && status.revoked.is_none(), row)
        })
        .collect();
    rows.sort();
    let rows: Vec<Vec<String>> = rows.into_iter().map(|(_, row)| row).collect();
    if rows.is_empty() {
        return String::new();
    }
    table(&["HOST", "PROOF", "LAST CALL", "AGE", "MESSAGE"], &rows)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;

    use super::*;

    fn look_of(renewed: i64, counter: u64) -> Look {
        Look {
            renewed: [("h1".to_owned(), renewed)].into(),
            beats: [(("shared".to_owned(), "u1".to_owned()), (counter, "h2".to_owned()))].into(),
        }
    }

    #[test]
    fn a_path_is_alive_only_if_its_beat_was_seen_to_rise() {
        let told = |a, b: Option<u64>| {
            let (first, second) = (look_of(1, a), b.map(|c| look_of(1, c)));
            storage_beats("u1", Some(&first), second.as_ref())
        };
        assert_eq!(told(5, Some(6)), "shared beats (seen by h2)");
        assert_eq!(told(5, Some(5)), "shared silent (seen by h2)");
        assert_eq!(told(5, None), "shared seen by h2", "one look says nothing of life");
        assert_eq!(storage_beats("u2", Some(&look_of(1, 5)), None), "");
    }

    #[test]
    fn a_host_that_is_silent_shows_its_age_and_why() {
        let host: Host = serde_json::from_value(json!({"metadata": {"name": "h1"}, "spec": {},
            "status": {"printableStatus": "Lost", "hostUid": "u1",
                "conditions": [{"type": "Ready", "status": "False", "reason": "Lost",
                    "message": "is silent on every path",
                    "lastTransitionTime": "1970-01-01T00:00:00Z"}]}}))
        .unwrap();
        let vm = |state: &str| -> VirtualMachine {
            serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": {"memory": "1Gi"},
                "status": {"placements": [{"epoch": 1, "host": "h1", "hostUid": "u1",
                    "bootId": "b", "state": state}]}}))
            .unwrap()
        };
        let vms = [vm("Ordered"), vm("Released"), vm("Ordered")];
        let (first, second) = (look_of(20, 5), look_of(41, 5));
        let text = host_table(&[host], Some(&vms), (Some(&first), Some(&second)), 60_000);
        let line = text.lines().nth(1).unwrap();
        let cells: Vec<&str> = line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect();
        let silent = "shared silent (seen by h2)";
        let all = ["h1", "Lost", "2", "-", "-", "41s", silent, "60s", "is silent on every path"];
        assert_eq!(cells, all, "{text}");
    }

    #[test]
    fn no_room_for_a_failure_and_troubled_vms_are_said() {
        let policy: AvailabilityPolicy = serde_json::from_value(
            json!({"metadata": {"name": "default"}, "spec": {}, "status": {"tolerates": 0}}),
        )
        .unwrap();
        let vm: VirtualMachine = serde_json::from_value(json!({
            "metadata": {"name": "a", "namespace": "n"}, "spec": {"memory": "1Gi"},
            "status": {"printableStatus": "Unplaceable", "conditions": [{"type": "Ready",
                "status": "False", "reason": "NoHostFits", "message": "h1: cordoned",
                "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
        .unwrap();
        let text = summary(Some(&policy), Some(&[vm]));
        assert!(text.contains("no host failure"), "{text}");
        assert!(text.contains("n/a Unplaceable: h1: cordoned"), "{text}");
        assert!(summary(None, None).contains("no host is fenced"));
    }
}
