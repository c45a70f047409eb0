//! A power cut, and what follows, step by step.

use std::time::{Duration, Instant};

use serde_json::Value;
use stockade_e2e::lab::cases::{
    LIMIT, Prover, all_ready, boot, ensure, machine, object, runs, said,
};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::play::Log;

/// When each step of a failover was first seen, by the clock of this machine.
#[derive(Default)]
struct Stages {
    proof: Option<Instant>,
    lock_free: Option<Instant>,
    /// With the host and the epoch of the order.
    issued: Option<(Instant, String, i64)>,
}

/// A failover that came to its end.
pub struct Failover<'a> {
    /// The machine that lost its power.
    pub dead: &'a Machine,
    /// The boot that ended.
    pub boot: String,
    /// When, or when that was said.
    pub off: Instant,
    /// When its boot was first seen proven dead.
    pub proof: Instant,
    /// When its locks were first seen free, and it denied where that can be.
    pub lock_free: Instant,
    /// When the order to start elsewhere was first seen.
    pub issued: Instant,
}

impl Stages {
    /// Looks once at what the API says of the host that died and of the VM that was on it.
    fn look(
        &mut self,
        cluster: &Cluster,
        prover: Prover<'_>,
        before: &Before<'_>,
        proof: &str,
    ) -> Result<bool, String> {
        let all = object(cluster, &["shf,sdom", "--all-namespaces"])?;
        let now = Instant::now();
        for item in all["items"].as_array().into_iter().flatten() {
            let status = &item["status"];
            let broken = status["locksBroken"].as_array();
            let broken = broken.is_some_and(|names| names.contains(&prover.storage.into()));
            if item["kind"] == "HostFence" && item["spec"]["host"] == before.dead.name() {
                if status["proof"] == proof {
                    self.proof.get_or_insert(now);
                }
                if broken {
                    self.lock_free.get_or_insert(now);
                }
            }
            let epoch = item["spec"]["epoch"].as_i64().unwrap_or_default();
            let started = item["kind"] == "Domain"
                && item["spec"]["vm"]["name"] == prover.name
                && item["spec"]["want"] == "Running"
                && epoch > before.epoch;
            if started && self.issued.is_none() {
                let space = item["metadata"]["namespace"].as_str().unwrap_or_default();
                let host = space.trim_start_matches("stockade-host-").to_owned();
                self.issued = Some((now, host, epoch));
            }
        }
        Ok(self.proof.is_some() && self.lock_free.is_some() && self.issued.is_some())
    }
}

fn epoch(cluster: &Cluster, prover: Prover<'_>) -> Result<i64, String> {
    let vm: Value = object(cluster, &["svm", prover.name])?;
    Ok(vm["status"]["epoch"].as_i64().unwrap_or_default())
}

/// How it stood before a host died.
struct Before<'a> {
    dead: &'a Machine,
    boot: String,
    epoch: i64,
    boots: u64,
}

impl<'a> Before<'a> {
    fn look(cluster: &'a Cluster, prover: Prover<'_>) -> Result<Self, String> {
        let host = runs(cluster, prover.name, "")?;
        all_ready(cluster)?;
        let (_, boots) = prover.counters(cluster)?;
        let (boot, epoch) = (boot(cluster, &host)?, epoch(cluster, prover)?);
        Ok(Self { dead: machine(cluster, &host)?, boot, epoch, boots })
    }
}

/// Cuts the power of the guest's host, says when each step was first seen, and waits until the
/// guest writes elsewhere. The start that was issued first must be the one that comes to run.
pub fn power_cut<'a>(
    cluster: &'a Cluster,
    log: &Log,
    prover: Prover<'_>,
) -> Result<Failover<'a>, String> {
    let before = Before::look(cluster, prover)?;
    let cut = before.dead.bmc().ipmitool(&["chassis", "power", "off"]);
    ensure(cut.is_ok_and(|output| output.status.success()), || "the BMC refuses".to_owned())?;
    log.say(format!("{} has no power", before.dead.name()));
    failover(cluster, log, prover, before, "Power")
}

/// As [`power_cut`], of a host whose BMC has no power either: a person says that it is off. Times are
/// since that word.
pub fn by_word<'a>(
    cluster: &'a Cluster,
    log: &Log,
    prover: Prover<'_>,
) -> Result<Failover<'a>, String> {
    let before = Before::look(cluster, prover)?;
    let dead = before.dead;
    dead.bmc().deaf(true).map_err(|error| error.to_string())?;
    dead.power_cut().map_err(said)?;
    log.say(format!("{} and its BMC have no power", dead.name()));
    let awaited = until("its proof is awaited", LIMIT, || {
        let host = object(cluster, &["shost", dead.name()])?;
        let state = &host["status"]["printableStatus"];
        if state == "AwaitingProof" { Ok(()) } else { Err(state.to_string()) }
    });
    awaited.map_err(said)?;
    let word = ["fence", "confirm", dead.name(), "--reason", "both cords are out", "--yes"];
    let word: Vec<&str> = word.into_iter().chain(["--boot", &before.boot]).collect();
    log.say(cluster.plugin(&word).map_err(said)?.trim());
    let over = failover(cluster, log, prover, before, "Human")?;
    dead.bmc().deaf(false).map_err(|error| error.to_string())?;
    Ok(over)
}

/// Follows what comes of a host that is dead as of now.
fn failover<'a>(
    cluster: &'a Cluster,
    log: &Log,
    prover: Prover<'_>,
    before: Before<'a>,
    proof: &str,
) -> Result<Failover<'a>, String> {
    let off = Instant::now();
    let since = |at: Instant| at.duration_since(off).as_secs_f64();
    let mut stages = Stages::default();
    while !stages.look(cluster, prover, &before, proof)? {
        ensure(off.elapsed() < LIMIT, || {
            let fences = object(cluster, &["shf"]).unwrap_or_default();
            format!("no proof, no free locks or no order within {} s: {fences}", LIMIT.as_secs())
        })?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let (Some(proof), Some(lock_free), Some((issued, next, started))) =
        (stages.proof, stages.lock_free, stages.issued)
    else {
        return Err("a stage was not seen".to_owned());
    };
    log.say(format!("proven dead {:.1} s", since(proof)));
    log.say(format!("locks free {:.1} s", since(lock_free)));
    log.say(format!("start issued on {next} {:.1} s", since(issued)));
    let on = runs(cluster, prover.name, before.dead.name())?;
    log.say(format!("runs {:.1} s", since(Instant::now())));
    prover.writes(cluster, before.boots + 1)?;
    log.say(format!("the guest writes {:.1} s", since(Instant::now())));
    let now = epoch(cluster, prover)?;
    ensure(on == next && now == started, || {
        format!("the first start was refused: epoch {started} on {next}, then {now} on {on}")
    })?;
    Ok(Failover { dead: before.dead, boot: before.boot, off, proof, lock_free, issued })
}
