//! The lab: Debian machines as QEMU guests, with kernels of their own and so with real NFS, OCFS2,
//! watchdogs and power cuts, on one bridge in a network namespace of its own.
//!
//! In: the image that `e2e/tools/lab/image` builds, and the product's programs. Out: a [`Lab`] of
//! hypervisor hosts h1, h2, … and one storage host s1, each with a serial log, a BMC, a watchdog
//! device, and one raw disk that all of them see. Root is needed. Dropping the value ends and
//! removes all of it; if this process is killed the namespaces' first process ends by itself, and
//! with it everything in them.
//!
//! Calls block, for minutes where a machine boots. The BMCs end with the thread that started the
//! lab, so that is one which lives as long.

mod capture;
pub mod cases;
mod cluster;
mod image;
mod machine;
mod network;
mod ssh;
mod state;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tempfile::TempDir;

pub use self::capture::{Capture, Captured};
pub use self::cluster::Cluster;
pub use self::image::Image;
pub use self::machine::Machine;
use self::network::Network;
pub use self::ssh::Said;
pub use self::state::{State, StatedMachine, sweep};

/// How long machines may take from power on until they answer. Three of them take 110 s on two
/// free cores; the rest is for machines that have other things to do.
const BOOT_LIMIT: Duration = Duration::from_secs(600);
/// Size of the disk that all machines see, bytes.
const SHARED_DISK_BYTES: u64 = 1 << 30;

/// Why there is no lab, or what it could not do.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces, taps and mounts need root.
    #[error("the lab needs root")]
    NotRoot,
    /// Something failed on this machine.
    #[error("{what}")]
    Step {
        /// What was being done.
        what: String,
        /// What went wrong.
        source: io::Error,
    },
    /// A machine did not answer in time.
    #[error("{name} did not answer within {} s, see {serial}", BOOT_LIMIT.as_secs())]
    NoAnswer {
        /// Which machine.
        name: String,
        /// Its serial log.
        serial: PathBuf,
    },
    /// A machine without power was asked for something.
    #[error("{0} has no power")]
    Off(String),
    /// There is no such machine.
    #[error("the lab has no machine {0}")]
    Unknown(String),
    /// A command in a machine failed.
    #[error("on {name}: {command}: {said}")]
    Command {
        /// Which machine.
        name: String,
        /// What was run.
        command: String,
        /// What it wrote.
        said: String,
    },
    /// Something did not happen in time.
    #[error("not within {seconds} s: {what} ({last})")]
    NotInTime {
        /// What was awaited.
        what: String,
        /// How long.
        seconds: u64,
        /// What was seen last.
        last: String,
    },
    /// The control plane can't be started or used.
    #[error("the control plane failed")]
    ControlPlane(#[from] crate::control_plane::Error),
    /// A program of the product can't be had.
    #[error("the product's programs")]
    Program(#[from] crate::play::PlayError),
}

fn step(what: impl Into<String>) -> impl FnOnce(io::Error) -> LabError {
    let what = what.into();
    move |source| LabError::Step { what, source }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    // Fields drop in this order: machines, their network, the folder with their disks.
    machines: Vec<Machine>,
    network: Arc<Network>,
    folder: TempDir,
}

/// What a machine is for; it decides how much memory it gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Hypervisor,
    Storage,
}

impl Lab {
    /// Gives power to `hosts` hypervisor hosts and one storage host, and waits until all of them
    /// answer. `say` is told of each step when it is done.
    ///
    /// # Errors
    /// What could not be made; nothing of it is left then.
    pub fn start(hosts: usize, say: &dyn Fn(&str)) -> Result<Self, LabError> {
        if !rustix::process::geteuid().is_root() {
            return Err(LabError::NotRoot);
        }
        let image = Image::find_or_build()?;
        state::sweep();
        let folder = tempfile::Builder::new()
            .prefix(state::PREFIX)
            .tempdir()
            .map_err(step("making a folder for the lab"))?;
        crate::owned::own(folder.path()).map_err(step("naming the owner of the lab's folder"))?;
        let shared = folder.path().join("shared.raw");
        fs::File::create(&shared)
            .and_then(|file| file.set_len(SHARED_DISK_BYTES))
            .map_err(step("making the shared disk"))?;
        let names: Vec<(String, Role)> = (1..=hosts)
            .map(|number| (format!("h{number}"), Role::Hypervisor))
            .chain([("s1".to_owned(), Role::Storage)])
            .collect();
        let taps: Vec<&str> = names.iter().map(|(name, _)| &**name).collect();
        let network = Arc::new(Network::start(folder.path(), &taps)?);
        let mut this = Self { machines: Vec::new(), network, folder };
        for (index, (name, role)) in names.iter().enumerate() {
            let memory_mib = match role {
                Role::Hypervisor => 2560,
                Role::Storage => 1024,
            };
            let machine = Machine::make(
                machine::Facts { index, name: name.clone(), memory_mib },
                &image,
                this.folder.path(),
                Arc::clone(&this.network),
            )?;
            this.machines.push(machine);
        }
        let started = Instant::now();
        for machine in &this.machines {
            machine.power_on()?;
        }
        for machine in &this.machines {
            machine.wait_until_it_answers(BOOT_LIMIT)?;
            say(&format!(
                "{} answers {} s after power on",
                machine.name(),
                started.elapsed().as_secs()
            ));
        }
        Ok(this)
    }

    /// All machines, the hypervisor hosts first.
    #[must_use]
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// A machine by its name.
    ///
    /// # Errors
    /// [`LabError::Unknown`].
    pub fn machine(&self, name: &str) -> Result<&Machine, LabError> {
        let found = self.machines.iter().find(|machine| machine.name() == name);
        found.ok_or_else(|| LabError::Unknown(name.to_owned()))
    }

    /// What another process needs to reach the machines.
    #[must_use]
    pub fn state(&self, kubeconfig: Option<PathBuf>) -> State {
        State::of(&self.machines, self.network.init(), self.folder.path(), kubeconfig)
    }

    /// Where disks and logs are: `<name>/serial.log` is what a machine's kernel says.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Makes a server on this machine's loopback reachable from the lab's machines; gives the
    /// address that they use.
    ///
    /// # Errors
    /// The network is gone.
    pub fn forward(&self, port: u16) -> Result<std::net::SocketAddr, LabError> {
        self.network.forward(port)
    }
}

/// Looks until the probe says that it is so.
///
/// # Errors
/// [`LabError::NotInTime`] with what it said last.
pub fn until<T>(
    what: &str,
    limit: Duration,
    mut probe: impl FnMut() -> Result<T, String>,
) -> Result<T, LabError> {
    let started = Instant::now();
    loop {
        let last = match probe() {
            Ok(value) => return Ok(value),
            Err(last) => last,
        };
        if started.elapsed() > limit {
            return Err(LabError::NotInTime {
                what: what.to_owned(),
                seconds: limit.as_secs(),
                last,
            });
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}
