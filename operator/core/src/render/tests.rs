use proptest::prelude::*;
use stockade_crds::v1alpha1::{
    DiskBus, DiskFormat, DomainSpec, FirmwareKind, HypervisorKind, Machine, MachineDisk,
    MachineNetwork, Reclaim, VmReference, Want,
};

use super::*;

fn disk(name: &str, path: &str) -> MachineDisk {
    MachineDisk {
        name: name.into(),
        storage: "vms".into(),
        path: path.into(),
        format: DiskFormat::Raw,
        bus: DiskBus::Virtio,
        read_only: false,
        create: None,
        size_bytes: 0,
        reclaim: Reclaim::Retain,
    }
}

fn order() -> DomainSpec {
    DomainSpec {
        vm: VmReference {
            namespace: "shop".into(),
            name: "db".into(),
            uid: "6a1b2c3d-0000-4000-8000-000000000001".into(),
        },
        host_uid: "host-1".into(),
        boot_id: "boot-1".into(),
        epoch: 7,
        order_id: 1,
        want: Want::Running,
        settled: Vec::new(),
        settled_through: 6,
        paused: false,
        grace_seconds: 30,
        reset: None,
        migration: None,
        adopt: false,
        delete_disks: Vec::new(),
        machine: Machine {
            cores: 2,
            memory_mib: 512,
            disks: vec![disk("root", "/srv/vms/shop/db.raw"), {
                MachineDisk { read_only: true, ..disk("tools", "/srv/vms/shop/a'<b>&c.raw") }
            }],
            networks: vec![MachineNetwork {
                mac: "52:54:00:00:00:01".into(),
                bridge: Some("br0".into()),
                network: None,
            }],
            ..Machine::default()
        },
    }
}

#[test]
fn what_is_rendered_reads_back_with_its_epoch_and_its_writable_disks() {
    let facts = HostRenderFacts { emulated: true, seed: Some("/var/lib/seed.iso".into()) };
    let view = read_domain(&domain_xml(&order(), &facts)).unwrap();
    assert_eq!(view.name, "shop.db");
    assert_eq!(view.uuid, order().vm.uid);
    assert_eq!(view.epoch, Some(7));
    assert_eq!(view.boot_id, "boot-1");
    assert_eq!((view.cores, view.memory_mib), (2, 512));
    assert_eq!(view.writable(), ["/srv/vms/shop/db.raw"]);
    assert_eq!(view.disks[1].path, "/srv/vms/shop/a'<b>&c.raw");
    assert_eq!(view.disks.len(), 3);
}

#[test]
fn no_disk_is_opened_through_the_page_cache() {
    let xml = domain_xml(&order(), &HostRenderFacts::default());
    let disks = xml.matches("<disk type='file' device='disk'>").count();
    assert_eq!(xml.matches("cache='none'").count(), disks);
    assert!(!xml.contains("io_uring"));
}

#[test]
fn a_start_that_fails_gives_no_writable_disk_back_to_root() {
    let xml = domain_xml(&order(), &HostRenderFacts::default());
    let after = xml.split("<source file='/srv/vms/shop/db.raw'>").nth(1).unwrap();
    let source = after.split("</source>").next().unwrap();
    assert_eq!(source.trim(), "<seclabel model='dac' relabel='no'/>");
}

/// Each is one that libvirt has taken, or the kind of one: what changes here changes every VM's next
/// start, and what a running one can move to.
#[test]
fn machines_of_each_kind_are_rendered_as_ever() {
    let mut bios = order();
    let machine = &mut bios.machine;
    machine.machine_type = "pc-q35-7.2".into();
    machine.cpu_model = "Nehalem".into();
    machine.disks.push(MachineDisk {
        format: DiskFormat::Qcow2,
        bus: DiskBus::Sata,
        ..disk("data", "/srv/vms/shop/data.qcow2")
    });
    (machine.serial, machine.vnc) = (true, true);
    let seed = Some("/var/lib/stockade/seeds/db.iso".into());
    insta::assert_snapshot!("bios", domain_xml(&bios, &HostRenderFacts { emulated: false, seed }));

    let mut uefi = order();
    uefi.machine.firmware = FirmwareKind::UEFI;
    uefi.machine.disks.truncate(1);
    uefi.machine.networks[0].bridge = None;
    uefi.machine.networks[0].network = Some("lan".into());
    let emulated = HostRenderFacts { emulated: true, seed: None };
    insta::assert_snapshot!("uefi", domain_xml(&uefi, &emulated));

    let mut xen = order();
    xen.machine.hypervisor = HypervisorKind::Xen;
    xen.machine.disks[0].bus = DiskBus::Ide;
    let seed = Some("/var/lib/stockade/seeds/db.iso".into());
    insta::assert_snapshot!("xen", domain_xml(&xen, &HostRenderFacts { emulated: false, seed }));
}

