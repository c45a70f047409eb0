//! From silence to proof: which fence call comes next, and what the calls prove.
//!
//! ```text
//! a beat is missed ─► read power ─off─► certificate ─► off order ─► read again: proof
//!                          │ on                                        (safety §3)
//! both paths silent for actSeconds ─► certificate ─► off ─► read back: proof
//!                          │ device fails twice: next level, then from the start with back-off
//! ```

mod calls;
mod plugs;
mod proof;
mod report;

use std::collections::BTreeSet;

use stockade_crds::names::host_fence_name;
use stockade_crds::v1alpha1::{
    DomainState, End, FenceAction, HostFence, HostFenceSpec, HostState, IsolatedHost, ProofKind,
    StopFailure,
};

use self::calls::{
    Answers, answers, calls, counts_since, device, failed_rounds, levels, obeyed_in_vain,
    off_by_one_device, read_off_before, unread,
};
use self::plugs::tests;
pub use self::proof::elapsed_bound;
use self::proof::elapsed_possible;
pub use self::report::binds;
use self::report::report;
use super::brake::{self, Brake};
use super::host_state::{HostFacts, seconds};
use crate::plan::{About, Intent, Plan};
use crate::world::{FenceRecord, FenceResult, Millis, OrderKey, World};

/// Failed rounds on a level before the next one is tried.
const ROUNDS_PER_LEVEL: usize = 1;
/// Pause after a failed round.
const RETRY_MILLIS: Millis = 2_000;
/// Further pause for each time that all levels have failed.
const CYCLE_MILLIS: Millis = 15_000;
/// So many off orders that a device says it obeyed, and reads on all the same, are enough: from
/// then on it is read, and ordered again after a pause that lets a boot by hand come up.
const VAIN_ROUNDS: usize = 2;
/// That pause.
const VAIN_PAUSE_MILLIS: Millis = 900_000;
/// How often a plug is read that is not to be cut for the time being.
const PATIENT_READ_MILLIS: Millis = 10_000;
/// A device that failed for so long and reads on again may have been switched on with its host.
const DARK_MILLIS: Millis = 60_000;
/// How long such a host's boot is waited for before it is shot.
const BOOT_MILLIS: Millis = 70_000;
/// A storage that has worked elsewhere for so long is not what keeps a VM from ending.
const STORAGE_WELL_MILLIS: Millis = 15_000;

/// How far fencing may go for a host now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    /// Only read; an off order may follow a reading of off.
    Read,
    /// Off may be ordered.
    Act,
}

/// Plans the next calls, opens and reports certificates, and refines the hosts' states.
pub fn plan(world: &World, hosts: &mut [HostFacts], brake: Brake, out: &mut Plan) {
    let mut driven = BTreeSet::new();
    for facts in hosts.iter_mut() {
        if facts.uid.is_empty() || facts.boot.is_empty() {
            continue;
        }
        let certificate = world.fence_of(&facts.uid, &facts.boot).cloned();
        if let Some(stage) = stage(world, facts, brake) {
            driven.insert(facts.name.clone());
            drive(world, facts, stage, brake, certificate.as_deref(), out);
        }
        refine(world, facts, brake, certificate.as_deref());
    }
    brake::note_first(world, hosts, out);
    for fence in world.fences.values() {
        report(world, hosts, fence, &driven, out);
    }
    tests(world, hosts, out);
}

fn stage(world: &World, facts: &HostFacts, brake: Brake) -> Option<Stage> {
    let policy = world.policy_spec();
    let needed = facts.needed || !world.guards.needed;
    if !world.fresh || world.policy.is_none() || !needed || facts.proof.is_some() {
        return None;
    }
    if crate::lineage::is_paused(world) {
        return None;
    }
    if facts.went_down_cleanly {
        return None;
    }
    let stuck = policy.stop_failure == StopFailure::Fence && has_stuck_vm(world, facts);
    let isolated = policy.isolated_host == IsolatedHost::Fence
        && facts.state == HostState::Isolated
        && !facts.excused
        && facts.api_silence
            >= seconds(policy.isolated_seconds) + seconds(policy.heartbeat_seconds);
    let spared = brake.spares(world, facts);
    if (stuck || isolated) && !spared {
        return Some(Stage::Act);
    }
    let since = facts.silent_since?;
    let silence = world.now.saturating_sub(since);
    if silence < seconds(policy.act_seconds) || spared || facts.excused {
        // What is ordered on a reading alone needs every path silent, not two (safety §3).
        (!facts.unseen_path).then_some(Stage::Read)
    } else {
        Some(Stage::Act)
    }
}

