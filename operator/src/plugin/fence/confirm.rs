//! `fence confirm HOST`: a human's word that a boot is dead (safety §5).
//!
//! The most dangerous button there is: a host that lives after all runs its VMs beside those
//! that are started in its stead. So the word is for one boot, carries its reason and the name by
//! which the server knows its giver, and is refused here and by the controller while the host
//! shows life.

use std::io::{IsTerminal as _, Write as _};

use kube::ResourceExt as _;
use serde_json::json;
use stockade_crds::names::{FINALIZER, host_fence_name};
use stockade_crds::v1alpha1::{Confirmation, Host, HostFence, HostFenceSpec, HostState};

use crate::plugin::error::PluginError;
use crate::plugin::session::{Session, make, merge};
use crate::plugin::wait::{Seen, until};

#[derive(clap::Args)]
pub(in crate::plugin) struct Arguments {
    /// The host.
    host: String,
    /// How you know that it is dead: "pulled both power cords".
    #[arg(long)]
    reason: String,
    /// You know that a fence device reads its power on, and that the device is wrong.
    #[arg(long)]
    although_device_reads_on: bool,
    /// Do not ask back; for scripts, which need --boot too.
    #[arg(long, requires = "boot")]
    yes: bool,
    /// The boot that is dead, as `kubectl get shost HOST -o wide` shows it.
    #[arg(long, value_name = "BOOT ID")]
    boot: Option<String>,
    /// Longest time to wait for the controller's answer, in seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 60)]
    timeout: u64,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let host = session.host(&arguments.host).await?;
    let (uid, boot) = dead(&host, arguments.boot.as_deref())?;
    if !arguments.yes {
        ask(&arguments.host, &boot)?;
    }
    let word = Confirmation {
        reason: arguments.reason.clone(),
        by: session.who().await?,
        although_device_reads_on: arguments.although_device_reads_on,
    };
    let name = give(session, &arguments.host, (uid, boot), &word).await?;
    println!("your word is given, as {}, in HostFence {name}", word.by);
    let remedy = "the word stands; `kubectl stockade fence history` tells how it goes on";
    let api = session.cluster::<HostFence>();
    let fate = until(arguments.timeout, remedy, async || {
        let found = api.get_opt(&name).await;
        let found = found.map_err(PluginError::api(format!("read HostFence {name}")))?;
        Ok(stands(found.as_ref(), &word))
    })
    .await?;
    fate.map(|text| println!("{text}")).map_err(PluginError::Refused)
}

/// The boot that may be called dead, with its host's uid.
fn dead(host: &Host, boot: Option<&str>) -> Result<(String, String), PluginError> {
    let name = host.name_any();
    let status = host.status.clone().unwrap_or_default();
    let (Some(uid), Some(last)) = (status.host_uid, status.boot_id) else {
        return Err(PluginError::Refused(format!(
            "host {name} never reported a boot: there is nothing that could be dead"
        )));
    };
    if let Some(boot) = boot.filter(|boot| *boot != last) {
        return Err(PluginError::Refused(format!(
            "the last boot of host {name} is {last}, not {boot}: look again before you give a word"
        )));
    }
    match status.printable_status {
        HostState::Suspect
        | HostState::Lost
        | HostState::Fencing
        | HostState::AwaitingProof
        | HostState::Stopped => Ok((uid, last)),
        HostState::Fenced => Err(PluginError::Refused(format!(
            "the last boot of host {name} is proven dead already; `kubectl stockade fence history \
             {name}` tells how"
        ))),
        state @ (HostState::Isolated
        | HostState::Ready
        | HostState::Cordoned
        | HostState::Maintenance
        | HostState::ShuttingDown
        | HostState::Joining) => Err(PluginError::Refused(format!(
            "host {name} is {state:?}: it shows life, so a word that it is dead can't be true; to \
             empty it use `kubectl stockade drain {name}`"
        ))),
    }
}

/// Has the host's name typed.
fn ask(host: &str, boot: &str) -> Result<(), PluginError> {
    if !std::io::stdin().is_terminal() {
        return Err(PluginError::Refused(
            "nobody can be asked back here; give --yes together with --boot".to_owned(),
        ));
    }
    println!(
        "You say that boot {boot} of host {host} is dead: it executes nothing and writes nowhere.\n\
         Its VMs are started elsewhere on your word. If it lives, their disks are destroyed."
    );
    print!("Type the host's name to go on: ");
    // A prompt that can't be shown is answered by nobody.
    let _ = std::io::stdout().flush();
    let mut typed = String::new();
    let read = std::io::stdin().read_line(&mut typed);
    if read.is_ok() && typed.trim() == host {
        return Ok(());
    }
    Err(PluginError::Refused("nothing was done".to_owned()))
}

