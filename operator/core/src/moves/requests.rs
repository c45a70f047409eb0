//! `VirtualMachineMigration`s: the checks before anything is done, and the outcome.

use std::borrow::Cow;
use std::collections::BTreeMap;

use stockade_crds::conditions::{Decided, READY, RECONCILING};
use stockade_crds::names::{FINALIZER, LEADER_LABEL};
use stockade_crds::v1alpha1::{
    DomainState, EpochState, HostState, Management, MigrationOutcome, MigrationSide, MigrationStep,
    PlacedEpoch, VirtualMachine, VirtualMachineMigration, VirtualMachineMigrationSpec,
    VirtualMachineMigrationStatus, VmMove, VmState, Want,
};

use super::cold::leads_away;
use super::failed::REMEMBERED;
use super::live::{self, Next};
use super::{age, cause, facts_of, is_over, needs_books, object};
use crate::ha::host_state::HostFacts;
use crate::lineage::is_paused;
use crate::placement::{Cluster, Mover, VmKey, join_of, move_of};
use crate::plan::{About, Intent, Plan, Report};
use crate::vm::{Decision, basis, domain_order, make_room, next_epoch};
use crate::world::{Key, Millis, World};

/// Stockade's own moves are kept so long after they are over (one that failed: `REMEMBERED`); a VM
/// whose own move did not succeed is not moved again before that. One that can't begin for so long is
/// given up, so that others go on.
pub(super) const KEPT: Millis = 30_000;

/// How many moves each host takes part in now.
#[derive(Clone, Debug, Default)]
pub(super) struct Load {
    hosts: BTreeMap<String, i32>,
    all: i32,
    /// VMs that follow another and have not begun, counted already: from where to where.
    booked: BTreeMap<Key, (String, String)>,
}

impl Load {
    /// Those that are under way.
    pub(super) fn of(decisions: &BTreeMap<Key, Decision>) -> Self {
        let mut load = Self::default();
        for decision in decisions.values() {
            if let Some(m) = &decision.report.status.migration {
                load.add(&m.source, &m.target);
            }
        }
        load
    }

    pub(super) fn add(&mut self, source: &str, target: &str) {
        self.count(source, target, 1);
    }

    fn count(&mut self, source: &str, target: &str, n: i32) {
        *self.hosts.entry(source.to_owned()).or_default() += n;
        *self.hosts.entry(target.to_owned()).or_default() += n;
        self.all += n;
    }

    fn book(&mut self, vm: Key, source: &str, target: &str) {
        self.add(source, target);
        self.booked.insert(vm, (source.to_owned(), target.to_owned()));
    }

    /// Takes back what was counted for these already.
    fn unbook(&mut self, vms: impl IntoIterator<Item = Key>) {
        for vm in vms {
            if let Some((source, target)) = self.booked.remove(&vm) {
                self.count(&source, &target, -1);
            }
        }
    }

    /// Whether VMs may go from these hosts, one each, to the other as one.
    pub(super) fn takes<'h>(
        &self,
        world: &World,
        sources: impl IntoIterator<Item = &'h str>,
        target: &str,
    ) -> bool {
        let policy = world.policy_spec();
        let mut more: BTreeMap<&str, i32> = BTreeMap::new();
        for source in sources {
            *more.entry(source).or_default() += 1;
        }
        let n: i32 = more.values().sum();
        *more.entry(target).or_default() += n;
        // What moves as one may exceed a limit, alone.
        let room = |busy: i32, more: i32, limit: i32| busy + more <= limit || (n > 1 && busy == 0);
        more.into_iter().all(|(host, more)| {
            room(self.hosts.get(host).copied().unwrap_or(0), more, policy.migrations_per_host)
        }) && room(self.all, n, policy.migrations_per_cluster)
    }
}

/// Why a move does not begin.
enum No {
    /// It never will: nothing was done at any host.
    Refuse(String),
    /// Not now.
    Wait(String),
}

/// A move that may begin.
struct Going {
    to: String,
    live: bool,
    others: Vec<Mover>,
}

