//! Power, kernels, and the processes that a supervisor keeps.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stockade_crds::v1alpha1::GoingDown;
use tokio::sync::Notify;

use super::event::{Doer, Seen, What};
use super::model::{Durable, Feeding, Kernel, Machine, Process, WatchdogKind};
use super::{AgentLife, Sim, World};
use crate::host;

/// How a new machine is built.
#[derive(Clone, Debug)]
pub struct Build {
    /// Its name.
    pub name: String,
    /// CPUs.
    pub cpu: i32,
    /// Memory.
    pub memory_mib: i64,
    /// Milliseconds from power to a running kernel.
    pub boot_ms: u64,
    /// Its watchdog.
    pub watchdog: WatchdogKind,
    /// Levels of fence devices that cut its power.
    pub levels: Vec<Vec<String>>,
}

/// Milliseconds that an agent that is asked to end may take.
const STOP_LIMIT: u64 = 3_000;

/// Our small processes on a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Which {
    /// The agent.
    Agent,
    /// The beat writers.
    Beat,
    /// The feeder.
    Feeder,
}

/// An agent that announces a restart is not missed for so much longer than it takes.
const RESTART_MS: u64 = 120_000;

/// How long init waits for an inhibitor at most.
pub const INHIBIT_MS: u64 = 900_000;

impl World {
    /// Builds a machine, without power.
    pub fn build(&mut self, build: Build) {
        let stream = format!("machine/{}", build.name);
        let uid = self.stream(&stream).uuid();
        let machine = Machine {
            name: build.name.clone(),
            uid,
            cpu: build.cpu,
            memory_mib: build.memory_mib,
            boot_ms: build.boot_ms,
            watchdog: build.watchdog,
            switch: false,
            levels: build.levels,
            cut_by: BTreeSet::new(),
            kernel: Kernel::Off,
            boot_no: 0,
            boot_id: String::new(),
            booted_at: 0,
            boot_clock: 0,
            cuts: BTreeSet::new(),
            wall_offset: 0,
            rate: 1.0,
            clock_set: 0,
            clock_base: 0,
            agent: Process::default(),
            feeder: Process::default(),
            beat: Process::default(),
            libvirt_up: false,
            libvirt_running: false,
            libvirt_life: 0,
            lock_daemon: true,
            lock_manager: None,
            qemus: BTreeMap::new(),
            ended: BTreeMap::new(),
            mounts: BTreeSet::new(),
            beating: Vec::new(),
            beat_ms: 2_000,
            lineage: 0,
            beat_counter: 0,
            queued: BTreeMap::new(),
            feeding: Feeding::default(),
            durable: Durable::default(),
            going_down: None,
            down_allowed: false,
            down_changed: Arc::new(Notify::new()),
            news: None,
            dark_since: None,
            went_down_cleanly: false,
            announced_until: 0,
            seen_boots: BTreeSet::new(),
        };
        self.machines.insert(build.name, machine);
    }

    /// The kernel stops this instant, with all that it ran.
    fn stop_kernel(&mut self, host: &str) {
        let Some(m) = self.machines.get_mut(host) else { return };
        m.kernel = Kernel::Off;
        m.boot_no += 1;
        for process in [&mut m.agent, &mut m.feeder, &mut m.beat] {
            process.gate.kill();
            process.running = false;
            process.paused = false;
            process.life += 1;
        }
        m.libvirt_up = false;
        m.libvirt_running = false;
        m.libvirt_life += 1;
        m.news = None;
        m.qemus.clear();
        m.ended.clear();
        m.queued.clear();
        m.mounts.clear();
        m.beating.clear();
        m.lock_manager = None;
        m.feeding = Feeding::default();
        m.going_down = None;
        m.down_allowed = false;
        self.darken(host);
        self.tell_kernel_stopped(host);
        self.touch();
    }

