//! Moves that Stockade orders itself: drains, repairs, failback, levelling.

use std::collections::{BTreeMap, BTreeSet};

use stockade_crds::conditions::{DRAINED, Decided, READY};
use stockade_crds::v1alpha1::{
    DrainProgress, HostMode, Management, MigrationOutcome, Rebalance, VirtualMachineMigrationSpec,
    VmState,
};

use super::requests::{KEPT, Load};
use super::{age, cause, drains, facts_of, is_over};
use crate::ha::host_state::{HostFacts, seconds};
use crate::lineage::is_paused;
use crate::placement::{
    By, Cluster, DrainPlan, Move, VmKey, drain_plan, failback, rebalance, relocate, repair,
};
use crate::plan::{Intent, Plan};
use crate::vm::{Decision, basis};
use crate::world::{Key, World};

/// So many moves a round of levelling makes at most.
const ROUND: usize = 4;
/// So many VMs that are slow to leave are named.
const TOLD: usize = 8;

pub(super) fn plan(
    world: &World,
    facts: &[HostFacts],
    cluster: &Cluster,
    decisions: &BTreeMap<Key, Decision>,
    out: &mut Plan,
) {
    let emptied = |f: &&HostFacts| {
        let mode = world.hosts.get(&f.name).map(|h| h.spec.mode);
        mode == Some(HostMode::Maintenance) || drains(world, f)
    };
    let plans: Vec<(&HostFacts, DrainPlan)> =
        facts.iter().filter(emptied).map(|f| (f, drain_of(world, cluster, &f.name))).collect();
    for (host, plan) in &plans {
        tell(world, host, plan, decisions, out);
    }
    let paused = is_paused(world);
    if paused || world.policy.is_none() {
        return;
    }
    call_off(world, facts, decisions, out);
    let Some(mut orders) = Orders::new(world, decisions) else { return };
    for (_, plan) in plans.iter().filter(|(host, _)| drains(world, host)) {
        if orders.order(plan.moves(), "Drain", out) {
            return;
        }
    }
    if orders.order(relocate(cluster).values(), "Relocate", out) {
        return;
    }
    let bound = |vm: &stockade_crds::v1alpha1::VirtualMachine| {
        let p = &vm.spec.placement;
        !(p.required_hosts.is_empty()
            && p.host_selector.is_empty()
            && p.together_with.is_empty()
            && p.apart_from.is_empty())
    };
    if world.vms.values().any(|vm| bound(vm)) && orders.order(&repair(cluster), "Repair", out) {
        return;
    }
    let returns = world.vms.values().any(|vm| vm.spec.placement.failback);
    if returns && orders.order(&failback(cluster), "Failback", out) {
        return;
    }
    level(world, cluster, decisions, &mut orders, out);
}

/// How a host is emptied within the policy's limits.
fn drain_of(world: &World, cluster: &Cluster, host: &str) -> DrainPlan {
    let per_host = usize::try_from(world.policy_spec().migrations_per_host).unwrap_or(1);
    drain_plan(cluster, host, per_host)
}

/// How `host` would be emptied if it were put into maintenance now, and a sentence for each VM
/// that could not leave. The same plan that a drain follows.
#[must_use]
pub fn drain_preview(world: &World, facts: &[HostFacts], host: &str) -> (DrainPlan, Vec<String>) {
    let cluster = crate::vm::cluster(world, facts, &BTreeMap::new());
    let plan = drain_of(world, &cluster, host);
    let blocked = blocked(world, host, &plan);
    (plan, blocked)
}

/// A sentence for each VM that can't leave.
fn blocked(world: &World, host: &str, plan: &DrainPlan) -> Vec<String> {
    let mut blocked: Vec<String> =
        plan.blocked.iter().map(|(vm, why)| format!("{vm}: {why}")).collect();
    for (key, vm) in &world.vms {
        let there = vm.status.as_ref().is_some_and(|s| s.host.as_deref() == Some(host));
        if vm.spec.management == Management::Watched && there {
            blocked.push(format!("{key}: Stockade only watches it; stop or move it yourself"));
        }
    }
    blocked
}

