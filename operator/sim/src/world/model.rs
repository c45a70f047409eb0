//! The state of the simulated world: plain data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stockade_crds::names::domain_name;
use stockade_crds::v1alpha1::{AgentLock, DomainSpec, GoingDown, LockKind, SelfFence, StorageKind};
use stockade_host::ports::{Beat, HypervisorEvent, JournalState, OwnerRecord, StopReason};
use tokio::sync::{Notify, mpsc};

use super::event::Doer;
use crate::host::gate::Gate;

/// Whether a kernel runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Without power, or switched off.
    Off,
    /// On its way up.
    Booting,
    /// Runs.
    Up,
    /// Hangs: nothing runs, power stays on.
    Hung,
}

/// What a watchdog does when it is not fed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WatchdogKind {
    /// The machine boots again.
    #[default]
    Reset,
    /// The machine is switched off.
    PowerOff,
    /// There is none.
    Absent,
    /// It never fires.
    Dead,
}

/// A network of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Net {
    /// To the Kubernetes API.
    Api,
    /// To the other hosts.
    Peers,
    /// To storage servers and devices.
    Storage,
    /// From the controller to the host's fence device.
    Bmc,
    /// To the other hosts, for live moves.
    Migration,
}

/// A direction, seen from the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// Towards the host.
    In,
    /// Away from the host.
    Out,
}

/// A small process of ours on a host.
#[derive(Clone, Debug, Default)]
pub struct Process {
    /// Opens and closes as it is stopped and continued.
    pub gate: Gate,
    /// It exists.
    pub running: bool,
    /// It is stopped by SIGSTOP.
    pub paused: bool,
    /// Asks the agent to end.
    pub stop: Arc<Notify>,
    /// It was asked to end; milliseconds until it is started again after that.
    pub restarts_in: Option<u64>,
    /// Counts its lives, so that a late restart of an earlier one does nothing.
    pub life: u64,
}

impl Process {
    /// It exists and is polled.
    #[must_use]
    pub fn works(&self) -> bool {
        self.running && !self.paused
    }
}

/// What a process of a VM does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QemuState {
    /// Being set up; vCPUs have never run.
    Launching,
    /// vCPUs run.
    Running,
    /// vCPUs are suspended.
    Paused,
    /// Takes memory in from a live move.
    Incoming,
    /// Complete after a live move, not resumed.
    Switched,
    /// Killed, but it can't die.
    Dying,
}

/// A writable disk of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenDisk {
    /// Its path.
    pub path: String,
    /// Its storage.
    pub storage: String,
}

/// A process that runs a VM.
#[derive(Clone, Debug)]
pub struct Qemu {
    /// Unique over the whole run.
    pub pid: u64,
    /// VM uid.
    pub uid: String,
    /// libvirt's name.
    pub name: String,
    /// The VM's name.
    pub vm: String,
    /// The epoch in its metadata.
    pub epoch: i64,
    /// What it does.
    pub state: QemuState,
    /// Who started it.
    pub by: Doer,
    /// Started past the lock manager, so what it does is not Stockade's doing.
    pub unlocked: bool,
    /// The lock manager that guards it.
    pub lock: Option<LockKind>,
    /// Its writable disks.
    pub disks: Vec<OpenDisk>,
    /// vCPUs.
    pub cores: i32,
    /// Memory.
    pub memory_mib: i64,
    /// What its guest knows of each disk: the version that its memory goes with.
    pub knows: BTreeMap<String, u64>,
    /// A live move away from here is under way, towards this host.
    pub moving_to: Option<String>,
    /// How far the copy is: milliseconds that it went on.
    pub copied_ms: u64,
    /// When all of it had come in by a live move, in milliseconds since second 0.
    pub whole_at: Option<u64>,
    /// When it was first executed after that.
    pub resumed_at: Option<u64>,
    /// The move was asked to abort.
    pub abort: bool,
    /// Its guest was asked to shut down.
    pub asked: bool,
    /// It stands still and answers its daemon no more.
    pub deaf: bool,
    /// It has survived SIGKILL.
    pub undead: bool,
    /// libvirt has lost it: a daemon that starts anew can't reach the monitor of such a process.
    pub unlisted: bool,
}

