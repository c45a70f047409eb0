//! The last pass over a derived schema: whatever a type left unbounded gets a bound here.
//!
//! kube-apiserver estimates the cost of a CEL rule by the largest value the
//! schema allows, and refuses a CustomResourceDefinition whose rules could cost
//! too much. A bound on everything keeps that estimate small, and keeps one
//! object from filling etcd.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

/// Longest string where the type names none.
const STRING: i64 = 1024;
/// Longest quantity, such as `18446744073709551615Ki` with room to spare.
const QUANTITY: i64 = 32;
/// A quantity as text: digits, a fraction, a suffix that [`crate::quantity`] knows.
const QUANTITY_PATTERN: &str = r"^[0-9]+(\.[0-9]+)?(k|[MGTP]|[KMGTP]i)?$";
/// Longest name in a list of names: that of a DNS subdomain.
const NAME: i64 = 253;
/// Longest list where the type names none.
const LIST: i64 = 4096;
/// Most entries of a map where the type names none.
const MAP: i64 = 256;
/// Most entries of a map that a user fills.
const SPEC_MAP: i64 = 64;

/// Bounds whatever `crd` leaves open.
pub(crate) fn bounded(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        let Some(root) = version.schema.as_mut().and_then(|s| s.open_api_v3_schema.as_mut()) else {
            continue;
        };
        let spec = root.properties.as_ref().and_then(|parts| parts.get("spec"));
        root.description = spec.and_then(|spec| spec.description.clone());
        for (name, part) in root.properties.iter_mut().flatten() {
            if name == "spec" || name == "status" {
                bound(part, if name == "spec" { SPEC_MAP } else { MAP }, name);
            }
        }
    }
    crd
}

fn bound(schema: &mut JSONSchemaProps, map: i64, name: &str) {
    if name == "conditions" {
        bound_conditions(schema);
        return;
    }
    if schema.x_kubernetes_int_or_string == Some(true) {
        schema.max_length = Some(QUANTITY);
        schema.pattern = Some(QUANTITY_PATTERN.to_owned());
        return;
    }
    match schema.type_.as_deref() {
        Some("string") if schema.enum_.is_none() && schema.max_length.is_none() => {
            schema.max_length = Some(if name.is_empty() { NAME } else { STRING });
        }
        Some("array") if schema.max_items.is_none() => schema.max_items = Some(LIST),
        _ => {}
    }
    for (name, property) in schema.properties.iter_mut().flatten() {
        bound(property, map, name);
    }
    if let Some(JSONSchemaPropsOrArray::Schema(item)) = schema.items.as_mut() {
        bound(item, map, if item.type_.as_deref() == Some("string") { "" } else { "item" });
    }
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = schema.additional_properties.as_mut() {
        schema.max_properties.get_or_insert(map);
        bound(value, map, "value");
    }
}

/// The bounds that metav1.Condition has where it is validated by Kubernetes itself.
fn bound_conditions(schema: &mut JSONSchemaProps) {
    schema.max_items.get_or_insert(32);
    let Some(JSONSchemaPropsOrArray::Schema(condition)) = schema.items.as_mut() else { return };
    for (name, property) in condition.properties.iter_mut().flatten() {
        match name.as_str() {
            "type" => property.max_length = Some(316),
            "reason" => {
                property.min_length = Some(1);
                property.max_length = Some(1024);
                property.pattern = Some("^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$".to_owned());
            }
            "message" => property.max_length = Some(32_768),
            "status" => {
                property.enum_ = Some(
                    ["True", "False", "Unknown"]
                        .map(|word| {
                            k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSON(
                                serde_json::Value::from(word),
                            )
                        })
                        .into(),
                );
            }
            _ => {}
        }
    }
}
