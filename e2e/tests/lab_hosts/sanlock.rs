//! sanlock's leases, guarded by each host's watchdog; here on NFS.

use std::time::Duration;

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, Prover, comes_back, condition, ensure, hosts_declared, machine,
    object, runs, said, sh, without_vms,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::nfs::PROVER;
use super::{by_hand, power_cut};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nfs-sanlock");
const MOUNT: &str = "/srv/stockade/vms";
/// sanlock's formula: 8 · 10 s, and 60 s of the watchdog.
pub const RELEASE: Duration = Duration::from_secs(140);

pub const CASES: [Case; 3] = [
    ("one_apply_leases_each_disk_by_a_host_id_of_its_own_under_a_watchdog", from_bare),
    ("without_agent_and_hook_a_second_start_by_hand_is_refused_by_sanlock", second_start),
    ("after_a_power_cut_a_start_waits_for_sanlocks_formula_and_the_host_joins_again", power_cut),
];

/// Shell that counts the leases that a host holds for the VM that `$vm` names.
pub const LEASES: &str = r#"pid=$(cat /run/libvirt/qemu/default.$vm.pid 2>/dev/null || echo none)
sanlock client status | grep -c "^r __LIBVIRT__DISKS__:.* p $pid$""#;

/// Waits until the lock manager `leases` serves all three hosts on the storage that is mounted
/// there, each by an id of its own.
pub fn ready(cluster: &Cluster, mount: &str) -> Outcome {
    let ready = until("three hosts have joined the lockspace", LIMIT, || {
        let manager = object(cluster, &["slm", "leases"])?;
        let (status, message) = condition(&manager, "Ready");
        let all = status == "True" && manager["status"]["readyHosts"] == 3;
        if all { Ok(manager) } else { Err(message.to_owned()) }
    });
    let manager = ready.map_err(said)?;
    let status = &manager["status"];
    ensure(status["releaseSeconds"] == RELEASE.as_secs(), || status.to_string())?;
    let mut ids = Vec::new();
    for name in HOSTS {
        let uid = object(cluster, &["shost", name])?["status"]["hostUid"].clone();
        let id = status["hostIds"][uid.as_str().unwrap_or_default()].as_i64().unwrap_or_default();
        let host = machine(cluster, name)?;
        let held = sh(host, "sanlock client status")?;
        let space =
            format!("s __LIBVIRT__DISKS__:{id}:{mount}/.stockade/locks/__LIBVIRT__DISKS__:0");
        ensure(held.lines().any(|line| line == space), || format!("{name}: {space}: {held}"))?;
        // Its watchdog is fed for as long as sanlock renews, and no longer.
        let running = sh(host, "test -c /dev/watchdog; pgrep -a wdmd; pgrep -a sanlock")?;
        ensure(running.contains("-w 1"), || format!("{name}: no watchdog guards it: {running}"))?;
        ids.push(id);
    }
    ids.sort_unstable();
    ids.dedup();
    ensure(ids.len() == 3 && ids[0] > 0, || format!("host ids {ids:?}"))
}

fn from_bare(cluster: &Cluster, log: &Log) -> Outcome {
    without_vms(cluster)?;
    sh(machine(cluster, "s1")?, "install -d /srv/vms")?;
    hosts_declared(cluster, EXAMPLE)?;
    ready(cluster, MOUNT)?;
    log.say("three hosts have joined the lockspace");
    let host = runs(cluster, "leased", "")?;
    log.say(format!("leased runs on {host}"));
    leased(cluster, &host)
}

/// Waits until the one VM on a host shows its lease, and looks whether it is there.
pub fn leased(cluster: &Cluster, host: &str) -> Outcome {
    let locked = until("its Domain shows its lease", LIMIT, || {
        let domains = object(cluster, &["sdom", "-n", &format!("stockade-host-{host}")])?;
        let status = &domains["items"][0]["status"];
        let lease = status["lock"]["held"] == true && status["lock"]["manager"] == "sanlock";
        if lease { Ok(()) } else { Err(status.to_string()) }
    });
    locked.map_err(said)?;
    let held = sh(machine(cluster, host)?, "sanlock client status")?;
    ensure(held.contains("r __LIBVIRT__DISKS__:"), || format!("no lease: {held}"))
}

fn second_start(cluster: &Cluster, log: &Log) -> Outcome {
    let host = PROVER.start(cluster)?;
    log.say(format!("prover runs on {host}, and writes"));
    refused_by_hand(cluster, log, PROVER, &host)
}

/// The guest on this host can't be started by hand on another one.
pub fn refused_by_hand(cluster: &Cluster, log: &Log, prover: Prover<'_>, host: &str) -> Outcome {
    let holder = sh(machine(cluster, host)?, "sanlock client status")?;
    by_hand::second_start(cluster, log, prover, host, |other, created| {
        // On NFS QEMU asks for its own lock on the image before libvirt takes the leases.
        ensure(created.contains("lock"), || format!("no lock refused it: {created}"))?;
        let leases: Vec<&str> = holder.lines().filter_map(|line| line.strip_prefix("r ")).collect();
        ensure(!leases.is_empty(), || format!("no lease: {holder}"))?;
        for lease in leases {
            let words: Vec<&str> = lease.split([' ', ':']).take(4).collect();
            let taken = format!("sanlock client command -r {} -c /bin/true", words.join(":"));
            let taken = other.try_sh(&taken, LIMIT).map_err(said)?;
            log.say(format!("sanlock on {}: {}{}", other.name(), taken.out, taken.err));
            ensure(!taken.ok, || format!("the lease {lease} binds nobody: {taken:?}"))?;
        }
        Ok(())
    })
}

fn power_cut(cluster: &Cluster, log: &Log) -> Outcome {
    let over = power_cut::power_cut(cluster, log, PROVER)?;
    let waited = over.issued.saturating_duration_since(over.off);
    ensure(waited >= RELEASE, || {
        format!("the start was issued after {} s, before the lease was over", waited.as_secs())
    })?;
    comes_back(cluster, over.dead, &over.boot)?;
    ready(cluster, MOUNT)
}
