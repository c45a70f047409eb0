//! The serving side of AoE: one vblade(8) a device, open to whoever is on its network.
//!
//! vblade remembers nothing and takes no orders, so each runs as a unit that systemd forgets with the
//! boot, begun here alone. Nobody is denied here, and none of these reports says so: a frame comes from
//! whatever address its sender likes (safety §6.2). What a dead node holds is o2cb's own to recover.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use stockade_crds::v1alpha1::{AgentAoe, AgentExport, ExportReport};

use crate::cmd;
use crate::error::{HostError, HostResult};

const OP: &str = "serve by AoE";
/// How long one step may take, on an emulated machine too.
const LIMIT: Duration = Duration::from_secs(60);
/// For so long one must have served before it counts: one that can't ends within this time.
const SETTLE: Duration = Duration::from_secs(1);
/// How the names of its units begin.
const UNITS: &str = "stockade-aoe-";
/// Where Debian has it.
const VBLADE: &str = "/usr/sbin/vblade";
/// What systemd is told of each: a network that goes away for a while must not end it for good, and
/// clients must not wait long for it.
const PROPERTIES: [&str; 5] = [
    "--property=Type=exec",
    "--property=Restart=always",
    "--property=RestartSec=1",
    "--property=StartLimitIntervalSec=0",
    "--property=TimeoutStopSec=5",
];

fn unit(aoe: &AgentAoe) -> String {
    format!("{UNITS}{}-{}.service", aoe.shelf, aoe.slot)
}

/// Serves exactly these devices. A report for each export, in order.
pub(super) async fn ensure(exports: &[(&AgentExport, &AgentAoe)]) -> Vec<ExportReport> {
    let others = end_others(exports).await;
    let mut reports = Vec::new();
    for (export, aoe) in exports {
        let served = match &others {
            Err(error) => Err(error.clone()),
            Ok(()) => serve(export, aoe).await,
        };
        reports.push(ExportReport {
            storage: export.storage.clone(),
            ready: served.is_ok(),
            message: served.err().map(|error| error.to_string()).unwrap_or_default(),
            denied: Vec::new(),
            broken: Vec::new(),
        });
    }
    reports
}

/// Ends what is served here and is not to be.
async fn end_others(exports: &[(&AgentExport, &AgentAoe)]) -> HostResult<()> {
    let wanted: Vec<String> = exports.iter().map(|(_, aoe)| unit(aoe)).collect();
    let pattern = format!("{UNITS}*");
    let words = ["list-units", "--all", "--plain", "--no-legend", pattern.as_str()];
    let listed = systemctl(&words).await?;
    let units = listed.lines().filter_map(|line| line.split_whitespace().next());
    for unit in units.filter(|unit| !wanted.iter().any(|wanted| wanted == unit)) {
        end(unit).await?;
    }
    Ok(())
}

async fn serve(export: &AgentExport, aoe: &AgentAoe) -> HostResult<()> {
    let unit = unit(aoe);
    let wanted = command(export, aoe);
    let serves = running(&unit).await?;
    if serves.as_ref().is_some_and(|(_, words)| *words == wanted) {
        return Ok(());
    }
    if serves.is_some() {
        end(&unit).await?;
    }
    let refused = |message: String| Err(HostError::refused(OP, &export.path, message));
    if !Path::new(VBLADE).exists() {
        return refused("this host has no vblade: install the package vblade".into());
    }
    if !Path::new(&export.path).exists() {
        return refused(format!(
            "{} does not exist: make the device, or correct spec.ocfs2.aoe.backing",
            export.path
        ));
    }
    if !Path::new("/sys/class/net").join(&aoe.interface).exists() {
        return refused(format!(
            "this host has no network interface {}: correct spec.ocfs2.aoe.interface, or give this \
             one that name",
            aoe.interface
        ));
    }
    let name = format!("--unit={unit}");
    let mut words = vec!["--quiet", "--collect", &name];
    words.extend(PROPERTIES);
    words.push("--");
    words.extend(wanted.iter().map(String::as_str));
    cmd::run(OP, &export.path, "systemd-run", &words, LIMIT).await?;
    let first = running(&unit).await?;
    tokio::time::sleep(SETTLE).await;
    let still = running(&unit).await?;
    if still.is_some() && first == still {
        return Ok(());
    }
    refused(format!("vblade ends again and again: journalctl -u {unit} says why"))
}

/// The command that serves a device. Writes are on the disk before they are answered.
fn command(export: &AgentExport, aoe: &AgentAoe) -> Vec<String> {
    let (shelf, slot) = (aoe.shelf.to_string(), aoe.slot.to_string());
    [VBLADE, "-s", &shelf, &slot, &aoe.interface, &export.path].map(ToOwned::to_owned).to_vec()
}

/// The process that serves, and its command line; `None`: there is none.
async fn running(unit: &str) -> HostResult<Option<(String, Vec<String>)>> {
    let shown = systemctl(&["show", "--property=MainPID", "--value", unit]).await?;
    let pid = shown.trim();
    if matches!(pid, "" | "0") {
        return Ok(None);
    }
    let words = words(&fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default());
    Ok((!words.is_empty()).then(|| (pid.to_owned(), words)))
}

/// The words of a process's command line (proc(5)).
fn words(line: &[u8]) -> Vec<String> {
    let words = line.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    words.map(|word| String::from_utf8_lossy(word).into_owned()).collect()
}

/// Ends a unit if it is there; back once its process is gone.
async fn end(unit: &str) -> HostResult<()> {
    let before = running(unit).await?;
    match systemctl(&["stop", "--quiet", unit]).await {
        Err(HostError::Failed { message, .. }) if message.contains("not loaded") => {}
        other => drop(other?),
    }
    let Some((pid, _)) = before else { return Ok(()) };
    let began = Instant::now();
    while Path::new("/proc").join(&pid).exists() {
        if began.elapsed() > LIMIT {
            return Err(HostError::failed(OP, unit, format!("its process {pid} does not end")));
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    Ok(())
}

async fn systemctl(words: &[&str]) -> HostResult<String> {
    cmd::run(OP, "vblade", "systemctl", words, LIMIT).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_served_by_one_unit_that_is_named_after_its_place() {
        let aoe = AgentAoe { shelf: 1, slot: 2, interface: "eth1".into() };
        let export = AgentExport { path: "/dev/vg/vms".into(), ..AgentExport::default() };
        assert_eq!(command(&export, &aoe).join(" "), "/usr/sbin/vblade -s 1 2 eth1 /dev/vg/vms");
        assert_eq!(unit(&aoe), "stockade-aoe-1-2.service");
    }

    #[test]
    fn a_command_line_is_read_as_the_kernel_shows_it() {
        let own = words(&fs::read("/proc/self/cmdline").unwrap());
        assert_eq!(own, std::env::args().collect::<Vec<_>>());
    }
}
