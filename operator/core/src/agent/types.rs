//! What an agent sees and remembers: plain types that the ports carry.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use stockade_crds::v1alpha1::{End, Lineage};

/// A domain that the hypervisor knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LiveDomain {
    /// libvirt's name.
    pub name: String,
    /// libvirt's UUID: the VM's uid if it is ours.
    pub uuid: String,
    /// Epoch in its metadata; 0: none, so not ours.
    pub epoch: i64,
    /// What it does.
    pub state: LiveState,
    /// Paths of its writable disks.
    pub disks: Vec<String>,
    /// vCPUs and MiB it runs with.
    pub cores: i32,
    /// MiB of memory.
    pub memory_mib: i64,
}

/// What a live domain does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveState {
    /// vCPUs run.
    Running,
    /// vCPUs are suspended.
    Paused,
    /// Coming in by a live move.
    Incoming,
    /// Complete after a live move, paused: not resumed yet, or left on the source.
    Switched,
    /// Being torn down; the process may still be there.
    Dying,
}

/// Why a domain stopped, as the hypervisor says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum StopReason {
    /// The guest shut down.
    Shutdown,
    /// Destroyed by a call.
    Destroyed,
    /// Its process died.
    Crashed,
    /// It left by a live move.
    Migrated,
    /// It failed.
    Failed,
}

/// Whether the process of an epoch is gone, read without the hypervisor's daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// The recorded process is reaped and its cgroup empty, or it never was.
    Gone,
    /// It is still there, if only as a process that can't die.
    Present,
    /// It can't be told.
    Unknown,
}

/// A change that may need a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LiveChange {
    /// In force.
    Applied,
    /// Takes effect at the next start.
    NeedsRestart,
}

/// What was decided at a start.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Started {
    /// Versioned machine type.
    pub machine_type: String,
    /// CPU model.
    pub cpu_model: String,
}

/// Who may write a disk, as it stands beside the disk (safety §1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OwnerRecord {
    /// The cluster.
    pub cluster_id: String,
    /// The VM.
    pub vm_uid: String,
    /// The epoch: the record's file name.
    pub epoch: i64,
    /// The host.
    pub host_uid: String,
    /// The boot.
    pub boot_id: String,
    /// How it stands.
    pub state: RecordState,
}

/// How an owner record stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RecordState {
    /// It may write.
    Held,
    /// It wrote its last.
    Released,
    /// It never may: a later epoch came first.
    Void,
    /// There, but it can't be read.
    Unreadable,
}

/// A beat on a storage.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Beat {
    /// Who beats.
    pub host_uid: String,
    /// In which boot.
    pub boot_id: String,
    /// Rises with each beat.
    pub counter: u64,
    /// Highest lineage counter that the host has journalled.
    #[serde(default)]
    pub lineage: i64,
}

/// What an agent must remember over its own restarts and the host's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JournalState {
    /// By VM uid.
    pub vms: BTreeMap<String, JournalVm>,
    /// Highest lineage seen: uid and counter.
    pub lineage: Option<Lineage>,
    /// Whether the watchdog was armed in this boot.
    pub armed_boot: Option<String>,
}

/// What is remembered of a VM.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct JournalVm {
    /// Highest epoch ever obeyed here.
    pub epoch: i64,
    /// The boot in which it was.
    pub boot_id: String,
    /// Highest order id obeyed of that epoch.
    pub order_id: i64,
    /// A start is allowed for this (vm, epoch, boot): what the hook reads.
    pub open: bool,
    /// The start was handed to the hypervisor: the process may exist.
    pub launched: bool,
    /// The start's call is known to be over, so that nothing can come of it any more.
    pub returned: bool,
    /// The live move away from here that was handed to the hypervisor: at most once each.
    pub moving: Option<String>,
    /// It comes in by a live move and was never seen to run here.
    pub incoming: bool,
    /// Known to have ended, and how.
    pub end: Option<End>,
    /// Gone and drained.
    pub released: bool,
    /// Released, and the storage of its owner records was out of reach: they say otherwise.
    pub unmarked: bool,
    /// Writable disks of that epoch.
    pub disks: Vec<String>,
    /// libvirt's name.
    pub name: String,
    /// The last reset obeyed.
    pub reset: Option<String>,
    /// Sizes in bytes that disks were grown to, by path.
    pub sizes: BTreeMap<String, i64>,
}
