//! Runs fence devices and calls storage servers, and remembers what they answered.
//!
//! A call that is under way is in the log before it begins, so that no plan makes it twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use stockade_core::world::{FenceRecord, FenceResult, World};
use stockade_crds::v1alpha1::FenceAction;
use stockade_host::HostError;
use stockade_host::ports::{FenceCall, Power};

use crate::context::{Shared, locked};

/// Calls that are remembered.
const REMEMBERED: usize = 4096;

/// Starts one call of a fence device.
pub(crate) fn call(
    shared: &Arc<Shared>,
    world: &World,
    (host, boot_id): (&str, &str),
    (device, plug): (&str, &str),
    action: FenceAction,
) {
    let (Some(object), Some(runner)) = (world.fence_devices.get(device), &shared.context.fence)
    else {
        return;
    };
    let record = FenceRecord {
        device: device.to_owned(),
        host: host.to_owned(),
        boot_id: boot_id.to_owned(),
        generation: object.metadata.generation.unwrap_or_default(),
        action,
        started: shared.now(),
        finished: None,
        result: FenceResult::Pending,
    };
    {
        let mut log = locked(&shared.fence_log);
        let same = |r: &FenceRecord| r.device == device && r.host == host && r.finished.is_none();
        if log.iter().any(same) {
            return;
        }
        if log.len() >= REMEMBERED {
            log.pop_front();
        }
        log.push_back(record.clone());
    }
    let call = FenceCall {
        device: device.to_owned(),
        spec: object.spec.clone(),
        plug: plug.to_owned(),
        secret: BTreeMap::new(),
        action,
    };
    let (shared, runner) = (Arc::clone(shared), Arc::clone(runner));
    tokio::spawn(async move {
        let answer = runner.run(&call).await;
        let result = match answer {
            Ok(Some(Power::On)) => FenceResult::On,
            Ok(Some(Power::Off)) => FenceResult::Off,
            Ok(None) => FenceResult::Done,
            Err(error) => FenceResult::Failed(error.to_string()),
        };
        let done = shared.now();
        for known in locked(&shared.fence_log).iter_mut() {
            if known.finished.is_none()
                && known.device == record.device
                && known.host == record.host
                && known.started == record.started
            {
                known.finished = Some(done);
                known.result = result.clone();
            }
        }
        shared.fence_done.notify_one();
    });
}

/// What is asked of a storage's serving side.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ServerAct {
    /// Withdraw a boot's access.
    Deny,
    /// Free a dead boot's locks.
    Break,
    /// Give a host access again.
    Admit,
}

/// Starts one call to a storage's serving side.
pub(crate) fn server(
    shared: &Arc<Shared>,
    act: ServerAct,
    storage: &str,
    host: &str,
    boot_id: &str,
) {
    let key = (storage.to_owned(), boot_id.to_owned());
    if !locked(&shared.server).pending.insert(key.clone()) {
        return;
    }
    let (storage, host, boot_id) = (storage.to_owned(), host.to_owned(), boot_id.to_owned());
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let answer = match &shared.context.storage_server {
            None => Err(HostError::refused(
                "denial",
                storage.as_str(),
                "this storage is served by others; its own lease must run out",
            )),
            Some(server) => match act {
                ServerAct::Deny => server.deny(&storage, &host, &boot_id).await,
                ServerAct::Break => server.break_locks(&storage, &host, &boot_id).await,
                ServerAct::Admit => server.admit(&storage, &host).await,
            },
        };
        let now = shared.now();
        let mut calls = locked(&shared.server);
        calls.pending.remove(&key);
        match (answer, act) {
            (Ok(()), ServerAct::Deny) => {
                calls.denied.insert(key);
            }
            (Ok(()), ServerAct::Break) => {
                calls.broken.insert(key);
            }
            (Ok(()), ServerAct::Admit) => {
                calls.denied.retain(|(s, _)| *s != storage);
                calls.broken.retain(|(s, _)| *s != storage);
            }
            (Err(error), _) => {
                calls.refused.insert(key, (now, error.to_string()));
            }
        }
        drop(calls);
        shared.fence_done.notify_one();
    });
}