/// Whether a VM of a live host would not die, or is not drained though its storage works
/// elsewhere: then the host is what stands in the way.
fn has_stuck_vm(world: &World, facts: &HostFacts) -> bool {
    let grace = 2_000;
    // A storage that is back for all is back for some a little earlier.
    let long = |host: &str, storage: &str| {
        let since = world.seen_since.get(&format!("storage/{host}/{storage}"));
        since.is_none_or(|at| world.now.saturating_sub(*at) >= STORAGE_WELL_MILLIS)
    };
    let works_elsewhere = |storage: &str| {
        world.agents.iter().any(|(name, agent)| {
            let mut all = agent.status.iter().flat_map(|r| &r.storages);
            *name != facts.name && all.any(|s| s.name == storage && s.ready) && long(name, storage)
        })
    };
    world.domains.iter().any(|(OrderKey { vm_uid, host }, d)| {
        host == &facts.name
            && d.spec.boot_id == facts.boot
            && d.status.as_ref().is_some_and(|s| {
                // One that left by somebody's hand does not hang here.
                s.state == DomainState::StopFailed
                    && !s.released
                    && s.end != Some(End::Migrated)
                    && d.spec.machine.disks.iter().all(|disk| works_elsewhere(&disk.storage))
            })
            && world.age_of(&format!("domain/{host}/{vm_uid}")) >= grace
    })
}

/// Whether the policy takes power for a proof at all: if not, nobody's power is cut.
fn power_counts(world: &World) -> bool {
    let proofs = &world.policy_spec().accepted_proofs;
    proofs.iter().any(|all| all.contains(&ProofKind::Power))
}

fn drive(
    world: &World,
    facts: &HostFacts,
    stage: Stage,
    brake: Brake,
    certificate: Option<&HostFence>,
    out: &mut Plan,
) {
    let since = counts_since(world, facts);
    let levels = levels(world, facts);
    if stage == Stage::Act && certificate.is_none() {
        open(world, facts, out);
        return;
    }
    let power = power_counts(world);
    if levels.is_empty() || !power {
        // A human's word or elapsed time is all there is: the certificate waits for it.
        let policy = world.policy_spec();
        if certificate.is_none() && world.now.saturating_sub(since) >= seconds(policy.act_seconds) {
            open(world, facts, out);
        }
        return;
    }
    let rounds: Vec<(usize, Option<Millis>)> = levels
        .iter()
        .map(|level| {
            level
                .devices
                .iter()
                .map(|d| {
                    if device(world, d, &facts.name).is_none() {
                        return (usize::MAX, None);
                    }
                    failed_rounds(&calls(world, facts, d, since))
                })
                .max()
                .unwrap_or((usize::MAX, None))
        })
        .collect();
    // A level that is no use at present is left to the others, if there are any.
    let devices = |index: usize| levels.get(index).into_iter().flat_map(|l| &l.devices);
    let patient: Vec<bool> = (0..levels.len())
        .map(|i| devices(i).any(|d| only_read(world, &calls(world, facts, d, since))))
        .collect();
    let usable: Vec<usize> = (0..rounds.len()).filter(|i| rounds[*i].0 != usize::MAX).collect();
    let best = usable.iter().min_by_key(|i| (patient[**i], rounds[**i].0 / ROUNDS_PER_LEVEL, **i));
    let Some(&index) = best else { return };
    let (failed, last) = rounds[index];
    if stage == Stage::Act && failed >= ROUNDS_PER_LEVEL {
        // Every one that failed is read, so that the first that answers is used.
        for index in usable.iter().copied().filter(|i| patient[*i]) {
            for name in devices(index) {
                read_patiently(world, facts, name, since, out);
            }
        }
        if patient[index] {
            return;
        }
    }
    let back = devices(index).any(|d| {
        let calls = calls(world, facts, d, since);
        matches!(answers(&calls, DARK_MILLIS), Answers::Again { .. })
    });
    let cycle = Millis::try_from(failed / ROUNDS_PER_LEVEL).unwrap_or(Millis::MAX);
    if let Some(last) = last.filter(|_| !back) {
        let pause = RETRY_MILLIS + CYCLE_MILLIS.saturating_mul(cycle.min(20));
        if world.now < last + pause {
            out.wake(last + pause);
            return;
        }
    }
    for name in &levels[index].devices {
        let Some((_, plug)) = device(world, name, &facts.name) else { continue };
        let calls = calls(world, facts, name, since);
        if world
            .fence_log
            .iter()
            .any(|c| c.device == *name && c.host == facts.name && c.finished.is_none())
        {
            continue;
        }
        let spec = (facts, name.as_str(), plug.as_str());
        next_call(world, spec, &calls, stage, brake, certificate, out);
    }
}

