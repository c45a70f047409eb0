//! The word for a VM: its state, its conditions, and what people are told.

use stockade_crds::conditions::{
    DOUBLE_RUN, Decided, PENDING_RESTART, READY, RECONCILING, RUNNING, STALLED,
};
use stockade_crds::v1alpha1::{VirtualMachine, VirtualMachineStatus, VmState};

use super::lifecycle::{Decision, domain};
use super::machine;
use super::moving;
use super::open::ordered;
use crate::plan::{About, Event, Intent, Report};
use crate::world::{Key, World};

/// A state word with its reason for the Ready condition.
pub(super) struct Word {
    pub(super) state: VmState,
    pub(super) ready: Option<bool>,
    pub(super) reason: &'static str,
    pub(super) message: String,
    pub(super) running: bool,
    pub(super) stalled: bool,
    /// More than one copy runs.
    pub(super) double: bool,
}

impl Word {
    pub(super) fn new(
        state: VmState,
        ready: impl Into<Option<bool>>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        let message = message.into();
        Self {
            state,
            ready: ready.into(),
            reason,
            message,
            running: false,
            stalled: false,
            double: false,
        }
    }

    /// Another state with its reason; what is true of Ready and Running stays.
    pub(super) fn becomes(&mut self, state: VmState, reason: &'static str, message: String) {
        self.state = state;
        self.reason = reason;
        self.message = message;
    }

    pub(super) fn running(mut self) -> Self {
        self.running = true;
        self
    }

    pub(super) fn stalled(mut self) -> Self {
        self.stalled = true;
        self
    }
}

pub(super) fn event(key: &Key, reason: &'static str, warning: bool, message: String) -> Intent {
    Intent::Event(Event { about: About::Vm(key.clone()), reason, message, warning })
}

/// People are told of the changes of state that matter to them.
pub(super) fn tell(key: &Key, word: &Word, old: &VirtualMachineStatus, intents: &mut Vec<Intent>) {
    let (reason, warning) = match word.state {
        VmState::Running if old.printable_status == VmState::Stopping => return,
        VmState::Running => ("VmRunning", false),
        VmState::Stopped => ("VmStopped", false),
        VmState::Recovering => ("VmHostLost", true),
        VmState::Unplaceable => ("VmUnplaceable", true),
        VmState::Blocked if word.double => ("VmDoubleRun", true),
        VmState::Blocked => ("VmBlocked", true),
        VmState::Error => ("VmLimitsUsedUp", true),
        VmState::Starting
        | VmState::Stopping
        | VmState::Migrating
        | VmState::Unmanaged
        | VmState::Held => return,
    };
    intents.push(event(key, reason, warning, word.message.clone()));
}

pub(super) fn conditions(
    world: &World,
    vm: &VirtualMachine,
    status: &VirtualMachineStatus,
    word: &Word,
) -> Vec<Decided> {
    let order = status.host.as_ref().and_then(|h| domain(world, vm, h));
    let mut pending = order
        .and_then(|d| d.status.as_ref())
        .map(|s| s.pending_restart.clone())
        .unwrap_or_default();
    if order.is_some_and(|d| machine::other_disks(world, vm, &d.spec.machine)) {
        pending.push("disks".to_owned());
    }
    let running_reason = if word.running { "Running" } else { "NotRunning" };
    let under_way = matches!(
        word.state,
        VmState::Starting | VmState::Stopping | VmState::Migrating | VmState::Recovering
    );
    vec![
        Decided::new(READY, word.ready, word.reason, word.message.clone()),
        Decided::new(RUNNING, word.running, running_reason, word.message.clone()),
        Decided::new(RECONCILING, under_way, word.reason, word.message.clone()),
        Decided::new(STALLED, word.stalled, word.reason, word.message.clone()),
        Decided::new(
            PENDING_RESTART,
            !pending.is_empty() && word.running,
            "ChangedWhileRunning",
            format!("takes effect at the next start: {}", pending.join(", ")),
        ),
        Decided::new(
            DOUBLE_RUN,
            word.double,
            if word.double { "SecondCopy" } else { "OneCopy" },
            if word.double { word.message.clone() } else { String::new() },
        ),
    ]
}

/// Makes a status that has just got its new epoch say what the next plan would say of it, so that
/// the swap is the only write until its host has answered.
#[must_use]
pub(crate) fn placed(
    world: &World,
    vm: &VirtualMachine,
    mut status: VirtualMachineStatus,
) -> Report<VirtualMachineStatus> {
    let conditions = match status.placements.last() {
        Some(placed) => {
            let word = moving::by_stop(&status, true, true, ordered(placed, &status, ""));
            status.printable_status = word.state;
            conditions(world, vm, &status, &word)
        }
        None => Vec::new(),
    };
    Report { status, conditions }
}

/// The word for a VM that no host takes; `not_ready`: because what it needs is not there.
#[must_use]
pub(crate) fn unplaceable(
    mut decision: Decision,
    vm: &VirtualMachine,
    why: &str,
    not_ready: Option<String>,
) -> Decision {
    let key = Key::of(&vm.metadata);
    let word = match not_ready {
        Some(why) => Word::new(VmState::Blocked, false, "NotReady", why),
        None => Word::new(VmState::Unplaceable, false, "NoHostFits", why),
    };
    let old = vm.status.clone().unwrap_or_default();
    if old.printable_status != word.state {
        tell(&key, &word, &old, &mut decision.intents);
    }
    decision.report.status.printable_status = word.state;
    decision.report.status.host = None;
    decision.report.conditions = vec![
        Decided::new(READY, false, word.reason, word.message.clone()),
        Decided::new(RUNNING, false, "NotRunning", word.message.clone()),
        Decided::new(RECONCILING, false, word.reason, ""),
        Decided::new(STALLED, false, word.reason, ""),
        Decided::new(PENDING_RESTART, false, "ChangedWhileRunning", ""),
        Decided::new(DOUBLE_RUN, false, "OneCopy", ""),
    ];
    decision
}