    /// The machine loses its power, if it has no more.
    pub(super) fn power_lost(&mut self, host: &str, by: Option<Doer>) {
        let Some(m) = self.machines.get(host) else { return };
        if m.powered() || m.kernel == Kernel::Off {
            return;
        }
        self.stop_kernel(host);
        let mut seen = Seen::of(What::PowerOff).host(host);
        seen.by = by;
        self.emit(seen);
    }

    /// The switch at the machine is turned off.
    pub fn switch_off(&mut self, host: &str) {
        if let Some(m) = self.machines.get_mut(host) {
            m.switch = false;
        }
        self.power_lost(host, Some(Doer::User));
    }

    /// Someone who finds a hung kernel turns the switch off.
    pub fn switch_off_if_hung(&mut self, host: &str) {
        if self.machines.get(host).is_some_and(|m| m.kernel == Kernel::Hung) {
            self.switch_off(host);
        }
    }

    /// The switch at the machine is turned on.
    pub fn switch_on(&mut self, host: &str) {
        if let Some(m) = self.machines.get_mut(host) {
            m.switch = true;
            m.cut_by.clear();
        }
        self.power_back(host);
    }

    /// The machine boots, if it has power and is down.
    pub(super) fn power_back(&mut self, host: &str) {
        let Some(m) = self.machines.get_mut(host) else { return };
        if !m.powered() || m.kernel != Kernel::Off {
            return;
        }
        m.kernel = Kernel::Booting;
        m.boot_no += 1;
        let (boot_no, wait, host) = (m.boot_no, m.boot_ms, host.to_owned());
        self.spawn(|sim| async move {
            sim.wait(wait).await;
            sim.lock().booted(&host, boot_no);
        });
    }

    /// An unclean reboot.
    pub fn reset(&mut self, host: &str) {
        if self.machines.get(host).is_some_and(Machine::powered) {
            self.stop_kernel(host);
            self.power_back(host);
        }
    }

    /// The kernel hangs.
    pub fn panic(&mut self, host: &str) {
        let Some(m) = self.machines.get_mut(host) else { return };
        if m.kernel != Kernel::Up {
            return;
        }
        m.kernel = Kernel::Hung;
        for process in [&m.agent, &m.feeder, &m.beat] {
            process.gate.set_open(false);
        }
        m.libvirt_up = false;
        self.darken(host);
        self.tell_kernel_stopped(host);
        self.touch();
    }

    /// The kernel is up.
    fn booted(&mut self, host: &str, boot_no: u64) {
        let stream = format!("boot/{host}");
        let boot_id = self.stream(&stream).uuid();
        let now = self.now();
        let Some(m) = self.machines.get_mut(host) else { return };
        if m.boot_no != boot_no || m.kernel != Kernel::Booting {
            return;
        }
        m.kernel = Kernel::Up;
        m.boot_id = boot_id;
        m.booted_at = now;
        m.boot_clock = m.counted(now);
        m.beat_counter = 0;
        m.announced_until = 0;
        m.libvirt_up = true;
        m.libvirt_running = true;
        self.darken(host);
        self.emit(Seen::of(What::Boot).host(host));
        for which in [Which::Feeder, Which::Beat, Which::Agent] {
            self.start_process(host, which);
        }
        super::tick::beat(self, host, boot_no);
        if !self.transient {
            let host = host.to_owned();
            self.spawn(|sim| async move { super::qemu::autostart(&sim, &host, boot_no).await });
        }
    }

    /// Boots a machine at once: for the state at second 0.
    pub fn boot_now(&mut self, host: &str) {
        let Some(m) = self.machines.get_mut(host) else { return };
        m.switch = true;
        m.boot_no += 1;
        m.kernel = Kernel::Booting;
        let boot_no = m.boot_no;
        self.booted(host, boot_no);
    }

    fn process(&mut self, host: &str, which: Which) -> Option<&mut Process> {
        let m = self.machines.get_mut(host)?;
        Some(match which {
            Which::Agent => &mut m.agent,
            Which::Beat => &mut m.beat,
            Which::Feeder => &mut m.feeder,
        })
    }