/// Text that would be something else if it were not written as text.
fn hostile() -> impl Strategy<Value = String> {
    let words = [
        "'",
        "\"",
        "<",
        ">",
        "&",
        "]]>",
        "<![CDATA[",
        "<!--",
        "-->",
        "<?x",
        "?>",
        "&lt;",
        "&#60;",
        "&#0;",
        "&x;",
        "/>",
        "</disk>",
        "</domain>",
        "'/><source file='/etc/shadow'/>",
        "<!DOCTYPE",
    ];
    // What no XML can hold is refused as a whole, by the schema and by libvirt.
    let plain = |c: &char| !c.is_control() && !matches!(c, '\u{fffe}' | '\u{ffff}');
    let letter = any::<char>().prop_filter("a letter of XML", plain).prop_map(String::from);
    let part = prop_oneof![prop::sample::select(words.to_vec()).prop_map(str::to_owned), letter];
    prop::collection::vec(part, 0..8).prop_map(|parts| format!("x{}x", parts.concat()))
}

fn elements(xml: &str) -> usize {
    let document = roxmltree::Document::parse(xml).unwrap();
    document.descendants().filter(roxmltree::Node::is_element).count()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    #[test]
    fn text_of_users_can_not_break_out_of_its_place(
        (path, name, bridge, model) in (hostile(), hostile(), hostile(), hostile()),
        (serial, seed, boot) in (hostile(), hostile(), hostile()),
    ) {
        let mut order = order();
        order.machine.firmware = FirmwareKind::UEFI;
        order.machine.cpu_model = "model".into();
        let facts = |seed: &str| HostRenderFacts { emulated: false, seed: Some(seed.to_owned()) };
        let usual = elements(&domain_xml(&order, &facts("/seed")));
        order.machine.disks[0].path.clone_from(&path);
        order.machine.disks[0].name.clone_from(&serial);
        order.machine.networks[0].bridge = Some(bridge.clone());
        order.machine.cpu_model.clone_from(&model);
        order.vm.name.clone_from(&name);
        order.boot_id.clone_from(&boot);
        let xml = domain_xml(&order, &facts(&seed));
        prop_assert_eq!(elements(&xml), usual);
        let view = read_domain(&xml).unwrap();
        let paths: Vec<_> = view.disks.iter().map(|disk| disk.path.as_str()).collect();
        prop_assert_eq!(paths, [path.as_str(), "/srv/vms/shop/a'<b>&c.raw", seed.as_str()]);
        prop_assert_eq!(&view.variables, &format!("{path}.nvram"));
        prop_assert_eq!(&view.name, &format!("shop.{name}"));
        prop_assert_eq!((&view.cpu_model, &view.boot_id), (&model, &boot));
        prop_assert_eq!((&view.uuid, view.epoch), (&order.vm.uid, Some(7)));
        let document = roxmltree::Document::parse(&xml).unwrap();
        let text = |name: &str, attribute: &str| {
            let mut found = document.descendants().filter(|node| node.has_tag_name(name));
            let node = found.find(|node| attribute.is_empty() || node.has_attribute(attribute));
            let node = node.unwrap();
            node.attribute(attribute).or_else(|| node.text()).unwrap_or_default().to_owned()
        };
        prop_assert_eq!(text("source", "bridge"), bridge);
        prop_assert_eq!(text("serial", ""), serial);
        let moved = read_domain(&with_epoch(&xml, 7, 8).unwrap()).unwrap();
        prop_assert_eq!(moved, DomainView { epoch: Some(8), ..view });
    }
}

#[test]
fn a_move_hands_over_the_same_xml_with_the_targets_epoch() {
    let xml = domain_xml(&order(), &HostRenderFacts::default());
    let moved = with_epoch(&xml, 7, 8).unwrap();
    assert_eq!(read_domain(&moved).unwrap().epoch, Some(8));
    assert_eq!(with_epoch(&moved, 8, 7).unwrap(), xml);
    assert_eq!(with_epoch(&xml, 6, 8), None);
}

#[test]
fn a_foreign_domain_has_no_epoch_and_a_spoilt_one_is_no_foreign_domain() {
    let foreign = "<domain><name>x</name><uuid>u</uuid><vcpu current='1'>4</vcpu>\
                   <memory>1048576</memory><currentMemory unit='KiB'>524288</currentMemory>\
                   <metadata><domain epoch='3'/></metadata></domain>";
    let view = read_domain(foreign).unwrap();
    assert_eq!(view.epoch, None);
    assert_eq!((view.cores, view.memory_mib, view.max_memory_mib), (1, 512, 1024));
    let spoilt = domain_xml(&order(), &HostRenderFacts::default()).replace("'7'", "'seven'");
    assert_eq!(read_domain(&spoilt), Err(ReadError::Epoch("seven".into())));
}
