//! What a local host runs: its folders, libvirt's configuration, and the script of its PID 1.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use super::{Layout, LocalHostsError, at};

/// Folders that each local host has for itself; on a real host they are on its own disk.
pub(super) const OWN_FOLDERS: &[&str] = &[
    "run",
    "etc/libvirt",
    "etc/stockade",
    "etc/pki",
    "var/lib/libvirt",
    "var/lib/stockade",
    "var/log/libvirt",
    "var/cache/libvirt",
];

/// The host's first program, under an init that reaps.
///
/// libvirtd must not be PID 1 itself: it does not reap the QEMUs that it starts to probe their
/// capabilities, and each one left costs it 40 s. The script ends when its standard input does,
/// that is when the owner is gone, and the kernel then ends everything in the namespace. The
/// daemons detach, so that the init is their parent and reaps them.
const INIT: &str = r#"set -eu
root=$1 name=$2
for folder in $3; do
    mkdir -p "$root/$folder" "/$folder"
    mount --bind "$root/$folder" "/$folder"
done
mount --bind "$root/boot_id" /proc/sys/kernel/random/boot_id
[ ! -e /etc/machine-id ] || mount --bind "$root/machine-id" /etc/machine-id
[ ! -e /etc/hosts ] || mount --bind "$root/../hosts" /etc/hosts
[ ! -e /etc/resolv.conf ] || mount --bind "$root/../resolv.conf" /etc/resolv.conf
hostname "$name"
mkdir -p /run/lock /run/stockade
ip link set lo up
# As docs/migration.md advises: a move that is cut off is given up by TCP after 25 s.
echo 6 >/proc/sys/net/ipv4/tcp_retries2
echo mounted
read -r connected
ip address add "$4/24" dev eth0
ip link set eth0 up
virtlogd --daemon </dev/null
virtlockd --daemon </dev/null
libvirtd --listen --daemon </dev/null
echo started
exec cat >/dev/null
"#;

/// Restarts the daemon: called inside the host, maybe with another network than the host's own.
const RESTART: &str = r#"#!/bin/sh
pid=$(cat /run/libvirtd.pid 2>/dev/null)
[ -z "$pid" ] || kill "$pid" 2>/dev/null
tries=0
while [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null && [ "$tries" -lt 400 ]; do
    sleep 0.05
    tries=$((tries + 1))
done
exec nsenter --target 1 --net -- libvirtd --listen --daemon </dev/null
"#;

/// Writes what must be there before a host's first boot.
pub(super) fn prepare(layout: &Layout, index: usize) -> Result<(), LocalHostsError> {
    let root = layout.host(index);
    for folder in OWN_FOLDERS {
        let folder = root.join(folder);
        fs::create_dir_all(&folder).map_err(at(&folder))?;
    }
    let uuid = layout.uuid(index);
    let write = |path: PathBuf, text: String| fs::write(&path, text).map_err(at(&path));
    write(root.join("init.sh"), INIT.to_owned())?;
    let restart = root.join("restart-libvirtd");
    write(restart.clone(), RESTART.to_owned())?;
    fs::set_permissions(&restart, fs::Permissions::from_mode(0o755)).map_err(at(&restart))?;
    // libvirt calls hooks only if it found one when it started; this one lets all pass.
    let hooks = root.join("etc/libvirt/hooks/qemu.d");
    fs::create_dir_all(&hooks).map_err(at(&hooks))?;
    let hook = hooks.join("local-host");
    write(hook.clone(), "#!/bin/sh\nexit 0\n".to_owned())?;
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).map_err(at(&hook))?;
    write(root.join("host_uuid"), format!("{uuid}\n"))?;
    write(root.join("machine-id"), format!("{}\n", uuid.replace('-', "")))?;
    write(
        root.join("etc/libvirt/libvirtd.conf"),
        format!(
            "host_uuid = \"{uuid}\"\nauth_unix_rw = \"none\"\nauth_unix_ro = \"none\"\n\
             listen_tls = 0\nlisten_tcp = 1\nauth_tcp = \"none\"\nlisten_addr = \"{}\"\n\
             log_outputs = \"3:file:{}\"\n",
            layout.address(index),
            root.join("libvirtd.log").display()
        ),
    )?;
    // No security driver, cgroups or ownership changes: namespaces on one machine share them.
    write(
        root.join("etc/libvirt/qemu.conf"),
        format!(
            "security_driver = \"none\"\ncgroup_controllers = []\ndynamic_ownership = 0\n\
             remember_owner = 0\nuser = \"root\"\ngroup = \"root\"\nlock_manager = \"lockd\"\n\
             migration_address = \"{}\"\n",
            layout.address(index)
        ),
    )?;
    write(
        root.join("etc/libvirt/qemu-lockd.conf"),
        "auto_disk_leases = 1\nrequire_lease_for_disks = 0\n".to_owned(),
    )
}

/// Gives the host a boot id that no boot before had, and an empty `/run`.
pub(super) fn new_boot(layout: &Layout, index: usize) -> Result<String, LocalHostsError> {
    let root = layout.host(index);
    let run = root.join("run");
    match fs::remove_dir_all(&run) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(at(&run)(error)),
        _ => fs::create_dir_all(&run).map_err(at(&run))?,
    }
    let source = Path::new("/proc/sys/kernel/random/uuid");
    let id = fs::read_to_string(source).map_err(at(source))?.trim().to_owned();
    let path = layout.boot_id(index);
    fs::write(&path, format!("{id}\n")).map_err(at(&path))?;
    Ok(id)
}

/// True once libvirtd answers on its socket.
pub(super) fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).is_ok()
}

/// Names and addresses of all hosts, and a resolver that refuses at once.
pub(super) fn write_names(layout: &Layout, hosts: usize) -> Result<(), LocalHostsError> {
    let mut names = String::from("127.0.0.1 localhost\n");
    for index in 0..hosts {
        names.push_str(&format!("{} {}\n", layout.address(index), layout.name(index)));
    }
    let path = layout.root.join("hosts");
    fs::write(&path, names).map_err(at(&path))?;
    let path = layout.root.join("resolv.conf");
    fs::write(&path, "nameserver 127.0.0.1\n").map_err(at(&path))
}
