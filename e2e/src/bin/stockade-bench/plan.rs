//! Row `plan`: where the VMs of a lost host go, and how tightly VMs are packed.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stockade_core::placement::{
    Acceptance, Cluster, HostRow, Mode, VmKey, VmRow, place, tolerates,
};
use stockade_crds::v1alpha1::HypervisorKind;

use crate::Options;
use crate::pacemaker::{self, Strategy};
use crate::report::{Error, Figure, quantile};

const PEER: &str = "Pacemaker crm_simulate";
const HOSTS: usize = 1000;
const LOST: usize = 100;

/// Measures the row.
///
/// # Errors
/// If the peer is there and fails.
pub fn run(options: &Options) -> Result<(), Error> {
    let peer = options.peer && pacemaker::present();
    if options.peer && !peer {
        eprintln!("bench: plan: crm_simulate (package pacemaker-cli-utils) is not installed");
    }
    failover(peer)?;
    crate::steady::run()?;
    tight(peer)
}

/// 1,000 hosts and 10,000 VMs with 100 on the host that is lost; every tenth VM has
/// a rule to be apart from another, every tenth prefers hosts.
fn cluster() -> (Vec<HostRow>, Vec<VmRow>) {
    let mut hosts: Vec<HostRow> =
        (0..HOSTS).map(|h| host(&format!("h{h:04}"), 64_000, 262_144)).collect();
    hosts[0].cpu = 256_000;
    hosts[0].memory_mib = 1_048_576;
    hosts[0].accepts = Acceptance::No("lost, proven dead".to_owned());
    let total = HOSTS * 10;
    let vms = (0..total).map(|v| {
        let at = if v < LOST { 0 } else { 1 + v % (HOSTS - 1) };
        VmRow {
            cpu: 1000 * (1 + v as i64 % 4),
            memory_mib: 2048 * (1 + v as i64 % 5),
            priority: v as i32 % 3,
            on: vec![format!("h{at:04}")],
            apart: if v % 10 == 3 { vec![name((v + 1) % total)] } else { Vec::new() },
            preferred: if v % 10 == 7 {
                vec![vec![format!("h{:04}", v % HOSTS)], vec![format!("h{:04}", (v + 5) % HOSTS)]]
            } else {
                Vec::new()
            },
            ..vm(v)
        }
    });
    (hosts, vms.collect())
}

