//! The in-process API answers as kube-apiserver does: the same requests to both, by hand and
//! drawn from seeds, and the same objects, refusals and watch events back.
#![recursion_limit = "256"]
#![allow(clippy::panic, reason = "a test: an arm that cannot be reached ends it")]

use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject, PostParams, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stockade_e2e::control_plane::with_control_plane;
use stockade_sim::kube::SimApi;
use stockade_sim::rng::Rng;

const SEQUENCES: u64 = 240;
const STEPS: u64 = 12;

fn widget_crd() -> CustomResourceDefinition {
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
    .expect("a CRD")
}

/// One side of the comparison.
struct Arm {
    client: kube::Client,
    namespace: String,
}

/// What an arm answered, in terms that both arms share: versions and uids by order of first
/// appearance, times as "T".
#[derive(Default)]
struct Names(BTreeMap<String, String>);

impl Names {
    fn of(&mut self, text: &str) -> String {
        let next = format!("#{}", self.0.len());
        self.0.entry(text.to_owned()).or_insert(next).clone()
    }

    fn tidy(&mut self, mut value: Value) -> Value {
        if !value["items"].is_null() {
            // A list's version counts the writes of the whole server.
            value["metadata"] = Value::Null;
        }
        value["metadata"]["namespace"] = Value::Null;
        if let Some(metadata) = value["metadata"].as_object_mut() {
            metadata.remove("managedFields");
            metadata.remove("namespace");
            for key in ["resourceVersion", "uid"] {
                if let Some(Value::String(text)) = metadata.get_mut(key) {
                    *text = self.of(text);
                }
            }
            for key in ["creationTimestamp", "deletionTimestamp"] {
                if let Some(text @ Value::String(_)) = metadata.get_mut(key) {
                    *text = json!("T");
                }
            }
        }
        if let Some(Value::String(uid)) = value["details"].get_mut("uid") {
            *uid = self.of(uid);
        }
        if value["details"].is_null()
            && let Some(map) = value.as_object_mut()
        {
            map.remove("details");
        }
        for item in value["items"].as_array_mut().into_iter().flatten() {
            *item = self.tidy(item.take());
            // The items of a list of a built-in kind do not repeat their kind.
            if let Some(map) = item.as_object_mut() {
                map.remove("kind");
                map.remove("apiVersion");
            }
        }
        if value["items"].is_null()
            && let Some(map) = value.as_object_mut()
        {
            map.remove("items");
        }
        value
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Of {
    Widget,
    Lease,
}

impl Of {
    fn base(self, namespace: &str) -> String {
        match self {
            Self::Widget => {
                format!("/apis/conformance.stockade.dev/v1/namespaces/{namespace}/widgets")
            }
            Self::Lease => format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"),
        }
    }

    fn object(self, name: &str, spec: Value) -> Value {
        let (version, kind) = match self {
            Self::Widget => ("conformance.stockade.dev/v1", "Widget"),
            Self::Lease => ("coordination.k8s.io/v1", "Lease"),
        };
        json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec})
    }
}

/// One step, the same for both arms; what depends on an arm's versions is filled in by it.
#[derive(Debug, Clone)]
struct Step {
    method: &'static str,
    path: String,
    query: String,
    body: Value,
    /// PUT the object last seen, changed by `body` as a merge patch.
    on_last: bool,
    /// Write with the version before the last one.
    stale: bool,
    /// DELETE with the uid of the object last seen.
    with_uid: bool,
}

fn step(method: &'static str, path: &str, body: Value) -> Step {
    Step {
        method,
        path: path.to_owned(),
        query: String::new(),
        body,
        on_last: false,
        stale: false,
        with_uid: false,
    }
}

fn merge(target: &mut Value, patch: &Value) {
    match patch {
        Value::Object(changes) => {
            if !target.is_object() {
                *target = json!({});
            }
            for (key, change) in changes {
                if change.is_null() {
                    target.as_object_mut().expect("an object").remove(key);
                } else {
                    merge(&mut target[key], change);
                }
            }
        }
        other => *target = other.clone(),
    }
}

impl Arm {
    async fn send(&self, method: &str, uri: &str, body: &Value) -> Result<Value, (u16, String)> {
        let content = match method {
            "PATCH" => "application/merge-patch+json",
            _ => "application/json",
        };
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let request = http::Request::builder()
            .method(method)
            .uri(uri)
            .header("content-type", content)
            .body(body)
            .expect("a request");
        match self.client.request::<Value>(request).await {
            Ok(value) => Ok(value),
            Err(kube::Error::Api(status)) => Err((status.code, status.reason.clone())),
            Err(other) => panic!("{method} {uri}: {other}"),
        }
    }

