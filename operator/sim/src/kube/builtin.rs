//! Kubernetes' own kinds, as far as our programs use them.
//!
//! Known difference: `events.k8s.io/v1` and core Events are two kinds here; a real API server
//! shows one set of objects in both shapes.

use std::collections::BTreeSet;

use k8s_openapi::ByteString;
use k8s_openapi::api::{coordination, core, events, rbac};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::kinds::{Kind, Shape};
use super::refusal::Cause;

/// What is particular to one built-in kind.
#[derive(Debug, Clone, Copy)]
pub struct BuiltIn {
    /// Through the typed form and back: drops unknown fields, refuses wrong types.
    pub typed: fn(Value) -> Result<Value, serde_json::Error>,
    /// Fills in what the server fills in; the second argument is what is stored now.
    pub prepare: fn(&mut Value, Option<&Value>),
    /// What is wrong with the object; the second argument is what is stored now.
    pub validate: fn(&Value, Option<&Value>) -> Vec<Cause>,
    /// Which names are legal.
    pub name: fn(&str) -> bool,
    /// Whether DELETE answers with the object rather than with a Status.
    pub returns_deleted: bool,
}

fn typed<K: Serialize + DeserializeOwned>(value: Value) -> Result<Value, serde_json::Error> {
    serde_json::to_value(serde_json::from_value::<K>(value)?)
}

fn kind<K: Serialize + DeserializeOwned>(
    (group, version, kind, plural): (&str, &str, &str, &str),
) -> Kind {
    Kind {
        group: group.to_owned(),
        version: version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        namespaced: true,
        status: false,
        generation: false,
        create_on_update: false,
        unconditional_update: false,
        selectable: BTreeSet::new(),
        shape: Shape::BuiltIn(BuiltIn {
            typed: typed::<K>,
            prepare: |_, _| {},
            validate: |_, _| Vec::new(),
            name: super::format::is_subdomain,
            returns_deleted: false,
        }),
    }
}

impl Kind {
    fn with(mut self, change: impl FnOnce(&mut BuiltIn)) -> Self {
        if let Shape::BuiltIn(built_in) = &mut self.shape {
            change(built_in);
        }
        self
    }

    fn selectable_by(mut self, fields: &[&str]) -> Self {
        self.selectable = fields.iter().map(|&f| f.to_owned()).collect();
        self
    }
}

const RBAC: &str = "rbac.authorization.k8s.io";

/// The built-in kinds.
pub fn kinds() -> Vec<Kind> {
    vec![
        Kind {
            namespaced: false,
            unconditional_update: true,
            ..kind::<core::v1::Namespace>(("", "v1", "Namespace", "namespaces"))
        }
        .selectable_by(&["status.phase"])
        .with(|b| {
            b.prepare = prepare_namespace;
            b.name = super::format::is_label;
            b.returns_deleted = true;
        }),
        Kind {
            create_on_update: true,
            ..kind::<coordination::v1::Lease>(("coordination.k8s.io", "v1", "Lease", "leases"))
        }
        .with(|b| b.validate = validate_lease),
        Kind {
            create_on_update: true,
            unconditional_update: true,
            ..kind::<events::v1::Event>(("events.k8s.io", "v1", "Event", "events"))
        }
        .selectable_by(&["reason", "type"])
        .with(|b| {
            b.prepare = |object, _| prepare_event(object);
            b.validate = validate_event;
        }),
        Kind {
            create_on_update: true,
            unconditional_update: true,
            ..kind::<core::v1::Event>(("", "v1", "Event", "events"))
        }
        .selectable_by(&[
            "involvedObject.kind",
            "involvedObject.name",
            "involvedObject.namespace",
            "involvedObject.uid",
            "reason",
            "type",
        ]),
        Kind {
            unconditional_update: true,
            ..kind::<core::v1::Secret>(("", "v1", "Secret", "secrets"))
        }
        .selectable_by(&["type"])
        .with(|b| {
            b.prepare = prepare_secret;
            b.validate = validate_secret;
        }),
        kind::<core::v1::ServiceAccount>(("", "v1", "ServiceAccount", "serviceaccounts"))
            .with(|b| b.returns_deleted = true),
        Kind {
            create_on_update: true,
            unconditional_update: true,
            ..kind::<rbac::v1::Role>((RBAC, "v1", "Role", "roles"))
        }
        .with(|b| b.name = super::format::is_path_segment),
        Kind {
            create_on_update: true,
            unconditional_update: true,
            ..kind::<rbac::v1::RoleBinding>((RBAC, "v1", "RoleBinding", "rolebindings"))
        }
        .with(|b| {
            b.name = super::format::is_path_segment;
            b.prepare = |object, _| prepare_binding(object);
            b.validate = validate_binding;
        }),
    ]
}

fn prepare_namespace(object: &mut Value, old: Option<&Value>) {
    if let Some(old) = old {
        object["spec"] = old["spec"].clone();
        object["status"] = old["status"].clone();
    } else {
        object["spec"] = json!({"finalizers": ["kubernetes"]});
        object["status"] = json!({"phase": "Active"});
    }
    let name = object["metadata"]["name"].clone();
    object["metadata"]["labels"]["kubernetes.io/metadata.name"] = name;
}

