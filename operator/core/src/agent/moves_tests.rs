//! Both sides of a live move, line by line.

use std::collections::BTreeMap;

use stockade_crds::v1alpha1::*;

use super::decide::HostAction;
use super::moves::{Arrival, Copy, CopyEnd, HANGS, Job, SILENT, SILENT_LOOKS, STALLED, Silence};
use super::records::judge;
use super::tests::{UID, gone, live, only, order, ran, record, world};
use super::types::*;
use super::{Guards, Observed, status_of};

const E: i64 = 4;

fn part(side: MigrationSide, step: MigrationStep) -> Option<MigrationOrder> {
    Some(MigrationOrder {
        id: "m1".into(),
        side,
        peer: "h9".into(),
        peer_address: "h9".into(),
        peer_epoch: if side == MigrationSide::Target { E - 1 } else { E + 1 },
        peer_boot: Some(BootReference { host_uid: "h9".into(), boot_id: "b9".into() }),
        step,
        bandwidth_mib_per_second: 0,
        downtime_limit_milliseconds: 0,
        auto_converge: false,
        parallel_connections: 0,
        completion_seconds_per_gib: 0,
        progress_seconds: 0,
    })
}

fn target(step: MigrationStep) -> DomainSpec {
    let mut spec = order(E, Want::Incoming);
    spec.migration = part(MigrationSide::Target, step);
    spec
}

fn source(step: MigrationStep) -> DomainSpec {
    let mut spec = order(E, Want::Running);
    spec.migration = part(MigrationSide::Source, step);
    spec.machine.lock = Some(LockKind::Virtlockd);
    spec
}

fn taken_in() -> JournalVm {
    JournalVm { open: true, incoming: true, returned: false, ..ran(E) }
}

fn state(o: &Observed, now: u64) -> Option<MigrationState> {
    status_of(o, UID, now).and_then(|s| s.migration).map(|m| m.state)
}

#[test]
fn a_target_gets_ready_and_its_hook_stays_open_until_it_is_told_otherwise() {
    let o = world(Some(target(MigrationStep::Prepare)), None, None);
    assert_eq!(only(&o, 0), Some(HostAction::Prepare));
    let mut o = world(Some(target(MigrationStep::Prepare)), Some(taken_in()), None);
    assert_eq!(only(&o, 1_000_000), None);
    assert_eq!(state(&o, 0), Some(MigrationState::Ready));
    o.live = Some([(UID.to_owned(), live(E, LiveState::Incoming))].into());
    assert_eq!((only(&o, 0), state(&o, 0)), (None, Some(MigrationState::Ready)));
    o.live = Some([(UID.to_owned(), live(E, LiveState::Switched))].into());
    assert_eq!((only(&o, 0), state(&o, 0)), (None, Some(MigrationState::Switched)));
    o.live = Some([(UID.to_owned(), live(E, LiveState::Running))].into());
    let runs = (Some(HostAction::Arrived), Some(MigrationState::Switched));
    assert_eq!((only(&o, 0), state(&o, 0)), runs, "the job that brings it is not over");
    o.memory.entry(UID.into()).or_default().arrival = Some(Arrival::default());
    assert_eq!(state(&o, 0), Some(MigrationState::Done));
}

#[test]
fn a_target_whose_copy_came_and_is_gone_says_so_though_nobody_told() {
    let mut o = world(Some(target(MigrationStep::Prepare)), Some(taken_in()), None);
    let memory = o.memory.entry(UID.to_owned()).or_default();
    memory.presence = Presence::Gone;
    assert_eq!(state(&o, 0), Some(MigrationState::Ready), "it has not come yet");
    o.memory.entry(UID.to_owned()).or_default().came_in = true;
    assert_eq!(state(&o, 0), Some(MigrationState::Failed));
}

#[test]
fn a_target_that_is_called_off_closes_kills_and_becomes_void_unless_it_runs() {
    let spec = target(MigrationStep::Abort);
    let here = |s| Some(live(E, s));
    let o = world(Some(spec.clone()), Some(taken_in()), here(LiveState::Incoming));
    assert_eq!(only(&o, 0), Some(HostAction::Close));
    let closed = JournalVm { open: false, ..taken_in() };
    let o = world(Some(spec.clone()), Some(closed.clone()), here(LiveState::Incoming));
    assert_eq!(only(&o, 0), Some(HostAction::Kill { epoch: E }));
    let o = world(Some(spec.clone()), Some(closed.clone()), here(LiveState::Running));
    assert_eq!(only(&o, 0), Some(HostAction::Arrived), "what is complete stays");
    let arrived = JournalVm { incoming: false, ..closed.clone() };
    let o = world(Some(spec.clone()), Some(arrived), here(LiveState::Running));
    assert_eq!(only(&o, 0), None);
    let mut o = world(Some(spec.clone()), Some(JournalVm { returned: true, ..closed }), None);
    gone(&mut o);
    let released = HostAction::Release { epoch: E, end: End::Void, history: false };
    assert_eq!(only(&o, 10_000), Some(released), "an epoch that never ran is no crash");
    let o = world(Some(spec), None, None);
    assert!(matches!(only(&o, 0), Some(HostAction::Void { end: End::Void, .. })));
}

