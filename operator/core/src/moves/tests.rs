//! What follows from what both sides of a live move say.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use serde_json::json;
use stockade_crds::v1alpha1::{
    DomainSpec, DomainState, DomainStatus, End, EpochState, MigrationProgress, MigrationReport,
    MigrationSettings, MigrationState, PlacedEpoch, VmMove,
};

use super::live::{Next, Side, Sides};
use crate::world::Guards;

/// One side as a test tells it.
#[derive(Clone, Default)]
struct Told {
    placed: Option<EpochState>,
    step: Option<&'static str>,
    state: Option<DomainState>,
    stands: Option<MigrationState>,
    end: Option<End>,
}

struct Case {
    source: Told,
    target: Told,
    dead: bool,
    target_dead: bool,
    spans: bool,
    guarded: bool,
    off: bool,
}

impl Case {
    fn new(source: Told, target: Told) -> Self {
        Self {
            source,
            target,
            dead: false,
            target_dead: false,
            spans: true,
            guarded: true,
            off: false,
        }
    }

    fn next(&self) -> Next {
        let moving = VmMove {
            uid: "m1".into(),
            source: "h1".into(),
            target: "h2".into(),
            live: true,
            source_epoch: 1,
            epoch: 2,
            ..VmMove::default()
        };
        let parts = |told: &Told, epoch: i64| {
            let placed = told.placed.map(|state| PlacedEpoch {
                superseded: false,
                unmarked: false,
                epoch,
                host: format!("h{epoch}"),
                host_uid: format!("u{epoch}"),
                boot_id: format!("b{epoch}"),
                state,
            });
            let side = if epoch == 1 { "Source" } else { "Target" };
            let migration =
                told.step.map(|step| json!({"id": "m1", "side": side, "peer": "p", "step": step}));
            let order: Option<DomainSpec> = (epoch == 2 || told.step.is_some()).then(|| {
                serde_json::from_value(json!({
                    "vm": {"namespace": "n", "name": "v", "uid": "u"}, "hostUid": "u",
                    "bootId": "b", "epoch": epoch, "orderId": 1, "want": "Running",
                    "machine": {"cores": 1, "memoryMib": 1}, "migration": migration,
                }))
                .unwrap()
            });
            let said = told.state.map(|state| DomainStatus {
                epoch,
                state,
                end: told.end,
                released: told.end.is_some(),
                migration: told.stands.map(|state| MigrationReport {
                    id: "m1".into(),
                    state,
                    message: String::new(),
                    progress: MigrationProgress::default(),
                    downtime_milliseconds: 0,
                }),
                ..DomainStatus::default()
            });
            (placed, order, said)
        };
        let (sp, so, ss) = parts(&self.source, 1);
        let (tp, to, ts) = parts(&self.target, 2);
        Sides {
            moving: &moving,
            source: Side { placed: sp.as_ref(), order: so.as_ref(), said: ss.as_ref() },
            target: Side { placed: tp.as_ref(), order: to.as_ref(), said: ts.as_ref() },
            source_dead: self.dead,
            target_dead: self.target_dead,
            spans: self.spans,
            guards: Guards { unknown_move: self.guarded, ..Guards::default() },
            settings: MigrationSettings::default(),
        }
        .next(self.off)
    }
}

fn runs(step: Option<&'static str>, stands: Option<MigrationState>) -> Told {
    Told {
        placed: Some(EpochState::Ordered),
        step,
        state: Some(DomainState::Running),
        stands,
        end: None,
    }
}

fn left(end: End) -> Told {
    Told {
        placed: Some(EpochState::Released),
        step: Some("Copy"),
        state: Some(DomainState::Ended),
        stands: Some(MigrationState::Done),
        end: Some(end),
    }
}

fn incoming(state: DomainState, stands: MigrationState) -> Told {
    Told {
        placed: Some(EpochState::Incoming),
        step: Some("Prepare"),
        state: Some(state),
        stands: Some(stands),
        end: None,
    }
}

fn called_off(next: &Next) -> bool {
    matches!(next, Next::CallOffTarget(_))
}

#[test]
fn a_move_goes_from_ready_to_done() {
    let ready = incoming(DomainState::Incoming, MigrationState::Ready);
    assert_eq!(Case::new(runs(None, None), ready.clone()).next(), Next::Copy);
    let copying = runs(Some("Copy"), Some(MigrationState::Copying));
    assert_eq!(Case::new(copying.clone(), ready).next(), Next::Wait);
    let arrived = incoming(DomainState::Running, MigrationState::Done);
    assert_eq!(Case::new(copying.clone(), arrived.clone()).next(), Next::Commit);
    let committed = Told { placed: Some(EpochState::Ordered), ..arrived };
    assert_eq!(Case::new(copying, committed.clone()).next(), Next::FinishSource);
    assert_eq!(Case::new(left(End::Migrated), committed).next(), Next::Done);
}

#[test]
fn an_unknown_answer_is_decided_by_both_sides_and_never_by_guess() {
    let unknown = runs(Some("Copy"), Some(MigrationState::Unknown));
    let partial = incoming(DomainState::Incoming, MigrationState::Ready);
    assert!(called_off(&Case::new(unknown.clone(), partial.clone()).next()));
    let silent = Told { state: None, stands: None, ..partial.clone() };
    assert_eq!(Case::new(unknown.clone(), silent.clone()).next(), Next::Wait);
    let whole = incoming(DomainState::Paused, MigrationState::Switched);
    assert_eq!(Case::new(unknown.clone(), whole).next(), Next::Wait);
    let paused = Told { state: Some(DomainState::Paused), ..unknown.clone() };
    assert_eq!(Case::new(paused, partial).next(), Next::Wait);
    let guess = Case { guarded: false, ..Case::new(unknown, silent) };
    assert!(called_off(&guess.next()), "without the guard it would be a guess");
}