impl Qemu {
    /// One that was just made for an order, under the order's lock.
    #[must_use]
    pub fn of(
        order: &DomainSpec,
        pid: u64,
        by: Doer,
        state: QemuState,
        disks: Vec<OpenDisk>,
    ) -> Self {
        Self {
            pid,
            uid: order.vm.uid.clone(),
            name: domain_name(&order.vm.namespace, &order.vm.name),
            vm: order.vm.name.clone(),
            epoch: order.epoch,
            state,
            by,
            unlocked: false,
            lock: order.machine.lock,
            disks,
            cores: order.machine.cores,
            memory_mib: order.machine.memory_mib,
            knows: BTreeMap::new(),
            moving_to: None,
            copied_ms: 0,
            whole_at: None,
            resumed_at: None,
            abort: false,
            asked: false,
            deaf: false,
            undead: false,
            unlisted: false,
        }
    }
}

/// What the watchdog and its feeder are doing.
#[derive(Clone, Debug, Default)]
pub struct Feeding {
    /// The device is open: it must be fed, or it fires.
    pub open: bool,
    /// Armed with these timings.
    pub timings: Option<SelfFence>,
    /// The storages whose beats feed.
    pub storages: Vec<String>,
    /// When it fires, in milliseconds of the world.
    pub deadline: u64,
    /// The feeder has killed the VMs and let go for good.
    pub let_go: bool,
    /// Send time of the last acknowledged API renewal, on the host's monotonic clock.
    pub api: u64,
    /// Send time of the last acknowledged beat, by storage.
    pub beats: BTreeMap<String, u64>,
}

/// What survives on a host's own disk.
#[derive(Clone, Debug, Default)]
pub struct Durable {
    /// The agent's journal.
    pub journal: JournalState,
    /// Domains that libvirt starts after a boot, by VM uid: none while they are transient.
    pub defined: BTreeMap<String, DomainSpec>,
}

/// One machine.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: String,
    /// Its identity.
    pub uid: String,
    /// CPUs.
    pub cpu: i32,
    /// Memory.
    pub memory_mib: i64,
    /// Milliseconds from power to a running kernel.
    pub boot_ms: u64,
    /// Its watchdog.
    pub watchdog: WatchdogKind,
    /// The switch at the machine.
    pub switch: bool,
    /// Levels of fence devices: all of one level cut its power.
    pub levels: Vec<Vec<String>>,
    /// Devices that have cut their plug of this host.
    pub cut_by: BTreeSet<String>,
    /// Whether the kernel runs.
    pub kernel: Kernel,
    /// Counts boots and attempts to.
    pub boot_no: u64,
    /// The boot id of the running or last boot.
    pub boot_id: String,
    /// When that boot began, in milliseconds of the world.
    pub booted_at: u64,
    /// What its clocks had counted when that boot began.
    pub boot_clock: u64,
    /// Cut networks.
    pub cuts: BTreeSet<(Net, Way)>,
    /// Wall clock minus the world's, in milliseconds.
    pub wall_offset: i64,
    /// Speed of its clocks, since `clock_set`.
    pub rate: f64,
    /// When the rate was last changed, in milliseconds of the world.
    pub clock_set: u64,
    /// What its clocks had counted by then.
    pub clock_base: u64,
    /// The agent.
    pub agent: Process,
    /// The watchdog's feeder.
    pub feeder: Process,
    /// The beat writers.
    pub beat: Process,
    /// libvirt's daemon answers.
    pub libvirt_up: bool,
    /// libvirt's daemon exists (a hung one does not answer).
    pub libvirt_running: bool,
    /// Counts its daemon's lives.
    pub libvirt_life: u64,
    /// The lock daemon works.
    pub lock_daemon: bool,
    /// The lock manager that the agent runs.
    pub lock_manager: Option<AgentLock>,
    /// Processes of VMs by uid.
    pub qemus: BTreeMap<String, Qemu>,
    /// How the last process of each VM ended, as libvirt's log has it: epoch and reason.
    pub ended: BTreeMap<String, (i64, StopReason)>,
    /// Mounted storages.
    pub mounts: BTreeSet<String>,
    /// Storages to beat on.
    pub beating: Vec<String>,
    /// Interval of beats in milliseconds.
    pub beat_ms: u64,
    /// Lineage that beats carry.
    pub lineage: i64,
    /// Counts beats of this boot.
    pub beat_counter: u64,
    /// Writes that the NFS client has not got rid of: (storage, path) to the process.
    pub queued: BTreeMap<(String, String), Queued>,
    /// The watchdog.
    pub feeding: Feeding,
    /// What survives.
    pub durable: Durable,
    /// The init system asks to go down.
    pub going_down: Option<GoingDown>,
    /// The agent let go of its inhibitor.
    pub down_allowed: bool,
    /// Wakes the agent when `going_down` may have changed.
    pub down_changed: Arc<Notify>,
    /// News to the agent.
    pub news: Option<mpsc::UnboundedSender<HypervisorEvent>>,
    /// Since when nothing that it sends arrives anywhere, in milliseconds of the world.
    pub dark_since: Option<u64>,
    /// Init has brought it down.
    pub went_down_cleanly: bool,
    /// Until when its silence is announced, in milliseconds of the world.
    pub announced_until: u64,
    /// Devices read or cut it: the way to its fence device works.
    pub seen_boots: BTreeSet<String>,
}

