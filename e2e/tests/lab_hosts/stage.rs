//! What each case begins with, and what it looks at.

use std::time::{Duration, Instant};

use serde_json::Value;
use stockade_e2e::lab::cases::{
    HOSTS, LIMIT, Outcome, Prover, Witness, all_ready, ensure, hosts_declared, kubectl, machine,
    object, runs, said, sh, without_vms,
};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::local_hosts::Signal;
use stockade_e2e::play::Log;

/// What is declared: an example's folder, and the storage where its locks lie.
pub struct Example {
    folder: &'static str,
    locks: &'static str,
}

/// The locks lie beside the disks.
pub const LOCKS_BESIDE: Example = Example {
    folder: concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nfs4-lock-manager"),
    locks: "vms",
};
/// The locks lie on an export of their own, which h3 serves.
pub const LOCKS_APART: Example = Example {
    folder: concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nfs4-lock-server"),
    locks: "locks",
};

/// A guest on what s1 serves, read there.
pub const fn guest(name: &'static str, file: &'static str) -> Prover<'static> {
    Prover { name, reader: "s1", file, at: 0, storage: "vms" }
}

const GUESTS: [Prover<'static>; 3] = [
    guest("a", "/srv/vms/default/a.raw"),
    guest("b", "/srv/vms/default/b.raw"),
    guest("c", "/srv/vms/default/c.raw"),
];

/// How many silent hosts and shots hold the shooting: more than there are, so that one case does
/// not hold the next.
const NO_BRAKE: &str = "5";
/// As the policy has it by default.
pub const BRAKE: &str = "null";
/// Seconds that are more than the policy waits before it acts, so that it would have acted.
pub const LONG: u64 = 60;

/// What is known of a guest when a case begins.
#[derive(Clone, Debug)]
pub struct Guest {
    /// How it is looked at.
    pub prover: Prover<'static>,
    /// Where it runs.
    pub host: String,
    epoch: i64,
    /// How often it had booted.
    pub boots: u64,
}

/// Three hosts that are well, and a guest on each that writes.
pub struct Stage<'a> {
    /// The whole.
    pub cluster: &'a Cluster,
    /// Where a case tells of its steps.
    pub log: &'a Log,
    /// The guests; the first one's host is the one that a case takes.
    pub guests: Vec<Guest>,
    boots: Vec<(String, String)>,
    witness: Witness,
}

impl<'a> Stage<'a> {
    /// Undoes whatever an earlier case may have left, and sets the stage.
    pub fn set(cluster: &'a Cluster, log: &'a Log) -> Result<Self, String> {
        Self::set_with(cluster, log, NO_BRAKE)
    }

    /// As [`Stage::set`], with a brake.
    pub fn set_with(cluster: &'a Cluster, log: &'a Log, brake: &str) -> Result<Self, String> {
        Self::set_from(cluster, log, brake, &LOCKS_BESIDE)
    }

    /// As [`Stage::set`], with what this example declares.
    pub fn set_of(cluster: &'a Cluster, log: &'a Log, example: &Example) -> Result<Self, String> {
        Self::set_from(cluster, log, NO_BRAKE, example)
    }

    fn set_from(
        cluster: &'a Cluster,
        log: &'a Log,
        brake: &str,
        example: &Example,
    ) -> Result<Self, String> {
        heal(cluster)?;
        let locks = object(cluster, &["slm", "locks"])?;
        if object(cluster, &["svm", GUESTS[0].name])?.is_null()
            || locks["spec"]["storage"] != example.locks
        {
            declare(cluster, example)?;
            GUESTS.iter().try_for_each(|prover| prover.declare(cluster))?;
        }
        let policy = format!(r#"{{"spec": {{"stormBrakeHosts": {brake}}}}}"#);
        kubectl(cluster, &["patch", "sap", "default", "--type=merge", "-p", &policy])?;
        all_ready(cluster)?;
        let guests = GUESTS.into_iter().map(|prover| {
            let host = runs(cluster, prover.name, "")?;
            let epoch = epoch(cluster, prover.name)?;
            // That it wrote once is not enough: it may have been killed since.
            prover.counts(cluster)?;
            let (_, boots) = prover.counters(cluster)?;
            Ok(Guest { prover, host, epoch, boots })
        });
        let guests = guests.collect::<Result<Vec<_>, String>>()?;
        let boots = boots(cluster)?;
        let witness = Witness::start(cluster, &GUESTS)?;
        let on: Vec<_> =
            guests.iter().map(|Guest { prover, host, .. }| (prover.name, host)).collect();
        log.say(format!("the guests write: {on:?}"));
        Ok(Self { cluster, log, guests, boots, witness })
    }

    /// The host that the case takes.
    pub fn victim(&self) -> Result<&'a Machine, String> {
        machine(self.cluster, &self.guests[0].host)
    }

