//! What a real kube-apiserver refuses of wrong manifests, and that it says where and what to do.
//!
//! Each case is a change of a manifest that is accepted as it stands, so that nothing but the
//! change can be the reason of the refusal.
#![allow(clippy::panic)]

#[path = "wrong_manifests/table.rs"]
mod table;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;
use std::time::Duration;
use stockade_e2e::control_plane::{ControlPlane, with_control_plane};

/// Installs the kinds and waits until each is served.
async fn install(plane: &ControlPlane) -> kube::Client {
    let client = plane.setup_client().await.expect("client");
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("test").force();
    for crd in stockade_crds::all_crds() {
        let name = crd.metadata.name.clone().expect("a name");
        let mut value = serde_json::to_value(&crd).expect("JSON");
        value["apiVersion"] = "apiextensions.k8s.io/v1".into();
        value["kind"] = "CustomResourceDefinition".into();
        api.patch(&name, &apply, &Patch::Apply(&value))
            .await
            .unwrap_or_else(|error| panic!("{name} is refused: {error}"));
    }
    for crd in stockade_crds::all_crds() {
        let name = crd.metadata.name.clone().expect("a name");
        for _ in 0..100 {
            let served = api.get(&name).await.expect(&name).status.is_some_and(|status| {
                status
                    .conditions
                    .unwrap_or_default()
                    .iter()
                    .any(|c| c.type_ == "Established" && c.status == "True")
            });
            if served {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    client
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

async fn create(api: &Api<DynamicObject>, manifest: &Value) -> Result<(), String> {
    let object: DynamicObject = serde_json::from_value(manifest.clone()).expect("an object");
    match api.create(&strict(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => Err(status.message.clone()),
        Err(error) => panic!("{error}"),
    }
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
        for (base, change, wanted) in table::WRONG {
            let mut manifest = yaml(base);
            merge(&mut manifest, &yaml(change));
            match create(&api_of(&client, &manifest, namespace), &manifest).await {
                Ok(()) => failures.push(format!("accepted: {change}")),
                Err(message) => {
                    for part in *wanted {
                        if !message.contains(part) {
                            failures.push(format!("{change}: no {part:?} in {message:?}"));
                        }
                    }
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
