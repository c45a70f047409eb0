//! `metadata`: what clients may say there, and what only the server says.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value};

use super::format::{is_label_value, is_qualified};
use super::refusal::Cause;

/// Through the typed form and back: drops unknown fields, empty lists and maps, and what
/// this API does not keep (managedFields).
///
/// # Errors
/// A field of the wrong type.
pub fn tidy(metadata: Value) -> Result<Map<String, Value>, String> {
    let typed: ObjectMeta = match metadata {
        Value::Null => ObjectMeta::default(),
        given => serde_json::from_value(given).map_err(|e| e.to_string())?,
    };
    let typed = ObjectMeta { managed_fields: None, self_link: None, ..typed };
    let value = serde_json::to_value(typed).map_err(|e| e.to_string())?;
    let Value::Object(mut map) = value else { return Ok(Map::new()) };
    map.retain(|_, value| match value {
        Value::Object(m) => !m.is_empty(),
        Value::Array(l) => !l.is_empty(),
        Value::String(s) => !s.is_empty(),
        Value::Null => false,
        _ => true,
    });
    Ok(map)
}

/// What is wrong with the metadata of a new object.
#[must_use]
pub fn validate(object: &Value) -> Vec<Cause> {
    let metadata = &object["metadata"];
    let mut causes = Vec::new();
    for (key, value) in metadata["labels"].as_object().into_iter().flatten() {
        if !is_qualified(key) || !value.as_str().is_some_and(is_label_value) {
            causes.push(Cause::invalid("metadata.labels", format!("{key}: {value}")));
        }
    }
    for key in metadata["annotations"].as_object().into_iter().flatten().map(|(key, _)| key) {
        if !is_qualified(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", key.as_str()));
        }
    }
    for name in finalizers(object) {
        if !is_qualified(name) {
            causes.push(Cause::invalid("metadata.finalizers", name));
        }
    }
    let owners = metadata["ownerReferences"].as_array().into_iter().flatten();
    for (i, owner) in owners.enumerate() {
        for key in ["apiVersion", "kind", "name", "uid"] {
            if owner[key].as_str().is_none_or(str::is_empty) {
                let field = format!("metadata.ownerReferences[{i}].{key}");
                causes.push(Cause::invalid(field, "must not be empty"));
            }
        }
    }
    causes
}

/// What is wrong with changing `old`'s metadata into `new`'s.
#[must_use]
pub fn validate_update(new: &Value, old: &Value) -> Vec<Cause> {
    let mut causes = validate(new);
    for key in ["uid", "deletionTimestamp"] {
        if new["metadata"][key] != old["metadata"][key] {
            causes.push(Cause::invalid(format!("metadata.{key}"), "field is immutable"));
        }
    }
    if is_deleting(old) {
        let held: Vec<&str> = finalizers(old).collect();
        let added: Vec<&str> = finalizers(new).filter(|f| !held.contains(f)).collect();
        if !added.is_empty() {
            let message = format!(
                "no new finalizers can be added if the object is being deleted, found new \
                 finalizers {added:?}"
            );
            causes.push(Cause::forbidden("metadata.finalizers", message));
        }
    }
    causes
}

/// The finalizers of an object.
pub fn finalizers(object: &Value) -> impl Iterator<Item = &str> {
    object["metadata"]["finalizers"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// Whether the object waits for its finalizers to go.
#[must_use]
pub fn is_deleting(object: &Value) -> bool {
    object["metadata"]["deletionTimestamp"].is_string()
}

/// An RFC 7396 merge patch applied to `target`.
pub fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, change) in changes {
        if change.is_null() {
            map.remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Value::Null), change);
        }
    }
}
