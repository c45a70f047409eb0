//! The protocol, line by line.

use std::collections::BTreeMap;

use proptest::prelude::*;
use stockade_crds::v1alpha1::*;

use super::decide::{ABSENT, REASON_WAIT, START_WAIT, UNDEAD, decide};
use super::observed::{Order, VmMemory};
use super::types::*;
use super::*;

pub(super) const UID: &str = "u1";
const DISK: &str = "/vms/a.qcow2";

pub(super) fn order(epoch: i64, want: Want) -> DomainSpec {
    let disk = MachineDisk {
        name: "root".into(),
        storage: "vms".into(),
        path: DISK.into(),
        format: DiskFormat::Qcow2,
        bus: DiskBus::Virtio,
        read_only: false,
        create: None,
        size_bytes: 0,
        reclaim: Reclaim::Retain,
    };
    DomainSpec {
        vm: VmReference { namespace: "shop".into(), name: "db".into(), uid: UID.into() },
        host_uid: "h1".into(),
        boot_id: "b1".into(),
        epoch,
        order_id: 1,
        want,
        settled: Vec::new(),
        settled_through: 0,
        paused: false,
        grace_seconds: 60,
        reset: None,
        migration: None,
        adopt: false,
        delete_disks: Vec::new(),
        machine: Machine { cores: 1, memory_mib: 512, disks: vec![disk], ..Machine::default() },
    }
}

pub(super) fn world(
    spec: Option<DomainSpec>,
    vm: Option<JournalVm>,
    live: Option<LiveDomain>,
) -> Observed {
    let orders =
        spec.map(|spec| (UID.to_owned(), Order { object_uid: "o".into(), spec, status: None }));
    Observed {
        host_uid: "h1".into(),
        boot_id: "b1".into(),
        journal: Some(JournalState {
            vms: vm.map(|vm| (UID.to_owned(), vm)).into_iter().collect(),
            ..JournalState::default()
        }),
        live: Some(live.map(|d| (UID.to_owned(), d)).into_iter().collect()),
        orders: Some(orders.into_iter().collect()),
        storages: vec![StorageReport { name: "vms".into(), ready: true, message: String::new() }],
        hook_ready: true,
        ..Observed::default()
    }
}

pub(super) fn live(epoch: i64, state: LiveState) -> LiveDomain {
    LiveDomain {
        name: "shop.db".into(),
        uuid: UID.into(),
        epoch,
        state,
        disks: vec![DISK.into()],
        cores: 1,
        memory_mib: 512,
    }
}

pub(super) fn ran(epoch: i64) -> JournalVm {
    JournalVm {
        epoch,
        boot_id: "b1".into(),
        launched: true,
        returned: true,
        disks: vec![DISK.into()],
        ..JournalVm::default()
    }
}

pub(super) fn gone(o: &mut Observed) -> &mut VmMemory {
    let memory = o.memory.entry(UID.into()).or_default();
    memory.presence = Presence::Gone;
    memory.missing_since = Some(0);
    memory
}

pub(super) fn only(o: &Observed, now: u64) -> Option<HostAction> {
    decide(o, now).into_iter().next().map(|(_, action)| action)
}

#[test]
fn a_new_epoch_is_started() {
    assert_eq!(only(&world(Some(order(1, Want::Running)), None, None), 0), Some(HostAction::Start));
}

#[test]
fn an_attempt_that_was_cut_off_before_its_launch_goes_on() {
    let open = JournalVm { epoch: 1, boot_id: "b1".into(), open: true, ..JournalVm::default() };
    let o = world(Some(order(1, Want::Running)), Some(open), None);
    assert_eq!(only(&o, 0), Some(HostAction::Start));
}

#[test]
fn nothing_is_started_without_a_journal_or_a_list() {
    let mut o = world(Some(order(1, Want::Running)), None, None);
    o.journal = None;
    assert_eq!(only(&o, u64::MAX), None);
    let mut o = world(Some(order(1, Want::Running)), None, None);
    o.live = None;
    assert_eq!(only(&o, u64::MAX), None);
}

#[test]
fn an_order_for_another_machine_is_not_obeyed() {
    let mut spec = order(1, Want::Running);
    spec.host_uid = "h2".into();
    assert_eq!(only(&world(Some(spec), None, None), 0), None);
}