    /// Runs `steps` and returns what came back, in shared terms.
    async fn run(&self, of: Of, steps: &[Step]) -> Vec<String> {
        let mut names = Names::default();
        let mut seen: Vec<Value> = Vec::new();
        let mut answers = Vec::new();
        for step in steps {
            let uri = format!("{}{}?{}", of.base(&self.namespace), step.path, step.query);
            let mut body = step.body.clone();
            if step.on_last {
                let mut object =
                    seen.last().cloned().unwrap_or_else(|| of.object("none", json!({})));
                merge(&mut object, &body);
                body = object;
            }
            if step.stale
                && let Some(first) = seen.first()
            {
                body["metadata"]["resourceVersion"] = first["metadata"]["resourceVersion"].clone();
            }
            if step.with_uid
                && let Some(last) = seen.last()
            {
                body = json!({"preconditions": {"uid": last["metadata"]["uid"]}});
            }
            let answer = self.send(step.method, &uri, &body).await;
            answers.push(match answer {
                Ok(value) => {
                    if value["kind"] != "Status" && value.get("items").is_none() {
                        seen.push(value.clone());
                    }
                    format!("{}", names.tidy(value))
                }
                Err((code, reason)) => format!("{code} {reason}"),
            });
        }
        answers
    }

    /// Collects what a watch of all `of` in the namespace tells until it is dropped.
    fn watch(&self, of: Of, from: String) -> tokio::task::JoinHandle<Vec<String>> {
        let gvk = match of {
            Of::Widget => GroupVersionKind::gvk("conformance.stockade.dev", "v1", "Widget"),
            Of::Lease => GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease"),
        };
        let kind = ApiResource::from_gvk(&gvk);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &kind);
        tokio::spawn(async move {
            let params = WatchParams::default().timeout(280).disable_bookmarks();
            let mut events = Box::pin(api.watch(&params, &from).await.expect("a watch"));
            let (mut names, mut told) = (Names::default(), Vec::new());
            while let Ok(Ok(Some(event))) =
                tokio::time::timeout(Duration::from_secs(20), events.try_next()).await
            {
                let (word, object) = match event {
                    WatchEvent::Added(o) => ("ADDED", o),
                    WatchEvent::Modified(o) => ("MODIFIED", o),
                    WatchEvent::Deleted(o) => ("DELETED", o),
                    WatchEvent::Bookmark(_) => continue,
                    WatchEvent::Error(status) => panic!("{status:?}"),
                };
                if object.metadata.name.as_deref() == Some("end-of-watch") {
                    break;
                }
                let value = serde_json::to_value(object).expect("JSON");
                told.push(format!("{word} {}", names.tidy(value)));
            }
            told
        })
    }
}

fn draw_spec(rng: &mut Rng, of: Of) -> Value {
    if of == Of::Lease {
        let specs = [
            json!({"holderIdentity": "a", "leaseDurationSeconds": 15}),
            json!({"holderIdentity": "b", "renewTime": "2026-01-01T00:00:01.500000Z"}),
            json!({"leaseDurationSeconds": 0}),
            json!({"leaseTransitions": -1}),
            json!({"leaseTransitions": 2, "unknown": "x"}),
            json!({"holderIdentity": 7}),
            json!({}),
        ];
        return rng.pick(&specs).cloned().unwrap_or_default();
    }
    let mut spec = json!({"size": rng.between(1, 6)});
    let extras = [
        json!({}),
        json!({"color": "blue"}),
        json!({"color": "green"}),
        json!({"color": null}),
        json!({"size": 0}),
        json!({"size": "1"}),
        json!({"size": null}),
        json!({"size": 1.5}),
        json!({"note": "abc"}),
        json!({"note": "ABC"}),
        json!({"note": "abcdef"}),
        json!({"maybe": null}),
        json!({"memory": "1Gi"}),
        json!({"memory": 5}),
        json!({"memory": true}),
        json!({"owner": "me"}),
        json!({"owner": "you"}),
        json!({"parts": [{"name": "a"}, {"name": "b", "weight": 1, "odd": 2}]}),
        json!({"parts": [{"name": "a"}, {"name": "a"}]}),
        json!({"parts": [{"weight": 1}]}),
        json!({"parts": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}]}),
        json!({"tags": {"a": "b"}}),
        json!({"tags": {"a": 1}}),
        json!({"tags": {"a": "1", "b": "2", "c": "3"}}),
        json!({"unknown": {"deep": 1}}),
    ];
    for _ in 0..rng.between(0, 2) {
        for (key, value) in rng.pick(&extras).and_then(Value::as_object).into_iter().flatten() {
            spec[key] = value.clone();
        }
    }
    spec
}

