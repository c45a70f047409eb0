//! Local hosts: several real libvirtds on this machine, without guest machines under them.
//!
//! Each host has mount, UTS, process and network namespaces of its own, folders of its own where
//! libvirt and Stockade keep their state, virtlogd, virtlockd and libvirtd, a boot id and a host
//! UUID. They are joined by a bridge in one more network namespace, and see one shared folder
//! under the same path. Root is needed, and Debian's libvirt, QEMU, iproute2, util-linux and tini.
//!
//! Calls block, for some seconds at most; from async code use `spawn_blocking`.

mod guest;
mod libvirtd;
pub(crate) mod namespace;
pub(crate) mod power;
mod witness;

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub use guest::{
    GUEST_DISK_BYTES, guest_boots, guest_counter, guest_domain_xml, slow_boot_sector,
    slow_heavy_boot_sector, write_balloon_disk, write_echo_disk, write_guest_disk,
    write_heavy_disk, write_idle_disk,
};
pub use namespace::ProcessId;
pub use rustix::process::Signal;
pub use witness::{Witness, Written};

use namespace::{Namespace, wait_until};

use crate::bmc::Bmc;

/// How long a host may take from power on until its libvirtd answers.
const START_LIMIT: Duration = Duration::from_secs(60);

/// Longest path of a Unix socket (unix(7)), bytes.
const SOCKET_PATH_LIMIT: usize = 107;

/// Why local hosts could not be started, entered or ended.
#[derive(Debug, thiserror::Error)]
pub enum LocalHostsError {
    /// Namespaces and mounts need root.
    #[error("local hosts need root")]
    NotRoot,
    /// The number of hosts does not fit the addresses there are.
    #[error("between 1 and 99 local hosts can be started, not {0}")]
    Count(usize),
    /// Another process runs local hosts in that folder.
    #[error("local hosts already run in {0}")]
    InUse(PathBuf),
    /// The folder holds things that are not ours; it would be emptied.
    #[error("{0} is not empty and is not a folder of local hosts")]
    Foreign(PathBuf),
    /// libvirtd's socket would have a path that the kernel can't take.
    #[error("{0} is too long for a socket's path")]
    PathTooLong(PathBuf),
    /// A file could not be read, written or removed.
    #[error("{path}")]
    File {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A program that makes namespaces, links or daemons failed.
    #[error("{what}")]
    Step {
        /// What was being done.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
    /// libvirtd did not answer in time; its log says why.
    #[error("libvirtd of {name} did not answer in time, see {log}")]
    NoAnswer {
        /// Which host.
        name: String,
        /// Where libvirtd's messages are.
        log: PathBuf,
    },
    /// The host has no power, so nothing can run on it.
    #[error("{0} has no power")]
    Off(String),
    /// The host has power already.
    #[error("{0} has power already")]
    On(String),
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> LocalHostsError {
    let path = path.to_owned();
    move |source| LocalHostsError::File { path, source }
}

fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> LocalHostsError {
    let what = what.into();
    move |source| LocalHostsError::Step { what, source }
}

/// Which network a program on a local host sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// The host's own: its peers are reachable, nothing else is.
    Host,
    /// The machine's: a control plane on its loopback is reachable, the peers are not.
    Machine,
}

/// Where everything of one set of hosts lies.
#[derive(Clone, Debug)]
struct Layout {
    root: PathBuf,
}

impl Layout {
    fn name(&self, index: usize) -> String {
        format!("h{}", index + 1)
    }

    fn host(&self, index: usize) -> PathBuf {
        self.root.join(self.name(index))
    }

    fn boot_id(&self, index: usize) -> PathBuf {
        self.host(index).join("boot_id")
    }

    fn socket(&self, index: usize) -> PathBuf {
        self.host(index).join("run/libvirt/libvirt-sock")
    }

    fn address(&self, index: usize) -> String {
        format!("10.77.0.{}", index + 1)
    }

    fn uuid(&self, index: usize) -> String {
        // Not all bytes the same: libvirt takes such a UUID for a missing one.
        format!("57ac4ade-0000-4000-8000-{:012x}", index + 1)
    }

    fn shared(&self) -> PathBuf {
        self.root.join("shared")
    }

    fn marker(&self) -> PathBuf {
        self.root.join("local-hosts.lock")
    }

    fn state(&self) -> PathBuf {
        self.root.join("processes.json")
    }
}

/// The processes that a later start must find gone or end, by what they are for.
type Recorded = BTreeMap<String, Vec<ProcessId>>;

/// The record of running processes, rewritten at each change.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    processes: Mutex<Recorded>,
}

impl Record {
    fn set(&self, what: &str, processes: Vec<ProcessId>) -> Result<(), LocalHostsError> {
        let mut recorded = lock(&self.processes);
        recorded.insert(what.to_owned(), processes);
        let text = serde_json::to_string(&*recorded)
            .map_err(|error| at(&self.path)(io::Error::other(error)))?;
        let temporary = self.path.with_extension("new");
        fs::write(&temporary, text).map_err(at(&temporary))?;
        fs::rename(&temporary, &self.path).map_err(at(&self.path))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running set of local hosts. Dropping it ends and removes all of it.
#[derive(Debug)]
pub struct LocalHosts {
    // Fields drop in this order: hosts before their bridge, the lock last.
    hosts: Vec<LocalHost>,
    switch: Option<Namespace>,
    layout: Layout,
    _lock: File,
}

/// One local host.
#[derive(Debug)]
pub struct LocalHost {
    index: usize,
    layout: Layout,
    record: std::sync::Arc<Record>,
    /// First process of the namespace with the bridge.
    switch: ProcessId,
    life: Mutex<Option<Namespace>>,
}

impl LocalHosts {
    /// Starts `count` hosts named h1, h2, … with all their state under `dir`.
    ///
    /// `dir` is made if it is not there. What a killed owner left in it is ended and removed
    /// first; a folder with anything else in it is refused.
    pub fn start(count: usize, dir: &Path) -> Result<Self, LocalHostsError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LocalHostsError::NotRoot);
        }
        if !(1..=99).contains(&count) {
            return Err(LocalHostsError::Count(count));
        }
        fs::create_dir_all(dir).map_err(at(dir))?;
        let layout = Layout { root: dir.canonicalize().map_err(at(dir))? };
        let socket = layout.socket(count - 1);
        if socket.as_os_str().len() > SOCKET_PATH_LIMIT {
            return Err(LocalHostsError::PathTooLong(socket));
        }
        let lock = take_folder(&layout)?;
        let switch = Namespace::network(
            "set -e; ip link set lo up; ip link add bridge type bridge; \
             ip link set bridge up; echo mounted; exec cat >/dev/null",
            &layout.root.join("switch.log"),
        )
        .map_err(step("making the network between the hosts"))?;
        let record = std::sync::Arc::new(Record {
            path: layout.state(),
            processes: Mutex::new(Recorded::new()),
        });
        record.set("switch", switch.recorded())?;
        fs::create_dir(layout.shared()).map_err(at(&layout.shared()))?;
        libvirtd::write_names(&layout, count)?;
        let mut hosts = Vec::new();
        for index in 0..count {
            libvirtd::prepare(&layout, index)?;
            hosts.push(LocalHost {
                index,
                layout: layout.clone(),
                record: record.clone(),
                switch: switch.init().clone(),
                life: Mutex::new(None),
            });
        }
        let this = Self { hosts, switch: Some(switch), layout, _lock: lock };
        for host in &this.hosts {
            host.boot()?;
        }
        for host in &this.hosts {
            host.wait_for_libvirtd()?;
        }
        Ok(this)
    }

