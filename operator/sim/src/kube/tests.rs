use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::api::{WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use super::*;

fn widget_crd() -> CustomResourceDefinition {
    serde_json::from_value(json!({
        "metadata": {"name": "widgets.test.dev"},
        "spec": {
            "group": "test.dev", "scope": "Namespaced",
            "names": {"kind": "Widget", "plural": "widgets"},
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
                                "size": {"type": "integer", "minimum": 1, "maximum": 9},
                                "color": {"type": "string", "default": "red",
                                    "enum": ["red", "blue"]},
                                "owner": {"type": "string", "x-kubernetes-validations": [
                                    {"rule": "self == oldSelf", "message": "owner stays"}]},
                            },
                            "x-kubernetes-validations": [
                                {"rule": "self.color != 'blue' || self.size < 5",
                                 "message": "blue ones are small"}],
                        },
                        "status": {"type": "object", "properties": {"seen": {"type": "integer"}}},
                    },
                }},
            }],
        },
    }))
    .unwrap()
}

fn widget(name: &str, spec: Value) -> DynamicObject {
    serde_json::from_value(json!({
        "apiVersion": "test.dev/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap()
}

fn widgets(client: kube::Client) -> Api<DynamicObject> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("test.dev", "v1", "Widget"));
    Api::namespaced_with(client, "default", &kind)
}

fn code<T>(result: kube::Result<T>) -> (u16, String) {
    match result {
        Err(kube::Error::Api(status)) => (status.code, status.reason.clone()),
        Err(other) => (0, other.to_string()),
        Ok(_) => (200, String::new()),
    }
}

fn api() -> SimApi {
    SimApi::new(&[widget_crd()], 1).unwrap()
}

#[tokio::test(start_paused = true)]
async fn our_own_kinds_are_served() {
    SimApi::ours(1).unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_new_object_is_pruned_defaulted_and_numbered() {
    let widgets = widgets(api().client("user"));
    let sent = widget("a", json!({"size": 1, "nonsense": true}));
    let made = widgets.create(&PostParams::default(), &sent).await.unwrap();
    assert_eq!(made.data["spec"], json!({"size": 1, "color": "red"}));
    assert_eq!(made.metadata.generation, Some(1));
    assert!(made.metadata.uid.is_some());
    let again = widgets.create(&PostParams::default(), &sent).await;
    assert_eq!(code(again), (409, "AlreadyExists".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn schema_and_rules_refuse() {
    let widgets = widgets(api().client("user"));
    for spec in [
        json!({}),
        json!({"size": 0}),
        json!({"size": "1"}),
        json!({"size": 1, "color": "green"}),
        json!({"size": 7, "color": "blue"}),
    ] {
        let made = widgets.create(&PostParams::default(), &widget("a", spec)).await;
        assert_eq!(code(made), (422, "Invalid".to_owned()));
    }
    let first = widget("a", json!({"size": 1, "owner": "me"}));
    widgets.create(&PostParams::default(), &first).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"owner": "you"}}));
    let changed = widgets.patch("a", &PatchParams::default(), &patch).await;
    assert_eq!(code(changed), (422, "Invalid".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn spec_and_status_are_written_apart() {
    let widgets = widgets(api().client("user"));
    let mut made =
        widgets.create(&PostParams::default(), &widget("a", json!({"size": 1}))).await.unwrap();
    made.data["status"] = json!({"seen": 1});
    made.data["spec"]["size"] = json!(2);
    let replaced = widgets.replace("a", &PostParams::default(), &made).await.unwrap();
    assert!(replaced.data.get("status").is_none());
    assert_eq!(replaced.metadata.generation, Some(2));
    let stale = widgets.replace("a", &PostParams::default(), &made).await;
    assert_eq!(code(stale), (409, "Conflict".to_owned()));
    let patch = Patch::Merge(json!({"status": {"seen": 3}, "spec": {"size": 9}}));
    let seen = widgets.patch_status("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(seen.data["status"], json!({"seen": 3}));
    assert_eq!(seen.data["spec"]["size"], 2);
    assert_eq!(seen.metadata.generation, Some(2));
    let same = widgets.patch_status("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(same.metadata.resource_version, seen.metadata.resource_version);
}

#[tokio::test(start_paused = true)]
async fn a_finalizer_holds_an_object_until_it_goes() {
    let widgets = widgets(api().client("user"));
    let mut held = widget("a", json!({"size": 1}));
    held.metadata.finalizers = Some(vec!["test.dev/hold".to_owned()]);
    widgets.create(&PostParams::default(), &held).await.unwrap();
    let marked = widgets.delete("a", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert!(marked.metadata.deletion_timestamp.is_some());
    let patch = Patch::Merge(json!({"metadata": {"finalizers": null}}));
    widgets.patch("a", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(code(widgets.get("a").await), (404, "NotFound".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn preconditions_of_a_delete_are_kept() {
    let widgets = widgets(api().client("user"));
    widgets.create(&PostParams::default(), &widget("a", json!({"size": 1}))).await.unwrap();
    let other = DeleteParams::default().preconditions(kube::api::Preconditions {
        uid: Some("other".to_owned()),
        resource_version: None,
    });
    assert_eq!(code(widgets.delete("a", &other).await), (409, "Conflict".to_owned()));
    widgets.delete("a", &DeleteParams::default()).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn pages_of_a_list_show_one_moment() {
    let widgets = widgets(api().client("user"));
    for name in ["a", "b", "c"] {
        widgets.create(&PostParams::default(), &widget(name, json!({"size": 1}))).await.unwrap();
    }
    let first = widgets.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.items.len(), 2);
    widgets.delete("c", &DeleteParams::default()).await.unwrap();
    let token = first.metadata.continue_.unwrap();
    let rest = widgets.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.len(), 1);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
}

#[tokio::test(start_paused = true)]
async fn selectors_choose() {
    let widgets = widgets(api().client("user"));
    for (name, color) in [("a", "red"), ("b", "blue")] {
        let mut object = widget(name, json!({"size": 1, "color": color}));
        object.metadata.labels = Some([("name".to_owned(), name.to_owned())].into());
        widgets.create(&PostParams::default(), &object).await.unwrap();
    }
    let names = |params: ListParams| {
        let widgets = widgets.clone();
        async move {
            let items = widgets.list(&params).await.unwrap().items;
            items.into_iter().filter_map(|o| o.metadata.name).collect::<Vec<_>>()
        }
    };
    assert_eq!(names(ListParams::default().labels("name in (b, c)")).await, ["b"]);
    assert_eq!(names(ListParams::default().labels("name!=b")).await, ["a"]);
    assert_eq!(names(ListParams::default().labels("!other")).await, ["a", "b"]);
    assert_eq!(names(ListParams::default().fields("spec.color=blue")).await, ["b"]);
    assert_eq!(names(ListParams::default().fields("metadata.name!=b")).await, ["a"]);
    let unknown = widgets.list(&ListParams::default().fields("spec.size=1")).await;
    assert_eq!(code(unknown), (400, "BadRequest".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn a_watch_tells_every_change_in_order_and_ends_in_time() {
    let api = api();
    let widgets = widgets(api.client("user"));
    let start = api.admin().revision().to_string();
    widgets.create(&PostParams::default(), &widget("a", json!({"size": 1}))).await.unwrap();
    let patch = Patch::Merge(json!({"spec": {"size": 2}}));
    widgets.patch("a", &PatchParams::default(), &patch).await.unwrap();
    widgets.delete("a", &DeleteParams::default()).await.unwrap();
    let params = WatchParams::default().timeout(100);
    let events: Vec<_> = widgets.watch(&params, &start).await.unwrap().try_collect().await.unwrap();
    let told: Vec<_> = events
        .iter()
        .map(|event| match event {
            WatchEvent::Added(_) => "added",
            WatchEvent::Modified(_) => "modified",
            WatchEvent::Deleted(_) => "deleted",
            WatchEvent::Bookmark(_) => "bookmark",
            WatchEvent::Error(_) => "error",
        })
        .collect();
    assert_eq!(told, ["added", "modified", "deleted", "bookmark"]);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_forgotten_history_is_expired() {
    let api = api();
    let widgets = widgets(api.client("user"));
    widgets.create(&PostParams::default(), &widget("a", json!({"size": 1}))).await.unwrap();
    api.faults().compact();
    let mut events = widgets.watch(&WatchParams::default(), "1").await.unwrap().boxed();
    match events.next().await {
        Some(Ok(WatchEvent::Error(status))) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(start_paused = true)]
async fn deleting_a_namespace_takes_its_content() {
    let api = api();
    let namespaces: Api<Namespace> = Api::all(api.client("user"));
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    api.admin().create(&namespace).unwrap();
    let mut inside = serde_json::to_value(widget("a", json!({"size": 1}))).unwrap();
    inside["metadata"]["namespace"] = json!("n");
    api.admin().create(&inside).unwrap();
    namespaces.delete("n", &DeleteParams::default()).await.unwrap();
    assert_eq!(api.admin().create(&inside).unwrap_err().code, 403);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(api.admin().list("Widget", None).is_empty());
    assert_eq!(code(namespaces.get("n").await), (404, "NotFound".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn faults_touch_their_scope_and_end() {
    let api = api();
    let (mine, yours) = (widgets(api.client("host/h1")), widgets(api.client("host/h2")));
    let only = || Scope::Only(vec!["host/h1".to_owned()]);
    let down = api.faults().inject(only(), Fault::Down);
    assert!(mine.list(&ListParams::default()).await.is_err());
    assert!(yours.list(&ListParams::default()).await.is_ok());
    api.faults().clear(down);
    assert!(mine.list(&ListParams::default()).await.is_ok());

    let lost = api.faults().inject(only(), Fault::ReplyLost(1.0));
    let made = mine.create(&PostParams::default(), &widget("a", json!({"size": 1}))).await;
    assert!(made.is_err());
    assert!(api.admin().get("Widget", Some("default"), "a").is_some());
    api.faults().clear(lost);

    api.faults().inject(only(), Fault::BlackHole);
    let limit = Duration::from_secs(30);
    assert!(tokio::time::timeout(limit, mine.get("a")).await.is_err());
    api.faults().clear_all();
    assert!(tokio::time::timeout(limit, mine.get("a")).await.unwrap().is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_stale_view_lags_and_a_plain_get_does_not() {
    let api = api();
    let widgets = widgets(api.client("user"));
    tokio::time::sleep(Duration::from_secs(60)).await;
    api.faults().inject(Scope::All, Fault::Stale(Duration::from_secs(10)));
    widgets.create(&PostParams::default(), &widget("a", json!({"size": 1}))).await.unwrap();
    let any = ListParams::default().match_any();
    assert_eq!(widgets.list(&any).await.unwrap().items.len(), 0);
    assert!(widgets.get("a").await.is_ok());
    assert_eq!(widgets.list(&ListParams::default()).await.unwrap().items.len(), 1);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(widgets.list(&any).await.unwrap().items.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_restored_backup_brings_back_what_was() {
    let api = api();
    let widgets = widgets(api.client("user"));
    widgets.create(&PostParams::default(), &widget("a", json!({"size": 1}))).await.unwrap();
    let (revision, then) = (api.admin().revision(), tokio::time::Instant::now());
    tokio::time::sleep(Duration::from_secs(5)).await;
    widgets.delete("a", &DeleteParams::default()).await.unwrap();
    widgets.create(&PostParams::default(), &widget("b", json!({"size": 1}))).await.unwrap();
    api.faults().restore_backup(then);
    assert_eq!(api.admin().revision(), revision);
    let names: Vec<_> =
        api.admin().list("Widget", None).iter().map(|o| o.meta("name").to_owned()).collect();
    assert_eq!(names, ["a"]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_by_put_only_at_its_version() {
    let api = api();
    let leases: Api<Lease> = Api::namespaced(api.client("controller/0"), "default");
    let mut lease = Lease::default();
    lease.metadata.name = Some("l".to_owned());
    let made = leases.create(&PostParams::default(), &lease).await.unwrap();
    let mut renewed = made.clone();
    renewed.spec.get_or_insert_default().holder_identity = Some("me".to_owned());
    leases.replace("l", &PostParams::default(), &renewed).await.unwrap();
    let late = leases.replace("l", &PostParams::default(), &renewed).await;
    assert_eq!(code(late), (409, "Conflict".to_owned()));
    assert_eq!(api.admin().writes()[&("controller/0".to_owned(), "Lease".to_owned())], 2);
    assert_eq!(api.admin().writes_without_leases(|_| true), 0);
}

/// What a run of a few clients under faults leaves: every write, with its time.
async fn run(seed: u64) -> Vec<String> {
    let api = SimApi::new(&[widget_crd()], seed).unwrap();
    let mut writes = api.admin().subscribe();
    api.faults().inject(Scope::All, Fault::Errors(0.1));
    api.faults().inject(Scope::All, Fault::ReplyLost(0.1));
    let tasks: Vec<_> = (0..4)
        .map(|n| {
            let widgets = widgets(api.client(&format!("host/h{n}")));
            tokio::spawn(async move {
                for i in 0..25 {
                    let object = widget(&format!("w{}", i % 7), json!({"size": 1}));
                    let _ = widgets.create(&PostParams::default(), &object).await;
                    let patch = Patch::Merge(json!({"status": {"seen": i * n}}));
                    let name = format!("w{}", (i + n) % 7);
                    let _ = widgets.patch_status(&name, &PatchParams::default(), &patch).await;
                    let _ = widgets.delete(&name, &DeleteParams::default()).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut log = Vec::new();
    while let Ok(w) = writes.try_recv() {
        let uid = w.before.as_ref().or(w.after.as_ref()).map(|o| o.meta("uid").to_owned());
        log.push(format!("{} {:?} {} {} {uid:?}", w.identity, w.verb, w.name, w.revision));
    }
    log
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_writes() {
    let first = run(5).await;
    assert!(first.len() > 50);
    assert_eq!(first, run(5).await);
    assert_ne!(first, run(6).await);
}
