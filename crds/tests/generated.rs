#![allow(clippy::unwrap_used, clippy::panic)]
//! `crds/generated/` is what the types say, and the types keep the API's conventions.
//!
//! `UPDATE=1 cargo test -p stockade-crds --test generated` writes the files anew.

use serde_json::Value;
use std::collections::BTreeSet;
use std::path::PathBuf;

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("generated")
}

#[test]
fn generated_files_are_what_the_types_say() {
    let wanted = stockade_crds::yaml().unwrap();
    let update = std::env::var_os("UPDATE").is_some();
    if update {
        std::fs::create_dir_all(folder()).unwrap();
    }
    for (name, text) in &wanted {
        let path = folder().join(name);
        if update {
            std::fs::write(&path, text).unwrap();
        }
        let found = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(found == *text, "{name} is out of date: run UPDATE=1 cargo test -p stockade-crds");
    }
    let names: BTreeSet<_> = wanted.iter().map(|(name, _)| name.clone()).collect();
    for entry in std::fs::read_dir(folder()).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        assert!(names.contains(&name), "{name} belongs to no kind: delete it");
    }
}

#[test]
fn generated_files_read_back_as_the_same_objects() {
    for (crd, (name, text)) in stockade_crds::all_crds().iter().zip(stockade_crds::yaml().unwrap())
    {
        let read: Value = serde_yaml::from_str(&text).unwrap();
        assert_eq!(read, serde_json::to_value(crd).unwrap(), "{name}");
    }
}

/// A word that a YAML 1.1 reader takes for something else than the string it is.
fn is_ambiguous(scalar: &str) -> bool {
    let lower = scalar.to_ascii_lowercase();
    ["y", "n", "yes", "no", "on", "off", "~"].contains(&lower.as_str())
        || (scalar.contains('_')
            && scalar.chars().all(|c| c.is_ascii_digit() || c == '_')
            && scalar.starts_with(|c: char| c.is_ascii_digit()))
}

#[test]
fn no_bare_word_is_a_boolean_to_an_older_reader() {
    for (name, text) in stockade_crds::yaml().unwrap() {
        for line in text.lines() {
            let value = line.trim_start().trim_start_matches("- ");
            for part in [value, value.split_once(": ").map_or("", |(_, v)| v)] {
                assert!(!is_ambiguous(part), "{name}: {line:?} must be quoted");
            }
            let key = value.split(':').next().unwrap_or_default();
            assert!(!is_ambiguous(key), "{name}: the key in {line:?} must be quoted");
        }
    }
    let hostile = ["on", "Off", "YES", "no", "y", "1_000", "2026-01-01", "0x1F", "null", "1e3"];
    let text = stockade_crds::to_yaml(&hostile).unwrap();
    for line in text.lines() {
        assert!(line.starts_with("- '") || line.starts_with("- \""), "{line:?} must be quoted");
    }
}

/// Calls `visit` for each schema of a kind with its path, parents first.
fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    if let Some(properties) = schema["properties"].as_object() {
        for (name, property) in properties {
            walk(property, &format!("{path}.{name}"), visit);
        }
    }
    if schema["items"].is_object() {
        walk(&schema["items"], &format!("{path}[]"), visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&schema["additionalProperties"], &format!("{path}{{}}"), visit);
    }
}

fn every_schema(mut visit: impl FnMut(&str, &Value)) {
    for crd in stockade_crds::all_crds() {
        let crd = serde_json::to_value(crd).unwrap();
        let root = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
        let mut alone = root.clone();
        alone["properties"] = serde_json::json!({});
        visit(crd["spec"]["names"]["kind"].as_str().unwrap(), &alone);
        for part in ["spec", "status"] {
            let kind = crd["spec"]["names"]["kind"].as_str().unwrap();
            walk(&root["properties"][part], &format!("{kind}.{part}"), &mut visit);
        }
    }
}

#[test]
fn every_string_list_and_map_is_bounded() {
    every_schema(|path, schema| match schema["type"].as_str() {
        Some("string") => assert!(
            schema["enum"].is_array()
                || schema["maxLength"].is_number()
                || schema["format"] == "date-time",
            "{path}: a string without maxLength"
        ),
        Some("array") => assert!(schema["maxItems"].is_number(), "{path}: no maxItems"),
        Some("object") if schema["additionalProperties"].is_object() => {
            assert!(schema["maxProperties"].is_number(), "{path}: no maxProperties");
        }
        _ => {}
    });
}

