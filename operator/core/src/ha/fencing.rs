//! From silence to proof: which fence call comes next, and what the calls prove.
//!
//! ```text
//! a beat is missed ─► read power ─off─► certificate ─► off order ─► read again: proof
//!                          │ on                                        (safety §3)
//! both paths silent for actSeconds ─► certificate ─► off ─► read back: proof
//!                          │ device fails twice: next level, then from the start with back-off
//! ```

use stockade_crds::names::host_fence_name;
use stockade_crds::v1alpha1::{
    Confirmation, FenceAction, FenceAttempt, FenceDevice, FenceLevel, HostFence, HostFenceSpec,
    HostFenceStatus, HostState, IsolatedHost, ProofKind, StopFailure,
};

use super::brake::Brake;
use super::host_state::{HostFacts, seconds};
use crate::plan::{About, Basis, Intent, Plan, Report};
use crate::world::{FenceRecord, FenceResult, Millis, World};
use stockade_crds::conditions::{Decided, READY};

/// Failed rounds on a level before the next one is tried.
const ROUNDS_PER_LEVEL: usize = 2;
/// Pause after a failed round.
const RETRY_MILLIS: Millis = 2_000;
/// Further pause for each time that all levels have failed.
const CYCLE_MILLIS: Millis = 15_000;
/// Attempts that a certificate keeps.
const KEPT_ATTEMPTS: usize = 32;

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
    for facts in hosts.iter_mut() {
        if facts.uid.is_empty() || facts.boot.is_empty() {
            continue;
        }
        let certificate = world.fence_of(&facts.uid, &facts.boot).cloned();
        if let Some(stage) = stage(world, facts, brake) {
            drive(world, facts, stage, brake, certificate.as_deref(), out);
        }
        refine(world, facts, brake, certificate.as_deref());
    }
    for fence in world.fences.values() {
        report(world, hosts, fence, out);
    }
    tests(world, hosts, out);
}

fn stage(world: &World, facts: &HostFacts, brake: Brake) -> Option<Stage> {
    let policy = world.policy_spec();
    if !world.fresh || world.policy.is_none() || !facts.needed || facts.proof.is_some() {
        return None;
    }
    if policy.automation == stockade_crds::v1alpha1::Automation::Paused {
        return None;
    }
    if facts.went_down_cleanly {
        return None;
    }
    let stuck = policy.stop_failure == StopFailure::Fence && has_stuck_vm(world, facts);
    let isolated = policy.isolated_host == IsolatedHost::Fence
        && facts.state == HostState::Isolated
        && facts.api_silence >= seconds(policy.isolated_seconds);
    if (stuck || isolated) && !(brake.holds() && world.guards.brake) {
        return Some(Stage::Act);
    }
    let since = facts.silent_since?;
    let silence = world.now.saturating_sub(since);
    if silence < seconds(policy.act_seconds) || (brake.holds() && world.guards.brake) {
        Some(Stage::Read)
    } else {
        Some(Stage::Act)
    }
}

fn has_stuck_vm(world: &World, facts: &HostFacts) -> bool {
    let grace = 2_000;
    world.domains.iter().any(|((host, uid), d)| {
        host == &facts.name
            && d.spec.boot_id == facts.boot
            && d.status.as_ref().is_some_and(|s| {
                // One that left by somebody's hand does not hang here.
                s.state == stockade_crds::v1alpha1::DomainState::StopFailed
                    && !s.released
                    && s.end != Some(stockade_crds::v1alpha1::End::Migrated)
            })
            && world.age_of(&format!("domain/{host}/{uid}")) >= grace
    })
}

fn levels<'a>(world: &'a World, facts: &HostFacts) -> &'a [FenceLevel] {
    world.hosts.get(&facts.name).map_or(&[], |h| h.spec.fencing.as_slice())
}

fn device<'a>(world: &'a World, name: &str, host: &str) -> Option<(&'a FenceDevice, String)> {
    let device = world.fence_devices.get(name)?;
    let plug = device.spec.plugs.get(host)?;
    Some((device, plug.clone()))
}