fn draw(rng: &mut Rng, of: Of, name: &str) -> Step {
    let one = format!("/{name}");
    let metadata = [
        json!({}),
        json!({"labels": {"a": "b"}}),
        json!({"labels": {"a": null}}),
        json!({"labels": {"a": "not legal!"}}),
        json!({"annotations": {"x/y": "z"}}),
        json!({"finalizers": ["stockade.dev/hold"]}),
        json!({"finalizers": null}),
        json!({"finalizers": []}),
        json!({"uid": "00000000-0000-4000-8000-000000000000"}),
        json!({"generation": 77}),
        json!({"name": "another"}),
    ];
    let metadata = rng.pick(&metadata).cloned().unwrap_or_default();
    let spec = draw_spec(rng, of);
    match rng.below(if of == Of::Widget { 14 } else { 11 }) {
        0 | 1 => step("POST", "", of.object(name, spec)),
        2 => {
            let mut object = of.object(name, spec);
            merge(&mut object["metadata"], &metadata);
            step("POST", "", object)
        }
        3 => step("GET", &one, Value::Null),
        4 => Step { on_last: true, ..step("PUT", &one, json!({"spec": spec})) },
        5 => Step { on_last: true, ..step("PUT", &one, json!({"metadata": metadata})) },
        6 => Step { on_last: true, stale: true, ..step("PUT", &one, json!({"spec": spec})) },
        7 => step("PUT", &one, of.object(name, spec)),
        8 => step("PATCH", &one, json!({"metadata": metadata, "spec": spec})),
        9 => match rng.below(3) {
            0 => step("DELETE", &one, json!({"preconditions": {"uid": "wrong"}})),
            1 => Step { with_uid: true, ..step("DELETE", &one, Value::Null) },
            _ => step("DELETE", &one, Value::Null),
        },
        10 => {
            let fields = format!("fieldSelector=metadata.name%3D{name}");
            Step { query: fields, ..step("GET", "", Value::Null) }
        }
        11 => {
            let seen = rng.below(3);
            step("PATCH", &format!("{one}/status"), json!({"status": {"seen": seen}, "spec": spec}))
        }
        12 => {
            let body = json!({"status": {"seen": "x"}, "metadata": metadata});
            step("PATCH", &format!("{one}/status"), body)
        }
        _ => {
            // A legal spec: kube-apiserver ignores it here, but writes when one that it cannot
            // read as typed upsets its managedFields, which we do not keep.
            let spec = json!({"size": rng.between(1, 9)});
            let body = json!({"status": {"seen": 5}, "spec": spec, "metadata": metadata});
            Step { on_last: true, ..step("PUT", &format!("{one}/status"), body) }
        }
    }
}

/// What must hold whatever is drawn: conflicts, finalizers, isolation of status, no-ops.
fn by_hand(name: &str) -> Vec<Step> {
    let of = Of::Widget;
    let one = format!("/{name}");
    let status = format!("/{name}/status");
    let put = |body| Step { on_last: true, ..step("PUT", &one, body) };
    vec![
        step("GET", &one, Value::Null),
        step("POST", "", of.object(name, json!({"size": 1, "odd": 1}))),
        step("POST", "", of.object(name, json!({"size": 1}))),
        put(json!({})),
        put(json!({"spec": {"size": 2}, "status": {"seen": 9}})),
        Step { stale: true, ..put(json!({"spec": {"size": 3}})) },
        put(json!({"metadata": {"resourceVersion": null}})),
        step("PATCH", &one, json!({"metadata": {"resourceVersion": "1"}, "spec": {"size": 3}})),
        step("PATCH", &one, json!({"metadata": {"finalizers": ["stockade.dev/hold"]}})),
        step("PATCH", &status, json!({"status": {"seen": 1}, "metadata": {"labels": {"a": "b"}}})),
        step("PATCH", &status, json!({"status": {"seen": 1}})),
        step("PATCH", &status, json!({"status": {"seen": -1}})),
        step("DELETE", &one, Value::Null),
        step("DELETE", &one, Value::Null),
        step("PATCH", &one, json!({"metadata": {"finalizers": ["stockade.dev/hold", "x.y/z"]}})),
        step("PATCH", &one, json!({"metadata": {"finalizers": null}})),
        step("GET", &one, Value::Null),
        step("DELETE", &one, Value::Null),
        Step { query: "labelSelector=a%20in%20(b)".to_owned(), ..step("GET", "", Value::Null) },
        Step { query: "fieldSelector=spec.nope%3D1".to_owned(), ..step("GET", "", Value::Null) },
        Step {
            query: "fieldSelector=spec.color%3Dblue".to_owned(),
            ..step("GET", "", Value::Null)
        },
        Step { query: "continue=rubbish".to_owned(), ..step("GET", "", Value::Null) },
        Step { query: "resourceVersion=abc".to_owned(), ..step("GET", "", Value::Null) },
        Step {
            query: "fieldValidation=Strict".to_owned(),
            ..step("POST", "", of.object(name, json!({"size": 1, "odd": 1})))
        },
        step("POST", "", of.object("Not_A_Name", json!({"size": 1}))),
        step("POST", "", json!({"apiVersion": "v1", "kind": "Widget", "metadata": {"name": name}})),
    ]
}