/// Levels load that has been uneven for `rebalanceHoldSeconds`, one round at a time: a peak that
/// passes by itself moves nothing, and the next round sees what the last one came to.
fn level(
    world: &World,
    cluster: &Cluster,
    decisions: &BTreeMap<Key, Decision>,
    orders: &mut Orders<'_>,
    out: &mut Plan,
) {
    let by = match world.policy_spec().rebalance {
        Rebalance::Never => return,
        Rebalance::Requests => By::Requests,
        Rebalance::Usage => By::Usage,
    };
    let round = !world.migrations.values().all(|m| is_over(m));
    let restless = decisions.values().any(|d| {
        d.report.status.migration.is_some()
            || matches!(
                d.report.status.printable_status,
                VmState::Starting | VmState::Stopping | VmState::Recovering
            )
    });
    let measured = |vm: &stockade_crds::v1alpha1::VirtualMachine| {
        let runs = vm.status.as_ref().is_some_and(|s| s.printable_status == VmState::Running);
        !runs || vm.metadata.uid.as_ref().is_some_and(|uid| world.usage.contains_key(uid))
    };
    let unmeasured = by == By::Usage && !world.vms.values().all(|vm| measured(vm));
    if round || restless || unmeasured {
        return;
    }
    let moves = rebalance(cluster, by, &orders.barred, ROUND);
    if moves.is_empty() {
        return;
    }
    out.uneven = true;
    let due = world.uneven_since.unwrap_or(world.now)
        + seconds(world.policy_spec().rebalance_hold_seconds);
    if world.now < due {
        out.wake(due);
    } else {
        orders.order(&moves, "Rebalance", out);
    }
}

/// Calls off the drains of hosts that are not to be emptied any more; what has moved stays.
fn call_off(
    world: &World,
    facts: &[HostFacts],
    decisions: &BTreeMap<Key, Decision>,
    out: &mut Plan,
) {
    for (key, migration) in &world.migrations {
        let drain = cause(migration) == Some("Drain")
            && !is_over(migration)
            && migration.metadata.deletion_timestamp.is_none();
        if !drain {
            continue;
        }
        let vm = Key::new(&key.namespace, &migration.spec.vm);
        let status = decisions.get(&vm).map(|d| &d.report.status);
        let from = status.and_then(|s| s.migration.as_ref().map(|m| &m.source).or(s.host.as_ref()));
        let still = from.and_then(|h| facts_of(facts, h)).is_some_and(|f| {
            // A host that is silent for a moment is still to be emptied.
            drains(world, f) || (!f.alive && f.going_down.is_none())
        });
        if !still {
            let basis = basis(&migration.metadata);
            out.intents.push(Intent::DeleteMigration { key: key.clone(), basis });
        }
    }
}

/// What moves may be ordered now.
struct Orders<'a> {
    world: &'a World,
    decisions: &'a BTreeMap<Key, Decision>,
    load: Load,
    /// VMs whose own last move did not succeed a moment ago, or that have a move.
    barred: BTreeSet<VmKey>,
}

impl<'a> Orders<'a> {
    /// `None` while moves of Stockade's own wait to begin: each plan sees what the last began.
    fn new(world: &'a World, decisions: &'a BTreeMap<Key, Decision>) -> Option<Self> {
        let mut barred = BTreeSet::new();
        for (key, migration) in &world.migrations {
            let vm = Key::new(&key.namespace, &migration.spec.vm);
            let outcome = migration.status.as_ref().map(|s| s.outcome).unwrap_or_default();
            let own = cause(migration).is_some();
            if outcome == MigrationOutcome::Pending {
                let begun = decisions.get(&vm).is_some_and(|d| {
                    let moving = d.report.status.migration.as_ref();
                    moving.is_some_and(|m| Some(&m.uid) == migration.metadata.uid.as_ref())
                });
                if own && !begun {
                    return None;
                }
                barred.insert(VmKey::new(&vm.namespace, &vm.name));
            } else if own
                && (outcome != MigrationOutcome::Succeeded || cause(migration) == Some("Rebalance"))
                && age(world, migration) < KEPT
            {
                barred.insert(VmKey::new(&vm.namespace, &vm.name));
            }
        }
        Some(Self { world, decisions, load: Load::of(decisions), barred })
    }

