//! A real machine: who it is, which boot runs, what it has, and its clocks.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};
use stockade_crds::v1alpha1::{GoingDown, HypervisorKind};

use crate::error::{HostError, HostResult};
use crate::files::{failed, replace};
use crate::logind::ShutdownLock;
use crate::ports::{Clock, MachineFacts, MachinePort};
use crate::watchdog;

/// Targets that would suspend a host: it would read off and come back with the same boot.
const SLEEP_TARGETS: [&str; 3] = ["sleep.target", "suspend.target", "hibernate.target"];

/// Where the kernel tells the running boot's id.
pub const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Where a machine's facts are read.
#[derive(Clone, Debug)]
pub struct MachineOptions {
    /// The agent's state folder.
    pub state: PathBuf,
    /// The running boot's id; local hosts share one kernel and have files of their own.
    pub boot_id: PathBuf,
    /// The machine's SMBIOS UUID.
    pub smbios_uuid: PathBuf,
    /// CPUs that VMs may be given in all; `None`: as many as the machine has.
    pub cpus: Option<i32>,
    /// Its watchdog.
    pub watchdog: PathBuf,
}

impl MachineOptions {
    /// The usual places.
    #[must_use]
    pub fn new(state: &Path) -> Self {
        Self {
            state: state.to_owned(),
            boot_id: BOOT_ID.into(),
            smbios_uuid: "/sys/class/dmi/id/product_uuid".into(),
            cpus: None,
            watchdog: watchdog::DEVICE.into(),
        }
    }
}

/// The identity that a machine claimed when its agent first ran.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Identity {
    host_uid: String,
    /// The machine that claimed it; empty where it has no SMBIOS UUID.
    smbios_uuid: String,
}

/// A real machine.
#[derive(Clone, Debug)]
pub struct RealMachine {
    host_uid: String,
    boot_id: String,
    /// What VMs may be given in all, if not what the machine has.
    cpus: Option<i32>,
    watchdog: PathBuf,
    shutdown: Option<Arc<ShutdownLock>>,
}

impl RealMachine {
    /// Reads who this is; a machine without an identity claims one.
    ///
    /// An identity that came with a copied disk is refused: two machines would be one host.
    pub fn open(options: &MachineOptions) -> HostResult<Self> {
        const OP: &str = "identify";
        let read = |path: &Path| match fs::read_to_string(path) {
            Ok(text) => Ok(text.trim().to_owned()),
            Err(error) => Err(failed(OP, path)(error)),
        };
        let boot_id = read(&options.boot_id)?;
        let smbios_uuid = read(&options.smbios_uuid).unwrap_or_default();
        let path = options.state.join("identity.json");
        fs::create_dir_all(&options.state).map_err(failed(OP, &options.state))?;
        let identity = match fs::read(&path) {
            Ok(text) => serde_json::from_slice::<Identity>(&text).map_err(|error| {
                HostError::failed(OP, path.display().to_string(), format!("it is spoilt: {error}"))
            })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let host_uid = read(Path::new("/proc/sys/kernel/random/uuid"))?;
                let claimed = Identity { host_uid, smbios_uuid: smbios_uuid.clone() };
                let text = serde_json::to_vec(&claimed).unwrap_or_default();
                replace(&path, &text).map_err(failed(OP, &path))?;
                claimed
            }
            Err(error) => return Err(failed(OP, &path)(error)),
        };
        if identity.smbios_uuid != smbios_uuid {
            let message = format!(
                "this identity belongs to the machine {:?}, this one is {smbios_uuid:?}; remove \
                 the file if the disk was copied",
                identity.smbios_uuid
            );
            return Err(HostError::refused(OP, path.display().to_string(), message));
        }
        Ok(Self {
            host_uid: identity.host_uid,
            boot_id,
            cpus: options.cpus,
            watchdog: options.watchdog.clone(),
            shutdown: None,
        })
    }

    /// Holds shutdowns back from now on; without it the machine never says that it goes down.
    #[must_use]
    pub fn holding(self, shutdown: ShutdownLock) -> Self {
        Self { shutdown: Some(Arc::new(shutdown)), ..self }
    }

    /// The machine's identity.
    #[must_use]
    pub fn host_uid(&self) -> &str {
        &self.host_uid
    }

    /// The running boot.
    #[must_use]
    pub fn boot_id(&self) -> &str {
        &self.boot_id
    }

    fn read_facts(&self) -> HostResult<MachineFacts> {
        let path = Path::new("/proc/meminfo");
        let memory = fs::read_to_string(path).map_err(failed("read facts", path))?;
        let total = memory.lines().find_map(|line| line.strip_prefix("MemTotal:"));
        let kib = total.and_then(|text| text.trim().trim_end_matches("kB").trim().parse().ok());
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(MachineFacts {
            host_uid: self.host_uid.clone(),
            boot_id: self.boot_id.clone(),
            cpu: self.cpus.unwrap_or_else(|| i32::try_from(cpus).unwrap_or(i32::MAX)),
            memory_mib: kib.unwrap_or(0_i64) / 1024,
            hypervisors: vec![HypervisorKind::KVM],
            watchdog: watchdog::identity(&self.watchdog).is_some(),
            holds_back_seconds: None,
            problems: unmasked_sleep(),
        })
    }
}

/// A sentence for each sleep target that is not masked; none where systemd is not used.
fn unmasked_sleep() -> Vec<String> {
    if !Path::new("/run/systemd/system").exists() {
        return Vec::new();
    }
    let masked = |target: &&str| {
        fs::read_link(Path::new("/etc/systemd/system").join(target))
            .is_ok_and(|link| link == Path::new("/dev/null"))
    };
    let unmasked = SLEEP_TARGETS.iter().filter(|target| !masked(target));
    unmasked.map(|target| format!("{target} is not masked: run systemctl mask {target}")).collect()
}

impl MachinePort for RealMachine {
    fn facts(&self) -> BoxFuture<'_, HostResult<MachineFacts>> {
        async move {
            let mut facts = self.read_facts()?;
            if let Some(shutdown) = &self.shutdown {
                let (holds_back, trouble) = shutdown.facts().await;
                facts.holds_back_seconds = holds_back;
                facts.problems.extend(trouble);
            }
            Ok(facts)
        }
        .boxed()
    }

    fn going_down(&self) -> Option<GoingDown> {
        self.shutdown.as_ref()?.going_down()
    }

    fn going_down_changed(&self) -> BoxFuture<'_, ()> {
        match &self.shutdown {
            Some(shutdown) => shutdown.changed().boxed(),
            None => futures::future::pending().boxed(),
        }
    }

    fn allow_down(&self) {
        if let Some(shutdown) = &self.shutdown {
            shutdown.let_go();
        }
    }
}

/// Milliseconds of CLOCK_BOOTTIME: the clock of every monotonic time here.
#[must_use]
pub fn boottime_millis() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec.unsigned_abs() * 1000 + now.tv_nsec.unsigned_abs() / 1_000_000
}

/// The machine's own clocks.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealClock;

impl Clock for RealClock {
    fn monotonic_millis(&self) -> u64 {
        boottime_millis()
    }

    fn wall_millis(&self) -> i64 {
        let now = clock_gettime(ClockId::Realtime);
        now.tv_sec * 1000 + now.tv_nsec / 1_000_000
    }

    fn sleep(&self, millis: u64) -> BoxFuture<'static, ()> {
        tokio::time::sleep(Duration::from_millis(millis)).boxed()
    }
}