#[test]
fn a_committed_target_that_is_paused_goes_on() {
    let spec = order(E, Want::Running);
    let closed = JournalVm { open: false, ..taken_in() };
    let o = world(Some(spec), Some(closed), Some(live(E, LiveState::Switched)));
    assert_eq!(only(&o, 0), Some(HostAction::Resume));
}

#[test]
fn a_move_is_handed_to_the_hypervisor_at_most_once() {
    let running = Some(live(E, LiveState::Running));
    let o = world(Some(source(MigrationStep::Copy)), Some(ran(E)), running.clone());
    assert_eq!(only(&o, 0), Some(HostAction::Migrate { id: "m1".into() }));
    assert_eq!(state(&o, 0), Some(MigrationState::Ready));
    // The agent was restarted in the middle: whether a job goes on is looked at first.
    let begun = JournalVm { moving: Some("m1".into()), ..ran(E) };
    let mut o = world(Some(source(MigrationStep::Copy)), Some(begun), running);
    assert_eq!((only(&o, 0), state(&o, 0)), (None, Some(MigrationState::Copying)));
    o.memory.entry(UID.into()).or_default().job = Some(Job::default());
    assert_eq!((only(&o, 0), state(&o, 0)), (None, Some(MigrationState::Failed)));
    o.live = Some([(UID.to_owned(), live(E, LiveState::Switched))].into());
    assert_eq!(
        (only(&o, 0), state(&o, 0)),
        (None, Some(MigrationState::Unknown)),
        "a copy that is left paused is never resumed by guess"
    );
}

#[test]
fn a_copy_is_called_off_by_the_limits_of_its_order() {
    let begun = JournalVm { moving: Some("m1".into()), ..ran(E) };
    let mut order = source(MigrationStep::Copy);
    order.machine.memory_mib = 2_000;
    if let Some(part) = &mut order.migration {
        part.completion_seconds_per_gib = 10;
        part.progress_seconds = 12;
    }
    let mut o = world(Some(order), Some(begun), Some(live(E, LiveState::Running)));
    let memory = o.memory.entry(UID.into()).or_default();
    memory.copy = Some(Copy { id: "m1".into(), end: None });
    let took = |elapsed_milliseconds| {
        let progress = MigrationProgress { elapsed_milliseconds, ..MigrationProgress::default() };
        Some(Job { active: true, progress, since: 15_000, ..Job::default() })
    };
    memory.job = took(19_999);
    assert_eq!(only(&o, 20_000), None, "it gets on");
    o.memory.entry(UID.into()).or_default().job = took(20_000);
    assert_eq!(only(&o, 20_000), Some(HostAction::AbortMove), "two GiB, ten seconds each");
    let memory = o.memory.entry(UID.into()).or_default();
    memory.job = Some(Job { active: true, ..Job::default() });
    assert_eq!(only(&o, 11_999), None);
    assert_eq!(only(&o, 12_000), Some(HostAction::AbortMove), "it stands still");
}

#[test]
fn what_a_move_took_is_told_by_the_side_that_took_it_in() {
    let arrived = JournalVm { incoming: false, open: false, ..taken_in() };
    let running = Some(live(E, LiveState::Running));
    let mut o = world(Some(target(MigrationStep::Commit)), Some(arrived), running);
    let progress = MigrationProgress { percent: 100, total_bytes: 9, ..Default::default() };
    o.memory.entry(UID.into()).or_default().arrival =
        Some(Arrival { progress, downtime_milliseconds: 42 });
    let report = status_of(&o, UID, 0).unwrap().migration.unwrap();
    assert_eq!((report.progress, report.downtime_milliseconds), (progress, 42));
}

#[test]
fn a_move_is_over_once_its_target_knows_what_it_took_though_the_swap_ended_its_order() {
    let arrived = JournalVm { incoming: false, open: false, ..taken_in() };
    let running = Some(live(E, LiveState::Running));
    let swapped = DomainSpec { migration: None, ..target(MigrationStep::Commit) };
    let mut o = world(Some(swapped), Some(arrived), running);
    assert_eq!(status_of(&o, UID, 0).unwrap().migration, None, "it did not come by a move");
    o.memory.entry(UID.into()).or_default().came = Some("m1".into());
    let told = |o: &Observed| {
        let report = status_of(o, UID, 0).unwrap().migration.unwrap();
        (report.id, report.state, report.downtime_milliseconds)
    };
    assert_eq!(told(&o), ("m1".into(), MigrationState::Switched, 0));
    let progress = MigrationProgress { percent: 100, total_bytes: 9, ..Default::default() };
    o.memory.entry(UID.into()).or_default().arrival =
        Some(Arrival { progress, downtime_milliseconds: 42 });
    let done = ("m1".to_owned(), MigrationState::Done, 42);
    assert_eq!(told(&o), done);
    // The agent is restarted, and the VM ends: it stays true.
    let status = status_of(&o, UID, 0);
    o.orders.as_mut().unwrap().get_mut(UID).unwrap().status = status;
    o.memory.clear();
    assert_eq!(told(&o), done);
}

