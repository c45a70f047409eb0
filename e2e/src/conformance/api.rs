//! What the API does that controller and agents live on, as one body of tests over a client: both
//! arms play it, kube-apiserver and the API in this process.

use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Client;
use kube::api::{
    Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    WatchEvent, WatchParams,
};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

/// A kind with all that a schema of ours uses.
///
/// # Panics
/// Never: it is one.
#[must_use]
pub fn widget_crd() -> CustomResourceDefinition {
    serde_json::from_value(json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.conformance.stockade.dev"},
        "spec": {
            "group": "conformance.stockade.dev", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets", "singular": "widget",
                "listKind": "WidgetList"},
            "versions": [{
                "name": "v1", "served": true, "storage": true,
                "subresources": {"status": {}},
                "selectableFields": [{"jsonPath": ".spec.color"}],
                "schema": {"openAPIV3Schema": {
                    "type": "object", "required": ["spec"],
                    "properties": {
                        "spec": {
                            "type": "object", "required": ["size"],
                            "properties": {
                                "size": {"type": "integer", "format": "int32",
                                    "minimum": 1, "maximum": 9},
                                "color": {"type": "string", "default": "red",
                                    "enum": ["red", "blue"]},
                                "note": {"type": "string", "maxLength": 5, "pattern": "^[a-z]*$"},
                                "maybe": {"type": "string", "nullable": true},
                                "memory": {"x-kubernetes-int-or-string": true,
                                    "anyOf": [{"type": "integer"}, {"type": "string"}]},
                                "owner": {"type": "string", "maxLength": 20,
                                    "x-kubernetes-validations": [
                                        {"rule": "self == oldSelf", "message": "owner stays"}]},
                                "parts": {"type": "array", "maxItems": 3,
                                    "x-kubernetes-list-type": "map",
                                    "x-kubernetes-list-map-keys": ["name"],
                                    "items": {"type": "object", "required": ["name"],
                                        "properties": {
                                            "name": {"type": "string", "maxLength": 9},
                                            "weight": {"type": "integer", "default": 3}}}},
                                "tags": {"type": "object", "maxProperties": 2,
                                    "additionalProperties": {"type": "string"}},
                            },
                            "x-kubernetes-validations": [
                                {"rule": "self.color != 'blue' || self.size < 5",
                                 "message": "blue ones are small"}],
                        },
                        "status": {"type": "object", "properties": {
                            "seen": {"type": "integer", "minimum": 0}}},
                    },
                }},
            }],
        },
    }))
    .unwrap()
}

/// Installs kinds, and waits until they are served.
///
/// # Panics
/// The API refuses one, or does not serve it.
pub async fn install(client: &Client, crds: &[CustomResourceDefinition]) {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("test").force();
    for crd in crds {
        let name = crd.metadata.name.clone().unwrap();
        let mut value = serde_json::to_value(crd).unwrap();
        value["apiVersion"] = "apiextensions.k8s.io/v1".into();
        value["kind"] = "CustomResourceDefinition".into();
        api.patch(&name, &apply, &Patch::Apply(&value)).await.unwrap();
    }
    for crd in crds {
        let kind = ApiResource {
            group: crd.spec.group.clone(),
            version: crd.spec.versions[0].name.clone(),
            api_version: format!("{}/{}", crd.spec.group, crd.spec.versions[0].name),
            kind: crd.spec.names.kind.clone(),
            plural: crd.spec.names.plural.clone(),
        };
        let objects: Api<DynamicObject> = Api::all_with(client.clone(), &kind);
        until(&kind.kind, async || objects.list(&ListParams::default()).await.is_ok()).await;
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..600 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not happen within 30 s: {what}");
}

fn widget(name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "conformance.stockade.dev/v1", "kind": "Widget",
        "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

fn widgets(client: &Client, namespace: &str) -> Api<DynamicObject> {
    let gvk = GroupVersionKind::gvk("conformance.stockade.dev", "v1", "Widget");
    Api::namespaced_with(client.clone(), namespace, &ApiResource::from_gvk(&gvk))
}

fn code<T>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone()),
        Err(other) => (0, other.to_string()),
        Ok(_) => (200, String::new()),
    }
}

