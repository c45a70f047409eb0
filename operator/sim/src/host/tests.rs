use super::*;
use std::collections::BTreeMap;
use std::time::Duration;

use stockade_crds::v1alpha1::{
    AgentStorage, DiskBus, DiskFormat, DomainSpec, FenceAction, FenceDeviceSpec, LockKind, Machine,
    MachineDisk, Reclaim, SelfFence, StorageKind, VmReference, Want,
};
use stockade_host::ports::{
    FenceCall, FenceRunner, JournalState, JournalVm, MigrateRequest, Power, Presence, StorageServer,
};

use crate::oracle::Rule;
use crate::world::event::What;
use crate::world::model::{Device, DeviceMode, Net, Store, WatchdogKind, Way};
use crate::world::power::Build;

const DISK: &str = "/srv/vms/default/101.qcow2";

async fn world() -> Arc<Sim> {
    let sim = Sim::new(7);
    {
        let mut w = sim.lock();
        w.stores.insert(
            "vms".to_owned(),
            Store {
                name: "vms".to_owned(),
                kind: StorageKind::NFS,
                lease_ms: 90_000,
                obeys: true,
                ..Store::default()
            },
        );
        w.make_disk("vms", DISK);
        w.fault_beyond_api = true;
        for name in ["h1", "h2"] {
            let device = format!("bmc-{name}");
            w.build(Build {
                name: name.to_owned(),
                cpu: 16,
                memory_mib: 65_536,
                boot_ms: 60_000,
                watchdog: WatchdogKind::Reset,
                levels: vec![vec![device.clone()]],
            });
            let wired = BTreeMap::from([(name.to_owned(), "1".to_owned())]);
            w.devices.insert(device.clone(), Device { name: device, wired, ..Device::default() });
            w.boot_now(name);
        }
    }
    for name in ["h1", "h2"] {
        let storage = AgentStorage { name: "vms".to_owned(), ..AgentStorage::default() };
        assert!(ports(&sim, name).storage.ensure(&storage).await.ready);
    }
    sim
}

fn ports(sim: &Arc<Sim>, host: &str) -> AgentPorts {
    agent_ports(sim, host, &Gate::open())
}

fn order(sim: &Arc<Sim>, host: &str, epoch: i64, lock: Option<LockKind>) -> DomainSpec {
    let w = sim.lock();
    let m = w.machines.get(host).unwrap();
    DomainSpec {
        vm: VmReference {
            namespace: "default".to_owned(),
            name: "101".to_owned(),
            uid: "u101".to_owned(),
        },
        host_uid: m.uid.clone(),
        boot_id: m.boot_id.clone(),
        epoch,
        order_id: epoch,
        want: Want::Running,
        settled: Vec::new(),
        settled_through: 0,
        paused: false,
        grace_seconds: 60,
        reset: None,
        migration: None,
        adopt: false,
        delete_disks: Vec::new(),
        machine: Machine {
            cores: 1,
            memory_mib: 1024,
            lock,
            disks: vec![MachineDisk {
                name: "disk0".to_owned(),
                storage: "vms".to_owned(),
                path: DISK.to_owned(),
                format: DiskFormat::Qcow2,
                bus: DiskBus::Virtio,
                read_only: false,
                create: None,
                size_bytes: 0,
                reclaim: Reclaim::Retain,
            }],
            ..Machine::default()
        },
    }
}

/// Opens the order in the host's journal, as an agent does before a start.
async fn open(sim: &Arc<Sim>, host: &str, order: &DomainSpec) {
    let vm = JournalVm {
        epoch: order.epoch,
        boot_id: order.boot_id.clone(),
        open: true,
        disks: order.machine.disks.iter().map(|disk| disk.path.clone()).collect(),
        ..JournalVm::default()
    };
    let vms = BTreeMap::from([(order.vm.uid.clone(), vm)]);
    let state = JournalState { vms, ..JournalState::default() };
    ports(sim, host).journal.store(&state).await.unwrap();
}

async fn start(
    sim: &Arc<Sim>,
    host: &str,
    epoch: i64,
    lock: Option<LockKind>,
) -> Result<(), String> {
    let order = order(sim, host, epoch, lock);
    open(sim, host, &order).await;
    let started = ports(sim, host).hypervisor.start(&order).await;
    started.map(|_| ()).map_err(|e| e.to_string())
}

