//! One move by stop and start.

use stockade_crds::v1alpha1::{EpochState, HostState, VirtualMachineStatus, VmMove};

use crate::ha::host_state::{HostFacts, is_confirmed};
use crate::world::World;

use super::facts_of;

/// Whether a move by stop and start still leads to its target.
pub(crate) const fn leads_away(m: &VmMove) -> bool {
    !m.live && !m.returning
}

/// Whether the VM is to stop where it is, because it moves by stop and start.
pub(crate) fn leaves(status: &VirtualMachineStatus) -> bool {
    status.migration.as_ref().is_some_and(|m| {
        leads_away(m)
            && m.epoch == 0
            && status.placements.iter().any(|p| p.epoch == m.source_epoch && !p.state.is_settled())
    })
}

/// Turns a move back once the target could not start the VM, or the move was called off
/// before the target was ordered to.
pub(crate) fn turn_back(status: &mut VirtualMachineStatus, withdrawn: bool) {
    let failures = status.failures.clone().unwrap_or_default();
    let Some(m) = status.migration.as_mut().filter(|m| !m.live) else { return };
    let died = m.epoch > 0
        && status
            .placements
            .iter()
            .any(|p| p.epoch == m.epoch && p.state == EpochState::ProvenDead);
    let refused = failures.tried_hosts.contains(&m.target);
    if refused || died || (withdrawn && m.epoch == 0) {
        m.returning = true;
    }
}

/// Whether a target that does not take its VM at this moment may do so by itself: nobody knows yet
/// what it is, or it will soon be known whether it lives. No move is given up for that.
pub(crate) fn may_yet_take(world: &World, m: &VmMove, hosts: &[HostFacts]) -> bool {
    facts_of(hosts, &m.target).is_some_and(|target| {
        !is_confirmed(world, &m.target)
            || matches!(target.state, HostState::Joining | HostState::Suspect | HostState::Isolated)
    })
}

/// Where a VM starts that moves by stop and start; `None`: wherever it fits.
pub(crate) fn start_on(m: &VmMove, hosts: &[HostFacts]) -> Option<String> {
    let wanted = if m.returning { &m.source } else { &m.target };
    let takes = facts_of(hosts, wanted).is_some_and(|f| f.refuses.is_none());
    (takes || !m.returning).then(|| wanted.clone())
}