/// The calls that count: of this boot, begun while every path was already silent.
fn calls<'a>(
    world: &'a World,
    facts: &HostFacts,
    device: &str,
    since: Millis,
) -> Vec<&'a FenceRecord> {
    world
        .fence_log
        .iter()
        .filter(|c| {
            c.device == device
                && c.host == facts.name
                && (c.boot_id == facts.boot || !world.guards.boot)
                && c.started >= since
        })
        .collect()
}

/// Since when calls count for a host: every path silent, or, for a host that is shot while
/// it lives (isolated, or a VM that would not die), since its last certificate was opened.
fn counts_since(world: &World, facts: &HostFacts) -> Millis {
    facts.silent_since.unwrap_or_else(|| {
        let name = host_fence_name(&facts.name, &facts.boot);
        world.seen_since.get(&format!("fence-open/{name}")).copied().unwrap_or(world.now)
    })
}

/// Whether the calls of one device prove its plug off (safety §3).
fn plug_proven(world: &World, calls: &[&FenceRecord], acted: bool, trusted: bool) -> bool {
    let beat = seconds(world.policy_spec().heartbeat_seconds);
    calls.iter().any(|off| {
        if off.action != FenceAction::Off {
            return false;
        }
        let Some(done) = off.finished else { return false };
        if !world.guards.read_back && off.result == FenceResult::Done {
            return true;
        }
        calls.iter().any(|read| {
            let reads_off = read.action == FenceAction::Status
                && read.result == FenceResult::Off
                && read.started >= done;
            let before = calls.iter().find(|b| {
                b.action == FenceAction::Status
                    && b.result == FenceResult::Off
                    && b.finished.is_some_and(|f| f <= off.started)
            });
            let paced = before.is_some_and(|b| {
                read.started >= b.started + beat && (trusted || !world.guards.plug_trust)
            });
            reads_off && (acted || paced)
        })
    })
}

/// Whether all plugs of some level read off as safety §3 asks.
fn power_proven(world: &World, facts: &HostFacts) -> bool {
    let since = counts_since(world, facts);
    levels(world, facts).iter().any(|level| {
        !level.devices.is_empty()
            && level.devices.iter().all(|name| {
                let Some((device, _)) = device(world, name, &facts.name) else { return false };
                let status = device.status.clone().unwrap_or_default();
                if world.guards.plug_trust && status.untrusted_hosts.contains(&facts.name) {
                    return false;
                }
                let trusted = status.trusted_hosts.contains(&facts.name);
                let calls = calls(world, facts, name, since);
                let acted = calls.iter().any(|c| ordered_blind(&calls, c));
                plug_proven(world, &calls, acted, trusted)
            })
    })
}

/// An off order that no reading of off went before: only the act stage sends one.
fn ordered_blind(calls: &[&FenceRecord], off: &FenceRecord) -> bool {
    off.action == FenceAction::Off
        && !calls.iter().any(|b| {
            b.action == FenceAction::Status
                && b.result == FenceResult::Off
                && b.finished.is_some_and(|f| f <= off.started)
        })
}

