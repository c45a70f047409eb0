//! The serving side of iSCSI: targets of tgtd, each open to the addresses of single hosts.
//!
//! tgtd remembers nothing: after each of its starts the targets are made anew here, and a target
//! admits nobody until addresses are bound to it. So one that comes back admits nobody who was
//! denied before (safety §6.2).

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use stockade_crds::v1alpha1::{AgentExport, AgentTarget, ExportReport};

use crate::cmd;
use crate::error::{HostError, HostResult};

const OP: &str = "serve by iSCSI";
/// How long one step may take; starting tgtd takes an emulated machine most of this.
const LIMIT: Duration = Duration::from_secs(60);

/// A target as tgtd has it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Target {
    id: String,
    name: String,
    /// Sessions: id, connection, address of the initiator.
    sessions: Vec<(String, String, String)>,
    /// Backing stores by logical unit.
    units: BTreeMap<i32, String>,
    /// Addresses that may log in.
    admitted: Vec<String>,
}

/// Serves exactly this target to exactly its clients, and ends the sessions of all others.
pub(super) async fn ensure(export: &AgentExport, target: &AgentTarget) -> ExportReport {
    let served = serve(export, target).await;
    let ready = served.is_ok();
    ExportReport {
        storage: export.storage.clone(),
        ready,
        message: served.err().map(|error| error.to_string()).unwrap_or_default(),
        // Their hosts are not among the clients, and no session of others was left.
        denied: if ready { export.denied.clone() } else { Vec::new() },
        // What a dead node holds is o2cb's own to recover.
        broken: Vec::new(),
    }
}

async fn serve(export: &AgentExport, target: &AgentTarget) -> HostResult<()> {
    let refused = |message: String| Err(HostError::refused(OP, &target.name, message));
    if target.lun < 1 {
        return refused("tgt keeps LUN 0 for itself: set spec.ocfs2.iscsi.lun to 1".into());
    }
    if !Path::new(&export.path).exists() {
        return refused(format!(
            "{} does not exist: make the device, or correct spec.ocfs2.iscsi.backing",
            export.path
        ));
    }
    let systemctl = async |verb: &str| {
        let arguments = [verb, "--quiet", "tgt.service"];
        cmd::run(OP, "tgt", "systemctl", &arguments, LIMIT).await.map(drop)
    };
    if systemctl("is-active").await.is_err() {
        // At its next boot it waits for the agent.
        systemctl("disable").await?;
        systemctl("start").await?;
    }
    let known = list().await?;
    let found = match known.iter().find(|known| known.name == target.name) {
        Some(found) => found.clone(),
        None => {
            let last = known.iter().filter_map(|known| known.id.parse::<u32>().ok()).max();
            let id = (last.unwrap_or_default() + 1).to_string();
            admin(&["--op", "new", "--mode", "target", "--tid", &id, "-T", &target.name]).await?;
            Target { id, name: target.name.clone(), ..Target::default() }
        }
    };
    let wanted = |address: &str| export.clients.iter().any(|client| client.address == address);
    for address in found.admitted.iter().filter(|address| !wanted(address)) {
        let words = ["--op", "unbind", "--mode", "target", "--tid", &found.id, "-I", address];
        admin(&words).await?;
    }
    for (session, connection, address) in &found.sessions {
        if !wanted(address) {
            let place = ["--tid", &found.id, "--sid", session, "--cid", connection];
            admin(&[&["--op", "delete", "--mode", "conn"], &place[..]].concat()).await?;
        }
    }
    let lun = target.lun.to_string();
    match found.units.get(&target.lun) {
        Some(path) if *path == export.path => {}
        Some(path) => {
            return refused(format!(
                "its LUN {lun} is {path} and not {}: end tgtd once nobody uses it",
                export.path
            ));
        }
        None => {
            let unit = ["--tid", &found.id, "--lun", &lun, "-b", &export.path];
            admin(&[&["--op", "new", "--mode", "logicalunit"], &unit[..]].concat()).await?;
        }
    }
    for client in &export.clients {
        if !found.admitted.contains(&client.address) {
            let words = ["--op", "bind", "--mode", "target", "--tid", &found.id, "-I"];
            admin(&[&words[..], &[client.address.as_str()]].concat()).await?;
        }
    }
    let after = list().await?.into_iter().find(|after| after.name == target.name);
    let left = after.iter().flat_map(|after| &after.sessions).find(|(.., at)| !wanted(at));
    match left {
        Some((.., address)) => refused(format!("a session from {address} has not ended yet")),
        None => Ok(()),
    }
}

async fn admin(words: &[&str]) -> HostResult<String> {
    let arguments: Vec<&str> =
        ["--lld", "iscsi"].into_iter().chain(words.iter().copied()).collect();
    cmd::run(OP, "tgtd", "tgtadm", &arguments, LIMIT).await
}

async fn list() -> HostResult<Vec<Target>> {
    Ok(parse(&admin(&["--op", "show", "--mode", "target"]).await?))
}

/// Reads `tgtadm --op show --mode target`.
fn parse(text: &str) -> Vec<Target> {
    let mut all: Vec<Target> = Vec::new();
    let (mut unit, mut session, mut admits) = (0, ("", ""), false);
    for line in text.lines() {
        if let Some((id, name)) =
            line.strip_prefix("Target ").and_then(|rest| rest.split_once(": "))
        {
            all.push(Target { id: id.into(), name: name.trim().into(), ..Target::default() });
            admits = false;
            continue;
        }
        let Some(target) = all.last_mut() else { continue };
        let line = line.trim();
        let (key, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.trim();
        match key {
            "I_T nexus" => session.0 = value,
            "Connection" => session.1 = value,
            "IP Address" => {
                target.sessions.push((session.0.into(), session.1.into(), value.into()));
            }
            "LUN" => unit = value.parse().unwrap_or_default(),
            "Backing store path" if value != "None" => {
                target.units.insert(unit, value.into());
            }
            "ACL information" => admits = true,
            _ if admits && !key.is_empty() => target.admitted.push(line.into()),
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "\
Target 1: iqn.2026-01.dev.stockade:vms
    System information:
        Driver: iscsi
        State: ready
    I_T nexus information:
        I_T nexus: 3
            Initiator: iqn.2024-01.lab:h1 alias: h1
            Connection: 0
                IP Address: 10.0.0.1
    LUN information:
        LUN: 0
            Type: controller
            Backing store type: null
            Backing store path: None
        LUN: 1
            Type: disk
            Backing store type: rdwr
            Backing store path: /srv/luns/vms
            Backing store flags: 
    Account information:
    ACL information:
        10.0.0.1
        10.0.0.2
Target 4: iqn.2026-01.other:x
    ACL information:
        ALL
";

    #[test]
    fn what_tgtd_shows_is_read_with_sessions_units_and_who_may_log_in() {
        let all = parse(SHOWN);
        let session = ("3".to_owned(), "0".to_owned(), "10.0.0.1".to_owned());
        assert_eq!(
            all[0],
            Target {
                id: "1".into(),
                name: "iqn.2026-01.dev.stockade:vms".into(),
                sessions: vec![session],
                units: [(1, "/srv/luns/vms".to_owned())].into(),
                admitted: vec!["10.0.0.1".into(), "10.0.0.2".into()],
            }
        );
        assert_eq!((all[1].id.as_str(), all[1].admitted.as_slice()), ("4", &["ALL".into()][..]));
    }
}
