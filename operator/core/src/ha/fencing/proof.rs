//! What proves a boot dead: power (safety §3), elapsed time (§4), a human's word (§5).

use stockade_crds::v1alpha1::{Confirmation, FenceAction, ProofKind};

use super::calls::{calls, counts_since, device, levels, off_by_one_device, read_off_before};
use crate::ha::brake;
use crate::ha::host_state::{HostFacts, seconds};
use crate::world::{FenceRecord, FenceResult, Millis, World};

/// Whether the calls of one device prove its plug off (safety §3).
pub(super) fn plug_proven(
    world: &World,
    calls: &[&FenceRecord],
    silent_since: Millis,
    trusted: bool,
) -> bool {
    let acted = calls.iter().any(|c| c.acts);
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
                && read.started >= done
                // What was read while the host still beat says nothing of it.
                && read.started >= silent_since;
            let before = read_off_before(calls, off);
            let paced = before.is_some_and(|b| trusted && read.started >= b.started + beat);
            reads_off && (acted || paced)
        })
    })
}

/// Whether readings of a plug prove it off without an order to act: it has read on while the host
/// was beating, every path is silent, and not as many hosts read off through its device as the
/// brake allows (a chassis manager may have failed).
fn readings_prove(world: &World, facts: &HostFacts, device: &str) -> bool {
    let status = world.fence_devices.get(device).and_then(|d| d.status.as_ref());
    let trusted = status.is_some_and(|s| s.trusted_hosts.contains(&facts.name));
    let many = off_by_one_device(world, device) >= brake::limit(world);
    let doubted = (!trusted && world.guards.plug_trust) || (many && world.guards.one_device);
    !doubted && !facts.unseen_path
}

/// Whether all plugs of some level read off as safety §3 asks.
pub(super) fn power_proven(world: &World, facts: &HostFacts) -> bool {
    let since = counts_since(world, facts);
    let Some(silent_since) = facts.silent_since else { return false };
    levels(world, facts).iter().any(|level| {
        !level.devices.is_empty()
            && level.devices.iter().all(|name| {
                if device(world, name, &facts.name).is_none() {
                    return false;
                }
                let calls = calls(world, facts, name, since);
                let trusted = readings_prove(world, facts, name);
                plug_proven(world, &calls, silent_since, trusted)
            })
    })
}

/// Whether elapsed time can prove this boot dead (safety §4).
pub(super) fn elapsed_possible(world: &World, facts: &HostFacts) -> bool {
    let declared = world.hosts.get(&facts.name).is_some_and(|h| h.spec.self_fencing);
    let accepted =
        world.policy_spec().accepted_proofs.iter().any(|all| all.contains(&ProofKind::Elapsed));
    let armed = world
        .agents
        .get(&facts.name)
        .and_then(|a| a.status.as_ref())
        .is_some_and(|s| s.boot_id == facts.boot && (s.armed || !world.guards.armed));
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

pub(super) fn elapsed_proven(world: &World, facts: &HostFacts) -> bool {
    if !elapsed_possible(world, facts) || facts.unseen_path {
        return false;
    }
    let timings = world
        .agents
        .get(&facts.name)
        .and_then(|a| a.status.as_ref())
        .and_then(|s| s.self_fence.clone())
        .unwrap_or_else(|| world.policy_spec().self_fence.clone());
    facts
        .silent_since
        .is_some_and(|since| world.now.saturating_sub(since) >= elapsed_bound(&timings))
}

/// What a human's word is worth of a host that shows no life: a device that can be asked and
/// reads on needs the second field (safety §5).
pub(super) fn human_says(
    world: &World,
    facts: &HostFacts,
    word: Option<&Confirmation>,
) -> Result<(), String> {
    let Some(word) = word else { return Err("nobody has confirmed it".to_owned()) };
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
