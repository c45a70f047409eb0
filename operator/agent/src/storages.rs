//! Keeps the host's storages mounted and checked, and reads the beats on them.
//! Each has a task of its own, so that one that hangs blocks no other.

use std::collections::BTreeMap;
use std::sync::Arc;

use stockade_crds::v1alpha1::{AgentStorage, StorageReport};
use tokio::task::{AbortHandle, JoinSet};

use crate::context::{Context, locked, timed};

/// Pause before a storage that is still in use is tried to be let go again, in milliseconds.
const LEAVE_AGAIN: u64 = 5_000;
/// Intervals of beats between two checks of a storage that is ready.
const CHECK_EVERY: u64 = 5;

/// Follows HostAgent.spec, for ever.
pub(crate) async fn run(context: Arc<Context>) {
    let mut tasks = JoinSet::new();
    let mut keepers: BTreeMap<String, (AgentStorage, AbortHandle)> = BTreeMap::new();
    let mut leaving: BTreeMap<String, AbortHandle> = BTreeMap::new();
    let mut beating: Option<(Vec<String>, i32, i64)> = None;
    loop {
        while tasks.try_join_next().is_some() {}
        if let Some(spec) = context.joined_spec() {
            keepers.retain(|name, (storage, task)| {
                let kept = spec.storages.contains(storage);
                if !kept {
                    task.abort();
                    locked(&context.storages).remove(name);
                    locked(&context.looks).remove(name);
                    locked(&context.watched).remove(name);
                    let task = tasks.spawn(leave(Arc::clone(&context), storage.clone()));
                    leaving.insert(storage.mount_path.clone(), task);
                }
                kept
            });
            // One that is declared again, perhaps otherwise, stays mounted.
            leaving.retain(|path, task| {
                let again = spec.storages.iter().any(|storage| storage.mount_path == *path);
                if again {
                    task.abort();
                }
                !again && !task.is_finished()
            });
            for storage in &spec.storages {
                if !keepers.contains_key(&storage.name) {
                    let task = tasks.spawn(keep(Arc::clone(&context), storage.clone()));
                    keepers.insert(storage.name.clone(), (storage.clone(), task));
                }
            }
            let ready: Vec<String> = locked(&context.storages)
                .values()
                .filter(|s| s.ready)
                .map(|s| s.name.clone())
                .collect();
            let lineage = spec.lineage.as_ref().map_or(0, |l| l.counter);
            let wanted = (ready, spec.heartbeat_seconds.max(1), lineage);
            // A storage that hangs for a moment goes on beating as soon as it can: only
            // what the spec no longer names stops.
            let first_time = beating.as_ref().is_none_or(|b| {
                b.1 != wanted.1
                    || b.2 != wanted.2
                    || wanted.0.iter().any(|s| !b.0.contains(s))
                    || b.0.iter().any(|s| !spec.storages.iter().any(|n| n.name == *s))
            });
            if first_time && !wanted.0.is_empty() {
                let call = context.ports.storage.keep_beating(&wanted.0, wanted.1, wanted.2);
                match timed("keep beating", "storages", 10, call).await {
                    Ok(()) => beating = Some(wanted),
                    Err(error) => tracing::warn!(%error, "the storage beat does not run"),
                }
            }
        }
        context.ports.clock.sleep(250).await;
    }
}

/// Lets go of a storage that is no longer declared, as soon as nothing uses it.
async fn leave(context: Arc<Context>, storage: AgentStorage) {
    loop {
        let call = context.ports.storage.forget(&storage);
        match timed("let go", &storage.name, 15, call).await {
            Ok(()) => return,
            Err(error) => tracing::info!(%error, storage = storage.name, "it stays for now"),
        }
        context.ports.clock.sleep(LEAVE_AGAIN).await;
    }
}

async fn keep(context: Arc<Context>, storage: AgentStorage) {
    let mut checked = None;
    let mut ready = false;
    let mut doubt = false;
    loop {
        let pause = context.interval() * CHECK_EVERY;
        let due = checked.is_none_or(|at: u64| context.now() >= at.saturating_add(pause));
        if !ready || std::mem::take(&mut doubt) || due {
            checked = Some(context.now());
            let call = async { Ok(context.ports.storage.ensure(&storage).await) };
            let report = timed("check", &storage.name, 15, call).await.unwrap_or_else(|error| {
                let message = error.to_string();
                StorageReport { name: storage.name.clone(), ready: false, message }
            });
            ready = report.ready;
            let before = locked(&context.storages).insert(storage.name.clone(), report.clone());
            if before.as_ref() != Some(&report) {
                context.wake.notify_one();
            }
        }
        let mut wait = 1_000;
        if ready {
            let began = context.now();
            let call = context.ports.storage.beats(&storage.name);
            match timed("read beats", &storage.name, 5, call).await {
                Ok(beats) => wait = context.take_beats(&storage.name, beats, began),
                Err(error) => {
                    doubt = true;
                    tracing::warn!(%error, storage = storage.name, "beats unread");
                }
            }
        }
        context.ports.clock.sleep(wait).await;
    }
}