/// Gives the books with what was begun.
pub(super) fn plan<'c>(
    world: &World,
    facts: &[HostFacts],
    cluster: &'c Cluster,
    decisions: &mut BTreeMap<Key, Decision>,
    out: &mut Plan,
) -> Cow<'c, Cluster> {
    clear(world, decisions);
    let mut books = Cow::Borrowed(cluster);
    let enter = |books: &mut Cow<'c, Cluster>, decisions: &BTreeMap<Key, Decision>| {
        let given = given(decisions);
        // Nobody asks where nothing may have to move.
        if !given.is_empty() && needs_books(world, facts) {
            *books = Cow::Owned(cluster.with(given));
        }
    };
    // What starts in this plan.
    enter(&mut books, decisions);
    if world.migrations.is_empty() {
        return books;
    }
    let mut load = Load::of(decisions);
    let mut pending: Vec<(&Key, &VirtualMachineMigration)> = Vec::new();
    for (key, migration) in &world.migrations {
        if is_over(migration) {
            tidy(world, decisions, key, migration, out);
        } else {
            pending.push((key, migration));
        }
    }
    // A person's moves first, the oldest first.
    pending.sort_by_key(|(key, m)| {
        (cause(m).is_some(), m.metadata.creation_timestamp.as_ref().map(|t| t.0), *key)
    });
    // Those that follow another have room with it.
    for (key, follower) in &pending {
        let vm = Key::new(&key.namespace, &follower.spec.vm);
        let decision = decisions.get(&vm);
        let source = decision.and_then(|d| d.report.status.host.as_ref());
        if let (Some(_), None, Some(source), Some(target)) =
            (leader(follower), moving_by(decision, follower), source, &follower.spec.target)
        {
            load.book(vm, source, target);
        }
    }
    for (key, migration) in pending {
        let vm = Key::new(&key.namespace, &migration.spec.vm);
        let going = moving_by(decisions.get(&vm), migration).cloned();
        let report = match going {
            Some(moving) => under_way(world, decisions, key, migration, &moving),
            None if migration.metadata.deletion_timestamp.is_some() => {
                report(migration, MigrationOutcome::Aborted, "Aborted", "deleted before it began")
            }
            None => {
                let told =
                    wanted(world, facts, &books, decisions, &mut load, (key, migration), out);
                if moving_by(decisions.get(&vm), migration).is_some() {
                    enter(&mut books, decisions);
                }
                told
            }
        };
        abort_followers(world, key, migration, &report, out);
        out.migrations.push((key.clone(), report));
    }
    books
}

/// Where this plan starts VMs or begins to move them: what comes after it must count them there.
fn given(decisions: &BTreeMap<Key, Decision>) -> Vec<(VmKey, Vec<String>)> {
    let placed = |decision: &&Decision| {
        decision.intents.iter().any(|intent| matches!(intent, Intent::Place { .. }))
    };
    let all = decisions.iter().filter(|(_, decision)| placed(decision));
    all.map(|(key, decision)| {
        let status = &decision.report.status;
        let open = status.placements.iter().filter(|p| !p.state.is_settled()).map(|p| &p.host);
        let target = status.migration.as_ref().filter(|m| leads_away(m)).map(|m| &m.target);
        (VmKey::new(&key.namespace, &key.name), open.chain(target).cloned().collect())
    })
    .collect()
}

/// The move along with which this one was ordered, for another member of the group.
fn leader(migration: &VirtualMachineMigration) -> Option<&String> {
    migration.metadata.labels.as_ref()?.get(LEADER_LABEL)
}

/// The move of a VM, if it is this one.
fn moving_by<'a>(
    decision: Option<&'a Decision>,
    migration: &VirtualMachineMigration,
) -> Option<&'a VmMove> {
    let moving = decision?.report.status.migration.as_ref()?;
    (migration.metadata.uid.as_deref() == Some(moving.uid.as_str())).then_some(moving)
}

