//! What happens.

use super::super::words::{
    ApiIs, BmcIs, ControllerIs, FailAs, FailOp, NetPath, Process, Stage, StorageIs, UpDown,
    VirshAction, Way, Word,
};
use super::{
    Condition, FenceDeviceSetup, HostFields, HostSetup, Line, Load, Manifest, Millis, Name,
    PolicyFields, Rule, Time, VmFields, VmSetup,
};

/// One step.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// Its name, for times and outcomes.
    pub id: Option<String>,
    /// When it fires.
    pub trigger: Trigger,
    /// What it does.
    pub verb: Verb,
    /// Where it stands.
    pub line: Line,
}

/// When a step fires.
#[derive(Clone, Debug, PartialEq)]
pub enum Trigger {
    /// At a time.
    At(Time),
    /// At the first instant a condition holds.
    When {
        /// The condition.
        condition: Condition,
        /// Looked for from here on only; absent: from second 0.
        after: Option<Time>,
        /// So long after that instant.
        delay: Millis,
    },
}

/// How often something happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The next n times.
    Count(u32),
    /// Until it is ended.
    Always,
}

/// Whose requests an API fault meets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ApiClient {
    /// The agent of a host.
    Host(Name),
    /// The controllers.
    Controller,
}

/// Holder of a stale lock.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LockOwner {
    /// The named host.
    Host(Name),
    /// Any host of ours but the one the VM runs on.
    AnyHost,
    /// Nobody of ours, and alive.
    Foreign,
}

/// An object by kind and name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ObjectRef {
    /// Its kind.
    pub kind: String,
    /// Its name.
    pub name: String,
}

impl ObjectRef {
    /// The VirtualMachine of that name.
    #[must_use]
    pub fn vm(name: &str) -> Self {
        Self { kind: "VirtualMachine".to_owned(), name: name.to_owned() }
    }
    /// The Host of that name.
    #[must_use]
    pub fn host(name: &str) -> Self {
        Self { kind: "Host".to_owned(), name: name.to_owned() }
    }
}

impl std::fmt::Display for ObjectRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.kind, self.name)
    }
}