    /// Starts a process of ours now.
    pub fn start_process(&mut self, host: &str, which: Which) {
        if !self.machines.get(host).is_some_and(|m| m.kernel == Kernel::Up) {
            return;
        }
        let Some(process) = self.process(host, which) else { return };
        if process.running {
            return;
        }
        process.running = true;
        process.paused = false;
        process.life += 1;
        process.gate = crate::host::gate::Gate::open();
        process.restarts_in = None;
        process.stop = Arc::default();
        let (gate, stop) = (process.gate.clone(), process.stop.clone());
        if which != Which::Agent {
            return;
        }
        let Some(main) = self.agent_main.clone() else { return };
        let Some(sim) = self.me.upgrade() else { return };
        let ports = host::agent_ports(&sim, host, &gate);
        let delay = self.draw(&format!("agent/{host}"), 200, 900);
        let life = AgentLife { host: host.to_owned(), stop, gate: gate.clone(), ports };
        let (host, program) = (host.to_owned(), gate.clone());
        tokio::spawn(async move {
            sim.wait(delay).await;
            let ended = program.run(main(life)).await;
            // An agent that ends by itself is started again by its supervisor.
            if ended.is_some() {
                let mut world = sim.lock();
                let asked = world.process(&host, Which::Agent).and_then(|p| p.restarts_in);
                world.crash_process(&host, Which::Agent, asked.unwrap_or(1_000));
            }
        });
        self.touch();
    }

    /// Restarts a process of ours as its supervisor does: the agent is asked to end, and killed if
    /// it does not; it is started again after `down` ms. The small ones hand over at once.
    pub fn restart_process(&mut self, host: &str, which: Which, down: u64) {
        if which != Which::Agent {
            self.crash_process(host, which, 0);
            return;
        }
        let now = self.now();
        if let Some(m) = self.machines.get_mut(host) {
            m.announced_until = now + down + RESTART_MS;
        }
        let Some(process) = self.process(host, which).filter(|p| p.running) else { return };
        process.restarts_in = Some(down);
        process.stop.notify_one();
        let life = process.life;
        let host = host.to_owned();
        self.spawn(|sim| async move {
            sim.wait(STOP_LIMIT).await;
            let mut world = sim.lock();
            if world.process(&host, which).is_some_and(|p| p.running && p.life == life) {
                world.crash_process(&host, which, down);
            }
        });
    }

    /// Kills a process of ours; its supervisor starts it again after `down` ms (and a moment).
    pub fn crash_process(&mut self, host: &str, which: Which, down: u64) {
        let Some(process) = self.process(host, which) else { return };
        if !process.running {
            return;
        }
        process.gate.kill();
        process.running = false;
        process.life += 1;
        let life = process.life;
        if which == Which::Agent
            && let Some(m) = self.machines.get_mut(host)
        {
            m.news = None;
            // Its inhibitor goes with it.
            if m.going_down.is_some() {
                m.down_allowed = true;
            }
        }
        self.touch();
        let host = host.to_owned();
        self.spawn(|sim| async move {
            sim.wait(down + 100).await;
            let mut world = sim.lock();
            if world.process(&host, which).is_some_and(|p| p.life == life) {
                world.start_process(&host, which);
            }
        });
    }

    /// Stops a process of ours by SIGSTOP, or lets it go on.
    pub fn pause_process(&mut self, host: &str, which: Which, paused: bool) {
        let up = self.machines.get(host).is_some_and(|m| m.kernel == Kernel::Up);
        if let Some(process) = self.process(host, which) {
            process.paused = paused;
            if up || paused {
                process.gate.set_open(!paused);
            }
        }
        self.touch();
    }

    /// Stops a process for `ms`, or until the end.
    pub fn pause_for(&mut self, host: &str, which: Which, ms: Option<u64>) {
        self.pause_process(host, which, true);
        let Some(life) = self.process(host, which).map(|p| p.life) else { return };
        let (Some(ms), host) = (ms, host.to_owned()) else { return };
        self.spawn(|sim| async move {
            sim.wait(ms).await;
            let mut world = sim.lock();
            if world.process(&host, which).is_some_and(|p| p.life == life) {
                world.pause_process(&host, which, false);
            }
        });
    }

