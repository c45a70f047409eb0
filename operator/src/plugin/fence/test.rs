//! `fence test HOST`: the controller reads every plug of the host, by a status call alone.

use kube::ResourceExt as _;
use serde_json::json;
use stockade_crds::names::FENCE_TEST_ANNOTATION;
use stockade_crds::v1alpha1::{FenceDevice, Host, HostState};

use crate::plugin::error::PluginError;
use crate::plugin::session::{Session, fresh_id, merge};
use crate::plugin::table::table;
use crate::plugin::wait::{Seen, until};

#[derive(clap::Args)]
pub(in crate::plugin) struct Arguments {
    /// The host.
    host: String,
    /// Longest time to wait for the answers, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let name = &arguments.host;
    let host = session.host(name).await?;
    let devices = testable(&host)?;
    let request = fresh_id();
    let asked = json!({"metadata": {"annotations": {FENCE_TEST_ANNOTATION: request}}});
    merge(&session.cluster::<Host>(), name, asked, format!("ask for a test of host {name}"))
        .await?;
    let remedy = format!(
        "see the FenceDevice's Ready condition, and whether a controller runs (`kubectl stockade \
         status`); plugs of {name} are read only while it beats"
    );
    let read = until(arguments.timeout, &remedy, async || {
        let mut found = Vec::new();
        for device in &devices {
            let got = session.cluster::<FenceDevice>().get_opt(device).await;
            let got = got.map_err(PluginError::api(format!("read FenceDevice {device}")))?;
            found.push((device.clone(), got));
        }
        Ok(answers(name, &request, &found))
    })
    .await?;
    let rows: Vec<Vec<String>> =
        read.iter().map(|(device, said)| vec![device.clone(), said.clone()]).collect();
    print!("{}", table(&["DEVICE", "PLUG READS"], &rows));
    if read.iter().all(|(_, said)| said == "On") {
        return Ok(());
    }
    Err(PluginError::Refused(format!(
        "host {name} beats, so each of its plugs must read On: check plug, wiring and login of the \
         device"
    )))
}

/// The devices that can cut the host's power.
fn testable(host: &Host) -> Result<Vec<String>, PluginError> {
    let name = host.name_any();
    let mut devices: Vec<String> =
        host.spec.fencing.iter().flat_map(|level| level.devices.clone()).collect();
    devices.sort();
    devices.dedup();
    if devices.is_empty() {
        return Err(PluginError::Refused(format!(
            "host {name} names no fence device: its death can be proven by a human's word alone; \
             set spec.fencing"
        )));
    }
    let state = host.status.as_ref().map(|s| s.printable_status).unwrap_or_default();
    match state {
        HostState::Ready | HostState::Cordoned | HostState::Maintenance => Ok(devices),
        state => Err(PluginError::Refused(format!(
            "host {name} is {state:?}: a plug is tested while its host beats, what it reads otherwise \
             is no test; `kubectl stockade fence history {name}` tells what was read"
        ))),
    }
}

/// What each device answered this request, once all have.
fn answers(
    host: &str,
    request: &str,
    devices: &[(String, Option<FenceDevice>)],
) -> Seen<Vec<(String, String)>> {
    let mut all = Vec::new();
    let mut waits = Vec::new();
    for (name, device) in devices {
        let Some(device) = device else {
            all.push((name.clone(), "there is no such FenceDevice".to_owned()));
            continue;
        };
        if !device.spec.plugs.contains_key(host) {
            all.push((name.clone(), format!("it has no plug for {host}: set spec.plugs")));
            continue;
        }
        let asked = device.status.iter().flat_map(|s| &s.asked);
        match asked.into_iter().find(|a| a.host == host && a.request == request) {
            Some(answer) => all.push((name.clone(), answer.result.clone())),
            None => waits.push(name.as_str()),
        }
    }
    if waits.is_empty() {
        return Seen::Over(all);
    }
    Seen::Pending(format!("waits for {}", waits.join(", ")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn device(plug_of: &str, request: &str) -> Option<FenceDevice> {
        let asked = json!([{"host": "h1", "request": request, "result": "On"}]);
        let device = json!({"metadata": {"name": "d"}, "status": {"asked": asked},
            "spec": {"agent": "fence_ipmilan", "plugs": {plug_of: "1"}}});
        Some(serde_json::from_value(device).unwrap())
    }

    #[test]
    fn an_answer_to_an_earlier_request_is_none() {
        let of = |d| answers("h1", "r2", &[("d".to_owned(), d)]);
        assert!(matches!(of(device("h1", "r1")), Seen::Pending(_)));
        let Seen::Over(all) = of(device("h1", "r2")) else { unreachable!() };
        assert_eq!(all, [("d".to_owned(), "On".to_owned())]);
        let Seen::Over(all) = of(device("h2", "r2")) else { unreachable!() };
        assert!(all[0].1.contains("no plug"), "it would be waited for in vain: {all:?}");
        assert!(matches!(of(None), Seen::Over(_)));
    }

    #[test]
    fn a_host_that_does_not_beat_is_not_tested() {
        let host = |state: &str, devices: &[&str]| -> Host {
            serde_json::from_value(json!({"metadata": {"name": "h1"},
                "spec": {"fencing": [{"devices": devices}]}, "status": {"printableStatus": state}}))
            .unwrap()
        };
        assert_eq!(testable(&host("Ready", &["b", "a", "b"])).unwrap(), ["a", "b"]);
        assert!(testable(&host("Lost", &["a"])).unwrap_err().to_string().contains("Lost"));
        assert!(testable(&host("Ready", &[])).unwrap_err().to_string().contains("spec.fencing"));
    }
}
