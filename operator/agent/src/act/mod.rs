//! Carries one action out. Every step has its time; what is lost is observed again.

mod adopt;
mod moves;
mod release;
mod start;

pub(crate) use moves::copy;

use std::sync::Arc;

use stockade_core::agent::HostAction;
use stockade_core::agent::observed::Order;
use stockade_core::agent::types::{LiveChange, Started};
use stockade_crds::v1alpha1::LockReport;

use stockade_host::ports::MigrateRequest;

use crate::context::{Context, timed};

/// Seconds that one call of the hypervisor may take.
pub(crate) const CALL_SECONDS: u64 = 10;

/// What an action came to, for the memory of its VM.
#[derive(Debug, Default)]
pub(crate) struct Done {
    pub(crate) uid: String,
    pub(crate) action: Option<HostAction>,
    /// What went wrong; empty: nothing.
    pub(crate) trouble: String,
    pub(crate) started: Option<Started>,
    pub(crate) lock: Option<LockReport>,
    pub(crate) resized: Option<(i32, i64, LiveChange)>,
    pub(crate) highest_record: i64,
    /// A move away that was remembered and is to be handed to the hypervisor.
    pub(crate) copy: Option<(String, MigrateRequest)>,
}

/// Carries `action` out for the VM `uid`; `order` is there if it is for this host.
pub(crate) async fn act(
    context: Arc<Context>,
    uid: String,
    action: HostAction,
    order: Option<Order>,
) -> Done {
    let mut done = Done { uid: uid.clone(), action: Some(action.clone()), ..Done::default() };
    let result = perform(&context, &uid, &action, order.as_ref(), &mut done).await;
    if let Err(trouble) = result {
        tracing::warn!(vm = uid, ?action, trouble, "an action failed");
        done.trouble = trouble;
    }
    done
}

async fn perform(
    context: &Context,
    uid: &str,
    action: &HostAction,
    order: Option<&Order>,
    done: &mut Done,
) -> Result<(), String> {
    let hypervisor = &context.ports.hypervisor;
    let text = |error: stockade_host::HostError| error.to_string();
    match action {
        HostAction::Start => match order {
            Some(order) => start::start(context, order, done).await,
            None => Ok(()),
        },
        HostAction::Note { epoch } => note(context, uid, *epoch, order).await,
        HostAction::Close => context.journal.set(uid, |vm| vm.open = false).await,
        HostAction::Settle => context.journal.set(uid, |vm| vm.returned = true).await,
        HostAction::Shutdown => {
            timed("shutdown", uid, CALL_SECONDS, hypervisor.shutdown(uid)).await.map_err(text)
        }
        HostAction::Adopt { from } => match order {
            Some(order) => adopt::adopt(context, order, *from, done).await,
            None => Ok(()),
        },
        HostAction::Kill { epoch }
        | HostAction::Abandon { epoch }
        | HostAction::GiveUp { epoch } => {
            timed("kill", uid, CALL_SECONDS, hypervisor.kill(uid, *epoch)).await.map_err(text)
        }
        HostAction::Suspend => {
            timed("suspend", uid, CALL_SECONDS, hypervisor.suspend(uid)).await.map_err(text)
        }
        HostAction::Resume => {
            timed("resume", uid, CALL_SECONDS, hypervisor.resume(uid)).await.map_err(text)
        }
        HostAction::Reset { id } => {
            // At most once: remembered before it is done.
            let id = id.clone();
            context.journal.set(uid, |vm| vm.reset = Some(id)).await?;
            timed("reset", uid, CALL_SECONDS, hypervisor.reset(uid)).await.map_err(text)
        }
        HostAction::Resize { cores, memory_mib } => {
            let call = hypervisor.resize(uid, *cores, *memory_mib);
            let change = timed("resize", uid, CALL_SECONDS, call).await.map_err(text)?;
            done.resized = Some((*cores, *memory_mib, change));
            Ok(())
        }
        HostAction::Grow { path, bytes } => {
            let call = hypervisor.resize_disk(uid, path, *bytes);
            timed("grow disk", path, CALL_SECONDS, call).await.map_err(text)?;
            let size = [(path.clone(), *bytes)];
            context.journal.set(uid, |vm| vm.sizes.extend(size)).await
        }
        HostAction::Release { epoch, end, history } => {
            let moving = context.journal.vm(uid).and_then(|vm| vm.moving);
            let settled = order.is_some_and(|o| o.spec.settled_through >= *epoch)
                || moves::left_by_order(order, moving.as_deref());
            release::release(context, uid, *epoch, *end, *history, settled).await
        }
        HostAction::Void { epoch, end, message } => {
            release::void(context, uid, *epoch, *end, order).await?;
            done.trouble.clone_from(message);
            Ok(())
        }
        HostAction::Prepare => match order {
            Some(order) => moves::prepare(context, order, done).await,
            None => Ok(()),
        },
        HostAction::Arrived => {
            context
                .journal
                .set(uid, |vm| {
                    vm.incoming = false;
                    vm.returned = true;
                })
                .await
        }
        HostAction::Migrate { id } => {
            let Some(order) = order else { return Ok(()) };
            let request = moves::begin(context, order, id).await?;
            done.copy = Some((id.clone(), request));
            Ok(())
        }
        HostAction::AbortMove => {
            let call = hypervisor.abort_migration(uid);
            timed("abort move", uid, CALL_SECONDS, call).await.map_err(text)
        }
        HostAction::DeleteDisks => {
            for disk in order.iter().flat_map(|o| &o.spec.delete_disks) {
                let call = context.ports.storage.delete_disk(disk);
                timed("delete", disk, CALL_SECONDS, call).await.map_err(text)?;
            }
            Ok(())
        }
    }
}

/// Remembers a running copy of an order's epoch that the journal does not know.
async fn note(
    context: &Context,
    uid: &str,
    epoch: i64,
    order: Option<&Order>,
) -> Result<(), String> {
    let Some(order) = order else { return Ok(()) };
    let boot = context.boot_id.clone();
    context
        .journal
        .update(uid, |vm| {
            if vm.epoch > epoch {
                return Err(format!("epoch {} was ordered here before", vm.epoch));
            }
            *vm = start::entry(&order.spec, &boot);
            vm.launched = true;
            vm.returned = true;
            Ok(())
        })
        .await
}