    /// The boot of a host when the case began.
    pub fn boot(&self, host: &str) -> &str {
        let found = self.boots.iter().find(|(name, _)| name == host);
        found.map(|(_, boot)| boot.as_str()).unwrap_or_default()
    }

    /// The guests of these hosts, or those that are not.
    pub fn guests_on<'s>(&'s self, hosts: &[&str], on: bool) -> Vec<&'s Guest> {
        self.guests.iter().filter(|guest| hosts.contains(&&*guest.host) == on).collect()
    }

    /// Waits until a host's word is this one; says how long after `since` that was.
    pub fn host_is(&self, host: &str, state: &str, since: Instant) -> Outcome {
        let is = until(&format!("{host} is {state}"), LIMIT, || {
            let host = object(self.cluster, &["shost", host])?;
            let now = host["status"]["printableStatus"].as_str().unwrap_or_default().to_owned();
            if now == state { Ok(()) } else { Err(now) }
        });
        is.map_err(said)?;
        self.log.say(format!("{host} is {state} after {:.1} s", since.elapsed().as_secs_f64()));
        Ok(())
    }

    /// Waits until all guests of a dead host write elsewhere, each in its next boot, while the host
    /// has no power and the other guests were left alone.
    pub fn restarted_elsewhere(&self, dead: &Machine, since: Instant) -> Outcome {
        for guest in self.guests_on(&[dead.name()], true) {
            let on = runs(self.cluster, guest.prover.name, dead.name())?;
            ensure(!dead.is_on(), || format!("{} has power still", dead.name()))?;
            self.restarted(guest)?;
            let (name, seconds) = (guest.prover.name, since.elapsed().as_secs_f64());
            self.log.say(format!("{name} writes on {on} after {seconds:.1} s"));
        }
        self.left_alone(&[dead.name()])
    }

    /// Waits until a guest writes in its next boot.
    pub fn restarted(&self, guest: &Guest) -> Outcome {
        guest.prover.writes(self.cluster, guest.boots + 1)
    }

    /// The guests of all hosts but these run where they ran, in the same order and boot, and write.
    pub fn left_alone(&self, but: &[&str]) -> Outcome {
        self.guests_on(but, false).into_iter().try_for_each(|guest| self.goes_on(guest))
    }

    /// A guest runs where it ran, in the same order and boot, and writes.
    pub fn goes_on(&self, guest: &Guest) -> Outcome {
        guest.prover.goes_on(self.cluster)?;
        let (_, boots) = guest.prover.counters(self.cluster)?;
        let epoch = epoch(self.cluster, guest.prover.name)?;
        ensure(boots == guest.boots && epoch == guest.epoch, || {
            format!("{guest:?} was started anew: boot {boots}, epoch {epoch}")
        })
    }

    /// No new order was given for a guest.
    pub fn not_ordered_anew(&self, guest: &Guest) -> Outcome {
        let epoch = epoch(self.cluster, guest.prover.name)?;
        ensure(epoch == guest.epoch, || format!("{guest:?} has epoch {epoch}"))
    }

    /// Every host has power.
    pub fn nobody_is_shot(&self) -> Outcome {
        self.cluster.lab().machines().iter().try_for_each(|machine| {
            ensure(machine.is_on(), || format!("{} was shot", machine.name()))
        })
    }

    /// Looks again and again, for so long.
    pub fn holds_for(&self, seconds: u64, look: impl Fn() -> Outcome) -> Outcome {
        let started = Instant::now();
        while started.elapsed() < Duration::from_secs(seconds) {
            look()?;
            std::thread::sleep(Duration::from_secs(2));
        }
        look()
    }

    /// Waits until all is well again; nothing was written by two copies.
    pub fn ends_well(self) -> Outcome {
        heal(self.cluster)?;
        all_ready(self.cluster)?;
        for guest in &self.guests {
            runs(self.cluster, guest.prover.name, "")?;
            guest.prover.counts(self.cluster)?;
        }
        self.witness.is_content(self.cluster)
    }

    /// As [`Stage::ends_well`] after a case in which no host may have lost its boot.
    pub fn ends_without_a_shot(self) -> Outcome {
        self.nobody_is_shot()?;
        let (cluster, before) = (self.cluster, self.boots.clone());
        self.ends_well()?;
        let after = boots(cluster)?;
        ensure(before == after, || format!("hosts booted: {before:?} and then {after:?}"))
    }
}

