//! Moves: one record names both sides of each, and every end is defined (safety §8).
//!
//! ```text
//! VirtualMachineMigration ─► preflight ─no─► Refused
//!        │ yes                   (requests)
//!        ▼
//! compare-and-swap on the VM: migration = {this move}, epoch e+1 Incoming on the target
//!        │                                                                     (live)
//!        ▼
//! Prepare (target) ─► Copy (source) ─┬─ the target runs ─► swap: e+1 is the VM's ─► e released
//!        │ called off, failed        └─ failed, called off ─► Abort: e+1 void and burnt
//!        ▼
//! by stop and start: stop e ─► start on the target, or else where it was      (cold)
//! ```
//! Stockade's own moves (drain, repair, failback, levelling: `auto`) are the same
//! objects, made and removed by the controller.

mod auto;
pub(crate) mod cold;
mod failed;
pub(crate) mod live;
mod requests;

use std::collections::BTreeMap;

use stockade_crds::names::CAUSE_LABEL;
use stockade_crds::v1alpha1::{
    HostMode, HostShutdown, HostState, MigrationOutcome, Rebalance, VirtualMachine,
    VirtualMachineMigration, VmMove,
};

use crate::ha::host_state::HostFacts;
use crate::placement::Cluster;
use crate::plan::Plan;
use crate::vm::Decision;
use crate::world::{Key, Millis, World};

pub use auto::drain_preview;
pub(crate) use failed::Failed;
pub use live::undecided;

/// Carries moves on, begins those that may begin, and orders Stockade's own.
pub(crate) fn plan(
    world: &World,
    facts: &[HostFacts],
    cluster: Option<&Cluster>,
    decisions: &mut BTreeMap<Key, Decision>,
    out: &mut Plan,
) {
    let empty = Cluster::new(Vec::new(), Vec::new());
    let cluster = cluster.unwrap_or(&empty);
    let cluster = requests::plan(world, facts, cluster, decisions, out);
    auto::plan(world, facts, &cluster, decisions, out);
}

/// Whether anything is moved or may have to be, so that the books of placement are needed.
pub(crate) fn needs_books(world: &World, facts: &[HostFacts]) -> bool {
    let placement = |vm: &VirtualMachine| {
        let p = &vm.spec.placement;
        p.failback
            || !(p.required_hosts.is_empty()
                && p.host_selector.is_empty()
                && p.together_with.is_empty()
                && p.apart_from.is_empty())
    };
    let maintained = |f: &HostFacts| {
        let mode = world.hosts.get(&f.name).map(|h| h.spec.mode);
        mode == Some(HostMode::Maintenance) || drains(world, f)
    };
    !world.migrations.is_empty()
        || world.policy_spec().rebalance != Rebalance::Never
        || facts.iter().any(maintained)
        || world.vms.values().any(|vm| placement(vm))
}

/// Whether a host is being emptied: in maintenance, or going down under a policy that moves
/// its VMs first.
#[must_use]
pub fn drains(world: &World, facts: &HostFacts) -> bool {
    match facts.state {
        HostState::Maintenance => facts.alive,
        HostState::ShuttingDown => {
            world.policy.as_ref().is_some_and(|p| p.spec.host_shutdown == HostShutdown::Migrate)
        }
        _ => false,
    }
}

/// The object of a move that is under way.
pub(crate) fn object<'a>(
    world: &'a World,
    namespace: &str,
    moving: &VmMove,
) -> Option<&'a VirtualMachineMigration> {
    let found = world.migrations.get(&Key::new(namespace, &moving.name))?;
    (found.metadata.uid.as_deref() == Some(moving.uid.as_str())).then_some(found.as_ref())
}

/// Whether a move is to be called off: its object is gone or going, or says that it is over.
pub(crate) fn withdrawn(world: &World, namespace: &str, moving: &VmMove) -> bool {
    object(world, namespace, moving)
        .is_none_or(|m| m.metadata.deletion_timestamp.is_some() || is_over(m))
}

/// How long the outcome of a move, Pending too, has been what it is.
pub(crate) fn age(world: &World, migration: &VirtualMachineMigration) -> Millis {
    let uid = migration.metadata.uid.as_deref().unwrap_or_default();
    world.age_of(&format!("migration/{uid}"))
}

/// Whether the outcome of a move stands.
pub(crate) fn is_over(migration: &VirtualMachineMigration) -> bool {
    migration.status.as_ref().is_some_and(|s| s.outcome != MigrationOutcome::Pending)
}

/// Why Stockade ordered a move itself; `None`: a user did.
pub(crate) fn cause(migration: &VirtualMachineMigration) -> Option<&str> {
    migration.metadata.labels.as_ref()?.get(CAUSE_LABEL).map(String::as_str)
}

/// The facts of one host.
pub(crate) fn facts_of<'a>(facts: &'a [HostFacts], host: &str) -> Option<&'a HostFacts> {
    facts.iter().find(|f| f.name == host)
}

#[cfg(test)]
mod tests;
