//! AvailabilityPolicy fields: their names and types are the CRD's.

use stockade_crds::v1alpha1::AvailabilityPolicySpec;

use crate::kube::Kinds;

use super::super::ast::PolicyFields;
use super::super::node::{Key, Kind, Node};
use super::super::problem::{nearest, unknown};
use super::manifest;
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
    let kinds = Kinds::ours().ok()?;
    let spec = manifest::place_of(&kinds, "AvailabilityPolicy")?.field("spec")?;
    let Some(place) = spec.field(&key.text) else {
        let known: Vec<&str> = spec.names().collect();
        let text = unknown("policy field", &key.text, &known);
        cx.problem(key.line, format!("{what}: {text}"));
        return None;
    };
    manifest::place_known(cx, value, place, &key.text, what);
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
        Ok(_) if !json.is_null() => Some((key.text.clone(), json)),
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
