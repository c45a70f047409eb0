//! Tight packing: all items into the bins, or a bound on the work is reached.
//!
//! First-choice orders with best fit solve most cases. The rest is left to a tabu
//! search over assignments that may overfill bins: it shifts one item or swaps
//! two, taking what lessens the overflow most (or worsens it least).

use super::ledger::NOWHERE;

/// Something of a size that must go to one of some bins.
pub(super) struct Item {
    /// CPU in thousandths.
    pub(super) cpu: i64,
    /// Memory in MiB.
    pub(super) mib: i64,
    /// Bins that may hold it.
    pub(super) hosts: Vec<u32>,
    /// Items that may not share its bin.
    pub(super) apart: Vec<u32>,
}

/// What is free in each bin.
#[derive(Clone)]
pub(super) struct Bins {
    /// CPU in thousandths.
    pub(super) cpu: Vec<i64>,
    /// Memory in MiB.
    pub(super) mib: Vec<i64>,
}

/// Assigns every item to a bin, or none. `start` is an assignment to begin
/// with ([`NOWHERE`]: not assigned). Takes what it spends off `budget`.
pub(super) fn pack(
    items: &[Item],
    bins: &Bins,
    start: Vec<u32>,
    budget: &mut i64,
) -> Option<Vec<u32>> {
    if !could_fit(items, bins) {
        return None;
    }
    for order in 0..4 {
        if let Some(found) = best_fit(items, bins, order, budget) {
            return Some(found);
        }
    }
    Search::new(items, bins, start).run(budget)
}

/// Whether the sums leave a hope at all.
fn could_fit(items: &[Item], bins: &Bins) -> bool {
    let mut used = vec![false; bins.cpu.len()];
    items.iter().flat_map(|i| &i.hosts).for_each(|h| used[*h as usize] = true);
    let free = |of: &[i64]| -> i64 {
        of.iter().zip(&used).filter(|(_, used)| **used).map(|(free, _)| (*free).max(0)).sum()
    };
    items.iter().map(|i| i.cpu).sum::<i64>() <= free(&bins.cpu)
        && items.iter().map(|i| i.mib).sum::<i64>() <= free(&bins.mib)
}

/// Largest first into the fullest bin that takes it; `order` says what large means.
fn best_fit(items: &[Item], bins: &Bins, order: u32, budget: &mut i64) -> Option<Vec<u32>> {
    let (cpu, mib) = scales(items);
    let size = |i: &Item| {
        let (c, m) = (i.cpu * cpu, i.mib * mib);
        match order {
            0 => c.max(m),
            1 => c + m,
            2 => m,
            _ => c,
        }
    };
    let mut queue: Vec<usize> = (0..items.len()).collect();
    let scarce = |i: &Item| if order == 0 { 0 } else { i.hosts.len() };
    queue.sort_by_key(|i| (scarce(&items[*i]), -size(&items[*i]), *i));
    let mut free = bins.clone();
    let mut at = vec![NOWHERE; items.len()];
    for i in queue {
        let item = &items[i];
        *budget -= item.hosts.len() as i64;
        let taken = |h: u32| item.apart.iter().any(|other| at[*other as usize] == h);
        let best = item
            .hosts
            .iter()
            .copied()
            .filter(|h| {
                free.cpu[*h as usize] >= item.cpu && free.mib[*h as usize] >= item.mib && !taken(*h)
            })
            .min_by_key(|h| {
                let left_cpu = (free.cpu[*h as usize] - item.cpu) * cpu;
                let left_mib = (free.mib[*h as usize] - item.mib) * mib;
                (left_cpu.max(left_mib), *h)
            })?;
        free.cpu[best as usize] -= item.cpu;
        free.mib[best as usize] -= item.mib;
        at[i] = best;
    }
    Some(at)
}

/// Factors that make CPU and memory comparable: a mean item is a million of each.
fn scales(items: &[Item]) -> (i64, i64) {
    let n = items.len().max(1) as i64;
    let mean = |sum: i64| (1_000_000 * n / sum.max(1)).max(1);
    (mean(items.iter().map(|i| i.cpu).sum()), mean(items.iter().map(|i| i.mib).sum()))
}

/// Two that must be apart in one bin weigh as much as two mean items of overflow.
const CLASH: i64 = 2_000_000;

