//! Random runs: a cluster and a schedule of faults from a seed, judged by the oracle.

#[cfg(test)]
mod tests;

use serde_json::json;
use stockade_core::agent::Guards as AgentGuards;
use stockade_core::world::Guards;

use crate::oracle::Rule;
use crate::rng::Rng;
use crate::runner::{Cluster, ClusterError, HostPlan};
use crate::world::event::What;
use crate::world::model::Net;
use crate::world::power::Which;

/// All networks but the device's.
const NETS: [Net; 4] = [Net::Api, Net::Peers, Net::Storage, Net::Migration];
/// Seconds in which what is wanted must run once faults have stopped: a boot, the reading of
/// a dead host's power, and its VMs' starts one after the other.
const CONVERGE_SECONDS: u64 = 240;

/// What came of one run.
#[derive(Clone, Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// The faults, in order, a line each.
    pub faults: Vec<String>,
    /// What the oracle found broken, a line each.
    pub violations: Vec<String>,
    /// Hosts that were shot.
    pub shots: usize,
    /// The events, a line each.
    pub events: Vec<String>,
}

/// Runs the cluster and the faults of `seed`. Call it inside a paused runtime of one thread.
///
/// # Errors
/// A refusal of the in-process API.
pub async fn run(seed: u64, guards: Guards, agents: AgentGuards) -> Result<Report, ClusterError> {
    let mut rng = Rng::stream(seed, "schedule");
    let count = rng.between(3, 5);
    let names: Vec<String> = (1..=count).map(|i| format!("h{i}")).collect();
    let plans: Vec<HostPlan> = names.iter().map(|n| HostPlan::new(n)).collect();
    let mut cluster = Cluster::new(seed, &plans, guards, agents)?;
    cluster.pass(30).await;
    let vms: Vec<String> = (0..rng.between(2, 4)).map(|i| format!("{}", 101 + i)).collect();
    for vm in &vms {
        cluster.add_vm(vm, json!({}))?;
    }
    cluster.pass(30).await;
    cluster.sim.lock().begin();
    let mut faults = Vec::new();
    let mut cut: Vec<String> = Vec::new();
    for _ in 0..rng.between(2, 5) {
        let host = rng.pick(&names).cloned().unwrap_or_default();
        faults.push(fault(&mut rng, &mut cluster, &host, &mut cut));
        cluster.pass(rng.between(1, 40)).await;
    }
    for host in &cut {
        cluster.isolate(host, &NETS, false);
    }
    for host in &names {
        let mut world = cluster.sim.lock();
        world.switch_off_if_hung(host);
        world.switch_on(host);
    }
    cluster.pass(CONVERGE_SECONDS).await;
    for vm in &vms {
        let on = cluster.running(vm);
        let broken = (on.len() != 1).then(|| format!("{vm} runs on {} hosts", on.len()));
        let mut world = cluster.sim.lock();
        let at = world.since_zero();
        world.oracle.judge(at, Rule::Converges, broken, false);
    }
    let violations = cluster.violations();
    let world = cluster.sim.lock();
    Ok(Report {
        seed,
        faults,
        violations,
        shots: world.events.iter().filter(|e| e.what == What::FenceOff).count(),
        events: world.events.iter().map(ToString::to_string).collect(),
    })
}

/// Lets one fault befall the cluster; its line.
fn fault(rng: &mut Rng, cluster: &mut Cluster, host: &str, cut: &mut Vec<String>) -> String {
    let kind = rng.below(8);
    if kind != 7 {
        cluster.sim.lock().fault_beyond_api = true;
    }
    let at = cluster.sim.lock().since_zero() / 1000;
    let what = match kind {
        0 => {
            cluster.sim.lock().switch_off(host);
            "power-off"
        }
        1 => {
            cluster.sim.lock().reset(host);
            "reset"
        }
        2 => {
            cluster.sim.lock().panic(host);
            "panic"
        }
        3 => {
            cluster.isolate(host, &NETS, true);
            cut.push(host.to_owned());
            "isolate"
        }
        4 => {
            cluster.isolate(host, &[Net::Storage], true);
            cut.push(host.to_owned());
            "isolate storage"
        }
        5 => {
            let down = rng.between(0, 30_000);
            cluster.sim.lock().crash_process(host, Which::Agent, down);
            "crash-agent"
        }
        6 => {
            let ms = rng.between(1_000, 60_000);
            cluster.sim.lock().pause_for(host, Which::Agent, Some(ms));
            "pause-agent"
        }
        _ => {
            cluster.crash_controller();
            return format!("{at} controller crash");
        }
    };
    format!("{at} {what} {host}")
}
