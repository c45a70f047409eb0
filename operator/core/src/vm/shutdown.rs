//! What a host's clean shutdown or reboot means to its VMs (the policy's hostShutdown).

use stockade_crds::v1alpha1::{GoingDown, HostShutdown, Recovery, VirtualMachine, WaitsFor};

use crate::ha::host_state::{HostFacts, seconds};
use crate::world::{Millis, World};

/// What becomes of a wanted VM whose host goes down cleanly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It is stopped and waits for its host.
    Wait,
    /// It is stopped and starts elsewhere.
    Leave,
    /// It is moved live; nothing stops it yet.
    Move,
}

/// What becomes of this VM if its host goes down; `None`: the host does not.
#[must_use]
pub fn fate(world: &World, facts: &HostFacts, vm: &VirtualMachine) -> Option<Fate> {
    let how = facts.going_down?;
    let policy = world.policy_spec();
    Some(match policy.host_shutdown {
        HostShutdown::Freeze => Fate::Wait,
        HostShutdown::Failover => Fate::Leave,
        HostShutdown::Conditional if how == GoingDown::Reboot => Fate::Wait,
        HostShutdown::Conditional => Fate::Leave,
        // Half of the time that the host may be held back is for moves, the rest for stops.
        HostShutdown::Migrate
            if vm.spec.migration.live
                && going_down_for(world, &facts.name)
                    < seconds(policy.host_shutdown_limit_seconds) / 2 =>
        {
            Fate::Move
        }
        HostShutdown::Migrate => Fate::Leave,
    })
}

/// Milliseconds since a host was first seen to go down.
fn going_down_for(world: &World, host: &str) -> Millis {
    world.age_of(&format!("going-down/{host}"))
}

/// The host that a VM with this fate waits for, if it does.
pub(super) fn waits(fate: Fate, vm: &VirtualMachine, host: &str) -> Option<WaitsFor> {
    match fate {
        Fate::Wait => Some(WaitsFor { host: host.to_owned(), held: true }),
        Fate::Leave | Fate::Move if vm.spec.availability.recovery == Recovery::None => {
            Some(WaitsFor { host: host.to_owned(), held: false })
        }
        Fate::Leave | Fate::Move => None,
    }
}
