//! Reads the host: what the hypervisor lists, which processes are there, what works.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stockade_core::agent::moves::Arrival;
use stockade_core::agent::types::{LiveDomain, LiveState, Presence, StopReason};
use stockade_crds::v1alpha1::{AgentLock, LockReport, MigrationProgress};

use crate::context::{Context, locked, timed};

/// How long a probe of the hook may take, in seconds: the first one of a daemon waits until it has
/// probed what its QEMU can do.
const PROBE: u64 = 40;

/// What one look at the host should take in.
#[derive(Debug, Default)]
pub(crate) struct Look {
    /// When it began.
    pub(crate) began: u64,
    /// Epochs whose process may be there, and libvirt's names, by VM uid.
    pub(crate) epochs: BTreeMap<String, (i64, String)>,
    /// Try the hook with a probe.
    pub(crate) probe: bool,
    /// Look after the lock manager.
    pub(crate) lock: Option<Option<AgentLock>>,
    /// Read the machine's facts.
    pub(crate) facts: bool,
    /// VMs whose move away may be under way.
    pub(crate) moving: Vec<String>,
    /// VMs that come in by a move, of which is not known yet what it took.
    pub(crate) arriving: Vec<String>,
    /// Epochs whose copy must have come in before the look began, by VM uid.
    pub(crate) came_in: BTreeMap<String, i64>,
}

/// What came of the last look at the lock manager.
#[derive(Debug)]
pub(crate) struct LockLook {
    /// The one that was looked for; `None`: none is wanted.
    wanted: Option<AgentLock>,
    /// Why it does not work, if it does not.
    trouble: Option<String>,
}

impl LockLook {
    /// Whether the lock manager that is wanted now is the one that was found to work.
    pub(crate) fn works(look: Option<&Self>, wanted: Option<&AgentLock>) -> bool {
        look.is_some_and(|look| look.wanted.as_ref() == wanted && look.trouble.is_none())
    }

    /// Why the lock manager does not work; empty if it does.
    pub(crate) fn trouble(look: Option<&Self>) -> String {
        let trouble = look.and_then(|look| look.trouble.as_ref());
        trouble.map(|text| text.chars().take(1_000).collect()).unwrap_or_default()
    }
}

/// What it saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) began: u64,
    pub(crate) live: Option<BTreeMap<String, LiveDomain>>,
    pub(crate) presence: BTreeMap<String, Presence>,
    /// Why epochs that are gone ended, as far as the hypervisor still knows.
    pub(crate) reasons: BTreeMap<String, StopReason>,
    pub(crate) hook: Option<bool>,
    pub(crate) lock: Option<LockLook>,
    /// Moves that are under way, and how far; `None`: none is.
    pub(crate) jobs: BTreeMap<String, Option<MigrationProgress>>,
    /// Uids of VMs of whose moves away nothing could be read.
    pub(crate) silent: BTreeSet<String>,
    /// What moves took that are over and brought a VM here which runs now.
    pub(crate) arrivals: BTreeMap<String, Arrival>,
    /// Epochs whose copy had come in before the look began, by VM uid.
    pub(crate) came_in: BTreeMap<String, i64>,
}

/// For so long the moves are asked after although some do not answer.
const MOVES_MILLIS: u64 = 5_000;

