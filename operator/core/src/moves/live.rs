//! One live move: what both sides say, and what follows.

use stockade_crds::v1alpha1::{
    BootReference, Domain, DomainSpec, DomainState, DomainStatus, End, EpochState, HostState,
    MigrationOrder, MigrationReport, MigrationSettings, MigrationSide, MigrationState,
    MigrationStep, PlacedEpoch, VirtualMachine, VirtualMachineMigrationStatus, VmMove,
};

use crate::agent::moves::source_order;
use crate::ha::host_state::HostFacts;
use crate::world::{Guards, Millis, World};

use super::{facts_of, withdrawn};

/// A target that is not ready after so long is given up.
const PREPARE_LIMIT: Millis = 60_000;

/// What follows from what both sides say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// The target gets ready.
    Prepare,
    /// The source copies.
    Copy,
    /// Nothing, until a side says more.
    Wait,
    /// The source has left, and the target has yet to say that it has the VM: it looks.
    AskTarget,
    /// The source stops copying; it says what came of it.
    CallOffSource,
    /// The source runs on, or there is none: the target's epoch becomes void.
    CallOffTarget(String),
    /// The target has the VM: the swap on the VM's epoch.
    Commit,
    /// It was swapped: what is left on the source ends.
    FinishSource,
    /// The target is dead and may have run the VM before: what is left paused on the source ends, and
    /// the VM starts cold.
    EndSource,
    /// The target has the VM, and nothing is left on the source.
    Done,
    /// The target's epoch is settled, and the VM is not there.
    Over(String),
}

/// A side that is placed and not settled, with its order and what its host says of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Side<'a> {
    pub(super) placed: Option<&'a PlacedEpoch>,
    pub(super) order: Option<&'a DomainSpec>,
    pub(super) said: Option<&'a DomainStatus>,
}

impl<'a> Side<'a> {
    fn of(
        world: &'a World,
        vm: &VirtualMachine,
        placements: &'a [PlacedEpoch],
        host: &str,
        epoch: i64,
    ) -> Self {
        let uid = vm.metadata.uid.as_deref().unwrap_or_default();
        let domain = world.order(host, uid).filter(|d| d.spec.epoch == epoch);
        Self {
            placed: placements.iter().find(|p| p.epoch == epoch),
            order: domain.map(|d| &d.spec),
            said: domain.and_then(|d| d.status.as_ref()).filter(|s| s.epoch == epoch),
        }
    }

    fn is_open(&self) -> bool {
        self.placed.is_some_and(|p| !p.state.is_settled())
    }

    /// How the move stands there, as its host says.
    fn stands(&self, id: &str) -> Option<(MigrationState, &'a str)> {
        let report = self.said?.migration.as_ref().filter(|r| r.id == id)?;
        Some((report.state, report.message.as_str()))
    }

    fn step(&self, id: &str) -> Option<MigrationStep> {
        self.order?.migration.as_ref().filter(|m| m.id == id).map(|m| m.step)
    }

    fn runs(&self) -> bool {
        self.said.is_some_and(|s| s.state == DomainState::Running)
    }
}

/// Both sides of a live move.
#[derive(Clone, Debug)]
pub(crate) struct Sides<'a> {
    pub(super) moving: &'a VmMove,
    pub(super) source: Side<'a>,
    pub(super) target: Side<'a>,
    /// The source's boot is proven dead.
    pub(super) source_dead: bool,
    /// The target's boot is proven dead.
    pub(super) target_dead: bool,
    /// Its lock spans the hosts.
    pub(super) spans: bool,
    pub(super) guards: Guards,
    pub(super) settings: MigrationSettings,
}

impl<'a> Sides<'a> {
    pub(crate) fn of(
        world: &'a World,
        vm: &VirtualMachine,
        moving: &'a VmMove,
        placements: &'a [PlacedEpoch],
    ) -> Self {
        let side = |host: &str, epoch| Side::of(world, vm, placements, host, epoch);
        let source = side(&moving.source, moving.source_epoch);
        let target = side(&moving.target, moving.epoch);
        let dead = |p: &PlacedEpoch| world.standing_proof(&p.host_uid, &p.boot_id).is_some();
        Self {
            moving,
            source_dead: source.placed.is_some_and(dead),
            target_dead: target.placed.is_some_and(dead),
            spans: target.order.or(source.order).is_some_and(|o| o.machine.lock.is_some()),
            source,
            target,
            guards: world.guards,
            settings: vm.spec.migration,
        }
    }

