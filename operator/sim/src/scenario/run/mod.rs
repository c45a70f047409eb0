//! Runs a scenario: the real controllers and agents on the simulated cluster that it describes.

mod objects;
mod orders;
mod rules;
mod setup;
mod steps;
mod told;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use thiserror::Error;
use tokio::sync::mpsc;

use super::ast::{ApiClient, HostFields, Name, Rule, Scenario, VmFields};
use super::check::{Evaluator, Failure};
use super::observe::SimEvent;
use super::output::Verdict;
use super::words::ApiIs;
use crate::kube::{FaultId, Write};
use crate::oracle::Rule as Invariant;
use crate::runner::{Cluster, ClusterError, Dies};
use orders::Orders;
pub use rules::{NAMES as RULE_NAMES, Rules};
use view::ClusterView;

/// Why a scenario could not be run at all.
#[derive(Debug, Error)]
pub enum RunError {
    /// The cluster of its second 0 could not be made.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The verdict.
    pub verdict: Verdict,
    /// Every event since second 0 but the writes of Leases, in order.
    pub events: Vec<SimEvent>,
    /// How often the situation of each invariant came up.
    pub exercised: BTreeMap<Invariant, u64>,
    /// Writes of controllers and agents to the API since second 0, beats left out.
    pub writes: u64,
    /// What agents have done to their hosts since second 0.
    pub actions: u64,
    /// Paths of the disks that there are in the end.
    pub disks: BTreeSet<String>,
}

/// A process that is to die in a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The controller or agent that made the n-th write, once it is committed.
    AfterWrite(u64),
    /// The agent that did the n-th thing to its host, once it is done.
    AfterAction(u64),
    /// All controllers and agents, once the n-th write of one of them is committed.
    AllAfterWrite(u64),
}

/// A cluster that a scenario plays on.
struct Stage {
    scenario: Arc<Scenario>,
    cluster: Cluster,
    rules: Vec<Rule>,
    vms: BTreeMap<Name, VmFields>,
    hosts: BTreeMap<Name, HostFields>,
    orders: Orders,
    api_faults: BTreeMap<ApiClient, (ApiIs, FaultId)>,
    /// What the API is for hosts that are added later.
    api_for_new_hosts: ApiIs,
}

/// Runs `scenario` with `seed`. Call it inside a paused runtime of one thread of its own.
///
/// # Errors
/// The state of second 0 is refused by the API, or is not reached.
pub async fn run(
    scenario: &Scenario,
    seed: u64,
    rules: Rules,
    crash: Option<Crash>,
) -> Result<Outcome, RunError> {
    let scenario = Arc::new(scenario.clone());
    let mut stage = Stage {
        cluster: Cluster::empty(seed, rules.controller, rules.agent)?,
        rules: scenario.rules.clone(),
        vms: scenario.vms.iter().map(|v| (v.name.clone(), v.fields.clone())).collect(),
        hosts: BTreeMap::new(),
        orders: Orders::default(),
        api_faults: BTreeMap::new(),
        api_for_new_hosts: ApiIs::Up,
        scenario: scenario.clone(),
    };
    for vm in &scenario.vms {
        stage.profile(&vm.name);
    }
    let evaluator = Evaluator::new(&scenario);
    if let Err(RunError::Cluster(error)) = stage.bring_up().await {
        return match error {
            // A cluster that can't be what the file says is the scenario's failure, not ours.
            ClusterError::NotReached(_) | ClusterError::Refused { .. } => {
                Ok(stage.never_began(seed, &error))
            }
            ClusterError::Schema(_) => Err(error.into()),
        };
    }
    let writes = stage.cluster.api.admin().subscribe();
    stage.begin()?;
    let counted = match crash {
        Some(Crash::AfterWrite(n)) => stage.cluster.count_writes(Some((n, Dies::Writer))),
        Some(Crash::AllAfterWrite(n)) => stage.cluster.count_writes(Some((n, Dies::All))),
        Some(Crash::AfterAction(n)) => {
            stage.cluster.sim.lock().crash_after_action = Some(n);
            stage.cluster.count_writes(None)
        }
        None => stage.cluster.count_writes(None),
    };
    let show = Show {
        evaluator,
        writes,
        counted,
        told: told::Told::default(),
        events: Vec::new(),
        began: tokio::time::Instant::now(),
    };
    Ok(show.go_on(stage, seed).await)
}

