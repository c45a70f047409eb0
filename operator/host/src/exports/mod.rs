//! The serving side of storages: NFS by knfsd here, iSCSI by tgtd in `targets`, AoE by vblade in
//! `blades`.
//!
//! One export a host, by exportfs(8) and a file of our own.
//!
//! What is exported stands in one file that is replaced whole and fsynced: it is the journal of
//! who is denied. knfsd is started here alone, after that file is in force, so that a server that
//! comes back admits nobody who was denied before (safety §6.2).

mod blades;
mod clients;
mod targets;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentExport, BootReference, ExportReport};

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::{failed, replace};
use crate::ports::ExportPort;

const OP: &str = "export";
/// How long one step may take; starting knfsd takes an emulated machine most of this.
const LIMIT: Duration = Duration::from_secs(90);
/// Writes are on the disk before they are answered, and files keep their owners: root of a host
/// gives disks to the VMs' user.
const OPTIONS: &str = "rw,sync,no_subtree_check,no_root_squash,sec=sys";

/// Where a server's files are.
#[derive(Clone, Debug)]
pub struct ExportOptions {
    /// File of ours that exportfs reads.
    pub exports: PathBuf,
    /// File of ours with the server's settings.
    pub settings: PathBuf,
    /// Folder in which knfsd shows its clients.
    pub clients: PathBuf,
    /// The kernel's switch of leases on files, which delegations are.
    pub leases: PathBuf,
}

impl Default for ExportOptions {
    /// The usual places.
    fn default() -> Self {
        Self {
            exports: "/etc/exports.d/stockade.exports".into(),
            settings: "/etc/nfs.conf.d/stockade.conf".into(),
            clients: "/proc/fs/nfsd/clients".into(),
            leases: "/proc/sys/fs/leases-enable".into(),
        }
    }
}

