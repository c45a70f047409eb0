//! Tight cases: nothing that could be placed is left unplaced.

use super::super::testkit::*;
use super::super::*;

/// A generator of its own: the same cases on every machine.
struct Dice(u64);

impl Dice {
    fn upto(&mut self, n: i64) -> i64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as i64
    }
}

/// Hosts filled to 95 % of CPU and memory by a packing that is known to exist.
fn planted(seed: u64) -> (Vec<HostRow>, Vec<VmRow>) {
    let mut dice = Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let n = 3 + dice.upto(10);
    let (mut all, mut vms) = (Vec::new(), Vec::new());
    for h in 0..n {
        let mut row = host(&format!("h{h:02}"));
        row.cpu = [16_000, 32_000, 64_000][dice.upto(3) as usize];
        row.memory_mib = row.cpu / 1000 * [4096, 2048, 8192][dice.upto(3) as usize];
        let (mut cpu, mut mib) = (row.cpu * 95 / 100, row.memory_mib * 95 / 100);
        let pieces = 2 + dice.upto(7);
        for p in 0..pieces {
            let last = p == pieces - 1;
            let share = |dice: &mut Dice, left: i64| {
                if last { left } else { left * (10 + dice.upto(40)) / 100 }
            };
            let (c, m) = (share(&mut dice, cpu), share(&mut dice, mib));
            (cpu, mib) = (cpu - c, mib - m);
            vms.push(VmRow { cpu: c, memory_mib: m, ..vm(&format!("{h:02}{p:02}")) });
        }
        all.push(row);
    }
    (all, vms)
}

#[test]
fn tight_cases_that_a_packing_fits_are_all_placed() {
    let mut left = Vec::new();
    for seed in 1..=1000 {
        let (hosts, vms) = planted(seed);
        let keys: Vec<VmKey> = vms.iter().map(|v| v.key.clone()).collect();
        let cluster = Cluster::new(hosts, vms);
        let answers = place(&cluster, &keys, Mode::Start);
        let unplaced = answers.values().filter(|a| a.is_err()).count();
        if unplaced > 0 {
            left.push((seed, unplaced));
        }
    }
    assert!(left.is_empty(), "{} cases with VMs left unplaced: {left:?}", left.len());
}