    /// The hosts, h1 first.
    pub fn hosts(&self) -> &[LocalHost] {
        &self.hosts
    }

    /// A folder that all hosts see under this very path: their shared storage.
    pub fn shared(&self) -> PathBuf {
        self.layout.shared()
    }
}

impl Drop for LocalHosts {
    fn drop(&mut self) {
        for host in &self.hosts {
            *lock(&host.life) = None;
        }
        self.switch = None;
        if let Err(error) = fs::remove_dir_all(&self.layout.root) {
            tracing::warn!(%error, "the folder of the local hosts could not be removed");
        }
    }
}

/// Locks the folder for this process, and empties it of what a killed owner left.
fn take_folder(layout: &Layout) -> Result<File, LocalHostsError> {
    let marker = layout.marker();
    let entries = fs::read_dir(&layout.root).map_err(at(&layout.root))?;
    if entries.count() > 0 && !marker.exists() {
        return Err(LocalHostsError::Foreign(layout.root.clone()));
    }
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&marker)
        .map_err(at(&marker))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(LocalHostsError::InUse(layout.root.clone())),
        Err(TryLockError::Error(error)) => return Err(at(&marker)(error)),
    }
    end_recorded(layout)?;
    for entry in fs::read_dir(&layout.root).map_err(at(&layout.root))? {
        let path = entry.map_err(at(&layout.root))?.path();
        if path == marker {
            continue;
        }
        let removed =
            if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
        removed.map_err(at(&path))?;
    }
    Ok(file)
}

