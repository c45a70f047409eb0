//! The client side of NFS: what must hold before, at and after the mount, each with the remedy.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stockade_crds::v1alpha1::AgentStorage;

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::failed;
use crate::ports::{MountRequest, Mounted, Mounts};

const OP: &str = "mount";
/// How long a server may take to accept a connection.
const REACH_LIMIT: Duration = Duration::from_secs(5);
/// How long loading the kernel's NFS client may take.
const LOAD_LIMIT: Duration = Duration::from_secs(30);
/// Port of NFS 4.
const PORT: &str = "2049";
/// Version 4.2; never an error in place of a wait; nothing that a record or a name could be read
/// from but the server.
const OPTIONS: [&str; 4] = ["vers=4.2", "hard", "noac", "lookupcache=none"];

/// How the kernel's NFS client is set.
#[derive(Clone, Debug)]
pub struct NfsClient {
    /// Folder with the module's parameters.
    pub parameters: PathBuf,
    /// The name that servers know this host by: its uid, the same in every boot (safety §6.2).
    pub identity: String,
}

impl NfsClient {
    /// The usual place.
    #[must_use]
    pub fn new(identity: &str) -> Self {
        Self { parameters: "/sys/module/nfs/parameters".into(), identity: identity.to_owned() }
    }
}

/// Makes sure that the export is mounted at the storage's path; idempotent.
///
/// # Errors
/// [`HostError::Refused`] with the remedy for what a person must mend.
pub(super) async fn ensure(
    mounts: &dyn Mounts,
    client: &NfsClient,
    storage: &AgentStorage,
) -> HostResult<()> {
    let path = &storage.mount_path;
    let mut found = mounts.find(path).await?;
    if found.is_none() {
        prepare(client).await?;
        fs::create_dir_all(path).map_err(failed(OP, Path::new(path)))?;
        let request = if storage.served_here {
            // A host never mounts its own export by NFS: short of memory it would wait for itself.
            bind(storage)?
        } else {
            reach(&storage.source, &storage.options).await?;
            let own = OPTIONS.iter().map(ToString::to_string);
            MountRequest {
                kind: "nfs4".into(),
                source: storage.source.clone(),
                path: path.clone(),
                options: own.chain(storage.options.iter().cloned()).collect(),
            }
        };
        mounts.mount(&request).await.map_err(|error| explained(error, storage))?;
        found = mounts.find(path).await?;
    }
    let Some(mounted) = found else {
        return Err(HostError::refused(
            OP,
            path,
            "mount(8) said that it is mounted, and it is not",
        ));
    };
    fits(&mounted, storage)?;
    if mounts.is_on(path, &mounted).await? {
        return Ok(());
    }
    let message = "what is seen there is not what is mounted there: something covers it; unmount \
                   what lies over it";
    Err(HostError::refused(OP, path, message))
}

/// Sets the client up before its first mount: its name, and no recovery of lost locks.
async fn prepare(client: &NfsClient) -> HostResult<()> {
    if !client.parameters.is_dir() {
        cmd::run(OP, "nfs", "modprobe", &["nfs"], LOAD_LIMIT).await?;
    }
    let recover = client.parameters.join("recover_lost_locks");
    let value = fs::read_to_string(&recover).map_err(failed(OP, &recover))?;
    if !matches!(value.trim(), "N" | "0") {
        let message = format!(
            "it is {}: a host that was cut off would take locks again that another has by now; \
             write N to it, and take it out of /etc/modprobe.d and the kernel's command line",
            value.trim()
        );
        return Err(HostError::refused(OP, recover.display().to_string(), message));
    }
    let identity = client.parameters.join("nfs4_unique_id");
    let value = fs::read_to_string(&identity).map_err(failed(OP, &identity))?;
    if value.trim() == client.identity {
        return Ok(());
    }
    fs::write(&identity, &client.identity).map_err(failed(OP, &identity))
}