async fn seconds(s: u64) {
    tokio::time::sleep(Duration::from_secs(s)).await;
}

fn broken(sim: &Arc<Sim>) -> Vec<Rule> {
    sim.lock().oracle.violations.iter().map(|v| v.rule).collect()
}

fn call(device: &str, action: FenceAction) -> FenceCall {
    FenceCall {
        device: device.to_owned(),
        spec: FenceDeviceSpec { timeout_seconds: 20, ..FenceDeviceSpec::default() },
        plug: "1".to_owned(),
        secret: BTreeMap::new(),
        action,
    }
}

const LOCK: Option<LockKind> = Some(LockKind::Virtlockd);

#[tokio::test(start_paused = true)]
async fn the_hook_refuses_what_the_journal_has_not_opened() {
    let sim = world().await;
    let order = order(&sim, "h1", 1, LOCK);
    let refused = ports(&sim, "h1").hypervisor.start(&order).await.unwrap_err();
    assert!(refused.to_string().contains("hook"), "{refused}");
    start(&sim, "h1", 1, LOCK).await.unwrap();
    assert_eq!(sim.lock().executing("u101"), ["h1"]);
}

#[tokio::test(start_paused = true)]
async fn a_lock_stops_the_second_copy_and_the_oracle_sees_one_without_it() {
    let sim = world().await;
    start(&sim, "h1", 1, LOCK).await.unwrap();
    let refused = start(&sim, "h2", 2, LOCK).await.unwrap_err();
    assert!(refused.contains("held by h1"), "{refused}");
    assert_eq!(broken(&sim), []);
    start(&sim, "h2", 3, None).await.unwrap();
    seconds(3).await;
    let rules = broken(&sim);
    for rule in [Rule::OneCopy, Rule::OneWriter, Rule::SettledBeforeStart] {
        assert!(rules.contains(&rule), "{rule:?} in {rules:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_double_run_made_by_virsh_is_excused_but_told() {
    let sim = world().await;
    start(&sim, "h1", 1, LOCK).await.unwrap();
    let order = order(&sim, "h2", 1, LOCK);
    assert!(sim.lock().virsh_start("h2", &order, false).is_err());
    sim.lock().virsh_start("h2", &order, true).unwrap();
    assert_eq!(broken(&sim), []);
    assert!(!sim.lock().oracle.excused.is_empty());
}

#[tokio::test(start_paused = true)]
async fn writes_that_waited_in_a_cut_client_are_seen_unless_it_is_denied() {
    for deny in [false, true] {
        let sim = world().await;
        start(&sim, "h1", 1, None).await.unwrap();
        sim.lock().cut("h1", &[Net::Storage], &[Way::In, Way::Out], true);
        seconds(5).await;
        let h1 = ports(&sim, "h1");
        h1.hypervisor.kill("u101", 1).await.unwrap();
        assert_eq!(h1.hypervisor.presence("u101", 1).await, Presence::Gone);
        assert!(!h1.storage.drain(DISK).await.unwrap());
        let server = SimServer { sim: sim.clone(), gate: Gate::open() };
        let boot = sim.lock().machines.get("h1").unwrap().boot_id.clone();
        if deny {
            server.deny("vms", "h1", &boot).await.unwrap();
        }
        start(&sim, "h2", 2, None).await.unwrap();
        seconds(3).await;
        sim.lock().cut("h1", &[Net::Storage], &[Way::In, Way::Out], false);
        // A client sends again after some seconds.
        seconds(8).await;
        assert_eq!(broken(&sim).contains(&Rule::OneWriter), !deny);
    }
}

#[tokio::test(start_paused = true)]
async fn a_dead_hosts_lock_lasts_its_lease_unless_it_is_broken() {
    let sim = world().await;
    start(&sim, "h1", 1, LOCK).await.unwrap();
    sim.lock().switch_off("h1");
    assert!(start(&sim, "h2", 2, LOCK).await.is_err());
    let server = SimServer { sim: sim.clone(), gate: Gate::open() };
    let boot = sim.lock().machines.get("h1").unwrap().boot_id.clone();
    server.deny("vms", "h1", &boot).await.unwrap();
    server.break_locks("vms", "h1", &boot).await.unwrap();
    start(&sim, "h2", 3, LOCK).await.unwrap();
    assert_eq!(broken(&sim), []);
    assert!(sim.lock().events.iter().any(|e| e.what == What::LockBreak));
    let other = world().await;
    start(&other, "h1", 1, LOCK).await.unwrap();
    other.lock().switch_off("h1");
    seconds(95).await;
    start(&other, "h2", 2, LOCK).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_lock_broken_of_a_living_host_is_a_violation_but_its_writes_end() {
    let sim = world().await;
    start(&sim, "h1", 1, LOCK).await.unwrap();
    let server = SimServer { sim: sim.clone(), gate: Gate::open() };
    let boot = sim.lock().machines.get("h1").unwrap().boot_id.clone();
    server.break_locks("vms", "h1", &boot).await.unwrap();
    assert!(broken(&sim).contains(&Rule::BrokenOfDead));
    assert!(broken(&sim).contains(&Rule::DeniedBeforeBreak));
    start(&sim, "h2", 2, LOCK).await.unwrap();
    seconds(5).await;
    assert!(!broken(&sim).contains(&Rule::OneWriter));
}

#[tokio::test(start_paused = true)]
async fn a_live_move_takes_the_lock_along_and_runs_once() {
    let sim = world().await;
    start(&sim, "h1", 1, LOCK).await.unwrap();
    let target = order(&sim, "h2", 2, LOCK);
    open(&sim, "h2", &target).await;
    ports(&sim, "h2").hypervisor.prepare_incoming(&target).await.unwrap();
    let request = MigrateRequest {
        vm_uid: "u101".to_owned(),
        name: "default/101".to_owned(),
        epoch: 1,
        target_epoch: 2,
        peer: "h2".to_owned(),
        peer_address: String::new(),
        bandwidth_mib_per_second: 0,
        downtime_limit_milliseconds: 0,
        auto_converge: false,
        parallel_connections: 0,
        leave_paused: false,
    };
    ports(&sim, "h1").hypervisor.migrate(&request).await.unwrap();
    seconds(3).await;
    let w = sim.lock();
    assert_eq!(w.executing("u101"), ["h2"]);
    assert_eq!(w.lock_holder("u101").as_deref(), Some("h2"));
    let order: Vec<What> = w.events.iter().map(|e| e.what).collect();
    let place = |what| order.iter().rposition(|w| *w == what);
    assert!(place(What::LockTake) < place(What::Migrated));
    assert!(w.oracle.violations.is_empty(), "{:?}", w.oracle.violations);
}

#[tokio::test(start_paused = true)]
async fn a_device_cuts_and_reads_power_and_a_lying_one_is_known_to_the_oracle() {
    let sim = world().await;
    let fence = SimFence { sim: sim.clone(), gate: Gate::open() };
    start(&sim, "h1", 1, LOCK).await.unwrap();
    assert_eq!(fence.run(&call("bmc-h1", FenceAction::Status)).await, Ok(Some(Power::On)));
    assert_eq!(fence.run(&call("bmc-h1", FenceAction::Off)).await, Ok(None));
    assert_eq!(fence.run(&call("bmc-h1", FenceAction::Status)).await, Ok(Some(Power::Off)));
    assert!(sim.lock().executing("u101").is_empty());
    let first = sim.lock().machines.get("h1").unwrap().boot_id.clone();
    fence.run(&call("bmc-h1", FenceAction::On)).await.unwrap();
    seconds(61).await;
    assert_ne!(sim.lock().machines.get("h1").unwrap().boot_id, first);
    sim.lock().devices.get_mut("bmc-h2").unwrap().mode = DeviceMode::LiesOff;
    assert_eq!(fence.run(&call("bmc-h2", FenceAction::Status)).await, Ok(Some(Power::Off)));
    assert_eq!(sim.lock().lied.len(), 1);
    sim.lock().devices.get_mut("bmc-h2").unwrap().mode = DeviceMode::Timeout;
    assert!(fence.run(&call("bmc-h2", FenceAction::Status)).await.unwrap_err().is_unknown());
}

#[tokio::test(start_paused = true)]
async fn a_host_that_lost_every_path_resets_itself_and_one_path_keeps_it() {
    let sim = world().await;
    let h1 = ports(&sim, "h1");
    h1.storage.keep_beating(&["vms".to_owned()], 2, 0).await.unwrap();
    h1.watchdog.arm(&SelfFence::default(), &["vms".to_owned()]).await.unwrap();
    start(&sim, "h1", 1, LOCK).await.unwrap();
    let boot = sim.lock().machines.get("h1").unwrap().boot_id.clone();
    seconds(120).await;
    assert_eq!(sim.lock().machines.get("h1").unwrap().boot_id, boot, "the beats keep it");
    sim.lock().cut("h1", &[Net::Storage], &[Way::In, Way::Out], true);
    seconds(120).await;
    let w = sim.lock();
    assert_ne!(w.machines.get("h1").unwrap().boot_id, boot);
    let kill = w.events.iter().position(|e| e.what == What::Kill);
    let fired = w.events.iter().position(|e| e.what == What::SelfFence);
    assert!(kill.is_some() && kill < fired, "the VMs are killed before the watchdog fires");
}

#[tokio::test(start_paused = true)]
async fn a_power_cut_ends_the_agent_and_a_late_reply_never_reaches_it() {
    let sim = world().await;
    let gate = Gate::open();
    let ports = agent_ports(&sim, "h1", &gate);
    gate.kill();
    let late = tokio::time::timeout(Duration::from_secs(600), ports.hypervisor.list()).await;
    assert!(late.is_err());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_history() {
    let mut histories = Vec::new();
    for _ in 0..2 {
        let sim = world().await;
        start(&sim, "h1", 1, LOCK).await.unwrap();
        sim.lock().reset("h1");
        seconds(100).await;
        let w = sim.lock();
        histories.push(w.events.iter().map(ToString::to_string).collect::<Vec<_>>());
    }
    assert_eq!(histories[0], histories[1]);
}

#[tokio::test(start_paused = true)]
async fn a_shot_while_the_brake_holds_is_seen_unless_a_human_has_spoken() {
    for spoken in [false, true] {
        let sim = world().await;
        let fence = SimFence { sim: sim.clone(), gate: Gate::open() };
        sim.lock().storm.declared = ["h1", "h2"].map(str::to_owned).into();
        let shoot = async |host: &str| {
            sim.lock().cut(host, &[Net::Api, Net::Storage], &[Way::In, Way::Out], true);
            seconds(10).await;
            fence.run(&call(&format!("bmc-{host}"), FenceAction::Off)).await.unwrap();
        };
        shoot("h1").await;
        assert!(!broken(&sim).contains(&Rule::Brake), "one host of two may be shot");
        if spoken {
            let boot = sim.lock().machines.get("h2").unwrap().boot_id.clone();
            sim.lock().storm.confirmed.insert(("h2".to_owned(), boot));
        }
        shoot("h2").await;
        assert_eq!(broken(&sim).contains(&Rule::Brake), !spoken);
    }
}

#[tokio::test(start_paused = true)]
async fn the_brake_counts_hosts_that_are_dark_and_forgets_shots_in_time() {
    let sim = world().await;
    let fence = SimFence { sim: sim.clone(), gate: Gate::open() };
    sim.lock().storm.declared = ["h1", "h2"].map(str::to_owned).into();
    let off = async |host: &str| {
        fence.run(&call(&format!("bmc-{host}"), FenceAction::Off)).await.unwrap();
    };
    let on = |host: &str| {
        let mut world = sim.lock();
        world.switch_on(host);
    };
    off("h1").await;
    on("h1");
    seconds(600).await;
    sim.lock().panic("h2");
    seconds(10).await;
    off("h2").await;
    on("h2");
    assert!(!broken(&sim).contains(&Rule::Brake), "{:?}", broken(&sim));
    seconds(700).await;
    sim.lock().switch_off("h1");
    sim.lock().panic("h2");
    seconds(20).await;
    off("h2").await;
    assert!(broken(&sim).contains(&Rule::Brake), "h1 has been dark for 20 s");
}
