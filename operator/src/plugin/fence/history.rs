//! `fence history [HOST]`: certificates, with each call and reading.

use std::fmt::Write as _;

use stockade_crds::v1alpha1::HostFence;

use crate::plugin::error::PluginError;
use crate::plugin::session::{Session, wall_millis};
use crate::plugin::table::ago;

#[derive(clap::Args)]
pub(in crate::plugin) struct Arguments {
    /// The host; absent: all.
    host: Option<String>,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let mut fences = session.all::<HostFence>().await?;
    if let Some(host) = &arguments.host {
        session.host(host).await?;
        fences.retain(|f| f.spec.host == *host);
    }
    fences.sort_by_key(|f| f.metadata.creation_timestamp.as_ref().map(|t| t.0));
    if fences.is_empty() {
        println!("no certificate: no boot was proven dead or fenced that the host did not replace");
        return Ok(());
    }
    let now = wall_millis();
    for fence in &fences {
        print!("{}", told(fence, now));
    }
    Ok(())
}

fn told(fence: &HostFence, now: i64) -> String {
    let mut text = String::new();
    let (spec, status) = (&fence.spec, fence.status.clone().unwrap_or_default());
    let age = ago(fence.metadata.creation_timestamp.as_ref(), now);
    // Writing to a String does not fail.
    let _ =
        writeln!(text, "{} boot {}, opened {age} ago: {}", spec.host, spec.boot_id, spec.reason);
    for attempt in &status.attempts {
        let _ = writeln!(text, "  {} {:?}: {}", attempt.device, attempt.action, attempt.result);
    }
    if let Some(word) = &spec.confirmation {
        let refused = status.refused_confirmation.as_ref() == Some(word);
        let fate = if refused { ", refused: the host showed life after it" } else { "" };
        let _ = writeln!(text, "  a word by {}: {}{fate}", word.by, word.reason);
    }
    match (&status.proof, &status.revoked) {
        (_, Some(why)) => {
            let _ = writeln!(text, "  REVOKED: {why}");
        }
        (Some(kind), None) => {
            let _ = writeln!(text, "  proven dead by {kind:?}");
        }
        (None, None) => {
            let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
            let _ = writeln!(text, "  no proof: {}", ready.map_or("", |c| c.message.as_str()));
        }
    }
    for (what, storages) in [("denied at", &status.denied), ("locks free on", &status.locks_broken)]
    {
        if !storages.is_empty() {
            let _ = writeln!(text, "  {what} {}", storages.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;

    use super::*;

    #[test]
    fn every_call_and_the_proof_are_told_and_a_revoked_proof_is_no_proof() {
        let fence = |revoked: Option<&str>| -> HostFence {
            serde_json::from_value(json!({"metadata": {"name": "h1-b"},
                "spec": {"host": "h1", "hostUid": "u", "bootId": "b", "reason": "silent"},
                "status": {"proof": "Power", "revoked": revoked, "denied": ["shared"],
                    "attempts": [{"device": "bmc", "action": "PowerOff", "result": "Done"},
                        {"device": "bmc", "action": "Status", "result": "Off"}]}}))
            .unwrap()
        };
        let text = told(&fence(None), 0);
        assert!(
            text.contains("bmc Off: Done\n  bmc Status: Off\n  proven dead by Power"),
            "{text}"
        );
        assert!(text.contains("denied at shared"), "{text}");
        let text = told(&fence(Some("it beats")), 0);
        assert!(text.contains("REVOKED: it beats") && !text.contains("proven dead"), "{text}");
    }
}