fn failover(peer: bool) -> Result<(), Error> {
    const N: usize = 40;
    let (hosts, vms) = cluster();
    let wanted: Vec<VmKey> = vms[..LOST].iter().map(|v| v.key.clone()).collect();
    let (mut index, mut decide, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    let mut unplaced = 0;
    for _ in 0..N {
        let rows = (hosts.clone(), vms.clone());
        let begin = Instant::now();
        let cluster = Cluster::new(rows.0, rows.1);
        let indexed = begin.elapsed();
        let answers = place(&cluster, &wanted, Mode::Start);
        let done = begin.elapsed();
        unplaced = answers.values().filter(|a| a.is_err()).count();
        index.push(millis(indexed));
        decide.push(millis(done - indexed));
        whole.push(millis(done));
    }
    let theirs = if peer {
        eprintln!(
            "bench: plan: crm_simulate on {HOSTS} hosts and {} VMs, some two minutes",
            vms.len()
        );
        Some(pacemaker::plan(&hosts, &vms, Strategy::Default)?)
    } else {
        None
    };
    let figure = |figure, samples: &mut Vec<f64>, goal, part| Figure {
        row: "plan",
        figure,
        unit: "ms",
        ours: quantile(samples, part),
        goal,
        n: N,
        ..Figure::default()
    };
    Figure {
        peer: theirs.as_ref().map(|t| millis(t.took)),
        peer_name: theirs.as_ref().map(|_| PEER),
        ..figure("index and place 100 VMs of a lost host, P50", &mut whole, Some(5.0), 0.5)
    }
    .print()?;
    figure("index and place 100 VMs of a lost host, P99", &mut whole, Some(5.0), 0.99).print()?;
    figure("place alone, P50", &mut decide, Some(5.0), 0.5).print()?;
    figure("index alone, P50", &mut index, None, 0.5).print()?;
    Figure {
        row: "plan",
        figure: "VMs of the lost host left unplaced",
        unit: "VMs",
        ours: unplaced as f64,
        peer: theirs.as_ref().map(|t| t.stopped as f64),
        peer_name: theirs.as_ref().map(|_| PEER),
        goal: Some(0.0),
        n: N,
        ..Figure::default()
    }
    .print()?;
    let cluster = Cluster::new(hosts, vms);
    let mut samples: Vec<f64> = (0..5)
        .map(|_| {
            let begin = Instant::now();
            std::hint::black_box(tolerates(&cluster));
            millis(begin.elapsed())
        })
        .collect();
    Figure { n: 5, ..figure("host failures that still fit, counted, P50", &mut samples, None, 0.5) }
        .print()
}

fn tight(peer: bool) -> Result<(), Error> {
    const N: u64 = 1000;
    const SHARED: u64 = 100;
    let (mut ours, mut ours_shared, mut theirs) = (0, 0, 0);
    let mut samples = Vec::new();
    for seed in 1..=N {
        let (hosts, vms) = planted(seed);
        let wanted: Vec<VmKey> = vms.iter().map(|v| v.key.clone()).collect();
        let begin = Instant::now();
        let answers = place(&Cluster::new(hosts.clone(), vms.clone()), &wanted, Mode::Start);
        samples.push(millis(begin.elapsed()));
        let left = answers.values().filter(|a| a.is_err()).count();
        ours += left;
        if seed <= SHARED {
            ours_shared += left;
            if peer {
                theirs += pacemaker::plan(&hosts, &vms, Strategy::Balanced)?.stopped;
            }
        }
    }
    let figure =
        |figure, unit, ours| Figure { row: "plan", figure, unit, ours, ..Figure::default() };
    Figure {
        goal: Some(0.0),
        n: N as usize,
        ..figure("VMs left unplaced in 1,000 cases filled to 95 %", "VMs", ours as f64)
    }
    .print()?;
    Figure {
        peer: peer.then_some(theirs as f64),
        peer_name: peer.then_some(PEER),
        goal: Some(0.0),
        n: SHARED as usize,
        ..figure("the same, the first 100 cases", "VMs", ours_shared as f64)
    }
    .print()?;
    let n = samples.len();
    let p99 = quantile(&mut samples, 0.99);
    Figure { n, ..figure("time of such a case, P99", "ms", p99) }.print()
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}

fn name(v: usize) -> String {
    format!("vm{v:05}")
}

fn host(name: &str, cpu: i64, memory_mib: i64) -> HostRow {
    HostRow {
        name: name.to_owned(),
        cpu,
        memory_mib,
        hypervisors: BTreeSet::from([HypervisorKind::KVM]),
        storages: BTreeSet::from(["vms".to_owned()]),
        ..HostRow::default()
    }
}

fn vm(v: usize) -> VmRow {
    VmRow {
        key: VmKey::new("default", name(v)),
        storages: BTreeSet::from(["vms".to_owned()]),
        ..VmRow::default()
    }
}

/// A packing that is known to exist, at 95 % of each host's CPU and memory: hosts of
/// three sizes, each cut into two to eight VMs, all of them to be placed anew.
fn planted(seed: u64) -> (Vec<HostRow>, Vec<VmRow>) {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut upto = |n: i64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % n.max(1) as u64) as i64
    };
    let n = 3 + upto(10);
    let (mut hosts, mut vms) = (Vec::new(), Vec::new());
    for h in 0..n {
        let cpu = [16_000, 32_000, 64_000][upto(3) as usize];
        let mib = cpu / 1000 * [2048, 4096, 8192][upto(3) as usize];
        hosts.push(host(&format!("h{h:02}"), cpu, mib));
        let (mut cpu, mut mib) = (cpu * 95 / 100, mib * 95 / 100);
        let pieces = 2 + upto(7);
        for piece in 0..pieces {
            let mut cut = |left: i64| match piece == pieces - 1 {
                true => left,
                false => left * (10 + upto(40)) / 100,
            };
            let (c, m) = (cut(cpu), cut(mib));
            (cpu, mib) = (cpu - c, mib - m);
            vms.push(VmRow { cpu: c, memory_mib: m, ..vm(vms.len()) });
        }
    }
    (hosts, vms)
}