#[tokio::test]
async fn the_in_process_api_answers_as_kube_apiserver_does() {
    with_control_plane("conformance", async |plane, namespace| {
        let real = Arm {
            client: plane.setup_client().await.expect("client"),
            namespace: namespace.to_owned(),
        };
        let crds: Api<CustomResourceDefinition> = Api::all(real.client.clone());
        crds.create(&PostParams::default(), &widget_crd()).await.expect("CRD");
        let served = async || {
            let uri = format!("{}?", Of::Widget.base(namespace));
            real.send("GET", &uri, &Value::Null).await
        };
        for _ in 0..200 {
            if served().await.is_ok() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let sim = SimApi::new(&[widget_crd()], 1).expect("schema");
        let home =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        sim.admin().create(&home).expect("namespace");
        let ours = Arm { client: sim.client("user"), namespace: namespace.to_owned() };

        let mut watches = Vec::new();
        for of in [Of::Widget, Of::Lease] {
            for arm in [&real, &ours] {
                let uri = format!("{}?", of.base(namespace));
                let list = arm.send("GET", &uri, &Value::Null).await.expect("list");
                let from = list["metadata"]["resourceVersion"].as_str().expect("version");
                watches.push(arm.watch(of, from.to_owned()));
            }
        }

        let mut different = Vec::new();
        let mut compared = 0;
        for seed in 0..=SEQUENCES {
            let mut rng = Rng::new(seed);
            let of = if seed % 4 == 3 { Of::Lease } else { Of::Widget };
            let name = format!("o{seed}");
            let steps: Vec<Step> = match seed {
                0 => by_hand(&name),
                _ => (0..STEPS).map(|_| draw(&mut rng, of, &name)).collect(),
            };
            let (theirs, mine) = (real.run(of, &steps).await, ours.run(of, &steps).await);
            for ((step, theirs), mine) in steps.iter().zip(&theirs).zip(&mine) {
                compared += 1;
                if theirs != mine {
                    different.push(format!(
                        "sequence {seed}: {} {}?{} {} (on_last {}, stale {})\n  kube-apiserver: \
                         {theirs}\n  in process:     {mine}",
                        step.method, step.path, step.query, step.body, step.on_last, step.stale
                    ));
                    break;
                }
            }
        }
        for of in [Of::Widget, Of::Lease] {
            let last = of.object("end-of-watch", json!({"size": 1, "leaseDurationSeconds": 1}));
            for arm in [&real, &ours] {
                arm.send("POST", &format!("{}?", of.base(namespace)), &last).await.expect("end");
            }
        }
        let mut told = Vec::new();
        for watch in watches {
            told.push(watch.await.expect("watch"));
        }
        for pair in told.chunks(2) {
            let [theirs, mine] = pair else { continue };
            assert!(theirs.len() > 50, "few events: {}", theirs.len());
            let first = theirs.iter().zip(mine).find(|(t, m)| t != m);
            if let Some((t, m)) = first {
                different.push(format!("watch\n  kube-apiserver: {t}\n  in process:     {m}"));
            } else if theirs.len() != mine.len() {
                different.push(format!("watch: {} events, {} here", theirs.len(), mine.len()));
            }
        }
        assert!(
            different.is_empty(),
            "{} differences in {compared} answers, the first ones:\n{}",
            different.len(),
            different[..different.len().min(25)].join("\n")
        );
    })
    .await
    .expect("control plane");
}
