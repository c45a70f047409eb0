//! The storm brake (safety §7): many silent hosts at once point at ourselves.

use stockade_crds::v1alpha1::{AvailabilityPolicySpec, FenceAction, HostState, IsolatedHost};

use super::host_state::{HostFacts, seconds};
use crate::world::{Millis, World};

/// Automatic offs count for this long.
const MEMORY_MILLIS: Millis = 10 * 60 * 1000;

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
    let policy = world.policy_spec();
    let limit = if world.guards.brake { limit(world) } else { usize::MAX };
    let count = hosts
        .iter()
        .filter(|h| {
            let silent = h.silent_all && h.proof.is_none() && !h.went_down_cleanly;
            silent
                || waits_isolated(policy, h)
                || back_lately(world, &h.name)
                || shot_lately(world, &h.name)
        })
        .count();
    Brake { count, limit }
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

/// Whether an off order was sent, within the memory of the brake, to a host that did not
/// read off already.
fn shot_lately(world: &World, host: &str) -> bool {
    world.fence_log.iter().enumerate().any(|(i, call)| {
        call.host == host
            && call.action == FenceAction::Off
            && world.now.saturating_sub(call.started) < MEMORY_MILLIS
            && !world.fence_log[..i].iter().any(|before| {
                before.host == host
                    && before.boot_id == call.boot_id
                    && before.device == call.device
                    && before.result == crate::world::FenceResult::Off
                    && before.started < call.started
            })
    })
}
