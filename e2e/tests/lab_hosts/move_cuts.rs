//! Moves that are cut on hosts with kernels of their own, on NFS under virtlockd: the source loses
//! its power, or the target, or the network between them, libvirtd is restarted, agents are killed.
//! Two moves each: one has left its source and nobody has committed it, one is in the middle of its
//! copy. `e2e/tests/local_move_cuts.rs` has ten moments of each.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stockade_crds::v1alpha1::{Domain, MigrationState, VirtualMachine, VmState};
use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, Prover, Witness, all_ready, apply, boot, comes_back, ensure,
    kubectl, machine, object, runs, said, sh,
};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::local_hosts::{GUEST_DISK_BYTES, Signal, slow_heavy_boot_sector};
use stockade_e2e::play::Log;

use super::moves::{VIRTLOCKD, locked_where_it_runs, moves_are_ready, only_there, order_move};
use super::stage::{LOCKS_BESIDE, declare, guest, heal, signal_agent};

pub const CUTS: Case = (
    "ten_moves_cut_in_five_ways_cost_a_restart_at_most_and_the_lock_is_where_the_guest_runs",
    cuts,
);

/// Its move is over on its source when the cut comes: it has little memory to copy.
const LEAVES: Mover = Mover { prover: guest("leaves", "/srv/vms/default/leaves.raw"), ballast: 2 };
/// Its copy takes about a minute, for it is sent one MiB a second.
const COPIES: Mover = Mover { prover: guest("copies", "/srv/vms/default/copies.raw"), ballast: 50 };
const BOTH: [Mover; 2] = [LEAVES, COPIES];

/// A guest that is moved.
#[derive(Clone, Copy)]
struct Mover {
    prover: Prover<'static>,
    /// What it makes of its memory, MiB.
    ballast: u8,
}

/// What is done while both moves are under way, and which of the guests it must spare a restart.
struct Fault {
    what: &'static str,
    strike: fn(&Round<'_>) -> Outcome,
    /// Whether the one that has left never stops, and the one that is being copied.
    spares: [bool; 2],
}

/// The first needs both guests on one host, where they start; after each there is a host without
/// either, which is the next target.
const FAULTS: [Fault; 5] = [
    Fault {
        what: "the source loses its power",
        strike: |round| round.source(1)?.power_cut().map_err(said),
        spares: [true, false],
    },
    Fault {
        what: "the target loses its power",
        strike: |round| round.target()?.power_cut().map_err(said),
        spares: [false, true],
    },
    Fault { what: "the network between them is cut", strike: cut_between, spares: [true; 2] },
    Fault { what: "libvirtd is restarted", strike: restart_libvirt, spares: [true; 2] },
    Fault { what: "their agents are killed", strike: kill_agents, spares: [true; 2] },
];

/// Two moves to one host.
struct Round<'a> {
    cluster: &'a Cluster,
    /// Where each guest was when its move was ordered.
    from: [String; 2],
    to: &'static str,
}

impl<'a> Round<'a> {
    fn source(&self, index: usize) -> Result<&'a Machine, String> {
        machine(self.cluster, &self.from[index])
    }

    fn target(&self) -> Result<&'a Machine, String> {
        machine(self.cluster, self.to)
    }

    fn sources(&self) -> BTreeSet<&str> {
        self.from.iter().map(String::as_str).collect()
    }
}

/// Neither hears the other; both hear the API, the storage and the third host.
fn cut_between(round: &Round<'_>) -> Outcome {
    let target = round.target()?;
    for source in round.sources() {
        let address = machine(round.cluster, source)?.address();
        let address = address.parse().map_err(|_| format!("no address: {address}"))?;
        target.cut_off(address, None).map_err(said)?;
    }
    Ok(())
}

/// The source's is killed, the target's is told to end.
fn restart_libvirt(round: &Round<'_>) -> Outcome {
    for source in round.sources() {
        let kill = "systemctl kill --kill-whom=main --signal=KILL libvirtd";
        sh(machine(round.cluster, source)?, kill)?;
    }
    let restarted = round.target()?.try_sh("systemctl restart libvirtd", LIMIT).map_err(said)?;
    ensure(restarted.ok, || format!("{restarted:?}"))
}

