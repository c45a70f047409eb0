//! The cases: a manifest that is accepted, a change, and what the refusal must say.

/// A VM that is accepted.
pub const VM: &str = "
apiVersion: stockade.dev/v1alpha1
kind: VirtualMachine
metadata: {name: web}
spec:
  memory: 512Mi
  disks: [{name: root, storage: shared, blank: {}, size: 10Gi}]
  networks: [{name: lan, bridge: br0}]
";
/// A Host that is accepted.
pub const HOST: &str = "
apiVersion: stockade.dev/v1alpha1
kind: Host
metadata: {name: h1}
spec: {fencing: [{devices: [bmc]}]}
";
/// A storage that is accepted.
pub const NFS: &str = "
apiVersion: stockade.dev/v1alpha1
kind: SharedStorage
metadata: {name: shared}
spec: {mountPath: /srv/shared, nfs: {server: nas, export: /export}}
";
/// A storage on a block device that is accepted.
pub const OCFS2: &str = "
apiVersion: stockade.dev/v1alpha1
kind: SharedStorage
metadata: {name: cluster}
spec:
  mountPath: /srv/cluster
  ocfs2: {iscsi: {portal: nas, target: 'iqn.2026-01.dev.stockade:disk'}}
";
/// A lock manager that is accepted.
pub const LOCK: &str = "
apiVersion: stockade.dev/v1alpha1
kind: LockManager
metadata: {name: locks}
spec: {kind: virtlockd, storage: shared}
";
/// A fence device that is accepted.
pub const DEVICE: &str = "
apiVersion: stockade.dev/v1alpha1
kind: FenceDevice
metadata: {name: bmc}
spec: {agent: fence_ipmilan, parameters: {ip: 10.0.0.9}, plugs: {h1: '1'}}
";
/// A certificate that is accepted.
pub const FENCE: &str = "
apiVersion: stockade.dev/v1alpha1
kind: HostFence
metadata: {name: h1-abc}
spec: {host: h1, hostUid: uid-1, bootId: boot-1}
";
/// A policy that is accepted.
pub const POLICY: &str = "
apiVersion: stockade.dev/v1alpha1
kind: AvailabilityPolicy
metadata: {name: default}
spec: {}
";
/// A move that is accepted.
pub const MOVE: &str = "
apiVersion: stockade.dev/v1alpha1
kind: VirtualMachineMigration
metadata: {name: move-web}
spec: {vm: web, target: h2}
";
/// An order that is accepted.
pub const DOMAIN: &str = "
apiVersion: stockade.dev/v1alpha1
kind: Domain
metadata: {name: vm-uid}
spec:
  vm: {namespace: default, name: web, uid: vm-uid}
  hostUid: uid-1
  bootId: boot-1
  epoch: 4
  orderId: 9
  want: Running
  machine: {cores: 1, memoryMib: 512}
";

/// Every manifest that is accepted.
pub fn bases() -> [&'static str; 10] {
    [VM, HOST, NFS, OCFS2, LOCK, DEVICE, FENCE, POLICY, MOVE, DOMAIN]
}

