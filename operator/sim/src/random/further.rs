//! Faults that the schedules of earlier days do not know, for a seed in three. They are drawn from a
//! stream of their own, so that the rest of a seed's schedule does not depend on them.

use super::generate::{Draw, FIRST, LAST, MENDED};
use crate::rng::Rng;

/// So many kinds of faults there are in here.
const KINDS: u64 = 12;

impl Draw {
    /// One to three further faults, and what a person does about them once all is mended.
    pub(super) fn further(&mut self, seed: u64) {
        let mut rng = Rng::stream(seed, "further");
        for _ in 0..rng.between(1, 3) {
            self.one_further(&mut rng);
        }
    }

    fn one_further(&mut self, rng: &mut Rng) {
        let at = rng.between(FIRST, LAST);
        let end = (at + rng.between(5, 120)).min(MENDED - 1);
        let host = rng.pick(&self.hosts).cloned().unwrap_or_default();
        let vm = rng.pick(&self.vms).cloned().unwrap_or_default();
        match rng.below(KINDS) {
            0 => {
                let process = ["agent", "beat", "feeder", "all"][rng.index(4)];
                let down = rng.between(0, 40);
                let how = format!("host: {host}, for: {down}, process: {process}");
                self.step(at, format!("do: restart-agent, {how}"));
            }
            1 => self.by_hand(rng, at, end, &host, &vm),
            2 => {
                self.step(at, "do: controller, is: stop");
                self.step(end, "do: controller, is: start");
            }
            3 => {
                self.step(at, format!("do: shutdown, host: {host}"));
                if rng.chance(0.5) {
                    self.step(end, format!("do: power-on, host: {host}"));
                }
                // One that held it back until all was mended goes down after the others were
                // switched on.
                self.step(MENDED + 100, format!("do: power-on, host: {host}"));
            }
            4 => self.step(at, format!("do: reboot, host: {host}")),
            5 => {
                self.step(at, format!("do: lock-manager, stale-lock: \"{vm}\", owner: {host}"));
                // Nobody releases it: it goes with its owner's boot.
                self.reset_by_hand(&host);
            }
            6 => {
                self.step(at, "do: pause");
                self.step(end, "do: resume");
            }
            7 => {
                self.step(at, format!("do: power-off, host: {host}"));
                let word = (at + rng.between(1, 40)).min(MENDED - 1);
                self.step(word, format!("do: confirm-dead, host: {host}"));
            }
            8 => self.device(rng, at, end, &host),
            // Rules come early: who waits for a host that a later one forbids waits for good.
            9 => {
                let other = rng.pick(&self.vms).filter(|other| **other != vm).cloned();
                if let Some(other) = other {
                    let rule = format!("apart: [\"{vm}\", \"{other}\"]");
                    self.step(FIRST - 18, format!("do: set, rule: {{{rule}}}"));
                }
            }
            10 => {
                let mut hosts = self.hosts.clone();
                hosts.retain(|other| *other != host);
                let hosts = hosts.join(", ");
                self.step(FIRST - 18, format!("do: set, vm: \"{vm}\", requires: [{hosts}]"));
            }
            _ => {
                let times = ["1", "3", "always"][rng.index(3)];
                self.step(at, format!("do: fail, op: journal, host: {host}, times: {times}"));
                self.step(end, format!("do: mend, op: journal, host: {host}"));
            }
        }
    }

    /// Someone starts a VM by libvirt. What came of it is destroyed once all is mended.
    fn by_hand(&mut self, rng: &mut Rng, at: u64, end: u64, host: &str, vm: &str) {
        if rng.chance(0.5) {
            self.step(at.saturating_sub(8), format!("do: stop, vm: \"{vm}\""));
            self.step(end, format!("do: start, vm: \"{vm}\""));
        }
        let past = if rng.chance(0.25) { ", unlocked: true" } else { "" };
        self.step(at, format!("do: virsh, action: start, vm: \"{vm}\", host: {host}{past}"));
        self.step(MENDED + 2, format!("do: virsh, action: destroy, vm: \"{vm}\", host: {host}"));
    }

    /// A fence device that tells an untruth, or falls silent with its host, and mostly a reason to
    /// ask it.
    fn device(&mut self, rng: &mut Rng, at: u64, end: u64, host: &str) {
        let is = ["lies-off", "wrong-host", "dies-with-host"][rng.index(3)];
        self.step(at, format!("do: bmc, host: {host}, is: {is}"));
        self.step(end, format!("do: bmc, host: {host}, is: ok"));
        let then = (at + rng.between(1, 20)).min(MENDED - 1);
        match (is, rng.chance(0.7)) {
            ("dies-with-host", true) => self.step(then, format!("do: power-off, host: {host}")),
            (_, true) => {
                self.step(then, format!("do: isolate, host: {host}"));
                self.step(end.max(then), format!("do: heal, host: {host}"));
            }
            _ => {}
        }
        if is != "dies-with-host" {
            // A human's word on copies that ran on behind the untruth.
            self.reset_by_hand(host);
        }
    }

    /// Someone resets a host. It is silent for as long as it boots, and may be shot for that.
    fn reset_by_hand(&mut self, host: &str) {
        self.step(MENDED + 1, format!("do: reset, host: {host}"));
        self.step(MENDED + 100, format!("do: power-on, host: {host}"));
    }
}