/// Lets a VM's record of a move go once the move's outcome stands and both sides are settled.
fn clear(world: &World, decisions: &mut BTreeMap<Key, Decision>) {
    for (key, decision) in decisions.iter_mut() {
        let Some(moving) = decision.report.status.migration.clone() else { continue };
        if decision.intents.iter().any(|i| matches!(i, Intent::Place { .. })) {
            continue;
        }
        let found = object(world, &key.namespace, &moving);
        if found.is_some_and(|m| !is_over(m)) {
            continue;
        }
        let status = &mut decision.report.status;
        let source = |p: &PlacedEpoch| p.epoch == moving.source_epoch && !p.state.is_settled();
        let over = if moving.live {
            match &decision.next {
                Some(Next::Over(_)) => {
                    let vm = world.vms.get(key);
                    !status.placements.iter().any(source)
                        || !vm.is_some_and(|vm| live::unanswered(world, vm, &moving.source))
                }
                Some(Next::Done) => true,
                Some(_) => false,
                // Nothing is open any more.
                None => status.placements.iter().all(|p| p.state.is_settled()),
            }
        } else {
            // It starts on the host that it left as long as this record says so.
            !moving.returning
                || status.printable_status == VmState::Running
                || status.printable_status == VmState::Stopped
                || status.printable_status == VmState::Error
        };
        if !over {
            continue;
        }
        status.migration = None;
        let by_user = found.filter(|m| {
            cause(m).is_none()
                && m.status.as_ref().is_some_and(|s| s.outcome == MigrationOutcome::Succeeded)
        });
        if by_user.is_some() {
            status.moved_to = Some(moving.target.clone());
        }
    }
}

/// A move whose outcome stands: it goes when it was deleted, or when it was Stockade's own.
fn tidy(
    world: &World,
    decisions: &BTreeMap<Key, Decision>,
    key: &Key,
    migration: &VirtualMachineMigration,
    out: &mut Plan,
) {
    let vm = Key::new(&key.namespace, &migration.spec.vm);
    if moving_by(decisions.get(&vm), migration).is_some() {
        return;
    }
    let basis = basis(&migration.metadata);
    if migration.metadata.deletion_timestamp.is_some() {
        if has_finalizer(migration) {
            let key = key.clone();
            out.intents.push(Intent::MigrationFinalizer { key, basis, add: false });
        }
        return;
    }
    if cause(migration).is_none() {
        return;
    }
    let age = age(world, migration);
    // What was never begun would be ordered again by the same name.
    let teaches = migration
        .status
        .as_ref()
        .is_some_and(|s| s.outcome == MigrationOutcome::Failed && s.epoch > 0);
    let kept = if teaches { REMEMBERED } else { KEPT };
    if age >= kept {
        out.intents.push(Intent::DeleteMigration { key: key.clone(), basis });
    } else {
        out.wake(world.now + if age < KEPT { KEPT } else { kept } - age);
    }
}

fn has_finalizer(migration: &VirtualMachineMigration) -> bool {
    migration.metadata.finalizers.iter().flatten().any(|f| f == FINALIZER)
}

fn report(
    migration: &VirtualMachineMigration,
    outcome: MigrationOutcome,
    reason: &str,
    message: impl Into<String>,
) -> Report<VirtualMachineMigrationStatus> {
    let mut status = migration.status.clone().unwrap_or_default();
    status.observed_generation = migration.metadata.generation.unwrap_or_default();
    status.outcome = outcome;
    let message = message.into();
    let ready = match outcome {
        MigrationOutcome::Succeeded => Some(true),
        MigrationOutcome::Pending => None,
        MigrationOutcome::Failed | MigrationOutcome::Refused | MigrationOutcome::Aborted => {
            Some(false)
        }
    };
    let conditions = vec![
        Decided::new(READY, ready, reason, message.clone()),
        Decided::new(RECONCILING, outcome == MigrationOutcome::Pending, reason, message),
    ];
    Report { status, conditions }
}