/// Base, merge patch, parts of the refusal.
pub const WRONG: &[(&str, &str, &[&str])] = &[
    (VM, "spec: {memory: null}", &["spec.memory", "Required"]),
    (VM, "spec: {memory: 3Mi}", &["spec.memory", "at least 4Mi"]),
    (VM, "spec: {memory: 512}", &["spec.memory", "at least 4Mi"]),
    (VM, "spec: {memory: lots}", &["spec.memory"]),
    (VM, "spec: {memory: -1Gi}", &["spec.memory"]),
    (VM, "spec: {runPolicy: Running}", &["spec.runPolicy", "Halted"]),
    (VM, "spec: {hypervisor: VMware}", &["spec.hypervisor", "Xen"]),
    (VM, "spec: {management: Ignored}", &["spec.management", "Watched"]),
    (VM, "spec: {hypervisor: Xen, firmware: {kind: UEFI}}", &["spec.firmware.kind", "BIOS"]),
    (VM, "spec: {firmware: {kind: OpenFirmware}}", &["spec.firmware.kind", "UEFI"]),
    (
        VM,
        "spec: {firmware: {kind: UEFI}, disks: [{name: cd, storage: s, existing: {path: a}, readOnly: true}]}",
        &["spec.firmware.kind", "without readOnly"],
    ),
    (VM, "spec: {firmware: {kind: UEFI}, disks: []}", &["spec.firmware.kind", "the first disk"]),
    (VM, "spec: {cpu: {cores: 0}}", &["spec.cpu.cores", "greater than or equal to 1"]),
    (VM, "spec: {cpu: {cores: 513}}", &["spec.cpu.cores", "less than or equal to 512"]),
    (VM, "spec: {cpu: {model: 'host passthrough'}}", &["spec.cpu.model"]),
    (VM, "spec: {stopGraceSeconds: -1}", &["spec.stopGraceSeconds"]),
    (VM, "spec: {stopGraceSeconds: 90000}", &["spec.stopGraceSeconds"]),
    (VM, "spec: {paused: 'yes'}", &["spec.paused", "boolean"]),
    (
        VM,
        "spec: {disks: [{name: root, blank: {}, size: 1Gi}]}",
        &["spec.disks[0].storage", "Required"],
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s}]}",
        &["spec.disks[0]", "exactly one of existing"],
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}, existing: {path: a}, size: 1Gi}]}",
        &["spec.disks[0]", "exactly one of existing"],
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}}]}",
        &["spec.disks[0]", "needs a size"],
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}, size: big}]}",
        &["spec.disks[0].size"],
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}, size: 1Gi, readOnly: true}]}",
        &["spec.disks[0]", "readOnly"],
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, existing: {path: a}, reclaim: Delete}]}",
        &["spec.disks[0]", "can't be Delete"],
    ),
    (VM, "spec: {disks: [{name: Root, storage: s, existing: {path: a}}]}", &["spec.disks[0].name"]),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: /etc/shadow}}]}",
        &["leading slash"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: ../x}}]}",
        &["spec.disks[0]", "'..'"],
    ),
    (VM, "spec: {disks: [{name: a, storage: s, existing: {path: a//b}}]}", &["empty parts"]),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: web.raw.stockade/3.json}, format: raw}]}",
        &["spec.disks[0].existing", "Stockade's own"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: .stockade/cluster}, format: raw}]}",
        &["spec.disks[0].existing", "Stockade's own"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: web.raw.nvram}, format: raw}]}",
        &["spec.disks[0].existing", "name another file"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, image: {path: web.raw.stockade/3.json}}]}",
        &["spec.disks[0].image", "name another file"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: 'a b'}}]}",
        &["spec.disks[0].existing.path"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, image: {path: ./x}}]}",
        &["spec.disks[0].image", "'..'"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: a}, format: vmdk}]}",
        &["spec.disks[0].format", "qcow2"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: a}, bus: scsi}]}",
        &["spec.disks[0].bus", "virtio"],
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: a}}, {name: a, storage: s, existing: {path: b}}]}",
        &["spec.disks[1]", "Duplicate"],
    ),
    (VM, "spec: {networks: [{name: lan}]}", &["spec.networks[0]", "exactly one of bridge"]),
    (VM, "spec: {networks: [{name: lan, bridge: b, network: n}]}", &["exactly one of bridge"]),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: averylongbridgename}]}",
        &["spec.networks[0].bridge", "15"],
    ),
    (VM, "spec: {networks: [{name: lan, bridge: 'br 0'}]}", &["spec.networks[0].bridge"]),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: b, mac: '01:00:5e:00:00:01'}]}",
        &["spec.networks[0].mac"],
    ),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: b, mac: 'aa-bb-cc-dd-ee-f0'}]}",
        &["spec.networks[0].mac"],
    ),
    (VM, "spec: {cloudInit: {}}", &["spec.cloudInit", "exactly one of userData"]),
    (
        VM,
        "spec: {cloudInit: {userData: '#cloud-config', userDataSecret: {name: a, key: b}}}",
        &["spec.cloudInit", "exactly one of userData"],
    ),
    (VM, "spec: {availability: {recovery: Maybe}}", &["spec.availability.recovery", "Restart"]),
    (VM, "spec: {availability: {priority: 5000}}", &["spec.availability.priority"]),
    (VM, "spec: {availability: {maxRestarts: -1}}", &["spec.availability.maxRestarts"]),
    (
        VM,
        "spec: {migration: {bandwidthMibPerSecond: -1}}",
        &["spec.migration.bandwidthMibPerSecond"],
    ),
    (
        VM,
        "spec: {placement: {preferredHosts: [{hosts: []}]}}",
        &["spec.placement.preferredHosts[0].hosts"],
    ),
    (
        VM,
        "metadata: {name: a123456789b123456789c123456789d123456789e123456789f123456789g123456789}",
        &["metadata.name", "at most 63"],
    ),
    (HOST, "metadata: {name: h1.example}", &["metadata.name", "DNS label"]),
    (
        HOST,
        "metadata: {name: a123456789b123456789c123456789d123456789e123456789}",
        &["metadata.name", "at most 49"],
    ),
    (HOST, "spec: {mode: Off}", &["spec.mode", "Maintenance"]),
    (HOST, "spec: {fencing: [{devices: []}]}", &["spec.fencing[0].devices"]),
    (HOST, "spec: {addresses: {migration: 'a b'}}", &["spec.addresses.migration"]),
    (HOST, "spec: {reserved: {cpu: -1}}", &["spec.reserved.cpu"]),
    (NFS, "spec: {mountPath: null}", &["spec.mountPath", "Required"]),
    (NFS, "spec: {mountPath: srv/shared}", &["spec.mountPath"]),
    (NFS, "spec: {mountPath: /srv/../etc}", &["spec.mountPath", "leave out '.'"]),
    (NFS, "spec: {mountPath: /etc/stockade}", &["spec.mountPath", "host's own directory"]),
    (NFS, "spec: {mountPath: /usr}", &["spec.mountPath", "host's own directory"]),
    (NFS, "spec: {nfs: null}", &["spec", "exactly one of nfs"]),
    (NFS, "spec: {directory: {}}", &["spec", "exactly one of nfs"]),
    (NFS, "spec: {nfs: {server: null}}", &["spec.nfs.server", "Required"]),
    (NFS, "spec: {nfs: {server: 'nas;reboot'}}", &["spec.nfs.server"]),
    (NFS, "spec: {nfs: {options: [nolock]}}", &["spec.nfs.options", "leave out"]),
    (NFS, "spec: {nfs: {options: [vers=3]}}", &["spec.nfs.options", "leave out"]),
    (NFS, "spec: {nfs: {options: [soft]}}", &["spec.nfs.options", "leave out"]),
    (NFS, "spec: {nfs: {options: ['rw,nolock']}}", &["spec.nfs.options[0]"]),
    (NFS, "spec: {nfs: {leaseSeconds: 5}}", &["spec.nfs.leaseSeconds"]),
    (NFS, "spec: {owner: {uid: -1}}", &["spec.owner.uid"]),
    (OCFS2, "spec: {ocfs2: {iscsi: null}}", &["spec.ocfs2", "exactly one of iscsi"]),
    (OCFS2, "spec: {ocfs2: {iscsi: {target: disk-one}}}", &["spec.ocfs2.iscsi.target"]),
    (OCFS2, "spec: {ocfs2: {iscsi: null, san: {path: /dev/sda}}}", &["spec.ocfs2.san.path"]),
    (OCFS2, "spec: {ocfs2: {slots: 1}}", &["spec.ocfs2.slots"]),
    (LOCK, "spec: {kind: dlm}", &["spec.kind", "sanlock"]),
    (LOCK, "spec: {storage: null}", &["spec.storage", "Required"]),
    (DEVICE, "spec: {agent: ipmitool}", &["spec.agent"]),
    (DEVICE, "spec: {agent: fence_kdump}", &["spec.agent", "does not cut power"]),
    (DEVICE, "spec: {parameters: {password: secret}}", &["spec.parameters", "spec.secret"]),
    (DEVICE, "spec: {parameters: {action: reboot}}", &["spec.parameters", "Stockade's"]),
    (DEVICE, "spec: {timeoutSeconds: 0}", &["spec.timeoutSeconds"]),
    (FENCE, "spec: {bootId: null}", &["spec.bootId", "Required"]),
    (FENCE, "spec: {confirmation: {reason: ok, by: me}}", &["spec.confirmation.reason"]),
    (
        FENCE,
        "spec: {confirmation: {reason: pulled the plug}}",
        &["spec.confirmation.by", "Required"],
    ),
    (POLICY, "metadata: {name: other}", &["metadata.name", "name is default"]),
    (POLICY, "spec: {acceptedProofs: []}", &["spec.acceptedProofs"]),
    (POLICY, "spec: {acceptedProofs: [[]]}", &["spec.acceptedProofs[0]"]),
    (POLICY, "spec: {acceptedProofs: [[Ping]]}", &["spec.acceptedProofs[0][0]", "Power"]),
    (POLICY, "spec: {heartbeatSeconds: 5}", &["spec.suspectSeconds", "at least twice"]),
    (POLICY, "spec: {actSeconds: 4}", &["spec.actSeconds", "at least suspectSeconds"]),
    (
        POLICY,
        "spec: {heartbeatSeconds: 11, suspectSeconds: 22, actSeconds: 30}",
        &["spec.selfFence.stopSeconds"],
    ),
    (POLICY, "spec: {automation: Stopped}", &["spec.automation", "Paused"]),
    (MOVE, "spec: {vm: null}", &["spec.vm", "Required"]),
    (DOMAIN, "spec: {epoch: 0}", &["spec.epoch"]),
    (DOMAIN, "spec: {want: Restarted}", &["spec.want", "Stopped"]),
];

/// Base, merge patch on the object that stands, part of the refusal.
pub const FORBIDDEN_CHANGES: &[(&str, &str, &str)] = &[
    (DOMAIN, "spec: {epoch: 3}", "spec.epoch: it never falls"),
    (DOMAIN, "spec: {orderId: 8}", "spec.orderId: it never falls"),
    (NFS, "spec: {mountPath: /srv/other}", "it can't change while VMs may use it"),
    (LOCK, "spec: {kind: sanlock}", "kind and storage can't change"),
    (LOCK, "spec: {storage: other}", "kind and storage can't change"),
    (FENCE, "spec: {bootId: boot-2}", "a certificate is for one boot"),
    (FENCE, "spec: {hostUid: uid-2}", "a certificate is for one boot"),
    (MOVE, "spec: {target: h3}", "a migration can't change"),
    (
        VM,
        "spec: {disks: [{name: root, storage: other, blank: {}, size: 10Gi}]}",
        "storage and format of a disk can't change",
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: shared, blank: {}, size: 10239Mi}]}",
        "can't shrink",
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: shared, blank: {}, size: 10Gi, format: raw}]}",
        "storage and format of a disk can't change",
    ),
];
