//! Taking in a copy that a human says is the VM (safety §8.5): it is suspended, record and lock
//! are taken under the order's epoch, then it goes on. If they can't be had it is killed, and
//! the VM starts cold.

use std::time::Duration;

use stockade_core::agent::observed::Order;
use stockade_core::agent::types::Presence;
use stockade_crds::v1alpha1::End;

use super::start::{self, Stop};
use super::{CALL_SECONDS, Done, release};
use crate::context::{Context, timed};

/// Looks, half a second apart, for the end of a killed copy.
const LOOKS: u32 = 20;

/// Takes the copy with the epoch `from` in its metadata in under `order`. The round that
/// follows resumes it.
pub(super) async fn adopt(
    context: &Context,
    order: &Order,
    from: i64,
    done: &mut Done,
) -> Result<(), String> {
    let spec = &order.spec;
    let uid = spec.vm.uid.as_str();
    let hypervisor = &context.ports.hypervisor;
    let before = context.journal.vm(uid);
    let resumed = before
        .as_ref()
        .is_some_and(|j| j.epoch == spec.epoch && j.boot_id == context.boot_id && j.end.is_none());
    let launched = resumed && before.is_some_and(|j| j.launched);
    let boot = context.boot_id.clone();
    if !launched {
        context
            .journal
            .update(uid, |vm| {
                if vm.epoch > spec.epoch {
                    return Err(format!("epoch {} was ordered here before", vm.epoch));
                }
                *vm = start::entry(spec, &boot);
                Ok(())
            })
            .await?;
    }
    timed("suspend", uid, CALL_SECONDS, hypervisor.suspend(uid))
        .await
        .map_err(|e| e.to_string())?;
    if !launched {
        let taken = match start::take_records(context, spec, resumed, done).await {
            Ok(verdicts) => start::bury(context, &verdicts).await,
            Err(stop) => Err(stop),
        };
        match taken {
            Ok(()) => {}
            Err(Stop::Never(end, message)) => {
                // It may not be taken in: it goes on as it was found.
                release::void(context, uid, spec.epoch, end, Some(order)).await?;
                let resumed = timed("resume", uid, CALL_SECONDS, hypervisor.resume(uid)).await;
                return resumed.map_err(|e| e.to_string()).and(Err(message));
            }
            Err(Stop::Later(message) | Stop::Unknown(message) | Stop::Failed(_, message)) => {
                return Err(message);
            }
        }
        context
            .journal
            .set(uid, |vm| {
                vm.launched = true;
                vm.returned = true;
            })
            .await?;
    }
    match timed("adopt", uid, CALL_SECONDS, hypervisor.adopt(spec, from)).await {
        Ok(()) => Ok(()),
        Err(error) if error.is_unknown() => Err(error.to_string()),
        Err(error) => {
            kill(context, uid, from).await?;
            release::release(context, uid, spec.epoch, End::Killed, false, false).await?;
            Err(format!("{error}; the copy was killed, the VM starts cold"))
        }
    }
}

/// Kills the copy and waits until it is gone.
async fn kill(context: &Context, uid: &str, epoch: i64) -> Result<(), String> {
    let hypervisor = &context.ports.hypervisor;
    timed("kill", uid, CALL_SECONDS, hypervisor.kill(uid, epoch))
        .await
        .map_err(|e| e.to_string())?;
    for _ in 0..LOOKS {
        if hypervisor.presence(uid, epoch).await == Presence::Gone {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Err("the copy can't be taken in and does not die".into())
}
