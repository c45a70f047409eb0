//! Copies of the secrets that VMs start with, in the namespaces of their hosts.
//!
//! Read before the placement, so that a VM without its secret is not placed; written before the
//! order that needs it. A live move takes the source's copy along: the seed image that a guest
//! sees does not change while it runs.

use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::core::v1::{Secret, SecretKeySelector};
use k8s_openapi::api::rbac::v1::{RoleBinding, RoleRef, Subject};
use kube::api::{Api, DeleteParams, PostParams};
use kube::core::ObjectMeta;
use stockade_core::plan::DomainWrite;
use stockade_core::world::{Key, OrderKey, World};
use stockade_crds::names::{HOST_LABEL, SEED_KEY, host_namespace, seed_secret};
use stockade_crds::v1alpha1::Want;

use crate::ControllerError;
use crate::context::{Shared, locked, request};

/// The role that the controller binds to itself in the namespace of a host that gets a copy.
const ROLE: &str = "stockade-controller-host";

/// A copy that is to be written.
pub(super) struct Copy {
    host: String,
    vm_uid: String,
    text: String,
    /// An earlier one is there.
    exists: bool,
}

/// Reads what an order needs; `None`: no secret, or one that is there already.
pub(super) async fn read(
    shared: &Shared,
    world: &World,
    write: &DomainWrite,
) -> Result<Option<Copy>, ControllerError> {
    let seed = write.spec.machine.seed.as_ref().and_then(|seed| seed.secret.as_ref());
    let (host, vm_uid) = (write.host.clone(), write.vm_uid.clone());
    let before = world.domains.get(&OrderKey::new(host.clone(), vm_uid.clone()));
    let same_epoch = before.is_some_and(|domain| domain.spec.epoch == write.spec.epoch);
    let runs = matches!(write.spec.want, Want::Running | Want::Incoming);
    if seed.is_none() || same_epoch || !runs {
        return Ok(None);
    }
    match text(shared, world, write).await {
        Ok(text) => {
            locked(&shared.seed_refusals).remove(&vm_uid);
            let exists = look(shared, &host, &vm_uid).await?;
            Ok(Some(Copy { host, vm_uid, text, exists }))
        }
        Err(error) => {
            if let ControllerError::Missing { what } = &error {
                let refusal = (shared.now(), what.clone());
                locked(&shared.seed_refusals).insert(vm_uid, refusal);
                shared.fence_done.notify_one();
            }
            Err(error)
        }
    }
}

/// The document: that of the running VM for a live move, else what the user's Secret holds now.
async fn text(
    shared: &Shared,
    world: &World,
    write: &DomainWrite,
) -> Result<String, ControllerError> {
    let key = Key::new(&write.spec.vm.namespace, &write.spec.vm.name);
    let vm = world.vms.get(&key);
    if write.spec.want == Want::Incoming
        && let Some(source) = vm.and_then(|vm| vm.status.as_ref()?.host.as_ref())
    {
        let name = seed_secret(&write.vm_uid);
        let of = SecretKeySelector { name, key: SEED_KEY.to_owned(), optional: None };
        return document(shared, &host_namespace(source), &of).await;
    }
    let of = vm.and_then(|vm| vm.spec.cloud_init.as_ref()?.user_data_secret.as_ref());
    let Some(of) = of else {
        return Err(ControllerError::Missing { what: format!("VM {key} names no secret") });
    };
    match document(shared, &key.namespace, of).await {
        Err(ControllerError::Missing { .. }) if of.optional == Some(true) => Ok(String::new()),
        other => other,
    }
}

async fn document(
    shared: &Shared,
    namespace: &str,
    of: &SecretKeySelector,
) -> Result<String, ControllerError> {
    let (name, key) = (&of.name, &of.key);
    let missing = |what: String| ControllerError::Missing { what };
    let api: Api<Secret> = Api::namespaced(shared.client(), namespace);
    let call = api.get_opt(name);
    let found = match request(|| format!("reading Secret {namespace}/{name}"), call).await {
        Err(error) if is_forbidden(&error) => {
            return Err(missing(format!(
                "the controller may not read secrets of namespace {namespace:?}; add it to the \
                 chart's rbac.secretNamespaces"
            )));
        }
        other => other?,
    };
    let Some(found) = found else {
        return Err(missing(format!(
            "there is no Secret {name:?} in namespace {namespace:?}; create it, or name another"
        )));
    };
    let mut data = found.data.unwrap_or_default();
    let Some(text) = data.remove(key) else {
        let keys: Vec<String> = data.into_keys().collect();
        return Err(missing(format!(
            "Secret {name:?} has no key {key:?} (it has: {}); name one that it has",
            keys.join(", ")
        )));
    };
    String::from_utf8(text.0).map_err(|_| {
        missing(format!("key {key:?} of Secret {name:?} is no UTF-8 text; replace it"))
    })
}

