//! What failed moves teach: other hosts go first, and a preference waits before it tries again.

use std::collections::BTreeMap;

use stockade_crds::conditions::READY;
use stockade_crds::v1alpha1::{MigrationOutcome, VirtualMachineMigration};

use super::requests::KEPT;
use crate::placement::FailedMoves;
use crate::world::{Key, Millis, World};

/// A failed move counts for so long; Stockade's own are kept until then.
pub(super) const REMEMBERED: Millis = 600_000;

/// Failed moves to one host.
#[derive(Clone, Copy, Debug)]
struct Tries {
    count: u32,
    /// Since the last one.
    age: Millis,
}

/// The hosts that moves of each VM failed to reach lately.
#[derive(Debug, Default)]
pub(crate) struct Failed(BTreeMap<Key, BTreeMap<String, Tries>>);

/// How long ago a move was told to be over, by the clock of who told it.
fn over_for(world: &World, migration: &VirtualMachineMigration) -> Option<Millis> {
    let conditions = &migration.status.as_ref()?.conditions;
    let told = conditions.iter().find(|condition| condition.type_ == READY)?;
    let seconds = world.wall_seconds - told.last_transition_time.0.as_second();
    Some(Millis::try_from(seconds).unwrap_or(0).saturating_mul(1_000))
}

impl Failed {
    /// Those of this world.
    pub(crate) fn new(world: &World) -> Self {
        let mut all = Self::default();
        for (key, migration) in &world.migrations {
            let Some(status) = &migration.status else { continue };
            let (MigrationOutcome::Failed, Some(target)) = (status.outcome, &status.target) else {
                continue;
            };
            let Some(age) = over_for(world, migration).filter(|age| *age < REMEMBERED) else {
                continue;
            };
            let hosts = all.0.entry(Key::new(&key.namespace, &migration.spec.vm)).or_default();
            let tries = hosts.entry(target.clone()).or_insert(Tries { count: 0, age });
            *tries = Tries { count: tries.count + 1, age: tries.age.min(age) };
        }
        all
    }

    /// The hosts that failed a VM. Each failure doubles the time for which it is fresh.
    pub(crate) fn of(&self, vm: &Key) -> BTreeMap<String, FailedMoves> {
        let failed = |tries: &Tries| {
            let wait = KEPT.saturating_mul(1 << tries.count.clamp(1, 16).saturating_sub(1));
            FailedMoves { count: tries.count, fresh: tries.age < wait }
        };
        let hosts = self.0.get(vm).into_iter().flatten();
        hosts.map(|(host, tries)| (host.clone(), failed(tries))).collect()
    }
}
