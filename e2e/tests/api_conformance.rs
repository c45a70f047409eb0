//! The in-process API answers as kube-apiserver does: the same requests to both, by hand and
//! drawn from seeds, and the same objects, refusals and watch events back.
#![allow(clippy::panic, reason = "a test: an arm that cannot be reached ends it")]

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::time::Duration;

use futures::TryStreamExt;
use kube::api::{Api, DynamicObject, WatchEvent, WatchParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use stockade_e2e::conformance::api;
use stockade_e2e::control_plane::{ControlPlane, Options, with_control_plane};
use stockade_sim::kube::SimApi;
use stockade_sim::rng::Rng;

const SEQUENCES: u64 = 480;
const STEPS: u64 = 12;

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

/// The order of the versions that one object after the other shows.
#[derive(Default)]
struct Versions(u64);

impl Versions {
    /// How the version of `object` stands to that of the one before; none if it shows none.
    fn next(&mut self, object: &Value) -> Option<Ordering> {
        let version: u64 = object["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        // A list's version counts the writes of the whole server.
        if !object["items"].is_null() {
            return None;
        }
        let order = version.cmp(&self.0);
        self.0 = version;
        Some(order)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Of {
    Widget,
    VirtualMachine,
    Lease,
    Event,
    Secret,
    Namespace,
}

/// Kinds of which all that lies in the namespace is watched. Namespaces lie in none.
const WATCHED: [Of; 5] = [Of::Widget, Of::VirtualMachine, Of::Lease, Of::Event, Of::Secret];

impl Of {
    /// The kind that a sequence is about.
    fn drawn(seed: u64) -> Self {
        match seed % 8 {
            0 | 4 => Self::Widget,
            1 | 5 => Self::VirtualMachine,
            2 => Self::Lease,
            3 => Self::Event,
            6 => Self::Secret,
            _ => Self::Namespace,
        }
    }

    /// Group, version, kind, and its plural.
    fn names(self) -> (&'static str, &'static str, &'static str, &'static str) {
        match self {
            Self::Widget => ("conformance.stockade.dev", "v1", "Widget", "widgets"),
            Self::VirtualMachine => {
                ("stockade.dev", "v1alpha1", "VirtualMachine", "virtualmachines")
            }
            Self::Lease => ("coordination.k8s.io", "v1", "Lease", "leases"),
            Self::Event => ("events.k8s.io", "v1", "Event", "events"),
            Self::Secret => ("", "v1", "Secret", "secrets"),
            Self::Namespace => ("", "v1", "Namespace", "namespaces"),
        }
    }

    fn base(self, namespace: &str) -> String {
        let (group, version, _, plural) = self.names();
        let root = if group.is_empty() { "/api".to_owned() } else { format!("/apis/{group}") };
        match self {
            Self::Namespace => format!("{root}/{version}/{plural}"),
            _ => format!("{root}/{version}/namespaces/{namespace}/{plural}"),
        }
    }

    /// An object of this kind with these fields beside its metadata.
    fn object(self, name: &str, fields: &Value) -> Value {
        let (group, version, kind, _) = self.names();
        let version =
            if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
        let mut object = json!({"apiVersion": version, "kind": kind, "metadata": {"name": name}});
        merge(&mut object, fields);
        object
    }

    /// Fields with which an object is accepted.
    fn accepted(self, namespace: &str) -> Value {
        match self {
            Self::Widget => json!({"spec": {"size": 1}}),
            Self::VirtualMachine => json!({"spec": {"memory": "1Gi", "disks": [
                {"name": "root", "storage": "vms", "existing": {"path": "a.qcow2"}},
            ]}}),
            Self::Lease => json!({"spec": {"leaseDurationSeconds": 1}}),
            Self::Event => json!({
                "action": "Start", "reason": "Started", "type": "Normal", "note": "it runs",
                "eventTime": "2026-01-01T00:00:00.000000Z",
                "reportingController": "stockade.dev/agent", "reportingInstance": "h1",
                "regarding": {"kind": "VirtualMachine", "name": "a", "namespace": namespace},
            }),
            Self::Secret => json!({"data": {"user": "YQ=="}}),
            Self::Namespace => json!({}),
        }
    }

    fn has_status(self) -> bool {
        matches!(self, Self::Widget | Self::VirtualMachine)
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
    /// The answer; of a refusal its code and reason, and the fields that it names.
    async fn send(&self, method: &str, uri: &str, body: &Value) -> Result<Value, String> {
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
            Err(kube::Error::Api(status)) => {
                let causes = status.details.iter().flat_map(|d| &d.causes);
                let mut fields: Vec<&str> = causes.map(|c| c.field.as_str()).collect();
                // How often it says so is its own affair.
                fields.sort_unstable();
                fields.dedup();
                Err(format!("{} {} {}", status.code, status.reason, fields.join(" ")))
            }
            Err(other) => panic!("{method} {uri}: {other}"),
        }
    }

    /// Runs `steps` and returns what came back, in shared terms.
    async fn run(&self, of: Of, steps: &[Step]) -> Vec<String> {
        let mut names = Names::default();
        let mut seen: Vec<Value> = Vec::new();
        let mut answers = Vec::new();
        let mut versions = Versions::default();
        for step in steps {
            let uri = format!("{}{}?{}", of.base(&self.namespace), step.path, step.query);
            let mut body = step.body.clone();
            if step.on_last {
                let mut object =
                    seen.last().cloned().unwrap_or_else(|| of.object("none", &json!({})));
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
                    let order = versions.next(&value);
                    format!("{} {order:?}", names.tidy(value))
                }
                Err(refused) => refused,
            });
        }
        answers
    }

    /// Collects what a watch of all `of` in the namespace tells until it is dropped.
    fn watch(&self, of: Of, from: String) -> tokio::task::JoinHandle<Vec<String>> {
        let (group, version, kind, plural) = of.names();
        let gvk = GroupVersionKind::gvk(group, version, kind);
        let kind = ApiResource::from_gvk_with_plural(&gvk, plural);
        let api: Api<DynamicObject> =
            Api::namespaced_with(self.client.clone(), &self.namespace, &kind);
        tokio::spawn(async move {
            let params = WatchParams::default().timeout(280).disable_bookmarks();
            let mut events = Box::pin(api.watch(&params, &from).await.expect("a watch"));
            let (mut names, mut told) = (Names::default(), Vec::new());
            let mut versions = Versions::default();
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
                let order = versions.next(&value);
                told.push(format!("{word} {} {order:?}", names.tidy(value)));
            }
            told
        })
    }
}

/// Changes of the fields beside the metadata, each legal or not.
fn changes(of: Of) -> Vec<Value> {
    match of {
        Of::Widget => WIDGETS.iter().map(|spec| json!({"spec": parsed(spec)})).collect(),
        Of::VirtualMachine => MACHINES.iter().map(|spec| json!({"spec": parsed(spec)})).collect(),
        Of::Lease => LEASES.iter().map(|spec| json!({"spec": parsed(spec)})).collect(),
        Of::Event => EVENTS.iter().map(|text| parsed(text)).collect(),
        Of::Secret => SECRETS.iter().map(|text| parsed(text)).collect(),
        Of::Namespace => NAMESPACES.iter().map(|text| parsed(text)).collect(),
    }
}

fn parsed(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

const WIDGETS: [&str; 25] = [
    r#"{}"#,
    r#"{"color": "blue"}"#,
    r#"{"color": "green"}"#,
    r#"{"color": null}"#,
    r#"{"size": 0}"#,
    r#"{"size": "1"}"#,
    r#"{"size": null}"#,
    r#"{"size": 1.5}"#,
    r#"{"note": "abc"}"#,
    r#"{"note": "ABC"}"#,
    r#"{"note": "abcdef"}"#,
    r#"{"maybe": null}"#,
    r#"{"memory": "1Gi"}"#,
    r#"{"memory": 5}"#,
    r#"{"memory": true}"#,
    r#"{"owner": "me"}"#,
    r#"{"owner": "you"}"#,
    r#"{"parts": [{"name": "a"}, {"name": "b", "weight": 1, "odd": 2}]}"#,
    r#"{"parts": [{"name": "a"}, {"name": "a"}]}"#,
    r#"{"parts": [{"weight": 1}]}"#,
    r#"{"parts": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}]}"#,
    r#"{"tags": {"a": "b"}}"#,
    r#"{"tags": {"a": 1}}"#,
    r#"{"tags": {"a": "1", "b": "2", "c": "3"}}"#,
    r#"{"unknown": {"deep": 1}}"#,
];

const MACHINES: [&str; 20] = [
    r#"{}"#,
    r#"{"runPolicy": "Halted"}"#,
    r#"{"runPolicy": "Sometimes"}"#,
    r#"{"runPolicy": null}"#,
    r#"{"paused": true}"#,
    r#"{"paused": "yes"}"#,
    r#"{"memory": "2Gi"}"#,
    r#"{"memory": "1Mi"}"#,
    r#"{"memory": "lots"}"#,
    r#"{"memory": null}"#,
    r#"{"cpu": {"cores": 2}}"#,
    r#"{"cpu": {"cores": 0}}"#,
    r#"{"stopGraceSeconds": 86401}"#,
    r#"{"placement": {"requiredHosts": ["h1", "h2"], "odd": 1}}"#,
    r#"{"placement": {"apartFrom": "b"}}"#,
    r#"{"disks": [{"name": "own", "storage": "vms", "blank": {}, "size": "1Gi", "reclaim": "Delete"}]}"#,
    r#"{"disks": [{"name": "own", "storage": "vms", "existing": {"path": "../a.qcow2"}}]}"#,
    r#"{"disks": [{"name": "a", "storage": "vms"}]}"#,
    r#"{"cloudInit": {"userData": "x"}}"#,
    r#"{"cloudInit": {}}"#,
];

const LEASES: [&str; 7] = [
    r#"{"holderIdentity": "a", "leaseDurationSeconds": 15}"#,
    r#"{"holderIdentity": "b", "renewTime": "2026-01-01T00:00:01.500000Z"}"#,
    r#"{"leaseDurationSeconds": 0}"#,
    r#"{"leaseTransitions": -1}"#,
    r#"{"leaseTransitions": 2, "unknown": "x"}"#,
    r#"{"holderIdentity": 7}"#,
    r#"{}"#,
];

const EVENTS: [&str; 12] = [
    r#"{}"#,
    r#"{"reason": ""}"#,
    r#"{"action": null}"#,
    r#"{"reportingController": null}"#,
    r#"{"reportingInstance": ""}"#,
    r#"{"eventTime": null}"#,
    r#"{"type": "Odd"}"#,
    r#"{"type": "Warning"}"#,
    r#"{"note": "another"}"#,
    r#"{"regarding": {"namespace": "elsewhere"}}"#,
    r#"{"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:01.000000Z"}}"#,
    r#"{"unknown": 1}"#,
];

const SECRETS: [&str; 9] = [
    r#"{}"#,
    r#"{"data": {"key": "Yg=="}}"#,
    r#"{"data": {"key": null}}"#,
    r#"{"data": {"user": 7}}"#,
    r#"{"stringData": {"more": "text"}}"#,
    r#"{"type": "Opaque"}"#,
    r#"{"type": "example.com/kind"}"#,
    r#"{"immutable": true}"#,
    r#"{"unknown": 1}"#,
];

const NAMESPACES: [&str; 4] = [
    r#"{}"#,
    r#"{"unknown": 1}"#,
    r#"{"status": {"phase": "Terminating"}}"#,
    r#"{"metadata": {"labels": {"kubernetes.io/metadata.name": "another"}}}"#,
];

/// What an object has beside its metadata: mostly legal, with up to two changes.
fn draw_fields(rng: &mut Rng, of: Of, namespace: &str) -> Value {
    let mut fields = of.accepted(namespace);
    if of == Of::Widget {
        fields["spec"]["size"] = rng.between(1, 6).into();
    }
    if of == Of::Lease {
        fields = json!({"spec": {}});
    }
    let changes = changes(of);
    for _ in 0..rng.between(0, 2) {
        let change = rng.pick(&changes).cloned().unwrap_or_default();
        put_in(&mut fields, &change);
    }
    fields
}

/// Lays `change` over `fields`; a null of it stays.
fn put_in(fields: &mut Value, change: &Value) {
    for (key, value) in change.as_object().into_iter().flatten() {
        if value.is_object() && fields[key].is_object() {
            put_in(&mut fields[key], value);
        } else {
            fields[key] = value.clone();
        }
    }
}

fn draw_status(rng: &mut Rng, of: Of) -> Value {
    match of {
        Of::VirtualMachine => {
            let status = [
                json!({"epoch": rng.below(3)}),
                json!({"printableStatus": "Running", "host": "h1"}),
                json!({"printableStatus": "Odd"}),
                json!({"epoch": "one"}),
            ];
            rng.pick(&status).cloned().unwrap_or_default()
        }
        _ => json!({"seen": rng.below(3)}),
    }
}

fn draw(rng: &mut Rng, of: Of, namespace: &str, name: &str) -> Step {
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
    let mut metadata = rng.pick(&metadata).cloned().unwrap_or_default();
    if !of.has_status() {
        // They have none, and keep what they are made with.
        metadata.as_object_mut().map(|map| map.remove("generation"));
    }
    let mut fields = draw_fields(rng, of, namespace);
    let which = rng.below(if of.has_status() { 14 } else { 11 });
    match which {
        0 | 1 => step("POST", "", of.object(name, &fields)),
        2 => {
            let mut object = of.object(name, &fields);
            merge(&mut object["metadata"], &metadata);
            step("POST", "", object)
        }
        3 => step("GET", &one, Value::Null),
        4 => Step { on_last: true, ..step("PUT", &one, fields) },
        5 => Step { on_last: true, ..step("PUT", &one, json!({"metadata": metadata})) },
        6 => Step { on_last: true, stale: true, ..step("PUT", &one, fields) },
        7 => step("PUT", &one, of.object(name, &fields)),
        8 => {
            merge(&mut fields["metadata"], &metadata);
            step("PATCH", &one, fields)
        }
        // What becomes of a namespace that is deleted its controller decides.
        9 if of != Of::Namespace => match rng.below(3) {
            0 => step("DELETE", &one, json!({"preconditions": {"uid": "wrong"}})),
            1 => Step { with_uid: true, ..step("DELETE", &one, Value::Null) },
            _ => step("DELETE", &one, Value::Null),
        },
        9 | 10 => {
            let fields = format!("fieldSelector=metadata.name%3D{name}");
            Step { query: fields, ..step("GET", "", Value::Null) }
        }
        11 => {
            // With a legal spec: see below.
            let mut body = of.accepted(namespace);
            body["status"] = draw_status(rng, of);
            step("PATCH", &format!("{one}/status"), body)
        }
        12 => {
            let mut body = json!({"status": {"seen": "x"}, "metadata": metadata});
            if of == Of::VirtualMachine {
                body["status"] = draw_status(rng, of);
            }
            step("PATCH", &format!("{one}/status"), body)
        }
        _ => {
            // A legal spec: kube-apiserver ignores it here, but writes when one that it cannot
            // read as typed upsets its managedFields, which we do not keep.
            let mut body = of.accepted(namespace);
            if of == Of::Widget {
                body["spec"]["size"] = rng.between(1, 9).into();
            }
            body["status"] = draw_status(rng, of);
            body["metadata"] = metadata;
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
        step("POST", "", of.object(name, &json!({"spec": {"size": 1, "odd": 1}}))),
        step("POST", "", of.object(name, &json!({"spec": {"size": 1}}))),
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
            ..step("POST", "", of.object(name, &json!({"spec": {"size": 1, "odd": 1}})))
        },
        step("POST", "", of.object("Not_A_Name", &json!({"spec": {"size": 1}}))),
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
        let mut crds = stockade_crds::all_crds();
        crds.push(api::widget_crd());
        api::install(&real.client, &crds).await;
        let sim = SimApi::new(&crds, 1).expect("schema");
        let home =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
        sim.admin().create(&home).expect("namespace");
        let ours = Arm { client: sim.client("user"), namespace: namespace.to_owned() };

        let mut watches = Vec::new();
        for of in WATCHED {
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
            let of = Of::drawn(seed);
            let name = format!("o{seed}");
            let steps: Vec<Step> = match seed {
                0 => by_hand(&name),
                _ => (0..STEPS).map(|_| draw(&mut rng, of, namespace, &name)).collect(),
            };
            let (theirs, mine) = (real.run(of, &steps).await, ours.run(of, &steps).await);
            for ((step, theirs), mine) in steps.iter().zip(&theirs).zip(&mine) {
                compared += 1;
                if theirs != mine {
                    different.push(format!(
                        "sequence {seed}, {of:?}: {} {}?{} {} (on_last {}, stale {})\n  kube-apiserver: \
                         {theirs}\n  in process:     {mine}",
                        step.method, step.path, step.query, step.body, step.on_last, step.stale
                    ));
                    break;
                }
            }
        }
        for of in WATCHED {
            let last = of.object("end-of-watch", &of.accepted(namespace));
            for arm in [&real, &ours] {
                arm.send("POST", &format!("{}?", of.base(namespace)), &last).await.expect("end");
            }
        }
        let mut told = Vec::new();
        for watch in watches {
            told.push(watch.await.expect("watch"));
        }
        for (of, pair) in WATCHED.iter().zip(told.chunks(2)) {
            let [theirs, mine] = pair else { continue };
            assert!(theirs.len() > 30, "{of:?}: few events: {}", theirs.len());
            let first = theirs.iter().zip(mine).find(|(t, m)| t != m);
            if let Some((t, m)) = first {
                different.push(format!("watch of {of:?}\n  kube-apiserver: {t}\n  in process:     {m}"));
            } else if theirs.len() != mine.len() {
                different.push(format!("watch of {of:?}: {} events, {} here", theirs.len(), mine.len()));
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

#[tokio::test]
async fn kube_apiserver_does_what_clients_live_on() {
    with_control_plane("bodies", async |plane, namespace| {
        let real = plane.setup_client().await.expect("client");
        api::install(&real, &[api::widget_crd()]).await;
        // What was before a kind was installed a server has never known.
        api::objects(&real, namespace, &|| ()).await;
    })
    .await
    .expect("control plane");
}

#[tokio::test]
async fn a_namespace_goes_with_what_lies_in_it() {
    let options = Options { controller_manager: true, ..Options::default() };
    let plane = ControlPlane::start(options).await.expect("control plane");
    let client = plane.setup_client().await.expect("client");
    api::install(&client, &[api::widget_crd()]).await;
    api::namespaces(&client).await;
}