/// Ends what is recorded of an owner that was killed, and waits for its end.
fn end_recorded(layout: &Layout) -> Result<(), LocalHostsError> {
    let state = layout.state();
    let Ok(text) = fs::read_to_string(&state) else { return Ok(()) };
    let recorded: Recorded =
        serde_json::from_str(&text).map_err(|error| at(&state)(io::Error::other(error)))?;
    let processes: Vec<ProcessId> = recorded.into_values().flatten().collect();
    namespace::kill_recorded(&processes).map_err(step("ending what an earlier start left"))
}

/// Ends the hosts of a killed owner whose state lies under `dir`; the folder stays.
///
/// # Errors
/// Something outlived it.
pub(crate) fn end_left(dir: &Path) -> Result<(), LocalHostsError> {
    end_recorded(&Layout { root: dir.to_owned() })
}

impl LocalHost {
    /// The host's name, which is its hostname too.
    pub fn name(&self) -> String {
        self.layout.name(self.index)
    }

    /// Folder with everything of this host: `etc`, `var`, `run`, `init.log`, `libvirtd.log`.
    pub fn dir(&self) -> PathBuf {
        self.layout.host(self.index)
    }

    /// How libvirt on this host is reached from anywhere on the machine.
    pub fn libvirt_uri(&self) -> String {
        format!("qemu+unix:///system?socket={}", self.layout.socket(self.index).display())
    }

    /// The host's address among its peers; also its migration address.
    pub fn address(&self) -> String {
        self.layout.address(self.index)
    }

    /// Where people reach its agent, which lives in the machine's own network.
    pub fn management_address(&self) -> String {
        format!("127.77.0.{}", self.index + 1)
    }

    /// The host's UUID, as libvirt reports it (a real host has it from its SMBIOS).
    pub fn uuid(&self) -> String {
        self.layout.uuid(self.index)
    }

    /// File with the id of the running boot, or of the last one.
    ///
    /// Inside the host it lies over `/proc/sys/kernel/random/boot_id` as well.
    pub fn boot_id_path(&self) -> PathBuf {
        self.layout.boot_id(self.index)
    }

    /// The id of the running boot, or of the last one.
    pub fn boot_id(&self) -> Result<String, LocalHostsError> {
        let path = self.boot_id_path();
        Ok(fs::read_to_string(&path).map_err(at(&path))?.trim().to_owned())
    }

    /// True while the host has power. Its BMC may take it at any time.
    pub fn is_on(&self) -> bool {
        lock(&self.life).as_ref().is_some_and(|life| life.init().lives())
    }

    /// Starts a BMC whose power commands are obeyed: off is a power cut; after on,
    /// [`LocalHost::is_power_wanted`] says so until [`LocalHost::power_on`].
    pub fn bmc(&self) -> Result<Bmc, LocalHostsError> {
        power::bmc(&self.name(), &self.dir())
            .map_err(step(format!("starting the BMC of {}", self.name())))
    }

    /// True once the BMC of a host without power was told to give it power.
    pub fn is_power_wanted(&self) -> bool {
        power::is_wanted(&self.dir()) && !self.is_on()
    }

    /// A command that will run `program` on this host; add arguments, then spawn it.
    ///
    /// Killing the child that comes of it kills the program. [`LocalHost::pid_of`] names the
    /// program itself.
    pub fn command(&self, program: &str, network: Network) -> Result<Command, LocalHostsError> {
        let life = lock(&self.life);
        let life = life.as_ref().filter(|life| life.init().lives());
        let life = life.ok_or_else(|| LocalHostsError::Off(self.name()))?;
        Ok(life.enter(program, network == Network::Host))
    }

    /// Runs a program on this host with this process's standard streams.
    pub fn run(&self, command: &[&str], network: Network) -> Result<Child, LocalHostsError> {
        let (program, arguments) = command.split_first().unwrap_or((&"true", &[]));
        self.command(program, network)?
            .args(arguments)
            .spawn()
            .map_err(step(format!("running {program} on {}", self.name())))
    }

    /// The process that a child of [`LocalHost::command`] or [`LocalHost::run`] runs on the host.
    pub fn pid_of(&self, child: &Child) -> Option<ProcessId> {
        ProcessId::of(namespace::child_of(child.id() as i32)?)
    }

    /// The host's processes with that name (`comm`, at most 15 bytes).
    pub fn processes(&self, name: &str) -> Vec<ProcessId> {
        let life = lock(&self.life);
        let all = life.as_ref().map(Namespace::processes).unwrap_or_default();
        all.into_iter().filter(|(_, comm)| comm == name).map(|(process, _)| process).collect()
    }