/// Whether a device obeyed too often in vain to be ordered again now.
fn is_in_vain(world: &World, calls: &[&FenceRecord]) -> bool {
    obeyed_in_vain(calls, VAIN_ROUNDS).is_some_and(|last| world.now < last + VAIN_PAUSE_MILLIS)
}

/// Whether a plug is to be read for the time being, rather than cut once more.
fn only_read(world: &World, calls: &[&FenceRecord]) -> bool {
    let last = calls.iter().rfind(|c| c.action == FenceAction::Status);
    // It reads off: that is what was waited for.
    if last.is_some_and(|r| r.result == FenceResult::Off) {
        return false;
    }
    is_in_vain(world, calls)
        || match answers(calls, DARK_MILLIS) {
            Answers::Well => false,
            Answers::Not => true,
            Answers::Again { since, dark } => dark && world.now < since + BOOT_MILLIS,
        }
}

/// Reads the plug of a device that is not to be ordered for the time being.
fn read_patiently(world: &World, facts: &HostFacts, name: &str, since: Millis, out: &mut Plan) {
    let Some((_, plug)) = device(world, name, &facts.name) else { return };
    let calls = calls(world, facts, name, since);
    if calls.iter().any(|c| c.finished.is_none()) {
        return;
    }
    let due = calls.last().map_or(0, |c| c.finished.unwrap_or(c.started) + PATIENT_READ_MILLIS);
    if world.now < due {
        out.wake(due);
        return;
    }
    out.intents.push(Intent::Fence {
        host: facts.name.clone(),
        boot_id: facts.boot.clone(),
        device: name.to_owned(),
        plug,
        action: FenceAction::Status,
        acts: false,
    });
}

