//! The storm brake (safety §7): many silent hosts at once point at ourselves.

use std::collections::BTreeSet;

use stockade_crds::v1alpha1::{AvailabilityPolicySpec, FenceAction, HostState, IsolatedHost};

use super::host_state::{HostFacts, seconds};
use crate::plan::{Intent, Plan};
use crate::world::{FenceResult, Millis, World};

/// Automatic offs count for this long.
const MEMORY_SECONDS: i32 = 600;
/// The note of a shot covers what is ordered within this time, and counts for so much longer.
const NOTE_SECONDS: i32 = 30;
/// When a note that could not be written is tried again.
const NOTE_AGAIN_MILLIS: Millis = 1_000;

/// How the brake stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Brake {
    /// Hosts silent without a standing proof, and automatic offs of the last 10 minutes.
    pub count: usize,
    /// So many stop all automatic fencing.
    pub limit: usize,
}

impl Brake {
    /// Whether nobody may be shot without a human.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.count >= self.limit
    }

    /// Whether this host is not to be shot without a human: the shots that it got itself are no
    /// further host.
    pub(super) fn spares(&self, world: &World, facts: &HostFacts) -> bool {
        let own = !is_missed(world, facts) && shot_lately(world, &facts.name);
        self.count - usize::from(own) >= self.limit
    }
}

/// So many hosts at once are taken for a trouble of ours: max(2, 30 %) unless the policy says
/// another number.
#[must_use]
pub fn limit(world: &World) -> usize {
    let share = (world.hosts.len() * 3).div_ceil(10);
    let named = world.policy_spec().storm_brake_hosts;
    named.and_then(|n| usize::try_from(n).ok()).unwrap_or_else(|| share.max(2))
}

/// How the brake stands for these hosts. A host that was shot and is still silent counts once.
#[must_use]
pub fn brake(world: &World, hosts: &[HostFacts]) -> Brake {
    let limit = if world.guards.brake { limit(world) } else { usize::MAX };
    let counts = |h: &&HostFacts| is_missed(world, h) || shot_lately(world, &h.name);
    Brake { count: hosts.iter().filter(counts).count(), limit }
}

/// Whether a host counts though nobody has shot it.
fn is_missed(world: &World, facts: &HostFacts) -> bool {
    let silent = facts.silent_all && facts.proof.is_none() && !facts.went_down_cleanly;
    silent || waits_isolated(world.policy_spec(), facts) || back_lately(world, &facts.name)
}

/// Whether a host is isolated where that is a reason to shoot it.
fn waits_isolated(policy: &AvailabilityPolicySpec, facts: &HostFacts) -> bool {
    policy.isolated_host == IsolatedHost::Fence && facts.state == HostState::Isolated
}

/// Whether a host has only just come back from a silence in the same boot: hosts that fell
/// silent together come back together, and the last of them is no more dead than the first.
fn back_lately(world: &World, host: &str) -> bool {
    let policy = world.policy_spec();
    let memory = seconds(policy.act_seconds) + 2 * seconds(policy.heartbeat_seconds);
    let back = world.lives.hosts.get(host).and_then(|l| l.returned_at);
    back.is_some_and(|at| world.now.saturating_sub(at) < memory)
}

/// Whether a host may have been shot within the memory of the brake. The API says so, whoever led
/// then, by the wall clock: any other ends with its process.
fn shot_lately(world: &World, host: &str) -> bool {
    let memory = MEMORY_SECONDS + NOTE_SECONDS;
    // Of a time that lies ahead, by a clock that was wrong, this is all that is sure.
    let seen = world.age_of(&format!("shot/{host}"));
    since_shot(world, host).is_some_and(|age| age < i64::from(memory)) && seen < seconds(memory)
}

/// Seconds since a host's power was last to be cut.
fn since_shot(world: &World, host: &str) -> Option<i64> {
    let at = world.hosts.get(host)?.status.as_ref()?.last_shot_time.as_ref()?;
    Some(world.wall_seconds - at.0.as_second())
}

/// Withholds every shot of which the API does not know yet: it is noted now and ordered by the next
/// plan, so that a leader who dies in between leaves no shot that nobody counts. An off that is
/// ordered on a reading of off cuts nothing and needs no note.
pub(super) fn note_first(world: &World, hosts: &mut [HostFacts], out: &mut Plan) {
    if !world.guards.shot_noted {
        return;
    }
    let covers = 0..i64::from(NOTE_SECONDS);
    let noted = |host: &str| since_shot(world, host).is_some_and(|age| covers.contains(&age));
    let mut withheld = BTreeSet::new();
    out.intents.retain(|intent| {
        let Intent::Fence { host, boot_id, device, action: FenceAction::Off, .. } = intent else {
            return true;
        };
        let leaves = noted(host) || has_read_off(world, host, boot_id, device);
        if !leaves {
            withheld.insert(host.clone());
        }
        leaves
    });
    for facts in hosts.iter_mut().filter(|h| withheld.contains(&h.name)) {
        facts.shot_due = true;
        // If it can't be written now.
        out.wake(world.now + NOTE_AGAIN_MILLIS);
    }
}

/// Whether a plug has read off in this boot.
fn has_read_off(world: &World, host: &str, boot: &str, device: &str) -> bool {
    world.fence_log.iter().any(|c| {
        c.host == host && c.boot_id == boot && c.device == device && c.result == FenceResult::Off
    })
}