fn kill_agents(round: &Round<'_>) -> Outcome {
    let mut hosts = round.sources();
    hosts.insert(round.to);
    hosts.into_iter().try_for_each(|host| signal_agent(machine(round.cluster, host)?, "KILL"))
}

fn cuts(cluster: &Cluster, log: &Log) -> Outcome {
    heal(cluster)?;
    declare(cluster, &LOCKS_BESIDE)?;
    // Each case of this lab cuts powers of its own.
    let brake = r#"{"spec": {"stormBrakeHosts": 5}}"#;
    kubectl(cluster, &["patch", "sap", "default", "--type=merge", "-p", brake])?;
    for mover in BOTH {
        start(cluster, mover)?;
    }
    for mover in BOTH {
        mover.prover.writes(cluster, 1)?;
    }
    moves_are_ready(cluster)?;
    let provers = BOTH.map(|mover| mover.prover);
    let witness = Witness::start(cluster, &provers)?;
    for (number, fault) in FAULTS.iter().enumerate() {
        round(cluster, log, number, fault).map_err(|why| format!("{}: {why}", fault.what))?;
    }
    witness.is_content(cluster)
}

/// Writes the guest's disk, and declares it where the first host is the best.
fn start(cluster: &Cluster, Mover { prover, ballast }: Mover) -> Outcome {
    let mut disk = slow_heavy_boot_sector(ballast).to_vec();
    disk.resize(usize::try_from(GUEST_DISK_BYTES).unwrap_or_default(), 0);
    machine(cluster, prover.reader)?.write(prover.file, &disk).map_err(said)?;
    apply(
        cluster,
        &format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  memory: 96Mi\n  \
             migration: {{bandwidthMibPerSecond: 1, progressSeconds: 60}}\n  \
             placement: {{preferredHosts: [{{hosts: [{first}]}}]}}\n  \
             disks:\n  - {{name: root, storage: {storage}, format: raw, \
             existing: {{path: {name}.raw}}}}\n",
            name = prover.name,
            storage = prover.storage,
            first = HOSTS[0],
        ),
    )
}

/// Two moves, a fault, and what must hold afterwards.
fn round(cluster: &Cluster, log: &Log, number: usize, fault: &Fault) -> Outcome {
    all_ready(cluster)?;
    let mut from = [String::new(), String::new()];
    let mut boots = [0; 2];
    for (index, mover) in BOTH.iter().enumerate() {
        from[index] = runs(cluster, mover.prover.name, "")?;
        boots[index] = mover.prover.counters(cluster)?.1;
    }
    let free = HOSTS.into_iter().find(|host| !from.iter().any(|taken| taken == host));
    let round = Round { cluster, from, to: free.ok_or("no host is without a guest")? };
    let before: Vec<(&str, String)> = HOSTS
        .into_iter()
        .map(|host| Ok((host, boot(cluster, host)?)))
        .collect::<Result<_, String>>()?;
    under_way(&round, number)?;
    let struck = strikes(&round, fault);
    cluster.signal_controller(Signal::CONT).map_err(said)?;
    let since = Instant::now();
    log.say(format!("{}: {:?} to {}: {}", fault.what, round.from, round.to, struck?));
    let dead: Vec<&Machine> =
        cluster.lab().machines().iter().filter(|machine| !machine.is_on()).collect();
    well(cluster)?;
    for (index, mover) in BOTH.iter().enumerate() {
        let (name, on) = (mover.prover.name, runs(cluster, mover.prover.name, "")?);
        mover.prover.counts(cluster)?;
        let now = mover.prover.counters(cluster)?.1;
        let expected = if fault.spares[index] { boots[index] } else { boots[index] + 1 };
        ensure(now == expected, || {
            format!("{name} on {on} is at boot {now}, and not at {expected}")
        })?;
        let seconds = since.elapsed().as_secs_f64();
        log.say(format!("  {name} writes on {on} in boot {now} after {seconds:.1} s"));
    }
    for machine in dead {
        let last = before.iter().find(|(host, _)| *host == machine.name());
        let last = last.map(|(_, boot)| boot.as_str()).unwrap_or_default();
        comes_back(cluster, machine, last)?;
        log.say(format!(
            "  {} is back after {:.1} s",
            machine.name(),
            since.elapsed().as_secs_f64()
        ));
    }
    for host in HOSTS {
        machine(cluster, host)?.reconnect().map_err(said)?;
    }
    locked(cluster)
}