/// The request that shows a host its own export.
fn bind(storage: &AgentStorage) -> HostResult<MountRequest> {
    let export = export_of(&storage.source);
    if !Path::new(export).is_dir() {
        let message = format!("this host serves {export} itself, and that folder does not exist");
        return Err(HostError::refused(OP, &storage.mount_path, message));
    }
    Ok(MountRequest {
        kind: String::new(),
        source: export.to_owned(),
        path: storage.mount_path.clone(),
        options: vec!["bind".into()],
    })
}

/// The path of `server:/path`. A server in brackets may hold colons.
fn export_of(source: &str) -> &str {
    source.find(":/").map_or(source, |at| &source[at + 1..])
}

fn server_of(source: &str) -> &str {
    let server = source.find(":/").map_or(source, |at| &source[..at]);
    server.trim_start_matches('[').trim_end_matches(']')
}

/// Connects to the server once: mount(8) would try for minutes and then say little.
async fn reach(source: &str, options: &[String]) -> HostResult<()> {
    let server = server_of(source);
    let given = options.iter().find_map(|option| option.strip_prefix("port="));
    let port = given.unwrap_or(PORT).parse::<u16>().unwrap_or(2049);
    let connected =
        tokio::time::timeout(REACH_LIMIT, tokio::net::TcpStream::connect((server, port))).await;
    let why = match connected {
        Ok(Ok(_)) => return Ok(()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer within {} s", REACH_LIMIT.as_secs()),
    };
    let message = format!(
        "its server {server} can't be reached on TCP port {port} ({why}): start the NFS server, \
         open the port, or correct spec.nfs.server"
    );
    Err(HostError::refused(OP, source, message))
}

/// Gives what mount(8) says the words that say what to do.
fn explained(error: HostError, storage: &AgentStorage) -> HostError {
    let HostError::Failed { op, target, message } = error else { return error };
    let export = export_of(&storage.source);
    let remedy = if message.contains("access denied") {
        format!("the server does not export {export} to this host's address: add it there")
    } else if message.contains("No such file or directory") {
        format!("the server has no export {export}: export it, or correct spec.nfs.export")
    } else if message.contains("Protocol not supported") {
        "the server does not speak NFS 4.2: switch that version on there".to_owned()
    } else {
        return HostError::Failed { op, target, message };
    };
    HostError::refused(op, target, format!("{remedy} ({message})"))
}

/// Whether what is mounted there is this storage, under options that keep hosts apart.
fn fits(mounted: &Mounted, storage: &AgentStorage) -> HostResult<()> {
    let refused = |message: String| Err(HostError::refused(OP, &storage.mount_path, message));
    if storage.served_here {
        // findmnt names the file system that is bound, with the folder in brackets.
        if mounted.kind.starts_with("nfs") {
            return refused("this host serves it and has mounted it by NFS: unmount it".into());
        }
        return Ok(());
    }
    let same = |a: &str, b: &str| a.trim_end_matches('/') == b.trim_end_matches('/');
    if mounted.kind != "nfs4" || !same(&mounted.source, &storage.source) {
        return refused(format!(
            "something else is mounted there, {} of {}: unmount it, or correct spec.nfs",
            mounted.kind, mounted.source
        ));
    }
    for option in &mounted.options {
        let why = match option.as_str() {
            "ro" => "it is mounted read-only",
            "soft" | "softerr" => "it is mounted soft: writes would be lost without a word",
            "nolock" => "it is mounted without locks",
            _ if option.starts_with("local_lock=") && option != "local_lock=none" => {
                "its locks are local to this host"
            }
            _ => continue,
        };
        return refused(format!("{why} ({option}): unmount it, and Stockade mounts it itself"));
    }
    Ok(())
}

/// Shows by a file of this host's own that it may write there as root and give files to the VMs'
/// user, whose ids arrive as they were sent.
pub(super) fn probe(folder: &Path, name: &str, storage: &AgentStorage) -> HostResult<()> {
    use std::os::unix::fs::{MetadataExt as _, chown};
    const OP: &str = "check storage";
    let path = folder.join(format!("{name}.probe"));
    let refused = |message: String| HostError::refused(OP, path.display().to_string(), message);
    let written = fs::create_dir_all(folder).and_then(|()| fs::write(&path, name));
    written.map_err(|error| match error.kind() {
        io::ErrorKind::ReadOnlyFilesystem => {
            refused("the storage is read-only: export it with rw".into())
        }
        io::ErrorKind::PermissionDenied => {
            refused("root of this host may not write there: export it with no_root_squash".into())
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            refused("the storage is full: make room".into())
        }
        _ => failed(OP, &path)(error),
    })?;
    let seen = || fs::metadata(&path).map(|data| (i64::from(data.uid()), i64::from(data.gid())));
    let (uid, _) = seen().map_err(failed(OP, &path))?;
    if uid != 0 && rustix::process::geteuid().is_root() {
        return Err(refused(format!(
            "the server makes root into user {uid}: export it with no_root_squash"
        )));
    }
    let wanted = (storage.owner.uid, storage.owner.gid);
    let ids = (u32::try_from(wanted.0), u32::try_from(wanted.1));
    if let (Ok(uid), Ok(gid)) = ids
        && wanted != (0, 0)
    {
        chown(&path, Some(uid), Some(gid)).map_err(|error| {
            refused(format!(
                "files can't be given to {}:{} ({error}): export it with no_root_squash, and check \
                 the id-mapping domain",
                wanted.0, wanted.1
            ))
        })?;
        let got = seen().map_err(failed(OP, &path))?;
        if got != wanted {
            return Err(refused(format!(
                "a file given to {}:{} arrives as {}:{}: the id-mapping domain differs; set the \
                 same Domain in /etc/idmapd.conf of server and hosts, or nfs4_disable_idmapping=Y",
                wanted.0, wanted.1, got.0, got.1
            )));
        }
    }
    fs::remove_file(&path).map_err(failed(OP, &path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn storage() -> AgentStorage {
        AgentStorage {
            source: "[fd00::1]:/srv/vms".into(),
            mount_path: "/srv/stockade/vms".into(),
            ..AgentStorage::default()
        }
    }

    #[test]
    fn a_server_in_brackets_keeps_its_colons() {
        assert_eq!(server_of("[fd00::1]:/srv/vms"), "fd00::1");
        assert_eq!(export_of("[fd00::1]:/srv/vms"), "/srv/vms");
        assert_eq!((server_of("nas:/"), export_of("nas:/")), ("nas", "/"));
    }

    #[test]
    fn only_the_declared_export_under_safe_options_is_taken_for_the_storage() {
        let mounted = |kind: &str, source: &str, options: &str| Mounted {
            kind: kind.into(),
            source: source.into(),
            options: options.split(',').map(ToOwned::to_owned).collect(),
            device: "0:50".into(),
        };
        let good = "rw,vers=4.2,hard,local_lock=none";
        assert!(fits(&mounted("nfs4", "[fd00::1]:/srv/vms/", good), &storage()).is_ok());
        for (kind, source, options) in [
            ("nfs4", "[fd00::1]:/srv/vms2", good),
            ("nfs", "[fd00::1]:/srv/vms", good),
            ("ext4", "/dev/vda", "rw"),
            ("nfs4", "[fd00::1]:/srv/vms", "ro,hard"),
            ("nfs4", "[fd00::1]:/srv/vms", "rw,soft"),
            ("nfs4", "[fd00::1]:/srv/vms", "rw,hard,local_lock=all"),
        ] {
            let found = fits(&mounted(kind, source, options), &storage());
            assert!(matches!(found, Err(HostError::Refused { .. })), "{kind} {source} {options}");
        }
    }
}
