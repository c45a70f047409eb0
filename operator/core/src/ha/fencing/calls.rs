//! What the log says of a host's fence devices: which calls count, and which rounds failed.

use stockade_crds::names::host_fence_name;
use stockade_crds::v1alpha1::{FenceAction, FenceDevice, FenceLevel};

use crate::ha::host_state::HostFacts;
use crate::world::{FenceRecord, FenceResult, Millis, World};

pub(super) fn levels<'a>(world: &'a World, facts: &HostFacts) -> &'a [FenceLevel] {
    world.hosts.get(&facts.name).map_or(&[], |h| h.spec.fencing.as_slice())
}

/// A device and its plug for a host, if both are of use: a plug that read off for a beating host
/// proves nothing, and an order through it may cut the power of another machine (safety §3).
pub(super) fn device<'a>(
    world: &'a World,
    name: &str,
    host: &str,
) -> Option<(&'a FenceDevice, String)> {
    let device = world.fence_devices.get(name)?.as_ref();
    let plug = device.spec.plugs.get(host)?;
    (!world.guards.plug_trust || !is_untrusted(device, host)).then(|| (device, plug.clone()))
}

/// Whether a device's plug read off while its host was beating, and was not tested since.
pub(super) fn is_untrusted(device: &FenceDevice, host: &str) -> bool {
    device.status.as_ref().is_some_and(|s| s.untrusted_hosts.iter().any(|h| h == host))
}

/// The calls that count: of this boot, begun while every path was already silent.
pub(super) fn calls<'a>(
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
                && c.boot_id == facts.boot
                && c.started >= since
        })
        .collect()
}

/// Since when calls count for a host: every path silent, or, for a host that was shot while it
/// lived (isolated, or a VM that would not die), since its certificate was opened.
pub(super) fn counts_since(world: &World, facts: &HostFacts) -> Millis {
    let name = host_fence_name(&facts.name, &facts.boot);
    let open = world.seen_since.get(&format!("fence-open/{name}")).copied();
    match (facts.silent_since, open) {
        (Some(silent), Some(open)) => silent.min(open),
        (Some(silent), None) => silent,
        (None, open) => open.unwrap_or(world.now),
    }
}

/// Whether nobody knows what an off order did: it and a reading failed, or two readings did.
pub(super) fn unread(off: &FenceRecord, reads: &[&FenceRecord]) -> bool {
    let failed = |r: &FenceRecord| matches!(r.result, FenceResult::Failed(_));
    let dead = reads.iter().filter(|r| failed(r)).count() + usize::from(failed(off));
    dead >= 2
}

/// Failed rounds: off orders whose device did not read off afterwards.
pub(super) fn failed_rounds(calls: &[&FenceRecord]) -> (usize, Option<Millis>) {
    let mut rounds = 0;
    let mut last = None;
    for off in calls.iter().filter(|c| c.action == FenceAction::Off) {
        let Some(done) = off.finished else { continue };
        let reads =
            calls.iter().copied().filter(|c| c.action == FenceAction::Status && c.started >= done);
        let reads: Vec<_> = reads.collect();
        let answered_on = reads.iter().any(|r| r.result == FenceResult::On);
        if answered_on || unread(off, &reads) {
            rounds += 1;
            last = reads.iter().filter_map(|r| r.finished).max();
        }
    }
    (rounds, last)
}

/// Hosts that one device reads off at present: a chassis manager may lie for all of them.
pub(super) fn off_by_one_device(world: &World, device: &str) -> usize {
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
