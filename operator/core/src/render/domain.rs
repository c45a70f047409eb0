//! The domain XML of an order.

use stockade_crds::names::VARIABLES_SUFFIX;
use stockade_crds::v1alpha1::{
    DiskBus, DiskFormat, DomainSpec, FirmwareKind, HypervisorKind, MachineDisk, MachineNetwork,
};

/// XML namespace of the element in a domain's metadata that makes it ours.
pub const DOMAIN_NAMESPACE: &str = "https://stockade.dev/domain";

/// What rendering needs to know of the host that runs the domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostRenderFacts {
    /// No KVM here: the guest is emulated.
    pub emulated: bool,
    /// Path of the seed image, if the order has a seed.
    pub seed: Option<String>,
}

/// libvirt's name of a VM's domain: `<namespace>.<name>`.
#[must_use]
pub fn domain_name(order: &DomainSpec) -> String {
    format!("{}.{}", order.vm.namespace, order.vm.name)
}

/// Renders an order as libvirt's domain XML.
///
/// The epoch and the boot stand in the metadata, so that a domain tells by itself which order
/// it obeys (safety §2.8). Disks are opened with `cache=none` only (safety §6.4).
#[must_use]
pub fn domain_xml(order: &DomainSpec, facts: &HostRenderFacts) -> String {
    let machine = &order.machine;
    let mut xml = Xml::default();
    let kind = match (machine.hypervisor, facts.emulated) {
        (HypervisorKind::Xen, _) => "xen",
        (HypervisorKind::KVM, true) => "qemu",
        (HypervisorKind::KVM, false) => "kvm",
    };
    xml.open("domain", &[("type", kind)]);
    xml.leaf("name", &[], &domain_name(order));
    xml.leaf("uuid", &[], &order.vm.uid);
    xml.open("metadata", &[]);
    let epoch = order.epoch.to_string();
    xml.empty(
        "stockade:domain",
        &[
            ("xmlns:stockade", DOMAIN_NAMESPACE),
            ("epoch", &epoch),
            ("host", &order.host_uid),
            ("boot", &order.boot_id),
            ("namespace", &order.vm.namespace),
            ("name", &order.vm.name),
        ],
    );
    xml.close("metadata");
    xml.leaf("memory", &[("unit", "MiB")], &machine.memory_mib.to_string());
    xml.leaf("vcpu", &[("placement", "static")], &machine.cores.to_string());
    firmware(&mut xml, order);
    xml.open("features", &[]);
    xml.empty("acpi", &[]);
    xml.empty("apic", &[]);
    xml.close("features");
    cpu(&mut xml, order, facts);
    xml.empty("clock", &[("offset", "utc")]);
    // Nothing starts by itself (safety §2.7): what ended stays ended until the agent acts.
    xml.leaf("on_poweroff", &[], "destroy");
    xml.leaf("on_reboot", &[], "restart");
    xml.leaf("on_crash", &[], "destroy");
    xml.open("devices", &[]);
    let mut targets = Targets::default();
    for (index, disk) in machine.disks.iter().enumerate() {
        disk_xml(&mut xml, disk, index + 1, &mut targets);
    }
    if let Some(seed) = &facts.seed {
        xml.open("disk", &[("type", "file"), ("device", "cdrom")]);
        xml.empty("driver", &[("name", "qemu"), ("type", "raw")]);
        xml.empty("source", &[("file", seed)]);
        let bus = if is_q35(&machine.machine_type) { DiskBus::Sata } else { DiskBus::Ide };
        xml.empty("target", &[("dev", &targets.next(bus)), ("bus", bus_name(bus))]);
        xml.empty("readonly", &[]);
        xml.close("disk");
    }
    for network in &machine.networks {
        network_xml(&mut xml, network);
    }
    if machine.serial {
        xml.empty("serial", &[("type", "pty")]);
        xml.empty("console", &[("type", "pty")]);
    }
    if machine.vnc {
        // Nobody but the daemon gets in, by a descriptor: a port of the loopback address would be
        // open to everybody on the host.
        xml.open("graphics", &[("type", "vnc")]);
        xml.empty("listen", &[("type", "none")]);
        xml.close("graphics");
    }
    if machine.hypervisor == HypervisorKind::KVM {
        xml.open("channel", &[("type", "unix")]);
        xml.empty("target", &[("type", "virtio"), ("name", "org.qemu.guest_agent.0")]);
        xml.close("channel");
        xml.open("rng", &[("model", "virtio")]);
        xml.leaf("backend", &[("model", "random")], "/dev/urandom");
        xml.close("rng");
        xml.empty("memballoon", &[("model", "virtio")]);
    }
    xml.close("devices");
    xml.close("domain");
    xml.text
}

/// An unversioned or empty machine type means q35.
fn is_q35(machine_type: &str) -> bool {
    machine_type.is_empty() || machine_type.contains("q35")
}

