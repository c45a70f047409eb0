//! The simulated world: machines, their kernels and processes, hypervisors, disks, storages,
//! locks, power and watchdogs, on virtual time.
//!
//! One [`World`] behind one mutex, shared by all ports. What takes time is a task of its own (a
//! daemon's job goes on when its caller dies) that locks the world at each of its steps.

pub mod brake;
pub mod event;
pub(crate) mod fence;
mod io;
mod locks;
pub mod model;
pub(crate) mod moves;
pub mod power;
pub(crate) mod qemu;
mod tick;
mod untruths;
pub(crate) mod virsh;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::oracle::Oracle;
use crate::rng::Rng;
use event::Seen;
use model::{Device, Disk, Fail, FailOp, Machine, Profile, Store};

pub use io::Reach;
pub use untruths::Row;

/// Runs an agent's program on a host until it ends.
pub type AgentMain = Arc<dyn Fn(AgentLife) -> BoxFuture<'static, ()> + Send + Sync>;

/// Told the name of a host whose kernel has stopped.
pub type KernelStopped = Box<dyn Fn(&str) + Send + Sync>;

/// One life of one agent process.
pub struct AgentLife {
    /// The host.
    pub host: String,
    /// Asks it to end, as SIGTERM does.
    pub stop: Arc<Notify>,
    /// The gate of this life.
    pub gate: crate::host::gate::Gate,
    /// The ports of this life.
    pub ports: stockade_host::ports::AgentPorts,
}

/// The world, shared.
pub struct Sim {
    world: Mutex<World>,
    changed: Notify,
}

/// Everything that is simulated.
pub struct World {
    me: Weak<Sim>,
    started: Instant,
    zero: u64,
    seed: u64,
    next_pid: u64,
    streams: BTreeMap<String, Rng>,
    agent_main: Option<AgentMain>,
    kernel_stopped: Option<KernelStopped>,
    /// Machines by name.
    pub machines: BTreeMap<String, Machine>,
    /// Storages by name.
    pub stores: BTreeMap<String, Store>,
    /// Disks by path.
    pub disks: BTreeMap<String, Disk>,
    /// Fence devices by name.
    pub devices: BTreeMap<String, Device>,
    /// Guests by VM name.
    pub profiles: BTreeMap<String, Profile>,
    /// Names of VMs by uid.
    pub vm_names: BTreeMap<String, String>,
    /// The hook of hosts' libvirt refuses what has no open order.
    pub hook_in_force: bool,
    /// Hosts' storage drivers refuse the marker of another cluster.
    pub marker_checked: bool,
    /// Hypervisors keep a domain's lock while it is copied.
    pub lock_kept: bool,
    /// Servers let locks expire; if not, they unlink lock files.
    pub lock_files_stay: bool,
    /// Hosts' hypervisors forget a domain with its end, and start none by themselves.
    pub transient: bool,
    /// Failures in store.
    pub fails: Vec<Fail>,
    /// What happened since second 0.
    pub events: Vec<Seen>,
    /// What is found wrong.
    pub oracle: Oracle,
    /// Boots about which a device or a person told an untruth: host name and boot id.
    pub lied: BTreeSet<(String, String)>,
    /// Boots that a person declared dead.
    pub human: BTreeSet<(String, String)>,
    /// Renewals of Leases, by host.
    pub heard: BTreeMap<String, Row>,
    /// Beats of boots about which an untruth was told, by host and storage.
    pub beaten: BTreeMap<(String, String), Row>,
    /// When epochs were ordered after an untruth was told, by VM uid.
    pub ordered: BTreeMap<(String, i64), u64>,
    /// Boots with an order, by host and VM uid, and when it was released if it was.
    pub expected: BTreeMap<(String, String), (String, Option<u64>)>,
    /// Boots that are certified dead at this moment, as the API says; the runner keeps it.
    pub certified: BTreeSet<(String, String)>,
    /// Sources of moves that were swapped, as the API says: host and VM.
    pub swapped: BTreeSet<(String, String)>,
    /// Epochs that were executed, by VM uid.
    pub executed: BTreeSet<(String, i64)>,
    /// A second controller has led beside the first.
    pub two_leaders: bool,
    /// The API has been in trouble: a controller may not know what it has just written itself.
    pub api_trouble: bool,
    /// What the storm brake is measured by.
    pub storm: brake::Storm,
    /// Something other than the API has been in trouble.
    pub fault_beyond_api: bool,
    /// Something may have changed since this was last made false.
    pub touches: bool,
    /// Counts what agents have done to hosts since second 0.
    pub host_actions: u64,
    /// After so many of them the agent that did the last one dies: for sweeps over crashes.
    pub crash_after_action: Option<u64>,
}