/// Orders both moves, and stops the controller once both are copied. What it would have done of
/// what comes next is not done before the fault: that is what makes the moment.
fn under_way(round: &Round<'_>, number: usize) -> Outcome {
    let cluster = round.cluster;
    for mover in BOTH {
        let name = mover.prover.name;
        order_move(cluster, &format!("{name}-cut-{number}"), name, round.to)?;
    }
    let copied = until("both are told to be copied", LIMIT, || {
        for (index, mover) in BOTH.iter().enumerate() {
            let domain = order_of(cluster, mover.prover.name, &round.from[index])?;
            if domain.spec.migration.is_none() {
                return Err(format!("{}: {:?}", mover.prover.name, domain.status));
            }
        }
        Ok(())
    });
    copied.map_err(said)?;
    cluster.signal_controller(Signal::STOP).map_err(said)
}

/// Waits for the moment, and strikes; says what was under way just before.
fn strikes(round: &Round<'_>, fault: &Fault) -> Result<String, String> {
    let cluster = round.cluster;
    let left = until("one has left its source", LIMIT, || {
        let domain = order_of(cluster, LEAVES.prover.name, &round.from[0])?;
        let epoch = domain.spec.epoch;
        match &domain.status {
            Some(status) if status.released && status.epoch == epoch => Ok(()),
            status => Err(format!("{status:?}")),
        }
    });
    left.map_err(said)?;
    let copied = until("the other is in the middle of its copy", LIMIT, || {
        let domain = order_of(cluster, COPIES.prover.name, &round.from[1])?;
        let report = domain.status.and_then(|status| status.migration);
        let report = report.ok_or("its host says nothing of it")?;
        match report.state {
            MigrationState::Copying if report.progress.percent == 0 => Err(format!("{report:?}")),
            MigrationState::Copying => Ok(Ok(report.progress.percent)),
            _ => Ok(Err(format!("it is over: {report:?}"))),
        }
    });
    let percent = copied.map_err(said)??;
    (fault.strike)(round)?;
    Ok(format!("one has left, the other is copied to {percent} %"))
}

fn vm(cluster: &Cluster, name: &str) -> Result<VirtualMachine, String> {
    serde_json::from_value(object(cluster, &["svm", name])?).map_err(|error| error.to_string())
}

/// The order that a host has for a VM.
fn order_of(cluster: &Cluster, name: &str, host: &str) -> Result<Domain, String> {
    let uid = vm(cluster, name)?.metadata.uid.unwrap_or_default();
    let found = object(cluster, &["sdom", &uid, "-n", &format!("stockade-host-{host}")])?;
    serde_json::from_value(found).map_err(|error| format!("{name} on {host}: {error}"))
}

/// Waits until both run, with nothing left of a move.
fn well(cluster: &Cluster) -> Outcome {
    let well = until("both run, and no move is open", LIMIT, || {
        // Each look takes the machine's CPUs from the hosts.
        std::thread::sleep(Duration::from_secs(1));
        for mover in BOTH {
            let name = mover.prover.name;
            let status = vm(cluster, name)?.status.unwrap_or_default();
            let open = status.placements.iter().filter(|p| !p.state.is_settled()).count();
            if status.printable_status != VmState::Running
                || status.migration.is_some()
                || open != 1
            {
                let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
                let why = ready.map(|c| c.message.clone()).unwrap_or_default();
                return Err(format!("{name}: {:?}, {open} open: {why}", status.printable_status));
            }
        }
        Ok(())
    });
    well.map_err(said)
}

/// Each guest has one QEMU and one lock, on the host that it runs on.
fn locked(cluster: &Cluster) -> Outcome {
    for mover in BOTH {
        let name = mover.prover.name;
        let on = runs(cluster, name, "")?;
        only_there(cluster, name, &on)?;
        for host in HOSTS {
            let looked = locked_where_it_runs(cluster, name, host, VIRTLOCKD)?;
            ensure(looked, || format!("{name} came or went on {host}"))?;
        }
    }
    Ok(())
}
