//! What can be seen of a running controller from outside: metrics, and whether it is well.
//!
//! Counting decides nothing. Names and labels are part of the product: dashboards and alerts name
//! them, so a change is told in the changelog.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use stockade_core::plan::Plan;
use stockade_core::world::{Millis, World};
use stockade_crds::v1alpha1::{MigrationOutcome, MigrationProgress, VirtualMachineMigrationStatus};
use stockade_host::ports::Clock;

/// A loop that has not turned for so long hangs: its longest wait is a second, its longest
/// request five, and sixteen run at once.
const HANGS_AFTER: Millis = 60_000;

/// Seconds of a plan: its goal is 5 ms at 10,000 VMs.
const PLAN_BUCKETS: [f64; 9] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.5, 2.5];
/// Seconds of a call of a fence device.
const FENCE_BUCKETS: [f64; 9] = [0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 60.0];

/// Seconds of a live copy.
const MOVE_BUCKETS: [f64; 9] = [1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 180.0, 600.0, 3600.0];
/// Seconds that a guest stands still; QEMU's own limit is 0.3.
const DOWNTIME_BUCKETS: [f64; 9] = [0.01, 0.025, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 5.0];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Request {
    verb: String,
    resource: String,
    code: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct State {
    state: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Proof {
    proof: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Device {
    device: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fencing {
    agent: String,
    action: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Fenced {
    agent: String,
    action: String,
    result: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Moving {
    namespace: String,
    vm: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: String,
}

/// How far the live copies are that are under way; one value a VM.
#[derive(Default)]
struct Copies {
    processed: Family<Moving, Gauge>,
    remaining: Family<Moving, Gauge>,
    sent: Family<Moving, Gauge>,
    changed: Family<Moving, Gauge>,
}

impl Copies {
    fn register(&self, r: &mut Registry) {
        let mut gauge = |name: &str, help: &str, family: &Family<Moving, Gauge>| {
            let help = format!("{help}, of a live move that is under way; set by the leader");
            r.register(name, help, family.clone());
        };
        gauge("migration_processed_bytes", "Bytes that were sent", &self.processed);
        gauge("migration_remaining_bytes", "Bytes still to be sent", &self.remaining);
        gauge("migration_bytes_per_second", "Bytes sent in a second", &self.sent);
        let help = "Bytes of memory that the guest changes in a second";
        gauge("migration_dirty_bytes_per_second", help, &self.changed);
    }

    fn clear(&self) {
        for family in [&self.processed, &self.remaining, &self.sent, &self.changed] {
            family.clear();
        }
    }

    fn set(&self, labels: &Moving, progress: &MigrationProgress) {
        self.processed.get_or_create(labels).set(progress.processed_bytes);
        self.remaining.get_or_create(labels).set(progress.remaining_bytes);
        self.sent.get_or_create(labels).set(progress.bytes_per_second);
        self.changed.get_or_create(labels).set(progress.dirty_bytes_per_second);
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Build {
    version: &'static str,
}

/// Metrics and health of one controller.
pub struct Observed {
    registry: Registry,
    clock: Arc<dyn Clock>,
    turned: AtomicU64,
    listed: AtomicBool,
    leading: Gauge,
    plans: Histogram,
    placements: Counter,
    events: Family<Reason, Counter>,
    requests: Family<Request, Counter>,
    fence_calls: Family<Fenced, Counter>,
    fence_seconds: Family<Fencing, Histogram>,
    fence_ok: Family<Device, Gauge>,
    copies: Copies,
    moves: Family<Outcome, Counter>,
    move_seconds: Histogram,
    move_downtime: Histogram,
    vms: Family<State, Gauge>,
    hosts: Family<State, Gauge>,
    certificates: Family<Proof, Gauge>,
    tolerates: Gauge,
    brake: Gauge,
}

impl std::fmt::Debug for Observed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Observed").finish_non_exhaustive()
    }
}

impl Observed {
    /// Nothing counted yet; healthy until it should have turned.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        let fence_histogram: fn() -> Histogram = || Histogram::new(FENCE_BUCKETS);
        let turned = AtomicU64::new(clock.monotonic_millis());
        let mut this = Self {
            registry: Registry::with_prefix("stockade"),
            clock,
            turned,
            listed: AtomicBool::new(false),
            leading: Gauge::default(),
            plans: Histogram::new(PLAN_BUCKETS),
            placements: Counter::default(),
            events: Family::default(),
            requests: Family::default(),
            fence_calls: Family::default(),
            fence_seconds: Family::new_with_constructor(fence_histogram),
            fence_ok: Family::default(),
            copies: Copies::default(),
            moves: Family::default(),
            move_seconds: Histogram::new(MOVE_BUCKETS),
            move_downtime: Histogram::new(DOWNTIME_BUCKETS),
            vms: Family::default(),
            hosts: Family::default(),
            certificates: Family::default(),
            tolerates: Gauge::default(),
            brake: Gauge::default(),
        };
        this.register();
        this
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        let build = Family::<Build, Gauge>::default();
        build.get_or_create(&Build { version: env!("CARGO_PKG_VERSION") }).set(1);
        r.register("build_info", "The version that runs", build);
        r.register("controller_leading", "1 while this controller leads", self.leading.clone());
        r.register("plan_duration_seconds", "Time to make one plan", self.plans.clone());
        r.register(
            "placements",
            "Epochs that were placed: compare-and-swaps on a VM that were won",
            self.placements.clone(),
        );
        r.register("events", "What people were told, by reason", self.events.clone());
        r.register(
            "api_requests",
            "Requests to the API server, watches when they begin; code 0: no answer",
            self.requests.clone(),
        );
        r.register(
            "fence_operations",
            "Calls of fence devices by agent, action and result (On, Off, Done, Failed)",
            self.fence_calls.clone(),
        );
        r.register(
            "fence_duration_seconds",
            "Time that one call of a fence device took",
            self.fence_seconds.clone(),
        );
        r.register(
            "fence_device_last_ok_timestamp_seconds",
            "When a call of the device last succeeded, seconds since the Unix epoch",
            self.fence_ok.clone(),
        );
        self.copies.register(r);
        r.register("migrations", "Moves that are over, by outcome", self.moves.clone());
        r.register(
            "migration_duration_seconds",
            "Time that the copy of a live move took which succeeded",
            self.move_seconds.clone(),
        );
        r.register(
            "migration_downtime_seconds",
            "Time that the guest stood still in a live move which succeeded",
            self.move_downtime.clone(),
        );
        r.register(
            "vms",
            "VMs by the state in their STATUS column; set by the leader",
            self.vms.clone(),
        );
        r.register(
            "hosts",
            "Hosts by the state in their STATE column; set by the leader",
            self.hosts.clone(),
        );
        r.register(
            "host_fences",
            "Certificates by proof; None: it is awaited; set by the leader",
            self.certificates.clone(),
        );
        r.register(
            "failover_tolerated_hosts",
            "Host failures that still fit (N+1); set by the leader",
            self.tolerates.clone(),
        );
        r.register(
            "fence_storm_brake_hosts",
            "Hosts that count for the storm brake; set by the leader",
            self.brake.clone(),
        );
    }

    /// The metrics in the OpenMetrics text format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        // Writing to a String does not fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }

    /// Whether the planner's loop turns.
    ///
    /// # Errors
    /// For how long it has not.
    pub fn healthy(&self) -> Result<(), String> {
        let now = self.clock.monotonic_millis();
        let age = now.saturating_sub(self.turned.load(Ordering::Relaxed));
        if age < HANGS_AFTER {
            return Ok(());
        }
        Err(format!("the planner has not turned for {} s", age / 1000))
    }

    /// Whether every kind was listed: a controller that is ready can lead at once.
    ///
    /// # Errors
    /// What it waits for.
    pub fn ready(&self) -> Result<(), String> {
        self.healthy()?;
        if self.listed.load(Ordering::Relaxed) {
            return Ok(());
        }
        Err("not every kind was listed yet; see the log for watches that fail".to_owned())
    }

    /// One answer of the API server; `code` 0: there was none.
    pub fn request(&self, verb: &str, resource: &str, code: u16) {
        let labels = Request { verb: verb.to_owned(), resource: resource.to_owned(), code };
        self.requests.get_or_create(&labels).inc();
    }

    pub(crate) fn turn(&self, listed: bool, leading: bool) {
        self.turned.store(self.clock.monotonic_millis(), Ordering::Relaxed);
        self.listed.store(listed, Ordering::Relaxed);
        self.leading.set(i64::from(leading));
        if !leading {
            // What a standby knows is told by the leader.
            self.vms.clear();
            self.hosts.clear();
            self.certificates.clear();
            self.copies.clear();
        }
    }

    pub(crate) fn planned(&self, world: &World, plan: &Plan, took: Duration) {
        self.plans.observe(took.as_secs_f64());
        self.vms.clear();
        let states = world.vms.values().map(|vm| vm.status.as_ref().map(|s| s.printable_status));
        for (state, count) in tally(states.map(Option::unwrap_or_default)) {
            self.vms.get_or_create(&State { state: format!("{state:?}") }).set(count);
        }
        self.hosts.clear();
        for (state, count) in tally(plan.hosts.iter().map(|(_, r)| r.status.printable_status)) {
            self.hosts.get_or_create(&State { state: format!("{state:?}") }).set(count);
        }
        self.certificates.clear();
        for fence in world.fences.values() {
            let proof = fence.status.as_ref().filter(|s| s.revoked.is_none()).and_then(|s| s.proof);
            let proof = proof.map_or_else(|| "None".to_owned(), |kind| format!("{kind:?}"));
            self.certificates.get_or_create(&Proof { proof }).inc();
        }
        self.copies.clear();
        for (key, report) in &plan.migrations {
            let under_way = report.status.outcome == MigrationOutcome::Pending;
            let Some(progress) = report.status.progress.filter(|_| under_way) else { continue };
            let Some(object) = world.migrations.get(key) else { continue };
            let labels = Moving { namespace: key.namespace.clone(), vm: object.spec.vm.clone() };
            self.copies.set(&labels, &progress);
        }
        if let Some(policy) = &plan.policy {
            self.tolerates.set(i64::from(policy.status.tolerates));
            self.brake.set(i64::from(policy.status.brake_count));
        }
    }

    pub(crate) fn placed(&self) {
        self.placements.inc();
    }

    /// A move is over: its status says so, and did not before.
    pub(crate) fn moved(&self, status: &VirtualMachineMigrationStatus) {
        let labels = Outcome { outcome: format!("{:?}", status.outcome) };
        self.moves.get_or_create(&labels).inc();
        if status.outcome != MigrationOutcome::Succeeded {
            return;
        }
        let seconds = |millis: i64| {
            Duration::from_millis(u64::try_from(millis).unwrap_or_default()).as_secs_f64()
        };
        if let Some(progress) = &status.progress {
            self.move_seconds.observe(seconds(progress.elapsed_milliseconds));
        }
        if let Some(downtime) = status.downtime_milliseconds {
            self.move_downtime.observe(seconds(downtime));
        }
    }

    pub(crate) fn told(&self, reason: &str) {
        self.events.get_or_create(&Reason { reason: reason.to_owned() }).inc();
    }

    pub(crate) fn fenced(
        &self,
        (device, agent, action): (&str, &str, &str),
        result: &str,
        took_millis: Millis,
    ) {
        let (agent, action) = (agent.to_owned(), action.to_owned());
        let seconds = Duration::from_millis(took_millis).as_secs_f64();
        let labels = Fencing { agent: agent.clone(), action: action.clone() };
        self.fence_seconds.get_or_create(&labels).observe(seconds);
        let labels = Fenced { agent, action, result: result.to_owned() };
        self.fence_calls.get_or_create(&labels).inc();
        if result != "Failed" {
            let labels = Device { device: device.to_owned() };
            self.fence_ok.get_or_create(&labels).set(self.clock.wall_millis() / 1000);
        }
    }
}

/// How often each word comes.
fn tally<T: PartialEq>(words: impl Iterator<Item = T>) -> Vec<(T, i64)> {
    let mut counts: Vec<(T, i64)> = Vec::new();
    for word in words {
        match counts.iter_mut().find(|(known, _)| *known == word) {
            Some((_, count)) => *count += 1,
            None => counts.push((word, 1)),
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;

    use super::*;

    struct Hands(AtomicU64);

    impl Clock for Hands {
        fn monotonic_millis(&self) -> u64 {
            self.0.load(Ordering::Relaxed)
        }

        fn wall_millis(&self) -> i64 {
            1_700_000_000_000
        }

        fn sleep(&self, _: u64) -> BoxFuture<'static, ()> {
            Box::pin(std::future::ready(()))
        }
    }

    #[test]
    fn a_controller_is_ready_once_it_has_listed_and_unwell_once_its_loop_hangs() {
        let clock = Arc::new(Hands(AtomicU64::new(5_000)));
        let observed = Observed::new(clock.clone());
        assert!(observed.healthy().is_ok() && observed.ready().is_err());
        observed.turn(true, false);
        assert!(observed.ready().is_ok());
        clock.0.fetch_add(HANGS_AFTER, Ordering::Relaxed);
        let why = observed.healthy().unwrap_err();
        assert!(why.contains("60 s") && observed.ready().is_err(), "{why}");
        observed.turn(true, true);
        assert!(observed.healthy().is_ok());
    }

    #[test]
    fn what_happens_is_counted_under_its_name() {
        let observed = Observed::new(Arc::new(Hands(AtomicU64::new(0))));
        observed.turn(true, true);
        observed.placed();
        observed.told("VmRunning");
        observed.request("update", "virtualmachines/status", 409);
        observed.fenced(("bmc-a", "fence_ipmilan", "Off"), "Done", 150);
        observed.fenced(("bmc-b", "fence_ipmilan", "Off"), "Failed", 20_000);
        let mut world = World::default();
        let mut plan = Plan::default();
        let key = stockade_core::world::Key::new("default", "a");
        let one = serde_json::json!({"metadata": {"name": "a"}, "spec": {"vm": "web"},
            "status": {"outcome": "Pending", "downtimeMilliseconds": 40,
                "progress": {"remainingBytes": 7, "elapsedMilliseconds": 2_000}}});
        let one: stockade_crds::v1alpha1::VirtualMachineMigration =
            serde_json::from_value(one).unwrap();
        let mut status = one.status.clone().unwrap();
        let report = stockade_core::plan::Report { status: status.clone(), conditions: Vec::new() };
        plan.migrations.push((key.clone(), report));
        world.migrations.insert(key.clone(), Arc::new(one));
        status.outcome = MigrationOutcome::Succeeded;
        observed.moved(&status);
        let vm = serde_json::json!({"metadata": {"name": "a"}, "spec": {"memory": "1Gi"}});
        world.vms.insert(key, Arc::new(serde_json::from_value(vm).unwrap()));
        observed.planned(&world, &plan, Duration::from_millis(2));
        let text = observed.text();
        for line in [
            "stockade_controller_leading 1\n",
            "stockade_placements_total 1\n",
            "stockade_events_total{reason=\"VmRunning\"} 1\n",
            "stockade_api_requests_total{verb=\"update\",resource=\"virtualmachines/status\",code=\"409\"} 1\n",
            "stockade_fence_operations_total{agent=\"fence_ipmilan\",action=\"Off\",result=\"Done\"} 1\n",
            "stockade_fence_duration_seconds_bucket{le=\"0.25\",agent=\"fence_ipmilan\",action=\"Off\"} 1\n",
            "stockade_fence_device_last_ok_timestamp_seconds{device=\"bmc-a\"} 1700000000\n",
            "stockade_plan_duration_seconds_count 1\n",
            "stockade_migration_remaining_bytes{namespace=\"default\",vm=\"web\"} 7\n",
            "stockade_migrations_total{outcome=\"Succeeded\"} 1\n",
            "stockade_migration_downtime_seconds_sum 0.04\n",
            "stockade_migration_duration_seconds_sum 2.0\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        assert!(text.contains("stockade_vms{state="), "{text}");
        assert!(!text.contains("{device=\"bmc-b\"}"), "a failed call is no sign of health");
        observed.turn(true, false);
        assert!(!observed.text().contains("stockade_vms{"), "a standby tells nothing of VMs");
    }
}
