//! OCFS2 under o2cb on a device that a host of ours gives by iSCSI, with sanlock's leases on it.

use std::time::Instant;

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, Prover, Witness, all_ready, apply, boot, comes_back, condition,
    ensure, hosts_declared, kubectl, machine, object, runs, said, sh, without_vms,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::power_cut::power_cut;
use super::{moves, sanlock, watchdog};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/iscsi-ocfs2-ha");

/// OCFS2 on a file that s1 gives as a device.
pub struct Given {
    /// The SharedStorage.
    pub storage: &'static str,
    /// Where the hosts mount it.
    pub mount: &'static str,
    /// The file on s1.
    pub file: &'static str,
}

const SAN: Given = Given { storage: "san", mount: "/srv/stockade/san", file: "/srv/luns/san" };

const FROM_BARE: Case =
    ("one_apply_makes_ocfs2_on_a_blank_iscsi_device_and_a_vm_runs_there_under_a_lease", from_bare);
const SECOND_START: Case =
    ("on_ocfs2_without_agent_and_hook_a_second_start_by_hand_is_refused_by_sanlock", second_start);
const MOVES: Case =
    ("a_guest_on_ocfs2_moves_four_times_never_boots_and_its_lease_goes_with_it", four_moves);
const POWER_CUT: Case = (
    "after_a_power_cut_the_survivors_have_ocfs2_and_its_guest_writes_there_once_the_lease_is_over",
    dies,
);
const PATH_CUT: Case = (
    "a_host_that_loses_its_iscsi_path_is_reset_and_nothing_of_its_guest_is_written_after_the_next",
    path_cut,
);
pub const CASES: [Case; 7] = [
    FROM_BARE,
    ("a_device_with_data_is_not_made_a_file_system_and_nothing_is_written_there", not_blank),
    SECOND_START,
    MOVES,
    POWER_CUT,
    PATH_CUT,
    ("after_a_cold_reboot_a_host_mounts_ocfs2_again_by_itself", cold_reboot),
];

impl Given {
    /// Waits until all three hosts have it mounted, each by a node number of its own.
    pub fn ready(&self, cluster: &Cluster) -> Outcome {
        let ready = until("three hosts have mounted OCFS2", LIMIT, || {
            let storage = object(cluster, &["sst", self.storage])?;
            let (status, message) = condition(&storage, "Ready");
            let all = status == "True" && storage["status"]["readyHosts"] == 3;
            if all { Ok(storage) } else { Err(message.to_owned()) }
        });
        let storage = ready.map_err(said)?;
        let mut numbers = Vec::new();
        for name in HOSTS {
            let uid = object(cluster, &["shost", name])?["status"]["hostUid"].clone();
            let number = &storage["status"]["nodeNumbers"][uid.as_str().unwrap_or_default()];
            let number = number.as_i64().unwrap_or_default();
            let node = format!("/sys/kernel/config/cluster/*/node/{name}");
            let script =
                format!("findmnt -n -o FSTYPE {}; cat {node}/num {node}/local", self.mount);
            let shown = sh(machine(cluster, name)?, &script)?;
            let expected = format!("ocfs2\n{number}\n1");
            ensure(shown.trim() == expected, || format!("{name}: {shown} and not {expected}"))?;
            numbers.push(number);
        }
        numbers.sort_unstable();
        numbers.dedup();
        ensure(numbers.len() == 3 && numbers[0] > 0, || format!("node numbers {numbers:?}"))
    }

    /// What one host writes the others read.
    pub fn is_shared(&self, cluster: &Cluster, hosts: &[&str]) -> Outcome {
        let mount = self.mount;
        for writer in hosts {
            let script = format!("echo {writer} >{mount}/said-by-{writer}");
            sh(machine(cluster, writer)?, &script)?;
            for reader in hosts {
                let script = format!("cat {mount}/said-by-{writer}");
                let read = sh(machine(cluster, reader)?, &script)?;
                ensure(read.trim() == *writer, || format!("{reader} reads {read:?} of {writer}"))?;
            }
        }
        Ok(())
    }

    /// From a blank device and one apply of an example: a file system that all hosts share, and a VM
    /// that runs there under a lease.
    pub fn bring_up(&self, cluster: &Cluster, log: &Log, example: &str) -> Outcome {
        without_vms(cluster)?;
        // Of no size on the disk until it is written.
        let blank = format!("install -d /srv/luns; truncate -s 3G {}", self.file);
        sh(machine(cluster, "s1")?, &blank)?;
        hosts_declared(cluster, example)?;
        self.ready(cluster)?;
        log.say("OCFS2 is mounted on three hosts");
        self.is_shared(cluster, &HOSTS)?;
        sanlock::ready(cluster, self.mount)?;
        log.say("three hosts have joined the lockspace");
        let host = runs(cluster, "clustered", "")?;
        log.say(format!("clustered runs on {host}"));
        sanlock::leased(cluster, &host)?;
        let script = format!("stat -c %s {}/default/clustered-root.raw", self.mount);
        let disk = sh(machine(cluster, &host)?, &script)?;
        ensure(disk.trim() == "16777216", || format!("its disk has {disk} bytes"))
    }

