//! From a VM's spec to the machine that an agent is to run, with every problem at once.

use std::collections::BTreeMap;

use stockade_crds::names::{is_reserved_path, seed_secret};
use stockade_crds::quantity;
use stockade_crds::v1alpha1::{
    CreateDisk, DiskFormat, FirmwareKind, LockMode, Machine, MachineDisk, MachineNetwork, Seed,
    VirtualMachine,
};

use crate::world::{Key, World};

/// Something about a spec that only the cluster can know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub field: String,
    /// What is wrong and what to do.
    pub message: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// The absolute path of a VM's disk, the same on every host.
///
/// # Errors
/// A problem if the storage is not declared.
pub fn disk_path(world: &World, vm: &VirtualMachine, index: usize) -> Result<String, Problem> {
    let key = Key::of(&vm.metadata);
    let Some(disk) = vm.spec.disks.get(index) else {
        return Err(Problem { field: "spec.disks".into(), message: "no such disk".into() });
    };
    let Some(storage) = world.storages.get(&disk.storage) else {
        return Err(Problem {
            field: format!("spec.disks[{}].storage", disk.name),
            message: format!("there is no SharedStorage {:?}; name one that exists", disk.storage),
        });
    };
    let mount = storage.spec.mount_path.trim_end_matches('/');
    Ok(match &disk.existing {
        Some(at) if storage.spec.allow_other_paths => format!("{mount}/{}", at.path),
        Some(at) => format!("{mount}/{}/{}", key.namespace, at.path),
        None => {
            let suffix = match disk.format {
                DiskFormat::Raw => "raw",
                DiskFormat::Qcow2 => "qcow2",
            };
            format!("{mount}/{}/{}-{}.{suffix}", key.namespace, key.name, disk.name)
        }
    })
}

/// What one plan looks up by disk or by VM; the owners are worked out only if a VM starts.
#[derive(Debug, Default)]
pub struct Claims {
    owners: std::cell::OnceCell<BTreeMap<String, Key>>,
    /// Hosts whose inventory lists a domain, by the domain's UUID.
    inventories: BTreeMap<String, Vec<String>>,
}

impl Claims {
    /// The look-ups of this world.
    #[must_use]
    pub fn new(world: &World) -> Self {
        let mut inventories: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (host, agent) in &world.agents {
            for item in agent.status.iter().flat_map(|s| &s.inventory) {
                inventories.entry(item.uuid.clone()).or_default().push(host.clone());
            }
        }
        Self { owners: std::cell::OnceCell::new(), inventories }
    }

    /// The VM that owns a writable disk.
    #[must_use]
    pub fn owner(&self, world: &World, path: &str) -> Option<&Key> {
        self.owners.get_or_init(|| owners(world)).get(path)
    }

    /// Hosts that list a domain with this UUID which no order accounts for.
    #[must_use]
    pub fn inventories(&self, uid: &str) -> &[String] {
        self.inventories.get(uid).map_or(&[], Vec::as_slice)
    }
}

/// The owner of each writable disk: the VM that is placed already, else the older one.
fn owners(world: &World) -> BTreeMap<String, Key> {
    let mut order: Vec<_> = world.vms.values().collect();
    order.sort_by_key(|vm| {
        let placed = vm.status.as_ref().is_some_and(|s| s.epoch > 0);
        (!placed, vm.metadata.creation_timestamp.as_ref().map(|t| t.0), vm.metadata.uid.clone())
    });
    let mut owners = BTreeMap::new();
    for vm in order {
        for (index, disk) in vm.spec.disks.iter().enumerate() {
            if disk.read_only {
                continue;
            }
            if let Ok(path) = disk_path(world, vm, index) {
                owners.entry(path).or_insert_with(|| Key::of(&vm.metadata));
            }
        }
    }
    owners
}