/// Looks once.
pub(crate) async fn look(context: Arc<Context>, look: Look) -> Seen {
    let hypervisor = &context.ports.hypervisor;
    let mut seen = Seen { began: look.began, came_in: look.came_in, ..Seen::default() };
    // Before the list: what is listed as running after its job was over did not leave.
    let until = context.now() + MOVES_MILLIS;
    for uid in &look.moving {
        match timed("read move", uid, 3, hypervisor.migration_job(uid)).await {
            Ok(job) => {
                seen.jobs.insert(uid.clone(), job);
            }
            // One that hangs says nothing of the others, but a daemon that hangs does.
            Err(error) if error.is_unknown() && context.now() >= until => break,
            Err(_) => {}
        }
    }
    seen.silent = look.moving.into_iter().filter(|uid| !seen.jobs.contains_key(uid)).collect();
    match timed("list", "domains", 5, hypervisor.list()).await {
        Ok(domains) => {
            seen.live = Some(domains.into_iter().map(|d| (d.uuid.clone(), d)).collect());
        }
        Err(error) => tracing::warn!(%error, "the hypervisor does not answer"),
    }
    for uid in &look.arriving {
        let listed = seen.live.as_ref().and_then(|live| live.get(uid));
        if listed.is_some_and(|d| d.state == LiveState::Running) {
            match timed("read move", uid, 3, hypervisor.arrival(uid)).await {
                Ok(Some(arrival)) => drop(seen.arrivals.insert(uid.clone(), arrival)),
                Ok(None) => {}
                Err(error) => {
                    tracing::info!(vm = uid, %error, "what its move took stays unknown");
                    seen.arrivals.insert(uid.clone(), Arrival::default());
                }
            }
        }
    }
    for (uid, (epoch, name)) in &look.epochs {
        let listed = seen.live.as_ref().and_then(|live| live.get(uid));
        if listed.is_some_and(|d| d.epoch == *epoch && d.state != LiveState::Dying) {
            seen.presence.insert(uid.clone(), Presence::Present);
            continue;
        }
        let presence = async { Ok(hypervisor.presence(uid, *epoch).await) };
        let presence = timed("look for", uid, 3, presence).await.unwrap_or(Presence::Unknown);
        seen.presence.insert(uid.clone(), presence);
        if presence == Presence::Gone && listed.is_none() {
            // Its event may have come while no agent was there to hear it.
            let reason = async { Ok(hypervisor.end_reason(uid, name, *epoch).await) };
            if let Ok(Some(reason)) = timed("read end of", uid, 3, reason).await {
                seen.reasons.insert(uid.clone(), reason);
            }
        }
    }
    if look.probe && seen.live.is_some() {
        seen.hook =
            Some(timed("probe", "hook", PROBE, hypervisor.probe_hook()).await.unwrap_or(false));
    }
    if let Some(lock) = &look.lock {
        let call = hypervisor.ensure_lock_manager(lock.as_ref());
        let trouble = timed("check", "lock manager", 10, call).await.err().map(|error| {
            tracing::warn!(%error, "the lock manager does not work");
            error.to_string()
        });
        seen.lock = Some(LockLook { wanted: lock.clone(), trouble });
    }
    if look.facts
        && let Ok(facts) = timed("read", "machine", 10, context.ports.machine.facts()).await
    {
        *locked(&context.facts) = facts;
    }
    if let Ok(armed) = timed("read", "watchdog", 5, context.ports.watchdog.armed()).await {
        *locked(&context.armed) = armed;
    }
    seen
}

/// What is read of running VMs now and then.
#[derive(Debug, Default)]
pub(crate) struct Inspected {
    pub(crate) addresses: BTreeMap<String, Vec<String>>,
    pub(crate) locks: BTreeMap<String, LockReport>,
}

/// Reads addresses, use and locks of running VMs; what can't be read is left out.
pub(crate) async fn inspect(context: Arc<Context>, vms: Vec<(String, bool)>) -> Inspected {
    let hypervisor = &context.ports.hypervisor;
    let mut inspected = Inspected::default();
    let mut usage = BTreeMap::new();
    for (uid, with_lock) in vms {
        match timed("read addresses", &uid, 3, hypervisor.addresses(&uid)).await {
            Ok(mut addresses) => {
                addresses.truncate(32);
                inspected.addresses.insert(uid.clone(), addresses);
            }
            // If one call hangs, all would.
            Err(error) if error.is_unknown() => break,
            Err(_) => {}
        }
        if let Ok(used) = timed("read usage", &uid, 3, hypervisor.usage(&uid)).await {
            usage.insert(uid.clone(), used);
        }
        if with_lock
            && let Ok(Some(lock)) = timed("read lock", &uid, 3, hypervisor.lock(&uid)).await
        {
            inspected.locks.insert(uid, lock);
        }
    }
    *locked(&context.usage) = usage;
    inspected
}
