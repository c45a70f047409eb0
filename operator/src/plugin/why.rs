//! `why VM`: where it is and why, or why it does not run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Resource as _, ResourceExt as _};
use stockade_core::ha::reported::reported;
use stockade_core::placement::{Suit, Unplaceable, VmKey, suits};
use stockade_crds::v1alpha1::VirtualMachine;

use super::error::PluginError;
use super::read;
use super::session::{Session, wall_millis};
use super::table::{ago, or_dash, table};

/// So many of a VM's last events are told.
const EVENTS: usize = 8;

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The VM.
    vm: String,
}

/// How the hosts suit it, as far as this person may see them.
enum Hosts {
    /// Each of them.
    Seen(Result<Vec<Suit>, Unplaceable>),
    /// They may not read hosts, or VMs of other namespaces.
    Hidden,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let vm = session.vm(&arguments.vm).await?;
    let hosts = match read::world(session).await {
        Ok(world) => {
            let cluster = stockade_core::vm::cluster(&world, &reported(&world), &BTreeMap::new());
            Hosts::Seen(suits(&cluster, &VmKey::new(&session.namespace, vm.name_any())))
        }
        Err(error) if error.is_forbidden() => Hosts::Hidden,
        Err(error) => return Err(error),
    };
    let events = events(session, &vm).await?;
    let now = wall_millis();
    print!("{}", told(&vm, now));
    print!("{}", told_of_hosts(&hosts, vm.status.as_ref().and_then(|s| s.host.as_deref())));
    print!("{}", told_of_events(&events, now));
    Ok(())
}

