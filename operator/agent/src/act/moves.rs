//! Both sides of a live move: what is remembered before the hypervisor is asked.

use stockade_core::agent::Guards;
use stockade_core::agent::moves::{CopyEnd, source_order};
use stockade_core::agent::observed::Order;
use stockade_crds::names::domain_name;
use stockade_crds::v1alpha1::{DomainSpec, End, MigrationSide};
use stockade_host::ports::MigrateRequest;

use super::Done;
use super::start::{self, Stop};
use crate::context::{Context, timed};

/// Seconds that getting ready may take.
const PREPARE_SECONDS: u64 = 60;

/// Gets ready to take a VM in: the target's side of the gate (safety §8.1).
pub(super) async fn prepare(
    context: &Context,
    order: &Order,
    done: &mut Done,
) -> Result<(), String> {
    let outcome = ready(context, order, done).await.map_err(|stop| match stop {
        // Whatever kept it away: an epoch that was to come in and never did is void.
        Stop::Never(_, message) => Stop::Never(End::Void, message),
        stop => stop,
    });
    start::settle(context, order, outcome).await
}

async fn ready(context: &Context, order: &Order, done: &mut Done) -> Result<(), Stop> {
    let guards = context.config.guards;
    let spec = &order.spec;
    let uid = spec.vm.uid.as_str();
    let before = context.journal.vm(uid);
    let resumed = before.as_ref().is_some_and(|j| {
        j.epoch == spec.epoch && j.boot_id == context.boot_id && j.open && !j.launched
    });
    let boot = context.boot_id.clone();
    context
        .journal
        .update(uid, |vm| {
            if vm.epoch > spec.epoch && guards.epoch {
                return Err(format!("epoch {} was ordered here before", vm.epoch));
            }
            let again = vm.epoch == spec.epoch && (vm.launched || vm.end.is_some());
            if again && guards.once {
                return Err(format!("epoch {} came in before", vm.epoch));
            }
            if vm.epoch < spec.epoch && vm.launched && !vm.released && vm.boot_id == boot {
                return Err(format!("epoch {} of it is not released here yet", vm.epoch));
            }
            *vm = start::entry(spec, &boot);
            vm.open = true;
            vm.incoming = true;
            Ok(())
        })
        .await
        .map_err(Stop::Later)?;
    let beats = start::dead_beats(context, spec).await?;
    start::take_records(context, spec, resumed, done).await?;
    start::ensure_seed(context, spec).await?;
    let fresh =
        if guards.fresh_read { start::still_ordered(context, order).await? } else { spec.clone() };
    if start::dead_beats(context, &fresh).await? != beats {
        return Err(Stop::Never(End::Void, start::BEATS_AGAIN.into()));
    }
    // From here on it may come in.
    let launched = context.journal.set(uid, |vm| vm.launched = true);
    launched.await.map_err(Stop::Later)?;
    let call = context.ports.hypervisor.prepare_incoming(&fresh);
    let Err(error) = timed("prepare", uid, PREPARE_SECONDS, call).await else { return Ok(()) };
    if error.is_unknown() {
        return Err(Stop::Unknown(error.to_string()));
    }
    context
        .journal
        .set(uid, |vm| {
            vm.open = false;
            vm.returned = true;
            vm.end = Some(End::Void);
        })
        .await
        .map_err(Stop::Unknown)?;
    Err(Stop::Failed(End::Void, error.to_string()))
}

/// Remembers a move away; what it answers is to be handed to the hypervisor.
pub(super) async fn begin(
    context: &Context,
    order: &Order,
    id: &str,
) -> Result<MigrateRequest, String> {
    let spec = &order.spec;
    let uid = spec.vm.uid.as_str();
    let guards = context.config.guards;
    let fresh = match start::still_ordered(context, order).await {
        Ok(fresh) => fresh,
        Err(_) if !guards.fresh_move => spec.clone(),
        Err(Stop::Later(why) | Stop::Never(_, why) | Stop::Failed(_, why) | Stop::Unknown(why)) => {
            return Err(why);
        }
    };
    let request = request(&fresh, id, guards).ok_or("the order names no move away")?;
    context
        .journal
        .update(uid, |vm| {
            if vm.epoch != spec.epoch || !vm.launched || vm.end.is_some() {
                return Err(format!("epoch {} does not run here", spec.epoch));
            }
            if vm.moving.as_deref() == Some(id) && guards.move_once {
                return Err("this move was begun before".into());
            }
            vm.moving = Some(id.to_owned());
            Ok(())
        })
        .await?;
    Ok(request)
}

fn request(spec: &DomainSpec, id: &str, guards: Guards) -> Option<MigrateRequest> {
    let m = source_order(spec).filter(|m| m.id == id)?;
    Some(MigrateRequest {
        vm_uid: spec.vm.uid.clone(),
        name: domain_name(&spec.vm.namespace, &spec.vm.name),
        epoch: spec.epoch,
        target_epoch: m.peer_epoch,
        peer: m.peer.clone(),
        peer_address: m.peer_address.clone(),
        bandwidth_mib_per_second: m.bandwidth_mib_per_second,
        downtime_limit_milliseconds: m.downtime_limit_milliseconds,
        auto_converge: m.auto_converge,
        parallel_connections: m.parallel_connections,
        // A lock that spans the hosts stops a source that resumes by itself; without one the
        // swap of the epoch is the commit, and the target waits for it (safety §8.2).
        leave_paused: spec.machine.lock.is_none() && guards.leave_paused,
    })
}

/// Hands a move to the hypervisor; back once it is over, however long it takes.
pub(crate) async fn copy(context: &Context, request: &MigrateRequest) -> CopyEnd {
    match context.ports.hypervisor.migrate(request).await {
        Ok(()) => CopyEnd::Left,
        Err(error) if error.is_unknown() => CopyEnd::Unknown(error.to_string()),
        Err(error) => CopyEnd::Failed(error.to_string()),
    }
}

/// Whether the order says that this epoch left by our own move.
pub(super) fn left_by_order(order: Option<&Order>, moving: Option<&str>) -> bool {
    order
        .and_then(|o| o.spec.migration.as_ref())
        .is_some_and(|m| m.side == MigrationSide::Source && moving == Some(m.id.as_str()))
}
