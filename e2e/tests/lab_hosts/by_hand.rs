//! A start by hand, with Stockade out of the way.

use stockade_e2e::lab::cases::{HOSTS, LIMIT, Outcome, Prover, ensure, machine, said, sh};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::play::Log;

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
