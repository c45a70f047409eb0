//! Moves that are cut: ten moments of a live move, and at each of them the source loses its power,
//! or the target, or the network between them, or an agent is killed, or libvirtd is restarted.
//!
//! Never do two copies run, never does a guest go on with memory older than its disk, no VM is
//! lost, and each ends by itself. Bandwidth is capped, so that moves which begin one after the other
//! are each somewhere else when the cut comes. Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use kube::Api;
use kube::api::{ListParams, PostParams};
use stockade_crds::v1alpha1::{
    Domain, DomainStatus, EpochState, HostAgent, MigrationSide, MigrationState, VirtualMachine,
    VirtualMachineMigration, VirtualMachineMigrationSpec, VmState,
};
use stockade_e2e::local_hosts::{LocalHost, Network, Signal, Witness, write_heavy_disk};
use stockade_e2e::play::{Cluster, Log, STORAGE};

/// How long it may take until every VM is well again, on a busy machine. A QEMU that hangs for good is
/// killed after two minutes of silence.
const LIMIT: Duration = Duration::from_secs(300);
/// A QEMU that has lost the thread that hears its target, and not the one that sends, for so long hangs
/// for good.
const HUNG: Duration = Duration::from_secs(60);
/// What a guest makes of its memory, MiB: with one MiB a second a copy takes some nine seconds.
const BALLAST: u8 = 6;
/// Between two orders, so that several moves are in stages of their own.
const EACH: Duration = Duration::from_millis(1_000);
const NAMESPACE: &str = "default";

/// Two hosts, VMs on them, and a witness.
struct Field {
    cluster: Cluster,
    witness: Witness,
    vms: Vec<String>,
    log: Log,
    moves: usize,
    /// QEMUs that can only hang, and since when.
    deaf: RefCell<BTreeMap<(String, i32), Instant>>,
    /// VMs whose QEMU hung for good.
    hung: RefCell<BTreeSet<String>>,
}

/// Whether this QEMU sends a VM away, and which, but no longer listens to the target: QEMU 7.2's return
/// path closes the socket as it ends, and its migration thread may then poll that for good.
fn is_deaf(pid: i32) -> Option<String> {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let words = String::from_utf8_lossy(&words);
    let vm = words.split("guest=default.").nth(1)?.split(',').next()?.to_owned();
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).ok()?;
    let names = tasks.flatten().filter_map(|t| std::fs::read_to_string(t.path().join("comm")).ok());
    let names: BTreeSet<String> = names.map(|name| name.trim().to_owned()).collect();
    (names.contains("live_migration") && !names.contains("return path")).then_some(vm)
}

impl Field {
    /// Starts two hosts with so many VMs on each.
    async fn start(h1: usize, h2: usize) -> Self {
        let log = Log::new();
        let cluster = Cluster::start_with(2, false, &["--cpus", "64"], &log).await.unwrap();
        cluster.wait_ready().await.unwrap();
        let policy = r#"{"spec": {"stormBrakeHosts": 100, "migrationsPerHost": 64}}"#;
        let words = ["patch", "sap", "default", "--type", "merge", "-p", policy];
        cluster.plane().kubectl(&words).unwrap();
        let folder = cluster.shared().join(NAMESPACE);
        std::fs::create_dir_all(&folder).unwrap();
        let mut vms = Vec::new();
        let mut text = String::new();
        for index in 0..h1 + h2 {
            let (name, host) = (format!("m{}", index + 1), if index < h1 { "h1" } else { "h2" });
            write_heavy_disk(&folder.join(format!("{name}.raw")), BALLAST).unwrap();
            text.push_str(&format!(
                "---\napiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
                 metadata: {{name: {name}, namespace: {NAMESPACE}}}\nspec:\n  memory: 32Mi\n  \
                 migration: {{bandwidthMibPerSecond: 1}}\n  \
                 placement: {{preferredHosts: [{{hosts: [{host}]}}]}}\n  disks:\n    - {{name: root, \
                 storage: {STORAGE}, format: raw, existing: {{path: {name}.raw}}}}\n"
            ));
            vms.push(name);
        }
        let disks: Vec<PathBuf> =
            vms.iter().map(|name| folder.join(format!("{name}.raw"))).collect();
        let witness = Witness::start(&disks);
        cluster.plane().kubectl_stdin(&["apply", "-f", "-"], &text).unwrap();
        let (deaf, hung) = (RefCell::default(), RefCell::default());
        let this = Self { cluster, witness, vms, log, moves: 0, deaf, hung };
        this.well("all run").await;
        this.until_moves_ready().await;
        this
    }