/// knfsd of this machine.
#[derive(Debug, Default)]
pub struct Knfsd {
    options: ExportOptions,
    /// What the file said when exportfs last made it so.
    in_force: Mutex<Option<String>>,
    /// When each boot's denial was in force here, by storage and boot.
    denied: Mutex<BTreeMap<(String, String), Instant>>,
    /// Boots whose entries were expired.
    expired: Mutex<Vec<(String, BootReference)>>,
    /// One round at a time.
    round: tokio::sync::Mutex<()>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Knfsd {
    /// The server with its files in these places.
    #[must_use]
    pub fn new(options: ExportOptions) -> Self {
        Self { options, ..Self::default() }
    }

    /// Makes the file, the settings and the running server agree with what is declared.
    async fn apply(&self, exports: &[AgentExport]) -> HostResult<()> {
        let text = exports_text(exports);
        let path = &self.options.exports;
        if exports.is_empty() && !path.exists() {
            return Ok(());
        }
        written(path, &text)?;
        let lease = exports.iter().map(|export| export.lease_seconds).min();
        let reset = match lease {
            Some(lease) => {
                let delegates = no_delegations(&self.options.leases)?;
                written(&self.options.settings, &settings_text(lease))? || delegates
            }
            None => false,
        };
        // It would serve before this file is known to be right: it is started below.
        let systemctl = async |verb: &str| {
            let arguments = [verb, "--quiet", "nfs-server.service"];
            cmd::run(OP, "nfs-server", "systemctl", &arguments, LIMIT).await.map(drop)
        };
        let runs = systemctl("is-active").await.is_ok();
        if !runs && exports.is_empty() {
            return Ok(());
        }
        if !runs || reset {
            // At its next boot it waits for the agent, too.
            systemctl("disable").await?;
            systemctl(if runs { "restart" } else { "start" }).await?;
            lock(&self.in_force).take();
        }
        if lock(&self.in_force).as_ref() != Some(&text) {
            // A denial counts from here on, and not from when it was written.
            cmd::run(OP, "exports", "exportfs", &["-ra"], LIMIT).await?;
            *lock(&self.in_force) = Some(text);
        }
        Ok(())
    }

    /// Expires what the server still holds for boots whose locks are to be broken.
    ///
    /// Only after the denial of that boot was in force, and not if its client has renewed since
    /// then: a client that renews lives (safety §6.3).
    fn expire(&self, export: &AgentExport) -> HostResult<()> {
        for boot in &export.broken {
            let key = (export.storage.clone(), boot.boot_id.clone());
            let done = (export.storage.clone(), boot.clone());
            if lock(&self.expired).contains(&done) {
                continue;
            }
            let since = lock(&self.denied).get(&key).copied();
            let Some(since) = since else {
                let message = "its locks are to be broken before it is denied here";
                return Err(HostError::refused("break locks", &boot.host_uid, message));
            };
            clients::expire(&self.options.clients, &boot.host_uid, since.elapsed())?;
            lock(&self.expired).push(done);
        }
        lock(&self.expired)
            .retain(|(storage, boot)| *storage != export.storage || export.broken.contains(boot));
        Ok(())
    }

    fn report(&self, export: &AgentExport, result: &HostResult<()>) -> ExportReport {
        let expired = lock(&self.expired);
        let here = expired.iter().filter(|(storage, _)| *storage == export.storage);
        let in_force = lock(&self.denied);
        let denied = export
            .denied
            .iter()
            .filter(|b| in_force.contains_key(&(export.storage.clone(), b.boot_id.clone())));
        ExportReport {
            storage: export.storage.clone(),
            ready: result.is_ok(),
            message: result.as_ref().err().map(ToString::to_string).unwrap_or_default(),
            denied: denied.cloned().collect(),
            broken: here.map(|(_, boot)| boot.clone()).collect(),
        }
    }
}

impl ExportPort for Knfsd {
    fn ensure<'a>(&'a self, exports: &'a [AgentExport]) -> BoxFuture<'a, Vec<ExportReport>> {
        async move {
            let _round = self.round.lock().await;
            let is_folder = |export: &&AgentExport| export.target.is_none() && export.aoe.is_none();
            let folders: Vec<AgentExport> = exports.iter().filter(is_folder).cloned().collect();
            let applied = self.apply(&folders).await;
            let on_aoe: Vec<_> =
                exports.iter().filter_map(|export| Some((export, export.aoe.as_ref()?))).collect();
            let mut on_aoe = blades::ensure(&on_aoe).await.into_iter();
            let mut reports = Vec::new();
            for export in exports {
                if export.aoe.is_some() {
                    reports.extend(on_aoe.next());
                    continue;
                }
                if let Some(target) = &export.target {
                    reports.push(targets::ensure(export, target).await);
                    continue;
                }
                let mut result = applied.clone();
                if result.is_ok() {
                    let mut denied = lock(&self.denied);
                    denied.retain(|(storage, boot), _| {
                        *storage != export.storage
                            || export.denied.iter().any(|b| b.boot_id == *boot)
                    });
                    for boot in &export.denied {
                        denied
                            .entry((export.storage.clone(), boot.boot_id.clone()))
                            .or_insert_with(Instant::now);
                    }
                    drop(denied);
                    result = checked(export).and_then(|()| self.expire(export));
                }
                reports.push(self.report(export, &result));
            }
            reports
        }
        .boxed()
    }
}

/// The folder must be there already: one that is made would hide that its file system is missing.
fn checked(export: &AgentExport) -> HostResult<()> {
    let path = Path::new(&export.path);
    if path.is_dir() {
        return Ok(());
    }
    let message = "the folder does not exist: mount its file system, and make it there";
    Err(HostError::refused(OP, &export.path, message))
}

/// A line an export, a host an entry. A folder that is not there is not exported.
fn exports_text(exports: &[AgentExport]) -> String {
    let mut text = String::from("# Written by stockade-agent; hosts left out are denied.\n");
    for export in exports.iter().filter(|export| Path::new(&export.path).is_dir()) {
        if export.clients.is_empty() {
            continue;
        }
        let _ = write!(text, "{}", export.path);
        for client in &export.clients {
            let _ = write!(text, " {}({OPTIONS})", client.address);
        }
        text.push('\n');
    }
    text
}

/// Version 4 alone; a server that comes back waits for its clients no longer than their lease.
fn settings_text(lease_seconds: i32) -> String {
    format!(
        "# Written by stockade-agent.\n[nfsd]\nvers2=n\nvers3=n\nvers4=y\nudp=n\n\
         lease-time={lease_seconds}\ngrace-time={lease_seconds}\n"
    )
}

/// Switches delegations off: a host that dies with one on the beats keeps all others from beating
/// and from reading beats until its lease is over. True: they were on.
fn no_delegations(leases: &Path) -> HostResult<bool> {
    let now = fs::read_to_string(leases).map_err(failed(OP, leases))?;
    if now.trim() == "0" {
        return Ok(false);
    }
    fs::write(leases, "0").map_err(failed(OP, leases))?;
    Ok(true)
}

/// Replaces a file unless it says this already. True: it was changed.
fn written(path: &Path, text: &str) -> HostResult<bool> {
    if fs::read(path).is_ok_and(|old| old == text.as_bytes()) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed(OP, folder))?;
    }
    replace(path, text.as_bytes()).map_err(failed(OP, path))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use stockade_crds::v1alpha1::ExportClient;

    use super::*;

    fn export(path: &str, clients: &[&str]) -> AgentExport {
        let client =
            |address: &&str| ExportClient { host: "h".into(), address: (*address).to_owned() };
        AgentExport {
            storage: "vms".into(),
            path: path.into(),
            lease_seconds: 30,
            clients: clients.iter().map(client).collect(),
            ..AgentExport::default()
        }
    }

    #[test]
    fn each_host_is_named_and_a_folder_that_is_missing_is_exported_to_nobody() {
        let exports =
            [export("/tmp", &["10.0.0.1", "10.0.0.2"]), export("/not/there", &["10.0.0.1"])];
        let text = exports_text(&exports);
        let line = format!("/tmp 10.0.0.1({OPTIONS}) 10.0.0.2({OPTIONS})");
        assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), [line]);
        assert!(!text.contains('*') && checked(&exports[1]).is_err());
    }

    #[test]
    fn a_server_gives_no_delegations() {
        let folder = tempfile::tempdir().unwrap();
        let leases = folder.path().join("leases-enable");
        fs::write(&leases, "1\n").unwrap();
        assert!(no_delegations(&leases).unwrap());
        assert_eq!(fs::read_to_string(&leases).unwrap(), "0");
        assert!(!no_delegations(&leases).unwrap());
    }

    #[test]
    fn locks_are_not_broken_before_the_boot_is_denied() {
        let server = Knfsd::default();
        let boot = BootReference { host_uid: "uid".into(), boot_id: "boot".into() };
        let export = AgentExport { broken: vec![boot], ..export("/tmp", &[]) };
        let refused = server.expire(&export);
        assert!(matches!(refused, Err(HostError::Refused { .. })), "{refused:?}");
        assert!(server.report(&export, &refused).broken.is_empty());
    }
}