#[test]
fn only_what_is_locked_there_ends_with_a_lockspace() {
    let unlocked = |storage: &str, read_only| {
        let mut spec = order(1, Want::Running);
        spec.machine.disks[0].read_only = read_only;
        let mut o = world(Some(spec), Some(ran(1)), Some(live(1, LiveState::Running)));
        o.unlocked = [storage.to_owned()].into();
        only(&o, 0)
    };
    assert_eq!(unlocked("vms", false), Some(HostAction::Abandon { epoch: 1 }));
    assert_eq!(unlocked("others", false), None);
    assert_eq!(unlocked("vms", true), None, "what it reads is not locked");
}

#[test]
fn what_lost_its_storage_is_killed_though_the_daemon_hangs_and_said_not_to_end() {
    let mut o = world(Some(order(1, Want::Running)), Some(ran(1)), None);
    o.live = None;
    gone(&mut o).presence = Presence::Present;
    assert_eq!(only(&o, 0), None);
    o.lost = ["vms".to_owned()].into();
    assert_eq!(only(&o, 0), Some(HostAction::Abandon { epoch: 1 }));
    let memory = gone(&mut o);
    memory.presence = Presence::Present;
    memory.kill_asked = Some(0);
    assert_eq!(status_of(&o, UID, UNDEAD), None, "nobody asked for its end");
    gone(&mut o).storage_lost = true;
    o.memory.get_mut(UID).unwrap().presence = Presence::Present;
    assert_eq!(status_of(&o, UID, UNDEAD).unwrap().state, DomainState::StopFailed);
}

#[test]
fn an_order_for_another_boot_is_only_released() {
    let mut spec = order(1, Want::Running);
    spec.boot_id = "b0".into();
    let o = world(Some(spec.clone()), None, None);
    assert!(matches!(only(&o, 0), Some(HostAction::Void { epoch: 1, end: End::Void, .. })));
    let old = JournalVm { boot_id: "b0".into(), ..ran(1) };
    let mut o = world(Some(spec), Some(old), None);
    gone(&mut o);
    let release = HostAction::Release { epoch: 1, end: End::HostRestarted, history: true };
    assert_eq!(only(&o, 0), Some(release));
}

#[test]
fn a_lower_epoch_than_the_journals_is_refused() {
    let vm = JournalVm { released: true, end: Some(End::Stopped), ..ran(5) };
    let o = world(Some(order(4, Want::Running)), Some(vm), None);
    assert_eq!(only(&o, 0), None);
    let status = status_of(&o, UID, 0).expect("said");
    assert_eq!(status.highest_record, 5);
    assert!(status.message.contains("refused"), "{}", status.message);
}

#[test]
fn an_epoch_that_ended_is_never_started_again() {
    let vm = JournalVm { released: true, end: Some(End::Crashed), ..ran(1) };
    let o = world(Some(order(1, Want::Running)), Some(vm), None);
    assert_eq!(only(&o, 1_000_000), None);
    let status = status_of(&o, UID, 0).expect("said");
    assert_eq!(
        (status.state, status.end, status.released),
        (DomainState::Ended, Some(End::Crashed), true)
    );
}

#[test]
fn a_start_waits_for_its_storage_and_is_refused_in_the_end() {
    let mut o = world(Some(order(1, Want::Running)), None, None);
    o.storages[0].ready = false;
    o.memory.entry(UID.into()).or_default().first_seen = (1, 0);
    assert_eq!(only(&o, START_WAIT - 1), None);
    assert!(matches!(only(&o, START_WAIT), Some(HostAction::Void { end: End::Refused, .. })));
}

#[test]
fn a_guest_that_shut_down_is_released_as_such_and_a_killed_one_as_crashed() {
    for (reason, end) in [
        (StopReason::Shutdown, End::GuestShutdown),
        (StopReason::Crashed, End::Crashed),
        (StopReason::Destroyed, End::Crashed),
    ] {
        let mut o = world(Some(order(1, Want::Running)), Some(ran(1)), None);
        gone(&mut o).stopped = Some(reason);
        assert_eq!(only(&o, 0), Some(HostAction::Release { epoch: 1, end, history: false }));
    }
}

#[test]
fn the_hypervisor_gets_a_moment_to_say_why() {
    let mut o = world(Some(order(1, Want::Running)), Some(ran(1)), None);
    gone(&mut o);
    assert_eq!(only(&o, REASON_WAIT - 1), None);
    assert!(matches!(only(&o, REASON_WAIT), Some(HostAction::Release { end: End::Crashed, .. })));
}

#[test]
fn nothing_is_released_while_its_process_may_be_there() {
    for presence in [Presence::Present, Presence::Unknown] {
        let mut o = world(Some(order(1, Want::Stopped)), Some(ran(1)), None);
        gone(&mut o).presence = presence;
        assert!(!matches!(only(&o, 1_000_000), Some(HostAction::Release { .. })));
    }
}