#[allow(clippy::too_many_arguments)] // One decision over one row of a table.
fn next_call(
    world: &World,
    (facts, name, plug): (&HostFacts, &str, &str),
    calls: &[&FenceRecord],
    stage: Stage,
    brake: Brake,
    certificate: Option<&HostFence>,
    out: &mut Plan,
) {
    let beat = seconds(world.policy_spec().heartbeat_seconds);
    let call = |action| Intent::Fence {
        host: facts.name.clone(),
        boot_id: facts.boot.clone(),
        device: name.to_owned(),
        plug: plug.to_owned(),
        action,
        acts: action == FenceAction::Off && stage == Stage::Act,
    };
    let last_off = calls.iter().rev().find(|c| c.action == FenceAction::Off);
    // A late beat of before the silence may have cost an order the reading that it was given on:
    // it proves nothing, and is given again on the next one.
    let last_off = last_off.filter(|off| {
        stage == Stage::Act
            || off.acts
            || off.finished.is_none()
            || read_off_before(calls, off).is_some()
    });
    let reads = calls.iter().filter(|c| c.action == FenceAction::Status);
    let after_off: Vec<_> = reads
        .clone()
        .filter(|r| last_off.is_some_and(|o| o.finished.is_some_and(|f| r.started >= f)))
        .collect();
    let last_read = reads.clone().next_back();
    match (last_off, stage) {
        (Some(off), _) => {
            let answered_on = after_off.iter().any(|r| r.result == FenceResult::On);
            let after: Vec<&FenceRecord> = after_off.iter().map(|r| **r).collect();
            if answered_on || unread(off, &after) {
                // The round failed; a new one begins, if it may.
                if stage == Stage::Act {
                    out.intents.push(call(FenceAction::Off));
                } else if last_read.is_none_or(|r| world.now >= r.started + beat) {
                    out.intents.push(call(FenceAction::Status));
                } else if let Some(r) = last_read {
                    out.wake(r.started + beat);
                }
                return;
            }
            // What was ordered on a reading may prove nothing: the plug was never seen to read on, or
            // the readings were interrupted. Then silence itself stands for an order.
            let reads_off = after.iter().any(|r| r.result == FenceResult::Off);
            let long = off.finished.is_some_and(|f| world.now >= f + 2 * beat);
            if stage == Stage::Act && !off.acts && reads_off && long {
                out.intents.push(call(FenceAction::Off));
                return;
            }
            // Read back: at once after an order to act, a beat apart otherwise.
            let due = if off.acts {
                last_read
                    .map_or(0, |r| if r.started >= off.started { r.started + 1_000 } else { 0 })
            } else {
                last_read.map_or(0, |r| r.started + beat)
            };
            if world.now >= due {
                out.intents.push(call(FenceAction::Status));
            } else {
                out.wake(due);
            }
        }
        (None, Stage::Act) => out.intents.push(call(FenceAction::Off)),
        (None, Stage::Read) => match last_read {
            Some(read) if read.result == FenceResult::Off => {
                let together = off_by_one_device(world, name);
                if together >= brake.limit {
                    out.wake(world.now + beat);
                } else if certificate.is_none() {
                    open(world, facts, out);
                } else {
                    out.intents.push(call(FenceAction::Off));
                }
            }
            Some(read) if world.now < read.started + beat => out.wake(read.started + beat),
            _ => out.intents.push(call(FenceAction::Status)),
        },
    }
}

fn open(world: &World, facts: &HostFacts, out: &mut Plan) {
    let name = host_fence_name(&facts.name, &facts.boot);
    if world.fences.contains_key(&name) {
        return;
    }
    let reason = format!(
        "silent to the API for {} s{}",
        facts.api_silence / 1000,
        facts
            .storage_silence
            .map(|s| format!(" and on storage for {} s", s / 1000))
            .unwrap_or_default()
    );
    out.event(About::Host(facts.name.clone()), "HostHeartbeatLost", true, reason.clone());
    out.intents.push(Intent::OpenFence {
        name,
        spec: HostFenceSpec {
            host: facts.name.clone(),
            host_uid: facts.uid.clone(),
            boot_id: facts.boot.clone(),
            reason,
            confirmation: None,
        },
    });
}

fn refine(world: &World, facts: &mut HostFacts, brake: Brake, certificate: Option<&HostFence>) {
    if facts.proof.is_some() || !facts.needed {
        return;
    }
    let acting = !matches!(
        facts.state,
        HostState::Ready
            | HostState::Cordoned
            | HostState::Maintenance
            | HostState::ShuttingDown
            | HostState::Stopped
            | HostState::Joining
            | HostState::Suspect
    );
    if !acting {
        return;
    }
    let since = counts_since(world, facts);
    let ordered = levels(world, facts)
        .iter()
        .flat_map(|l| &l.devices)
        .any(|d| calls(world, facts, d, since).iter().any(|c| c.action == FenceAction::Off));
    if facts.state == HostState::Isolated {
        if certificate.is_some() && ordered {
            facts.state = HostState::Fencing;
        }
        return;
    }
    let all_failed = !levels(world, facts).is_empty()
        && levels(world, facts).iter().all(|l| {
            l.devices.iter().any(|d| {
                device(world, d, &facts.name).is_none()
                    || failed_rounds(&calls(world, facts, d, since)).0 >= ROUNDS_PER_LEVEL
            })
        });
    let no_device = levels(world, facts).is_empty() || !power_counts(world);
    let elapsed = elapsed_possible(world, facts);
    let no_path = facts.silent_since.is_none();
    let held = brake.holds();
    facts.state = if (no_device && !elapsed) || all_failed || (held && !ordered) || no_path {
        HostState::AwaitingProof
    } else if ordered {
        HostState::Fencing
    } else {
        HostState::Lost
    };
}