    /// Orders as many of `moves` as the limits allow; true: at least one.
    fn order<'m>(
        &mut self,
        moves: impl IntoIterator<Item = &'m Move>,
        cause: &'static str,
        out: &mut Plan,
    ) -> bool {
        let mut any = false;
        for one in moves {
            any |= self.order_one(one, cause, out);
        }
        any
    }

    fn order_one(&mut self, one: &Move, cause: &'static str, out: &mut Plan) -> bool {
        let ready = one.vms.iter().all(|mover| {
            let key = Key::new(&mover.vm.namespace, &mover.vm.name);
            // What its last move came to is in the books only once it is written.
            let before = self.world.vms.get(&key).and_then(|vm| vm.status.as_ref());
            !self.barred.contains(&mover.vm)
                && before.is_some_and(|status| status.migration.is_none())
                && self.decisions.get(&key).is_some_and(|d| {
                    let status = &d.report.status;
                    status.printable_status == VmState::Running && status.migration.is_none()
                })
        });
        let Some(first) = one.vms.first().filter(|_| ready) else { return false };
        let name = |mover: &crate::placement::Mover| {
            let key = Key::new(&mover.vm.namespace, &mover.vm.name);
            let epoch = self.decisions.get(&key).map_or(0, |d| d.report.status.epoch);
            format!("{}-{}-{epoch}", mover.vm.name, cause.to_ascii_lowercase())
        };
        // One that is on its way out, or was of an earlier VM of that name.
        let taken = |mover: &crate::placement::Mover| {
            self.world.migrations.contains_key(&Key::new(&mover.vm.namespace, name(mover)))
        };
        if one.vms.iter().any(taken) {
            return false;
        }
        let sources = one.vms.iter().map(|mover| mover.from.as_str());
        if !self.load.takes(self.world, sources, &one.to) {
            return false;
        }
        let leader = name(first);
        for mover in &one.vms {
            let own = name(mover);
            out.intents.push(Intent::CreateMigration {
                leader: (own != leader).then(|| leader.clone()),
                key: Key::new(&mover.vm.namespace, own),
                spec: VirtualMachineMigrationSpec {
                    vm: mover.vm.name.clone(),
                    target: Some(one.to.clone()),
                    live: Some(mover.live),
                },
                cause,
            });
            self.load.add(&mover.from, &one.to);
            self.barred.insert(mover.vm.clone());
        }
        true
    }
}

/// Why a VM that can leave has not left yet, where that is more than its turn.
fn slow(world: &World, vm: &Key, decision: &Decision) -> Option<String> {
    let status = &decision.report.status;
    if status.printable_status != VmState::Running && status.migration.is_none() {
        return Some(format!("{vm} is {:?}", status.printable_status));
    }
    // A person's own moves of earlier days say nothing of this.
    let moves = world.migrations.iter().filter(|(key, migration)| {
        key.namespace == vm.namespace
            && migration.spec.vm == vm.name
            && (cause(migration).is_some() || !is_over(migration))
    });
    let last = moves.max_by_key(|(_, m)| m.metadata.creation_timestamp.as_ref().map(|t| t.0))?.1;
    let said = last.status.as_ref()?;
    let waits = |reason: &str| reason == "Waiting" || reason == "Refused" || reason == "Failed";
    let condition = said.conditions.iter().find(|c| c.type_ == READY && waits(&c.reason))?;
    let target = said.target.as_ref().or(last.spec.target.as_ref());
    let to = target.map(|host| format!(" to {host}")).unwrap_or_default();
    Some(format!("{vm}: its move{to}: {}", condition.message))
}

/// Says in the host's status how far its drain is, and who can't leave.
fn tell(
    world: &World,
    host: &HostFacts,
    plan: &DrainPlan,
    decisions: &BTreeMap<Key, Decision>,
    out: &mut Plan,
) {
    let here = |d: &Decision| {
        d.report.status.placements.iter().any(|p| p.host == host.name && !p.state.is_settled())
    };
    let staying: Vec<_> = decisions.iter().filter(|(_, d)| here(d)).collect();
    let left = staying.len();
    let mut blocked = blocked(world, &host.name, plan);
    let left = left.max(blocked.len());
    blocked.truncate(64);
    let condition = if left == 0 {
        Decided::new(DRAINED, true, "Empty", "no VM is left; it may be switched off")
    } else if !blocked.is_empty() {
        let message = format!("{left} VMs are left; can't leave: {}", blocked.join("; "));
        Decided::new(DRAINED, false, "CannotMove", message.chars().take(4000).collect::<String>())
    } else {
        let slow: Vec<String> =
            staying.iter().filter_map(|(key, d)| slow(world, key, d)).take(TOLD).collect();
        let why = if slow.is_empty() { String::new() } else { format!(": {}", slow.join("; ")) };
        let message: String = format!("{left} VMs are left{why}").chars().take(4000).collect();
        Decided::new(DRAINED, false, "Draining", message)
    };
    let progress = DrainProgress {
        remaining: i32::try_from(left).unwrap_or(i32::MAX),
        blocked: blocked.iter().map(|b| b.chars().take(1000).collect()).collect(),
    };
    if let Some((_, report)) = out.hosts.iter_mut().find(|(name, _)| *name == host.name) {
        report.status.drain = Some(progress);
        report.conditions.push(condition);
    }
}