/// The machine that this spec means.
///
/// # Errors
/// Every problem that the cluster knows of.
pub fn resolve(world: &World, vm: &VirtualMachine) -> Result<Machine, Vec<Problem>> {
    let mut problems = Vec::new();
    let key = Key::of(&vm.metadata);
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let pinned = vm.status.as_ref().and_then(|s| s.pinned.clone()).unwrap_or_default();
    let memory_mib = quantity::mib(&vm.spec.memory).unwrap_or_else(|message| {
        problems.push(Problem { field: "spec.memory".into(), message });
        0
    });
    let mut disks: Vec<MachineDisk> = Vec::new();
    for (index, disk) in vm.spec.disks.iter().enumerate() {
        let field = |name: &str| format!("spec.disks[{}].{name}", disk.name);
        let path = match disk_path(world, vm, index) {
            Ok(path) => path,
            Err(problem) => {
                problems.push(problem);
                continue;
            }
        };
        let storage = &world.storages[&disk.storage];
        let allowed = &storage.spec.namespaces;
        if !allowed.is_empty() && !allowed.contains(&key.namespace) {
            problems.push(Problem {
                field: field("storage"),
                message: format!(
                    "{:?} may not be used from namespace {:?}; add it to the storage's \
                     spec.namespaces or use another storage",
                    disk.storage, key.namespace
                ),
            });
        }
        if disks.iter().any(|d| d.path == path) {
            problems.push(Problem {
                field: field("existing.path"),
                message: format!("{path} is named by two disks of this VM; name it once"),
            });
        }
        // The schema refuses this too, but not of a VM that was there before it did.
        for (kind, at) in [("existing.path", &disk.existing), ("image.path", &disk.image)] {
            if at.as_ref().is_some_and(|at| is_reserved_path(&at.path)) {
                problems.push(Problem {
                    field: field(kind),
                    message: "the name is Stockade's own; name another file".into(),
                });
            }
        }
        let size_bytes = match disk.size.as_ref().map(quantity::bytes) {
            Some(Ok(bytes)) => bytes,
            Some(Err(message)) => {
                problems.push(Problem { field: field("size"), message });
                0
            }
            None => 0,
        };
        let mount = storage.spec.mount_path.trim_end_matches('/');
        let create = match (&disk.blank, &disk.image) {
            (Some(_), _) => Some(CreateDisk { image: None }),
            (None, Some(image)) => Some(CreateDisk {
                image: Some(if storage.spec.allow_other_paths {
                    format!("{mount}/{}", image.path)
                } else {
                    format!("{mount}/{}/{}", key.namespace, image.path)
                }),
            }),
            (None, None) => None,
        };
        disks.push(MachineDisk {
            name: disk.name.clone(),
            storage: disk.storage.clone(),
            path,
            format: disk.format,
            bus: disk.bus,
            read_only: disk.read_only,
            create,
            size_bytes,
            reclaim: disk.reclaim,
        });
    }
    // Beside one that several VMs read they would all write the same variables.
    if vm.spec.firmware.kind == FirmwareKind::UEFI
        && vm.spec.disks.first().is_none_or(|disk| disk.read_only)
    {
        problems.push(Problem {
            field: "spec.firmware.kind".into(),
            message:
                "UEFI variables lie beside the first disk; make that one without readOnly, or \
                      use BIOS"
                    .into(),
        });
    }
    let networks = vm
        .spec
        .networks
        .iter()
        .enumerate()
        .map(|(index, net)| MachineNetwork {
            mac: net.mac.clone().unwrap_or_else(|| mac(&uid, index)),
            bridge: net.bridge.clone(),
            network: net.network.clone(),
        })
        .collect();
    let seed = vm.spec.cloud_init.as_ref().map(|c| Seed {
        user_data: c.user_data.clone(),
        network_data: c.network_data.clone(),
        secret: c.user_data_secret.as_ref().map(|_| seed_secret(&uid)),
    });
    let lock = world
        .lock_managers
        .values()
        .find(|l| {
            l.spec.mode == LockMode::Active
                && vm.spec.disks.iter().any(|d| !d.read_only && l.spec.covers(&d.storage))
        })
        .map(|l| l.spec.kind);
    if problems.is_empty() {
        Ok(Machine {
            hypervisor: vm.spec.hypervisor,
            cores: vm.spec.cpu.cores,
            cpu_model: vm.spec.cpu.model.clone().unwrap_or(pinned.cpu_model),
            machine_type: pinned.machine_type,
            memory_mib,
            firmware: vm.spec.firmware.kind,
            disks,
            networks,
            seed,
            serial: vm.spec.console.serial,
            vnc: vm.spec.console.vnc,
            lock,
        })
    } else {
        Err(problems)
    }
}

/// A MAC address of QEMU's range, from the VM's uid: the same on every host.
fn mac(uid: &str, index: usize) -> String {
    // FNV-1a; only spread is needed, and the same answer in every version.
    let hash = uid
        .bytes()
        .chain(index.to_string().bytes())
        .fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3));
    let b = hash.to_be_bytes();
    format!("52:54:00:{:02x}:{:02x}:{:02x}", b[1], b[4], b[6])
}

/// Within an epoch the disks stay as they were given to it, whatever the spec says by now: their owner
/// records were written for these. They may grow.
pub(super) fn keep_disks(now: &mut Machine, given: &Machine) {
    let wanted = std::mem::replace(&mut now.disks, given.disks.clone());
    for disk in &mut now.disks {
        let same = wanted.iter().find(|other| other.name == disk.name && other.path == disk.path);
        if let Some(other) = same {
            disk.size_bytes = other.size_bytes;
        }
    }
}

/// Whether the spec names other disks by now than a running VM was given.
pub(super) fn other_disks(world: &World, vm: &VirtualMachine, given: &Machine) -> bool {
    let disks = vm.spec.disks.iter().zip(&given.disks).enumerate();
    let same = vm.spec.disks.len() == given.disks.len()
        && disks.into_iter().all(|(index, (disk, given))| {
            (disk.name.as_str(), disk.read_only) == (given.name.as_str(), given.read_only)
                && disk_path(world, vm, index).is_ok_and(|path| path == given.path)
        });
    // A spec with problems changes nothing.
    !same && resolve(world, vm).is_ok()
}