/// What became of a move that was begun.
fn under_way(
    world: &World,
    decisions: &mut BTreeMap<Key, Decision>,
    key: &Key,
    migration: &VirtualMachineMigration,
    moving: &VmMove,
) -> Report<VirtualMachineMigrationStatus> {
    let deleted = migration.metadata.deletion_timestamp.is_some();
    let vm = Key::new(&key.namespace, &migration.spec.vm);
    let ended = if deleted { MigrationOutcome::Aborted } else { MigrationOutcome::Failed };
    let word = if deleted { "Aborted" } else { "Failed" };
    let Some(decision) = decisions.get(&vm) else {
        return report(migration, MigrationOutcome::Failed, "VmGone", "the VM is gone");
    };
    let object = world.vms.get(&vm);
    let mut report = if moving.live {
        let to = &moving.target;
        match &decision.next {
            Some(Next::Done) if object.is_some_and(|vm| live::resumes(world, vm, moving)) => {
                let message = format!("{to} resumes it");
                report(migration, MigrationOutcome::Pending, "Finishing", message)
            }
            Some(Next::Done) => {
                let message = format!("runs on {to}");
                report(migration, MigrationOutcome::Succeeded, "Moved", message)
            }
            Some(Next::Over(why)) => report(migration, ended, word, why.clone()),
            Some(Next::CallOffTarget(why)) if decision.source_stays => {
                report(migration, ended, word, why.clone())
            }
            Some(Next::FinishSource) => report(
                migration,
                MigrationOutcome::Pending,
                "Finishing",
                format!("it left for {to}; what is left on {} ends", moving.source),
            ),
            Some(Next::Copy | Next::Wait | Next::AskTarget | Next::Commit) => report(
                migration,
                MigrationOutcome::Pending,
                "Copying",
                format!("from {} to {to}", moving.source),
            ),
            Some(Next::Prepare) => {
                let message = format!("{to} gets ready");
                report(migration, MigrationOutcome::Pending, "Preparing", message)
            }
            Some(Next::CallOffSource | Next::CallOffTarget(_) | Next::EndSource) => {
                let message = "is being called off";
                report(migration, MigrationOutcome::Pending, "CallingOff", message)
            }
            None => {
                let settled =
                    decision.report.status.placements.iter().all(|p| p.state.is_settled());
                if settled {
                    report(migration, ended, word, "the VM ended on both sides")
                } else {
                    report(migration, MigrationOutcome::Pending, "Waiting", "waits for its hosts")
                }
            }
        }
    } else {
        cold(world, migration, decision, moving, (ended, word))
    };
    report.status.source = Some(moving.source.clone());
    report.status.target = Some(moving.target.clone());
    report.status.epoch = moving.epoch;
    if let Some(vm) = object.filter(|_| moving.live) {
        live::measure(world, vm, moving, &mut report.status);
    }
    report
}