#[test]
fn a_source_left_paused_ends_once_its_target_is_dead_and_not_before() {
    let paused = Told {
        state: Some(DomainState::Paused),
        ..runs(Some("Copy"), Some(MigrationState::Unknown))
    };
    let last = incoming(DomainState::Incoming, MigrationState::Ready);
    let silent = Case { off: true, ..Case::new(paused, last) };
    assert_eq!(silent.next(), Next::CallOffSource);
    assert_eq!(Case { target_dead: true, ..silent }.next(), Next::EndSource);
}

#[test]
fn a_move_that_is_called_off_after_its_target_has_ended_ends_there_first() {
    let left = |step| Told {
        state: Some(DomainState::Paused),
        ..runs(Some(step), Some(MigrationState::Unknown))
    };
    let off = |source: Told, target: &Told| Case::new(source, target.clone()).next();
    let ended = incoming(DomainState::Ended, MigrationState::Failed);
    assert_eq!(off(left("Copy"), &ended), Next::CallOffSource);
    assert!(called_off(&off(left("Abort"), &ended)));
    // It may run yet, and what is left here may be older than the disk then.
    let whole = incoming(DomainState::Paused, MigrationState::Switched);
    let called = Case { off: true, ..Case::new(left("Abort"), whole.clone()) };
    assert_eq!(called.next(), Next::CallOffSource);
    let over = Told { placed: Some(EpochState::Released), ..whole };
    assert!(matches!(off(left("Abort"), &over), Next::Over(_)));
}

#[test]
fn a_move_that_was_swapped_ends_with_its_source_whatever_became_of_the_target() {
    let ended = Told { placed: Some(EpochState::Released), ..left(End::Crashed) };
    let old = runs(Some("Commit"), Some(MigrationState::Copying));
    assert_eq!(Case::new(old, ended.clone()).next(), Next::FinishSource);
    assert!(matches!(Case::new(left(End::Migrated), ended).next(), Next::Over(_)));
}

#[test]
fn without_a_lock_that_spans_hosts_two_copies_that_wait_end_with_the_source_going_on() {
    let unknown = runs(Some("Copy"), Some(MigrationState::Unknown));
    let paused = Told { state: Some(DomainState::Paused), ..unknown.clone() };
    let whole = incoming(DomainState::Paused, MigrationState::Switched);
    let free = |source: &Told, target: &Told| {
        Case { spans: false, ..Case::new(source.clone(), target.clone()) }.next()
    };
    assert_eq!(free(&paused, &whole), Next::CallOffSource);
    assert_eq!(Case::new(paused.clone(), whole.clone()).next(), Next::Wait, "libvirt may run it");
    let silent = Told { state: None, stands: None, ..whole.clone() };
    assert_eq!(free(&paused, &silent), Next::Wait);
    assert_eq!(free(&Told { state: None, ..unknown }, &whole), Next::Wait);
    let arrived = incoming(DomainState::Running, MigrationState::Done);
    assert_eq!(free(&paused, &arrived), Next::Wait, "it runs though nobody swapped");
}

#[test]
fn completed_wins_over_a_call_off() {
    let copying = runs(Some("Abort"), Some(MigrationState::Copying));
    let arrived = incoming(DomainState::Running, MigrationState::Done);
    assert_eq!(Case { off: true, ..Case::new(copying, arrived) }.next(), Next::Commit);
}

#[test]
fn without_a_lock_that_spans_hosts_only_a_source_that_left_commits() {
    let copying = runs(Some("Copy"), Some(MigrationState::Copying));
    let whole = incoming(DomainState::Paused, MigrationState::Switched);
    assert_eq!(Case { spans: false, ..Case::new(copying, whole.clone()) }.next(), Next::Wait);
    let went = Case { spans: false, ..Case::new(left(End::Migrated), whole.clone()) };
    assert_eq!(went.next(), Next::Commit);
    let waits = incoming(DomainState::Incoming, MigrationState::Ready);
    assert_eq!(Case::new(left(End::Migrated), waits).next(), Next::AskTarget);
    let lost = incoming(DomainState::Incoming, MigrationState::Failed);
    assert!(called_off(&Case::new(left(End::Migrated), lost).next()));
    // It was killed: whether it ran after the switch-over can't be told.
    let killed = Case { spans: false, ..Case::new(left(End::Killed), whole) };
    assert!(called_off(&killed.next()));
}

#[test]
fn a_dead_source_leaves_what_runs_and_nothing_else() {
    let copying = runs(Some("Copy"), Some(MigrationState::Copying));
    let partial = incoming(DomainState::Incoming, MigrationState::Ready);
    let dead = |target: Told| Case { dead: true, ..Case::new(copying.clone(), target) }.next();
    assert!(called_off(&dead(partial)));
    assert_eq!(dead(incoming(DomainState::Running, MigrationState::Done)), Next::Commit);
}

#[test]
fn a_source_that_was_told_to_copy_answers_before_the_target_is_called_off() {
    let ready = incoming(DomainState::Incoming, MigrationState::Ready);
    let off = |source: Told| Case { off: true, ..Case::new(source, ready.clone()) }.next();
    assert!(called_off(&off(runs(None, None))), "never told");
    let copying = runs(Some("Copy"), Some(MigrationState::Copying));
    assert_eq!(off(copying), Next::CallOffSource);
    assert!(called_off(&off(runs(Some("Abort"), Some(MigrationState::Failed)))));
}
