//! Writes status: all conditions, always, and only what changed.

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::runtime::watcher::Event;
use stockade_core::plan::{Basis, Plan, Report};
use stockade_core::world::{Key, World};
use stockade_crds::conditions::{Decided, merge};
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, FenceDevice, Host, HostFence, LockManager, MigrationOutcome, SharedStorage,
    VirtualMachine, VirtualMachineConsole, VirtualMachineMigration, VirtualMachineStatus,
};

use crate::ControllerError;
use crate::cache::Change;
use crate::context::{Shared, request};
use crate::watch::chain;

const AT_ONCE: usize = 16;

fn now(shared: &Shared) -> Time {
    // Kubernetes keeps whole seconds.
    let seconds = shared.context.clock.wall_millis() / 1000;
    Time(Timestamp::from_second(seconds).unwrap_or(Timestamp::UNIX_EPOCH))
}

fn conditions(
    shared: &Shared,
    old: &[Condition],
    decided: &[Decided],
    generation: Option<i64>,
) -> Vec<Condition> {
    merge(old, decided, generation.unwrap_or_default(), now(shared))
}

/// The compare-and-swap on a VM's epoch: its status, at exactly this version.
pub(crate) async fn swap_vm(
    shared: &Shared,
    world: &World,
    key: &Key,
    basis: &Basis,
    report: &Report<VirtualMachineStatus>,
) -> Result<VirtualMachine, ControllerError> {
    let api: Api<VirtualMachine> = Api::namespaced(shared.client(), &key.namespace);
    let Some(vm) = world.vms.get(key) else {
        return Err(ControllerError::TimedOut { what: format!("VM {key} is not known; placing") });
    };
    let mut object = vm.as_ref().clone();
    let old = object.status.take().unwrap_or_default();
    let mut status = report.status.clone();
    status.conditions =
        conditions(shared, &old.conditions, &report.conditions, object.metadata.generation);
    object.status = Some(status);
    object.metadata.resource_version = Some(basis.version.clone());
    let what = || format!("placing VM {key}");
    if !world.guards.cas {
        let patch = Patch::Merge(serde_json::json!({"status": object.status}));
        return request(what, api.patch_status(&key.name, &PatchParams::default(), &patch)).await;
    }
    let params = PostParams::default();
    request(what, api.replace_status(&key.name, &params, &object)).await
}

macro_rules! update {
    ($shared:ident, $calls:ident, $reports:expr, $find:expr, $api:expr, $kind:ident, $what:expr) => {
        for (key, report) in $reports {
            let Some(object) = $find(key) else { continue };
            let old = object.status.as_ref();
            let mut status = report.status.clone();
            status.conditions = conditions(
                $shared,
                old.map_or(&[], |s| &s.conditions),
                &report.conditions,
                object.metadata.generation,
            );
            // Most statuses of a plan are as they were.
            if old.map_or_else(|| status == Default::default(), |old| status == *old) {
                continue;
            }
            let mut object = object.as_ref().clone();
            object.status = Some(status);
            let api: Api<$kind> = $api(key);
            let name = object.metadata.name.clone().unwrap_or_default();
            $calls.push(Box::pin(async move {
                $shared.leads()?;
                let params = PostParams::default();
                let call = api.replace_status(&name, &params, &object);
                match request(|| format!("status of {} {name}", $what), call).await {
                    Ok(answer) => Some(Change::$kind(Event::Apply(answer))),
                    Err(error) if error.is_conflict() => None,
                    Err(error) => {
                        tracing::warn!(error = %chain(&error), "a status was not written");
                        None
                    }
                }
            }));
        }
    };
}

/// Writes every status of a plan that differs from what is stored.
pub(crate) async fn update(shared: &Shared, world: &World, plan: &Plan) -> Vec<Change> {
    let mut calls: Vec<futures::future::BoxFuture<'_, Option<Change>>> = Vec::new();
    let in_ns = |key: &Key| Api::namespaced(shared.client(), &key.namespace);
    let policy: Vec<_> = plan.policy.iter().map(|r| (String::new(), r.clone())).collect();
    update!(shared, calls, &plan.vms, |k| world.vms.get(k), in_ns, VirtualMachine, "VM");
    let in_ns = |key: &Key| Api::namespaced(shared.client(), &key.namespace);
    update!(
        shared,
        calls,
        &plan.migrations,
        |k| world.migrations.get(k),
        in_ns,
        VirtualMachineMigration,
        "move"
    );
    let in_ns = |key: &Key| Api::namespaced(shared.client(), &key.namespace);
    update!(
        shared,
        calls,
        &plan.consoles,
        |k| world.consoles.get(k),
        in_ns,
        VirtualMachineConsole,
        "console"
    );
    update!(
        shared,
        calls,
        &plan.hosts,
        |k| world.hosts.get(k),
        |_: &String| Api::all(shared.client()),
        Host,
        "Host"
    );
    update!(
        shared,
        calls,
        &plan.storages,
        |k| world.storages.get(k),
        |_: &String| Api::all(shared.client()),
        SharedStorage,
        "SharedStorage"
    );
    update!(
        shared,
        calls,
        &plan.lock_managers,
        |k| world.lock_managers.get(k),
        |_: &String| Api::all(shared.client()),
        LockManager,
        "LockManager"
    );
    update!(
        shared,
        calls,
        &plan.fence_devices,
        |k| world.fence_devices.get(k),
        |_: &String| Api::all(shared.client()),
        FenceDevice,
        "FenceDevice"
    );
    update!(
        shared,
        calls,
        &plan.fences,
        |k| world.fences.get(k),
        |_: &String| Api::all(shared.client()),
        HostFence,
        "HostFence"
    );
    update!(
        shared,
        calls,
        &policy,
        |_: &String| world.policy.as_ref(),
        |_: &String| Api::all(shared.client()),
        AvailabilityPolicy,
        "AvailabilityPolicy"
    );
    let changes: Vec<Change> = futures::stream::iter(calls)
        .buffered(AT_ONCE)
        .filter_map(|change| async move { change })
        .collect()
        .await;
    count_moves(shared, world, &changes);
    changes
}

/// Counts the moves whose outcome was just written.
fn count_moves(shared: &Shared, world: &World, changes: &[Change]) {
    let is_over = |migration: &VirtualMachineMigration| {
        migration.status.as_ref().is_some_and(|s| s.outcome != MigrationOutcome::Pending)
    };
    for change in changes {
        let Change::VirtualMachineMigration(Event::Apply(written)) = change else { continue };
        let before = world.migrations.get(&Key::of(&written.metadata));
        if let Some(status) = written.status.as_ref().filter(|_| is_over(written))
            && before.is_none_or(|before| !is_over(before))
        {
            shared.observed.moved(status);
        }
    }
}