#[test]
fn a_target_that_is_caught_in_the_middle_of_its_resume_has_all_of_the_vm_still() {
    let swapped = DomainSpec { migration: None, ..target(MigrationStep::Commit) };
    let closed = JournalVm { open: false, ..taken_in() };
    let mut o = world(Some(swapped), Some(closed), Some(live(E, LiveState::Paused)));
    o.memory.entry(UID.into()).or_default().came = Some("m1".into());
    assert_eq!(state(&o, 0), Some(MigrationState::Switched));
}

#[test]
fn how_far_a_copy_is_is_told_every_two_seconds_at_most_and_only_if_it_got_on() {
    let at = |percent: i32| MigrationProgress {
        percent,
        total_bytes: 1_000,
        processed_bytes: i64::from(percent) * 10,
        remaining_bytes: 1_000 - i64::from(percent) * 10,
        ..MigrationProgress::default()
    };
    let begun = JournalVm { moving: Some("m1".into()), ..ran(E) };
    let mut o =
        world(Some(source(MigrationStep::Copy)), Some(begun), Some(live(E, LiveState::Running)));
    let mut told = Vec::new();
    // It gets on for five seconds, stands still for ten, and is over.
    for now in (0..20_000).step_by(500) {
        let percent = i32::try_from(now / 100).unwrap().min(50);
        let memory = o.memory.entry(UID.into()).or_default();
        memory.job = Some(Job::read(memory.job, (now < 15_000).then(|| at(percent)), now));
        let status = status_of(&o, UID, now).unwrap();
        let order = o.orders.as_mut().unwrap().get_mut(UID).unwrap();
        if order.status.as_ref() != Some(&status) {
            told.push((now, status.migration.as_ref().unwrap().progress.percent));
            order.status = Some(status);
        }
    }
    assert_eq!(told, [(0, 0), (2_000, 20), (4_000, 40), (6_000, 50), (15_000, 50)]);
    // The next run of the agent takes nothing back.
    o.memory.clear();
    assert_eq!(status_of(&o, UID, 20_000).unwrap().migration.unwrap().progress.percent, 50);
}

#[test]
fn a_copy_that_stalls_or_is_unwanted_is_called_off() {
    let begun = JournalVm { moving: Some("m1".into()), ..ran(E) };
    let running = Some(live(E, LiveState::Running));
    let mut o = world(Some(source(MigrationStep::Copy)), Some(begun.clone()), running.clone());
    let memory = o.memory.entry(UID.into()).or_default();
    memory.copy = Some(Copy { id: "m1".into(), end: None });
    memory.job = Some(Job { active: true, ..Job::default() });
    assert_eq!(only(&o, STALLED - 1), None);
    assert_eq!(only(&o, STALLED), Some(HostAction::AbortMove));
    let mut o = world(Some(source(MigrationStep::Abort)), Some(begun), running);
    let memory = o.memory.entry(UID.into()).or_default();
    memory.copy = Some(Copy { id: "m1".into(), end: None });
    assert_eq!(only(&o, 0), Some(HostAction::AbortMove));
    o.memory.entry(UID.into()).or_default().abort_asked = Some((0, 0));
    assert_eq!((only(&o, 1), state(&o, 1)), (None, Some(MigrationState::Copying)));
    assert_eq!(state(&o, HANGS), Some(MigrationState::Unknown));
}