#[test]
fn a_start_of_unknown_result_is_closed_then_waited_for_then_settled() {
    let vm = JournalVm { open: true, returned: false, ..ran(1) };
    let mut o = world(Some(order(1, Want::Running)), Some(vm), None);
    gone(&mut o);
    assert_eq!(only(&o, 10_000), Some(HostAction::Close));
    let vm = JournalVm { returned: false, ..ran(1) };
    let mut o = world(Some(order(1, Want::Running)), Some(vm.clone()), None);
    gone(&mut o);
    assert_eq!(only(&o, ABSENT - 1), None);
    assert_eq!(only(&o, ABSENT), Some(HostAction::Settle));
    o.live = None;
    assert_eq!(only(&o, 1_000_000), None);
}

#[test]
fn a_stop_asks_waits_for_the_grace_and_kills() {
    let o =
        || world(Some(order(1, Want::Stopped)), Some(ran(1)), Some(live(1, LiveState::Running)));
    assert_eq!(only(&o(), 0), Some(HostAction::Shutdown));
    let mut asked = o();
    asked.memory.entry(UID.into()).or_default().shutdown_asked = Some(0);
    assert_eq!(only(&asked, 59_999), None);
    assert_eq!(only(&asked, 60_000), Some(HostAction::Kill { epoch: 1 }));
}

#[test]
fn a_kill_kills_at_once_even_unlisted() {
    let o = world(Some(order(1, Want::Killed)), Some(ran(1)), Some(live(1, LiveState::Running)));
    assert_eq!(only(&o, 0), Some(HostAction::Kill { epoch: 1 }));
    let mut o = world(Some(order(1, Want::Killed)), Some(ran(1)), None);
    o.live = None;
    gone(&mut o).presence = Presence::Present;
    assert_eq!(only(&o, 0), Some(HostAction::Kill { epoch: 1 }));
}

#[test]
fn a_stop_order_for_what_never_ran_makes_it_void() {
    let o = world(Some(order(3, Want::Stopped)), None, None);
    assert!(matches!(only(&o, 0), Some(HostAction::Void { epoch: 3, end: End::Void, .. })));
}

#[test]
fn a_missing_order_is_no_stop_order() {
    let o = world(None, Some(ran(1)), Some(live(1, LiveState::Running)));
    assert_eq!(only(&o, 1_000_000), None);
}

#[test]
fn a_running_domain_converges_step_by_step() {
    let mut spec = order(1, Want::Running);
    let at = |spec: &DomainSpec, state| {
        only(&world(Some(spec.clone()), Some(ran(1)), Some(live(1, state))), 0)
    };
    assert_eq!(at(&spec, LiveState::Running), None);
    assert_eq!(at(&spec, LiveState::Paused), Some(HostAction::Resume));
    spec.reset = Some("r1".into());
    assert_eq!(at(&spec, LiveState::Running), Some(HostAction::Reset { id: "r1".into() }));
    spec.reset = None;
    spec.machine.cores = 2;
    let resize = HostAction::Resize { cores: 2, memory_mib: 512 };
    assert_eq!(at(&spec, LiveState::Running), Some(resize));
    spec.paused = true;
    assert_eq!(at(&spec, LiveState::Running), Some(HostAction::Suspend));
}

#[test]
fn memory_that_the_guest_does_not_give_back_is_had_at_the_next_start() {
    let mut o =
        world(Some(order(1, Want::Running)), Some(ran(1)), Some(live(1, LiveState::Running)));
    o.orders.as_mut().unwrap().get_mut(UID).unwrap().spec.machine.memory_mib = 384;
    let pending = |o: &Observed| status::status_of(o, UID, 0).unwrap().pending_restart;
    assert_eq!(only(&o, 0), Some(HostAction::Resize { cores: 1, memory_mib: 384 }));
    assert!(pending(&o).is_empty(), "it was not even asked for");
    let memory = o.memory.entry(UID.into()).or_default();
    memory.resized = Some((1, 384, LiveChange::Applied));
    assert_eq!(only(&o, 0), None, "it was asked for");
    assert_eq!(pending(&o), ["memoryMib"]);
    let given = LiveDomain { memory_mib: 384, ..live(1, LiveState::Running) };
    o.live = Some(BTreeMap::from([(UID.into(), given)]));
    assert!(pending(&o).is_empty());
}

