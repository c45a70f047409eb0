//! OCFS2 under o2cb on a device that a host of ours gives by AoE, with sanlock's leases on it.

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, apply, condition, ensure, kubectl, machine, object, said, sh,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::ocfs2::Given;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/aoe-ocfs2");
const ETHER: Given =
    Given { storage: "ether", mount: "/srv/stockade/ether", file: "/srv/luns/ether" };

pub const CASES: [Case; 3] = [
    ("one_apply_makes_ocfs2_on_a_blank_aoe_device_and_a_vm_runs_there_under_a_lease", from_bare),
    ("a_host_that_gives_a_device_by_aoe_is_refused_as_its_client", own_client),
    ("on_aoe_the_next_start_waits_until_no_lease_is_left_and_the_host_mounts_it_again", dies),
];

fn from_bare(cluster: &Cluster, log: &Log) -> Outcome {
    for name in HOSTS.into_iter().chain(["s1"]) {
        // A frame of the usual size holds two sectors.
        sh(machine(cluster, name)?, "ip link set eth0 mtu 9000")?;
    }
    ETHER.bring_up(cluster, log, EXAMPLE)?;
    let served = sh(machine(cluster, "s1")?, "pgrep -a vblade")?;
    ensure(served.lines().count() == 1, || format!("not one process gives it: {served}"))
}

fn own_client(cluster: &Cluster, _log: &Log) -> Outcome {
    let server = machine(cluster, "s1")?;
    sh(server, "truncate -s 64M /srv/luns/own")?;
    apply(
        cluster,
        "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\nmetadata: {name: own}\n\
         spec:\n  mountPath: /srv/stockade/own\n  hosts: [s1]\n  ocfs2:\n    \
         formatIfBlank: true\n    aoe: {shelf: 2, slot: 1, interface: eth0, servedBy: s1, \
         backing: /srv/luns/own}\n",
    )?;
    let refused = until("it is refused, and it is said why", LIMIT, || {
        let storage = object(cluster, &["sst", "own"])?;
        let (status, message) = condition(&storage, "Ready");
        let why = "must not use its own";
        if status == "False" && message.contains(why) { Ok(()) } else { Err(message.to_owned()) }
    });
    refused.map_err(said)?;
    let data = sh(server, "tr -d '\\0' </srv/luns/own | wc -c")?;
    ensure(data.trim() == "0", || format!("{data} bytes were written"))?;
    kubectl(cluster, &["delete", "sst", "own", "--wait=false"]).map(drop)
}

fn dies(cluster: &Cluster, log: &Log) -> Outcome {
    let (prover, host) = ETHER.prover_runs(cluster)?;
    log.say(format!("prover runs on {host}, and writes at {} of {}", prover.at, prover.file));
    ETHER.host_dies(cluster, log, prover)
}
