//! Runs fence devices and calls storage servers, and remembers what they answered.
//!
//! A call that is under way is in the log before it begins, so that no plan makes it twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Secret;
use kube::Api;
use stockade_core::world::{FenceRecord, FenceResult, Millis, ServerCalls, World};
use stockade_crds::names::{AGENT_OBJECT, host_namespace};
use stockade_crds::v1alpha1::FenceAction;
use stockade_host::ports::{FenceCall, FenceRunner, Power};
use stockade_host::{HostError, HostResult};

use crate::context::{Shared, locked, request};
use crate::watch::chain;

/// Locks on a storage that is served by others are taken to be free after so long: an NFS
/// server's lease (90 s), and a beat.
const FOREIGN_LEASE_MILLIS: u64 = 95_000;
/// Calls that are remembered.
const REMEMBERED: usize = 4096;

/// Starts one call of a fence device.
pub(crate) fn call(
    shared: &Arc<Shared>,
    world: &World,
    (host, boot_id): (&str, &str),
    (device, plug): (&str, &str),
    action: FenceAction,
    acts: bool,
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
        acts,
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
    let target = (action == FenceAction::Off && world.guards.fresh_off)
        .then(|| Target::of(world, host, boot_id));
    let (shared, runner) = (Arc::clone(shared), Arc::clone(runner));
    tokio::spawn(async move {
        let agent = call.spec.agent.clone();
        let answer = carry_out(&shared, runner.as_ref(), call, target).await;
        let result = match answer {
            Ok(Some(Power::On)) => FenceResult::On,
            Ok(Some(Power::Off)) => FenceResult::Off,
            Ok(None) => FenceResult::Done,
            Err(error) => FenceResult::Failed(error.to_string()),
        };
        let done = shared.now();
        let word = match &result {
            FenceResult::Failed(_) => "Failed".to_owned(),
            other => format!("{other:?}"),
        };
        let labels = (record.device.as_str(), agent.as_str(), &*format!("{action:?}"));
        shared.observed.fenced(labels, &word, done.saturating_sub(record.started));
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

/// Whom an off order is meant for, as the plan knew it.
struct Target {
    host: String,
    boot_id: String,
    /// The version of its Lease, if the plan took it for silent.
    silent_at: Option<String>,
}

impl Target {
    fn of(world: &World, host: &str, boot_id: &str) -> Self {
        let beat = u64::try_from(world.policy_spec().heartbeat_seconds).unwrap_or(2) * 1000;
        let life = world.lives.hosts.get(host);
        let silent = life.filter(|life| {
            life.lease_at.is_none_or(|at| world.now.saturating_sub(at) > beat + beat / 2)
        });
        Self {
            host: host.to_owned(),
            boot_id: boot_id.to_owned(),
            silent_at: silent.map(|life| life.lease.version.clone()).filter(|v| !v.is_empty()),
        }
    }
}

async fn carry_out(
    shared: &Shared,
    runner: &dyn FenceRunner,
    mut call: FenceCall,
    target: Option<Target>,
) -> HostResult<Option<Power>> {
    if let Some(name) = &call.spec.secret {
        call.secret = secret(shared, name).await.map_err(|why| {
            HostError::refused("secret", &call.device, format!("spec.secret: {why}"))
        })?;
    }
    if let Some(target) = target {
        still_meant(shared, &target)
            .await
            .map_err(|why| HostError::refused("off", &call.device, why))?;
    }
    runner.run(&call).await
}

/// The keys of a fence device's secret, in the controller's own namespace.
async fn secret(shared: &Shared, name: &str) -> Result<BTreeMap<String, String>, String> {
    let namespace = &shared.context.namespace;
    let secrets: Api<Secret> = Api::namespaced(shared.client(), namespace);
    let call = secrets.get_opt(name);
    let found = request(|| format!("reading Secret {namespace}/{name}"), call)
        .await
        .map_err(|error| chain(&error))?;
    let Some(found) = found else {
        return Err(format!("there is no Secret {name:?} in namespace {namespace:?}; create it"));
    };
    let mut keys = BTreeMap::new();
    for (key, value) in found.data.unwrap_or_default() {
        let text = String::from_utf8(value.0).map_err(|_| {
            format!("key {key:?} of Secret {namespace}/{name} is no UTF-8 text; replace it")
        })?;
        keys.insert(key, text);
    }
    Ok(keys)
}

/// Gate 10: right before each off the term is still held, the boot is still the one that is
/// meant, and a host that was silent still is.
async fn still_meant(shared: &Shared, target: &Target) -> Result<(), String> {
    let host = &target.host;
    let leases: Api<Lease> = Api::namespaced(shared.client(), &host_namespace(host));
    let lease = request(|| format!("reading the Lease of {host}"), leases.get_opt(AGENT_OBJECT))
        .await
        .map_err(|error| chain(&error))?;
    if shared.leads().is_none() {
        return Err("another controller leads by now".to_owned());
    }
    let Some(lease) = lease else { return Ok(()) };
    let version = lease.metadata.resource_version.unwrap_or_default();
    if target.silent_at.as_ref().is_some_and(|known| *known != version) {
        return Err(format!("{host} has renewed its Lease; it is not shot"));
    }
    let holder = lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default();
    match holder.split_once('/') {
        Some((_, boot)) if boot != target.boot_id => {
            Err(format!("{host} beats in another boot; it is not shot"))
        }
        _ => Ok(()),
    }
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
        // An admission asks for nothing that would have to be waited for.
        let asked = (act != ServerAct::Admit).then(|| {
            *locked(&shared.server).asked.entry(key.clone()).or_insert_with(|| shared.now())
        });
        let waited = asked.map_or(0, |at| shared.now().saturating_sub(at));
        let answer = match &shared.context.storage_server {
            None if act == ServerAct::Admit => Ok(()),
            // Its server drops the state of a client whose lease is over by itself.
            None if act == ServerAct::Break && waited >= FOREIGN_LEASE_MILLIS => Ok(()),
            None => Err(HostError::refused(
                "denial",
                storage.as_str(),
                "this storage is served by others; its own lease must run out",
            )),
            Some(server) => match act {
                ServerAct::Deny => server.deny(&storage, &host, &boot_id).await,
                ServerAct::Break => server.break_locks(&storage, &host, &boot_id).await,
                ServerAct::Admit => server.admit(&storage, &host, &boot_id).await,
            },
        };
        let now = shared.now();
        note(&mut locked(&shared.server), key, act, answer, now);
        shared.fence_done.notify_one();
    });
}

/// Remembers what came of a call to a storage's serving side: `key` is the storage and the boot.
fn note(
    calls: &mut ServerCalls,
    key: (String, String),
    act: ServerAct,
    answer: HostResult<()>,
    now: Millis,
) {
    calls.pending.remove(&key);
    match (answer, act) {
        (Ok(()), ServerAct::Deny) => {
            calls.denied.insert(key);
        }
        (Ok(()), ServerAct::Break) => {
            calls.broken.insert(key);
        }
        // One that can't deny has nobody to admit.
        (Ok(()) | Err(HostError::Refused { .. }), ServerAct::Admit) => calls.forget(&key),
        (Err(error @ HostError::Refused { .. }), ServerAct::Deny) => {
            tracing::info!(storage = key.0, %error, "no denial there");
            calls.undeniable.insert(key);
        }
        (Err(error), act) => {
            // A server that answers after all is asked for the denial again: it breaks no lock
            // before the certificate says that it denies.
            if act == ServerAct::Break && error.is_unknown() {
                calls.undeniable.remove(&key);
            }
            calls.refused.insert(key, (now, error.to_string()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_answers_late_is_asked_for_the_denial_again() {
        let mut calls = ServerCalls::default();
        let key = || ("vms".to_owned(), "boot".to_owned());
        let refused = |op| Err(HostError::refused(op, "vms", "it does not answer"));
        note(&mut calls, key(), ServerAct::Deny, refused("denial"), 1);
        note(&mut calls, key(), ServerAct::Break, refused("break locks"), 2);
        assert!(calls.undeniable.contains(&key()), "its lease is waited for");
        let late = HostError::unknown("break locks", "vms", "it has not dropped them yet");
        note(&mut calls, key(), ServerAct::Break, Err(late), 3);
        assert!(!calls.undeniable.contains(&key()));
        note(&mut calls, key(), ServerAct::Deny, Ok(()), 4);
        assert!(calls.denied.contains(&key()));
        let other = ("vms".to_owned(), "another".to_owned());
        calls.asked = [(key(), 1), (other.clone(), 1)].into();
        note(&mut calls, key(), ServerAct::Admit, Ok(()), 5);
        let kept = ServerCalls { asked: [(other, 1)].into(), ..ServerCalls::default() };
        assert_eq!(calls, kept, "what was asked about another boot is waited for as before");
    }
}
