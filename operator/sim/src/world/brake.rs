//! Judges the storm brake by what is dark in the world, whatever anybody believes (S13, safety §7).

use std::collections::BTreeSet;

use super::World;
use super::model::{Kernel, Machine, Net, Way};
use crate::oracle::Rule;

/// Automatic offs count for ten minutes; what is at the edge of it is nobody's fault.
const MEMORY_MS: u64 = 590_000;

/// What the brake is measured by.
#[derive(Clone, Debug)]
pub struct Storm {
    /// The policy's number of hosts; `None`: max(2, 30 %).
    pub named: Option<usize>,
    /// Hosts that are declared.
    pub declared: BTreeSet<String>,
    /// A host that was dark for so long is missed by every leader that may shoot, milliseconds.
    pub missed_ms: u64,
    /// Boots that a human has declared dead: host and boot id.
    pub confirmed: BTreeSet<(String, String)>,
    /// Orders to cut the power of hosts that had it, whoever led: host, and when.
    shots: Vec<(String, u64)>,
}

impl Default for Storm {
    fn default() -> Self {
        Self {
            named: None,
            declared: BTreeSet::new(),
            missed_ms: 14_000,
            confirmed: BTreeSet::new(),
            shots: Vec::new(),
        }
    }
}

impl Machine {
    /// Whether nothing that it could send arrives anywhere.
    fn is_dark(&self) -> bool {
        let cut = |net| !self.passes(net, Way::Out);
        self.kernel != Kernel::Up || (cut(Net::Api) && cut(Net::Storage))
    }
}

impl World {
    /// A kernel or a network of a host has changed.
    pub(super) fn darken(&mut self, host: &str) {
        let now = self.now();
        let Some(m) = self.machines.get_mut(host) else { return };
        if m.kernel == Kernel::Up {
            m.went_down_cleanly = false;
        }
        m.dark_since = match m.dark_since {
            _ if !m.is_dark() || m.went_down_cleanly => None,
            None => Some(now),
            since => since,
        };
    }

    /// Judges an order to cut the power of a host that has it.
    pub(super) fn judge_brake(&mut self, host: &str) {
        let (now, at) = (self.now(), self.since_zero());
        let Some(m) = self.machines.get(host) else { return };
        let boot = (host.to_owned(), m.boot_id.clone());
        // What is booting read off a moment ago: such an order needs no leave.
        if !m.powered() || !matches!(m.kernel, Kernel::Up | Kernel::Hung) {
            return;
        }
        let (dark, lied) = (m.dark_since, self.untrue(host, &m.boot_id));
        let shot = |name: &str| {
            let lately = |at: u64| now.saturating_sub(at) < MEMORY_MS && !self.two_leaders;
            self.storm.shots.iter().any(|(h, at)| h == name && lately(*at))
        };
        let missed = |o: &Machine| {
            let announced = now < o.announced_until;
            // While nobody has heard a boot, what is known of its host is known of the one before.
            let standing = [Some(o.boot_id.as_str()), self.last_heard(&o.name)]
                .into_iter()
                .flatten()
                .any(|boot| self.certified.contains(&(o.name.clone(), boot.to_owned())));
            let long = o.dark_since.is_some_and(|since| since + self.storm.missed_ms <= now);
            long && !announced && !standing
        };
        let others: Vec<&str> = self
            .machines
            .values()
            .filter(|o| o.name != host && self.storm.declared.contains(&o.name))
            // Of what a device tells an untruth nobody knows that it is dark, or has power.
            .filter(|o| !self.untrue(&o.name, &o.boot_id))
            .filter(|o| shot(&o.name) || missed(o))
            .map(|o| o.name.as_str())
            .collect();
        let count = others.len() + usize::from(dark.is_some());
        let share = (self.storm.declared.len() * 3).div_ceil(10).max(2);
        let limit = self.storm.named.unwrap_or(share);
        let broken = (count >= limit).then(|| {
            format!("{host} was shot beside {}: the brake holds at {limit}", others.join(", "))
        });
        // A human's word needs no leave of the brake.
        if !self.storm.confirmed.contains(&boot) {
            self.oracle.judge(at, Rule::Brake, broken, lied);
        }
        self.storm.shots.push((host.to_owned(), now));
    }
}