/// Writes the word into the boot's certificate; opens one if there is none.
async fn give(
    session: &Session,
    host: &str,
    (uid, boot): (String, String),
    word: &Confirmation,
) -> Result<String, PluginError> {
    let name = host_fence_name(host, &boot);
    let api = session.cluster::<HostFence>();
    let what = format!("give a word about host {host}");
    let found = api.get_opt(&name).await.map_err(PluginError::api(what.clone()))?;
    match found {
        Some(fence) if fence.spec.host_uid == uid && fence.spec.boot_id == boot => {
            let fields = json!({
                "metadata": {"uid": fence.uid()},
                "spec": {"confirmation": word},
            });
            merge(&api, &name, fields, what).await?;
        }
        Some(_) => {
            return Err(PluginError::Refused(format!(
                "HostFence {name} is for another boot; look again with `kubectl get shf`"
            )));
        }
        None => {
            let spec = HostFenceSpec {
                host: host.to_owned(),
                host_uid: uid,
                boot_id: boot,
                reason: "a human's word".to_owned(),
                confirmation: Some(word.clone()),
            };
            let mut fence = HostFence::new(&name, spec);
            fence.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
            make(&api, &fence, what).await?;
        }
    }
    Ok(name)
}

/// What the controller made of the word.
fn stands(found: Option<&HostFence>, word: &Confirmation) -> Seen<Result<String, String>> {
    let Some(fence) = found else {
        return Seen::Over(Err(
            "the certificate was closed: the host is back, or its boot is known to live".to_owned(),
        ));
    };
    let status = fence.status.clone().unwrap_or_default();
    if status.refused_confirmation.as_ref() == Some(word) {
        return Seen::Over(Err(
            "the controller refuses the word: the host beat after it was given".to_owned(),
        ));
    }
    match (&status.proof, &status.revoked) {
        (Some(kind), None) => Seen::Over(Ok(format!(
            "boot {} of host {} is proven dead by {kind:?}: its VMs are recovered",
            fence.spec.boot_id, fence.spec.host
        ))),
        _ => {
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            Seen::Pending(ready.map_or("waits for the controller", |c| &c.message).to_owned())
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    fn host(state: &str) -> Host {
        serde_json::from_value(json!({"metadata": {"name": "h1"}, "spec": {},
            "status": {"printableStatus": state, "hostUid": "u", "bootId": "b2"}}))
        .unwrap()
    }

    #[test]
    fn no_word_is_taken_about_a_host_that_shows_life() {
        for state in ["Ready", "Cordoned", "Maintenance", "ShuttingDown", "Isolated"] {
            let why = dead(&host(state), None).unwrap_err().to_string();
            assert!(why.contains("shows life") && why.contains("drain h1"), "{why}");
        }
        let silent = dead(&host("AwaitingProof"), None).unwrap();
        assert_eq!(silent, ("u".to_owned(), "b2".to_owned()));
    }

    #[test]
    fn a_word_is_for_the_boot_that_its_giver_looked_at() {
        let why = dead(&host("Lost"), Some("b1")).unwrap_err().to_string();
        assert!(why.contains("b2, not b1"), "{why}");
        assert!(dead(&host("Lost"), Some("b2")).is_ok());
    }

    #[test]
    fn a_word_that_the_controller_refuses_is_an_error() {
        let word =
            Confirmation { reason: "unplugged".into(), by: "ann".into(), ..Default::default() };
        let fence: HostFence = serde_json::from_value(json!({"metadata": {"name": "f"},
            "spec": {"host": "h1", "hostUid": "u", "bootId": "b"},
            "status": {"refusedConfirmation": word}}))
        .unwrap();
        assert!(matches!(stands(Some(&fence), &word), Seen::Over(Err(_))));
        let other = Confirmation { reason: "looked again".into(), ..word };
        assert!(matches!(stands(Some(&fence), &other), Seen::Pending(_)), "a new one may count");
    }
}
