//! What moves VMs without anybody's asking for it, in the schedules that are heavy with moves: strict
//! rules that come late, failback, levelling, drains, reboots that empty the host first. Drawn from a
//! stream of its own, so that the rest of a seed's schedule does not depend on it.

use super::generate::{Draw, FIRST, LAST, MENDED};
use crate::rng::Rng;

/// Wishes come this early: who waits for a host that a later rule forbids waits for good.
const EARLY: u64 = FIRST - 18;

impl Draw {
    /// What VMs and policy want, and what empties hosts.
    pub(super) fn moving(&mut self, seed: u64) {
        let mut rng = Rng::stream(seed, "moving");
        self.wishes(&mut rng);
        for _ in 0..rng.between(0, 2) {
            let at = rng.between(FIRST, LAST);
            let end = (at + rng.between(20, 120)).min(MENDED - 1);
            let host = rng.pick(&self.hosts).cloned().unwrap_or_default();
            match rng.below(4) {
                0 | 1 => {
                    self.step(at, format!("do: drain, host: {host}"));
                    self.step(end, format!("do: uncordon, host: {host}"));
                }
                2 => self.step(at, format!("do: reboot, host: {host}")),
                _ => {
                    let way = ["in", "out"][rng.index(2)];
                    let how = format!("host: {host}, paths: [migration], way: {way}");
                    self.step(at, format!("do: isolate, {how}"));
                    self.step(end, format!("do: heal, {how}"));
                }
            }
        }
    }

    fn wishes(&mut self, rng: &mut Rng) {
        let vm = |rng: &mut Rng, vms: &[String]| rng.pick(vms).cloned().unwrap_or_default();
        let (one, other) = (vm(rng, &self.vms), vm(rng, &self.vms));
        if one != other && rng.chance(0.5) {
            let kind = if rng.chance(0.6) { "together" } else { "apart" };
            self.step(EARLY, format!("do: set, rule: {{{kind}: [\"{one}\", \"{other}\"]}}"));
        }
        if rng.chance(0.5) {
            let (vm, home) = (vm(rng, &self.vms), vm(rng, &self.hosts));
            self.step(EARLY, format!("do: set, vm: \"{vm}\", prefers: [{home}], failback: true"));
        }
        if rng.chance(0.3) {
            let vm = vm(rng, &self.vms);
            self.step(EARLY, format!("do: set, vm: \"{vm}\", migratable: false"));
        }
        let policy = [
            "hostShutdown: Migrate",
            "rebalance: Requests, rebalanceHoldSeconds: 20",
            "migrationsPerHost: 1",
        ];
        if let Some(policy) = policy.get(rng.index(2 * policy.len())) {
            self.step(EARLY, format!("do: set, policy: {{{policy}}}"));
        }
    }
}
