#![allow(clippy::unwrap_used, clippy::panic)]
//! The rules of the kinds, run without a server: what the simulator's API and a client's check
//! say must be what kube-apiserver says of the same manifests.

#[allow(dead_code)]
#[path = "../../e2e/tests/wrong_manifests/table.rs"]
mod table;

use kube::core::cel::Validator;
use serde_json::Value;

fn schema(kind: &str) -> Value {
    let crd = stockade_crds::all_crds().into_iter().find(|c| c.spec.names.kind == kind).unwrap();
    let version = crd.spec.versions.into_iter().next().unwrap();
    serde_json::to_value(version.schema.unwrap().open_api_v3_schema.unwrap()).unwrap()
}

fn merge(target: &mut Value, change: &Value) {
    let Value::Object(change) = change else {
        *target = change.clone();
        return;
    };
    if !target.is_object() {
        *target = serde_json::json!({});
    }
    for (key, value) in change {
        if value.is_null() {
            target.as_object_mut().unwrap().remove(key);
        } else {
            merge(&mut target[key], value);
        }
    }
}

fn problems(object: &Value, old: Option<&Value>) -> Vec<String> {
    let schema = schema(object["kind"].as_str().unwrap());
    match Validator::new().validate(&schema, object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors.as_slice().iter().map(|error| error.message.clone()).collect(),
    }
}

fn yaml(text: &str) -> Value {
    serde_yaml::from_str(text).unwrap()
}

#[test]
fn manifests_that_a_server_accepts_break_no_rule() {
    for base in table::bases() {
        let object = yaml(base);
        assert_eq!(problems(&object, None), Vec::<String>::new(), "{base}");
        assert_eq!(problems(&object, Some(&object)), Vec::<String>::new(), "{base}");
    }
    let mut vm = yaml(table::VM);
    vm["spec"]["memory"] = 536_870_912.into();
    assert_eq!(problems(&vm, None), Vec::<String>::new(), "bytes as a number");
}

#[test]
fn a_rule_refuses_here_what_it_refuses_at_the_server() {
    let rules: Vec<String> =
        stockade_crds::all_crds().iter().map(|crd| serde_json::to_string(crd).unwrap()).collect();
    let mut by_rule = 0;
    for (base, change, _, remedy) in table::WRONG {
        // A refusal by a rule is told from one by the schema by its message.
        if !remedy.contains(' ') || !rules.iter().any(|crd| crd.contains(remedy)) {
            continue;
        }
        let mut object = yaml(base);
        merge(&mut object, &yaml(change));
        let said = problems(&object, None);
        assert!(said.iter().any(|m| m.contains(remedy)), "{change}: no {remedy:?} in {said:?}");
        by_rule += 1;
    }
    assert!(by_rule >= 50, "only {by_rule} cases were refused by a rule");
}

#[test]
fn a_forbidden_change_is_refused_here_too() {
    for (base, change, wanted) in table::FORBIDDEN_CHANGES {
        let old = yaml(base);
        let mut new = old.clone();
        merge(&mut new, &yaml(change));
        let said = problems(&new, Some(&old));
        assert!(said.iter().any(|m| m.contains(wanted)), "{change}: {said:?}");
    }
}