    /// The guest whose disk is looked at on s1, below OCFS2: no host has to answer for it.
    pub fn prover(&self, cluster: &Cluster) -> Result<Prover<'static>, String> {
        // Its data stay in the place that they are first given.
        let script = format!("sync; filefrag -v -b1 {}/default/prover.raw", self.mount);
        let shown = sh(machine(cluster, "h1")?, &script)?;
        let first = shown.lines().find_map(|line| line.trim().strip_prefix("0:"));
        let place = first.and_then(|line| line.split(':').nth(1));
        let at = place.and_then(|place| place.split("..").next()?.trim().parse().ok());
        let at = at.ok_or_else(|| format!("its place is not shown: {shown}"))?;
        let (file, storage) = (self.file, self.storage);
        Ok(Prover { name: "prover", reader: "s1", file, at, storage })
    }

    /// Declares the guest, and waits until it writes; gives its host.
    pub fn prover_runs(&self, cluster: &Cluster) -> Result<(Prover<'static>, String), String> {
        let path = format!("{}/default/prover.raw", self.mount);
        machine(cluster, "h1")?.write(&path, &Prover::disk()).map_err(said)?;
        let prover = self.prover(cluster)?;
        prover.declare_vm(cluster)?;
        let host = runs(cluster, prover.name, "")?;
        prover.writes(cluster, 1)?;
        Ok((prover, host))
    }

    /// Cuts the power of the guest's host: the next start waits until no lease is left, the survivors
    /// share the file system, and the host mounts it again by itself.
    pub fn host_dies(&self, cluster: &Cluster, log: &Log, prover: Prover<'static>) -> Outcome {
        let witness = Witness::start(cluster, &[prover])?;
        let over = power_cut(cluster, log, prover)?;
        let waited = over.issued.saturating_duration_since(over.off);
        ensure(waited >= sanlock::RELEASE, || {
            format!("the start was issued after {} s, before the lease was over", waited.as_secs())
        })?;
        let dead = over.dead.name();
        let left: Vec<&str> = HOSTS.into_iter().filter(|name| *name != dead).collect();
        self.is_shared(cluster, &left)?;
        comes_back(cluster, over.dead, &over.boot)?;
        self.ready(cluster)?;
        sanlock::ready(cluster, self.mount)?;
        witness.is_content(cluster)
    }
}

fn from_bare(cluster: &Cluster, log: &Log) -> Outcome {
    SAN.bring_up(cluster, log, EXAMPLE)?;
    let targets = sh(machine(cluster, "s1")?, "tgtadm --lld iscsi --op show --mode target")?;
    ensure(targets.contains("10.78.0.1") && !targets.contains("ALL"), || targets.clone())
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
    kubectl(cluster, &["delete", "sst", "data", "--wait=false"]).map(drop)
}

fn second_start(cluster: &Cluster, log: &Log) -> Outcome {
    let (prover, host) = SAN.prover_runs(cluster)?;
    log.say(format!("prover runs on {host}, and writes at {} of {}", prover.at, prover.file));
    sanlock::refused_by_hand(cluster, log, prover, &host)
}

fn four_moves(cluster: &Cluster, log: &Log) -> Outcome {
    let prover = SAN.prover(cluster)?;
    let witness = Witness::start(cluster, &[prover])?;
    moves::moves_around(cluster, log, prover, sanlock::LEASES)?;
    witness.is_content(cluster)
}

fn dies(cluster: &Cluster, log: &Log) -> Outcome {
    SAN.host_dies(cluster, log, SAN.prover(cluster)?)
}

fn path_cut(cluster: &Cluster, log: &Log) -> Outcome {
    all_ready(cluster)?;
    let prover = SAN.prover(cluster)?;
    let on = runs(cluster, prover.name, "")?;
    let (_, boots) = prover.counters(cluster)?;
    let witness = Witness::start(cluster, &[prover])?;
    let others = HOSTS.into_iter().filter(|name| *name != on);
    let others = others.map(|name| Ok((name, boot(cluster, name)?)));
    let others = others.collect::<Result<Vec<_>, String>>()?;
    let host = machine(cluster, &on)?;
    let (before, kernels) = (boot(cluster, &on)?, watchdog::kernels(host)?);
    let server = machine(cluster, "s1")?.address().parse().map_err(|_| "no address")?;
    host.cut_off(server, Some(3260)).map_err(said)?;
    let since = Instant::now();
    log.say(format!("{on} has no path to its device"));
    let reset = until("its own kernel has reset it", LIMIT, || {
        if watchdog::kernels(host)? > kernels { Ok(()) } else { Err("it runs on".to_owned()) }
    });
    reset.map_err(said)?;
    // The cut is over with the boot.
    log.say(format!("{on} is reset after {:.1} s", since.elapsed().as_secs_f64()));
    prover.writes(cluster, boots + 1)?;
    let next = runs(cluster, prover.name, "")?;
    log.say(format!("the guest writes on {next} after {:.1} s", since.elapsed().as_secs_f64()));
    comes_back(cluster, host, &before)?;
    SAN.ready(cluster)?;
    for (name, before) in others {
        let after = boot(cluster, name)?;
        ensure(before == after, || format!("{name} was reset too"))?;
    }
    prover.goes_on(cluster)?;
    witness.is_content(cluster)
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
    SAN.ready(cluster)?;
    log.say(format!("{other} is back with OCFS2"));
    SAN.is_shared(cluster, &HOSTS)?;
    let still = runs(cluster, "clustered", "")?;
    ensure(still == on, || format!("the guest went from {on} to {still}"))
}