    /// libvirt's daemon answers nobody, for `ms` or until it is restarted.
    pub fn hang_libvirt(&mut self, host: &str, ms: Option<u64>) {
        let Some(m) = self.machines.get_mut(host) else { return };
        if m.kernel != Kernel::Up {
            return;
        }
        m.libvirt_up = false;
        let (life, host) = (m.libvirt_life, host.to_owned());
        self.touch();
        let Some(ms) = ms else { return };
        self.spawn(|sim| async move {
            sim.wait(ms).await;
            sim.lock().libvirt_back(&host, life);
        });
    }

    /// libvirt's daemon restarts and is away for `ms`.
    pub fn restart_libvirt(&mut self, host: &str, ms: u64) {
        let Some(m) = self.machines.get_mut(host) else { return };
        if m.kernel != Kernel::Up {
            return;
        }
        m.libvirt_up = false;
        m.libvirt_running = false;
        m.libvirt_life += 1;
        for qemu in m.qemus.values_mut().filter(|q| q.undead) {
            qemu.unlisted = true;
        }
        let (life, host) = (m.libvirt_life, host.to_owned());
        self.tell_connection(&host, false);
        self.spawn(|sim| async move {
            sim.wait(ms).await;
            sim.lock().libvirt_back(&host, life);
        });
    }

    fn libvirt_back(&mut self, host: &str, life: u64) {
        let Some(m) = self.machines.get_mut(host) else { return };
        if m.libvirt_life != life || m.kernel != Kernel::Up {
            return;
        }
        m.libvirt_up = true;
        m.libvirt_running = true;
        self.tell_connection(host, true);
    }

    /// Init asks to go down, cleanly.
    pub fn go_down(&mut self, host: &str, how: GoingDown) {
        let now = self.now();
        let Some(m) = self.machines.get_mut(host) else { return };
        if m.kernel != Kernel::Up || m.going_down.is_some() {
            return;
        }
        m.going_down = Some(how);
        m.announced_until = now + INHIBIT_MS;
        m.down_allowed = !m.agent.running;
        m.down_changed.notify_waiters();
        let (boot_no, host) = (m.boot_no, host.to_owned());
        self.spawn(|sim| async move { go_down(&sim, &host, boot_no, how).await });
    }
}

/// Waits for the inhibitor, then stops everything as init does.
async fn go_down(sim: &Arc<Sim>, host: &str, boot_no: u64, how: GoingDown) {
    let mut waited = 0;
    loop {
        sim.wait(250).await;
        waited += 250;
        let world = sim.lock();
        let Some(m) = world.machines.get(host) else { return };
        if m.boot_no != boot_no || m.kernel != Kernel::Up {
            return;
        }
        if m.down_allowed || waited >= INHIBIT_MS {
            break;
        }
    }
    // Processes are asked, then killed; file systems are synced and unmounted.
    sim.wait(3_000).await;
    let mut world = sim.lock();
    let Some(m) = world.machines.get_mut(host) else { return };
    if m.boot_no != boot_no || m.kernel != Kernel::Up {
        return;
    }
    let uids: Vec<String> = m.qemus.keys().cloned().collect();
    for uid in uids {
        world.end_qemu(host, &uid, super::qemu::Ending::Crashed);
    }
    world.flush(host);
    world.release_client(host);
    if let Some(m) = world.machines.get_mut(host) {
        m.went_down_cleanly = true;
    }
    match how {
        GoingDown::Reboot => world.reset(host),
        GoingDown::Shutdown => {
            world.stop_kernel(host);
            if let Some(m) = world.machines.get_mut(host) {
                m.switch = false;
            }
            world.emit(Seen::of(What::PowerOff).host(host).detail("clean shutdown"));
        }
    }
}
