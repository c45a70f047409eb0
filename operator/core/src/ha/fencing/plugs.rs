//! Status tests, periodic and on request: whether a plug may be believed.

use stockade_crds::conditions::{Decided, READY};
use stockade_crds::names::FENCE_TEST_ANNOTATION;
use stockade_crds::v1alpha1::{AskedReading, FenceAction};

use crate::ha::host_state::{HostFacts, seconds};
use crate::plan::{Intent, Plan, Report};
use crate::world::{FenceRecord, FenceResult, Millis, World};

/// Periodic status tests of every plug of a beating host: trust is earned by reading on.
pub(super) fn tests(world: &World, hosts: &[HostFacts], out: &mut Plan) {
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
            let reads: Vec<&FenceRecord> = world
                .fence_log
                .iter()
                .filter(|c| {
                    c.device == *name
                        && c.host == *host
                        && c.generation == generation
                        // What a boot read says nothing about the next one.
                        && c.boot_id == facts.boot
                        && c.action == FenceAction::Status
                })
                .collect();
            let last = reads.last().copied();
            match last.map(|c| &c.result) {
                Some(FenceResult::On) if facts.alive => {
                    status.untrusted_hosts.retain(|h| h != host);
                    if !status.trusted_hosts.contains(host) {
                        status.trusted_hosts.push(host.clone());
                    }
                }
                Some(FenceResult::Off) if lived_after(world, facts, since_on(&reads)) => {
                    status.trusted_hosts.retain(|h| h != host);
                    if !status.untrusted_hosts.contains(host) {
                        status.untrusted_hosts.push(host.clone());
                    }
                }
                Some(FenceResult::Failed(why)) => failing.push(format!("{host}: {why}")),
                _ => {}
            }
            let asked = asked(world, host);
            if let (Some((id, at)), Some(read)) = (&asked, last)
                && read.started >= *at
                && let Some(result) = said(&read.result)
            {
                status.asked.retain(|a| a.host != *host);
                let (host, request) = (host.clone(), id.chars().take(128).collect());
                status.asked.push(AskedReading { host, request, result });
            }
            let due = match last {
                None => 0,
                Some(c) if asked.is_some_and(|(_, at)| c.started < at) => 0,
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
                    acts: false,
                });
                break;
            } else if beats && due > world.now && due != Millis::MAX {
                out.wake(due);
            }
        }
        status.asked.retain(|a| device.spec.plugs.contains_key(&a.host));
        status.asked.sort_by(|a, b| a.host.cmp(&b.host));
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

/// What a person asks of a host's plugs, and since when.
fn asked(world: &World, host: &str) -> Option<(String, Millis)> {
    let annotations = world.hosts.get(host)?.metadata.annotations.as_ref()?;
    let id = annotations.get(FENCE_TEST_ANNOTATION)?;
    Some((id.clone(), *world.seen_since.get(&format!("fence-test/{host}"))?))
}

/// A reading in the words of a status; `None`: it is under way.
fn said(result: &FenceResult) -> Option<String> {
    Some(match result {
        FenceResult::Pending => return None,
        FenceResult::On => "On".to_owned(),
        FenceResult::Off => "Off".to_owned(),
        FenceResult::Done => "Done".to_owned(),
        FenceResult::Failed(why) => why.chars().take(500).collect(),
    })
}

/// The first reading of off since the plug last read on: a host whose power is read every second
/// may beat between two readings, and never three intervals after the last.
fn since_on<'a>(reads: &[&'a FenceRecord]) -> Option<&'a FenceRecord> {
    let after = reads.iter().rposition(|c| c.result == FenceResult::On).map_or(0, |i| i + 1);
    reads.get(after..)?.iter().find(|c| c.result == FenceResult::Off).copied()
}

/// Whether the host beat after a reading. A beat is seen late, by a reader and its Lease, an
/// interval each: only one that is seen three intervals later was made later.
fn lived_after(world: &World, facts: &HostFacts, read: Option<&FenceRecord>) -> bool {
    let late = 3 * seconds(world.policy_spec().heartbeat_seconds);
    let life = world.lives.surely_alive_at(&facts.name, &facts.boot, world.now, late);
    read.and_then(|r| r.finished).is_some_and(|end| life.is_some_and(|at| at > end + late))
}