fn firmware(xml: &mut Xml, order: &DomainSpec) {
    let machine = &order.machine;
    let uefi = machine.firmware == FirmwareKind::UEFI;
    xml.open("os", if uefi { &[("firmware", "efi")] } else { &[] });
    match machine.hypervisor {
        HypervisorKind::KVM => {
            let kind = if machine.machine_type.is_empty() { "q35" } else { &machine.machine_type };
            xml.leaf("type", &[("arch", "x86_64"), ("machine", kind)], "hvm");
        }
        HypervisorKind::Xen => xml.leaf("type", &[("arch", "x86_64")], "hvm"),
    }
    if uefi && let Some(disk) = machine.disks.first() {
        // The variables lie with the disk, so that they go where the VM goes.
        xml.leaf("nvram", &[], &format!("{}{VARIABLES_SUFFIX}", disk.path));
    }
    xml.close("os");
}

fn cpu(xml: &mut Xml, order: &DomainSpec, facts: &HostRenderFacts) {
    let machine = &order.machine;
    if machine.hypervisor == HypervisorKind::Xen {
        return;
    }
    match (machine.cpu_model.as_str(), facts.emulated) {
        // Emulation offers its own default alike on every host.
        ("", true) => {}
        ("", false) => xml.empty("cpu", &[("mode", "host-model")]),
        (model, _) => {
            xml.open("cpu", &[("mode", "custom"), ("match", "exact"), ("check", "none")]);
            xml.leaf("model", &[("fallback", "forbid")], model);
            xml.close("cpu");
        }
    }
}

fn disk_xml(xml: &mut Xml, disk: &MachineDisk, order: usize, targets: &mut Targets) {
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    xml.open("disk", &[("type", "file"), ("device", "disk")]);
    // No io_uring and no page cache: what QEMU has written is on the storage when it is gone.
    xml.empty(
        "driver",
        &[("name", "qemu"), ("type", format), ("cache", "none"), ("io", "threads")],
    );
    if disk.read_only {
        xml.empty("source", &[("file", &disk.path)]);
    } else {
        // Its owner is the agent's to set. libvirt would give the file back to root where a start
        // fails, even one that the lock of a VM that runs elsewhere refused: that VM could not write
        // any more.
        xml.open("source", &[("file", &disk.path)]);
        xml.empty("seclabel", &[("model", "dac"), ("relabel", "no")]);
        xml.close("source");
    }
    xml.empty("target", &[("dev", &targets.next(disk.bus)), ("bus", bus_name(disk.bus))]);
    if disk.read_only {
        xml.empty("readonly", &[]);
    }
    xml.leaf("serial", &[], &disk.name);
    xml.empty("boot", &[("order", &order.to_string())]);
    xml.close("disk");
}

fn network_xml(xml: &mut Xml, network: &MachineNetwork) {
    let (kind, source) = match (&network.bridge, &network.network) {
        (Some(bridge), _) => ("bridge", ("bridge", bridge)),
        (None, Some(name)) => ("network", ("network", name)),
        (None, None) => return,
    };
    xml.open("interface", &[("type", kind)]);
    xml.empty("mac", &[("address", &network.mac)]);
    xml.empty("source", &[(source.0, source.1)]);
    xml.empty("model", &[("type", "virtio")]);
    xml.close("interface");
}

fn bus_name(bus: DiskBus) -> &'static str {
    match bus {
        DiskBus::Virtio => "virtio",
        DiskBus::Sata => "sata",
        DiskBus::Ide => "ide",
    }
}

/// Hands out device names by bus; SATA and SCSI share a prefix.
#[derive(Default)]
struct Targets {
    virtio: u8,
    sata: u8,
    ide: u8,
}

impl Targets {
    fn next(&mut self, bus: DiskBus) -> String {
        let (prefix, used) = match bus {
            DiskBus::Virtio => ("vd", &mut self.virtio),
            DiskBus::Sata => ("sd", &mut self.sata),
            DiskBus::Ide => ("hd", &mut self.ide),
        };
        let letter = char::from(b'a' + *used % 26);
        *used += 1;
        format!("{prefix}{letter}")
    }
}

/// A writer that indents and escapes.
#[derive(Default)]
struct Xml {
    text: String,
    depth: usize,
}

impl Xml {
    fn start(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.text.push_str(&"  ".repeat(self.depth));
        self.text.push('<');
        self.text.push_str(name);
        for (key, value) in attributes {
            self.text.push_str(&format!(" {key}='{}'", quick_xml::escape::escape(*value)));
        }
    }

    fn open(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.start(name, attributes);
        self.text.push_str(">\n");
        self.depth += 1;
    }

    fn close(&mut self, name: &str) {
        self.depth -= 1;
        self.text.push_str(&format!("{}</{name}>\n", "  ".repeat(self.depth)));
    }

    fn empty(&mut self, name: &str, attributes: &[(&str, &str)]) {
        self.start(name, attributes);
        self.text.push_str("/>\n");
    }

    fn leaf(&mut self, name: &str, attributes: &[(&str, &str)], text: &str) {
        self.start(name, attributes);
        self.text.push_str(&format!(">{}</{name}>\n", quick_xml::escape::escape(text)));
    }
}
