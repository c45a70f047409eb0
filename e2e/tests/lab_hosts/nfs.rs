//! NFS that a host of ours serves, under virtlockd's locks.

use std::time::Duration;

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, Prover, all_ready, apply, comes_back, condition, ensure,
    hosts_declared, kubectl, machine, object, runs, said, sh, without_vms,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::power_cut::Failover;
use super::{by_hand, power_cut};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nfs4-lock-manager");

/// The guest on what s1 serves, read there.
pub const PROVER: Prover<'_> = Prover {
    name: "prover",
    reader: "s1",
    file: "/srv/vms/default/prover.raw",
    at: 0,
    storage: "vms",
};

pub const CASES: [Case; 3] = [
    ("one_apply_mounts_the_export_of_a_host_on_three_and_a_vm_runs_there_under_a_lock", from_bare),
    ("without_agent_and_hook_a_second_start_by_hand_is_refused_by_the_lock", second_start),
    ("a_host_without_power_is_denied_its_locks_broken_and_its_guest_writes_elsewhere", power_cut),
];
pub const WORD: Case =
    ("after_a_persons_word_the_locks_are_free_and_the_start_is_issued_within_5_seconds", by_word);
pub const UNBROKEN: Case = (
    "where_nobody_breaks_them_the_locks_of_a_dead_host_and_the_start_wait_for_the_servers_lease",
    unbroken,
);
pub const MARKER: Case =
    ("a_storage_of_another_cluster_is_refused_and_nothing_is_written_there", foreign_marker);

/// Applies the example, and waits until all three hosts have its storage.
fn declared(cluster: &Cluster) -> Outcome {
    without_vms(cluster)?;
    sh(machine(cluster, "s1")?, "install -d /srv/vms")?;
    hosts_declared(cluster, EXAMPLE)?;
    mounted(cluster)
}

fn mounted(cluster: &Cluster) -> Outcome {
    let ready = until("the storage is mounted on three hosts", LIMIT, || {
        let storage = object(cluster, &["sst", "vms"])?;
        let (status, message) = condition(&storage, "Ready");
        let all = status == "True" && storage["status"]["readyHosts"] == 3;
        if all { Ok(()) } else { Err(message.to_owned()) }
    });
    ready.map_err(said)
}