    /// The source's epoch, if it is not settled.
    pub(crate) fn open_source(&self) -> Option<&'a PlacedEpoch> {
        self.source.placed.filter(|p| !p.state.is_settled())
    }

    /// The target's epoch, if it is not settled.
    pub(crate) fn open_target(&self) -> Option<&'a PlacedEpoch> {
        self.target.placed.filter(|p| !p.state.is_settled())
    }

    /// Whether the source was told to copy.
    pub(crate) fn told(&self) -> bool {
        self.step().is_some()
    }

    /// What the source was last told.
    fn step(&self) -> Option<MigrationStep> {
        self.source.step(&self.moving.uid)
    }

    /// The source's own word that it runs.
    pub(crate) fn source_runs(&self) -> bool {
        self.source.is_open() && self.source.runs()
    }

    /// The source says that it will not leave by this move any more, and runs.
    pub(crate) fn source_stays(&self) -> bool {
        let failed = matches!(
            self.source.stands(&self.moving.uid),
            Some((MigrationState::Failed | MigrationState::Ready, _))
        );
        self.source_runs() && (failed || !self.told())
    }

    /// The copy that the switch-over left paused on the source, after the move is over.
    pub(crate) fn source_left_paused(&self) -> bool {
        self.source.is_open()
            && self.source.said.is_some_and(|s| s.state == DomainState::Paused)
            && self.told()
    }

    /// What follows. `off`: the move is to be called off if it is not complete.
    pub(crate) fn next(&self, off: bool) -> Next {
        let id = &self.moving.uid;
        let Some(target) = self.open_target() else {
            // It was swapped, and what came over has ended since: what the source last said is old.
            let committed = self.source.is_open() && self.step() == Some(MigrationStep::Commit);
            return if committed { Next::FinishSource } else { Next::Over(self.why(off)) };
        };
        if target.state != EpochState::Incoming {
            return if self.source.is_open() { Next::FinishSource } else { Next::Done };
        }
        let left = !self.source.is_open()
            && self.source.said.is_some_and(|s| s.released && s.end == Some(End::Migrated));
        // With a lock that spans hosts a running target is proof that the source does not run.
        if self.target.runs() && (self.spans || left || self.source_dead) {
            return Next::Commit;
        }
        let stands = self.target.stands(id).map(|(state, _)| state);
        if stands == Some(MigrationState::Switched) && !self.guards.commit_left {
            return Next::Commit;
        }
        if left {
            return match stands {
                Some(MigrationState::Switched) => Next::Commit,
                Some(MigrationState::Failed) => Next::CallOffTarget(self.why(off)),
                _ => Next::AskTarget,
            };
        }
        if !self.source.is_open() || self.source_dead {
            // What runs at the target by its own word would have been taken above.
            return Next::CallOffTarget("the VM ended on its source".to_owned());
        }
        if !self.told() {
            return match stands {
                Some(MigrationState::Failed) => Next::CallOffTarget(self.why(off)),
                _ if off => Next::CallOffTarget(self.why(off)),
                Some(MigrationState::Ready) => Next::Copy,
                _ if self.target.order.is_none() => Next::Prepare,
                _ if !self.guards.ready_first => Next::Copy,
                _ => Next::Wait,
            };
        }
        match self.source.stands(id).map(|(state, _)| state) {
            Some(MigrationState::Failed) => Next::CallOffTarget(self.why(off)),
            // Both sides are looked at: this one runs, that one has not got everything.
            Some(MigrationState::Unknown) if self.source.runs() && self.is_partial() => {
                Next::CallOffTarget(self.why(off))
            }
            // Both are looked at and neither runs. No lock would have let libvirt run the target's
            // copy, and before the swap nobody else does: the source's may go on (safety §8.2).
            Some(MigrationState::Unknown) if !self.spans && self.both_wait() => Next::CallOffSource,
            // With a lock that spans hosts libvirt let the target run at once, and its last word may
            // be older: the memory that is left here may be older than the disk (safety §8.3).
            Some(MigrationState::Unknown)
                if self.spans && self.target_dead && self.source_left_paused() =>
            {
                Next::EndSource
            }
            // Called off, and the target's copy has ended: what is left here ends after its epoch.
            Some(MigrationState::Unknown)
                if self.spans
                    && self.step() == Some(MigrationStep::Abort)
                    && stands == Some(MigrationState::Failed)
                    && self.source_left_paused() =>
            {
                Next::CallOffTarget(self.why(off))
            }
            Some(MigrationState::Unknown) if !self.guards.unknown_move => {
                Next::CallOffTarget(self.why(off))
            }
            _ if off || stands == Some(MigrationState::Failed) => Next::CallOffSource,
            _ => Next::Wait,
        }
    }

    /// Each side's own word that its copy is there, whole or not, and does not run.
    fn both_wait(&self) -> bool {
        let target = self.target.stands(&self.moving.uid).map(|(state, _)| state);
        self.source.said.is_some_and(|s| s.state == DomainState::Paused)
            && matches!(target, Some(MigrationState::Ready | MigrationState::Switched))
            && !self.target.runs()
    }

    /// The target's own word that it has not got everything.
    fn is_partial(&self) -> bool {
        matches!(
            self.target.stands(&self.moving.uid),
            Some((MigrationState::Ready | MigrationState::Copying | MigrationState::Failed, _))
        ) && !self.target.runs()
    }

    /// Why it did not move, in a sentence.
    pub(crate) fn why(&self, off: bool) -> String {
        let id = &self.moving.uid;
        let source = self.source.stands(id).filter(|(s, why)| {
            matches!(s, MigrationState::Failed | MigrationState::Unknown) && !why.is_empty()
        });
        let target = self.target.stands(id).map(|(_, why)| why).filter(|why| !why.is_empty());
        let target = target
            .or_else(|| self.target.said.map(|s| s.message.as_str()).filter(|why| !why.is_empty()));
        match (source, target) {
            (_, Some(why)) if !self.told() => format!("{}: {why}", self.moving.target),
            (Some((_, why)), _) => why.to_owned(),
            (None, Some(why)) => format!("{}: {why}", self.moving.target),
            (None, None) if off => "it was called off".to_owned(),
            (None, None) => format!("the copy on {} ended", self.moving.target),
        }
    }

    /// The source's part of the move in its order: none before it is to copy.
    pub(crate) fn source_order(&self, world: &World, next: &Next) -> Option<MigrationOrder> {
        let step = match next {
            Next::Copy => MigrationStep::Copy,
            Next::FinishSource | Next::Commit => MigrationStep::Commit,
            _ if !self.told() => return None,
            Next::CallOffSource | Next::CallOffTarget(_) => MigrationStep::Abort,
            _ => self.step()?,
        };
        let Some(peer) = self.target.placed else {
            let told = self.source.order?.migration.clone()?;
            return Some(MigrationOrder { step, ..told });
        };
        Some(order(world, self.moving, MigrationSide::Source, step, peer, self.settings))
    }
}

