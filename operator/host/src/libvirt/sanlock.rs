//! sanlock under libvirt: a lease on the storage for each disk, kept by a daemon that a watchdog
//! guards, so that a host which loses the storage has killed its VMs, or is reset, before another
//! may have their leases.
//!
//! libvirt's plugin joins the lockspace when the daemon starts, so a daemon that starts before the
//! storage is mounted would not come up at all: it is made to wait for the storage's marker.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stockade_crds::v1alpha1::AgentLock;

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::{self, failed, replace};

use super::lock::with_values;

const OP: &str = "use sanlock";
/// The lockspace of libvirt's plugin.
const SPACE: &str = "__LIBVIRT__DISKS__";
/// What holds libvirt's daemon back, among the units.
const LIBVIRTD_UNIT: &str = "libvirtd.service.d/stockade.conf";
/// How long a daemon may take to start, or to say what it holds.
const LIMIT: Duration = Duration::from_secs(60);
/// How long its answer may take.
const SHORT: Duration = Duration::from_secs(8);

/// Where the pieces lie.
#[derive(Clone, Debug)]
pub struct SanlockPlaces {
    /// Units of the administrator: `/etc/systemd/system`.
    pub units: PathBuf,
    /// Modules that are loaded at boot: `/etc/modules-load.d`.
    pub modules: PathBuf,
    /// Devices: `/dev`.
    pub devices: PathBuf,
    /// The kernel's: `/sys`.
    pub sys: PathBuf,
    /// The daemon's process id: `/run/sanlock/sanlock.pid`.
    pub pid_file: PathBuf,
}

impl Default for SanlockPlaces {
    fn default() -> Self {
        Self {
            units: "/etc/systemd/system".into(),
            modules: "/etc/modules-load.d".into(),
            devices: "/dev".into(),
            sys: "/sys".into(),
            pid_file: "/run/sanlock/sanlock.pid".into(),
        }
    }
}

/// What sanlock says that it holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Lockspaces that are joined: name, host id, path.
    spaces: Vec<(String, i32, String)>,
    /// libvirt's is being joined or left.
    changing: bool,
    /// Processes with a lease, once for each.
    leases: Vec<i32>,
}

impl Held {
    /// Reads `sanlock client status`: `s NAME:ID:PATH:OFFSET [flags]`, `r SPACE:NAME:PATH:OFFSET:…
    /// p PID`.
    fn parse(text: &str) -> Self {
        let mut held = Self::default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            match (words.next(), words.next()) {
                (Some("s"), Some(space)) => {
                    let parts: Vec<&str> = space.split(':').collect();
                    let [name, id, path, ..] = &parts[..] else { continue };
                    // One that is being joined or left says so in a further word.
                    if words.next().is_some() {
                        held.changing |= *name == SPACE;
                    } else if let Ok(id) = id.parse() {
                        held.spaces.push(((*name).to_owned(), id, (*path).to_owned()));
                    }
                }
                (Some("r"), Some(resource)) if resource.starts_with(SPACE) => {
                    // One that is being taken or given back says so in a further word.
                    if let (Some("p"), Some(pid), None) = (words.next(), words.next(), words.next())
                        && let Ok(pid) = pid.parse()
                    {
                        held.leases.push(pid);
                    }
                }
                _ => {}
            }
        }
        held
    }

    /// How many leases a process holds.
    pub(super) fn leases_of(&self, pid: i32) -> usize {
        self.leases.iter().filter(|of| **of == pid).count()
    }

    fn membership(&self, lock: &AgentLock) -> Membership {
        let path = path_of(lock);
        let own = |(name, id, at): &(String, i32, String)| {
            name == SPACE && *id == lock.host_id && *at == path
        };
        if self.spaces.iter().any(own) {
            Membership::Joined
        } else if self.changing {
            Membership::Changing
        } else {
            Membership::Absent
        }
    }

    /// The lockspace of libvirt's that is joined elsewhere or by another id, as sanlock's commands
    /// name it: libvirt can't join a second one of that name.
    fn other(&self, lock: Option<&AgentLock>) -> Option<String> {
        let wanted = lock.map(|lock| (lock.host_id, path_of(lock)));
        let mut own = self.spaces.iter().filter(|(name, ..)| name == SPACE);
        let other = own.find(|(_, id, at)| wanted.as_ref() != Some(&(*id, at.clone())));
        other.map(|(name, id, at)| format!("{name}:{id}:{at}:0"))
    }
}

