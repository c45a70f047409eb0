//! What failed moves teach: other hosts go first, and a preference waits before it tries again.

use std::collections::BTreeMap;

use stockade_crds::v1alpha1::MigrationOutcome;

use super::requests::KEPT;
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

impl Failed {
    /// Those of this world.
    pub(crate) fn new(world: &World) -> Self {
        let mut all = Self::default();
        for (key, migration) in &world.migrations {
            let Some(status) = &migration.status else { continue };
            let (MigrationOutcome::Failed, Some(target)) = (status.outcome, &status.target) else {
                continue;
            };
            let uid = migration.metadata.uid.as_deref().unwrap_or_default();
            let age = world.age_of(&format!("migration/{uid}"));
            if age >= REMEMBERED {
                continue;
            }
            let hosts = all.0.entry(Key::new(&key.namespace, &migration.spec.vm)).or_default();
            let tries = hosts.entry(target.clone()).or_insert(Tries { count: 0, age });
            *tries = Tries { count: tries.count + 1, age: tries.age.min(age) };
        }
        all
    }

    /// The hosts that failed a VM, each with whether it is too early to try again without need: each
    /// failure doubles the wait.
    pub(crate) fn of(&self, vm: &Key) -> impl Iterator<Item = (&str, bool)> {
        self.0.get(vm).into_iter().flatten().map(|(host, tries)| {
            let wait = KEPT.saturating_mul(1 << tries.count.clamp(1, 16).saturating_sub(1));
            (host.as_str(), tries.age < wait)
        })
    }
}
