//! Releasing an epoch: gone, drained, marked, remembered, in this order (safety §1).

use stockade_core::agent::observed::{Order, writable_disks};
use stockade_core::agent::types::{Presence, RecordState};
use stockade_crds::v1alpha1::End;

use super::{CALL_SECONDS, start};
use crate::context::{Context, timed};

/// Seconds that draining one disk may take.
const DRAIN_SECONDS: u64 = 20;

/// Releases an epoch whose process is gone. `history`: its boot is over, which drained it.
/// `settled`: the controller's order says that the epoch is settled.
pub(super) async fn release(
    context: &Context,
    uid: &str,
    epoch: i64,
    end: End,
    history: bool,
    settled: bool,
) -> Result<(), String> {
    let guards = context.config.guards;
    let storage = &context.ports.storage;
    if guards.gone && context.ports.hypervisor.presence(uid, epoch).await != Presence::Gone {
        return Err("its process is not gone".into());
    }
    context
        .journal
        .update(uid, |vm| {
            if vm.epoch != epoch {
                return Err(format!("epoch {} has taken its place", vm.epoch));
            }
            vm.open = false;
            vm.end = Some(end);
            Ok(())
        })
        .await?;
    let disks = context.journal.vm(uid).map(|vm| vm.disks).unwrap_or_default();
    if guards.drained && !history {
        for disk in &disks {
            match timed("drain", disk, DRAIN_SECONDS, storage.drain(disk)).await {
                Ok(true) => {}
                Ok(false) => return Err(format!("writes to {disk} are still outstanding")),
                Err(error) => return Err(error.to_string()),
            }
        }
    }
    // It left by somebody else's hand: its right to write went with it, until the controller
    // says that a later epoch has taken it over.
    if end == End::Migrated && !settled {
        return Err(format!(
            "it was moved away by someone else's hand and may run elsewhere; request \
             adopt/HOST/ID for the host on which it is, or, once it runs nowhere, adopt/{}/ID",
            context.config.host
        ));
    }
    let mut unmarked = false;
    for disk in &disks {
        let call = storage.release_record(disk, epoch);
        let marked = timed("release record", disk, CALL_SECONDS, call).await;
        if let Err(error) = marked {
            if !history {
                return Err(error.to_string());
            }
            tracing::info!(%error, disk, epoch, "released without a mark beside the disk");
            unmarked = true;
        }
    }
    if let Err(error) = timed("remove seed", uid, CALL_SECONDS, storage.remove_seed(uid)).await {
        tracing::debug!(%error, "the seed image stays");
    }
    mark(context, uid, epoch, unmarked).await
}

/// Makes an epoch void that was never launched here.
pub(super) async fn void(
    context: &Context,
    uid: &str,
    epoch: i64,
    end: End,
    order: Option<&Order>,
) -> Result<(), String> {
    // Once it was begun its records may be there.
    let begun = context.journal.vm(uid).is_some_and(|vm| vm.epoch == epoch);
    let boot = order.map_or_else(|| context.boot_id.clone(), |o| o.spec.boot_id.clone());
    context
        .journal
        .update(uid, |vm| {
            if vm.epoch > epoch || (vm.epoch == epoch && vm.launched) {
                return Err(format!("epoch {epoch} is not one that was never launched"));
            }
            if vm.epoch < epoch {
                if let Some(order) = order {
                    *vm = start::entry(&order.spec, &boot);
                }
                vm.epoch = epoch;
            }
            vm.open = false;
            vm.end = Some(end);
            Ok(())
        })
        .await?;
    let mut unmarked = false;
    if let Some(order) = order {
        for disk in writable_disks(&order.spec) {
            if let Err(error) = void_record(context, order, epoch, &disk).await {
                tracing::info!(error, disk, "no void record: the disk is out of reach");
                unmarked |= begun;
            }
        }
    }
    mark(context, uid, epoch, unmarked).await
}

/// Leaves a record that keeps a late start of this epoch from writing.
async fn void_record(
    context: &Context,
    order: &Order,
    epoch: i64,
    disk: &str,
) -> Result<(), String> {
    let storage = &context.ports.storage;
    let text = |error: stockade_host::HostError| error.to_string();
    let records =
        timed("read records", disk, CALL_SECONDS, storage.records(disk)).await.map_err(text)?;
    match records.iter().find(|r| r.epoch == epoch) {
        Some(r) if r.host_uid == context.host_uid && r.state == RecordState::Held => {
            let call = storage.release_record(disk, epoch);
            timed("release record", disk, CALL_SECONDS, call).await.map_err(text)
        }
        Some(_) => Ok(()),
        None => {
            let record = start::record(context, &order.spec, epoch, RecordState::Void);
            let call = storage.link_record(disk, &record);
            timed("link record", disk, CALL_SECONDS, call).await.map(|_| ()).map_err(text)
        }
    }
}

async fn mark(context: &Context, uid: &str, epoch: i64, unmarked: bool) -> Result<(), String> {
    context
        .journal
        .set(uid, |vm| {
            if vm.epoch == epoch {
                vm.released = true;
                vm.unmarked = unmarked;
                vm.open = false;
            }
        })
        .await
}
