//! A start by hand, with Stockade out of the way.

use stockade_e2e::lab::cases::{HOSTS, LIMIT, Outcome, Prover, ensure, machine, said, sh};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::play::Log;

/// Opens what virtlockd locks for a disk: a file that is named by the disk's path.
const OPEN_LOCK: &str = r#"
file=SPACE/.stockade/locks/$(printf DISK | sha256sum | cut -d' ' -f1)
perl -MFcntl -e 'open F, "+<", $ARGV[0] or die "open: $!";
$lock = pack("s s x4 q q l x4", F_WRLCK, 0, 0, 0, 0); ASK' "$file"
"#;

/// Shell that asks on a host for virtlockd's POSIX lock of a disk, whose lockspace lies on the storage
/// that is mounted at `space`; `ask`: Perl with the file in F and the lock in $lock.
pub fn lock_script(space: &str, disk: &str, ask: &str) -> String {
    OPEN_LOCK.replace("SPACE", space).replace("DISK", disk).replace("ASK", ask)
}

/// What virtlockd holds for a disk can't be had on another host.
pub fn is_locked(other: &Machine, space: &str, disk: &str) -> Outcome {
    let ask = "fcntl(F, F_SETLK, $lock) or die \"$!\\n\"; print \"it is free\\n\"";
    let taken = other.try_sh(&lock_script(space, disk, ask), LIMIT).map_err(said)?;
    ensure(!taken.ok && taken.err.contains("temporarily unavailable"), || {
        format!("virtlockd's lock of {disk} binds nobody on {}: {taken:?}", other.name())
    })
}

/// Stops the agent of a host beside the guest's, takes its hook away, and starts the guest there by
/// virsh: it must be refused, for the reason that `judge` finds in what virsh says, and the guest
/// must go on where it was.
pub fn second_start(
    cluster: &Cluster,
    log: &Log,
    prover: Prover<'_>,
    host: &str,
    judge: impl FnOnce(&Machine, &str) -> Outcome,
) -> Outcome {
    let xml = sh(machine(cluster, host)?, "virsh dumpxml --inactive default.prover")?;
    let other = HOSTS.into_iter().find(|name| *name != host).unwrap_or_default();
    let other = machine(cluster, other)?;
    sh(other, "systemctl stop stockade-agent && rm /etc/libvirt/hooks/qemu.d/stockade")?;
    let restarted = other.try_sh("systemctl restart libvirtd", LIMIT).map_err(said)?;
    ensure(restarted.ok, || format!("libvirtd is not back: {restarted:?}"))?;
    other.write("/root/prover.xml", xml.as_bytes()).map_err(said)?;
    let created = other.try_sh("virsh create /root/prover.xml 2>&1", LIMIT).map_err(said)?;
    log.say(format!("by hand on {}: {}", other.name(), created.out.trim()));
    ensure(!created.ok, || format!("a second start was not refused: {created:?}"))?;
    judge(other, &created.out)?;
    ensure(!sh(other, "virsh list --name")?.contains("prover"), || "it runs twice".to_owned())?;
    prover.goes_on(cluster)?;
    // The agent puts its hook back.
    sh(other, "systemctl start stockade-agent")?;
    let hook = until("the hook is back", LIMIT, || {
        sh(other, "test -x /etc/libvirt/hooks/qemu.d/stockade")
    });
    hook.map(drop).map_err(said)
}
