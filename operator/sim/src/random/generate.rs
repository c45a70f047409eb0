//! A scenario from a seed.
//!
//! It is written as text and read as a file is, so that every drawn scenario is one that a file
//! can say. Faults befall the cluster for five minutes, several at a time; then all is mended. In the
//! end what is wanted must run, all hosts must be there, and nobody may have anything left to write.

use std::fmt::Write as _;

use crate::rng::Rng;
use crate::scenario::{Scenario, ScenarioError, parse};

/// Faults begin here, seconds.
pub(super) const FIRST: u64 = 20;
/// No fault begins after this.
pub(super) const LAST: u64 = 260;
/// Seeds from here on are heavy with moves between hosts.
pub const MOVES: u64 = 1_000_000;
/// Everything is mended here, seconds: no fault lasts longer.
pub const MENDED: u64 = 320;
/// What is wanted must run by then: boots, readings of a dead host's power, the lease time of a
/// lock that nobody may break, pauses after failed starts, one after the other.
const UNTIL: u64 = 620;
/// For so long nobody has had anything to write by then, seconds.
const QUIET: u64 = 30;

/// A cluster that is being drawn.
pub(super) struct Draw {
    rng: Rng,
    pub(super) hosts: Vec<String>,
    pub(super) vms: Vec<String>,
    steps: Vec<(u64, String)>,
}

/// The scenario of a seed, ten minutes and twenty seconds long.
///
/// # Errors
/// Never: what is drawn follows the format. A mistake in here would show as the parser's.
pub fn scenario(seed: u64) -> Result<Scenario, ScenarioError> {
    let text = text(seed);
    let name = format!("random {seed}");
    let mut read = parse(&text, &name, None)?;
    // A text that was read holds one document.
    Ok(read.remove(0))
}

/// The file of a seed.
#[must_use]
pub fn text(seed: u64) -> String {
    let mut rng = Rng::stream(seed, "schedule");
    let hosts: Vec<String> = (1..=rng.between(3, 5)).map(|i| format!("h{i}")).collect();
    let vms: Vec<String> = (0..rng.between(2, 5)).map(|i| format!("{}", 101 + i)).collect();
    let mut draw = Draw { rng, hosts, vms, steps: Vec::new() };
    let mut out = format!("name: random {seed}\n");
    draw.setting(&mut out);
    let moves = seed >= MOVES;
    let faults = if moves { draw.rng.between(0, 3) } else { draw.rng.between(3, 8) };
    for _ in 0..faults {
        draw.fault();
    }
    for _ in 0..if moves { draw.rng.between(4, 8) } else { 0 } {
        draw.a_move();
    }
    draw.mend();
    if seed.is_multiple_of(10) {
        draw.passing(seed);
    }
    if seed % 3 == 1 {
        draw.further(seed);
    }
    if moves {
        draw.moving(seed);
    }
    draw.steps.sort_by_key(|(at, _)| *at);
    out += "steps:\n";
    for (at, step) in &draw.steps {
        // Writing to a string can't fail.
        let _ = writeln!(out, "  - {{at: {at}, {step}}}");
    }
    let _ = writeln!(out, "until: {UNTIL}\nexpect:");
    for vm in &draw.vms {
        let _ = writeln!(out, "  - {{vm: \"{vm}\", running: true, copies: 1, state: Running}}");
    }
    let _ = writeln!(out, "  - {{host: [{}], state: Ready}}", draw.hosts.join(", "));
    let kinds = "VirtualMachine, Domain, Host, HostFence";
    let quiet = UNTIL - QUIET;
    let _ = writeln!(out, "  - {{event: write, kind: [{kinds}], count: 0, after: {quiet}}}");
    out
}

