//! Carries intents out: every write with the version it was decided on, and only while this
//! process leads.

mod seeds;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::ObjectMeta;
use kube::runtime::watcher::Event;
use serde_json::json;
use stockade_core::plan::{Basis, DomainWrite, Intent, Plan, ReliesOn};
use stockade_core::world::{Key, OrderKey, World};
use stockade_crds::names::{
    AGENT_OBJECT, CAUSE_LABEL, FINALIZER, HOST_LABEL, LEADER_LABEL, LINEAGE_ANNOTATION,
    VM_NAME_LABEL, VM_NAMESPACE_LABEL, host_namespace,
};
use stockade_crds::v1alpha1::{
    Domain, HostAgent, HostFence, VirtualMachine, VirtualMachineConsole, VirtualMachineMigration,
};

use crate::cache::Change;
use crate::context::{Shared, locked, request};
use crate::watch::chain;
use crate::{ControllerError, authority, events, fencing, lineage, update_status};

/// Writes under way at once. Intents of one plan concern different objects.
const AT_ONCE: usize = 16;

/// Carries a plan's intents out; answers what the API now holds.
pub(crate) async fn apply(shared: &Arc<Shared>, world: &World, plan: &Plan) -> Vec<Change> {
    let raised = !plan.intents.iter().any(needs_raise) || raised(shared, world).await;
    let calls: Vec<_> = plan
        .intents
        .iter()
        .map(|intent| async move {
            if shared.leads().is_none() || (!raised && needs_raise(intent)) {
                return Vec::new();
            }
            match one(shared, world, intent).await {
                Ok(changes) => changes,
                Err(error) if error.is_conflict() => {
                    tracing::debug!(error = %chain(&error), "the next plan decides again");
                    Vec::new()
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "a write failed");
                    Vec::new()
                }
            }
        })
        .collect();
    futures::stream::iter(calls).buffered(AT_ONCE).concat().await
}

/// Gate 9: what the API must not forget unnoticed.
fn needs_raise(intent: &Intent) -> bool {
    matches!(intent, Intent::Place { .. } | Intent::OpenFence { .. })
}

async fn raised(shared: &Shared, world: &World) -> bool {
    if shared.leads().is_none() {
        return false;
    }
    match lineage::raise(shared, world.lineage.as_ref()).await {
        Ok(raised) => raised,
        Err(error) => {
            tracing::debug!(error = %chain(&error), "nothing is placed before the counter is raised");
            false
        }
    }
}

