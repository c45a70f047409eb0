//! `SharedStorage`: a file system that several hosts mount.

use k8s_openapi::api::core::v1::SecretKeySelector;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What is declared of a storage.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "stockade.dev",
    version = "v1alpha1",
    kind = "SharedStorage",
    plural = "sharedstorages",
    status = "SharedStorageStatus",
    derive = "PartialEq",
    shortname = "sst",
    category = "stockade",
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "Path", type_ = "string", json_path = ".spec.mountPath"),
    printcolumn(name = "Hosts", type_ = "integer", json_path = ".status.readyHosts"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].message", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    cel,
    validation = Rule::new("self.metadata.name.size() <= 63").message("metadata.name: use at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("[has(self.nfs), has(self.ocfs2), has(self.directory)].filter(x, x).size() == 1").message("spec: give exactly one of nfs, ocfs2 or directory"),
    validation = Rule::new("self.mountPath == oldSelf.mountPath").message("spec.mountPath: it can't change while VMs may use it; make a new SharedStorage")
)]
pub struct SharedStorageSpec {
    /// Where hosts see it, the same path on each.
    #[schemars(length(min = 2, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._/-]+$')").message("spec.mountPath: give an absolute path like /srv/stockade/<name>, of letters, digits, '.', '_', '-' and '/'"), validation = Rule::new("!self.split('/').exists(p, p == '..' || p == '.')").message("spec.mountPath: leave out '.' and '..'"), validation = Rule::new("!['/bin','/boot','/dev','/etc','/lib','/lib64','/proc','/sbin','/sys','/usr'].exists(p, self == p || self.startsWith(p + '/'))").message("spec.mountPath: this is the host's own directory; use one like /srv/stockade/<name>"))]
    pub mount_path: String,
    /// Labels of the hosts that mount it; empty: all.
    #[serde(default)]
    pub host_selector: BTreeMap<String, String>,
    /// Hosts that mount it by name; empty: all that the selector takes.
    #[serde(default)]
    #[schemars(length(max = 4096))]
    pub hosts: Vec<String>,
    /// Namespaces whose VMs may use it; empty: all.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,
    /// Disks may lie outside `<mount>/<namespace>/`, named from the mount.
    #[serde(default)]
    pub allow_other_paths: bool,
    /// Owner of the VMs' files.
    #[serde(default)]
    pub owner: FileOwner,
    /// NFS version 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nfs: Option<Nfs>,
    /// OCFS2 on a shared device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ocfs2: Option<Ocfs2>,
    /// A directory that someone else shares and mounts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub directory: Option<SharedDirectory>,
}

/// Owner of files.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct FileOwner {
    /// User id.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub uid: i64,
    /// Group id.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub gid: i64,
}

/// NFS version 4: the client side, and the serving side if a Host serves it.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Nfs {
    /// Address of the server.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[A-Za-z0-9.:\\[\\]-]+$')").message("spec.nfs.server: give one host name or IP address"))]
    pub server: String,
    /// Exported path.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._/-]*$')").message("spec.nfs.export: give the absolute path that the server exports, of letters, digits, '.', '_', '-' and '/'"))]
    pub export: String,
    /// Further mount options.
    #[serde(default)]
    #[schemars(length(max = 32), inner(length(min = 1, max = 128)))]
    #[x_kube(validation = Rule::new("self.all(o, o.matches('^[A-Za-z0-9_=.:/-]+$'))").message("spec.nfs.options: give one option an entry, without commas and blanks"), validation = Rule::new("!self.exists(o, ['vers','nfsvers','minorversion','nolock','lock','local_lock','soft','softerr','ro','lookupcache','ac'].exists(w, o == w || o.startsWith(w + '=')))").message("spec.nfs.options: leave out version, locking, soft, ro and attribute caching; what keeps two hosts from one disk depends on them, so Stockade sets them"))]
    pub options: Vec<String>,
    /// The Host that serves it; absent: served by others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 49))]
    pub served_by: Option<String>,
    /// Lease time of the server in seconds.
    #[serde(default = "nfs_lease")]
    #[schemars(range(min = 10, max = 3600))]
    pub lease_seconds: i32,
}

fn nfs_lease() -> i32 {
    90
}

