//! The libvirt driver for QEMU: the port [`Hypervisor`] over one daemon's local socket.
//!
//! Calls go to the daemon; whether a QEMU is gone is read from the kernel alone, by what was
//! recorded when it started. The agent that links this must set no global allocator: `virt`
//! frees C memory by Rust's.

mod adopt;
mod connect;
mod console;
mod domain;
mod events;
mod identity;
mod lock;
mod migrate;
mod neighbours;
mod owner;
mod progress;
mod records;
mod sanlock;
mod turns;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_core::render::{DOMAIN_NAMESPACE, HostRenderFacts, domain_name, domain_xml};
use stockade_crds::v1alpha1::{
    AgentLock, ConsoleDevice, DomainSpec, HypervisorKind, LockKind, LockReport, MigrationProgress,
    MoveIdentity, MoveRequests,
};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use virt::domain::Domain;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use crate::error::{HostError, HostResult};
use crate::ports::{
    Arrival, Hypervisor, HypervisorEvent, LiveChange, LiveDomain, LiveState, MigrateRequest,
    Presence, Started, StopReason,
};
use crate::process::{ProcessId, copies_of};
use crate::{cmd, files, hook, seed};
use connect::Connection;
use identity::{Changed, Identity};
use neighbours::Neighbours;
use records::{Pending, Records};
use sanlock::Membership;
use turns::Turns;

pub use migrate::MigrationOptions;
pub use sanlock::SanlockPlaces;

/// How long a call may take that the daemon answers from memory.
const SHORT: Duration = Duration::from_secs(10);
/// How long a call about a move waits for those before it.
const TURN: Duration = Duration::from_secs(2);
/// How long a start may take; probing QEMU's capabilities alone can take most of a minute.
const START: Duration = Duration::from_secs(120);
/// How long one look waits for a lock manager to be set up.
const PREPARE: Duration = Duration::from_secs(5);
/// A daemon that is not even joining its lockspace this long after its start is restarted. It tries
/// once, and fails where another host is just making the lockspace's file.
const JOIN_AGAIN: Duration = Duration::from_secs(30);
/// A copy of the daemon that has not become a QEMU for so long, while the daemon does not answer,
/// never will.
const STUCK: Duration = Duration::from_secs(20);
/// UUID of the domain that is to be refused by the hook.
const PROBE_UUID: &str = "57ac4ade-0000-4000-8000-00000000b0b0";

/// What the driver needs to know of its host.
#[derive(Clone, Debug)]
pub struct LibvirtOptions {
    /// How libvirt is reached: `qemu:///system`.
    pub uri: String,
    /// The agent's state folder.
    pub state: PathBuf,
    /// The running boot.
    pub boot_id: String,
    /// Where libvirt keeps the QEMUs' process ids: `/run/libvirt/qemu`.
    pub run: PathBuf,
    /// Where libvirt keeps its log of each domain: `/var/log/libvirt/qemu`.
    pub logs: PathBuf,
    /// Where the daemon keeps its own process id, first one that exists.
    pub daemon_pid_files: Vec<PathBuf>,
    /// libvirt's configuration folder: `/etc/libvirt`.
    pub config: PathBuf,
    /// Guests are emulated: this host has no KVM.
    pub emulated: bool,
    /// The program that libvirt asks before a domain starts, with its first arguments.
    pub hook: Vec<String>,
    /// Program and arguments that restart the daemon; empty: nobody may.
    pub restart_daemon: Vec<String>,
    /// How peers are reached for live moves.
    pub migration: MigrationOptions,
    /// Where certificates for TLS lie: `/etc/pki`.
    pub pki: PathBuf,
    /// A folder whose owner is the user that QEMU runs as: `/var/lib/libvirt/qemu`.
    pub qemu_home: PathBuf,
    /// This host's uid, the name by which sanlock knows it.
    pub host_uid: String,
    /// Where sanlock's pieces lie.
    pub sanlock: SanlockPlaces,
}

