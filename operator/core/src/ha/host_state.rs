//! What is true of each host now, and the word for it.
//!
//! ```text
//! Joining ─first report─► Ready ⇄ Cordoned ⇄ Maintenance          (the user's mode)
//! Ready ─missed beats─► Suspect ─both paths silent─► Lost ─► Fencing ─proof─► Fenced
//!                          │ storage beats                    │ no proof to be had
//!                          ▼                                  ▼
//!                       Isolated                         AwaitingProof
//! Ready ─init says so─► ShuttingDown ─all released─► Stopped
//! any silent state ─it beats again─► Ready (…);  Fenced ─a new boot beats─► Ready
//! ```
//! The state is computed from evidence each time; nothing remembers it.

use std::collections::BTreeSet;

use stockade_crds::v1alpha1::{GoingDown, HostMode, HostState, Management, ProofKind};

use super::evidence::{Life, Observers, StorageSilence};
use super::fencing::binds;
use crate::world::{Millis, World};

/// What is true of one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// Its name.
    pub name: String,
    /// Its uid, once it has reported.
    pub uid: String,
    /// The boot that beat last.
    pub boot: String,
    /// Silence to the API.
    pub api_silence: Millis,
    /// Shortest silence on a storage on which somebody who is well looks; `None`: there is none.
    pub storage_silence: Option<Millis>,
    /// That silence grows with time; if not, news of it come from who looks.
    pub storage_silence_runs: bool,
    /// Milliseconds since the last beat that is known of on any of these storages, at least.
    pub storage_age: Option<Millis>,
    /// On some storage nobody who is well looks for its beats: one may be missed there.
    pub unseen_path: bool,
    /// Evidence for people: path, silence, observer.
    pub evidence: Vec<(String, Millis, String)>,
    /// It beats to the API.
    pub alive: bool,
    /// Its agent said that it would be silent for a while, and that is not over: its silence is no
    /// reason to act yet, though its power is read.
    pub excused: bool,
    /// Silent on every path beyond `suspectSeconds`.
    pub silent_all: bool,
    /// Since when every path is silent; `None`: some path is not.
    pub silent_since: Option<Millis>,
    /// It said that it goes down.
    pub going_down: Option<GoingDown>,
    /// It said that everything is released and that this boot is over.
    pub went_down_cleanly: bool,
    /// The proof that stands against its last boot.
    pub proof: Option<ProofKind>,
    /// VMs have unsettled epochs in this boot, or a copy without an order runs in it.
    pub needed: bool,
    /// The word.
    pub state: HostState,
    /// Why it takes no VM; `None`: it takes them.
    pub refuses: Option<String>,
    /// It is cordoned and otherwise well: VMs that were on it may start on it again.
    pub keeps_its_own: bool,
    /// Its power is to be cut, and the API does not say so yet.
    pub shot_due: bool,
}

/// What is true of every host, by name.
#[must_use]
pub fn assess(world: &World) -> Vec<HostFacts> {
    let policy = world.policy_spec();
    let heartbeat = seconds(policy.heartbeat_seconds);
    let suspect = seconds(policy.suspect_seconds);
    let act = seconds(policy.act_seconds);
    // Nothing is recovered of a VM that is only watched.
    let managed = || world.vms.values().filter(|vm| vm.spec.management == Management::Managed);
    let uids: BTreeSet<&str> = managed().filter_map(|vm| vm.metadata.uid.as_deref()).collect();
    let needed: BTreeSet<(&str, &str)> = managed()
        .filter_map(|vm| vm.status.as_ref())
        .flat_map(|s| &s.placements)
        .filter(|p| !p.state.is_settled())
        .map(|p| (p.host_uid.as_str(), p.boot_id.as_str()))
        .collect();
    let observers = world.guards.observer_health.then(|| world.lives.observers(world.now));
    world
        .hosts
        .iter()
        .map(|(name, host)| {
            let agent = world.agents.get(name);
            let report = agent.and_then(|a| a.status.as_ref());
            let life = world.lives.hosts.get(name);
            let uid = host
                .status
                .as_ref()
                .and_then(|s| s.host_uid.clone())
                .or_else(|| report.map(|r| r.host_uid.clone()))
                .unwrap_or_default();
            let mut facts = HostFacts {
                name: name.clone(),
                boot: boot_of(life, report.map(|r| r.boot_id.as_str())),
                uid,
                ..HostFacts::default()
            };
            paths(world, agent.map(|a| &a.spec), life, observers.as_ref(), &mut facts);
            let joined = !facts.uid.is_empty() && !facts.boot.is_empty();
            let health = world.guards.observer_health;
            let beats = life.is_some_and(|l| l.lease_at.is_some());
            facts.alive = joined && beats && facts.api_silence < suspect;
            facts.excused = life.is_some_and(|l| facts.api_silence < l.lease.promised);
            let both = both_silent(world, &facts);
            facts.silent_all = joined && !facts.excused && both.is_some_and(|s| s >= suspect);
            facts.silent_since = both
                .filter(|s| joined && *s > heartbeat + heartbeat / 2 && (world.fresh || !health))
                .map(|s| world.now.saturating_sub(s));
            let this_boot = report.filter(|r| r.boot_id == facts.boot);
            facts.going_down = this_boot.and_then(|r| r.going_down);
            facts.went_down_cleanly = this_boot.is_some_and(|r| r.down);
            facts.proof = world
                .standing_proof(&facts.uid, &facts.boot)
                .and_then(|f| f.status.as_ref().and_then(|s| s.proof));
            facts.needed = needed.contains(&(facts.uid.as_str(), facts.boot.as_str()))
                || this_boot.is_some_and(|r| {
                    r.inventory.iter().any(|copy| uids.contains(copy.uuid.as_str()))
                });
            facts.state = state(&facts, host.spec.mode, joined, [heartbeat, suspect, act]);
            facts.refuses = refusal(world, &facts, host.spec.mode, this_boot);
            facts.keeps_its_own = facts.state == HostState::Cordoned && {
                let open = HostFacts { state: HostState::Ready, ..facts.clone() };
                refusal(world, &open, HostMode::Active, this_boot).is_none()
            };
            facts
        })
        .collect()
}