impl Sim {
    /// An empty world whose time begins now.
    #[must_use]
    pub fn new(seed: u64) -> Arc<Self> {
        let sim = Arc::new_cyclic(|me| Self {
            world: Mutex::new(World {
                me: me.clone(),
                started: Instant::now(),
                zero: 0,
                seed,
                next_pid: 1000,
                streams: BTreeMap::new(),
                agent_main: None,
                kernel_stopped: None,
                machines: BTreeMap::new(),
                stores: BTreeMap::new(),
                disks: BTreeMap::new(),
                devices: BTreeMap::new(),
                profiles: BTreeMap::new(),
                vm_names: BTreeMap::new(),
                hook_in_force: true,
                marker_checked: true,
                lock_kept: true,
                lock_files_stay: true,
                transient: true,
                fails: Vec::new(),
                events: Vec::new(),
                oracle: Oracle::default(),
                lied: BTreeSet::new(),
                human: BTreeSet::new(),
                heard: BTreeMap::new(),
                beaten: BTreeMap::new(),
                ordered: BTreeMap::new(),
                expected: BTreeMap::new(),
                certified: BTreeSet::new(),
                swapped: BTreeSet::new(),
                executed: BTreeSet::new(),
                two_leaders: false,
                api_trouble: false,
                storm: brake::Storm::default(),
                fault_beyond_api: false,
                host_actions: 0,
                crash_after_action: None,
                touches: false,
            }),
            changed: Notify::new(),
        });
        tick::run(&sim);
        sim
    }

    /// The world, for a moment; never held over an await.
    pub fn lock(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes once something has happened.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Something has happened that is no event of the world.
    pub fn touch(&self) {
        self.lock().touch();
    }

    /// Waits for `ms` of the world's time.
    pub(crate) async fn wait(&self, ms: u64) {
        tokio::time::sleep(Duration::from_millis(ms)).await;
    }

    /// Waits for a time of `low..=high` milliseconds, drawn from the stream of `name`.
    pub(crate) async fn latency(&self, name: &str, low: u64, high: u64) {
        let ms = self.lock().draw(name, low, high);
        self.wait(ms).await;
    }
}

impl World {
    /// Milliseconds since the world began.
    #[must_use]
    pub fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Milliseconds since second 0.
    #[must_use]
    pub fn since_zero(&self) -> u64 {
        self.now().saturating_sub(self.zero)
    }

    /// Makes this instant second 0 and forgets what was before.
    pub fn begin(&mut self) {
        self.zero = self.now();
        self.events.clear();
        self.host_actions = 0;
    }

    /// The agents' program, for hosts that boot from now on.
    pub fn set_agent_main(&mut self, main: AgentMain) {
        self.agent_main = Some(main);
    }

    /// Has `told` called whenever a kernel stops: nothing that it had still to send is sent. It is
    /// called with the world locked.
    pub fn on_kernel_stopped(&mut self, told: KernelStopped) {
        self.kernel_stopped = Some(told);
    }

    /// An agent has done something to its host.
    pub(crate) fn acted(&mut self, host: &str) {
        self.host_actions += 1;
        if self.crash_after_action == Some(self.host_actions) {
            self.crash_process(host, power::Which::Agent, 0);
        }
    }