impl Machine {
    /// Whether it has power.
    #[must_use]
    pub fn powered(&self) -> bool {
        self.switch
            && !self
                .levels
                .iter()
                .any(|l| !l.is_empty() && l.iter().all(|d| self.cut_by.contains(d)))
    }

    /// Milliseconds that its clocks have counted since the world began.
    #[must_use]
    pub fn counted(&self, now: u64) -> u64 {
        // Rates are within a few per cent: the product stays far below 2^53.
        self.clock_base + (now.saturating_sub(self.clock_set) as f64 * self.rate) as u64
    }

    /// Whether vCPUs can run.
    #[must_use]
    pub fn executes(&self) -> bool {
        self.kernel == Kernel::Up
    }

    /// Whether packets pass in a direction.
    #[must_use]
    pub fn passes(&self, net: Net, way: Way) -> bool {
        !self.cuts.contains(&(net, way))
    }

    /// Whether a network works both ways.
    #[must_use]
    pub fn whole(&self, net: Net) -> bool {
        self.passes(net, Way::In) && self.passes(net, Way::Out)
    }
}

/// A write that waits in a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queued {
    /// The process that wrote.
    pub pid: u64,
    /// Its epoch.
    pub epoch: i64,
    /// It writes under a lock.
    pub guarded: bool,
    /// What it does is not Stockade's doing.
    pub unlocked: bool,
    /// When the client sends it again: what timed out once is not sent at once.
    pub again_at: u64,
}

/// Who wrote to a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Writer {
    /// The process.
    pub pid: u64,
    /// Its host.
    pub host: String,
    /// Its boot.
    pub boot_id: String,
    /// Its epoch.
    pub epoch: i64,
    /// What it does is not Stockade's doing.
    pub unlocked: bool,
}

/// A disk, as it is on its storage.
#[derive(Clone, Debug, Default)]
pub struct Disk {
    /// Its storage.
    pub storage: String,
    /// Counts writes.
    pub version: u64,
    /// Counts guests' boots from it.
    pub boots: u64,
    /// Who wrote last.
    pub writer: Option<Writer>,
    /// Writers after whom somebody else has written.
    pub superseded: BTreeSet<u64>,
    /// Owner records by epoch.
    pub records: BTreeMap<i64, OwnerRecord>,
    /// The file exists.
    pub exists: bool,
}

/// A lock on a disk, as its server keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskLock {
    /// Which manager.
    pub kind: LockKind,
    /// Name of the client; of no host of ours if it is foreign.
    pub client: String,
    /// The client's boot.
    pub boot_id: String,
    /// The process; 0: none, it is stale.
    pub pid: u64,
    /// The VM.
    pub uid: String,
    /// Held by somebody alive who is no host of ours.
    pub foreign: bool,
}

/// What a storage does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum StorageMode {
    /// It works.
    #[default]
    Up,
    /// It does not answer.
    Down,
    /// It answers late.
    Slow,
    /// It refuses writes.
    ReadOnly,
}

/// A client of a storage, as its server sees it.
#[derive(Clone, Debug, Default)]
pub struct Client {
    /// Its boot.
    pub boot_id: String,
    /// When it last renewed, in milliseconds of the world.
    pub renewed: u64,
}