#[test]
fn schemas_are_structural_and_described() {
    every_schema(|path, schema| {
        let typed = schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == true;
        assert!(typed, "{path}: no type: {schema}");
        let text = schema.to_string();
        assert!(!text.contains("\"format\":\"uint"), "{path}: an unsigned format");
        assert!(
            !text.contains("x-kubernetes-preserve-unknown-fields"),
            "{path}: unknown fields must be refused"
        );
        let named = path.rsplit('.').next().unwrap();
        if path.contains('.') && !named.contains(['[', '{']) && path.matches('.').count() > 1 {
            assert!(schema["description"].is_string(), "{path}: no description");
        }
    });
}

#[test]
fn no_phase_and_every_duration_names_its_unit() {
    every_schema(|path, schema| {
        let name = path.rsplit('.').next().unwrap();
        assert_ne!(name, "phase", "{path}");
        if schema["type"] != "integer" {
            return;
        }
        let lower = name.to_ascii_lowercase();
        let description = schema["description"].as_str().unwrap_or_default();
        let counts_time = ["timeout", "interval", "grace", "delay", "duration", "age"]
            .iter()
            .any(|word| lower.contains(word))
            || ["Seconds ", "Interval ", "T_"].iter().any(|word| description.starts_with(word));
        if counts_time {
            assert!(
                name.ends_with("Seconds") || name.ends_with("Milliseconds"),
                "{path}: a duration whose name lacks its unit"
            );
        }
    });
}

#[test]
fn no_value_of_an_enum_is_a_yaml_boolean() {
    every_schema(|path, schema| {
        for value in schema["enum"].as_array().into_iter().flatten() {
            if let Some(word) = value.as_str() {
                assert!(!is_ambiguous(word), "{path}: {word}");
            }
        }
    });
}

#[test]
fn conditions_are_merged_by_type() {
    every_schema(|path, schema| {
        if path.ends_with(".conditions") {
            assert_eq!(schema["x-kubernetes-list-type"], "map", "{path}");
            assert_eq!(schema["x-kubernetes-list-map-keys"][0], "type", "{path}");
        }
    });
}

#[test]
fn every_kind_has_a_short_name_status_and_columns() {
    let kubevirt = ["vm", "vms", "vmi", "vmis", "vmim", "vmims", "kv"];
    let mut short_names = BTreeSet::new();
    for crd in stockade_crds::all_crds() {
        let kind = crd.spec.names.kind.clone();
        let names = crd.spec.names.short_names.clone().unwrap_or_default();
        assert_eq!(names.len(), 1, "{kind}");
        assert!(!kubevirt.contains(&names[0].as_str()), "{kind}: collides with KubeVirt");
        assert!(short_names.insert(names[0].clone()), "{kind}: {} is taken", names[0]);
        let internal = ["Domain", "HostAgent"].contains(&kind.as_str());
        let category = crd.spec.names.categories.clone().unwrap_or_default();
        assert_eq!(category.contains(&"stockade".to_owned()), !internal, "{kind}");
        assert!(
            crd.spec.conversion.is_none(),
            "{kind}: a webhook would be a single point of failure"
        );
        assert_eq!(crd.spec.versions.len(), 1, "{kind}");
        let version = &crd.spec.versions[0];
        assert!(version.subresources.as_ref().unwrap().status.is_some(), "{kind}");
        let columns = version.additional_printer_columns.as_ref().unwrap();
        assert!(columns.iter().any(|c| c.name == "Age"), "{kind}");
    }
}

#[test]
fn every_rule_compiles_stays_cheap_and_says_what_to_do() {
    use kube::core::cel::{compile_schema, estimate_rule_cost};
    let mut rules = 0;
    every_schema(|path, schema| {
        let compiled = compile_schema(schema);
        let errors = compiled.compilation_errors();
        assert!(errors.is_empty(), "{path}: {errors:?}");
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            rules += 1;
            let text = rule["rule"].as_str().unwrap();
            let warnings = estimate_rule_cost(text, &compiled);
            assert!(warnings.is_empty(), "{path}: {text}: {warnings:?}");
            let message = rule["message"].as_str().unwrap_or_default();
            assert!(message.contains(':'), "{path}: {text}: the message names no field");
        }
    });
    assert!(rules > 15, "only {rules} rules were looked at");
}