impl LibvirtOptions {
    /// The usual places of a Debian host.
    #[must_use]
    pub fn new(state: &Path, host_uid: &str, boot_id: &str, hook: Vec<String>) -> Self {
        let restart = ["systemctl", "restart", "libvirtd.service"];
        Self {
            uri: "qemu:///system".into(),
            state: state.to_owned(),
            boot_id: boot_id.to_owned(),
            run: "/run/libvirt/qemu".into(),
            logs: "/var/log/libvirt/qemu".into(),
            daemon_pid_files: vec!["/run/libvirtd.pid".into(), "/run/virtqemud.pid".into()],
            config: "/etc/libvirt".into(),
            emulated: !Path::new("/dev/kvm").exists(),
            hook,
            restart_daemon: restart.map(str::to_owned).to_vec(),
            migration: MigrationOptions::default(),
            pki: "/etc/pki".into(),
            qemu_home: "/var/lib/libvirt/qemu".into(),
            host_uid: host_uid.to_owned(),
            sanlock: SanlockPlaces::default(),
        }
    }
}

/// The driver.
pub struct Libvirt {
    options: LibvirtOptions,
    connection: Connection,
    records: Records,
    /// The daemon that refused the probe, or did not.
    probed: Mutex<Option<(ProcessId, bool)>>,
    /// CPU milliseconds and when they were read, by VM.
    used: Mutex<BTreeMap<String, (u64, Instant)>>,
    /// When the daemon was last restarted for its lockspace, or this process began.
    lockspace_at: Mutex<Instant>,
    /// The lock manager as it is being set up: that goes on if the caller gives up.
    preparing: Mutex<Option<JoinHandle<HostResult<bool>>>>,
    /// What it shows in moves over TLS; `None`: they are not wanted.
    identity: Option<Identity>,
    neighbours: Neighbours,
    /// Calls about moves, which a QEMU can hold for long.
    turns: Turns,
}

fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Libvirt {
    /// Installs the hook and starts to connect; returns before the daemon has answered.
    pub fn new(options: LibvirtOptions) -> HostResult<Self> {
        hook::install(&options.config.join("hooks"), &options.hook)?;
        let (state, config) = (&options.state, &options.config);
        let identity = options.migration.tls.then(|| Identity::open(state, config, &options.pki));
        let identity = identity.transpose()?;
        let records = Records::open(&options.state, &options.boot_id)?;
        let connection = Connection::start(&options.uri)?;
        Ok(Self {
            options,
            connection,
            records,
            probed: Mutex::default(),
            used: Mutex::default(),
            lockspace_at: Mutex::new(Instant::now()),
            preparing: Mutex::default(),
            identity,
            neighbours: Neighbours::default(),
            turns: Turns::default(),
        })
    }

    /// The daemon's process, if it can be told.
    fn daemon(&self) -> Option<ProcessId> {
        self.options.daemon_pid_files.iter().find_map(|path| pid_in(path))
    }

    /// Opens one console of the domain that runs this epoch; what is written to the socket is its
    /// input. It ends when the domain does, or leaves.
    ///
    /// # Errors
    /// No such epoch runs here, it has no such console, or somebody else has its serial line open.
    pub async fn open_console(
        &self,
        vm_uid: &str,
        epoch: i64,
        device: ConsoleDevice,
    ) -> HostResult<UnixStream> {
        console::open(&self.connection, vm_uid, epoch, device).await
    }

    /// Where the host's own certificate lies, its key, and the authority: what it shows to peers.
    pub(crate) fn pki(&self) -> Option<&Path> {
        self.identity.is_some().then_some(self.options.pki.as_path())
    }

    /// Runs a changing call on one domain.
    async fn on_domain<T: Send + 'static>(
        &self,
        op: &'static str,
        vm_uid: &str,
        call: impl FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    ) -> HostResult<T> {
        let uid = vm_uid.to_owned();
        self.connection
            .change(op, vm_uid, SHORT, move |connect| {
                call(&connect.lookup_domain_by_uuid_string(&uid)?)
            })
            .await
    }

    /// Runs a call about the move of one domain; waits so long for those before it.
    async fn on_move<T: Send + 'static>(
        &self,
        op: &'static str,
        vm_uid: &str,
        wait: Duration,
        call: impl FnOnce(&Domain) -> Result<T, Error> + Send + 'static,
    ) -> HostResult<T> {
        let turn = self.turns.take(op, vm_uid, wait).await?;
        let call = move |domain: &Domain| {
            let _turn = turn;
            call(domain)
        };
        self.on_domain(op, vm_uid, call).await
    }

    /// Ends copies of the daemon that wait for good to become a QEMU.
    ///
    /// The daemon forks for each guest, and has the copy take the guest's lock (virtlockd). There
    /// libvirt 9.0 uses GLib, whose locks another thread may have held just then: such a copy waits
    /// for ever, its thread of the daemon for the copy, and whoever asks for all domains for that
    /// thread. The copy runs no guest yet: without it the start has failed, and all goes on.
    async fn end_stuck_copies(&self) {
        let Some(daemon) = self.daemon() else { return };
        let end = move || {
            let stuck = copies_of(&daemon, STUCK).unwrap_or_default();
            for copy in stuck {
                let ended = copy.kill();
                tracing::warn!(pid = copy.pid, ?ended, "a copy of libvirt's daemon hangs: ended");
            }
            Ok(())
        };
        // The next look tries again.
        let _ = files::blocking("end copies", "libvirt", end).await;
    }

    async fn list_all(&self) -> HostResult<Vec<LiveDomain>> {
        let seen = self.connection.read("list", "domains", SHORT, domain::list).await;
        if seen.is_err() {
            self.end_stuck_copies().await;
        }
        let seen = seen?;
        let mut live = Vec::new();
        for seen in seen {
            let (uuid, epoch) = (seen.view.uuid.clone(), seen.view.epoch.unwrap_or(0));
            let mut incoming = false;
            if epoch > 0 {
                // A domain that came in by a move is first seen here.
                if let Some(process) = pid_in(&self.pid_file(&seen.view.name)) {
                    self.records.saw(&uuid, epoch, process)?;
                }
                incoming = self.records.get(&uuid, epoch).is_some_and(|record| record.incoming);
            }
            let domain = seen.live(incoming);
            if epoch > 0 && domain.state == LiveState::Running {
                // A start that is through has nothing left to take effect.
                self.settle_pending(&uuid, epoch)?;
            }
            live.push(domain);
        }
        // A QEMU that the daemon has lost is still there.
        for record in self.records.all() {
            let listed = live.iter().any(|domain| domain.uuid == record.vm_uid);
            if !listed && record.process.as_ref().is_some_and(ProcessId::is_there) {
                live.push(LiveDomain {
                    name: String::new(),
                    uuid: record.vm_uid,
                    epoch: record.epoch,
                    state: LiveState::Dying,
                    disks: Vec::new(),
                    cores: 0,
                    memory_mib: 0,
                });
            }
        }
        Ok(live)
    }

    fn settle_pending(&self, vm_uid: &str, epoch: i64) -> HostResult<()> {
        let pending = self.records.get(vm_uid, epoch).and_then(|record| record.pending_in);
        if pending.is_some() { self.records.answered(vm_uid, epoch) } else { Ok(()) }
    }

    fn pid_file(&self, name: &str) -> PathBuf {
        self.options.run.join(format!("{name}.pid"))
    }

    async fn start_order(&self, order: &DomainSpec) -> HostResult<Started> {
        const OP: &str = "start";
        let (uid, epoch) = (order.vm.uid.clone(), order.epoch);
        if order.machine.hypervisor != HypervisorKind::KVM {
            return Err(HostError::refused(OP, uid, "this driver runs no Xen domains"));
        }
        self.give_disks(order).await?;
        let seed = order.machine.seed.as_ref().map(|_| seed::path(&self.options.state, &uid));
        let facts = HostRenderFacts {
            emulated: self.options.emulated,
            seed: seed.map(|path| path.display().to_string()),
        };
        let xml = domain_xml(order, &facts);
        let flags = if order.paused { sys::VIR_DOMAIN_START_PAUSED } else { 0 };
        let pending = self.daemon().map_or(Pending::Unidentified, Pending::Daemon);
        self.records.begin(&uid, epoch, pending)?;
        let (records, pid_file) = (self.records.clone(), self.pid_file(&domain_name(order)));
        let vm_uid = uid.clone();
        let result = self
            .connection
            .change(OP, &uid, START, move |connect| {
                let created = connect.create_domain_xml(&xml, flags);
                // Here and not by the caller, who may have given up long ago.
                if created.is_ok()
                    && let Some(process) = pid_in(&pid_file)
                {
                    keep(records.saw(&vm_uid, epoch, process));
                }
                if created.is_ok() || connect.is_alive().unwrap_or(false) {
                    keep(records.answered(&vm_uid, epoch));
                }
                domain::see(&created?)
            })
            .await;
        if result.as_ref().is_err_and(|error| !error.is_unknown()) {
            self.records.answered(&order.vm.uid, epoch)?;
        }
        let view = result?.map(|seen| seen.view).unwrap_or_default();
        Ok(Started { machine_type: view.machine_type, cpu_model: view.cpu_model })
    }

    /// Gives the disks to the user that QEMU runs as, unless the administrator has taken that upon
    /// himself.
    async fn give_disks(&self, order: &DomainSpec) -> HostResult<()> {
        let (config, home) = (self.options.config.clone(), self.options.qemu_home.clone());
        let disks = order.machine.disks.iter().filter(|disk| !disk.read_only);
        let paths: Vec<PathBuf> = disks.map(|disk| PathBuf::from(&disk.path)).collect();
        let work = move || owner::give(&config, &home, &paths);
        files::blocking("give disks", &order.vm.uid, work).await
    }

    async fn kill_epoch(&self, vm_uid: &str, epoch: i64) -> HostResult<()> {
        const OP: &str = "kill";
        let (records, uid) = (self.records.clone(), vm_uid.to_owned());
        files::blocking(OP, vm_uid, move || {
            for process in records.processes(&uid, epoch) {
                process.kill().map_err(|error| HostError::failed(OP, &uid, error.to_string()))?;
            }
            Ok(())
        })
        .await?;
        // The daemon cleans up by itself when it sees the end; this is for one that was just
        // starting it. A frozen daemon has no say in whether the kill has worked.
        let uid = vm_uid.to_owned();
        let destroyed = self
            .connection
            .change(OP, vm_uid, SHORT, move |connect| {
                let domain = connect.lookup_domain_by_uuid_string(&uid)?;
                let ours = domain::see(&domain)?.is_some_and(|seen| seen.view.epoch == Some(epoch));
                if ours { domain.destroy() } else { Ok(()) }
            })
            .await;
        if let Err(error) = destroyed {
            tracing::debug!(vm_uid, epoch, %error, "nothing was left to destroy, or no answer");
        }
        Ok(())
    }

    async fn probe(&self) -> HostResult<bool> {
        const OP: &str = "probe hook";
        let daemon = self.daemon();
        if let (Some(daemon), Some((probed, refused))) = (&daemon, &*guard(&self.probed))
            && daemon == probed
        {
            return Ok(*refused);
        }
        let kind = if self.options.emulated { "qemu" } else { "kvm" };
        let xml = format!(
            "<domain type='{kind}'><name>stockade-probe</name><uuid>{PROBE_UUID}</uuid>\
             <metadata><s:domain xmlns:s='{DOMAIN_NAMESPACE}' epoch='1' boot='{}'/></metadata>\
             <memory unit='MiB'>1</memory><vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os>\
             </domain>",
            self.options.boot_id
        );
        let started = self.connection.change(OP, PROBE_UUID, START, move |connect| {
            // One whose answer was lost when the daemon ended would stand in the way for ever.
            if let Ok(left) = connect.lookup_domain_by_uuid_string(PROBE_UUID) {
                left.destroy()?;
            }
            connect.create_domain_xml(&xml, sys::VIR_DOMAIN_START_PAUSED)?.destroy()
        });
        let refused = match started.await {
            Ok(()) => false,
            Err(HostError::Refused { .. }) => true,
            Err(other) => return Err(other),
        };
        if let (Some(daemon), true) = (daemon, refused) {
            *guard(&self.probed) = Some((daemon, true));
        }
        if !refused && !self.options.restart_daemon.is_empty() {
            // libvirt looks for hooks only when it starts, and ours is there by now.
            self.restart_daemon(OP).await?;
        }
        Ok(refused)
    }

    async fn restart_daemon(&self, op: &'static str) -> HostResult<()> {
        let Some((program, arguments)) = self.options.restart_daemon.split_first() else {
            let message = "libvirtd must be restarted; do so by hand";
            return Err(HostError::refused(op, "libvirtd", message));
        };
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        cmd::run(op, "libvirtd", program, &arguments, START).await.map(drop)
    }

    /// Writes certificates and settings, and has the daemon take them.
    async fn take_identity(&self, signed: &MoveIdentity) -> HostResult<()> {
        const OP: &str = "use certificates";
        let Some(identity) = &self.identity else { return Ok(()) };
        match identity.install(signed, &self.options.qemu_home)? {
            Changed::Nothing => return Ok(()),
            // Its own connections and QEMUs read their certificates each time; what it shows to
            // those who connect it keeps.
            Changed::Certificates => {
                let words = ["-c", "libvirtd:///system", "server-update-tls", "libvirtd"];
                cmd::run(OP, "libvirtd", "virt-admin", &words, SHORT).await?;
            }
            Changed::Settings => self.restart_daemon(OP).await?,
        }
        identity.taken()
    }

    async fn use_lock_manager(&self, lock: &AgentLock) -> HostResult<()> {
        const OP: &str = "use lock manager";
        let config = &self.options.config;
        let live = self.list_all().await.map(|live| live.len());
        // What can't be listed may run.
        let idle = matches!(live, Ok(0));
        let set = self.prepare_lock(lock).await?;
        let changed = lock::choose(config, lock.kind, idle)? || set;
        match lock.kind {
            LockKind::Virtlockd => {
                if changed {
                    self.restart_daemon(OP).await?;
                }
                lock::daemon_answers(&self.options.run)
            }
            LockKind::Sanlock => {
                let membership = sanlock::membership(lock).await?;
                // A daemon that was not restarted after a change, because this process ended just
                // then, or that failed to join, is restarted now and then; so is one that does not
                // come up without the lockspace.
                let due = guard(&self.lockspace_at).elapsed() >= JOIN_AGAIN;
                let absent = membership == Membership::Absent && !matches!(live, Ok(1..));
                if changed || (absent && due) {
                    *guard(&self.lockspace_at) = Instant::now();
                    self.restart_daemon(OP).await?;
                }
                if membership == Membership::Joined {
                    return Ok(());
                }
                Err(sanlock::not_joined(lock))
            }
        }
    }

    /// Sets a lock manager up in a task of its own, and waits a moment for it: while the storage of
    /// its lockspace is away it hangs in the kernel.
    async fn prepare_lock(&self, lock: &AgentLock) -> HostResult<bool> {
        const OP: &str = "use lock manager";
        guard(&self.preparing).get_or_insert_with(|| {
            let options = &self.options;
            let (places, config) = (options.sanlock.clone(), options.config.clone());
            let (lock, uid) = (lock.clone(), options.host_uid.clone());
            tokio::spawn(async move {
                let space = lock.lockspace.clone();
                match lock.kind {
                    LockKind::Virtlockd => {
                        sanlock::leave(&places).await?;
                        let set = move || lock::set_lockspace(&config, &lock.lockspace);
                        files::blocking(OP, &space, set).await
                    }
                    LockKind::Sanlock => sanlock::prepare(&places, &config, &lock, &uid).await,
                }
            })
        });
        let began = Instant::now();
        while began.elapsed() < PREPARE {
            let done = guard(&self.preparing).take_if(|task| task.is_finished());
            if let Some(task) = done {
                let ended = |error| HostError::unknown(OP, &lock.lockspace, format!("{error}"));
                return task.await.map_err(ended)?;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Err(HostError::refused(OP, &lock.lockspace, "it is being set up"))
    }

    /// Whether a domain's process holds a lease for each of its writable disks.
    async fn leases_held(&self, domain: &LiveDomain) -> HostResult<bool> {
        let Some(process) = pid_in(&self.pid_file(&domain.name)) else { return Ok(false) };
        let leases = sanlock::held().await?.leases_of(process.pid);
        Ok(leases > 0 && leases >= domain.disks.len())
    }

    async fn change_size(
        &self,
        vm_uid: &str,
        cores: i32,
        memory_mib: i64,
    ) -> HostResult<LiveChange> {
        self.on_domain("resize", vm_uid, move |domain| {
            let Some(seen) = domain::see(domain)? else { return Ok(LiveChange::NeedsRestart) };
            let mut change = LiveChange::Applied;
            if cores != seen.view.cores {
                let count = cores.max(1).unsigned_abs();
                if domain.set_vcpus_flags(count, sys::VIR_DOMAIN_VCPU_LIVE).is_err() {
                    change = LiveChange::NeedsRestart;
                }
            }
            if memory_mib != seen.view.memory_mib {
                let kib = memory_mib.unsigned_abs() * 1024;
                let fits = memory_mib <= seen.view.max_memory_mib;
                let set = |flags| domain.set_memory_flags(kib, flags);
                if !fits || set(sys::VIR_DOMAIN_MEM_LIVE).is_err() {
                    change = LiveChange::NeedsRestart;
                }
            }
            Ok(change)
        })
        .await
    }

    fn measure(&self, vm_uid: &str) -> HostResult<(i64, i64)> {
        let running = self.records.of(vm_uid).into_iter().filter_map(|record| record.process);
        let usage = running.filter_map(|process| process.usage()).next();
        let (millis, memory) =
            usage.ok_or_else(|| HostError::failed("measure", vm_uid, "it does not run here"))?;
        let now = Instant::now();
        let before = guard(&self.used).insert(vm_uid.to_owned(), (millis, now));
        let milli_cpu = before.map_or(0, |(before, then)| {
            let passed = u64::try_from((now - then).as_millis()).unwrap_or(u64::MAX).max(1);
            millis.saturating_sub(before).saturating_mul(1000) / passed
        });
        Ok((i64::try_from(milli_cpu).unwrap_or(i64::MAX), memory))
    }
}

/// A failed note about a process is no reason to forget that it was started.
fn keep(written: HostResult<()>) {
    if let Err(error) = written {
        tracing::warn!(%error, "a process could not be recorded");
    }
}

/// The living process that a pid file names.
fn pid_in(path: &Path) -> Option<ProcessId> {
    ProcessId::of(fs::read_to_string(path).ok()?.trim().parse().ok()?)
}

impl Hypervisor for Libvirt {
    fn list(&self) -> BoxFuture<'_, HostResult<Vec<LiveDomain>>> {
        self.list_all().boxed()
    }

    fn events(&self) -> mpsc::UnboundedReceiver<HypervisorEvent> {
        self.connection.events()
    }

    fn probe_hook(&self) -> BoxFuture<'_, HostResult<bool>> {
        self.probe().boxed()
    }

    fn start<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<Started>> {
        self.start_order(order).boxed()
    }

    fn adopt<'a>(&'a self, order: &'a DomainSpec, from: i64) -> BoxFuture<'a, HostResult<()>> {
        adopt::adopt(self, order, from).boxed()
    }

    fn end_reason<'a>(
        &'a self,
        _vm_uid: &'a str,
        name: &'a str,
        _epoch: i64,
    ) -> BoxFuture<'a, Option<StopReason>> {
        let (logs, name) = (self.options.logs.clone(), name.to_owned());
        async move {
            let read = move || Ok(adopt::end_reason(&logs, &name));
            files::blocking("end reason", "log", read).await.ok().flatten()
        }
        .boxed()
    }

    fn prepare_incoming<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<()>> {
        let expected = self.records.expect_incoming(&order.vm.uid, order.epoch);
        async move { expected }.boxed()
    }

    fn migrate<'a>(&'a self, request: &'a MigrateRequest) -> BoxFuture<'a, HostResult<()>> {
        migrate::migrate(&self.connection, &self.options.migration, request).boxed()
    }

    fn migration_job<'a>(
        &'a self,
        vm_uid: &'a str,
    ) -> BoxFuture<'a, HostResult<Option<MigrationProgress>>> {
        self.on_move("read move", vm_uid, Duration::ZERO, progress::under_way).boxed()
    }

    fn arrival<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Option<Arrival>>> {
        self.on_move("read arrival", vm_uid, TURN, progress::arrival).boxed()
    }

    fn abort_migration<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        self.on_move("abort migration", vm_uid, TURN, events::abort_job).boxed()
    }

    fn shutdown<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        self.on_domain("shutdown", vm_uid, |domain| {
            domain.shutdown_flags(sys::VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        })
        .boxed()
    }

    fn kill<'a>(&'a self, vm_uid: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>> {
        self.kill_epoch(vm_uid, epoch).boxed()
    }

    fn reset<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        self.on_domain("reset", vm_uid, Domain::reset).boxed()
    }

    fn suspend<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        self.on_domain("suspend", vm_uid, Domain::suspend).boxed()
    }

    fn resume<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.on_domain("resume", vm_uid, Domain::resume).await?;
            self.records.resumed(vm_uid)
        }
        .boxed()
    }

    fn resize<'a>(
        &'a self,
        vm_uid: &'a str,
        cores: i32,
        memory_mib: i64,
    ) -> BoxFuture<'a, HostResult<LiveChange>> {
        self.change_size(vm_uid, cores, memory_mib).boxed()
    }

    fn resize_disk<'a>(
        &'a self,
        vm_uid: &'a str,
        path: &'a str,
        bytes: i64,
    ) -> BoxFuture<'a, HostResult<LiveChange>> {
        let path = path.to_owned();
        self.on_domain("resize disk", vm_uid, move |domain| {
            let (wanted, flags) = (bytes.max(0).unsigned_abs(), sys::VIR_DOMAIN_BLOCK_RESIZE_BYTES);
            // One that was larger than its spec said must not lose its end.
            if domain.block_info(&path, 0)?.capacity >= wanted {
                return Ok(LiveChange::Applied);
            }
            match domain.block_resize(&path, wanted, flags) {
                Ok(()) => Ok(LiveChange::Applied),
                Err(error) if error.code().is(ErrorNumber::OperationUnsupported) => {
                    Ok(LiveChange::NeedsRestart)
                }
                Err(error) => Err(error),
            }
        })
        .boxed()
    }

    fn presence<'a>(&'a self, vm_uid: &'a str, epoch: i64) -> BoxFuture<'a, Presence> {
        let (records, uid) = (self.records.clone(), vm_uid.to_owned());
        async move {
            let read =
                files::blocking("presence", vm_uid, move || Ok(records.presence(&uid, epoch)));
            read.await.unwrap_or(Presence::Unknown)
        }
        .boxed()
    }

    fn lock<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Option<LockReport>>> {
        async move {
            let Some(kind) = lock::kind(&self.options.config)? else { return Ok(None) };
            let live = self.list_all().await?;
            let domain = live.iter().find(|domain| domain.uuid == vm_uid);
            let held = match (kind, domain) {
                (LockKind::Virtlockd, domain) => lock::held_while_running(domain),
                (LockKind::Sanlock, None) => false,
                (LockKind::Sanlock, Some(domain)) => self.leases_held(domain).await?,
            };
            Ok(Some(LockReport { manager: kind, held, holder: String::new() }))
        }
        .boxed()
    }

    fn addresses<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Vec<String>>> {
        async move {
            let seen = self.on_domain("addresses", vm_uid, |domain| {
                let macs = domain::see(domain)?.map(|seen| seen.view.macs);
                // A host on which libvirt has no networks has no leases either.
                Ok((macs.unwrap_or_default(), events::leased(domain).unwrap_or_default()))
            });
            let (macs, leased) = seen.await?;
            let mut known = self.neighbours.of(&macs).await?;
            known.extend(leased.iter().filter_map(|address| address.parse::<IpAddr>().ok()));
            Ok(known.iter().map(IpAddr::to_string).collect())
        }
        .boxed()
    }

    fn usage<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<(i64, i64)>> {
        async move { self.measure(vm_uid) }.boxed()
    }

    fn move_requests(&self) -> Option<MoveRequests> {
        self.identity.as_ref().map(|identity| identity.requests().clone())
    }

    fn install_identity<'a>(&'a self, signed: &'a MoveIdentity) -> BoxFuture<'a, HostResult<()>> {
        self.take_identity(signed).boxed()
    }

    fn ensure_lock_manager<'a>(
        &'a self,
        lock: Option<&'a AgentLock>,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            match lock {
                None => Ok(()),
                Some(lock) => self.use_lock_manager(lock).await,
            }
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    /// A pipe that nobody writes to stands for what hangs in the kernel.
    #[tokio::test]
    async fn a_lockspace_that_hangs_holds_nothing_else_up() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["config/hooks", "state", "vms/.stockade"] {
            fs::create_dir_all(at(name)).unwrap();
        }
        fs::write(at("vms/.stockade/cluster"), "c1").unwrap();
        let pipe = at("config/qemu-lockd.conf");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        let (looked, over) = channel::<()>();
        let writer = std::thread::spawn(move || {
            // So that what does hang fails, and the test ends.
            let _ = over.recv_timeout(4 * PREPARE);
            fs::OpenOptions::new().write(true).open(pipe).map(drop)
        });
        let options = LibvirtOptions {
            uri: "test:///default".into(),
            config: at("config"),
            ..LibvirtOptions::new(&at("state"), "uid-1", "boot-1", vec!["agent".into()])
        };
        let libvirt = Libvirt::new(options).unwrap();
        let lock = AgentLock {
            kind: LockKind::Virtlockd,
            storage: "vms".into(),
            lockspace: at("vms/.stockade/locks").display().to_string(),
            guards: vec!["vms".into()],
            host_id: 0,
            maintenance: false,
        };
        let refused = libvirt.use_lock_manager(&lock).await;
        looked.send(()).unwrap();
        writer.join().unwrap().unwrap();
        assert!(refused.unwrap_err().to_string().contains("it is being set up"));
    }
}