async fn one(
    shared: &Arc<Shared>,
    world: &World,
    intent: &Intent,
) -> Result<Vec<Change>, ControllerError> {
    let post = PostParams::default();
    match intent {
        Intent::EnsureNamespace { host } => ensure_namespace(shared, host).await,
        Intent::WriteHostAgent { host, spec, replaces } => {
            let api: Api<HostAgent> = Api::namespaced(shared.client(), &host_namespace(host));
            let mut object = HostAgent::new(AGENT_OBJECT, spec.clone());
            let what = || format!("writing HostAgent of {host}");
            let answer = match replaces {
                None => request(what, api.create(&post, &object)).await?,
                Some(basis) => {
                    stamp(&mut object.metadata, basis);
                    request(what, api.replace(AGENT_OBJECT, &post, &object)).await?
                }
            };
            Ok(vec![Change::HostAgent(Event::Apply(answer))])
        }
        Intent::SignIdentity { host, requests, names, above } => {
            authority::sign(shared, host, (requests, names), *above).await?;
            Ok(Vec::new())
        }
        Intent::ReadAuthority => {
            authority::read(shared).await?;
            Ok(Vec::new())
        }
        Intent::ChangeAuthority { from } => {
            authority::change(shared, *from).await?;
            Ok(Vec::new())
        }
        Intent::ResumeLineage { from, above } => {
            lineage::raise_to(shared, from, above + 1).await?;
            Ok(Vec::new())
        }
        Intent::AddFinalizer { vm, basis } => finalizer(shared, world, vm, basis, true).await,
        Intent::RemoveFinalizer { vm, basis } => finalizer(shared, world, vm, basis, false).await,
        Intent::Place { vm, basis, report, domains, relies_on } => {
            for death in relies_on {
                if world.guards.fresh_read {
                    read_fresh(shared, world, death).await?;
                }
            }
            // Read before the swap: without its secret the VM is not placed at all.
            let mut copies = Vec::new();
            for write in domains {
                copies.push(seeds::read(shared, world, write).await?);
            }
            let swapped = update_status::swap_vm(shared, world, vm, basis, report).await?;
            shared.observed.placed();
            let mut changes = vec![Change::VirtualMachine(Event::Apply(swapped))];
            for (write, copy) in domains.iter().zip(copies) {
                seeds::put(shared, copy).await?;
                changes.push(write_domain(shared, write).await?);
            }
            Ok(changes)
        }
        Intent::WriteDomain(write) => {
            let copy = seeds::read(shared, world, write).await?;
            seeds::put(shared, copy).await?;
            Ok(vec![write_domain(shared, write).await?])
        }
        Intent::RemoveSeed { host, vm_uid, epoch } => {
            seeds::remove(shared, host, vm_uid, *epoch).await?;
            Ok(Vec::new())
        }
        Intent::DeleteDomain { host, vm_uid, basis } => {
            if let Some(domain) = world.domains.get(&OrderKey::new(host.clone(), vm_uid.clone()))
                && domain.spec.machine.seed.as_ref().is_some_and(|seed| seed.secret.is_some())
            {
                // While the order is there, it tells of its copy.
                seeds::remove(shared, host, vm_uid, domain.spec.epoch).await?;
            }
            let api: Api<Domain> = Api::namespaced(shared.client(), &host_namespace(host));
            let params = preconditions(basis);
            request(|| format!("deleting Domain {vm_uid}"), api.delete(vm_uid, &params)).await?;
            Ok(Vec::new())
        }
        Intent::OpenFence { name, spec } => {
            let api: Api<HostFence> = Api::all(shared.client());
            let mut object = HostFence::new(name, spec.clone());
            object.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
            let call = api.create(&post, &object);
            let answer = request(|| format!("opening HostFence {name}"), call).await?;
            Ok(vec![Change::HostFence(Event::Apply(answer))])
        }
        Intent::CloseFence { name, basis } => {
            let api: Api<HostFence> = Api::all(shared.client());
            let patch = Patch::Merge(json!({"metadata": {
                "uid": basis.uid, "resourceVersion": basis.version, "finalizers": null,
            }}));
            let params = PatchParams::default();
            let call = api.patch(name, &params, &patch);
            let freed = request(|| format!("closing HostFence {name}"), call).await?;
            if freed.metadata.deletion_timestamp.is_none() {
                let params = preconditions(&Basis {
                    uid: basis.uid.clone(),
                    version: freed.metadata.resource_version.unwrap_or_default(),
                });
                request(|| format!("closing HostFence {name}"), api.delete(name, &params)).await?;
            }
            Ok(Vec::new())
        }
        Intent::Fence { host, boot_id, device, plug, action, acts } => {
            fencing::call(shared, world, (host, boot_id), (device, plug), *action, *acts);
            Ok(Vec::new())
        }
        Intent::Deny { storage, host, boot_id } => {
            fencing::server(shared, fencing::ServerAct::Deny, storage, host, boot_id);
            Ok(Vec::new())
        }
        Intent::BreakLocks { storage, host, boot_id } => {
            fencing::server(shared, fencing::ServerAct::Break, storage, host, boot_id);
            Ok(Vec::new())
        }
        Intent::Admit { storage, host, boot_id } => {
            fencing::server(shared, fencing::ServerAct::Admit, storage, host, boot_id);
            Ok(Vec::new())
        }
        Intent::CreateMigration { key, spec, cause, leader } => {
            let api: Api<VirtualMachineMigration> =
                Api::namespaced(shared.client(), &key.namespace);
            let mut object = VirtualMachineMigration::new(&key.name, spec.clone());
            let mut labels = BTreeMap::from([(CAUSE_LABEL.to_owned(), (*cause).to_owned())]);
            if let Some(leader) = leader {
                labels.insert(LEADER_LABEL.to_owned(), leader.clone());
            }
            object.metadata.labels = Some(labels);
            object.metadata.finalizers = Some(vec![FINALIZER.to_owned()]);
            let call = api.create(&post, &object);
            let answer = request(|| format!("creating move {key}"), call).await?;
            Ok(vec![Change::VirtualMachineMigration(Event::Apply(answer))])
        }
        Intent::MigrationFinalizer { key, basis, add } => {
            let api: Api<VirtualMachineMigration> =
                Api::namespaced(shared.client(), &key.namespace);
            let Some(known) = world.migrations.get(key) else { return Ok(Vec::new()) };
            let mut finalizers = known.metadata.finalizers.clone().unwrap_or_default();
            finalizers.retain(|f| f != FINALIZER);
            if *add {
                finalizers.push(FINALIZER.to_owned());
            }
            let patch = Patch::Merge(json!({"metadata": {
                "uid": basis.uid,
                "resourceVersion": basis.version,
                "finalizers": finalizers,
            }}));
            let params = PatchParams::default();
            let call = api.patch(&key.name, &params, &patch);
            let answer = request(|| format!("setting the finalizer of move {key}"), call).await?;
            Ok(if *add {
                vec![Change::VirtualMachineMigration(Event::Apply(answer))]
            } else {
                Vec::new()
            })
        }
        Intent::DeleteMigration { key, basis } => {
            let api: Api<VirtualMachineMigration> =
                Api::namespaced(shared.client(), &key.namespace);
            let params = preconditions(basis);
            request(|| format!("deleting move {key}"), api.delete(&key.name, &params)).await?;
            Ok(Vec::new())
        }
        Intent::DeleteConsole { key, basis } => {
            let api: Api<VirtualMachineConsole> = Api::namespaced(shared.client(), &key.namespace);
            let params = preconditions(basis);
            request(|| format!("deleting console {key}"), api.delete(&key.name, &params)).await?;
            Ok(Vec::new())
        }
        Intent::Event(event) => {
            events::publish(shared, world, event).await;
            Ok(Vec::new())
        }
    }
}