fn path_of(lock: &AgentLock) -> String {
    format!("{}/{SPACE}", lock.lockspace)
}

/// Asks the daemon what it holds.
pub(super) async fn held() -> HostResult<Held> {
    let text = cmd::run(OP, "sanlock", "sanlock", &["client", "status"], SHORT).await?;
    Ok(Held::parse(&text))
}

/// The settings of libvirt's plugin.
fn settings(old: &str, lock: &AgentLock) -> String {
    with_values(
        old,
        &[
            ("auto_disk_leases", "1".to_owned()),
            ("require_lease_for_disks", "1".to_owned()),
            ("disk_lease_dir", format!("\"{}\"", lock.lockspace)),
            ("host_id", lock.host_id.to_string()),
        ],
    )
}

/// The unit of sanlock, as it must run: Debian's own setting leaves the watchdog out, and its user
/// can't write the leases, which are root's. By its name a host has its host id back at once after a
/// reboot.
fn sanlock_unit(host_uid: &str) -> String {
    format!(
        "# Written by Stockade's agent.\n[Unit]\nRequires=wdmd.service\nAfter=wdmd.service\n\
         [Service]\nExecStart=\nExecStart=/usr/sbin/sanlock daemon -w 1 -U root -G root -e {host_uid}\n"
    )
}

/// The unit of wdmd: it would give up where the driver of the watchdog is loaded after it starts.
fn wdmd_unit(device: &Path) -> String {
    format!(
        "# Written by Stockade's agent: a watchdog's driver may be loaded late.\n[Service]\n\
         TimeoutStartSec=infinity\n\
         ExecStartPre=/bin/sh -c 'until test -e \"{}\"; do sleep 1; done'\n",
        device.display()
    )
}

/// The unit of libvirt's daemon: it waits for the storage, whose lockspace it joins.
fn libvirtd_unit(marker: &Path) -> String {
    format!(
        "# Written by Stockade's agent: libvirt joins the lockspace when it starts.\n[Unit]\n\
         Wants=sanlock.service\nAfter=sanlock.service\n[Service]\nTimeoutStartSec=infinity\n\
         ExecStartPre=/bin/sh -c 'until test -e \"{}\"; do sleep 1; done'\n",
        marker.display()
    )
}

/// Writes a file if it differs. True: it did.
fn set(path: &Path, text: &str) -> HostResult<bool> {
    if fs::read_to_string(path).is_ok_and(|old| old == text) {
        return Ok(false);
    }
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed(OP, folder))?;
    }
    replace(path, text.as_bytes()).map_err(failed(OP, path))?;
    Ok(true)
}

/// Prepares everything but libvirt's own choice of a lock manager: the watchdog, the daemons, the
/// lockspace's folder, the plugin's settings. True: libvirt's daemon must be started anew.
///
/// # Errors
/// [`HostError::Refused`] with the remedy for what a person must mend.
pub(super) async fn prepare(
    places: &SanlockPlaces,
    config: &Path,
    lock: &AgentLock,
    host_uid: &str,
) -> HostResult<bool> {
    if lock.host_id == 0 {
        let message = "the LockManager's status has no host id for this host yet";
        return Err(HostError::refused(OP, host_uid, message));
    }
    let marker = Path::new(&lock.lockspace).with_file_name("cluster");
    let looked = marker.clone();
    // Its server may be away, and the look hang.
    if !files::blocking(OP, &lock.lockspace, move || Ok(looked.exists())).await? {
        let message = "its storage is not mounted and checked here yet";
        return Err(HostError::refused(OP, &lock.lockspace, message));
    }
    let path = config.join("qemu-sanlock.conf");
    let old = match fs::read_to_string(&path) {
        Ok(old) => old,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let message = "libvirt's plugin for sanlock is not there: install libvirt-sanlock";
            return Err(HostError::refused(OP, path.display().to_string(), message));
        }
        Err(error) => return Err(failed(OP, &path)(error)),
    };
    watchdog(places).await?;
    daemon(places, host_uid, &marker).await?;
    let space = PathBuf::from(&lock.lockspace);
    let made = move || fs::create_dir_all(&space).map_err(failed(OP, &space));
    files::blocking(OP, &lock.lockspace, made).await?;
    let left = leave_other(Some(lock)).await?;
    Ok(set(&path, &settings(&old, lock))? || left)
}