/// One shared storage.
#[derive(Clone, Debug, Default)]
pub struct Store {
    /// Its name.
    pub name: String,
    /// Its kind.
    pub kind: StorageKind,
    /// Where hosts see it.
    pub mount: String,
    /// The host of ours that serves it; `None`: something outside the hosts.
    pub served_by: Option<String>,
    /// Seconds after which a silent client's locks may be taken.
    pub lease_ms: u64,
    /// What it does, for all hosts.
    pub mode: StorageMode,
    /// What it does for some hosts.
    pub mode_for: BTreeMap<String, StorageMode>,
    /// Hosts that are denied, with the boot that was.
    pub denied: BTreeMap<String, String>,
    /// Its clients by host.
    pub clients: BTreeMap<String, Client>,
    /// Locks by path of the disk; more than one only where one is stale.
    pub locks: BTreeMap<String, Vec<DiskLock>>,
    /// Beats by host uid.
    pub beats: BTreeMap<String, Beat>,
    /// Id of the cluster in its marker.
    pub marker: Option<String>,
    /// Another cluster's VMs write every disk on it.
    pub foreign: bool,
    /// The server obeys denials.
    pub obeys: bool,
    /// Since when each host has not reached it (OCFS2 and sanlock act on that).
    pub lost_since: BTreeMap<String, u64>,
}

/// How a fence device behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceMode {
    /// As it should.
    #[default]
    Ok,
    /// It does not answer.
    Timeout,
    /// It says on, whatever is.
    LiesOn,
    /// It says off, and cuts nothing.
    LiesOff,
    /// It answers an off with an error if the plug is off.
    AlreadyOff,
    /// It acts on another host's plug.
    WrongHost,
    /// It refuses the login.
    BadCredentials,
    /// It answers only while its host has mains power.
    DiesWithHost,
}

/// One fence device.
#[derive(Clone, Debug, Default)]
pub struct Device {
    /// Its name.
    pub name: String,
    /// It reads an outlet, not the machine behind it.
    pub outlet: bool,
    /// How it behaves.
    pub mode: DeviceMode,
    /// For so many calls; `None`: until changed.
    pub times: Option<u32>,
    /// Plug by host, as it is wired.
    pub wired: BTreeMap<String, String>,
    /// What each call carried.
    pub calls: Vec<BTreeMap<String, String>>,
}

/// What is simulated of a VM's guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// How long its guest takes to shut down.
    pub stop_ms: u64,
    /// How long its live copy takes.
    pub migrate_ms: u64,
    /// CPUs in use; `None`: as declared.
    pub load_cpu: Option<f64>,
    /// Memory in use; `None`: as declared.
    pub load_memory_mib: Option<i64>,
}

impl Default for Profile {
    fn default() -> Self {
        Self { stop_ms: 3_000, migrate_ms: 5_000, load_cpu: None, load_memory_mib: None }
    }
}

/// An operation that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailOp {
    /// A start.
    Start,
    /// A guest's shutdown.
    Stop,
    /// A kill.
    Kill,
    /// A live move.
    Migrate,
    /// A write of an agent's journal: its disk is full, or refuses writes.
    Journal,
}

/// Where a live move fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Stage {
    /// Before anything is copied.
    #[default]
    Before,
    /// In the middle.
    Copying,
    /// After the switch-over.
    Switched,
}

/// How an operation fails.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailAs {
    /// With an error.
    #[default]
    Error,
    /// It never returns.
    Hang,
    /// It happens, but the answer is lost.
    Unknown,
    /// A switch-over: the target has everything, but the source's hypervisor does not hear so and
    /// resumes its copy, unless the lock is in the way.
    Lost,
    /// A switch-over: the target has everything, but the source's daemon ends in that moment. Its copy
    /// stays, paused.
    Stuck,
    /// A copy: the source's process stands still while it sends, and never answers again.
    Deaf,
}

/// A failure that is in store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fail {
    /// The operation.
    pub op: FailOp,
    /// VMs that it meets; empty: any.
    pub vms: Vec<String>,
    /// Hosts that it meets; empty: any.
    pub hosts: Vec<String>,
    /// How often; `None`: until it is mended.
    pub times: Option<u32>,
    /// Where.
    pub stage: Stage,
    /// How.
    pub how: FailAs,
}