    /// Signals the host's processes with that name; returns how many there were.
    pub fn signal(&self, name: &str, signal: Signal) -> Result<usize, LocalHostsError> {
        let processes = self.processes(name);
        for process in &processes {
            process
                .signal(signal)
                .map_err(step(format!("signalling {name} on {}", self.name())))?;
        }
        Ok(processes.len())
    }

    /// Cuts the power: every process of the host is gone when this returns.
    pub fn power_cut(&self) -> Result<(), LocalHostsError> {
        let Some(mut life) = lock(&self.life).take() else { return Ok(()) };
        life.kill().map_err(step(format!("cutting the power of {}", self.name())))?;
        self.record.set(&self.name(), Vec::new())
    }

    /// Gives power back: a new boot, with a new boot id, libvirtd answering when this returns.
    pub fn power_on(&self) -> Result<(), LocalHostsError> {
        self.boot()?;
        self.wait_for_libvirtd()
    }

    /// A program that restarts libvirtd, to be run on the host.
    #[must_use]
    pub fn restart_program(&self) -> PathBuf {
        self.dir().join("restart-libvirtd")
    }

    /// Starts libvirtd again on a host where it was killed, and waits until it answers.
    pub fn start_libvirtd(&self) -> Result<(), LocalHostsError> {
        let mut command = self.command("libvirtd", Network::Host)?;
        let status = command.args(["--listen", "--daemon"]).status();
        status.map_err(step(format!("starting libvirtd on {}", self.name())))?;
        self.wait_for_libvirtd()
    }

    /// Plugs the cable between the host and its peers out or in. The control plane and the shared
    /// folder are not reached by it.
    ///
    /// # Errors
    /// The link can't be set.
    pub fn plug(&self, on: bool) -> Result<(), LocalHostsError> {
        let what = format!("setting the link of {}", self.name());
        let status = Command::new("nsenter")
            .arg("--target")
            .arg(self.switch.pid.to_string())
            .args(["--net", "--", "ip", "link", "set", &self.name()])
            .arg(if on { "up" } else { "down" })
            .status()
            .map_err(step(what.clone()))?;
        let refused = || step(what)(io::Error::other("ip refused it"));
        status.success().then_some(()).ok_or_else(refused)
    }

    fn boot(&self) -> Result<(), LocalHostsError> {
        let mut life = lock(&self.life);
        if life.as_ref().is_some_and(|life| life.init().lives()) {
            return Err(LocalHostsError::On(self.name()));
        }
        // What its BMC has killed is buried before it lives again.
        if let Some(mut dead) = life.take() {
            dead.kill().map_err(step(format!("ending what is left of {}", self.name())))?;
        }
        libvirtd::new_boot(&self.layout, self.index)?;
        let (root, name) = (self.dir(), self.name());
        let script = root.join("init.sh");
        let script = [
            &*script.to_string_lossy(),
            &*root.to_string_lossy(),
            &name,
            &libvirtd::OWN_FOLDERS.join(" "),
            &self.address(),
        ];
        let mut host = Namespace::host(&script, &root.join("init.log"))
            .map_err(step(format!("making the namespaces of {name}")))?;
        self.record.set(&name, host.recorded())?;
        power::note(&self.dir(), host.init()).map_err(at(&self.dir()))?;
        self.connect(&host)?;
        let started = host.tell("connected").and_then(|()| host.expect("started"));
        started.map_err(step(format!("starting libvirt on {name}")))?;
        *life = Some(host);
        Ok(())
    }

    /// Joins a host that has just been made to the bridge.
    fn connect(&self, host: &Namespace) -> Result<(), LocalHostsError> {
        let (name, init) = (self.name(), host.init().pid.to_string());
        let script = "set -e; ip link del \"$1\" 2>/dev/null || true; \
             ip link add \"$1\" type veth peer name eth0 netns \"$2\"; \
             ip link set \"$1\" master bridge up";
        let output = Command::new("nsenter")
            .arg("--target")
            .arg(self.switch.pid.to_string())
            .args(["--net", "--", "sh", "-c", script, "sh", &name, &init])
            .output()
            .map_err(step(format!("joining {name} to the bridge")))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(step(format!("joining {name} to the bridge"))(io::Error::other(said)))
    }

    fn wait_for_libvirtd(&self) -> Result<(), LocalHostsError> {
        let socket = self.layout.socket(self.index);
        if wait_until(START_LIMIT, || libvirtd::answers(&socket)) {
            return Ok(());
        }
        Err(LocalHostsError::NoAnswer { name: self.name(), log: self.dir().join("libvirtd.log") })
    }
}