/// What a step does. Lists of hosts and VMs are never empty unless it says so.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs, reason = "the parameters' meanings are the format's text")]
pub enum Verb {
    /// The switch is turned off.
    PowerOff { hosts: Vec<Name> },
    /// The switch is turned on.
    PowerOn { hosts: Vec<Name> },
    /// Unclean reboot.
    Reset { hosts: Vec<Name> },
    /// The kernel hangs, power stays on.
    Panic { hosts: Vec<Name> },
    /// Clean, through init.
    Shutdown { hosts: Vec<Name> },
    /// Clean, through init.
    Reboot { hosts: Vec<Name> },
    /// Networks are cut.
    Isolate { hosts: Vec<Name>, paths: Vec<NetPath>, way: Way },
    /// Networks are whole again.
    Heal { hosts: Vec<Name>, paths: Vec<NetPath>, way: Way },
    /// The wall clock jumps (milliseconds), or runs at another speed (1 = right).
    Clock { hosts: Vec<Name>, step: Option<i64>, rate: Option<f64> },
    /// SIGKILL; down for so long (0: its supervisor restarts it at once).
    CrashAgent { hosts: Vec<Name>, down: Millis, process: Process },
    /// Clean restart, announced.
    RestartAgent { hosts: Vec<Name>, down: Millis, process: Process },
    /// SIGSTOP; absent: until the end.
    PauseAgent { hosts: Vec<Name>, duration: Option<Millis>, process: Process },
    /// libvirt answers nobody; absent: until it is restarted, or the end.
    HangLibvirt { hosts: Vec<Name>, duration: Option<Millis> },
    /// libvirt restarts, down for so long (1 s).
    RestartLibvirt { hosts: Vec<Name>, down: Millis },
    /// The process dies; no hosts: wherever there is one.
    KillQemu { vms: Vec<Name>, hosts: Vec<Name> },
    /// Someone uses libvirt behind Stockade's back; no host: where it runs.
    Virsh {
        action: VirshAction,
        vms: Vec<Name>,
        host: Option<Name>,
        to: Option<Name>,
        unlocked: bool,
    },
    /// The next operations fail; no VMs: of any; no hosts: on any.
    Fail { op: FailOp, vms: Vec<Name>, hosts: Vec<Name>, times: Times, stage: Stage, how: FailAs },
    /// Ends `fail`s; what is absent matches all.
    Mend { op: Option<FailOp>, vms: Vec<Name>, hosts: Vec<Name> },
    /// Changes what is measured.
    Load { vms: Vec<Name>, load: Load },
    /// Changes a fence device; exactly one list is not empty.
    Bmc { hosts: Vec<Name>, devices: Vec<Name>, is: BmcIs, times: Option<Times> },
    /// Changes a storage; no `only`: for all hosts.
    Storage { name: Name, is: StorageIs, only: Vec<Name> },
    /// Changes the lock manager; no hosts: all.
    LockManager { is: UpDown, hosts: Vec<Name> },
    /// A further lock on the VMs' disks that nobody will release.
    StaleLock { vms: Vec<Name>, owner: LockOwner },
    /// Changes the API server; no `only`: for all clients. Restored: to what it held `back` ago.
    Api { is: ApiIs, only: Vec<ApiClient>, back: Option<Millis> },
    /// Something happens to the controller.
    Controller { is: ControllerIs },
    /// As `kubectl apply`.
    Apply { manifests: Vec<Manifest> },
    /// As `kubectl delete`.
    Delete { object: ObjectRef },
    /// As `kubectl patch --type merge`.
    Patch { object: ObjectRef, patch: serde_json::Value },
    /// Creates a VM; with a host it runs there already.
    AddVm { vms: Vec<VmSetup> },
    /// Creates a host.
    AddHost { hosts: Vec<HostSetup> },
    /// Creates a fence device.
    AddFenceDevice { devices: Vec<FenceDeviceSetup> },
    /// Changes VMs.
    SetVm { vms: Vec<Name>, fields: VmFields },
    /// Changes hosts.
    SetHost { hosts: Vec<Name>, fields: HostFields },
    /// Changes the policy.
    SetPolicy { fields: PolicyFields },
    /// Adds a rule.
    SetRule { rule: Rule },
    /// Run policy Always.
    Start { vms: Vec<Name>, grace_seconds: Option<u32> },
    /// Run policy Halted.
    Stop { vms: Vec<Name>, grace_seconds: Option<u32> },
    /// A VirtualMachineMigration; no `to`: Stockade chooses; no `live`: live if the VM can.
    Migrate { vms: Vec<Name>, to: Option<Name>, live: Option<bool> },
    /// Deletes the migration of a VM.
    AbortVm { vms: Vec<Name> },
    /// Deletes the migration that a step asked for.
    AbortStep { step: String },
    /// Mode Maintenance.
    Drain { hosts: Vec<Name> },
    /// Mode Active.
    Uncordon { hosts: Vec<Name> },
    /// Mode Cordoned.
    Cordon { hosts: Vec<Name> },
    /// Automation Paused.
    Pause,
    /// Automation Active.
    Resume,
    /// A human's word on the HostFence.
    ConfirmDead { hosts: Vec<Name>, reason: Option<String> },
    /// A human's word that the copy found there is the VM.
    Adopt { vms: Vec<Name>, host: Name },
    /// The guest is restarted: stopped and started.
    RestartVm { vms: Vec<Name> },
    /// The guest is reset.
    ResetVm { vms: Vec<Name> },
}