struct Search<'a> {
    items: &'a [Item],
    scale: (i64, i64),
    /// Free by bin; below zero: overflow.
    free: Bins,
    at: Vec<u32>,
    /// Items by bin.
    inside: Vec<Vec<u32>>,
    /// Whether an item may go to a bin.
    may: Vec<bool>,
    width: usize,
    cost: i64,
    /// Until which round an item stays.
    tabu: Vec<u64>,
    dice: u64,
}

#[derive(Clone, Copy)]
struct Step {
    delta: i64,
    item: u32,
    to: u32,
    back: Option<u32>,
}

impl<'a> Search<'a> {
    fn new(items: &'a [Item], bins: &Bins, start: Vec<u32>) -> Self {
        let width = bins.cpu.len();
        let mut may = vec![false; items.len() * width];
        for (i, item) in items.iter().enumerate() {
            item.hosts.iter().for_each(|h| may[i * width + *h as usize] = true);
        }
        let mut search = Self {
            items,
            scale: scales(items),
            free: bins.clone(),
            at: vec![NOWHERE; items.len()],
            inside: vec![Vec::new(); width],
            may,
            width,
            cost: 0,
            tabu: vec![0; items.len()],
            dice: 0x9E37_79B9_7F4A_7C15,
        };
        let fresh: Vec<u32> = (0..items.len() as u32)
            .filter(|i| {
                let to = start[*i as usize];
                let known = to != NOWHERE && search.allowed(*i, to);
                if known {
                    search.cost += search.add_cost(*i, to);
                    search.put(*i, to);
                }
                !known
            })
            .collect();
        for i in fresh {
            let hosts = &items[i as usize].hosts;
            if let Some(to) = hosts.iter().copied().min_by_key(|h| (search.add_cost(i, *h), *h)) {
                search.cost += search.add_cost(i, to);
                search.put(i, to);
            }
        }
        search
    }

    fn run(mut self, budget: &mut i64) -> Option<Vec<u32>> {
        let mut best = self.cost;
        let mut stalled = 0u32;
        for round in 1u64.. {
            if self.cost == 0 {
                return Some(self.at);
            }
            if *budget <= 0 {
                return None;
            }
            let step = self.choose(round, best, budget)?;
            self.take(step, round);
            if self.cost < best {
                (best, stalled) = (self.cost, 0);
            } else {
                stalled += 1;
            }
            if stalled > 400 {
                self.shake();
                (best, stalled) = (self.cost, 0);
            }
        }
        None
    }

