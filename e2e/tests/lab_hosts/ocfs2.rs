//! OCFS2 under o2cb on a device that a host of ours gives by iSCSI.

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, all_ready, apply, boot, comes_back, condition, ensure,
    hosts_declared, machine, object, runs, said, sh, without_vms,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/iscsi-ocfs2-ha");
const MOUNT: &str = "/srv/stockade/san";

pub const CASES: [Case; 3] = [
    ("one_apply_makes_ocfs2_on_a_blank_iscsi_device_and_a_vm_runs_there", from_bare),
    ("a_device_with_data_is_not_made_a_file_system_and_nothing_is_written_there", not_blank),
    ("after_a_cold_reboot_a_host_mounts_ocfs2_again_by_itself", cold_reboot),
];

/// Waits until all three hosts have it mounted, each by a node number of its own.
fn ready(cluster: &Cluster) -> Outcome {
    let ready = until("three hosts have mounted OCFS2", LIMIT, || {
        let storage = object(cluster, &["sst", "san"])?;
        let (status, message) = condition(&storage, "Ready");
        let all = status == "True" && storage["status"]["readyHosts"] == 3;
        if all { Ok(storage) } else { Err(message.to_owned()) }
    });
    let storage = ready.map_err(said)?;
    let mut numbers = Vec::new();
    for name in HOSTS {
        let uid = object(cluster, &["shost", name])?["status"]["hostUid"].clone();
        let number = storage["status"]["nodeNumbers"][uid.as_str().unwrap_or_default()].as_i64();
        let number = number.unwrap_or_default();
        let host = machine(cluster, name)?;
        let shown = sh(
            host,
            &format!(
                "findmnt -n -o FSTYPE {MOUNT}; cat /sys/kernel/config/cluster/*/node/{name}/num \
                 /sys/kernel/config/cluster/*/node/{name}/local"
            ),
        )?;
        let expected = format!("ocfs2\n{number}\n1");
        ensure(shown.trim() == expected, || format!("{name}: {shown} and not {expected}"))?;
        numbers.push(number);
    }
    numbers.sort_unstable();
    numbers.dedup();
    ensure(numbers.len() == 3 && numbers[0] > 0, || format!("node numbers {numbers:?}"))
}

/// What one host writes the others read.
fn shared(cluster: &Cluster) -> Outcome {
    for writer in HOSTS {
        let script = format!("echo {writer} >{MOUNT}/said-by-{writer}");
        sh(machine(cluster, writer)?, &script)?;
        for reader in HOSTS {
            let script = format!("cat {MOUNT}/said-by-{writer}");
            let read = sh(machine(cluster, reader)?, &script)?;
            ensure(read.trim() == writer, || format!("{reader} reads {read:?} of {writer}"))?;
        }
    }
    Ok(())
}

fn from_bare(cluster: &Cluster, log: &Log) -> Outcome {
    without_vms(cluster)?;
    // Of no size on the disk until it is written.
    sh(machine(cluster, "s1")?, "install -d /srv/luns; truncate -s 3G /srv/luns/san")?;
    hosts_declared(cluster, EXAMPLE)?;
    ready(cluster)?;
    log.say("OCFS2 is mounted on three hosts");
    shared(cluster)?;
    let targets = sh(machine(cluster, "s1")?, "tgtadm --lld iscsi --op show --mode target")?;
    ensure(targets.contains("10.78.0.1") && !targets.contains("ALL"), || targets.clone())?;
    let host = runs(cluster, "clustered", "")?;
    log.say(format!("clustered runs on {host}"));
    let disk =
        sh(machine(cluster, &host)?, &format!("stat -c %s {MOUNT}/default/clustered-root.raw"))?;
    ensure(disk.trim() == "16777216", || format!("its disk has {disk} bytes"))
}

fn not_blank(cluster: &Cluster, _log: &Log) -> Outcome {
    let server = machine(cluster, "s1")?;
    sh(
        server,
        "truncate -s 256M /srv/luns/data; echo precious | dd of=/srv/luns/data conv=notrunc \
         bs=1M seek=255 2>/dev/null",
    )?;
    let sum = "sha256sum /srv/luns/data";
    let before = sh(server, sum)?;
    apply(
        cluster,
        "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\nmetadata: {name: data}\n\
         spec:\n  mountPath: /srv/stockade/data\n  hostSelector: {role: hypervisor}\n  \
         ocfs2:\n    formatIfBlank: true\n    iscsi: {portal: 10.78.0.4, lun: 1, servedBy: s1, \
         target: 'iqn.2026-01.dev.stockade:data', backing: /srv/luns/data}\n",
    )?;
    let refused = until("it is refused, and it is said why", LIMIT, || {
        let storage = object(cluster, &["sst", "data"])?;
        let (status, message) = condition(&storage, "Ready");
        if status == "False" && message.contains("not blank") {
            Ok(())
        } else {
            Err(message.to_owned())
        }
    });
    refused.map_err(said)?;
    let after = sh(server, sum)?;
    ensure(before == after, || "it was written to".to_owned())?;
    let deleted = cluster.plane().kubectl(&["delete", "sst", "data", "--wait=false"]);
    deleted.map(drop).map_err(|error| error.to_string())
}

fn cold_reboot(cluster: &Cluster, log: &Log) -> Outcome {
    all_ready(cluster)?;
    let on = runs(cluster, "clustered", "")?;
    let other = HOSTS.into_iter().find(|name| *name != on).unwrap_or_default();
    let host = machine(cluster, other)?;
    let boot = boot(cluster, other)?;
    host.power_cut().map_err(said)?;
    log.say(format!("{other} has no power"));
    comes_back(cluster, host, &boot)?;
    ready(cluster)?;
    log.say(format!("{other} is back with OCFS2"));
    shared(cluster)?;
    let still = runs(cluster, "clustered", "")?;
    ensure(still == on, || format!("the guest went from {on} to {still}"))
}