/// Everything, on objects of the namespace, which holds none of these kinds yet. `forget` makes the
/// API forget what happened before, as far as it would not do so by itself.
///
/// # Panics
/// The API does something else.
pub async fn objects(client: &Client, namespace: &str, forget: &dyn Fn()) {
    let widgets = widgets(client, namespace);
    a_new_object_is_pruned_defaulted_and_numbered(&widgets).await;
    schema_and_rules_refuse(&widgets).await;
    spec_and_status_are_written_apart(&widgets).await;
    a_finalizer_holds_an_object_until_it_goes(&widgets).await;
    preconditions_of_a_delete_are_kept(&widgets).await;
    let all = widgets.list(&ListParams::default()).await.unwrap();
    for object in all.items {
        widgets.delete(&object.metadata.name.unwrap(), &DeleteParams::default()).await.unwrap();
    }
    pages_of_a_list_show_one_moment(&widgets).await;
    selectors_choose(&widgets).await;
    a_watch_tells_every_change_in_order_and_ends_in_time(&widgets).await;
    a_watch_with_a_selector_tells_what_comes_and_goes(&widgets).await;
    forget();
    a_watch_from_forgotten_history_is_expired(&widgets).await;
    a_lease_is_renewed_by_put_only_at_its_version(client, namespace).await;
}

async fn a_new_object_is_pruned_defaulted_and_numbered(widgets: &Api<DynamicObject>) {
    let sent = widget("new", json!({"size": 1, "nonsense": true}));
    let made = widgets.create(&PostParams::default(), &sent).await.unwrap();
    assert_eq!(made.data["spec"], json!({"size": 1, "color": "red"}));
    assert_eq!(made.metadata.generation, Some(1));
    assert!(made.metadata.uid.is_some());
    let again = widgets.create(&PostParams::default(), &sent).await;
    assert_eq!(code(again), (409, "AlreadyExists".to_owned()));
}

async fn schema_and_rules_refuse(widgets: &Api<DynamicObject>) {
    for spec in [
        json!({}),
        json!({"size": 0}),
        json!({"size": "1"}),
        json!({"size": 1, "color": "green"}),
        json!({"size": 7, "color": "blue"}),
    ] {
        let made = widgets.create(&PostParams::default(), &widget("ruled", spec)).await;
        assert_eq!(code(made), (422, "Invalid".to_owned()));
    }
    let first = widget("ruled", json!({"size": 1, "owner": "me"}));
    widgets.create(&PostParams::default(), &first).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"owner": "you"}}));
    let changed = widgets.patch("ruled", &PatchParams::default(), &patch).await;
    assert_eq!(code(changed), (422, "Invalid".to_owned()));
}