/// What was told of the VM lately, oldest first; none where they may not be read.
async fn events(session: &Session, vm: &VirtualMachine) -> Result<Vec<Event>, PluginError> {
    let uid = vm.uid().unwrap_or_default();
    let kind = VirtualMachine::kind(&());
    let params = ListParams::default()
        .fields(&format!("involvedObject.uid={uid},involvedObject.kind={kind}"));
    let found = session.namespaced::<Event>().list(&params).await;
    match found.map_err(PluginError::api("list events")) {
        Ok(found) => {
            let mut events = found.items;
            events.sort_by_key(|e| e.last_timestamp.as_ref().map(|t| t.0));
            Ok(events.split_off(events.len().saturating_sub(EVENTS)))
        }
        Err(error) if error.is_forbidden() => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

/// The VM itself: its word, what its spec asks, its epochs, its conditions.
fn told(vm: &VirtualMachine, now: i64) -> String {
    let mut text = String::new();
    let name = format!("{}/{}", vm.namespace().unwrap_or_default(), vm.name_any());
    let Some(status) = &vm.status else {
        return format!("{name}: the controller has not looked at it yet; does one run?\n");
    };
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
    let why = ready.map_or("", |c| c.message.as_str());
    // Writing to a String does not fail.
    let _ = writeln!(text, "{name} is {:?}: {why}", status.printable_status);
    let _ = writeln!(text, "  run policy: {:?}", vm.spec.run_policy);
    let host = status.host.clone().unwrap_or_default();
    let _ = writeln!(text, "  host: {}   epoch: {}", or_dash(host), status.epoch);
    for p in status.placements.iter().filter(|p| !p.state.is_settled()) {
        let _ = writeln!(
            text,
            "  epoch {} is {:?} on {} (boot {}): nothing else starts before it is released or that \
             boot is proven dead",
            p.epoch, p.state, p.host, p.boot_id
        );
    }
    if let Some(m) = &status.migration {
        let how = if m.live { "live" } else { "by stop and start" };
        let _ = writeln!(
            text,
            "  moves {how} from {} to {} by VirtualMachineMigration {}",
            m.source, m.target, m.name
        );
    }
    if let Some(waits) = &status.waits_for {
        let why = if waits.held { "the policy's hostShutdown" } else { "its recovery: None" };
        let _ = writeln!(text, "  waits for host {}, by {why}", waits.host);
    }
    if let Some(f) = &status.failures {
        let tried = or_dash(f.tried_hosts.join(", "));
        let _ = writeln!(
            text,
            "  failed since it last ran: {} starts here, {} refusals, {} ends; hosts given up: \
             {tried}; last: {}",
            f.restarts, f.refusals, f.exits, f.message
        );
    }
    let rows: Vec<Vec<String>> = status
        .conditions
        .iter()
        .map(|c| {
            let age = ago(Some(&c.last_transition_time), now);
            vec![c.type_.clone(), c.status.clone(), age, c.reason.clone(), c.message.clone()]
        })
        .collect();
    let _ =
        write!(text, "\n{}", table(&["CONDITION", "STATUS", "AGE", "REASON", "MESSAGE"], &rows));
    text
}

fn told_of_hosts(hosts: &Hosts, on: Option<&str>) -> String {
    let found = match hosts {
        Hosts::Hidden => {
            return "\nHosts: not shown, you may not read them (ClusterRole stockade-operator)\n"
                .to_owned();
        }
        Hosts::Seen(Err(no)) => return format!("\nHosts: none is looked at: {no}\n"),
        Hosts::Seen(Ok(found)) => found,
    };
    let mut best = true;
    let mut rows = Vec::new();
    for suit in found {
        let would = match &suit.against {
            Some(why) => format!("no: {why}"),
            None if std::mem::take(&mut best) => "yes, the first choice of a start now".to_owned(),
            None => "yes".to_owned(),
        };
        let here = if Some(suit.host.as_str()) == on { "here" } else { "" };
        rows.push(vec![suit.host.clone(), here.to_owned(), would]);
    }
    format!("\n{}", table(&["HOST", "", "WOULD TAKE IT"], &rows))
}

fn told_of_events(events: &[Event], now: i64) -> String {
    if events.is_empty() {
        return String::new();
    }
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|e| {
            let (reason, message) = (e.reason.clone(), e.message.clone());
            let age = ago(e.last_timestamp.as_ref(), now);
            vec![age, reason.unwrap_or_default(), message.unwrap_or_default()]
        })
        .collect();
    format!("\n{}", table(&["AGO", "EVENT", "MESSAGE"], &rows))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;

    use super::*;

    #[test]
    fn a_vm_that_waits_for_a_proof_names_the_epoch_that_it_waits_for() {
        let vm: VirtualMachine = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "n"}, "spec": {"memory": "1Gi"},
            "status": {"printableStatus": "Recovering", "host": "h1", "epoch": 3,
                "placements": [{"epoch": 3, "host": "h1", "hostUid": "u", "bootId": "b7",
                    "state": "Ordered"}],
                "conditions": [{"type": "Ready", "status": "False", "reason": "HostLost",
                    "message": "h1 is lost", "lastTransitionTime": "1970-01-01T00:00:00Z"}]}}))
        .unwrap();
        let text = told(&vm, 30_000);
        assert!(text.starts_with("n/web is Recovering: h1 is lost\n"), "{text}");
        assert!(text.contains("epoch 3 is Ordered on h1 (boot b7)"), "{text}");
        assert!(text.contains("Ready      False   30s  HostLost  h1 is lost"), "{text}");
    }

    #[test]
    fn hosts_that_say_no_say_why_and_the_first_choice_is_marked_once() {
        let suit = |host: &str, against: Option<&str>| Suit {
            host: host.into(),
            against: against.map(str::to_owned),
        };
        let seen = Ok(vec![suit("h2", None), suit("h3", None), suit("h1", Some("cordoned"))]);
        let text = told_of_hosts(&Hosts::Seen(seen), Some("h3"));
        assert_eq!(text.matches("first choice").count(), 1, "{text}");
        assert!(text.contains("h1          no: cordoned"), "{text}");
        assert!(text.contains("h3    here  yes"), "{text}");
        assert!(told_of_hosts(&Hosts::Hidden, None).contains("stockade-operator"));
    }
}