/// All verbs, in the order of the format's text.
pub const VERBS: &[&str] = &[
    "power-off",
    "power-on",
    "reset",
    "panic",
    "shutdown",
    "reboot",
    "isolate",
    "heal",
    "clock",
    "crash-agent",
    "restart-agent",
    "pause-agent",
    "hang-libvirt",
    "restart-libvirt",
    "kill-qemu",
    "virsh",
    "fail",
    "mend",
    "load",
    "bmc",
    "storage",
    "lock-manager",
    "api",
    "controller",
    "apply",
    "delete",
    "patch",
    "add",
    "set",
    "start",
    "stop",
    "migrate",
    "abort",
    "drain",
    "uncordon",
    "cordon",
    "pause",
    "resume",
    "confirm-dead",
    "adopt",
    "restart-vm",
    "reset-vm",
];

impl Verb {
    /// Its word in a file.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::PowerOff { .. } => "power-off",
            Self::PowerOn { .. } => "power-on",
            Self::Reset { .. } => "reset",
            Self::Panic { .. } => "panic",
            Self::Shutdown { .. } => "shutdown",
            Self::Reboot { .. } => "reboot",
            Self::Isolate { .. } => "isolate",
            Self::Heal { .. } => "heal",
            Self::Clock { .. } => "clock",
            Self::CrashAgent { .. } => "crash-agent",
            Self::RestartAgent { .. } => "restart-agent",
            Self::PauseAgent { .. } => "pause-agent",
            Self::HangLibvirt { .. } => "hang-libvirt",
            Self::RestartLibvirt { .. } => "restart-libvirt",
            Self::KillQemu { .. } => "kill-qemu",
            Self::Virsh { .. } => "virsh",
            Self::Fail { .. } => "fail",
            Self::Mend { .. } => "mend",
            Self::Load { .. } => "load",
            Self::Bmc { .. } => "bmc",
            Self::Storage { .. } => "storage",
            Self::LockManager { .. } | Self::StaleLock { .. } => "lock-manager",
            Self::Api { .. } => "api",
            Self::Controller { .. } => "controller",
            Self::Apply { .. } => "apply",
            Self::Delete { .. } => "delete",
            Self::Patch { .. } => "patch",
            Self::AddVm { .. } | Self::AddHost { .. } | Self::AddFenceDevice { .. } => "add",
            Self::SetVm { .. }
            | Self::SetHost { .. }
            | Self::SetPolicy { .. }
            | Self::SetRule { .. } => "set",
            Self::Start { .. } => "start",
            Self::Stop { .. } => "stop",
            Self::Migrate { .. } => "migrate",
            Self::AbortVm { .. } | Self::AbortStep { .. } => "abort",
            Self::Drain { .. } => "drain",
            Self::Uncordon { .. } => "uncordon",
            Self::Cordon { .. } => "cordon",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::ConfirmDead { .. } => "confirm-dead",
            Self::Adopt { .. } => "adopt",
            Self::RestartVm { .. } => "restart-vm",
            Self::ResetVm { .. } => "reset-vm",
        }
    }

    /// How this verb counts as a user's order: `None` if it is none (something that befalls the
    /// cluster), else whether the API's answer is all that becomes of it.
    #[must_use]
    pub fn order(&self) -> Option<OrderKind> {
        match self.word() {
            "apply" | "delete" | "patch" | "add" | "set" | "pause" | "resume" | "cordon"
            | "uncordon" => Some(OrderKind::Accepted),
            "start" | "stop" | "migrate" | "abort" | "drain" | "confirm-dead" | "adopt"
            | "restart-vm" | "reset-vm" => Some(OrderKind::Carried),
            _ => None,
        }
    }
}

/// What can become of a user's order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderKind {
    /// The API's answer is the outcome: Accepted and Succeeded are one.
    Accepted,
    /// It has to be carried out after it was accepted.
    Carried,
}

/// All networks but the BMC's: what `isolate` and `heal` mean without `paths`.
#[must_use]
pub fn default_paths() -> Vec<NetPath> {
    NetPath::WORDS
        .iter()
        .filter_map(|w| NetPath::from_word(w))
        .filter(|p| *p != NetPath::Bmc)
        .collect()
}