/// The certificate of a boot; null if there is none.
pub fn fence(cluster: &Cluster, boot: &str) -> Result<Value, String> {
    let fences = object(cluster, &["shf"])?;
    let mut items = fences["items"].as_array().into_iter().flatten();
    let found = items.find(|fence| fence["spec"]["bootId"] == boot);
    Ok(found.cloned().unwrap_or_default())
}

fn boots(cluster: &Cluster) -> Result<Vec<(String, String)>, String> {
    let each = HOSTS.into_iter().map(|name| {
        let boot = stockade_e2e::lab::cases::boot(cluster, name)?;
        Ok((name.to_owned(), boot))
    });
    each.collect()
}

fn epoch(cluster: &Cluster, vm: &str) -> Result<i64, String> {
    Ok(object(cluster, &["svm", vm])?["status"]["epoch"].as_i64().unwrap_or_default())
}

/// Stops the NFS server of a machine, and keeps its agent from starting it again.
pub fn stop_nfs_server(machine: &Machine) -> Outcome {
    // A unit that is masked knows no more how its server is stopped.
    let stop = "systemctl mask --runtime --quiet nfs-server; systemctl stop nfs-server; \
                rpc.nfsd 0; exportfs -f; cat /proc/fs/nfsd/threads";
    let threads = sh(machine, stop)?;
    ensure(threads.trim() == "0", || format!("the NFS server has {threads} threads still"))
}

/// Lets the agent of a machine start its NFS server again.
pub fn allow_nfs_server(machine: &Machine) -> Outcome {
    sh(machine, "systemctl unmask --runtime --quiet nfs-server").map(drop)
}

/// Everything that a case can do to the lab, undone.
pub fn heal(cluster: &Cluster) -> Outcome {
    cluster.plane().signal("kube-apiserver", Signal::CONT).map_err(|error| error.to_string())?;
    cluster.signal_controller(Signal::CONT).map_err(said)?;
    signal_agent(machine(cluster, "s1")?, "CONT")?;
    for name in HOSTS {
        let host = machine(cluster, name)?;
        host.bmc().deaf(false).map_err(|error| error.to_string())?;
        host.bmc_lies(false).map_err(said)?;
        host.cable(true).map_err(said)?;
        host.power_on().map_err(said)?;
        host.wait_until_it_answers(LIMIT).map_err(said)?;
        host.reconnect().map_err(said)?;
        signal_agent(host, "CONT")?;
    }
    ["h3", "s1"].into_iter().try_for_each(|name| allow_nfs_server(machine(cluster, name)?))?;
    for name in HOSTS {
        if !object(cluster, &["shost", name])?.is_null() {
            cluster.plugin(&["uncordon", name]).map_err(said)?;
        }
    }
    Ok(())
}

/// Sends a host's agent a signal, if it runs.
pub fn signal_agent(host: &Machine, signal: &str) -> Outcome {
    let kill = format!("systemctl kill --kill-whom=main --signal={signal} stockade-agent || true");
    sh(host, &kill).map(drop)
}

/// The example without its VM or any other, once all hosts have its storage and locks.
pub fn declare(cluster: &Cluster, example: &Example) -> Outcome {
    without_vms(cluster)?;
    // The export for locks that another case declared.
    kubectl(cluster, &["delete", "sst", "locks", "--ignore-not-found"])?;
    sh(machine(cluster, "s1")?, "install -d /srv/vms /srv/vms/default")?;
    sh(machine(cluster, "h3")?, "install -d /srv/locks")?;
    for file in ["10-hosts", "20-storage", "30-lock-manager"] {
        hosts_declared(cluster, &format!("{}/{file}.yaml", example.folder))?;
    }
    let ready = until("storage and locks are ready on three hosts", LIMIT, || {
        for words in [["sst", "vms"], ["slm", "locks"]] {
            let of = object(cluster, &words)?;
            if of["status"]["readyHosts"] != 3 {
                return Err(of["status"].to_string());
            }
        }
        Ok(())
    });
    ready.map_err(said)?;
    // One comes to each host, for all of them may take it before the first is declared.
    all_ready(cluster)
}