async fn spec_and_status_are_written_apart(widgets: &Api<DynamicObject>) {
    let sent = widget("apart", json!({"size": 1}));
    let mut made = widgets.create(&PostParams::default(), &sent).await.unwrap();
    made.data["status"] = json!({"seen": 1});
    made.data["spec"]["size"] = json!(2);
    let replaced = widgets.replace("apart", &PostParams::default(), &made).await.unwrap();
    assert!(replaced.data.get("status").is_none());
    assert_eq!(replaced.metadata.generation, Some(2));
    let stale = widgets.replace("apart", &PostParams::default(), &made).await;
    assert_eq!(code(stale), (409, "Conflict".to_owned()));
    let patch = Patch::Merge(json!({"status": {"seen": 3}, "spec": {"size": 9}}));
    let seen = widgets.patch_status("apart", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(seen.data["status"], json!({"seen": 3}));
    assert_eq!(seen.data["spec"]["size"], 2);
    assert_eq!(seen.metadata.generation, Some(2));
    let same = widgets.patch_status("apart", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(same.metadata.resource_version, seen.metadata.resource_version);
}

async fn a_finalizer_holds_an_object_until_it_goes(widgets: &Api<DynamicObject>) {
    let mut held = widget("held", json!({"size": 1}));
    held.metadata.finalizers = Some(vec!["stockade.dev/hold".to_owned()]);
    widgets.create(&PostParams::default(), &held).await.unwrap();
    let marked = widgets.delete("held", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    widgets.patch("held", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(code(widgets.get("held").await), (404, "NotFound".to_owned()));
}

async fn preconditions_of_a_delete_are_kept(widgets: &Api<DynamicObject>) {
    let sent = widget("precious", json!({"size": 1}));
    widgets.create(&PostParams::default(), &sent).await.unwrap();
    let other = DeleteParams::default()
        .preconditions(Preconditions { uid: Some("other".to_owned()), resource_version: None });
    assert_eq!(code(widgets.delete("precious", &other).await), (409, "Conflict".to_owned()));
    widgets.delete("precious", &DeleteParams::default()).await.unwrap();
}

async fn pages_of_a_list_show_one_moment(widgets: &Api<DynamicObject>) {
    for name in ["a", "b", "c"] {
        let sent = widget(name, json!({"size": 1}));
        widgets.create(&PostParams::default(), &sent).await.unwrap();
    }
    let first = widgets.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.items.len(), 2);
    assert_eq!(first.metadata.remaining_item_count, Some(1));
    widgets.delete("c", &DeleteParams::default()).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let rest = widgets.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.len(), 1);
    assert_eq!(rest.items[0].metadata.name.as_deref(), Some("c"));
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    assert!(rest.metadata.continue_.unwrap_or_default().is_empty());
}

async fn selectors_choose(widgets: &Api<DynamicObject>) {
    for (name, color) in [("a", "red"), ("b", "blue")] {
        let patch = json!({"metadata": {"labels": {"name": name}}, "spec": {"color": color}});
        let patch = Patch::Merge(patch);
        widgets.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }
    let names = async |params: ListParams| {
        let items = widgets.list(&params).await.unwrap().items;
        items.into_iter().filter_map(|o| o.metadata.name).collect::<Vec<_>>()
    };
    assert_eq!(names(ListParams::default().labels("name in (b, c)")).await, ["b"]);
    assert_eq!(names(ListParams::default().labels("name!=b")).await, ["a"]);
    assert_eq!(names(ListParams::default().labels("!other")).await, ["a", "b"]);
    assert_eq!(names(ListParams::default().fields("spec.color=blue")).await, ["b"]);
    assert_eq!(names(ListParams::default().fields("metadata.name!=b")).await, ["a"]);
    let unknown = widgets.list(&ListParams::default().fields("spec.size=1")).await;
    assert_eq!(code(unknown), (400, "BadRequest".to_owned()));
}

/// What a watch of five seconds tells while `act` is done: each event with the name and the version
/// of its object, and nothing of a bookmark but that it came.
async fn watched(
    widgets: &Api<DynamicObject>,
    params: WatchParams,
    act: impl AsyncFn(),
) -> Vec<(&'static str, String, u64)> {
    let list = widgets.list(&ListParams::default()).await.unwrap();
    let from = list.metadata.resource_version.unwrap();
    let watch = widgets.watch(&params.timeout(5), &from).await.unwrap();
    act().await;
    let events: Vec<WatchEvent<DynamicObject>> = watch.try_collect().await.unwrap();
    let told = |word, object: &DynamicObject| {
        let version = object.metadata.resource_version.as_deref().unwrap().parse().unwrap();
        (word, object.metadata.name.clone().unwrap_or_default(), version)
    };
    let word = |event: &WatchEvent<DynamicObject>| match event {
        WatchEvent::Added(object) => told("added", object),
        WatchEvent::Modified(object) => told("modified", object),
        WatchEvent::Deleted(object) => told("deleted", object),
        WatchEvent::Bookmark(mark) => {
            ("bookmark", String::new(), mark.metadata.resource_version.parse().unwrap())
        }
        WatchEvent::Error(status) => panic!("{status:?}"),
    };
    let told: Vec<_> = events.iter().map(word).collect();
    assert!(told.is_sorted_by_key(|(_, _, version)| *version), "{told:?}");
    told
}

/// What was told, in order. How many bookmarks come one after the other is the server's own affair:
/// one is due every minute, and one before the end.
fn words(told: &[(&'static str, String, u64)]) -> Vec<&'static str> {
    let mut words: Vec<_> = told.iter().map(|(word, _, _)| *word).collect();
    words.dedup_by(|later, earlier| later == earlier && *later == "bookmark");
    words
}

async fn change(widgets: &Api<DynamicObject>, name: &str, patch: Value) {
    widgets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

async fn a_watch_tells_every_change_in_order_and_ends_in_time(widgets: &Api<DynamicObject>) {
    let told = watched(widgets, WatchParams::default(), async || {
        let sent = widget("seen", json!({"size": 1}));
        widgets.create(&PostParams::default(), &sent).await.unwrap();
        change(widgets, "seen", json!({"spec": {"size": 2}})).await;
        // A change of nothing is none.
        change(widgets, "seen", json!({"spec": {"size": 2}})).await;
        widgets.delete("seen", &DeleteParams::default()).await.unwrap();
    })
    .await;
    assert_eq!(words(&told), ["added", "modified", "deleted", "bookmark"], "{told:?}");
}

async fn a_watch_with_a_selector_tells_what_comes_and_goes(widgets: &Api<DynamicObject>) {
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    let of_label = WatchParams::default().labels("app=x").disable_bookmarks();
    let told = watched(widgets, of_label, async || {
        let sent = widget("chosen", json!({"size": 1}));
        widgets.create(&PostParams::default(), &sent).await.unwrap();
        change(widgets, "chosen", label("x")).await;
        change(widgets, "chosen", json!({"spec": {"size": 2}})).await;
        change(widgets, "chosen", label("y")).await;
        change(widgets, "chosen", json!({"spec": {"size": 3}})).await;
        change(widgets, "chosen", label("x")).await;
        widgets.delete("chosen", &DeleteParams::default()).await.unwrap();
    })
    .await;
    assert_eq!(words(&told), ["added", "modified", "deleted", "added", "deleted"], "{told:?}");
    assert!(told.iter().all(|(_, name, _)| name == "chosen"), "{told:?}");

    let of_field = WatchParams::default().fields("spec.color=blue").disable_bookmarks();
    let told = watched(widgets, of_field, async || {
        let sent = widget("painted", json!({"size": 1, "color": "blue"}));
        widgets.create(&PostParams::default(), &sent).await.unwrap();
        change(widgets, "painted", json!({"spec": {"color": "red"}})).await;
        widgets.delete("painted", &DeleteParams::default()).await.unwrap();
    })
    .await;
    assert_eq!(words(&told), ["added", "deleted"], "{told:?}");
}

async fn a_watch_from_forgotten_history_is_expired(widgets: &Api<DynamicObject>) {
    let mut events = widgets.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    match events.next().await {
        Some(Ok(WatchEvent::Error(status))) => {
            assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
        }
        other => panic!("{other:?}"),
    }
}

async fn a_lease_is_renewed_by_put_only_at_its_version(client: &Client, namespace: &str) {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let mut lease = Lease::default();
    lease.metadata.name = Some("renewed".to_owned());
    let made = leases.create(&PostParams::default(), &lease).await.unwrap();
    let mut renewed = made.clone();
    renewed.spec.get_or_insert_default().holder_identity = Some("me".to_owned());
    leases.replace("renewed", &PostParams::default(), &renewed).await.unwrap();
    let late = leases.replace("renewed", &PostParams::default(), &renewed).await;
    assert_eq!(code(late), (409, "Conflict".to_owned()));
}

/// What becomes of a namespace that is deleted, and of what lies in it.
///
/// # Panics
/// The API does something else.
pub async fn namespaces(client: &Client) {
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let mut namespace = Namespace::default();
    namespace.metadata.name = Some("goes".to_owned());
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let inside = widgets(client, "goes");
    let mut held = widget("held", json!({"size": 1}));
    held.metadata.finalizers = Some(vec!["stockade.dev/hold".to_owned()]);
    for object in [held, widget("free", json!({"size": 1}))] {
        inside.create(&PostParams::default(), &object).await.unwrap();
    }
    namespaces.delete("goes", &DeleteParams::default()).await.unwrap();
    let gone = async || code(inside.get("free").await).0 == 404;
    until("what nothing holds is gone", gone).await;
    // It stays as long as something in it does, and takes in nothing new.
    let going = namespaces.get("goes").await.unwrap();
    assert!(going.metadata.deletion_timestamp.is_some());
    assert_eq!(going.status.unwrap().phase.as_deref(), Some("Terminating"));
    let late = inside.create(&PostParams::default(), &widget("late", json!({"size": 1}))).await;
    assert_eq!(code(late), (403, "Forbidden".to_owned()));
    assert!(inside.get("held").await.unwrap().metadata.deletion_timestamp.is_some());
    change(&inside, "held", json!({"metadata": {"finalizers": null}})).await;
    let gone = async || code(namespaces.get("goes").await) == (404, "NotFound".to_owned());
    until("the namespace is gone", gone).await;
}