fn from_bare(cluster: &Cluster, log: &Log) -> Outcome {
    let server = machine(cluster, "s1")?;
    declared(cluster)?;
    log.say("mounted on three hosts");
    let versions = sh(server, "cat /proc/fs/nfsd/versions")?;
    ensure(versions.contains("-3 ") && versions.contains("+4.2"), || versions.clone())?;
    let clients = sh(server, "cat /proc/fs/nfsd/clients/*/info")?;
    for name in HOSTS {
        let host = machine(cluster, name)?;
        let mounted = sh(host, "findmnt -n -o FSTYPE,SOURCE,OPTIONS /srv/stockade/vms")?;
        let fits = ["nfs4", "10.78.0.4:/srv/vms", "vers=4.2", "hard", "local_lock=none"];
        ensure(fits.iter().all(|word| mounted.contains(word)), || mounted.clone())?;
        let agent = object(cluster, &["sha", "agent", "-n", &format!("stockade-host-{name}")])?;
        let uid = agent["status"]["hostUid"].as_str().unwrap_or_default().to_owned();
        ensure(!uid.is_empty() && clients.contains(&format!(" {uid}/")), || {
            format!("{name} is not known to the server by {uid:?}: {clients}")
        })?;
    }
    let host = runs(cluster, "hello", "")?;
    log.say(format!("hello runs on {host}"));
    let locked = until("its Domain shows its lock", LIMIT, || {
        let domains = object(cluster, &["sdom", "-n", &format!("stockade-host-{host}")])?;
        let status = &domains["items"][0]["status"];
        if status["lock"]["held"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    locked.map_err(said)?;
    let states = sh(server, "cat /proc/fs/nfsd/clients/*/states")?;
    ensure(states.contains("type: lock"), || format!("the server knows of no lock: {states}"))
}

fn foreign_marker(cluster: &Cluster, _log: &Log) -> Outcome {
    hosts_declared(cluster, &format!("{EXAMPLE}/10-hosts.yaml"))?;
    let server = machine(cluster, "s1")?;
    sh(server, "install -d /srv/theirs/.stockade; echo -n other >/srv/theirs/.stockade/cluster")?;
    let before = sh(server, "find /srv/theirs | sort")?;
    apply(
        cluster,
        "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\nmetadata: {name: theirs}\n\
         spec:\n  mountPath: /srv/stockade/theirs\n  hostSelector: {role: hypervisor}\n  \
         nfs: {server: 10.78.0.4, export: /srv/theirs, servedBy: s1, leaseSeconds: 30}\n",
    )?;
    let refused = until("each host refuses it and says why", LIMIT, || {
        let storage = object(cluster, &["sst", "theirs"])?;
        let (status, message) = condition(&storage, "Ready");
        let all = message.matches("belongs to cluster other").count() == HOSTS.len();
        if status == "False" && all { Ok(()) } else { Err(message.to_owned()) }
    });
    refused.map_err(said)?;
    let after = sh(server, "find /srv/theirs | sort")?;
    ensure(before == after, || format!("it was written to: {after}"))?;
    let deleted = cluster.plane().kubectl(&["delete", "sst", "theirs", "--wait=false"]);
    deleted.map_err(|error| error.to_string())?;
    unmounted(cluster, "theirs")
}

/// Waits until a storage that is no longer declared is unmounted everywhere, since nothing uses it.
fn unmounted(cluster: &Cluster, storage: &str) -> Outcome {
    let gone = until("it is unmounted everywhere", LIMIT, || {
        for name in HOSTS {
            let mounted = sh(machine(cluster, name)?, "findmnt -n -t nfs4 -o TARGET || true")?;
            if mounted.contains(&format!("/{storage}")) {
                return Err(format!("{name}: {mounted}"));
            }
        }
        Ok(())
    });
    gone.map_err(said)
}

fn second_start(cluster: &Cluster, log: &Log) -> Outcome {
    let host = PROVER.start(cluster)?;
    log.say(format!("prover runs on {host}, and writes"));
    by_hand::second_start(cluster, log, PROVER, &host, |other, created| {
        // QEMU asks for its lock on the image first; libvirt's own comes before the first vCPU.
        ensure(created.contains("Failed to get \"write\" lock"), || {
            format!("QEMU's lock did not refuse it: {created}")
        })?;
        by_hand::is_locked(other, "/srv/stockade/vms", "/srv/stockade/vms/default/prover.raw")
    })
}

/// From the proof to both: the locks are free, and the start elsewhere is issued.
const AFTER_PROOF: Duration = Duration::from_secs(5);

/// Both came soon after the proof.
fn at_once(over: &Failover<'_>) -> Outcome {
    for (what, at) in [("the locks are free", over.lock_free), ("the start is issued", over.issued)]
    {
        let after = at.saturating_duration_since(over.proof);
        ensure(after <= AFTER_PROOF, || {
            format!("{what} {:.1} s after the proof", after.as_secs_f64())
        })?;
    }
    Ok(())
}

fn power_cut(cluster: &Cluster, log: &Log) -> Outcome {
    let over = power_cut::power_cut(cluster, log, PROVER)?;
    at_once(&over)?;
    let exported = || sh(machine(cluster, "s1")?, "cat /etc/exports.d/stockade.exports");
    let entry = format!("{}(", over.dead.address());
    let exports = exported()?;
    ensure(!exports.contains(&entry), || format!("the dead host is still there: {exports}"))?;
    comes_back(cluster, over.dead, &over.boot)?;
    let exports = exported()?;
    ensure(exports.contains(&entry), || format!("its next boot is not admitted: {exports}"))
}

fn by_word(cluster: &Cluster, log: &Log) -> Outcome {
    declared(cluster)?;
    let host = PROVER.start(cluster)?;
    log.say(format!("prover runs on {host}, and writes"));
    let over = power_cut::by_word(cluster, log, PROVER)?;
    at_once(&over)?;
    comes_back(cluster, over.dead, &over.boot)
}

/// A storage that s1 serves and no Host is said to: what its administrator would have set up.
const THEIRS: &str = "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\n\
                      metadata: {name: lent}\nspec:\n  mountPath: /srv/stockade/lent\n  \
                      hostSelector: {role: hypervisor}\n  \
                      nfs: {server: 10.78.0.4, export: /srv/lent}\n\
                      ---\napiVersion: stockade.dev/v1alpha1\nkind: LockManager\n\
                      metadata: {name: locks}\nspec: {kind: virtlockd, storage: lent, \
                      hostSelector: {role: hypervisor}}\n";
/// knfsd with its own lease and no delegations, and the export.
const LEND: &str = "
    set -e
    install -d /srv/lent /srv/lent/default /etc/exports.d /etc/nfs.conf.d
    for host in 1 2 3; do
        echo \"/srv/lent 10.78.0.$host(rw,sync,no_subtree_check,no_root_squash)\"
    done >/etc/exports.d/lent.exports
    printf '[nfsd]\\nlease-time=90\\ngrace-time=90\\n' >/etc/nfs.conf.d/zz-lent.conf
    echo 0 >/proc/sys/fs/leases-enable
    systemctl restart nfs-server";
/// As it was: its agent starts the server again where it is wanted.
const TAKE_BACK: &str = "
    rm -f /etc/exports.d/lent.exports /etc/nfs.conf.d/zz-lent.conf
    systemctl stop nfs-server";
/// What NFS version 4 has by default, and what it may take to see that it is over.
const LEASE: Duration = Duration::from_secs(90);

const LENT: Prover<'_> = Prover { storage: "lent", file: "/srv/lent/default/prover.raw", ..PROVER };

/// The comparison to [`by_word`]: the same death and the same word, at a server that nobody asks to
/// break the locks.
fn unbroken(cluster: &Cluster, log: &Log) -> Outcome {
    without_vms(cluster)?;
    let server = machine(cluster, "s1")?;
    hosts_declared(cluster, &format!("{EXAMPLE}/10-hosts.yaml"))?;
    kubectl(cluster, &["delete", "sst", "vms", "--ignore-not-found"])?;
    unmounted(cluster, "vms")?;
    sh(server, LEND)?;
    apply(cluster, THEIRS)?;
    let host = LENT.start(cluster)?;
    log.say(format!("prover runs on {host}, and writes"));
    all_ready(cluster)?;
    // It asks, and takes nothing.
    let ask = "while (1) {
        my $asked = $lock;
        fcntl(F, F_GETLK, $asked) or die \"$!\";
        last if unpack(\"s\", $asked) == F_UNLCK;
        sleep 1;
    } print time, \"\\n\"";
    let other = HOSTS.into_iter().find(|name| *name != host).unwrap_or_default();
    let other = machine(cluster, other)?;
    let look =
        by_hand::lock_script("/srv/stockade/lent", "/srv/stockade/lent/default/prover.raw", ask);
    other.write("/root/look.sh", look.as_bytes()).map_err(said)?;
    sh(
        other,
        "rm -f /run/freed; systemctl stop look 2>/dev/null; systemd-run -q --unit look \
         --property StandardOutput=file:/run/freed sh /root/look.sh",
    )?;
    let cut: u64 = sh(other, "date +%s")?.trim().parse().map_err(|_| "no time")?;
    let over = power_cut::by_word(cluster, log, LENT)?;
    let freed: u64 =
        sh(other, "cat /run/freed")?.trim().parse().map_err(|_| "it was never free")?;
    log.say(format!("its server let go of the lock {} s after the power cut", freed - cut));
    let waited = over.issued.saturating_duration_since(over.proof);
    log.say(format!("the start was issued {:.1} s after the proof", waited.as_secs_f64()));
    ensure(freed >= cut + LEASE.as_secs() * 8 / 10, || "the lock did not last".to_owned())?;
    ensure(waited >= LEASE, || "the start was issued before the lease was over".to_owned())?;
    comes_back(cluster, over.dead, &over.boot)?;
    without_vms(cluster)?;
    kubectl(cluster, &["delete", "sst", "lent"])?;
    unmounted(cluster, "lent")?;
    sh(server, TAKE_BACK).map(drop)
}