/// Leaves the lockspace that is not this lock manager's. True: there was one.
async fn leave_other(lock: Option<&AgentLock>) -> HostResult<bool> {
    let held = held().await?;
    let Some(other) = held.other(lock) else { return Ok(false) };
    // sanlock would kill the processes that hold them.
    if !held.leases.is_empty() {
        let message = "VMs hold leases in it: move them away or stop them, then it is left";
        return Err(HostError::refused(OP, other, message));
    }
    let leave = ["client", "rem_lockspace", "-s", &other];
    cmd::run(OP, &other, "sanlock", &leave, LIMIT).await?;
    Ok(true)
}

/// Undoes what holds libvirt's daemon back until sanlock's storage is mounted, if that was done:
/// another lock manager serves this host.
///
/// # Errors
/// VMs hold leases still.
pub(super) async fn leave(places: &SanlockPlaces) -> HostResult<()> {
    let unit = places.units.join(LIBVIRTD_UNIT);
    if !unit.exists() {
        return Ok(());
    }
    if places.pid_file.exists() {
        leave_other(None).await?;
    }
    fs::remove_file(&unit).map_err(failed(OP, &unit))?;
    cmd::run(OP, "systemd", "systemctl", &["daemon-reload"], LIMIT).await.map(drop)
}

/// How far libvirt's daemon has come with the lockspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Membership {
    /// Joined by this host's id.
    Joined,
    /// It is being joined or left.
    Changing,
    /// Nobody is at it: the daemon has not tried, or has failed. It tries once a start.
    Absent,
}

/// How far this host has come with the lockspace.
///
/// # Errors
/// sanlock does not answer.
pub(super) async fn membership(lock: &AgentLock) -> HostResult<Membership> {
    Ok(held().await?.membership(lock))
}

/// What the status says of a host that has not joined.
pub(super) fn not_joined(lock: &AgentLock) -> HostError {
    let message = format!(
        "host id {} has not joined the lockspace yet; where it stays so see journalctl -u sanlock \
         -u libvirtd",
        lock.host_id
    );
    HostError::refused(OP, &lock.lockspace, message)
}

/// A watchdog is there, its driver loaded now and at each boot.
async fn watchdog(places: &SanlockPlaces) -> HostResult<()> {
    let device = places.devices.join("watchdog");
    if device.exists() {
        return Ok(());
    }
    for module in drivers(places).await {
        cmd::run(OP, &module, "modprobe", &[&module], LIMIT).await?;
        if device.exists() {
            set(&places.modules.join("stockade-watchdog.conf"), &format!("{module}\n"))?;
            return Ok(());
        }
    }
    let message = "there is no watchdog: load the driver of this host's own by a file in \
                   /etc/modules-load.d (softdog does too, but can't reset a kernel that hangs)";
    Err(HostError::refused(OP, device.display().to_string(), message))
}

/// Drivers of watchdogs among the devices that have none: these modules are not loaded by
/// themselves where a distribution has put them on its blacklist.
async fn drivers(places: &SanlockPlaces) -> Vec<String> {
    let devices = fs::read_dir(places.sys.join("bus/pci/devices"));
    let mut found = Vec::new();
    for device in devices.into_iter().flatten().flatten() {
        let folder = device.path();
        let Ok(alias) = fs::read_to_string(folder.join("modalias")) else { continue };
        if folder.join("driver").exists() {
            continue;
        }
        let arguments = ["--resolve-alias", alias.trim()];
        let names = cmd::run(OP, "watchdog", "modprobe", &arguments, SHORT).await;
        for name in names.unwrap_or_default().split_whitespace() {
            let file = cmd::run(OP, name, "modinfo", &["-n", name], SHORT).await;
            if file.is_ok_and(|file| file.contains("/drivers/watchdog/")) {
                found.push(name.to_owned());
            }
        }
    }
    found
}

