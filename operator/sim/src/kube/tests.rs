use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::api::coordination::v1::Lease;
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
async fn watches_that_expire_end_in_410_and_others_go_on() {
    let api = api();
    let params = WatchParams::default();
    let start = api.admin().revision().to_string();
    let mut mine = widgets(api.client("host/h1")).watch(&params, &start).await.unwrap().boxed();
    let mut yours = widgets(api.client("host/h2")).watch(&params, &start).await.unwrap().boxed();
    api.faults().expire_watches(&Scope::Only(vec!["host/h1".to_owned()]));
    match mine.next().await {
        Some(Ok(WatchEvent::Error(status))) => assert_eq!(status.code, 410),
        other => panic!("{other:?}"),
    }
    assert!(mine.next().await.is_none());
    api.admin().create(&widget("a", json!({"size": 1}))).unwrap();
    assert!(matches!(yours.next().await, Some(Ok(WatchEvent::Added(_)))));
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