impl Draw {
    /// Hosts, storage and VMs.
    fn setting(&mut self, out: &mut String) {
        // Most clusters have a device a host; some have hosts that reset themselves, some none.
        let fencing = match self.rng.below(10) {
            0 => ["self"; 5],
            1 => ["none", "bmc", "bmc", "self", "none"],
            2 => ["bmc", "self", "bmc", "bmc", "none"],
            _ => ["bmc"; 5],
        };
        *out += "hosts:\n";
        for (i, host) in self.hosts.iter().enumerate() {
            let how = fencing.get(i).copied().unwrap_or("bmc");
            let _ = writeln!(out, "  - {{name: {host}, fencing: {how}}}");
        }
        if self.rng.chance(0.15) {
            *out += "storage: [{name: vms, kind: NFS, lockManager: sanlock}]\n";
        } else if self.rng.chance(0.1) {
            *out += "storage: [{name: vms, kind: NFS, lockManager: none}]\n";
        }
        *out += "vms:\n";
        let hosts = self.hosts.clone();
        for vm in &self.vms {
            let host = self.rng.pick(&hosts).map(String::as_str).unwrap_or_default();
            let at = if self.rng.chance(0.8) { format!(", host: {host}") } else { String::new() };
            let _ = writeln!(out, "  - {{name: \"{vm}\"{at}}}");
        }
        if self.vms.len() > 2 && self.rng.chance(0.2) {
            let kind = if self.rng.chance(0.5) { "together" } else { "apart" };
            *out += &format!("rules: [{{{kind}: [\"101\", \"102\"], strict: false}}]\n");
        }
    }

    fn host(&mut self) -> String {
        let hosts = self.hosts.clone();
        self.rng.pick(&hosts).cloned().unwrap_or_default()
    }

    fn vm(&mut self) -> String {
        let vms = self.vms.clone();
        let vm = self.rng.pick(&vms).cloned().unwrap_or_default();
        format!("\"{vm}\"")
    }

    pub(super) fn step(&mut self, at: u64, text: impl Into<String>) {
        self.steps.push((at, text.into()));
    }

    /// One fault at a time of its own, and mostly its end.
    fn fault(&mut self) {
        let at = self.rng.between(FIRST, LAST);
        let lasts = match self.rng.below(3) {
            0 => self.rng.between(1, 8),
            1 => self.rng.between(8, 40),
            _ => self.rng.between(40, 200),
        };
        let end = (at + lasts).min(MENDED - 1);
        let host = self.host();
        let vm = self.vm();
        match self.rng.below(30) {
            0 | 1 => {
                self.step(at, format!("do: power-off, host: {host}"));
                if self.rng.chance(0.5) {
                    self.step(end, format!("do: power-on, host: {host}"));
                }
            }
            2 => self.step(at, format!("do: reset, host: {host}")),
            3 | 4 => self.step(at, format!("do: panic, host: {host}")),
            5..=8 => self.isolation(at, end, &host),
            9 => {
                let step: i64 = if self.rng.chance(0.5) { 3_600 } else { -7_200 };
                self.step(at, format!("do: clock, host: {host}, step: {step}"));
            }
            10 => {
                let rate = if self.rng.chance(0.5) { "0.97" } else { "1.03" };
                self.step(at, format!("do: clock, host: {host}, rate: {rate}"));
                self.step(end, format!("do: clock, host: {host}, rate: 1"));
            }
            11 | 12 => {
                let process = self.process();
                let down = if self.rng.chance(0.5) { 0 } else { lasts };
                self.step(
                    at,
                    format!("do: crash-agent, host: {host}, for: {down}, process: {process}"),
                );
            }
            13 => {
                let process = self.process();
                self.step(
                    at,
                    format!("do: pause-agent, host: {host}, for: {lasts}, process: {process}"),
                );
            }
            14 => self.step(at, format!("do: hang-libvirt, host: {host}, for: {lasts}")),
            15 => self.step(at, format!("do: restart-libvirt, host: {host}, for: {lasts}")),
            16 => self.step(at, format!("do: kill-qemu, vm: {vm}")),
            17 => {
                let action = if self.rng.chance(0.5) { "destroy" } else { "shutdown" };
                self.step(at, format!("do: virsh, action: {action}, vm: {vm}"));
            }
            18 | 19 => self.failing(at, end, &vm),
            20 => {
                let is = ["down", "slow", "read-only"][self.rng.index(3)];
                let only =
                    if self.rng.chance(0.6) { format!(", only: [{host}]") } else { String::new() };
                self.step(at, format!("do: storage, name: vms, is: {is}{only}"));
                self.step(end, format!("do: storage, name: vms, is: up{only}"));
            }
            21 => {
                self.step(at, format!("do: lock-manager, is: down, host: {host}"));
                self.step(end, format!("do: lock-manager, is: up, host: {host}"));
            }
            22 | 23 => {
                let is = ["down", "slow", "stale", "errors", "reply-lost"][self.rng.index(5)];
                let only = match self.rng.below(3) {
                    0 => String::new(),
                    1 => format!(", only: [{host}]"),
                    _ => ", only: [controller]".to_owned(),
                };
                self.step(at, format!("do: api, is: {is}{only}"));
                self.step(end, "do: api, is: up");
            }
            24 => {
                let is = ["crash", "restart", "second-leader"][self.rng.index(3)];
                self.step(at, format!("do: controller, is: {is}"));
            }
            25 => {
                let is = ["timeout", "lies-on", "bad-credentials", "already-off"];
                let is = is[self.rng.index(4)];
                self.step(at, format!("do: bmc, host: {host}, is: {is}"));
                self.step(end, format!("do: bmc, host: {host}, is: ok"));
            }
            26 => {
                self.step(at, format!("do: stop, vm: {vm}"));
                self.step(end, format!("do: start, vm: {vm}"));
            }
            27 => {
                let how = if self.rng.chance(0.5) { "restart-vm" } else { "reset-vm" };
                self.step(at, format!("do: {how}, vm: {vm}"));
            }
            28 => {
                let how = if self.rng.chance(0.5) { "drain" } else { "cordon" };
                self.step(at, format!("do: {how}, host: {host}"));
                self.step(end, format!("do: uncordon, host: {host}"));
            }
            _ => {
                let to = self.host();
                self.step(at, format!("do: migrate, vm: {vm}, to: {to}"));
            }
        }
    }