/// sanlock runs, under the watchdog and by this host's name.
async fn daemon(places: &SanlockPlaces, host_uid: &str, marker: &Path) -> HostResult<()> {
    let units = &places.units;
    let own = set(&units.join("sanlock.service.d/stockade.conf"), &sanlock_unit(host_uid))?;
    let theirs = set(&units.join(LIBVIRTD_UNIT), &libvirtd_unit(marker))?;
    let device = places.devices.join("watchdog");
    let guard = set(&units.join("wdmd.service.d/stockade.conf"), &wdmd_unit(&device))?;
    if own || theirs || guard {
        cmd::run(OP, "systemd", "systemctl", &["daemon-reload"], LIMIT).await?;
    }
    let pid = fs::read_to_string(&places.pid_file).unwrap_or_default();
    let line = fs::read(format!("/proc/{}/cmdline", pid.trim())).unwrap_or_default();
    let line = String::from_utf8_lossy(&line).replace('\0', " ");
    if !line.contains("sanlock") {
        return cmd::run(OP, "sanlock", "systemctl", &["start", "sanlock.service"], LIMIT)
            .await
            .map(drop);
    }
    if line.contains(" -w 1 -U root ") && line.contains(host_uid) {
        return Ok(());
    }
    // It refuses while it holds anything.
    let down = ["client", "shutdown", "-f", "0", "-w", "1"];
    cmd::run(OP, "sanlock", "sanlock", &down, LIMIT).await.map_err(|error| {
        let message = format!(
            "it runs without the watchdog, or by another name, and holds leases ({error}): stop \
             what uses it, then it is started as it must be"
        );
        HostError::refused(OP, "sanlock", message)
    })?;
    cmd::run(OP, "sanlock", "systemctl", &["restart", "sanlock.service"], LIMIT).await.map(drop)
}

#[cfg(test)]
mod tests {
    use stockade_crds::v1alpha1::LockKind;

    use super::*;

    fn lock() -> AgentLock {
        AgentLock {
            kind: LockKind::Sanlock,
            storage: "vms".into(),
            lockspace: "/srv/vms/.stockade/locks".into(),
            guards: vec!["vms".into()],
            host_id: 2,
            maintenance: false,
        }
    }

    #[test]
    fn a_lockspace_counts_once_it_is_joined_by_the_hosts_own_id() {
        let status = |line: &str| format!("daemon uid-1\np -1 helper\n{line}\n");
        let space = format!("s {SPACE}:2:/srv/vms/.stockade/locks/{SPACE}:0");
        let membership = |line: &str| Held::parse(&status(line)).membership(&lock());
        assert_eq!(membership(&space), Membership::Joined);
        assert_eq!(membership(&format!("{space} ADD")), Membership::Changing);
        for other in [
            format!("s {SPACE}:3:/srv/vms/.stockade/locks/{SPACE}:0"),
            format!("s {SPACE}:2:/srv/other/.stockade/locks/{SPACE}:0"),
            "s theirs:2:/srv/vms:0 ADD".to_owned(),
            String::new(),
        ] {
            assert_eq!(membership(&other), Membership::Absent, "{other}");
        }
    }

    #[test]
    fn a_lockspace_elsewhere_or_by_another_id_is_to_be_left() {
        let own = format!("{SPACE}:2:/srv/vms/.stockade/locks/{SPACE}:0");
        let status = |space: &str| format!("daemon uid-1\ns theirs:1:/x:0\ns {space}\n");
        let held = Held::parse(&status(&own));
        assert_eq!(held.other(Some(&lock())), None);
        assert_eq!(held.other(None), Some(own.clone()));
        for other in [own.replace(":2:", ":3:"), own.replace("/srv/vms", "/srv/old")] {
            assert_eq!(Held::parse(&status(&other)).other(Some(&lock())), Some(other));
        }
    }

    #[test]
    fn leases_are_counted_by_the_process_that_holds_them() {
        let lease = |name: &str, pid| format!("r {SPACE}:{name}:/srv/l/{name}:0:1 p {pid}\n");
        let taking = lease("d", 80).replace("p 80", "p 80 ADD");
        let all = ["p 71 qemu\n", &lease("a", 71), &lease("b", 71), &lease("c", 80), &taking];
        let text = all.concat();
        let held = Held::parse(&text);
        assert_eq!((held.leases_of(71), held.leases_of(80), held.leases_of(9)), (2, 1, 0));
    }

    #[test]
    fn the_plugin_is_set_to_lease_each_disk_by_the_hosts_id_and_nothing_else_changes() {
        let text = settings("# host_id = 1\nhost_id = 7\nuser = \"root\"\n", &lock());
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(
            lines,
            [
                "# host_id = 1",
                "user = \"root\"",
                "auto_disk_leases = 1",
                "require_lease_for_disks = 1",
                "disk_lease_dir = \"/srv/vms/.stockade/locks\"",
                "host_id = 2",
            ]
        );
        assert_eq!(settings(&text, &lock()), text, "what is set already stays as it is");
    }
}
