//! What a real kube-apiserver refuses of wrong manifests, and that it says where and what to do.
//!
//! Each case is a change of a manifest that is accepted as it stands, so that nothing but the
//! change can be the reason of the refusal.
#![allow(clippy::panic)]

#[path = "wrong_manifests/table.rs"]
mod table;

use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::response::StatusCause;
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;
use stockade_e2e::control_plane::{ControlPlane, with_control_plane};

/// Installs the kinds from their chart, as a user has them, and waits until each is served.
async fn install(plane: &ControlPlane) -> kube::Client {
    let kinds = plane.render_chart("stockade-crds", &[]).expect("the chart");
    plane.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &kinds).expect("the kinds");
    let served = ["wait", "--for=condition=Established", "--timeout=60s", "-f", "-"];
    plane.kubectl_stdin(&served, &kinds).expect("served");
    plane.setup_client().await.expect("client")
}

fn api_of(client: &kube::Client, manifest: &Value, namespace: &str) -> Api<DynamicObject> {
    let kind = manifest["kind"].as_str().expect("a kind");
    let crd = stockade_crds::all_crds()
        .into_iter()
        .find(|crd| crd.spec.names.kind == kind)
        .expect("a kind of ours");
    let gvk = GroupVersionKind::gvk("stockade.dev", "v1alpha1", kind);
    let resource = ApiResource::from_gvk_with_plural(&gvk, &crd.spec.names.plural);
    if crd.spec.scope == "Namespaced" {
        Api::namespaced_with(client.clone(), namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    }
}

/// RFC 7386: null removes, maps merge, the rest replaces.
fn merge(target: &mut Value, change: &Value) {
    let Value::Object(change) = change else {
        *target = change.clone();
        return;
    };
    if !target.is_object() {
        *target = serde_json::json!({});
    }
    let Some(target) = target.as_object_mut() else { return };
    for (key, value) in change {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn strict() -> PostParams {
    PostParams { dry_run: true, ..PostParams::default() }
}

/// What the server has against a manifest: a cause a field.
async fn create(api: &Api<DynamicObject>, manifest: &Value) -> Result<(), Vec<StatusCause>> {
    let object: DynamicObject = serde_json::from_value(manifest.clone()).expect("an object");
    match api.create(&strict(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => {
            Err(status.details.map(|details| details.causes).unwrap_or_default())
        }
        Err(error) => panic!("{error}"),
    }
}

/// Whether a cause names the field, and says of that very field what to do.
fn helps(cause: &StatusCause, field: &str, remedy: &str) -> bool {
    let names = cause.field == field || cause.message.contains(&format!("{field}:"));
    names && cause.message.contains(remedy)
}

#[tokio::test]
async fn every_wrong_manifest_is_refused_with_its_field_and_a_remedy() {
    let count = with_control_plane("wrong", async |plane, namespace| {
        let client = install(plane).await;
        for base in table::bases() {
            let manifest = yaml(base);
            let answer = create(&api_of(&client, &manifest, namespace), &manifest).await;
            assert_eq!(answer, Ok(()), "{base}");
        }
        let mut failures = Vec::new();
        for (base, change, field, remedy) in table::WRONG {
            assert!(["spec", "metadata"].contains(&field.split('.').next().expect("a word")));
            assert!(!remedy.is_empty(), "{change}: what is to be done?");
            let mut manifest = yaml(base);
            merge(&mut manifest, &yaml(change));
            match create(&api_of(&client, &manifest, namespace), &manifest).await {
                Ok(()) => failures.push(format!("accepted: {change}")),
                Err(causes) if causes.iter().any(|cause| helps(cause, field, remedy)) => {}
                Err(causes) => {
                    failures.push(format!("{change}: no {field} with {remedy:?} in {causes:?}"));
                }
            }
        }
        assert!(failures.is_empty(), "{}", failures.join("\n"));
        table::WRONG.len()
    })
    .await
    .expect("control plane");
    assert!(count >= 60, "only {count} cases");
}

#[tokio::test]
async fn every_forbidden_change_is_refused() {
    with_control_plane("changes", async |plane, namespace| {
        let client = install(plane).await;
        for (base, change, wanted) in table::FORBIDDEN_CHANGES {
            let mut manifest = yaml(base);
            let api = api_of(&client, &manifest, namespace);
            // Names of its own: the other test tries the same cluster-wide ones on this server.
            let name = format!("kept-{}", manifest["metadata"]["name"].as_str().expect("a name"));
            manifest["metadata"]["name"] = name.clone().into();
            let object: DynamicObject = serde_json::from_value(manifest.clone()).expect("object");
            match api.create(&PostParams::default(), &object).await {
                Ok(_) => {}
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                Err(error) => panic!("{base}: {error}"),
            }
            merge(&mut manifest, &yaml(change));
            let refused =
                api.patch(&name, &PatchParams::default(), &Patch::Merge(&yaml(change))).await;
            let Err(kube::Error::Api(status)) = refused else {
                panic!("{change}: not refused: {refused:?}")
            };
            assert!(status.message.contains(wanted), "{change}: {}", status.message);
        }
    })
    .await
    .expect("control plane");
}