    async fn until_moves_ready(&self) {
        self.until("certificates are in force", async |this| {
            let agents: Api<HostAgent> = Api::all(this.cluster.client());
            let agents = agents.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
            let ready = |a: &&HostAgent| a.status.as_ref().is_some_and(|s| s.moves_ready);
            let count = agents.items.iter().filter(ready).count();
            if count == 2 { Ok(()) } else { Err(format!("on {count} hosts")) }
        })
        .await;
    }

    fn disk(&self, vm: &str) -> PathBuf {
        self.cluster.shared().join(NAMESPACE).join(format!("{vm}.raw"))
    }

    async fn until(&self, what: &str, mut done: impl AsyncFnMut(&Self) -> Result<(), String>) {
        let started = Instant::now();
        loop {
            let Err(last) = done(self).await else { break };
            self.innocent();
            self.listen();
            if started.elapsed() > LIMIT {
                panic!("not in time: {what}: {last}\n{}", self.cluster.dump());
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        self.log.say(what);
    }

    /// Notes which QEMUs hang for good.
    fn listen(&self) {
        let deaf = self.cluster.qemus().into_iter().filter_map(|(_, process)| {
            let vm = is_deaf(process.pid)?;
            Some((vm, process.pid))
        });
        let before = self.deaf.take();
        let now: BTreeMap<_, _> = deaf
            .map(|key| (key.clone(), before.get(&key).copied().unwrap_or_else(Instant::now)))
            .collect();
        for ((vm, pid), since) in &now {
            if since.elapsed() > HUNG && self.hung.borrow_mut().insert(vm.clone()) {
                self.log.say(format!("{vm}: its QEMU {pid} hangs for good"));
            }
        }
        self.deaf.replace(now);
    }

    /// Nothing was seen that must never be.
    fn innocent(&self) {
        let wrong = self.witness.wrong();
        assert!(wrong.is_empty(), "{}\n{}", wrong.join("\n"), self.cluster.dump());
    }

    async fn all(&self) -> Result<BTreeMap<String, VirtualMachine>, String> {
        let vms: Api<VirtualMachine> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let vms = vms.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
        Ok(vms.into_iter().map(|vm| (vm.metadata.name.clone().unwrap_or_default(), vm)).collect())
    }

    /// Waits until each VM runs, as one QEMU on the host that its status names, with nothing left
    /// of a move, and its guest writes.
    async fn well(&self, what: &str) {
        let mut before: BTreeMap<String, (u64, u64)> = BTreeMap::new();
        self.until(what, async |this| {
            let vms = this.all().await?;
            let qemus = this.cluster.qemus().len();
            for name in &this.vms {
                let vm = vms.get(name).ok_or_else(|| format!("{name} is lost"))?;
                let status = vm.status.clone().unwrap_or_default();
                let open: Vec<EpochState> = status
                    .placements
                    .iter()
                    .map(|p| p.state)
                    .filter(|state| !state.is_settled())
                    .collect();
                if status.printable_status != VmState::Running
                    || status.migration.is_some()
                    || open.len() != 1
                {
                    let why = status.conditions.iter().find(|c| c.type_ == "Ready");
                    let why = why.map(|c| c.message.clone()).unwrap_or_default();
                    let word = status.printable_status;
                    return Err(format!("{name}: {word:?} {open:?} {:?} {why}", status.migration));
                }
                let now = this.witness.written(&this.disk(name));
                let now = (now.boots, now.ticks);
                let then = *before.entry(name.clone()).or_insert(now);
                if now.0 == 0
                    || now <= then
                    || this.witness.written(&this.disk(name)).writer.is_none()
                {
                    return Err(format!("{name}: its guest is at {now:?}"));
                }
            }
            if qemus != this.vms.len() {
                return Err(format!("{qemus} QEMUs"));
            }
            Ok(())
        })
        .await;
        self.innocent();
    }

    /// Orders a move to the other host.
    async fn moves(&mut self, vm: &str, to: &str) -> String {
        let spec = VirtualMachineMigrationSpec {
            vm: vm.to_owned(),
            target: Some(to.to_owned()),
            live: Some(true),
        };
        self.moves += 1;
        let name = format!("{vm}-{}", self.moves);
        let moves: Api<VirtualMachineMigration> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let order = VirtualMachineMigration::new(&name, spec);
        moves.create(&PostParams::default(), &order).await.unwrap();
        name
    }

    /// The two sides of each move, by what their hosts say: the source's, then the target's.
    async fn sides(&self) -> BTreeMap<String, [Option<DomainStatus>; 2]> {
        let domains: Api<Domain> = Api::all(self.cluster.client());
        let domains = domains.list(&ListParams::default()).await.unwrap();
        let mut sides: BTreeMap<String, [Option<DomainStatus>; 2]> = BTreeMap::new();
        for domain in domains {
            let Some(order) = &domain.spec.migration else { continue };
            let said = domain.status.filter(|s| s.epoch == domain.spec.epoch);
            let [source, target] = sides.entry(domain.spec.vm.name).or_default();
            *(if order.side == MigrationSide::Source { source } else { target }) = said;
        }
        sides
    }

    /// Tells where each of these moves stands.
    async fn moments(&self, vms: &[String]) {
        let all = self.all().await.unwrap();
        let sides = self.sides().await;
        for vm in vms {
            let moving = all.get(vm).and_then(|vm| vm.status.as_ref()?.migration.clone());
            let said = sides.get(vm).cloned().unwrap_or_default();
            let words = said.map(|s| {
                let report = s.as_ref().and_then(|s| s.migration.as_ref()).map(|m| m.state);
                format!("{:?}/{report:?}", s.map(|s| s.state))
            });
            let host = all.get(vm).and_then(|vm| vm.status.as_ref()?.host.clone());
            self.log.say(format!("  {vm}: begun {}, at {host:?}, {words:?}", moving.is_some()));
        }
    }

    /// Looks every now and then until it is so.
    async fn soon(&self, what: &str, mut so: impl AsyncFnMut(&Self) -> bool) {
        let started = Instant::now();
        while !so(self).await {
            if started.elapsed() > LIMIT {
                panic!("not in time: {what}\n{}", self.cluster.dump());
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn host(&self, name: &str) -> &LocalHost {
        self.cluster.host(name).unwrap()
    }

    fn signal_agent(&self, host: &str, signal: Signal) {
        self.host(host).signal("stockade-agent", signal).unwrap();
    }

    /// Ten moves, each at a moment of its own when this returns; `away` says which host each goes
    /// to, the first three to the same.
    ///
    /// 1 is the target's by the API and was not resumed there, 2 has left its source and is
    /// nobody's yet, of 3 all memory is over and its target was not told so, 4 to 8 copy since one
    /// second each after the other, 9 is about to copy, 10 is ordered. For that the controller and
    /// the target's agent and libvirtd are held; on a slow machine some are further.
    async fn ten_under_way(&mut self, away: impl Fn(usize) -> &'static str) {
        let vms = self.vms.clone();
        let to = away(0);
        for (index, vm) in vms[..9].iter().enumerate() {
            let started = Instant::now();
            self.moves(vm, away(index)).await;
            let each = if index < 3 { EACH * 2 } else { EACH };
            if index < 8 {
                tokio::time::sleep(each.saturating_sub(started.elapsed())).await;
            } else {
                self.soon("its target knows of it", async |this| {
                    let vms = this.all().await.unwrap_or_default();
                    vms.get(vm).is_some_and(|vm| vm.status.as_ref().is_some_and(|s| s.epoch > 1))
                })
                .await;
            }
        }
        let is_the_targets = async |this: &Self, vm: &str| {
            let vms = this.all().await.unwrap_or_default();
            let host = vms.get(vm).and_then(|vm| vm.status.as_ref()?.host.clone());
            host.as_deref() == Some(to)
        };
        let has_left = async |this: &Self, vm: &str| {
            let said = this.sides().await.get(vm).cloned().unwrap_or_default();
            let [source, target] = said;
            let whole = target.and_then(|s| s.migration);
            source.is_some_and(|s| s.released)
                && whole.is_some_and(|m| m.state == MigrationState::Switched)
                || is_the_targets(this, vm).await
        };
        self.cluster.signal_controller(Signal::STOP).unwrap();
        self.moves(&vms[9], away(9)).await;
        self.soon("the first has left", async |this| has_left(this, &vms[0]).await).await;
        self.signal_agent(to, Signal::STOP);
        self.cluster.signal_controller(Signal::CONT).unwrap();
        self.soon("the first is the target's", async |this| is_the_targets(this, &vms[0]).await)
            .await;
        self.cluster.signal_controller(Signal::STOP).unwrap();
        self.soon("the second has left", async |this| {
            let sides = this.sides().await;
            let source = sides.get(&vms[1]).and_then(|[source, _]| source.clone());
            source.is_some_and(|s| s.released) || is_the_targets(this, &vms[1]).await
        })
        .await;
        self.host(to).signal("libvirtd", Signal::STOP).unwrap();
        let held = Instant::now();
        let mut last = (u64::MAX, Instant::now());
        self.soon("all memory of the third is over", async |this| {
            let ticks = this.witness.written(&this.disk(&vms[2])).ticks;
            if last.0 != ticks {
                last = (ticks, Instant::now());
            }
            last.1.elapsed() > Duration::from_millis(500) || held.elapsed() > EACH * 10
        })
        .await;
        self.moments(&vms).await;
    }

    /// The VMs whose guests run now.
    async fn running(&self) -> Vec<String> {
        let ticks = |vm: &String| self.witness.written(&self.disk(vm)).ticks;
        let before: Vec<u64> = self.vms.iter().map(ticks).collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        let now = self.vms.iter().map(ticks);
        let moved = now.zip(before).zip(&self.vms).filter(|((now, before), _)| now > before);
        moved.map(|(_, vm)| vm.clone()).collect()
    }

    /// Lets go of what was held and still lives.
    fn let_go(&self) {
        self.cluster.signal_controller(Signal::CONT).unwrap();
        for host in self.cluster.hosts() {
            host.signal("libvirtd", Signal::CONT).unwrap();
            host.signal("stockade-agent", Signal::CONT).unwrap();
        }
    }

    /// How often each guest has booted.
    fn boots(&self) -> BTreeMap<String, u64> {
        let of = |vm: &String| (vm.clone(), self.witness.written(&self.disk(vm)).boots);
        self.vms.iter().map(of).collect()
    }

    /// Tells which guests were started anew since, and fails if one of `spared` was whose QEMU did not
    /// hang for good.
    fn spared(&self, before: &BTreeMap<String, u64>, spared: &[String]) {
        let anew: Vec<String> = self
            .boots()
            .into_iter()
            .filter(|(vm, boots)| before.get(vm) != Some(boots))
            .map(|(vm, _)| vm)
            .collect();
        self.log.say(format!("started anew: {anew:?}"));
        let hung = self.hung.borrow();
        let lost: Vec<&String> =
            spared.iter().filter(|vm| anew.contains(vm) && !hung.contains(*vm)).collect();
        assert!(lost.is_empty(), "needlessly started anew: {lost:?}\n{}", self.cluster.dump());
    }
}

#[tokio::test]
async fn a_source_that_loses_its_power_at_ten_moments_of_a_move_costs_a_restart_at_most() {
    let mut field = Field::start(10, 0).await;
    let before = field.boots();
    field.ten_under_way(|_| "h2").await;
    field.host("h1").power_cut().unwrap();
    field.let_go();
    field.soon("the first runs on", async |this| this.running().await.contains(&this.vms[0])).await;
    field.well("all run again").await;
    field.spared(&before, &field.vms[..1]);
}

#[tokio::test]
async fn a_target_that_loses_its_power_at_ten_moments_of_a_move_spares_what_runs_at_its_source() {
    let mut field = Field::start(10, 0).await;
    let before = field.boots();
    field.ten_under_way(|_| "h2").await;
    // What entered the host from outside and is held there would keep its dead from being buried.
    field.cluster.kill_agent("h2").unwrap();
    field.host("h2").power_cut().unwrap();
    field.let_go();
    let spared = field.running().await;
    field.log.say(format!("running after the cut: {spared:?}"));
    field.well("all run again").await;
    field.spared(&before, &spared);
}

#[tokio::test]
async fn a_network_cut_at_ten_moments_of_a_move_leaves_every_guest_running() {
    let mut field = Field::start(10, 0).await;
    let before = field.boots();
    field.ten_under_way(|_| "h2").await;
    field.host("h2").plug(false).unwrap();
    field.let_go();
    field.well("all run, the network still cut").await;
    field.spared(&before, &field.vms);
}

/// The agent that is killed is the source's of some and the target's of others.
#[tokio::test]
async fn an_agent_killed_at_ten_moments_of_a_move_loses_no_guest() {
    let mut field = Field::start(7, 3).await;
    let before = field.boots();
    field.ten_under_way(|index| if index < 7 { "h2" } else { "h1" }).await;
    field.cluster.kill_agent("h1").unwrap();
    field.let_go();
    tokio::time::sleep(Duration::from_secs(1)).await;
    field.cluster.start_agent("h1").unwrap();
    field.well("all run, an agent was killed").await;
    field.spared(&before, &field.vms);
}

/// That of one host is killed, that of the other hangs and is then told to end: each is the source's
/// of some and the target's of others.
#[tokio::test]
async fn a_libvirtd_restarted_at_ten_moments_of_a_move_loses_no_guest() {
    let mut field = Field::start(7, 3).await;
    let before = field.boots();
    field.ten_under_way(|index| if index < 7 { "h2" } else { "h1" }).await;
    field.host("h1").signal("libvirtd", Signal::KILL).unwrap();
    field.host("h1").start_libvirtd().unwrap();
    field.let_go();
    let restart = field.host("h2").restart_program();
    let child = field.host("h2").run(&[&restart.to_string_lossy()], Network::Machine).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
    field.well("all run, both were restarted").await;
    field.spared(&before, &field.vms);
}