    /// A number of `low..=high` from the stream of `name`.
    pub fn draw(&mut self, name: &str, low: u64, high: u64) -> u64 {
        self.stream(name).between(low, high)
    }

    /// The stream of random numbers of a component.
    pub fn stream(&mut self, name: &str) -> &mut Rng {
        let seed = self.seed;
        if !self.streams.contains_key(name) {
            self.streams.insert(name.to_owned(), Rng::stream(seed, name));
        }
        // The key was inserted above; the entry API would allocate its name on each call.
        self.streams.entry(name.to_owned()).or_insert_with(|| Rng::stream(seed, name))
    }

    /// Records an event.
    pub fn emit(&mut self, mut seen: Seen) {
        seen.at = self.since_zero();
        tracing::debug!("{seen}");
        self.events.push(seen);
        self.touch();
    }

    fn tell_kernel_stopped(&self, host: &str) {
        if let Some(told) = &self.kernel_stopped {
            told(host);
        }
    }

    fn touch(&mut self) {
        self.touches = true;
        if let Some(sim) = self.me.upgrade() {
            sim.changed.notify_one();
        }
    }

    /// Runs `task` with the world on its own.
    pub(crate) fn spawn<F, Fut>(&self, task: F)
    where
        F: FnOnce(Arc<Sim>) -> Fut,
        Fut: Future<Output = ()> + Send + 'static,
    {
        if let Some(sim) = self.me.upgrade() {
            tokio::spawn(task(sim));
        }
    }

    /// The failure that meets this operation, if one is in store; it is used up by one. A move is met
    /// on either of its hosts.
    pub(crate) fn take_fail(&mut self, op: FailOp, vm: &str, hosts: &[&str]) -> Option<Fail> {
        let meets = |names: &[String], any: &[&str]| {
            names.is_empty() || names.iter().any(|n| any.contains(&n.as_str()))
        };
        let index = self
            .fails
            .iter()
            .position(|f| f.op == op && meets(&f.vms, &[vm]) && meets(&f.hosts, hosts))?;
        let fail = self.fails.get(index).cloned()?;
        match fail.times {
            Some(n) if n <= 1 => {
                self.fails.remove(index);
            }
            Some(n) => {
                if let Some(f) = self.fails.get_mut(index) {
                    f.times = Some(n - 1);
                }
            }
            None => {}
        }
        Some(fail)
    }

    /// Whether a failure that goes on until it is mended is in store still.
    pub(crate) fn fails_still(&self, fail: &Fail) -> bool {
        self.fails.iter().any(|f| f == fail)
    }

    /// Ends failures in store. A process that survived a kill dies of the next one.
    pub fn mend(&mut self, ends: impl Fn(&Fail) -> bool) {
        self.fails.retain(|fail| !ends(fail));
        self.touch();
    }

    /// A host's wall clock jumps by `step` milliseconds, its clocks run at another rate.
    pub fn set_clock(&mut self, host: &str, step: i64, rate: Option<f64>) {
        let now = self.now();
        let Some(m) = self.machines.get_mut(host) else { return };
        m.wall_offset += step;
        if let Some(rate) = rate {
            // What the clock shows must not jump with its rate.
            m.clock_base += (now.saturating_sub(m.clock_set) as f64 * m.rate) as u64;
            m.clock_set = now;
            m.rate = rate;
        }
        self.touch();
    }

    /// The guest of a VM.
    #[must_use]
    pub fn profile(&self, vm: &str) -> Profile {
        self.profiles.get(vm).cloned().unwrap_or_default()
    }

    /// Name of the host with this uid.
    #[must_use]
    pub fn host_of_uid(&self, uid: &str) -> Option<&str> {
        self.machines.values().find(|m| m.uid == uid).map(|m| m.name.as_str())
    }

    /// A process id that was never used.
    pub(crate) fn pid(&mut self) -> u64 {
        self.next_pid += 1;
        self.next_pid
    }
}