/// Failed rounds: off orders whose device did not read off afterwards.
fn failed_rounds(calls: &[&FenceRecord]) -> (usize, Option<Millis>) {
    let mut rounds = 0;
    let mut last = None;
    for off in calls.iter().filter(|c| c.action == FenceAction::Off) {
        let Some(done) = off.finished else { continue };
        let reads: Vec<_> =
            calls.iter().filter(|c| c.action == FenceAction::Status && c.started >= done).collect();
        let answered_on = reads.iter().any(|r| r.result == FenceResult::On);
        let dead = reads.iter().filter(|r| matches!(r.result, FenceResult::Failed(_))).count();
        if answered_on || dead >= 2 {
            rounds += 1;
            last = reads.iter().filter_map(|r| r.finished).max();
        }
    }
    (rounds, last)
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
    if levels.is_empty() {
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
    let Some((index, (failed, last))) = rounds
        .iter()
        .enumerate()
        .filter(|(_, (n, _))| *n != usize::MAX)
        .min_by_key(|(i, (n, _))| (n / ROUNDS_PER_LEVEL, *i))
    else {
        return;
    };
    let cycle = Millis::try_from(failed / ROUNDS_PER_LEVEL).unwrap_or(Millis::MAX);
    if let Some(last) = last {
        let pause = RETRY_MILLIS + CYCLE_MILLIS.saturating_mul(cycle.min(20));
        if world.now < last + pause {
            out.wake(last + pause);
            return;
        }
    }
    for name in &levels[index].devices {
        let Some((device, plug)) = device(world, name, &facts.name) else { continue };
        let calls = calls(world, facts, name, since);
        if world
            .fence_log
            .iter()
            .any(|c| c.device == *name && c.host == facts.name && c.finished.is_none())
        {
            continue;
        }
        let spec = (facts, name.as_str(), plug.as_str());
        next_call(world, spec, device, &calls, stage, brake, certificate, out);
    }
}

#[allow(clippy::too_many_arguments)] // One decision over one row of a table.
fn next_call(
    world: &World,
    (facts, name, plug): (&HostFacts, &str, &str),
    device: &FenceDevice,
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
    };
    let last_off = calls.iter().rev().find(|c| c.action == FenceAction::Off);
    let reads = calls.iter().filter(|c| c.action == FenceAction::Status);
    let after_off: Vec<_> = reads
        .clone()
        .filter(|r| last_off.is_some_and(|o| o.finished.is_some_and(|f| r.started >= f)))
        .collect();
    let last_read = reads.clone().next_back();
    let untrusted = device
        .status
        .as_ref()
        .is_some_and(|s| s.untrusted_hosts.contains(&facts.name) && world.guards.plug_trust);
    match (last_off, stage) {
        (Some(off), _) => {
            let answered_on = after_off.iter().any(|r| r.result == FenceResult::On);
            let failed =
                after_off.iter().filter(|r| matches!(r.result, FenceResult::Failed(_))).count();
            let blind = ordered_blind(calls, off);
            if answered_on || failed >= 2 {
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
            // Read back: at once after a blind order, a beat apart otherwise.
            let due = if blind {
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
            Some(read) if read.result == FenceResult::Off && !untrusted => {
                let together = off_by_one_device(world, name);
                if together >= brake.limit && world.guards.brake {
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

/// Hosts that one device reads off at present: a chassis manager may lie for all of them.
fn off_by_one_device(world: &World, device: &str) -> usize {
    let mut hosts: Vec<&str> = world
        .fence_log
        .iter()
        .filter(|c| {
            c.device == device
                && c.result == FenceResult::Off
                && world.now.saturating_sub(c.started) < 60_000
        })
        .map(|c| c.host.as_str())
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts.len()
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
    let no_device = levels(world, facts).is_empty();
    let elapsed = elapsed_possible(world, facts);
    let no_path = facts.silent_since.is_none();
    let held = brake.holds() && world.guards.brake;
    facts.state = if (no_device && !elapsed) || all_failed || (held && !ordered) || no_path {
        HostState::AwaitingProof
    } else if ordered {
        HostState::Fencing
    } else {
        HostState::Lost
    };
}

/// Whether elapsed time can prove this boot dead (safety §4).
fn elapsed_possible(world: &World, facts: &HostFacts) -> bool {
    let declared = world.hosts.get(&facts.name).is_some_and(|h| h.spec.self_fencing);
    let accepted =
        world.policy_spec().accepted_proofs.iter().any(|all| all.contains(&ProofKind::Elapsed));
    let armed = world
        .agents
        .get(&facts.name)
        .and_then(|a| a.status.as_ref())
        .is_some_and(|s| s.boot_id == facts.boot && s.armed);
    declared && accepted && armed
}

/// Milliseconds of silence after which an armed host has reset itself.
#[must_use]
pub fn elapsed_bound(timings: &stockade_crds::v1alpha1::SelfFence) -> Millis {
    let sum = seconds(timings.stop_seconds)
        + seconds(timings.kill_seconds)
        + seconds(timings.watchdog_seconds);
    let drift = u64::try_from(timings.drift_per_mille).unwrap_or(0);
    sum + sum * drift / 1000 + seconds(timings.margin_seconds)
}

fn elapsed_proven(world: &World, facts: &HostFacts) -> bool {
    if !elapsed_possible(world, facts) {
        return false;
    }
    let timings = world
        .agents
        .get(&facts.name)
        .and_then(|a| a.status.as_ref())
        .and_then(|s| s.self_fence.clone())
        .unwrap_or_else(|| world.policy_spec().self_fence);
    facts
        .silent_since
        .is_some_and(|since| world.now.saturating_sub(since) >= elapsed_bound(&timings))
}

/// A human's word counts once the host shows no life; a device that can be asked and reads
/// on needs the second field (safety §5).
fn human_says(world: &World, facts: &HostFacts, word: Option<&Confirmation>) -> Result<(), String> {
    let Some(word) = word else { return Err("nobody has confirmed it".to_owned()) };
    let seen = world.policy_spec().heartbeat_seconds;
    let storage_alive = facts.storage_silence.is_some_and(|s| s < seconds(seen) * 2);
    if facts.api_silence < seconds(seen) * 2 || storage_alive {
        return Err("the host shows life; a word does not count while it does".to_owned());
    }
    let since = counts_since(world, facts);
    let reads_on = levels(world, facts).iter().flat_map(|l| &l.devices).any(|d| {
        calls(world, facts, d, since)
            .iter()
            .rfind(|c| c.action == FenceAction::Status)
            .is_some_and(|c| c.result == FenceResult::On)
    });
    if reads_on && !word.although_device_reads_on {
        return Err(
            "its device reads on; set spec.confirmation.althoughDeviceReadsOn if you are sure"
                .to_owned(),
        );
    }
    Ok(())
}

fn report(world: &World, hosts: &[HostFacts], fence: &HostFence, out: &mut Plan) {
    let name = fence.metadata.name.clone().unwrap_or_default();
    let Some(facts) = hosts.iter().find(|h| h.name == fence.spec.host) else { return };
    let mut status = fence.status.clone().unwrap_or_default();
    status.observed_generation = fence.metadata.generation.unwrap_or_default();
    if facts.uid != fence.spec.host_uid || facts.boot != fence.spec.boot_id {
        close_if_over(world, facts, fence, out);
        return;
    }
    let since = counts_since(world, facts);
    let attempts: Vec<FenceAttempt> = world
        .fence_log
        .iter()
        .filter(|c| {
            c.host == facts.name
                && c.boot_id == fence.spec.boot_id
                && c.started >= since
                && c.finished.is_some()
        })
        .map(|c| FenceAttempt {
            device: c.device.clone(),
            action: c.action,
            result: match &c.result {
                FenceResult::Pending => "Pending".to_owned(),
                FenceResult::On => "On".to_owned(),
                FenceResult::Off => "Off".to_owned(),
                FenceResult::Done => "Done".to_owned(),
                FenceResult::Failed(why) => why.chars().take(500).collect(),
            },
        })
        .collect();
    if !attempts.is_empty() && status.proof.is_none() {
        status.attempts = attempts[attempts.len().saturating_sub(KEPT_ATTEMPTS)..].to_vec();
    }
    let beat = seconds(world.policy_spec().heartbeat_seconds);
    let shows_life = facts.api_silence < beat + beat / 2
        || facts.storage_silence.is_some_and(|s| s < beat + beat / 2);
    let mut waits = String::new();
    if status.proof.is_some() && status.revoked.is_none() {
        let confirmed = world.lives.hosts.get(&facts.name).is_some_and(|l| l.lease_changes >= 2)
            || facts.storage_silence.is_some_and(|s| s < beat + beat / 2);
        if shows_life && confirmed && world.guards.life_revokes && world.fresh {
            status.revoked = Some("the boot was seen to live after its proof".to_owned());
            out.event(
                About::Host(facts.name.clone()),
                "FenceRevoked",
                true,
                format!("certificate {name} is revoked: the boot beats after its proof"),
            );
        }
    } else if world.fresh && !(shows_life && world.guards.life_revokes) {
        let human = human_says(world, facts, fence.spec.confirmation.as_ref());
        let has = |kind: &ProofKind| match kind {
            ProofKind::Power => power_proven(world, facts),
            ProofKind::Elapsed => elapsed_proven(world, facts),
            ProofKind::Human => human.is_ok(),
        };
        let proof = world
            .policy_spec()
            .accepted_proofs
            .iter()
            .find(|all| !all.is_empty() && all.iter().all(has))
            .and_then(|all| all.first().copied());
        if let Some(proof) = proof {
            status.proof = Some(proof);
            status.revoked = None;
            out.event(
                About::Host(facts.name.clone()),
                "FenceConfirmed",
                true,
                format!("boot {} is proven dead by {proof:?}", fence.spec.boot_id),
            );
        } else if fence.spec.confirmation.is_some() {
            waits = human.err().unwrap_or_default();
        } else {
            waits = awaited(world, facts);
        }
    }
    deny_and_break(world, facts, fence, &mut status, out);
    let ready = match (&status.proof, &status.revoked) {
        (_, Some(why)) => Decided::new(READY, false, "Revoked", why.clone()),
        (Some(kind), None) => {
            Decided::new(READY, true, format!("{kind:?}"), "the boot is proven dead")
        }
        (None, None) => Decided::new(READY, false, "AwaitingProof", waits),
    };
    if let Some(since) = facts.silent_since
        && status.proof.is_none()
        && elapsed_possible(world, facts)
    {
        out.wake(since + elapsed_bound(&world.policy_spec().self_fence) + 1);
    }
    out.fences.push((name, Report { status, conditions: vec![ready] }));
}

fn awaited(world: &World, facts: &HostFacts) -> String {
    let devices = levels(world, facts).len();
    let mut ways = Vec::new();
    if devices > 0 {
        ways.push("its power to read off".to_owned());
    }
    if elapsed_possible(world, facts) {
        ways.push("the time after which it has reset itself".to_owned());
    }
    ways.push("a human's word (kubectl stockade fence confirm)".to_owned());
    format!("waits for {}", ways.join(", or "))
}

/// Denies the dead boot where it can be denied, then breaks its locks (safety §6.2).
fn deny_and_break(
    world: &World,
    facts: &HostFacts,
    fence: &HostFence,
    status: &mut HostFenceStatus,
    out: &mut Plan,
) {
    if status.proof.is_none() {
        return;
    }
    let boot = &fence.spec.boot_id;
    let storages =
        world.agents.get(&facts.name).map(|a| a.spec.storages.clone()).unwrap_or_default();
    if status.revoked.is_some() {
        let placed = world.vms.values().any(|vm| {
            vm.status.as_ref().is_some_and(|s| {
                s.placements.iter().any(|p| {
                    p.boot_id == *boot && p.state == stockade_crds::v1alpha1::EpochState::ProvenDead
                })
            })
        });
        if !placed {
            for storage in std::mem::take(&mut status.denied) {
                out.intents.push(Intent::Admit { storage, host: facts.name.clone() });
            }
            status.locks_broken.clear();
        }
        return;
    }
    // A certificate that is written only now is acted on once it stands in the API.
    let stands = fence.status.as_ref().is_some_and(|s| s.proof.is_some() && s.revoked.is_none());
    for storage in storages.iter().map(|s| &s.name) {
        let key = (storage.clone(), boot.clone());
        if world.server.denied.contains(&key) && !status.denied.contains(storage) {
            status.denied.push(storage.clone());
        }
        if world.server.broken.contains(&key) && !status.locks_broken.contains(storage) {
            status.locks_broken.push(storage.clone());
        }
        if !stands || world.server.pending.contains(&key) {
            continue;
        }
        if let Some((at, _)) = world.server.refused.get(&key)
            && world.now < at + 1_000
        {
            out.wake(at + 1_000);
            continue;
        }
        let host = facts.name.clone();
        let boot_id = boot.clone();
        let storage = storage.clone();
        if !status.locks_broken.contains(&storage)
            && (status.denied.contains(&storage) || !world.guards.denial_first)
        {
            out.intents.push(Intent::BreakLocks { storage, host, boot_id });
        } else if !status.denied.contains(&storage) {
            out.intents.push(Intent::Deny { storage, host, boot_id });
        }
    }
}

/// A certificate is over once another boot beats, nothing is unsettled in its own, and the
/// host is admitted again.
fn close_if_over(world: &World, facts: &HostFacts, fence: &HostFence, out: &mut Plan) {
    let used = world.vms.values().any(|vm| {
        vm.status.as_ref().is_some_and(|s| {
            s.placements.iter().any(|p| {
                p.boot_id == fence.spec.boot_id
                    && p.host_uid == fence.spec.host_uid
                    && !p.state.is_settled()
            })
        })
    });
    if !facts.alive || used {
        return;
    }
    let denied = fence.status.as_ref().map(|s| s.denied.clone()).unwrap_or_default();
    for storage in denied {
        out.intents.push(Intent::Admit { storage, host: facts.name.clone() });
    }
    out.intents.push(Intent::CloseFence {
        name: fence.metadata.name.clone().unwrap_or_default(),
        basis: Basis {
            uid: fence.metadata.uid.clone().unwrap_or_default(),
            version: fence.metadata.resource_version.clone().unwrap_or_default(),
        },
    });
}

/// Periodic status tests of every plug of a beating host: trust is earned by reading on.
fn tests(world: &World, hosts: &[HostFacts], out: &mut Plan) {
    if !world.fresh {
        return;
    }
    for (name, device) in &world.fence_devices {
        let generation = device.metadata.generation.unwrap_or_default();
        let mut status = device.status.clone().unwrap_or_default();
        let changed = status.observed_generation != generation;
        if changed {
            status.trusted_hosts.clear();
            status.untrusted_hosts.clear();
        }
        status.observed_generation = generation;
        let mut failing = Vec::new();
        let interval = seconds(device.spec.test_interval_seconds);
        for (host, plug) in &device.spec.plugs {
            let Some(facts) = hosts.iter().find(|h| h.name == *host) else { continue };
            let last = world.fence_log.iter().rfind(|c| {
                c.device == *name
                    && c.host == *host
                    && c.generation == generation
                    // What a boot read says nothing about the next one.
                    && c.boot_id == facts.boot
                    && c.action == FenceAction::Status
            });
            match last.map(|c| &c.result) {
                Some(FenceResult::On) if facts.alive => {
                    status.untrusted_hosts.retain(|h| h != host);
                    if !status.trusted_hosts.contains(host) {
                        status.trusted_hosts.push(host.clone());
                    }
                }
                Some(FenceResult::Off) if lived_during(world, facts, last) => {
                    status.trusted_hosts.retain(|h| h != host);
                    if !status.untrusted_hosts.contains(host) {
                        status.untrusted_hosts.push(host.clone());
                    }
                }
                Some(FenceResult::Failed(why)) => failing.push(format!("{host}: {why}")),
                _ => {}
            }
            let due = match last {
                None => 0,
                Some(c) if matches!(c.result, FenceResult::Failed(_)) => c.started + 30_000,
                Some(_) if interval == 0 => Millis::MAX,
                Some(c) => c.started + interval,
            };
            let free = !world.fence_log.iter().any(|c| c.device == *name && c.finished.is_none());
            // A host that has missed a beat is read by `drive`, not tested.
            let beats = facts.alive && facts.silent_since.is_none();
            if beats && free && world.now >= due {
                out.intents.push(Intent::Fence {
                    host: host.clone(),
                    boot_id: facts.boot.clone(),
                    device: name.clone(),
                    plug: plug.clone(),
                    action: FenceAction::Status,
                });
                break;
            } else if beats && due > world.now && due != Millis::MAX {
                out.wake(due);
            }
        }
        status.trusted_hosts.sort();
        status.untrusted_hosts.sort();
        let ready = if !status.untrusted_hosts.is_empty() {
            let message = format!(
                "reads off for beating hosts: {}; check plugs and wiring",
                status.untrusted_hosts.join(", ")
            );
            Decided::new(READY, false, "PlugUntrusted", message)
        } else if !failing.is_empty() {
            Decided::new(READY, false, "StatusTestFailed", failing.join("; "))
        } else if status.trusted_hosts.is_empty() {
            Decided::new(READY, None, "Untested", "no plug was read yet")
        } else {
            Decided::new(READY, true, "StatusTested", "every tested plug reads on")
        };
        out.fence_devices.push((name.clone(), Report { status, conditions: vec![ready] }));
    }
}

/// Whether the host beat both before and after a reading.
fn lived_during(world: &World, facts: &HostFacts, read: Option<&FenceRecord>) -> bool {
    read.and_then(|r| r.finished).is_some_and(|end| {
        world.lives.last_life(&facts.name, &facts.boot).is_some_and(|at| at > end)
    })
}
