//! The state at second 0.

use std::collections::BTreeMap;

use super::super::words::{HostMode, LockManagerKind, Recovery, Run, StorageKind, Watchdog};
use super::{Line, Millis, Name};

/// AvailabilityPolicy fields by their name in the CRD.
pub type PolicyFields = BTreeMap<String, serde_json::Value>;

/// One host.
#[derive(Clone, Debug, PartialEq)]
pub struct HostSetup {
    /// Its name.
    pub name: Name,
    /// Its shorthand, `hostDefaults` included.
    pub fields: HostFields,
    /// The Host object to apply in place of one made of the shorthand.
    pub manifest: Option<serde_json::Value>,
    /// Where it stands.
    pub line: Line,
}

/// Shorthand of a host; what is absent has the format's default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct HostFields {
    /// CPUs.
    pub cpu: Option<u32>,
    /// Memory, MiB.
    pub memory_mib: Option<u64>,
    /// Labels of the Host.
    pub labels: Option<BTreeMap<String, String>>,
    /// Its spec's mode.
    pub mode: Option<HostMode>,
    /// Whether it is up at second 0.
    pub powered: Option<bool>,
    /// How long it takes to boot.
    pub boot: Option<Millis>,
    /// How it is fenced.
    pub fencing: Option<Fencing>,
    /// What its watchdog does.
    pub watchdog: Option<Watchdog>,
}

impl HostFields {
    /// CPUs (16).
    #[must_use]
    pub fn cpu(&self) -> u32 {
        self.cpu.unwrap_or(16)
    }
    /// Memory in MiB (65536).
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib.unwrap_or(65_536)
    }
    /// Mode (Active).
    #[must_use]
    pub fn mode(&self) -> HostMode {
        self.mode.unwrap_or(HostMode::Active)
    }
    /// Whether it is up at second 0 (true).
    #[must_use]
    pub fn powered(&self) -> bool {
        self.powered.unwrap_or(true)
    }
    /// How long it boots (60 s).
    #[must_use]
    pub fn boot(&self) -> Millis {
        self.boot.unwrap_or(60_000)
    }
    /// How it is fenced (bmc).
    #[must_use]
    pub fn fencing(&self) -> Fencing {
        self.fencing.clone().unwrap_or(Fencing::Bmc)
    }
    /// What its watchdog does (reset).
    #[must_use]
    pub fn watchdog(&self) -> Watchdog {
        self.watchdog.unwrap_or(Watchdog::Reset)
    }

    /// These fields, and those of `defaults` where absent.
    #[must_use]
    pub fn or(self, defaults: &Self) -> Self {
        Self {
            cpu: self.cpu.or(defaults.cpu),
            memory_mib: self.memory_mib.or(defaults.memory_mib),
            labels: self.labels.or_else(|| defaults.labels.clone()),
            mode: self.mode.or(defaults.mode),
            powered: self.powered.or(defaults.powered),
            boot: self.boot.or(defaults.boot),
            fencing: self.fencing.or_else(|| defaults.fencing.clone()),
            watchdog: self.watchdog.or(defaults.watchdog),
        }
    }
}

/// How a host is fenced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fencing {
    /// A power device of its own, read back.
    Bmc,
    /// No device: it resets itself, and elapsed time is accepted as proof.
    SelfFence,
    /// Only a human's word.
    None,
    /// Levels of devices, tried in order, all of a level needed.
    Levels(Vec<Vec<Name>>),
}

/// One declared fence device.
#[derive(Clone, Debug, PartialEq)]
pub struct FenceDeviceSetup {
    /// Its name.
    pub name: Name,
    /// The fence agent.
    pub agent: Option<String>,
    /// Plug by host.
    pub plugs: BTreeMap<Name, String>,
    /// Parameters of the agent.
    pub parameters: BTreeMap<String, String>,
    /// Content of its secret, by parameter.
    pub secret: BTreeMap<String, String>,
    /// The FenceDevice object to apply in place of one made of the shorthand.
    pub manifest: Option<serde_json::Value>,
    /// Where it stands.
    pub line: Line,
}

/// One storage.
#[derive(Clone, Debug, PartialEq)]
pub struct StorageSetup {
    /// Its name.
    pub name: Name,
    /// Its kind.
    pub kind: StorageKind,
    /// The hosts that mount it; absent: all.
    pub hosts: Option<Vec<Name>>,
    /// Which lock manager the VMs on it use.
    pub lock_manager: LockManagerKind,
    /// The SharedStorage object to apply in place of one made of the shorthand.
    pub manifest: Option<serde_json::Value>,
    /// Where it stands.
    pub line: Line,
}

