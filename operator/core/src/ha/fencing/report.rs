//! Certificates: what they say, denial and lock break after the proof, and their end.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use stockade_crds::conditions::{Decided, READY};
use stockade_crds::v1alpha1::{EpochState, FenceAttempt, HostFence, HostFenceStatus, ProofKind};

use super::calls::{counts_since, device, is_untrusted, levels};
use super::proof::{elapsed_bound, elapsed_possible, elapsed_proven, human_says, power_proven};
use crate::gate;
use crate::ha::host_state::{HostFacts, facts_of, seconds, undeclared};
use crate::plan::{About, Basis, Intent, Plan, Report};
use crate::world::{FenceResult, Millis, World};

/// Attempts that a certificate keeps.
const KEPT_ATTEMPTS: usize = 32;
/// A certificate without a proof, whose boot has been well for so long, is for nothing.
const IDLE_AFTER: Millis = 30_000;

/// What a certificate says now; one that is over is closed. `driven`: hosts that are being
/// fenced in this plan.
pub(super) fn report(
    world: &World,
    hosts: &[HostFacts],
    fence: &HostFence,
    driven: &BTreeSet<String>,
    out: &mut Plan,
) {
    let name = fence.metadata.name.clone().unwrap_or_default();
    let spec = &fence.spec;
    let gone;
    let facts = if let Some(declared) = facts_of(hosts, &spec.host) {
        declared
    } else {
        gone = undeclared(world, &spec.host, &spec.host_uid, &spec.boot_id);
        &gone
    };
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
    // A beat is seen up to two intervals late.
    let young = |silence: Millis| silence < beat * 5 / 2;
    let shows_life = young(facts.api_silence) || facts.storage_silence.is_some_and(young);
    let seen = world.lives.beat_seen(&facts.name, &facts.boot);
    let beats = gate::beats(world, &facts.name, &facts.boot);
    if !driven.contains(&facts.name) && is_idle(world, facts, fence, &status) {
        close(fence, out);
        return;
    }
    refuse_word(world, fence, seen.filter(|_| beats), beat, &mut status);
    let word = fence.spec.confirmation.as_ref();
    let word = word.filter(|w| status.refused_confirmation.as_ref() != Some(*w));
    let mut waits = String::new();
    if status.proof.is_some() && status.revoked.is_none() {
        if world.fresh && world.guards.life_revokes && gate::outlives(world, fence) {
            status.revoked = Some("the boot was seen to live after its proof".to_owned());
            out.event(
                About::Host(facts.name.clone()),
                "FenceRevoked",
                true,
                format!("certificate {name} is revoked: the boot beats after its proof"),
            );
        }
    } else if fence.spec.confirmation.is_some() && word.is_none() {
        waits = "the word is refused: the host showed life after it; give a new one once it is \
                 silent"
            .to_owned();
    } else if shows_life && world.guards.life_bars {
        waits = "the host shows life".to_owned();
    } else if world.fresh {
        let human = human_says(world, facts, word);
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
        } else if word.is_some() {
            waits = human.err().unwrap_or_default();
        } else {
            waits = awaited(world, facts);
        }
    }
    deny_and_break(world, facts, fence, &mut status, out);
    let ready = match (&status.proof, &status.revoked) {
        (_, Some(why)) => Decided::new(READY, false, "Revoked", why.clone()),
        (Some(kind), None) => {
            let mut message = "the boot is proven dead".to_owned();
            for (storage, why) in still_held(world, fence, &status) {
                message.push_str(&format!("; locks on {storage}: {why}"));
            }
            Decided::new(READY, true, format!("{kind:?}"), message)
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

/// The storages whose locks the dead boot still has, and what they wait for, as last heard.
fn still_held<'a>(
    world: &'a World,
    fence: &'a HostFence,
    status: &'a HostFenceStatus,
) -> impl Iterator<Item = (&'a str, &'a str)> {
    let of_boot = |(_, boot): &(String, String)| *boot == fence.spec.boot_id;
    let refused = world.server.refused.iter().filter(move |(key, _)| of_boot(key));
    refused
        .map(|((storage, _), (_, why))| (storage.as_str(), why.as_str()))
        .filter(|(storage, _)| !status.locks_broken.iter().any(|broken| broken == storage))
}

/// A human's word about a host that goes on beating is refused for good: it must not count
/// when the host falls silent at some other time (safety §5).
fn refuse_word(
    world: &World,
    fence: &HostFence,
    beats: Option<Millis>,
    beat: Millis,
    status: &mut HostFenceStatus,
) {
    let name = fence.metadata.name.clone().unwrap_or_default();
    let given = world.seen_since.get(&format!("fence-word/{name}"));
    let sight = world.lives.echo_since;
    if let (Some(word), Some(given), Some(seen)) = (&fence.spec.confirmation, given, beats)
        // What is seen so much later was beaten after the word.
        && seen > given.max(&sight.unwrap_or_default()) + 3 * beat
        && status.proof.is_none()
    {
        status.refused_confirmation = Some(word.clone());
    }
}

/// Whether a certificate is for nothing: its boot lives, nobody is fencing it, and nothing
/// was done in its name.
fn is_idle(world: &World, facts: &HostFacts, fence: &HostFence, status: &HostFenceStatus) -> bool {
    let well = world.lives.hosts.get(&facts.name).and_then(|l| l.lease_fresh_since);
    let well = well.is_some_and(|at| world.now.saturating_sub(at) >= IDLE_AFTER);
    let age = world.age_of(&format!("fence-open/{}", fence.metadata.name.as_deref().unwrap_or("")));
    let stands = status.proof.is_some() && status.revoked.is_none();
    facts.alive
        && well
        && age >= IDLE_AFTER
        && !stands
        && status.denied.is_empty()
        && asked_of_servers(world, fence).next().is_none()
        && !placed_in_its_name(world, fence)
}

/// Whether a certificate binds its boot: it stands, or a VM was placed in its name before it was
/// revoked, so that what the boot still has of that VM must not run.
#[must_use]
pub fn binds(world: &World, fence: &HostFence) -> bool {
    fence.status.as_ref().is_some_and(|s| {
        s.proof.is_some() && (s.revoked.is_none() || placed_in_its_name(world, fence))
    })
}

/// Whether a VM has a new epoch because this boot was proven dead, or had one, and what this boot has
/// of it is not settled yet.
fn placed_in_its_name(world: &World, fence: &HostFence) -> bool {
    world.vms.values().any(|vm| {
        vm.status.as_ref().is_some_and(|s| {
            let last = s.placements.iter().map(|p| p.epoch).max();
            s.placements.iter().filter(|p| p.boot_id == fence.spec.boot_id).any(|p| {
                let later = p.state == EpochState::ProvenDead && last > Some(p.epoch);
                later || (p.superseded && p.state != EpochState::Released)
            })
        })
    })
}

fn close(fence: &HostFence, out: &mut Plan) {
    out.intents.push(Intent::CloseFence {
        name: fence.metadata.name.clone().unwrap_or_default(),
        basis: Basis {
            uid: fence.metadata.uid.clone().unwrap_or_default(),
            version: fence.metadata.resource_version.clone().unwrap_or_default(),
        },
    });
}

fn awaited(world: &World, facts: &HostFacts) -> String {
    let mut ways = Vec::new();
    let (mut usable, mut untrusted) = (false, Vec::new());
    for level in levels(world, facts) {
        usable |= level.devices.iter().all(|d| device(world, d, &facts.name).is_some());
        let of_level = level.devices.iter().filter(|d| {
            world.fence_devices.get(*d).is_some_and(|device| is_untrusted(device, &facts.name))
        });
        untrusted.extend(of_level.map(String::as_str));
    }
    if usable {
        ways.push("its power to read off".to_owned());
    }
    if elapsed_possible(world, facts) {
        ways.push("the time after which it has reset itself".to_owned());
    }
    ways.push("a human's word (kubectl stockade fence confirm)".to_owned());
    let mut text = format!("waits for {}", ways.join(", or "));
    if !untrusted.is_empty() {
        let _ = write!(
            text,
            "; {} read off while this host was beating: correct its plug for {}",
            untrusted.join(", "),
            facts.name
        );
    }
    text
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
        let placed = placed_in_its_name(world, fence);
        if !placed {
            // A server that never answered was asked all the same: were that kept, the next denial
            // of this boot would count as unanswered for as long.
            let mut asked: BTreeSet<String> = status.denied.iter().cloned().collect();
            asked.extend(asked_of_servers(world, fence).map(ToOwned::to_owned));
            asked.retain(|storage| admit(world, fence, storage, out));
            status.denied.retain(|storage| !asked.contains(storage));
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
        // Where nobody can be denied, the server itself waits for the lease to run out.
        let undeniable = world.server.undeniable.contains(&key);
        let may_break =
            status.denied.contains(&storage) || undeniable || !world.guards.denial_first;
        if !status.locks_broken.contains(&storage) && may_break {
            // Safety §8.3: not while another boot may hold the other side of a move.
            if !crate::moves::undecided(world, &fence.spec.host_uid, boot.as_str()) {
                out.intents.push(Intent::BreakLocks { storage, host, boot_id });
            }
        } else if !status.denied.contains(&storage) && !undeniable {
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
    let denied = fence.status.iter().flat_map(|s| &s.denied);
    let left = denied.filter(|storage| !admit(world, fence, storage, out)).count();
    if left == 0 {
        close(fence, out);
    }
}

/// Takes back what was asked of a storage's server about a boot; false: not just now.
fn admit(world: &World, fence: &HostFence, storage: &str, out: &mut Plan) -> bool {
    let key = (storage.to_owned(), fence.spec.boot_id.clone());
    if world.server.pending.contains(&key) {
        return false;
    }
    if let Some((at, _)) = world.server.refused.get(&key)
        && world.now < at + 1_000
    {
        out.wake(at + 1_000);
        return false;
    }
    let (storage, boot_id) = key;
    out.intents.push(Intent::Admit { storage, host: fence.spec.host.clone(), boot_id });
    true
}

/// The storages whose servers were asked for something about this boot.
fn asked_of_servers<'a>(world: &'a World, fence: &'a HostFence) -> impl Iterator<Item = &'a str> {
    let of_boot = |(storage, boot): &'a (String, String)| {
        (*boot == fence.spec.boot_id).then_some(storage.as_str())
    };
    world.server.asked.keys().filter_map(of_boot)
}