/// What is true of a boot whose host is not declared any more: how long it has been silent on every
/// path. Nothing but a human's word can prove it dead (safety §5).
#[must_use]
pub fn undeclared(world: &World, host: &str, uid: &str, boot: &str) -> HostFacts {
    let seen = world.lives.beat_seen(host, boot).max(world.lives.echo_since);
    let silence = seen
        .filter(|_| world.lives.api_fresh(world.now))
        .map_or(0, |seen| world.now.saturating_sub(seen));
    HostFacts {
        name: host.to_owned(),
        uid: uid.to_owned(),
        boot: boot.to_owned(),
        api_silence: silence,
        silent_since: Some(world.now.saturating_sub(silence)),
        ..HostFacts::default()
    }
}

/// When silence, if it goes on, makes something else of a host: so that no beat of another host
/// need wake the planner for it.
#[must_use]
pub fn next_look(world: &World, hosts: &[HostFacts]) -> Option<Millis> {
    let policy = world.policy_spec();
    let beat = seconds(policy.heartbeat_seconds);
    let steps = [
        beat + beat / 2 + 1,
        beat * 2 + 1,
        seconds(policy.suspect_seconds),
        seconds(policy.act_seconds),
        seconds(policy.isolated_seconds) + beat,
    ];
    hosts
        .iter()
        .flat_map(|facts| {
            // What an ordinary beat promises ends before its successor is late.
            let promised = world.lives.hosts.get(&facts.name).map_or(0, |l| l.lease.promised);
            let promised = if promised > beat + beat / 2 { promised } else { 0 };
            let both = both_silent(world, facts).filter(|_| facts.storage_silence_runs);
            [Some(facts.api_silence), both].map(|s| s.map(|s| (s, promised)))
        })
        .flatten()
        .filter_map(|(silence, promised)| {
            steps.iter().chain([&promised]).filter(|s| **s > silence).min().map(|s| s - silence)
        })
        .min()
        .map(|left| world.now + left)
}

/// The facts of one host; `hosts` are sorted by name, as [`assess`] leaves them.
#[must_use]
pub fn facts_of<'a>(hosts: &'a [HostFacts], name: &str) -> Option<&'a HostFacts> {
    hosts.binary_search_by(|h| h.name.as_str().cmp(name)).ok().and_then(|i| hosts.get(i))
}

/// Whole seconds of a policy as milliseconds.
#[must_use]
pub fn seconds(s: i32) -> Millis {
    u64::try_from(s).unwrap_or(0) * 1000
}

fn boot_of(life: Option<&Life>, reported: Option<&str>) -> String {
    match life {
        Some(life) if !life.lease.boot_id.is_empty() => life.lease.boot_id.clone(),
        _ => reported.unwrap_or_default().to_owned(),
    }
}

fn paths(
    world: &World,
    spec: Option<&stockade_crds::v1alpha1::HostAgentSpec>,
    life: Option<&Life>,
    observers: Option<&Observers<'_>>,
    facts: &mut HostFacts,
) {
    let health = world.guards.observer_health;
    facts.api_silence = world.lives.api_silence(&facts.name, world.now, health);
    facts.evidence.push(("api".to_owned(), facts.api_silence, "controller".to_owned()));
    let mut shortest: Option<StorageSilence> = None;
    for storage in spec.iter().flat_map(|s| &s.storages) {
        if !life.is_some_and(|l| l.storage.contains_key(&storage.name)) {
            continue;
        }
        match world.lives.storage_silence(&facts.name, &storage.name, world.now, observers) {
            Some(found) => {
                let path = format!("storage/{}", storage.name);
                facts.evidence.push((path, found.silence, found.observer.clone()));
                facts.storage_age = Some(facts.storage_age.map_or(found.age, |a| a.min(found.age)));
                if shortest.as_ref().is_none_or(|s| found.silence < s.silence) {
                    shortest = Some(found);
                }
            }
            None => facts.unseen_path = true,
        }
    }
    facts.storage_silence_runs = shortest.as_ref().is_some_and(|s| s.runs);
    facts.storage_silence = shortest.map(|s| s.silence);
}

