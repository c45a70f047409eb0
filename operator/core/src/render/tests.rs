use stockade_crds::v1alpha1::{
    DiskBus, DiskFormat, DomainSpec, Machine, MachineDisk, MachineNetwork, Reclaim, VmReference,
    Want,
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

#[test]
fn text_of_users_can_not_break_out_of_its_place() {
    let mut order = order();
    order.machine.disks[0].path = "/x'/><disk/>".into();
    order.vm.name = "a</name><uuid>".into();
    let view = read_domain(&domain_xml(&order, &HostRenderFacts::default())).unwrap();
    assert_eq!(view.disks[0].path, "/x'/><disk/>");
    assert_eq!(view.name, "shop.a</name><uuid>");
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