#[test]
fn a_qemu_that_hangs_for_good_in_a_move_is_killed_and_said_to_have_crashed() {
    let begun = JournalVm { moving: Some("m1".into()), ..ran(E) };
    let spec = source(MigrationStep::Copy);
    let mut o = world(Some(spec), Some(begun.clone()), Some(live(E, LiveState::Paused)));
    let memory = o.memory.entry(UID.into()).or_default();
    // libvirt has given the call up, and the job was last read while it went on.
    memory.copy = Some(Copy { id: "m1".into(), end: Some(CopyEnd::Unknown("cut".into())) });
    memory.job = Some(Job { active: true, since: 1_000, ..Job::default() });
    memory.abort_asked = Some((STALLED, SILENT));
    memory.silent = Some(Silence { since: 1_000, looks: SILENT_LOOKS });
    assert_eq!(only(&o, SILENT + 999), None, "TCP may give it up yet");
    let given_up = Some(HostAction::GiveUp { epoch: E });
    assert_eq!(only(&o, SILENT + 1_000), given_up);
    o.live = Some([(UID.to_owned(), live(E, LiveState::Running))].into());
    assert_ne!(only(&o, SILENT + 1_000), given_up, "its guest runs");
    o.live = Some(BTreeMap::new());
    let memory = gone(&mut o);
    (memory.kill_asked, memory.hung) = (Some(SILENT + 1_000), true);
    let release = |end| Some(HostAction::Release { epoch: E, end, history: false });
    assert_eq!(only(&o, SILENT + 9_000), release(End::Crashed));
    gone(&mut o).stopped = Some(StopReason::Migrated);
    assert_eq!(only(&o, SILENT + 9_000), release(End::Migrated), "it left in that moment");
    let over = JournalVm { end: Some(End::Crashed), released: true, ..begun };
    o.journal.as_mut().unwrap().vms.insert(UID.into(), over);
    let status = status_of(&o, UID, SILENT + 9_000).unwrap();
    assert!(status.message.contains("had not answered for 120 s in a move"), "{status:?}");
    assert_eq!(status.migration.unwrap().state, MigrationState::Failed);
}

#[test]
fn a_silence_counts_while_a_list_says_that_the_guest_stands_still() {
    let paused = Some(Some(LiveState::Paused));
    let first = Silence::after(None, paused, 5);
    assert_eq!(first, Some(Silence { since: 5, looks: 1 }));
    assert_eq!(Silence::after(first, None, 9), first, "a daemon that is away says nothing");
    assert_eq!(Silence::after(first, paused, 9), Some(Silence { since: 5, looks: 2 }));
    assert_eq!(Silence::after(first, Some(Some(LiveState::Running)), 9), None);
    assert_eq!(Silence::after(first, Some(None), 9), None);
}

#[test]
fn a_vm_that_is_to_end_does_so_though_its_copy_hangs() {
    let begun = JournalVm { moving: Some("m1".into()), ..ran(E) };
    let mut spec = source(MigrationStep::Abort);
    spec.want = Want::Killed;
    let mut o = world(Some(spec), Some(begun), Some(live(E, LiveState::Paused)));
    let memory = o.memory.entry(UID.into()).or_default();
    memory.copy = Some(Copy { id: "m1".into(), end: None });
    assert_eq!(only(&o, 0), Some(HostAction::AbortMove), "its copy first");
    o.memory.entry(UID.into()).or_default().abort_asked = Some((0, 5_000));
    assert_eq!(only(&o, HANGS), Some(HostAction::Kill { epoch: E }));
    let order = &mut o.orders.as_mut().unwrap().get_mut(UID).unwrap().spec;
    (order.want, order.grace_seconds) = (Want::Stopped, 30);
    assert_eq!(only(&o, HANGS), Some(HostAction::AbortMove), "it may come back within its grace");
    assert_eq!(only(&o, HANGS + 30_000), Some(HostAction::Kill { epoch: E }));
}

#[test]
fn a_paused_source_goes_on_only_if_the_target_never_ran() {
    let begun = JournalVm { moving: Some("m1".into()), ..ran(E) };
    let at = |lock: Option<LockKind>, step| {
        let mut spec = source(step);
        spec.machine.lock = lock;
        let mut o = world(Some(spec), Some(begun.clone()), Some(live(E, LiveState::Switched)));
        o.memory.entry(UID.into()).or_default().copy =
            Some(Copy { id: "m1".into(), end: Some(CopyEnd::Failed("no".into())) });
        only(&o, 0)
    };
    assert_eq!(at(None, MigrationStep::Abort), Some(HostAction::Resume));
    assert_eq!(at(None, MigrationStep::Copy), None, "the swap may be under way");
    assert_eq!(at(Some(LockKind::Virtlockd), MigrationStep::Abort), None);
}

#[test]
fn the_source_holds_its_record_beside_the_targets_and_nobody_else_does() {
    let spec = target(MigrationStep::Prepare);
    let look = |records: &[OwnerRecord], spec: &DomainSpec| {
        judge(records, spec, "c", false, Guards::default()).is_ok()
    };
    assert!(look(&[record(E - 1, RecordState::Held)], &spec));
    assert!(!look(&[record(E - 2, RecordState::Held)], &spec), "another epoch");
    let other = OwnerRecord { boot_id: "b8".into(), ..record(E - 1, RecordState::Held) };
    assert!(!look(&[other], &spec), "another boot");
    let mut start = spec;
    start.want = Want::Running;
    assert!(!look(&[record(E - 1, RecordState::Held)], &start), "a start is no move");
}