fn stamp(meta: &mut ObjectMeta, basis: &Basis) {
    meta.uid = Some(basis.uid.clone());
    meta.resource_version = Some(basis.version.clone());
}

fn preconditions(basis: &Basis) -> DeleteParams {
    DeleteParams {
        preconditions: Some(Preconditions {
            uid: Some(basis.uid.clone()),
            resource_version: Some(basis.version.clone()),
        }),
        ..DeleteParams::default()
    }
}

async fn ensure_namespace(shared: &Shared, host: &str) -> Result<Vec<Change>, ControllerError> {
    let name = host_namespace(host);
    let post = PostParams::default();
    let namespaces: Api<Namespace> = Api::all(shared.client());
    let namespace = Namespace {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some([(HOST_LABEL.to_owned(), host.to_owned())].into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    };
    let call = namespaces.create(&post, &namespace);
    let made = request(|| format!("creating namespace {name}"), call).await?;
    let bindings: Api<RoleBinding> = Api::namespaced(shared.client(), &name);
    let binding = RoleBinding {
        metadata: ObjectMeta { name: Some("stockade-agent".into()), ..ObjectMeta::default() },
        role_ref: RoleRef {
            api_group: "rbac.authorization.k8s.io".into(),
            kind: "ClusterRole".into(),
            name: "stockade-agent".into(),
        },
        subjects: Some(vec![Subject {
            api_group: Some("rbac.authorization.k8s.io".into()),
            kind: "User".into(),
            name: format!("stockade:host:{host}"),
            namespace: None,
        }]),
    };
    let call = bindings.create(&post, &binding);
    match request(|| format!("binding the agent's role in {name}"), call).await {
        Ok(_) => {}
        Err(error) if error.is_conflict() => {}
        Err(error) => return Err(error),
    }
    Ok(vec![Change::Namespace(Event::Apply(made))])
}

async fn finalizer(
    shared: &Shared,
    world: &World,
    vm: &Key,
    basis: &Basis,
    add: bool,
) -> Result<Vec<Change>, ControllerError> {
    let api: Api<VirtualMachine> = Api::namespaced(shared.client(), &vm.namespace);
    let Some(found) = world.vms.get(vm) else { return Ok(Vec::new()) };
    let mut finalizers = found.metadata.finalizers.clone().unwrap_or_default();
    finalizers.retain(|f| f != FINALIZER);
    if add {
        finalizers.push(FINALIZER.to_owned());
    }
    // The version makes the patch a compare-and-swap: others' finalizers are not lost.
    let patch = Patch::Merge(json!({"metadata": {
        "uid": basis.uid,
        "resourceVersion": basis.version,
        "finalizers": finalizers,
    }}));
    let params = PatchParams::default();
    let call = api.patch(&vm.name, &params, &patch);
    let answer = request(|| format!("setting the finalizer of VM {vm}"), call).await?;
    Ok(if add { vec![Change::VirtualMachine(Event::Apply(answer))] } else { Vec::new() })
}

async fn write_domain(shared: &Shared, write: &DomainWrite) -> Result<Change, ControllerError> {
    let api: Api<Domain> = Api::namespaced(shared.client(), &host_namespace(&write.host));
    let mut object = Domain::new(&write.vm_uid, write.spec.clone());
    object.metadata.labels = Some(
        [
            (HOST_LABEL.to_owned(), write.host.clone()),
            (VM_NAMESPACE_LABEL.to_owned(), write.spec.vm.namespace.clone()),
            (VM_NAME_LABEL.to_owned(), write.spec.vm.name.clone()),
        ]
        .into(),
    );
    if let Some(now) = &locked(&shared.lineage).now {
        let history = (LINEAGE_ANNOTATION.to_owned(), now.to_string());
        object.metadata.annotations = Some([history].into());
    }
    let what = || format!("ordering {} on {}", write.spec.vm.name, write.host);
    let post = PostParams::default();
    let answer = match &write.replaces {
        None => request(what, api.create(&post, &object)).await?,
        Some(basis) => {
            stamp(&mut object.metadata, basis);
            request(what, api.replace(&write.vm_uid, &post, &object)).await?
        }
    };
    Ok(Change::Domain(Event::Apply(answer)))
}

/// Gate 4: right before a placement the certificate stands, and the boot has not renewed.
async fn read_fresh(
    shared: &Shared,
    world: &World,
    death: &ReliesOn,
) -> Result<(), ControllerError> {
    let refused = |what: String| ControllerError::TimedOut { what };
    let fences: Api<HostFence> = Api::all(shared.client());
    let call = fences.get(&death.fence);
    let fence = request(|| format!("reading HostFence {}", death.fence), call).await?;
    let stands = fence.status.as_ref().is_some_and(|s| {
        s.proof.is_some() && s.revoked.is_none() && fence.spec.boot_id == death.boot_id
    });
    if !stands {
        return Err(refused(format!(
            "certificate {} does not stand any more; placing",
            death.fence
        )));
    }
    let leases: Api<Lease> = Api::namespaced(shared.client(), &host_namespace(&death.host));
    let call = leases.get_opt(AGENT_OBJECT);
    let lease = request(|| format!("reading the Lease of {}", death.host), call).await?;
    let version = lease.and_then(|l| l.metadata.resource_version).unwrap_or_default();
    let known = world.lives.hosts.get(&death.host).map(|l| l.lease.version.clone());
    if known.is_some_and(|k| !k.is_empty() && k != version) {
        return Err(refused(format!("{} has renewed its Lease; placing", death.host)));
    }
    Ok(())
}