fn cold(
    world: &World,
    migration: &VirtualMachineMigration,
    decision: &Decision,
    moving: &VmMove,
    (ended, word): (MigrationOutcome, &'static str),
) -> Report<VirtualMachineMigrationStatus> {
    let status = &decision.report.status;
    if moving.returning {
        let why = status.failures.as_ref().map(|f| f.message.clone()).unwrap_or_default();
        let message = format!("{} could not start it: {why}", moving.target);
        let message = if why.is_empty() { "it starts where it was".to_owned() } else { message };
        return report(migration, ended, word, message);
    }
    if status.printable_status == VmState::Stopped || status.printable_status == VmState::Error {
        return report(migration, ended, word, "the VM was stopped meanwhile");
    }
    let open = status.placements.iter().find(|p| p.epoch >= moving.epoch && moving.epoch > 0);
    let runs = open.is_some_and(|p| {
        let uid = world.vms.values().find_map(|vm| {
            let s = vm.status.as_ref()?.migration.as_ref()?;
            (s.uid == moving.uid).then(|| vm.metadata.uid.clone())
        });
        let domain = world.order(&p.host, &uid.flatten().unwrap_or_default());
        p.host == moving.target
            && domain.and_then(|d| d.status.as_ref()).is_some_and(|s| {
                s.epoch == p.epoch && s.state == DomainState::Running && !s.released
            })
    });
    if runs {
        let message = format!("runs on {}", moving.target);
        return report(migration, MigrationOutcome::Succeeded, "Moved", message);
    }
    let (reason, message) = if moving.epoch == 0 {
        ("Stopping", format!("stops on {}", moving.source))
    } else {
        ("Starting", format!("starts on {}", moving.target))
    };
    report(migration, MigrationOutcome::Pending, reason, message)
}

/// Members of a group follow one of them; they stop following when that one was called off.
fn abort_followers(
    world: &World,
    key: &Key,
    migration: &VirtualMachineMigration,
    report: &Report<VirtualMachineMigrationStatus>,
    out: &mut Plan,
) {
    let called_off = migration.metadata.deletion_timestamp.is_some()
        && report.status.outcome == MigrationOutcome::Aborted;
    if !called_off {
        return;
    }
    for (other, follower) in &world.migrations {
        let leader = follower.metadata.labels.as_ref().and_then(|l| l.get(LEADER_LABEL));
        if other.namespace == key.namespace
            && leader == Some(&key.name)
            && follower.metadata.deletion_timestamp.is_none()
            && !is_over(follower)
        {
            let basis = basis(&follower.metadata);
            out.intents.push(Intent::DeleteMigration { key: other.clone(), basis });
        }
    }
}

/// A move that was not begun: it begins, waits, or is refused.
fn wanted(
    world: &World,
    facts: &[HostFacts],
    cluster: &Cluster,
    decisions: &mut BTreeMap<Key, Decision>,
    load: &mut Load,
    (key, migration): (&Key, &VirtualMachineMigration),
    out: &mut Plan,
) -> Report<VirtualMachineMigrationStatus> {
    let given_up = cause(migration).is_some() && age(world, migration) >= KEPT;
    let wait = |why: String| {
        if given_up {
            return report(migration, MigrationOutcome::Refused, "Refused", why);
        }
        report(migration, MigrationOutcome::Pending, "Waiting", why)
    };
    // What follows waits for the one that it follows.
    let ahead = leader(migration).map(|name| Key::new(&key.namespace, name));
    let waits = ahead.and_then(|ahead| {
        let first = world.migrations.get(&ahead).filter(|first| !is_over(first))?;
        let vm = Key::new(&ahead.namespace, &first.spec.vm);
        moving_by(decisions.get(&vm), first).is_none().then_some(ahead)
    });
    if let Some(ahead) = waits {
        return wait(format!("waits for {}", ahead.name));
    }
    let going = match preflight(world, facts, cluster, decisions, key, migration) {
        Ok(going) => going,
        Err(No::Wait(why)) => {
            out.wake(world.now + 1_000);
            return wait(why);
        }
        Err(No::Refuse(why)) => {
            return report(migration, MigrationOutcome::Refused, "Refused", why);
        }
    };
    let vm_key = Key::new(&key.namespace, &migration.spec.vm);
    let (Some(vm), Some(decision)) = (world.vms.get(&vm_key), decisions.get_mut(&vm_key)) else {
        return wait("waits for its VM".to_owned());
    };
    let source = decision.report.status.host.clone().unwrap_or_default();
    if leader(migration).is_none() {
        let others = || going.others.iter();
        let mut whole = load.clone();
        whole.unbook(others().map(|other| Key::new(&other.vm.namespace, &other.vm.name)));
        let sources =
            || std::iter::once(source.as_str()).chain(others().map(|other| other.from.as_str()));
        if !whole.takes(world, sources(), &going.to) {
            out.wake(world.now + 1_000);
            return wait(
                "waits for other moves: migrationsPerHost or migrationsPerCluster".to_owned(),
            );
        }
        sources().for_each(|source| whole.add(source, &going.to));
        *load = whole;
    }
    let mut told = report(
        migration,
        MigrationOutcome::Pending,
        "Accepted",
        format!("from {source} to {}", going.to),
    );
    told.status.source = Some(source);
    told.status.target = Some(going.to.clone());
    if !has_finalizer(migration) {
        let basis = basis(&migration.metadata);
        out.intents.push(Intent::MigrationFinalizer { key: key.clone(), basis, add: true });
        return told;
    }
    if decision.intents.iter().any(|i| matches!(i, Intent::Place { .. })) {
        return told;
    }
    if !begin(world, facts, vm, decision, (key, migration), &going) {
        return if given_up { wait("waits for its hosts".to_owned()) } else { told };
    }
    told.status.epoch = decision.report.status.migration.as_ref().map_or(0, |m| m.epoch);
    out.event(
        About::Vm(vm_key),
        "VmMoving",
        false,
        format!("from {} to {}", told.status.source.as_deref().unwrap_or("?"), going.to),
    );
    for other in going.others {
        follow(world, key, &other, &going.to, out);
    }
    told
}

/// A move for a member of the group, unless it has one.
fn follow(world: &World, leader: &Key, other: &Mover, to: &str, out: &mut Plan) {
    let has = world.migrations.iter().any(|(k, m)| {
        k.namespace == other.vm.namespace && m.spec.vm == other.vm.name && !is_over(m)
    });
    if has {
        return;
    }
    let vm = Key::new(&other.vm.namespace, &other.vm.name);
    let epoch = world.vms.get(&vm).and_then(|v| v.status.as_ref()).map_or(0, |s| s.epoch);
    out.intents.push(Intent::CreateMigration {
        key: Key::new(&vm.namespace, format!("{}-together-{epoch}", vm.name)),
        spec: VirtualMachineMigrationSpec {
            vm: vm.name,
            target: Some(to.to_owned()),
            live: Some(other.live),
        },
        cause: "Together",
        leader: Some(leader.name.clone()),
    });
}

/// Every check, before anything is done at any host.
fn preflight(
    world: &World,
    facts: &[HostFacts],
    cluster: &Cluster,
    decisions: &BTreeMap<Key, Decision>,
    key: &Key,
    migration: &VirtualMachineMigration,
) -> Result<Going, No> {
    let refuse = |why: String| Err(No::Refuse(why));
    let name = &migration.spec.vm;
    let vm_key = Key::new(&key.namespace, name);
    let Some(vm) = world.vms.get(&vm_key) else {
        return refuse(format!("there is no VM {name} in namespace {}", key.namespace));
    };
    if vm.metadata.deletion_timestamp.is_some() {
        return refuse(format!("VM {name} is being deleted"));
    }
    if vm.spec.management == Management::Watched {
        return refuse(format!("VM {name} is only watched: Stockade does not move it"));
    }
    let Some(decision) = decisions.get(&vm_key) else {
        return Err(No::Wait("waits for its VM".to_owned()));
    };
    if is_paused(world) {
        return Err(No::Wait("automation is paused".to_owned()));
    }
    let status = &decision.report.status;
    if let Some(other) = &status.migration {
        let theirs = object(world, &key.namespace, other);
        let by_user = theirs.is_some_and(|m| cause(m).is_none() && !is_over(m));
        let message = format!("VM {name} is being moved already, by {}", other.name);
        return if by_user { refuse(message) } else { Err(No::Wait(message)) };
    }
    if let Some(target) = &migration.spec.target
        && !world.hosts.contains_key(target)
    {
        return refuse(format!("host {target} is not declared"));
    }
    let source = status.host.clone().unwrap_or_default();
    if live::unanswered(world, vm, &source) {
        return Err(No::Wait(format!("{source} has yet to say what its last move came to")));
    }
    match status.printable_status {
        VmState::Running => {}
        state => return refuse(format!("VM {name} is not running: it is {state:?}")),
    }
    if vm.spec.paused {
        return refuse(format!("VM {name} is paused; resume it first"));
    }
    match facts_of(facts, &source).map(|f| f.state) {
        Some(
            HostState::Ready
            | HostState::Cordoned
            | HostState::Maintenance
            | HostState::ShuttingDown,
        ) => {}
        Some(HostState::Suspect) => {
            return Err(No::Wait(format!("{source} has missed beats")));
        }
        state => {
            let state = state.unwrap_or_default();
            return refuse(format!("its host {source} is {state:?}"));
        }
    }
    let live = migration.spec.live.unwrap_or(vm.spec.migration.live);
    if live && !vm.spec.migration.live {
        return refuse(format!(
            "VM {name} can't be moved live (its spec.migration.live is false); set spec.live to \
             false to move it by stop and start"
        ));
    }
    let row = VmKey::new(&vm_key.namespace, &vm_key.name);
    let target = migration.spec.target.as_deref();
    if let Some(target) = target
        && let Some(f) = facts_of(facts, target)
        && (f.state == HostState::Suspect || (f.state == HostState::Ready && f.refuses.is_some()))
    {
        let why = f.refuses.clone().unwrap_or_default();
        return Err(No::Wait(format!("{target}: {why}")));
    }
    let find = |cluster: &Cluster| match join_of(cluster, &row, target) {
        Some(found) => found,
        None => move_of(cluster, &row, target),
    };
    let found = match find(cluster) {
        Ok(found) => found,
        // What certificates alone keep from going waits for them; who stops for it needs none.
        Err(no) => match find(&cluster.all_live()) {
            Ok(found) if !live => found,
            Ok(_) => return Err(No::Wait(no.to_string())),
            Err(no) => return refuse(no.to_string()),
        },
    };
    let others = found.vms.into_iter().filter(|m| m.vm != row).collect();
    Ok(Going { to: found.to, live, others })
}

/// The compare-and-swap that begins a move.
fn begin(
    world: &World,
    facts: &[HostFacts],
    vm: &VirtualMachine,
    decision: &mut Decision,
    (key, migration): (&Key, &VirtualMachineMigration),
    going: &Going,
) -> bool {
    let mut status = decision.report.status.clone();
    let open: Vec<PlacedEpoch> =
        status.placements.iter().filter(|p| !p.state.is_settled()).cloned().collect();
    let [source] = &open[..] else { return false };
    let Some(target) = facts_of(facts, &going.to) else { return false };
    let mut moving = VmMove {
        name: key.name.clone(),
        uid: migration.metadata.uid.clone().unwrap_or_default(),
        source: source.host.clone(),
        target: going.to.clone(),
        live: going.live,
        source_epoch: source.epoch,
        epoch: 0,
        returning: false,
    };
    let mut domains = Vec::new();
    if going.live {
        let uid = vm.metadata.uid.as_deref().unwrap_or_default();
        let order = world.order(&source.host, uid);
        let Some(order) = order.filter(|d| d.spec.epoch == source.epoch) else { return false };
        let epoch = next_epoch(world, vm, &status);
        let placed = PlacedEpoch {
            epoch,
            host: going.to.clone(),
            host_uid: target.uid.clone(),
            boot_id: target.boot.clone(),
            state: EpochState::Incoming,
            superseded: false,
            unmarked: false,
        };
        moving.epoch = epoch;
        status.epoch = epoch;
        make_room(world, &mut status);
        status.placements.push(placed.clone());
        let before = world.order(&going.to, uid);
        let machine = order.spec.machine.clone();
        let mut write = domain_order(vm, &status, &placed, Want::Incoming, machine, before);
        write.spec.migration = Some(live::order(
            world,
            &moving,
            MigrationSide::Target,
            MigrationStep::Prepare,
            source,
            vm.spec.migration,
        ));
        domains.push(write);
    }
    status.migration = Some(moving);
    decision.report.status = status;
    decision.intents.push(Intent::Place {
        vm: Key::of(&vm.metadata),
        basis: basis(&vm.metadata),
        report: decision.report.clone(),
        domains,
        relies_on: Vec::new(),
    });
    true
}
