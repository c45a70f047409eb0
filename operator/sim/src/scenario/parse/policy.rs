//! AvailabilityPolicy fields: their names and types are the CRD's.

use stockade_crds::v1alpha1::{AvailabilityPolicySpec, Lineage};

use super::super::ast::PolicyFields;
use super::super::node::{Key, Kind, Node};
use super::super::problem::{nearest, unknown};
use super::read::Cx;

/// The mapping in `node` as policy fields.
pub(crate) fn fields(cx: &Cx, node: &Node, what: &str) -> PolicyFields {
    match &node.kind {
        Kind::Map(entries) => entries.iter().filter_map(|(k, v)| field(cx, k, v, what)).collect(),
        Kind::Scalar { .. } | Kind::Seq(_) => {
            cx.expected(node, what, "a mapping of policy fields");
            PolicyFields::new()
        }
    }
}

/// One policy field, if the CRD knows it and takes the value.
pub(crate) fn field(
    cx: &Cx,
    key: &Key,
    value: &Node,
    what: &str,
) -> Option<(String, serde_json::Value)> {
    let known = known();
    if !known.contains(&key.text) {
        let known: Vec<&str> = known.iter().map(String::as_str).collect();
        let text = unknown("policy field", &key.text, &known);
        cx.problem(key.line, format!("{what}: {text}"));
        return None;
    }
    let mut json = value.to_json();
    // A proof that stands alone needs no list of its own.
    if key.text == "acceptedProofs" {
        for proof in json.as_array_mut().into_iter().flatten().filter(|p| p.is_string()) {
            *proof = serde_json::Value::Array(vec![proof.take()]);
        }
    }
    let mut alone = serde_json::Map::new();
    alone.insert(key.text.clone(), json.clone());
    match serde_json::from_value::<AvailabilityPolicySpec>(alone.into()) {
        Ok(spec) if !json.is_null() => {
            let read = serde_json::to_value(&spec).unwrap_or_default();
            knows_all(cx, value, &read[&key.text], &format!("`{}` of {what}", key.text))
                .then(|| (key.text.clone(), json))
        }
        Ok(_) => {
            cx.expected(value, &format!("`{}` of {what}", key.text), "a value");
            None
        }
        Err(error) => {
            let mut text = error.to_string();
            // serde lists the known words in backticks after the wrong one.
            let words: Vec<&str> = text.split('`').skip(1).step_by(2).collect();
            if let [wrong, known @ ..] = words.as_slice()
                && text.starts_with("unknown variant")
                && let Some(best) = nearest(wrong, known.iter().copied())
            {
                text = format!("{text}; did you mean `{best}`?");
            }
            cx.problem(value.line, format!("`{}` of {what}: {text}", key.text));
            None
        }
    }
}

/// Whether no key of a mapping was passed over, as serde does with those that it does not know.
fn knows_all(cx: &Cx, given: &Node, read: &serde_json::Value, what: &str) -> bool {
    let (Kind::Map(entries), Some(read)) = (&given.kind, read.as_object()) else { return true };
    let known: Vec<&str> = read.keys().map(String::as_str).collect();
    let empty = |node: &Node| matches!(&node.kind, Kind::Seq(items) if items.is_empty());
    let mut passed_over =
        entries.iter().filter(|(key, value)| !read.contains_key(&key.text) && !empty(value));
    let Some((key, _)) = passed_over.next() else { return true };
    cx.problem(key.line, format!("{what}: {}", unknown("field", &key.text, &known)));
    false
}

/// All fields of the policy's spec.
pub(crate) fn known() -> Vec<String> {
    let spec = AvailabilityPolicySpec {
        storm_brake_hosts: Some(1),
        resume_from: Some(Lineage::default()),
        ..AvailabilityPolicySpec::default()
    };
    match serde_json::to_value(&spec) {
        Ok(serde_json::Value::Object(map)) => map.keys().cloned().collect(),
        Ok(_) | Err(_) => Vec::new(),
    }
}