impl Stage {
    fn never_began(&self, seed: u64, error: &ClusterError) -> Outcome {
        let failure = Failure {
            expectation: None,
            text: "the state at second 0".to_owned(),
            seen: error.to_string(),
            line: 1,
        };
        let view = ClusterView(&self.cluster);
        let violations = self.cluster.violations();
        Outcome {
            verdict: Verdict::new(&self.scenario, seed, vec![failure], violations, &view),
            events: Vec::new(),
            exercised: self.cluster.sim.lock().oracle.exercised.clone(),
            writes: 0,
            actions: 0,
            disks: BTreeSet::new(),
        }
    }
}

/// A run from second 0 on.
struct Show {
    evaluator: Evaluator,
    writes: mpsc::UnboundedReceiver<Arc<Write>>,
    counted: Arc<AtomicU64>,
    told: told::Told,
    events: Vec<SimEvent>,
    began: tokio::time::Instant,
}

impl Show {
    async fn go_on(mut self, mut stage: Stage, seed: u64) -> Outcome {
        let sim = stage.cluster.sim.clone();
        let now = loop {
            let now = sim.lock().since_zero();
            self.hear(&mut stage, now);
            self.steps(&mut stage, now);
            if self.evaluator.is_over(now) {
                break now;
            }
            let next = self.evaluator.next_deadline().max(now + 1);
            let at = self.began + Duration::from_millis(next);
            tokio::select! {
                biased;
                () = sim.changed() => {}
                write = self.writes.recv() => {
                    if let Some(write) = write {
                        self.told.written(&write);
                    }
                }
                () = tokio::time::sleep_until(at) => {}
            }
        };
        let view = ClusterView(&stage.cluster);
        let failures = self.evaluator.finish(now, &view);
        let violations = stage.cluster.violations();
        let verdict = Verdict::new(&stage.scenario, seed, failures, violations, &view);
        let world = sim.lock();
        Outcome {
            verdict,
            events: self.events,
            exercised: world.oracle.exercised.clone(),
            writes: self.counted.load(Ordering::Relaxed),
            actions: world.host_actions,
            disks: world.disks.iter().filter(|(_, d)| d.exists).map(|(p, _)| p.clone()).collect(),
        }
    }

    /// Tells the evaluator what has happened, and that something may have changed.
    fn hear(&mut self, stage: &mut Stage, now: u64) {
        while let Ok(write) = self.writes.try_recv() {
            self.told.written(&write);
        }
        let (events, quiet) = self.told.news(&stage.cluster, now);
        for event in events {
            self.evaluator.on_event(&event);
            // Beats would be most of the log.
            if event.object_kind.as_deref() != Some("Lease") {
                self.events.push(event);
            }
        }
        for (device, call) in self.told.calls(&stage.cluster) {
            self.evaluator.device_called(&device, &call);
        }
        if quiet {
            return;
        }
        for (step, outcome, text) in stage.orders.look(&stage.cluster) {
            self.evaluator.step_outcome(step, outcome, text);
        }
        self.evaluator.on_change(now, &ClusterView(&stage.cluster));
    }

    /// Carries out the steps that are due, and those that become due by them.
    fn steps(&mut self, stage: &mut Stage, now: u64) {
        while self.evaluator.next_deadline() <= now {
            let due = self.evaluator.due_steps(now, &ClusterView(&stage.cluster));
            if due.is_empty() {
                return;
            }
            for index in due {
                stage.carry_out(index);
                self.told.changed();
                self.hear(stage, now);
            }
        }
    }
}