/// OCFS2 under o2cb.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.iscsi), has(self.aoe), has(self.san)].filter(x, x).size() == 1").message("spec.ocfs2: give exactly one of iscsi, aoe or san"))]
pub struct Ocfs2 {
    /// An iSCSI logical unit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iscsi: Option<Iscsi>,
    /// An AoE device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aoe: Option<Aoe>,
    /// A device that every host sees by a stable path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub san: Option<SanDevice>,
    /// Make the file system if the device is proven blank.
    #[serde(default)]
    pub format_if_blank: bool,
    /// Node slots.
    #[serde(default = "slots")]
    #[schemars(range(min = 2, max = 255))]
    pub slots: i32,
    /// Disk heartbeat threshold of o2cb in iterations of two seconds.
    #[serde(default = "o2cb_threshold")]
    #[schemars(range(min = 7, max = 300))]
    pub heartbeat_threshold: i32,
}

fn slots() -> i32 {
    8
}

fn o2cb_threshold() -> i32 {
    31
}

/// An iSCSI logical unit.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.servedBy) == has(self.backing)").message("spec.ocfs2.iscsi: servedBy and backing go together; backing is the device or file of the serving host"))]
pub struct Iscsi {
    /// Portal address, with a port if it is not 3260.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new(r"self.matches('^[A-Za-z0-9.:\\[\\]-]+$')").message("spec.ocfs2.iscsi.portal: give one host name or IP address, with :port if that is not 3260"))]
    pub portal: String,
    /// Target's qualified name.
    #[schemars(length(min = 8, max = 223))]
    #[x_kube(validation = Rule::new("self.matches('^(iqn|eui|naa)[.][A-Za-z0-9.:-]+$')").message("spec.ocfs2.iscsi.target: give a qualified name like iqn.2026-01.dev.stockade:disk"))]
    pub target: String,
    /// Logical unit number.
    #[serde(default)]
    #[schemars(range(min = 0, max = 16383))]
    pub lun: i32,
    /// CHAP password of the initiator.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chap_secret: Option<SecretKeySelector>,
    /// The Host that serves it; absent: served by others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 49))]
    pub served_by: Option<String>,
    /// The device or file on that Host which is the logical unit; it must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._:+/-]+$')").message("spec.ocfs2.iscsi.backing: give the absolute path of a device or file of the serving host"))]
    pub backing: Option<String>,
}

/// An AoE device.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.servedBy) == has(self.backing)").message("spec.ocfs2.aoe: servedBy and backing go together; backing is the device or file of the serving host"), validation = Rule::new("has(self.servedBy) == has(oldSelf.servedBy) && (!has(self.servedBy) || self.servedBy == oldSelf.servedBy) && self.shelf == oldSelf.shelf && self.slot == oldSelf.slot").message("spec.ocfs2.aoe: shelf, slot and servedBy can't change, for two servers of one device spoil it; make another storage"))]
pub struct Aoe {
    /// Shelf.
    #[schemars(range(min = 0, max = 65534))]
    pub shelf: i32,
    /// Slot.
    #[schemars(range(min = 0, max = 254))]
    pub slot: i32,
    /// Network interface on which all hosts reach it, the serving one included.
    #[schemars(length(min = 1, max = 15))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9._-]+$')").message("spec.ocfs2.aoe.interface: name a network interface of the hosts, like eth1"))]
    pub interface: String,
    /// The Host that serves it; absent: served by others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 49))]
    pub served_by: Option<String>,
    /// The device or file on that Host which is given; it must be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 2, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^/[A-Za-z0-9._:+/-]+$')").message("spec.ocfs2.aoe.backing: give the absolute path of a device or file of the serving host"))]
    pub backing: Option<String>,
}

/// A device by a stable path.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SanDevice {
    /// Below `/dev/disk/by-id/`.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(validation = Rule::new("self.matches('^/dev/disk/by-id/[A-Za-z0-9._:+-]+$')").message("spec.ocfs2.san.path: name the device below /dev/disk/by-id/, where every host has it"))]
    pub path: String,
}

/// A directory that someone else shares and mounts on every host.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct SharedDirectory {}

/// What is known of a storage.
#[derive(Serialize, Deserialize, KubeSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SharedStorageStatus {
    /// The spec's generation that this status answers.
    #[serde(default)]
    pub observed_generation: i64,
    /// Hosts on which it is mounted and checked.
    #[serde(default)]
    pub ready_hosts: i32,
    /// Longest time from proof of death to a start, in seconds, by what guards the disks.
    #[serde(default)]
    pub worst_case_failover_seconds: i32,
    /// Node numbers of o2cb by host uid; never used again without proof.
    #[serde(default)]
    pub node_numbers: BTreeMap<String, i32>,
    /// Conditions, Ready first.
    #[serde(default)]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