/// One side's part of a move.
pub(crate) fn order(
    world: &World,
    moving: &VmMove,
    side: MigrationSide,
    step: MigrationStep,
    peer: &PlacedEpoch,
    settings: MigrationSettings,
) -> MigrationOrder {
    let addresses = world.hosts.get(&peer.host).map(|h| h.spec.addresses.clone());
    let address = addresses.and_then(|a| a.migration.or(a.management));
    MigrationOrder {
        id: moving.uid.clone(),
        side,
        peer: peer.host.clone(),
        peer_address: address.unwrap_or_else(|| peer.host.clone()),
        peer_epoch: peer.epoch,
        peer_boot: Some(BootReference {
            host_uid: peer.host_uid.clone(),
            boot_id: peer.boot_id.clone(),
        }),
        step,
        bandwidth_mib_per_second: settings.bandwidth_mib_per_second,
        downtime_limit_milliseconds: settings.downtime_limit_milliseconds,
        auto_converge: settings.auto_converge,
        parallel_connections: settings.parallel_connections,
        completion_seconds_per_gib: settings.completion_seconds_per_gib,
        progress_seconds: settings.progress_seconds,
    }
}

/// What one side says of a move.
fn told<'a>(
    world: &'a World,
    vm_uid: &str,
    (host, epoch): (&str, i64),
    moving: &VmMove,
) -> Option<&'a MigrationReport> {
    let said = world.order(host, vm_uid)?.status.as_ref().filter(|s| s.epoch == epoch)?;
    said.migration.as_ref().filter(|report| report.id == moving.uid)
}

/// Whether a host has yet to say, for good, what the VM's last move away from it came to: until then what
/// it says of the VM may be older than that, and what waits there may be older than the disks.
pub(crate) fn unanswered(world: &World, vm: &VirtualMachine, host: &str) -> bool {
    let order = world.order(host, vm.metadata.uid.as_deref().unwrap_or_default());
    order.and_then(|d| Some((d, source_part(d)?))).is_some_and(|(d, (part, stands))| {
        let answered = match stands {
            Some(MigrationState::Failed) => true,
            // A call that hangs does so for long; the VM was looked at since, and runs.
            Some(MigrationState::Unknown) => {
                d.status.as_ref().is_some_and(|s| s.state == DomainState::Running)
            }
            _ => false,
        };
        part.step == MigrationStep::Commit || !answered
    })
}