fn is_forbidden(error: &ControllerError) -> bool {
    matches!(error, ControllerError::Api { source: kube::Error::Api(status), .. }
        if status.is_forbidden())
}

/// Whether a copy is there. Where the controller may not look yet it gets the right to.
async fn look(shared: &Shared, host: &str, vm_uid: &str) -> Result<bool, ControllerError> {
    let api: Api<Secret> = Api::namespaced(shared.client(), &host_namespace(host));
    let name = seed_secret(vm_uid);
    let found = request(|| format!("reading the seed of {vm_uid} on {host}"), api.get_opt(&name));
    match found.await {
        Err(error) if is_forbidden(&error) => {
            bind(shared, host).await?;
            // The server's authorizer learns of a binding by its own watch: the next plan tries.
            Err(error)
        }
        other => other.map(|found| found.is_some()),
    }
}

/// Binds the role of host namespaces to this controller, in one of them.
async fn bind(shared: &Shared, host: &str) -> Result<(), ControllerError> {
    let post = PostParams::default();
    let reviews: Api<SelfSubjectReview> = Api::all(shared.client());
    let asked = SelfSubjectReview::default();
    let call = reviews.create(&post, &asked);
    let review = request(|| "asking who this controller is".to_owned(), call).await?;
    let me = review.status.and_then(|status| status.user_info?.username).unwrap_or_default();
    let group = "rbac.authorization.k8s.io".to_owned();
    let binding = RoleBinding {
        metadata: ObjectMeta {
            name: Some("stockade-controller".into()),
            labels: Some([(HOST_LABEL.to_owned(), host.to_owned())].into()),
            ..ObjectMeta::default()
        },
        role_ref: RoleRef {
            api_group: group.clone(),
            kind: "ClusterRole".into(),
            name: ROLE.into(),
        },
        subjects: Some(vec![Subject {
            api_group: Some(group),
            kind: "User".into(),
            name: me,
            namespace: None,
        }]),
    };
    let bindings: Api<RoleBinding> = Api::namespaced(shared.client(), &host_namespace(host));
    let call = bindings.create(&post, &binding);
    match request(|| format!("binding {ROLE} for {host}"), call).await {
        Err(error) if !error.is_conflict() => Err(error),
        _ => Ok(()),
    }
}

/// Writes a copy.
pub(super) async fn put(shared: &Shared, copy: Option<Copy>) -> Result<(), ControllerError> {
    let Some(Copy { host, vm_uid, text, exists }) = copy else { return Ok(()) };
    let api: Api<Secret> = Api::namespaced(shared.client(), &host_namespace(&host));
    let name = seed_secret(&vm_uid);
    let secret = Secret {
        metadata: ObjectMeta {
            name: Some(name.clone()),
            labels: Some([(HOST_LABEL.to_owned(), host.clone())].into()),
            ..ObjectMeta::default()
        },
        string_data: Some([(SEED_KEY.to_owned(), text)].into()),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    };
    let post = PostParams::default();
    let what = || format!("copying the seed of {vm_uid} to {host}");
    if exists {
        // Nobody else writes it: no version is compared.
        request(what, api.replace(&name, &post, &secret)).await?;
    } else {
        request(what, api.create(&post, &secret)).await?;
    }
    Ok(())
}

/// Removes a copy whose epoch is over; one that is gone already is gone.
pub(super) async fn remove(
    shared: &Shared,
    host: &str,
    vm_uid: &str,
    epoch: i64,
) -> Result<(), ControllerError> {
    let key = (host.to_owned(), vm_uid.to_owned(), epoch);
    if locked(&shared.seeds_gone).contains(&key) {
        return Ok(());
    }
    let api: Api<Secret> = Api::namespaced(shared.client(), &host_namespace(host));
    let (name, params) = (seed_secret(vm_uid), DeleteParams::default());
    let call = api.delete(&name, &params);
    match request(|| format!("removing the seed of {vm_uid} on {host}"), call).await {
        Err(ControllerError::Api { source: kube::Error::Api(status), .. })
            if status.is_not_found() => {}
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    locked(&shared.seeds_gone).insert(key);
    Ok(())
}