fn prepare_secret(object: &mut Value, _: Option<&Value>) {
    let Some(map) = object.as_object_mut() else { return };
    if map.get("type").is_none_or(|t| t == "") {
        map.insert("type".to_owned(), json!("Opaque"));
    }
    if let Some(Value::Object(plain)) = map.remove("stringData") {
        let data = map.entry("data").or_insert_with(|| json!({}));
        for (key, value) in plain {
            let text = value.as_str().unwrap_or_default();
            data[key] = json!(ByteString(text.as_bytes().to_vec()));
        }
    }
}

fn validate_secret(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(old) = old {
        if old["type"] != object["type"] {
            causes.push(Cause::invalid("type", "field is immutable"));
        }
        if old["immutable"] == true {
            if object["immutable"] != true {
                let message = "field is immutable when `immutable` is set";
                causes.push(Cause::forbidden("immutable", message));
            }
            if old["data"] != object["data"] {
                let message = "field is immutable when `immutable` is set";
                causes.push(Cause::forbidden("data", message));
            }
        }
    }
    causes
}

fn validate_lease(object: &Value, _: Option<&Value>) -> Vec<Cause> {
    let spec = &object["spec"];
    let mut causes = Vec::new();
    if spec["leaseDurationSeconds"].as_i64().is_some_and(|n| n <= 0) {
        causes.push(Cause::invalid("spec.leaseDurationSeconds", "must be greater than 0"));
    }
    if spec["leaseTransitions"].as_i64().is_some_and(|n| n < 0) {
        let message = "must be greater than or equal to 0";
        causes.push(Cause::invalid("spec.leaseTransitions", message));
    }
    causes
}

/// The server shows what older clients fill in, empty.
fn prepare_event(object: &mut Value) {
    let Some(map) = object.as_object_mut() else { return };
    for key in ["deprecatedFirstTimestamp", "deprecatedLastTimestamp"] {
        map.entry(key).or_insert(Value::Null);
    }
    map.entry("deprecatedSource").or_insert_with(|| json!({}));
}

fn validate_event(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let (here, about) =
        (text(&object["metadata"]["namespace"]), text(&object["regarding"]["namespace"]));
    let mut causes = Vec::new();
    // The server names fields as the older kind does. Without a time it is judged as one of those.
    let elsewhere = if text(&object["eventTime"]).is_empty() {
        causes.push(Cause::required("eventTime"));
        here != if about.is_empty() { "default" } else { about.as_str() }
    } else {
        let fields = ["reportingController", "reportingInstance", "action", "reason"];
        let missing = fields.into_iter().filter(|&key| text(&object[key]).is_empty());
        causes.extend(missing.map(Cause::required));
        if text(&object["note"]).len() > 1024 {
            causes.push(Cause::invalid("message", "can have at most 1024 characters"));
        }
        about.is_empty() && here != "default" && here != "kube-system"
    };
    if elsewhere {
        causes.push(Cause::invalid("involvedObject.namespace", "does not match event.namespace"));
    }
    if !matches!(object["type"].as_str(), Some("Normal" | "Warning")) {
        causes.push(Cause::invalid("type", "must be Normal or Warning"));
    }
    if let Some(old) = old {
        // An event may be counted up, not rewritten.
        for (key, named) in [
            ("eventTime", "eventTime"),
            ("reportingController", "reportingController"),
            ("reportingInstance", "reportingInstance"),
            ("action", "action"),
            ("reason", "reason"),
            ("regarding", "involvedObject"),
            ("related", "related"),
            ("note", "message"),
            ("type", "type"),
        ] {
            if object[key] != old[key] {
                causes.push(Cause::invalid(named, "field is immutable"));
            }
        }
    }
    causes
}

fn prepare_binding(object: &mut Value) {
    if let Some(role) = object["roleRef"].as_object_mut()
        && role.get("apiGroup").is_none_or(|g| g == "")
    {
        role.insert("apiGroup".to_owned(), json!(RBAC));
    }
    for subject in object["subjects"].as_array_mut().into_iter().flatten() {
        if matches!(subject["kind"].as_str(), Some("User" | "Group"))
            && subject["apiGroup"].as_str().is_none_or(str::is_empty)
        {
            subject["apiGroup"] = json!(RBAC);
        }
    }
}

fn validate_binding(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(old) = old
        && old["roleRef"] != object["roleRef"]
    {
        causes.push(Cause::invalid("roleRef", "cannot change roleRef"));
    }
    if object["roleRef"]["name"].as_str().is_none_or(str::is_empty) {
        causes.push(Cause::required("roleRef.name"));
    }
    if !matches!(object["roleRef"]["kind"].as_str(), Some("Role" | "ClusterRole")) {
        let message = "must be Role or ClusterRole";
        causes.push(Cause {
            reason: "FieldValueNotSupported",
            field: "roleRef.kind".to_owned(),
            message: format!("Unsupported value: {message}"),
        });
    }
    causes
}