fn both_silent(world: &World, facts: &HostFacts) -> Option<Millis> {
    if !world.guards.second_path {
        return Some(facts.api_silence);
    }
    facts.storage_silence.map(|storage| storage.min(facts.api_silence))
}

fn state(
    facts: &HostFacts,
    mode: HostMode,
    joined: bool,
    [heartbeat, suspect, act]: [Millis; 3],
) -> HostState {
    if !joined {
        return HostState::Joining;
    }
    if facts.went_down_cleanly && !facts.alive {
        return HostState::Stopped;
    }
    if facts.alive && facts.proof.is_none() {
        return match (facts.going_down, mode) {
            (Some(_), _) => HostState::ShuttingDown,
            (None, HostMode::Active) => HostState::Ready,
            (None, HostMode::Cordoned) => HostState::Cordoned,
            (None, HostMode::Maintenance) => HostState::Maintenance,
        };
    }
    if facts.proof.is_some() {
        return HostState::Fenced;
    }
    let storage_alive = facts.storage_silence.is_some_and(|s| s < suspect);
    // A beat is seen up to two intervals late: only one that is younger than the last Lease by
    // more says that the host lives on without the API.
    let outlived = |age: Millis| facts.api_silence > age + heartbeat * 5 / 2;
    if storage_alive && facts.storage_age.is_some_and(outlived) {
        return HostState::Isolated;
    }
    if mode == HostMode::Maintenance && !facts.needed {
        return HostState::Maintenance;
    }
    let lost = facts.api_silence >= act && !storage_alive && !facts.excused;
    if lost { HostState::Lost } else { HostState::Suspect }
}

/// Whether this observer has seen a host beat: the first sight may be of a dead host's Lease.
#[must_use]
pub(crate) fn is_confirmed(world: &World, host: &str) -> bool {
    world.lives.hosts.get(host).is_some_and(|l| l.lease_changes >= 2)
}

fn refusal(
    world: &World,
    facts: &HostFacts,
    mode: HostMode,
    report: Option<&stockade_crds::v1alpha1::HostAgentStatus>,
) -> Option<String> {
    let host = world.hosts.get(&facts.name)?;
    if host.metadata.deletion_timestamp.is_some() {
        return Some("is being deleted".to_owned());
    }
    match world.namespaces.get(&facts.name) {
        Some(ns) if ns.terminating => {
            return Some("its namespace is being deleted".to_owned());
        }
        Some(ns) if !ns.ours => {
            return Some("its namespace carries another's label".to_owned());
        }
        _ => {}
    }
    match facts.state {
        HostState::Ready => {}
        HostState::Cordoned => return Some("cordoned".to_owned()),
        HostState::Maintenance => return Some("in maintenance".to_owned()),
        HostState::Joining => return Some("has never reported".to_owned()),
        HostState::ShuttingDown => return Some("is shutting down".to_owned()),
        HostState::Stopped => return Some("is shut down".to_owned()),
        HostState::Fenced => return Some("is fenced".to_owned()),
        HostState::Suspect
        | HostState::Isolated
        | HostState::Lost
        | HostState::Fencing
        | HostState::AwaitingProof => return Some("does not report".to_owned()),
    }
    if mode != HostMode::Active {
        return Some("is not Active".to_owned());
    }
    if world.fence_of(&facts.uid, &facts.boot).is_some_and(|f| binds(world, f)) {
        return Some("was taken for dead, and VMs of it were placed; reboot it".to_owned());
    }
    let Some(report) = report else {
        return Some("has not reported in this boot".to_owned());
    };
    if report.down {
        return Some("has ended this boot for VMs; reboot it".to_owned());
    }
    if report.host_uid != facts.uid {
        return Some(format!(
            "another machine ({}) reports under this name; give it a Host of its own",
            report.host_uid
        ));
    }
    if !report.hypervisor_ready {
        return Some("its hypervisor does not answer".to_owned());
    }
    if !report.hook_ready {
        return Some("its libvirt hook does not refuse unordered starts yet".to_owned());
    }
    let agent = world.agents.get(&facts.name)?;
    if agent.spec.arm && !report.armed {
        return Some("its watchdog is not armed yet".to_owned());
    }
    if !is_confirmed(world, &facts.name) {
        return Some("its beats are not confirmed yet".to_owned());
    }
    // Missed beats make a poor target even before it is Suspect.
    if facts.api_silence > seconds(world.policy_spec().heartbeat_seconds) * 2 {
        return Some("has missed beats".to_owned());
    }
    None
}