impl StorageSetup {
    /// The storage a scenario has that declares none.
    #[must_use]
    pub fn standard() -> Self {
        Self {
            name: "vms".to_owned(),
            kind: StorageKind::Nfs,
            hosts: None,
            lock_manager: LockManagerKind::Virtlockd,
            manifest: None,
            line: Line(0),
        }
    }
}

/// One VM.
#[derive(Clone, Debug, PartialEq)]
pub struct VmSetup {
    /// Its name.
    pub name: Name,
    /// Where it runs at second 0, or last ran.
    pub host: Option<Name>,
    /// Its shorthand.
    pub fields: VmFields,
    /// The VirtualMachine object to apply in place of one made of the shorthand.
    pub manifest: Option<serde_json::Value>,
    /// Where it stands.
    pub line: Line,
}

/// Shorthand of a VM; what is absent has the format's default, or the CRD's where that is silent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct VmFields {
    /// Run policy.
    pub run: Option<Run>,
    /// CPUs.
    pub cpu: Option<u32>,
    /// Memory, MiB.
    pub memory_mib: Option<u64>,
    /// What the hypervisor measures.
    pub load: Option<Load>,
    /// Hosts it must run on one of.
    pub requires: Option<Vec<Name>>,
    /// Hosts it should run on, best first, ranks.
    pub prefers: Option<Vec<Vec<Name>>>,
    /// Whether it goes back by itself to a better-ranked host.
    pub failback: Option<bool>,
    /// VMs it must share its host with.
    pub together_with: Option<Vec<Name>>,
    /// VMs it must not share its host with.
    pub apart_from: Option<Vec<Name>>,
    /// VMs it should share its host with.
    pub prefers_together_with: Option<Vec<Name>>,
    /// VMs it should not share its host with.
    pub prefers_apart_from: Option<Vec<Name>>,
    /// Starts retried on the same host.
    pub max_restarts: Option<u32>,
    /// Further hosts tried after that.
    pub max_relocations: Option<u32>,
    /// Order of recovery, higher first.
    pub priority: Option<i64>,
    /// What its host's death does with it.
    pub recovery: Option<Recovery>,
    /// Whether it can be moved live.
    pub migratable: Option<bool>,
    /// How long its live copy takes.
    pub migrate: Option<Millis>,
    /// How long its guest takes to shut down.
    pub stop: Option<Millis>,
    /// How long a stop may wait before it kills, seconds.
    pub grace_seconds: Option<u32>,
    /// Whether Stockade acts on it.
    pub managed: Option<bool>,
    /// Where its disk is.
    pub storage: Option<Name>,
}

/// What the hypervisor measures of a VM; absent: as declared.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// CPUs in use.
    pub cpu: Option<f64>,
    /// Memory in use, MiB.
    pub memory_mib: Option<u64>,
}

impl VmFields {
    /// Run policy (Always).
    #[must_use]
    pub fn run(&self) -> Run {
        self.run.unwrap_or(Run::Always)
    }
    /// CPUs (1).
    #[must_use]
    pub fn cpu(&self) -> u32 {
        self.cpu.unwrap_or(1)
    }
    /// Memory in MiB (1024).
    #[must_use]
    pub fn memory_mib(&self) -> u64 {
        self.memory_mib.unwrap_or(1024)
    }
    /// Whether it can be moved live (true).
    #[must_use]
    pub fn migratable(&self) -> bool {
        self.migratable.unwrap_or(true)
    }
    /// How long its live copy takes (5 s).
    #[must_use]
    pub fn migrate(&self) -> Millis {
        self.migrate.unwrap_or(5_000)
    }
    /// How long its guest takes to shut down (3 s).
    #[must_use]
    pub fn stop(&self) -> Millis {
        self.stop.unwrap_or(3_000)
    }
    /// How long a stop may wait before it kills (60 s).
    #[must_use]
    pub fn grace_seconds(&self) -> u32 {
        self.grace_seconds.unwrap_or(60)
    }
    /// Whether Stockade acts on it (true).
    #[must_use]
    pub fn managed(&self) -> bool {
        self.managed.unwrap_or(true)
    }
    /// A list field, empty if absent.
    #[must_use]
    pub fn list(field: &Option<Vec<Name>>) -> &[Name] {
        field.as_deref().unwrap_or_default()
    }
}

/// A rule between VMs.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Together or apart.
    pub kind: RuleKind,
    /// Its members.
    pub vms: Vec<Name>,
    /// Must, or should.
    pub strict: bool,
    /// Where it stands.
    pub line: Line,
}

/// What a rule asks of its members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RuleKind {
    /// All on one host.
    Together,
    /// No two on one host.
    Apart,
}

impl RuleKind {
    /// Its key in a file.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Together => "together",
            Self::Apart => "apart",
        }
    }
}