/// A source's part in its order, and how its host says that the move stands there.
pub(crate) fn source_part(order: &Domain) -> Option<(&MigrationOrder, Option<MigrationState>)> {
    let part = source_order(&order.spec)?;
    let said = order.status.as_ref().filter(|s| s.epoch == order.spec.epoch);
    let report = said.and_then(|s| s.migration.as_ref()).filter(|report| report.id == part.id);
    Some((part, report.map(|report| report.state)))
}

/// Whether the target has all of the VM and has yet to resume it.
pub(crate) fn resumes(world: &World, vm: &VirtualMachine, moving: &VmMove) -> bool {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let target = told(world, uid, (&moving.target, moving.epoch), moving);
    !vm.spec.paused && target.is_some_and(|report| report.state == MigrationState::Switched)
}

/// Writes into a status how far the copy is, or what it took; what is not measured stays as it is.
pub(crate) fn measure(
    world: &World,
    vm: &VirtualMachine,
    moving: &VmMove,
    status: &mut VirtualMachineMigrationStatus,
) {
    let uid = vm.metadata.uid.as_deref().unwrap_or_default();
    let target = told(world, uid, (&moving.target, moving.epoch), moving);
    let source = told(world, uid, (&moving.source, moving.source_epoch), moving);
    let mut known = [target, source].into_iter().flatten().map(|report| report.progress);
    if let Some(progress) = known.find(|progress| progress.total_bytes > 0) {
        status.progress = Some(progress);
    }
    if let Some(report) = target.filter(|report| report.downtime_milliseconds > 0) {
        status.downtime_milliseconds = Some(report.downtime_milliseconds);
    }
}

/// Whether a live move is to be called off if it is not complete.
pub(crate) fn off(
    world: &World,
    hosts: &[HostFacts],
    vm: &VirtualMachine,
    moving: &VmMove,
    run: bool,
) -> bool {
    let namespace = vm.metadata.namespace.clone().unwrap_or_default();
    if !run || withdrawn(world, &namespace, moving) {
        return true;
    }
    let Some(facts) = facts_of(hosts, &moving.target) else { return true };
    // A target that is silent to the API alone is alive, and the copy goes on without us.
    let there = matches!(
        facts.state,
        HostState::Ready
            | HostState::Cordoned
            | HostState::Maintenance
            | HostState::Suspect
            | HostState::Isolated
    );
    let uid = vm.metadata.uid.clone().unwrap_or_default();
    let placements = vm.status.as_ref().map(|s| s.placements.as_slice()).unwrap_or_default();
    let same_boot =
        placements.iter().find(|p| p.epoch == moving.epoch).is_none_or(|p| p.boot_id == facts.boot);
    let target = Side::of(world, vm, placements, &moving.target, moving.epoch);
    let source = Side::of(world, vm, placements, &moving.source, moving.source_epoch);
    let slow = source.step(&moving.uid).is_none()
        && target.stands(&moving.uid).is_none()
        && world.age_of(&format!("domain/{}/{uid}", moving.target)) > PREPARE_LIMIT;
    !there || !same_boot || slow
}

/// Whether a boot holds one side of a move that is not decided, so that its locks may not be
/// broken yet (safety §8.3): the other side's copy must be dead, or be known to be the VM.
#[must_use]
pub fn undecided(world: &World, host_uid: &str, boot_id: &str) -> bool {
    let moving = |vm: &VirtualMachine| {
        let status = vm.status.as_ref()?;
        let moving = status.migration.as_ref().filter(|m| m.live)?;
        let here = |p: &PlacedEpoch| p.host_uid == host_uid && p.boot_id == boot_id;
        if !status.placements.iter().any(|p| here(p) && !p.state.is_settled()) {
            return None;
        }
        let placements = crate::gate::settle(world, vm);
        let sides = Sides::of(world, vm, moving, &placements);
        let target = sides.open_target()?;
        if target.state != EpochState::Incoming {
            return None;
        }
        let source = sides.open_source()?;
        let dead = |p: &PlacedEpoch| world.standing_proof(&p.host_uid, &p.boot_id).is_some();
        if here(target) && (dead(source) || sides.source_stays()) {
            return None;
        }
        (here(source) && !dead(target) || here(target)).then_some(())
    };
    world.guards.undecided_move && world.vms.values().any(|vm| moving(vm).is_some())
}