    fn roll(&mut self, n: usize) -> usize {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice % n.max(1) as u64) as usize
    }

    fn allowed(&self, item: u32, host: u32) -> bool {
        self.may[item as usize * self.width + host as usize]
    }

    fn over(&self, cpu: i64, mib: i64) -> i64 {
        (-cpu).max(0) * self.scale.0 + (-mib).max(0) * self.scale.1
    }

    fn clashes(&self, item: u32, host: u32, but: u32) -> i64 {
        let apart = &self.items[item as usize].apart;
        let n = apart.iter().filter(|o| **o != but && self.at[**o as usize] == host).count();
        n as i64 * CLASH
    }

    /// What the overflow of `host` changes by if it gains (cpu, mib).
    fn change(&self, host: u32, cpu: i64, mib: i64) -> i64 {
        let (c, m) = (self.free.cpu[host as usize], self.free.mib[host as usize]);
        self.over(c - cpu, m - mib) - self.over(c, m)
    }

    fn add_cost(&self, item: u32, host: u32) -> i64 {
        let i = &self.items[item as usize];
        self.change(host, i.cpu, i.mib) + self.clashes(item, host, NOWHERE)
    }

    fn put(&mut self, item: u32, host: u32) {
        let i = &self.items[item as usize];
        self.free.cpu[host as usize] -= i.cpu;
        self.free.mib[host as usize] -= i.mib;
        self.at[item as usize] = host;
        self.inside[host as usize].push(item);
    }

    fn lift(&mut self, item: u32) -> u32 {
        let i = &self.items[item as usize];
        let host = std::mem::replace(&mut self.at[item as usize], NOWHERE);
        self.free.cpu[host as usize] += i.cpu;
        self.free.mib[host as usize] += i.mib;
        self.inside[host as usize].retain(|other| *other != item);
        host
    }

    /// A bin that is overfull or holds two that must be apart.
    fn trouble(&mut self) -> Option<u32> {
        let bad = |h: &usize| {
            self.over(self.free.cpu[*h], self.free.mib[*h]) > 0 && !self.inside[*h].is_empty()
                || self.inside[*h].iter().any(|i| self.clashes(*i, *h as u32, NOWHERE) > 0)
        };
        let hosts: Vec<usize> = (0..self.width).filter(bad).collect();
        let n = self.roll(hosts.len());
        hosts.get(n).map(|h| *h as u32)
    }

    fn choose(&mut self, round: u64, best: i64, budget: &mut i64) -> Option<Step> {
        let from = self.trouble()?;
        *budget -= self.width as i64 / 4 + 1;
        let (mut chosen, mut ties) = (None::<Step>, 0);
        let mut spent = 0;
        for n in 0..self.inside[from as usize].len() {
            let item = self.inside[from as usize][n];
            let size = &self.items[item as usize];
            let leave = -self.clashes(item, from, NOWHERE);
            for to in &size.hosts {
                if *to == from {
                    continue;
                }
                spent += 1 + self.inside[*to as usize].len() as i64;
                let shift = self.change(from, -size.cpu, -size.mib)
                    + self.change(*to, size.cpu, size.mib)
                    + leave
                    + self.clashes(item, *to, NOWHERE);
                let alone = Step { delta: shift, item, to: *to, back: None };
                if self.tabu[item as usize] <= round || self.cost + shift < best {
                    keep(&mut chosen, &mut ties, alone, &mut self.dice);
                }
                for other in &self.inside[*to as usize] {
                    let swap = &self.items[*other as usize];
                    if !self.allowed(*other, from) {
                        continue;
                    }
                    let (cpu, mib) = (size.cpu - swap.cpu, size.mib - swap.mib);
                    if cpu == 0 && mib == 0 && size.apart.is_empty() && swap.apart.is_empty() {
                        continue;
                    }
                    let delta = self.change(from, -cpu, -mib)
                        + self.change(*to, cpu, mib)
                        + leave
                        + self.clashes(item, *to, *other)
                        - self.clashes(*other, *to, NOWHERE)
                        + self.clashes(*other, from, item);
                    let free =
                        self.tabu[item as usize] <= round && self.tabu[*other as usize] <= round;
                    if free || self.cost + delta < best {
                        let step = Step { delta, item, to: *to, back: Some(*other) };
                        keep(&mut chosen, &mut ties, step, &mut self.dice);
                    }
                }
            }
        }
        *budget -= spent;
        if chosen.is_none() {
            // All stay put for now: the oldest taboo ends.
            self.tabu.iter_mut().for_each(|until| *until = 0);
            self.shake();
            return Some(Step { delta: 0, item: 0, to: self.at[0], back: None });
        }
        chosen
    }

    fn take(&mut self, step: Step, round: u64) {
        let from = self.at[step.item as usize];
        if from == step.to {
            return;
        }
        self.cost += step.delta;
        self.lift(step.item);
        if let Some(other) = step.back {
            self.lift(other);
            self.put(other, from);
            self.tabu[other as usize] = round + 4 + self.roll(8) as u64;
        }
        self.put(step.item, step.to);
        self.tabu[step.item as usize] = round + 4 + self.roll(8) as u64;
    }

    /// Throws some items about.
    fn shake(&mut self) {
        for _ in 0..1 + self.items.len() / 10 {
            let item = self.roll(self.items.len()) as u32;
            let n = self.roll(self.items[item as usize].hosts.len());
            let to = self.items[item as usize].hosts[n];
            let from = self.lift(item);
            self.cost -= self.add_cost(item, from);
            self.cost += self.add_cost(item, to);
            self.put(item, to);
        }
    }
}

/// Keeps the step that costs least, any of those that cost the same.
fn keep(chosen: &mut Option<Step>, ties: &mut u64, step: Step, dice: &mut u64) {
    match chosen {
        Some(best) if best.delta < step.delta => {}
        Some(best) if best.delta == step.delta => {
            *ties += 1;
            *dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            if (*dice >> 33).is_multiple_of(*ties + 1) {
                *chosen = Some(step);
            }
        }
        _ => {
            *ties = 0;
            *chosen = Some(step);
        }
    }
}