    fn process(&mut self) -> &'static str {
        ["agent", "agent", "beat", "feeder", "all"][self.rng.index(5)]
    }

    fn isolation(&mut self, at: u64, end: u64, host: &str) {
        let paths = match self.rng.below(6) {
            0 | 1 => "",
            2 => ", paths: [api]",
            3 => ", paths: [storage]",
            4 => ", paths: [api, storage]",
            _ => ", paths: [api, bmc]",
        };
        let way = ["both", "both", "in", "out"][self.rng.index(4)];
        let how = format!("host: {host}{paths}, way: {way}");
        self.step(at, format!("do: isolate, {how}"));
        self.step(end, format!("do: heal, {how}"));
    }

    fn failing(&mut self, at: u64, end: u64, vm: &str) {
        let op = ["start", "stop", "kill", "start"][self.rng.index(4)];
        let times = self.rng.between(1, 3);
        let how =
            if op == "start" { ["error", "hang", "unknown"][self.rng.index(3)] } else { "error" };
        self.step(at, format!("do: fail, op: {op}, vm: {vm}, times: {times}, as: {how}"));
        // Something that meets it.
        let meets = match op {
            "start" => format!("do: kill-qemu, vm: {vm}"),
            _ => format!("do: restart-vm, vm: {vm}"),
        };
        self.step((at + 1).min(MENDED - 1), meets);
        self.step(end, format!("do: mend, op: {op}, vm: {vm}"));
    }

    /// A move, mostly live; most of them fail somewhere, or meet something while they are under way.
    fn a_move(&mut self) {
        let at = self.rng.between(FIRST, LAST - 60);
        let end = (at + self.rng.between(10, 100)).min(MENDED - 1);
        let (vm, to, host) = (self.vm(), self.host(), self.host());
        if self.rng.chance(0.6) {
            let stage = ["before", "copying", "switched", "switched"][self.rng.index(4)];
            let how = ["error", "hang", "unknown", "lost", "stuck"];
            let known = if stage == "switched" { how.len() } else { 3 };
            let how = how[self.rng.index(known)];
            self.step(
                at - 1,
                format!("do: fail, op: migrate, vm: {vm}, stage: {stage}, as: {how}"),
            );
        }
        let live = if self.rng.chance(0.1) { ", live: false" } else { "" };
        self.step(at, format!("do: migrate, vm: {vm}, to: {to}{live}"));
        // A live copy takes five seconds: in it, or soon after.
        let then = at + self.rng.between(0, 9);
        match self.rng.below(12) {
            0 => {
                self.step(then, format!("do: power-off, host: {host}"));
                self.step(end, format!("do: power-on, host: {host}"));
            }
            1 => self.step(then, format!("do: reset, host: {host}")),
            2 => self.step(then, format!("do: restart-libvirt, host: {host}, for: 2")),
            3 => self.step(then, format!("do: crash-agent, host: {host}, for: {}", end - at)),
            4 => self.step(then, format!("do: pause-agent, host: {host}, for: {}", end - at)),
            5 | 6 => {
                let paths = ["api", "migration", "storage", "api, storage"][self.rng.index(4)];
                self.step(then, format!("do: isolate, host: {host}, paths: [{paths}]"));
                self.step(end, format!("do: heal, host: {host}, paths: [{paths}]"));
            }
            7 => self.step(then, format!("do: abort, vm: {vm}")),
            8 => self.step(then, format!("do: kill-qemu, vm: {vm}")),
            9 => self.step(then, "do: controller, is: crash"),
            _ => {}
        }
    }

    /// A VM that comes with a disk of its own, and takes it along when it is deleted. Its times have
    /// a stream of their own: the rest of a schedule does not depend on it.
    fn passing(&mut self, seed: u64) {
        let mut rng = Rng::stream(seed, "passing");
        let comes = rng.between(FIRST, LAST - 100);
        let goes = comes + rng.between(20, 100);
        self.step(
            comes,
            "do: apply, manifest: {apiVersion: stockade.dev/v1alpha1, kind: VirtualMachine, \
             metadata: {name: passing, namespace: default}, spec: {memory: 1Gi, disks: [{name: own, \
             storage: vms, blank: {}, size: 1Gi, reclaim: Delete}]}}",
        );
        self.step(goes, "do: delete, kind: VirtualMachine, name: passing");
    }

    /// Everything is mended, every VM is wanted, every host is on.
    fn mend(&mut self) {
        let hosts = self.hosts.clone();
        let vms: Vec<String> = self.vms.iter().map(|vm| format!("\"{vm}\"")).collect();
        let (all, vms) = (hosts.join(", "), vms.join(", "));
        let panicked: Vec<String> = hosts
            .iter()
            .filter(|h| self.steps.iter().any(|(_, s)| *s == format!("do: panic, host: {h}")))
            .cloned()
            .collect();
        self.step(MENDED, format!("do: heal, host: [{all}]"));
        self.step(MENDED, format!("do: heal, host: [{all}], paths: [bmc]"));
        self.step(MENDED, "do: api, is: up");
        self.step(MENDED, "do: storage, name: vms, is: up");
        self.step(MENDED, "do: lock-manager, is: up");
        self.step(MENDED, "do: mend");
        self.step(MENDED, format!("do: bmc, host: [{all}], is: ok"));
        if !panicked.is_empty() {
            // Someone finds the hung kernels.
            let found = panicked.join(", ");
            self.step(MENDED, format!("do: power-off, host: [{found}]"));
            // One whose power is cut for its silence just after it was given back gets it again.
            self.step(MENDED + 100, format!("do: power-on, host: [{found}]"));
        }
        self.step(MENDED + 5, format!("do: power-on, host: [{all}]"));
        self.step(MENDED + 5, format!("do: uncordon, host: [{all}]"));
        self.step(MENDED + 10, format!("do: start, vm: [{vms}]"));
    }
}
