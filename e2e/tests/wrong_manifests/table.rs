//! The cases: a manifest that is accepted, a change, and where the refusal must say what to do.

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
/// A storage on AoE that is accepted.
pub const AOE: &str = "
apiVersion: stockade.dev/v1alpha1
kind: SharedStorage
metadata: {name: ether}
spec:
  mountPath: /srv/ether
  ocfs2: {aoe: {shelf: 1, slot: 1, interface: eth1, servedBy: s1, backing: /dev/vg/ether}}
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

/// Base, merge patch, the field that the refusal names, and what it says to do.
pub const WRONG: &[(&str, &str, &str, &str)] = &[
    (VM, "spec: {memory: null}", "spec.memory", "Required value"),
    (VM, "spec: {memory: 3Mi}", "spec.memory", "at least 4Mi"),
    (VM, "spec: {memory: 512}", "spec.memory", "at least 4Mi"),
    (VM, "spec: {memory: lots}", "spec.memory", "for example 512Mi"),
    (VM, "spec: {memory: -1Gi}", "spec.memory", "for example 512Mi"),
    (VM, "spec: {runPolicy: Running}", "spec.runPolicy", "Halted"),
    (VM, "spec: {hypervisor: VMware}", "spec.hypervisor", "Xen"),
    (VM, "spec: {management: Ignored}", "spec.management", "Watched"),
    (VM, "spec: {hypervisor: Xen, firmware: {kind: UEFI}}", "spec.firmware.kind", "BIOS"),
    (VM, "spec: {firmware: {kind: OpenFirmware}}", "spec.firmware.kind", "UEFI"),
    (
        VM,
        "spec: {firmware: {kind: UEFI}, disks: [{name: cd, storage: s, existing: {path: a}, readOnly: true}]}",
        "spec.firmware.kind",
        "without readOnly",
    ),
    (VM, "spec: {firmware: {kind: UEFI}, disks: []}", "spec.firmware.kind", "the first disk"),
    (VM, "spec: {cpu: {cores: 0}}", "spec.cpu.cores", "greater than or equal to 1"),
    (VM, "spec: {cpu: {cores: 513}}", "spec.cpu.cores", "less than or equal to 512"),
    (VM, "spec: {cpu: {model: 'host passthrough'}}", "spec.cpu.model", "libvirt's name of it"),
    (VM, "spec: {stopGraceSeconds: -1}", "spec.stopGraceSeconds", "greater than or equal to 0"),
    (VM, "spec: {stopGraceSeconds: 90000}", "spec.stopGraceSeconds", "less than or equal to 86400"),
    (VM, "spec: {paused: 'yes'}", "spec.paused", "must be of type boolean"),
    (
        VM,
        "spec: {disks: [{name: root, blank: {}, size: 1Gi}]}",
        "spec.disks[0].storage",
        "Required value",
    ),
    (VM, "spec: {disks: [{name: root, storage: s}]}", "spec.disks[0]", "exactly one of existing"),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}, existing: {path: a}, size: 1Gi}]}",
        "spec.disks[0]",
        "exactly one of existing",
    ),
    (VM, "spec: {disks: [{name: root, storage: s, blank: {}}]}", "spec.disks[0]", "needs a size"),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}, size: big}]}",
        "spec.disks[0].size",
        "write it like 10Gi",
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}, size: 1Gi, readOnly: true}]}",
        "spec.disks[0]",
        "leave readOnly out",
    ),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, existing: {path: a}, reclaim: Delete}]}",
        "spec.disks[0]",
        "only blank or imported ones can",
    ),
    (
        VM,
        "spec: {disks: [{name: Root, storage: s, existing: {path: a}}]}",
        "spec.disks[0].name",
        "lower-case letters",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: /etc/shadow}}]}",
        "spec.disks[0].existing",
        "leading slash",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: ../x}}]}",
        "spec.disks[0].existing",
        "leave out '.', '..'",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: a//b}}]}",
        "spec.disks[0].existing",
        "empty parts",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: web.raw.stockade/3.json}, format: raw}]}",
        "spec.disks[0].existing",
        "Stockade's own",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: .stockade/cluster}, format: raw}]}",
        "spec.disks[0].existing",
        "Stockade's own",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: web.raw.nvram}, format: raw}]}",
        "spec.disks[0].existing",
        "name another file",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, image: {path: web.raw.stockade/3.json}}]}",
        "spec.disks[0].image",
        "name another file",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: 'a b'}}]}",
        "spec.disks[0].existing",
        "letters, digits",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, image: {path: ./x}}]}",
        "spec.disks[0].image",
        "leave out '.', '..'",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: a}, format: vmdk}]}",
        "spec.disks[0].format",
        "qcow2",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: a}, bus: scsi}]}",
        "spec.disks[0].bus",
        "virtio",
    ),
    (
        VM,
        "spec: {disks: [{name: a, storage: s, existing: {path: a}}, {name: a, storage: s, existing: {path: b}}]}",
        "spec.disks[1]",
        "Duplicate value",
    ),
    (VM, "spec: {networks: [{name: lan}]}", "spec.networks[0]", "exactly one of bridge"),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: b, network: n}]}",
        "spec.networks[0]",
        "exactly one of bridge",
    ),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: averylongbridgename}]}",
        "spec.networks[0].bridge",
        "may not be more than 15 bytes",
    ),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: 'br 0'}]}",
        "spec.networks[0].bridge",
        "name a bridge that every host has",
    ),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: b, mac: '01:00:5e:00:00:01'}]}",
        "spec.networks[0].mac",
        "a unicast address like 52:54:00:12:34:56",
    ),
    (
        VM,
        "spec: {networks: [{name: lan, bridge: b, mac: 'aa-bb-cc-dd-ee-f0'}]}",
        "spec.networks[0].mac",
        "a unicast address like 52:54:00:12:34:56",
    ),
    (VM, "spec: {cloudInit: {}}", "spec.cloudInit", "exactly one of userData"),
    (
        VM,
        "spec: {cloudInit: {userData: '#cloud-config', userDataSecret: {name: a, key: b}}}",
        "spec.cloudInit",
        "exactly one of userData",
    ),
    (VM, "spec: {availability: {recovery: Maybe}}", "spec.availability.recovery", "Restart"),
    (
        VM,
        "spec: {availability: {priority: 5000}}",
        "spec.availability.priority",
        "less than or equal to 1000",
    ),
    (
        VM,
        "spec: {availability: {maxRestarts: -1}}",
        "spec.availability.maxRestarts",
        "greater than or equal to 0",
    ),
    (
        VM,
        "spec: {migration: {bandwidthMibPerSecond: -1}}",
        "spec.migration.bandwidthMibPerSecond",
        "greater than or equal to 0",
    ),
    (
        VM,
        "spec: {placement: {preferredHosts: [{hosts: []}]}}",
        "spec.placement.preferredHosts[0].hosts",
        "at least 1 items",
    ),
    (
        VM,
        "metadata: {name: a123456789b123456789c123456789d123456789e123456789f123456789g123456789}",
        "metadata.name",
        "at most 63",
    ),
    (HOST, "metadata: {name: h1.example}", "metadata.name", "use a DNS label"),
    (
        HOST,
        "metadata: {name: a123456789b123456789c123456789d123456789e123456789}",
        "metadata.name",
        "at most 49",
    ),
    (HOST, "spec: {mode: Off}", "spec.mode", "Maintenance"),
    (HOST, "spec: {fencing: [{devices: []}]}", "spec.fencing[0].devices", "at least 1 items"),
    (
        HOST,
        "spec: {addresses: {migration: 'a b'}}",
        "spec.addresses.migration",
        "one host name or IP address",
    ),
    (HOST, "spec: {reserved: {cpu: -1}}", "spec.reserved.cpu", "greater than or equal to 0"),
    (NFS, "spec: {mountPath: null}", "spec.mountPath", "Required value"),
    (
        NFS,
        "spec: {mountPath: srv/shared}",
        "spec.mountPath",
        "an absolute path like /srv/stockade/<name>",
    ),
    (NFS, "spec: {mountPath: /srv/../etc}", "spec.mountPath", "leave out '.'"),
    (
        NFS,
        "spec: {mountPath: /etc/stockade}",
        "spec.mountPath",
        "use one like /srv/stockade/<name>",
    ),
    (NFS, "spec: {mountPath: /usr}", "spec.mountPath", "use one like /srv/stockade/<name>"),
    (NFS, "spec: {nfs: null}", "spec", "exactly one of nfs"),
    (NFS, "spec: {directory: {}}", "spec", "exactly one of nfs"),
    (NFS, "spec: {nfs: {server: null}}", "spec.nfs.server", "Required value"),
    (NFS, "spec: {nfs: {server: 'nas;reboot'}}", "spec.nfs.server", "one host name or IP address"),
    (NFS, "spec: {nfs: {options: [nolock]}}", "spec.nfs.options", "leave out"),
    (NFS, "spec: {nfs: {options: [vers=3]}}", "spec.nfs.options", "leave out"),
    (NFS, "spec: {nfs: {options: [soft]}}", "spec.nfs.options", "leave out"),
    (NFS, "spec: {nfs: {options: ['rw,nolock']}}", "spec.nfs.options", "one option an entry"),
    (NFS, "spec: {nfs: {leaseSeconds: 5}}", "spec.nfs.leaseSeconds", "greater than or equal to 10"),
    (NFS, "spec: {owner: {uid: -1}}", "spec.owner.uid", "greater than or equal to 0"),
    (OCFS2, "spec: {ocfs2: {iscsi: null}}", "spec.ocfs2", "exactly one of iscsi"),
    (
        OCFS2,
        "spec: {ocfs2: {iscsi: {target: disk-one}}}",
        "spec.ocfs2.iscsi.target",
        "a qualified name like iqn.",
    ),
    (
        OCFS2,
        "spec: {ocfs2: {iscsi: null, san: {path: /dev/sda}}}",
        "spec.ocfs2.san.path",
        "below /dev/disk/by-id/",
    ),
    (OCFS2, "spec: {ocfs2: {slots: 1}}", "spec.ocfs2.slots", "greater than or equal to 2"),
    (LOCK, "spec: {kind: dlm}", "spec.kind", "sanlock"),
    (LOCK, "spec: {guards: ['']}", "spec.guards[0]", "at least 1 chars long"),
    (LOCK, "spec: {storage: null}", "spec.storage", "Required value"),
    (DEVICE, "spec: {agent: ipmitool}", "spec.agent", "a fence agent by its program"),
    (DEVICE, "spec: {agent: fence_kdump}", "spec.agent", "name one that does"),
    (
        DEVICE,
        "spec: {parameters: {password: secret}}",
        "spec.parameters",
        "password belongs into spec.secret",
    ),
    (DEVICE, "spec: {parameters: {action: reboot}}", "spec.parameters", "action is Stockade's"),
    (DEVICE, "spec: {timeoutSeconds: 0}", "spec.timeoutSeconds", "greater than or equal to 1"),
    (FENCE, "spec: {bootId: null}", "spec.bootId", "Required value"),
    (
        FENCE,
        "spec: {confirmation: {reason: ok, by: me}}",
        "spec.confirmation.reason",
        "at least 3 chars long",
    ),
    (
        FENCE,
        "spec: {confirmation: {reason: pulled the plug}}",
        "spec.confirmation.by",
        "Required value",
    ),
    (POLICY, "metadata: {name: other}", "metadata.name", "name is default"),
    (POLICY, "spec: {acceptedProofs: []}", "spec.acceptedProofs", "at least 1 items"),
    (POLICY, "spec: {acceptedProofs: [[]]}", "spec.acceptedProofs[0]", "at least 1 items"),
    (POLICY, "spec: {acceptedProofs: [[Ping]]}", "spec.acceptedProofs[0][0]", "Power"),
    (POLICY, "spec: {heartbeatSeconds: 5}", "spec.suspectSeconds", "at least twice"),
    (POLICY, "spec: {actSeconds: 4}", "spec.actSeconds", "at least suspectSeconds"),
    (
        POLICY,
        "spec: {heartbeatSeconds: 11, suspectSeconds: 22, actSeconds: 30}",
        "spec.selfFence.stopSeconds",
        "more than twice heartbeatSeconds",
    ),
    (POLICY, "spec: {automation: Stopped}", "spec.automation", "Paused"),
    (MOVE, "spec: {vm: null}", "spec.vm", "Required value"),
    (DOMAIN, "spec: {epoch: 0}", "spec.epoch", "greater than or equal to 1"),
    (DOMAIN, "spec: {want: Restarted}", "spec.want", "Stopped"),
    (
        VM,
        "spec: {disks: [{name: root, storage: s, blank: {}, size: '0'}]}",
        "spec.disks[0].size",
        "write it like 10Gi",
    ),
    (
        VM,
        "spec: {networks: [{name: Lan, bridge: b}]}",
        "spec.networks[0].name",
        "lower-case letters",
    ),
    (
        VM,
        "spec: {networks: [{name: lan, network: 'a b'}]}",
        "spec.networks[0].network",
        "a libvirt network that every host has",
    ),
    (HOST, "spec: {reserved: {memory: -1Gi}}", "spec.reserved.memory", "write it like 2Gi"),
    (
        NFS,
        "spec: {nfs: {export: export}}",
        "spec.nfs.export",
        "the absolute path that the server exports",
    ),
    (
        OCFS2,
        "spec: {ocfs2: {iscsi: {portal: 'nas 3260'}}}",
        "spec.ocfs2.iscsi.portal",
        "with :port if that is not 3260",
    ),
    (
        OCFS2,
        "spec: {ocfs2: {iscsi: {servedBy: h1}}}",
        "spec.ocfs2.iscsi",
        "servedBy and backing go together",
    ),
    (
        OCFS2,
        "spec: {ocfs2: {iscsi: {servedBy: h1, backing: disk.raw}}}",
        "spec.ocfs2.iscsi.backing",
        "the absolute path of a device or file",
    ),
    (
        OCFS2,
        "spec: {ocfs2: {iscsi: null, aoe: {shelf: 0, slot: 1, interface: 'eth 1'}}}",
        "spec.ocfs2.aoe.interface",
        "a network interface of the hosts",
    ),
    (
        OCFS2,
        "spec: {ocfs2: {iscsi: null, aoe: {shelf: 0, slot: 1, interface: eth1, backing: /dev/x}}}",
        "spec.ocfs2.aoe",
        "servedBy and backing go together",
    ),
];

/// Base, merge patch on the object that stands, part of the refusal.
pub const FORBIDDEN_CHANGES: &[(&str, &str, &str)] = &[
    (DOMAIN, "spec: {epoch: 3}", "spec.epoch: it never falls"),
    (DOMAIN, "spec: {orderId: 8}", "spec.orderId: it never falls"),
    (NFS, "spec: {mountPath: /srv/other}", "it can't change while VMs may use it"),
    (AOE, "spec: {ocfs2: {aoe: {slot: 2}}}", "shelf, slot and servedBy can't change"),
    (AOE, "spec: {ocfs2: {aoe: {servedBy: s2}}}", "shelf, slot and servedBy can't change"),
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