#[test]
fn a_boot_certified_dead_suspends_and_never_resumes() {
    let mut o =
        world(Some(order(1, Want::Running)), Some(ran(1)), Some(live(1, LiveState::Running)));
    o.suspended = true;
    assert_eq!(only(&o, 0), Some(HostAction::Suspend));
    o.live = Some(BTreeMap::from([(UID.into(), live(1, LiveState::Paused))]));
    assert_eq!(only(&o, 0), None);
}

pub(super) fn record(epoch: i64, state: RecordState) -> OwnerRecord {
    OwnerRecord {
        cluster_id: "c".into(),
        vm_uid: UID.into(),
        epoch,
        host_uid: "h9".into(),
        boot_id: "b9".into(),
        state,
    }
}

fn dead(epoch: i64, boot: &str) -> SettledEpoch {
    let boot = BootReference { host_uid: "h9".into(), boot_id: boot.into() };
    SettledEpoch { epoch, dead_boot: Some(boot) }
}

fn verdict(records: &[OwnerRecord], spec: &DomainSpec) -> Result<Verdict, Refusal> {
    judge(records, spec, "c", false, Guards::default())
}

#[test]
fn a_held_record_needs_its_boots_death_or_its_release_named() {
    let mut spec = order(3, Want::Running);
    let held = [record(2, RecordState::Held)];
    assert!(verdict(&held, &spec).is_err());
    spec.settled_through = 2;
    assert!(verdict(&held, &spec).is_err(), "a number alone frees no held record");
    spec.settled = vec![dead(2, "b8")];
    assert!(verdict(&held, &spec).is_err(), "another boot's death does not count");
    spec.settled = vec![dead(2, "b9")];
    assert!(verdict(&held, &spec).is_ok());
    spec.settled = vec![SettledEpoch { epoch: 2, dead_boot: None }];
    assert!(verdict(&held, &spec).is_ok());
    let other = [OwnerRecord { vm_uid: "u2".into(), ..record(2, RecordState::Held) }];
    assert!(verdict(&other, &spec).is_err(), "our release says nothing of another VM");
}

#[test]
fn newer_and_equal_records_refuse() {
    let spec = order(3, Want::Running);
    for state in [RecordState::Held, RecordState::Released, RecordState::Void] {
        assert!(verdict(&[record(4, state)], &spec).is_err());
        assert!(verdict(&[record(3, state)], &spec).is_err());
    }
}

#[test]
fn lower_epochs_without_a_record_are_made_void_above_the_last_settled() {
    let mut spec = order(6, Want::Running);
    spec.settled_through = 2;
    let verdict = verdict(&[record(4, RecordState::Released)], &spec).expect("allowed");
    assert_eq!(verdict.voids, [3, 5]);
    assert!(verdict.ran);
}

#[test]
fn only_void_records_let_a_disk_be_made() {
    let spec = order(3, Want::Running);
    let of = |state| verdict(&[record(2, state)], &spec).expect("allowed").ran;
    assert!(!of(RecordState::Void));
    assert!(of(RecordState::Released));
}

proptest! {
    #[test]
    fn a_start_is_only_ever_decided_for_an_epoch_that_never_ran(
        epoch in 1_i64..5, known in 0_i64..5, launched: bool, ended: bool, released: bool,
        listed in 0_i64..5, boot: bool, now in 0_u64..200_000,
    ) {
        let mut spec = order(epoch, Want::Running);
        if boot { spec.boot_id = "b0".into(); }
        let vm = (known > 0).then(|| JournalVm {
            epoch: known, boot_id: "b1".into(), launched,
            end: ended.then_some(End::Crashed), released, ..JournalVm::default()
        });
        let listed = (listed > 0).then(|| live(listed, LiveState::Running));
        let mut o = world(Some(spec), vm, listed.clone());
        gone(&mut o);
        let actions = decide(&o, now);
        prop_assert!(actions.len() <= 1);
        if actions.iter().any(|(_, a)| *a == HostAction::Start) {
            prop_assert!(!boot && listed.is_none());
            prop_assert!(known < epoch || (known == epoch && !launched && !ended));
        }
    }

    #[test]
    fn no_start_beside_a_higher_or_unsettled_record(
        epoch in 1_i64..6, at in 1_i64..8, state in 0_u8..4, named: bool,
    ) {
        let state = [RecordState::Held, RecordState::Released, RecordState::Void,
            RecordState::Unreadable][usize::from(state)];
        let mut spec = order(epoch, Want::Running);
        if named { spec.settled = vec![dead(at, "b9")]; }
        let free = matches!(state, RecordState::Released | RecordState::Void) || named;
        let allowed = verdict(&[record(at, state)], &spec).is_ok();
        prop_assert_eq!(allowed, at < epoch && free);
    }
}
