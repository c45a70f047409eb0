//! The statement of the safety model as predicates on vCPUs, disks and memory.
//!
//! Told by the world what really happens, at the instant it happens; it never asks the code
//! under test. That what is wanted runs in the end is no predicate of an instant: scenarios, drawn
//! ones too, expect it. Each predicate counts how often its situation came up, so that a run that never
//! exercised one can be told.

use std::collections::{BTreeMap, BTreeSet};

/// A predicate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rule {
    /// At most one host executes a VM's vCPUs (S1).
    OneCopy,
    /// No write after the next copy's first (safety §10, S7).
    OneWriter,
    /// No guest resumes with memory older than its disk (S5, safety §8.3).
    FreshMemory,
    /// No order is obeyed for another boot (safety §1).
    OwnBoot,
    /// A start needs every earlier copy gone and drained, or its boot dead or certified (S2).
    SettledBeforeStart,
    /// A certificate's proof is true (S3).
    TrueProof,
    /// Nobody is shot while only the API is in trouble (S12).
    NoShotForTheApi,
    /// A storage that can deny has denied before locks are broken (safety §6.2).
    DeniedBeforeBreak,
    /// Locks are broken of dead boots only.
    BrokenOfDead,
    /// No lock is broken for one side of a move while the other side waits to take over
    /// (safety §8.3).
    DecidedBeforeBreak,
    /// A VM whose order names a lock manager runs with its lock held (S16, safety §6.1).
    LockHeld,
    /// A number of a lockspace belongs to one living host (safety §6.6).
    OneNumber,
    /// Nothing in use is deleted (S14).
    NotInUse,
    /// A host on which nothing of ours runs is not shot (S18).
    NoShotAtEmpty,
    /// No epoch is started twice (S11).
    EpochOnce,
    /// Epochs of a VM never fall, nor do those on a disk, whatever VM uses it (S9, safety §1).
    EpochRises,
    /// Nobody is shot while the storm brake holds, but by a human's word (S13).
    Brake,
    /// Who is to be stopped, has used up its limits or is only watched is not placed (S20).
    WantedToRun,
    /// What is placed may run there: required hosts, and VMs that it is to be apart from (S17).
    StrictRules,
    /// A move that is told to have succeeded ran on its target and left nothing on its source (S6).
    LeftNothing,
}

/// All predicates.
pub const RULES: [Rule; 20] = [
    Rule::OneCopy,
    Rule::OneWriter,
    Rule::FreshMemory,
    Rule::OwnBoot,
    Rule::SettledBeforeStart,
    Rule::TrueProof,
    Rule::NoShotForTheApi,
    Rule::DeniedBeforeBreak,
    Rule::BrokenOfDead,
    Rule::DecidedBeforeBreak,
    Rule::LockHeld,
    Rule::OneNumber,
    Rule::NotInUse,
    Rule::NoShotAtEmpty,
    Rule::EpochOnce,
    Rule::EpochRises,
    Rule::Brake,
    Rule::WantedToRun,
    Rule::StrictRules,
    Rule::LeftNothing,
];

impl Rule {
    /// What it says.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::OneCopy => "one VM never runs twice",
            Self::OneWriter => "no disk is written by an earlier copy after a later one",
            Self::FreshMemory => "no guest resumes with memory older than its disk",
            Self::OwnBoot => "no order is obeyed for another boot",
            Self::SettledBeforeStart => "a start needs every earlier copy released or proven dead",
            Self::TrueProof => "a proof of death is true",
            Self::NoShotForTheApi => "trouble of the API alone shoots nobody",
            Self::DeniedBeforeBreak => "access is denied before locks are broken",
            Self::BrokenOfDead => "locks are broken of dead boots only",
            Self::DecidedBeforeBreak => "no lock is broken for one side of an undecided move",
            Self::LockHeld => "a VM with a lock manager runs with its lock held",
            Self::OneNumber => "a number of a lockspace belongs to one living host",
            Self::NotInUse => "nothing in use is deleted",
            Self::NoShotAtEmpty => "a host on which nothing of ours runs is not shot",
            Self::EpochOnce => "an epoch is started at most once",
            Self::EpochRises => "epochs of a VM, and on a disk, never fall",
            Self::Brake => "nobody is shot while the storm brake holds",
            Self::WantedToRun => "who is not wanted to run is not placed",
            Self::StrictRules => "strict rules hold wherever a VM is placed",
            Self::LeftNothing => "a move that succeeded left nothing on its source",
        }
    }
}

/// A broken predicate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Milliseconds since second 0.
    pub at: u64,
    /// Which.
    pub rule: Rule,
    /// How.
    pub text: String,
}

/// What has been found so far.
#[derive(Clone, Debug, Default)]
pub struct Oracle {
    /// Broken predicates.
    pub violations: Vec<Violation>,
    /// Broken ones that no system could have kept (a lying device, a person's wrong word), told
    /// and never silent.
    pub excused: Vec<Violation>,
    /// How often the situation of each predicate came up.
    pub exercised: BTreeMap<Rule, u64>,
    /// Epochs that were started, by VM uid.
    pub started: BTreeMap<String, BTreeSet<i64>>,
    /// The highest epoch that was started on each disk, and the VM's uid, by path.
    pub on_disk: BTreeMap<String, (i64, String)>,
}

impl Oracle {
    /// The situation of a predicate came up; `broken` says how it is broken, if it is.
    pub fn judge(&mut self, at: u64, rule: Rule, broken: Option<String>, excused: bool) {
        *self.exercised.entry(rule).or_default() += 1;
        let Some(text) = broken else { return };
        let violation = Violation { at, rule, text };
        let list = if excused { &mut self.excused } else { &mut self.violations };
        // A double run goes on for seconds; it is told once.
        if !list.iter().any(|v| v.rule == violation.rule && v.text == violation.text) {
            list.push(violation);
        }
    }
}
