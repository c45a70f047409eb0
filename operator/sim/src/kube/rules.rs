//! The rules in CEL of a schema: `x-kubernetes-validations`.
//!
//! Each place that has rules is compiled by itself, and is shown only the fields that its rules
//! name, so that a write evaluates the rules of what it changed and converts nothing else. As
//! kube-apiserver ratchets: a rule that does not ask for the old value holds of a value that has
//! not changed.

use std::borrow::Cow;
use std::collections::BTreeSet;

use kube_cel::{CompiledSchema, RootContext, ValidationError, Validator};
use serde_json::{Value, json};

use super::refusal::Cause;
use super::schema::join;

const RULES: &str = "x-kubernetes-validations";

thread_local! {
    /// It has every function of CEL registered, which takes longer than most rules.
    static VALIDATOR: Validator = Validator::new();
}

/// A step from a value to a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Property(String),
    Items,
    Values,
}

/// The rules of one place.
#[derive(Debug)]
struct Place {
    way: Vec<Step>,
    rules: CompiledSchema,
    /// Some rule compares with the old value.
    of_changes: bool,
    /// The fields that its rules name; none: they may look at everything.
    reads: Option<BTreeSet<String>>,
}

/// All rules of a schema.
#[derive(Debug)]
pub struct Rules {
    places: Vec<Place>,
    context: RootContext,
}

impl Rules {
    /// Compiles the rules of `schema`.
    ///
    /// # Errors
    /// The path of a rule that does not compile, and why.
    pub fn compile(
        schema: &Value,
        (group, version, kind): (&str, &str, &str),
    ) -> Result<Self, (String, String)> {
        let context = RootContext {
            api_version: format!("{group}/{version}"),
            api_group: group.to_owned(),
            kind: kind.to_owned(),
        };
        let mut places = Vec::new();
        collect(schema, &mut Vec::new(), "", &mut places)?;
        Ok(Self { places, context })
    }

    /// The rules that `object` breaks; `old` is what is stored now.
    pub fn broken(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut errors = Vec::new();
        for place in &self.places {
            let root = place.way.is_empty().then_some(&self.context);
            visit(&place.way, object, old, String::new(), &mut |path, value, old| {
                let value = place.shown(value);
                let old = old.map(|old| place.shown(old));
                if old.as_ref() == Some(&value) && !place.of_changes {
                    return;
                }
                let (rules, old) = (&place.rules, old.as_deref());
                let verdict = VALIDATOR.with(|validator| {
                    validator.validate_compiled_with_context(rules, &value, old, root)
                });
                let broken = verdict.err().into_iter().flat_map(|errors| errors.into_vec());
                errors.extend(broken.map(|error| broken_rule(path, &error)));
            });
        }
        errors.sort_by(|a: &Cause, b| (&a.field, &a.message).cmp(&(&b.field, &b.message)));
        errors
    }
}

impl Place {
    /// As much of a value as its rules look at. Of metadata they are given the name alone.
    fn shown<'a>(&self, value: &'a Value) -> Cow<'a, Value> {
        let (Some(reads), Some(map)) = (&self.reads, value.as_object()) else {
            return Cow::Borrowed(value);
        };
        let part = |(key, value): (&String, &Value)| {
            let root = self.way.is_empty() && key == "metadata";
            let value = if root { json!({"name": value["name"]}) } else { value.clone() };
            (key.clone(), value)
        };
        let kept = map.iter().filter(|(key, _)| reads.contains(*key));
        Cow::Owned(Value::Object(kept.map(part).collect()))
    }
}

/// The texts of a rule that are CEL.
fn texts(rule: &Value) -> impl Iterator<Item = &str> {
    ["rule", "messageExpression"].into_iter().filter_map(|key| rule[key].as_str())
}

/// The fields that CEL names of `self` and `oldSelf`; none if it uses them as a whole.
fn fields(cel: &str) -> Option<BTreeSet<String>> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut fields = BTreeSet::new();
    for (at, _) in cel.match_indices("elf") {
        let (before, after) = (&cel[..at], &cel[at + 3..]);
        let start = before.strip_suffix('s').or_else(|| before.strip_suffix("oldS"));
        let is_part = |text: &str| text.ends_with(|c| word(c) || c == '.');
        if start.is_none_or(is_part) || after.starts_with(word) {
            continue;
        }
        let after = after.strip_prefix('.')?;
        let (field, after) = after.split_at(after.find(|c| !word(c)).unwrap_or(after.len()));
        // A function is called on the whole; an escaped name is not the field's own.
        if after.starts_with('(') || field.starts_with("__") {
            return None;
        }
        fields.insert(field.to_owned());
    }
    Some(fields)
}

fn collect(
    schema: &Value,
    way: &mut Vec<Step>,
    path: &str,
    places: &mut Vec<Place>,
) -> Result<(), (String, String)> {
    if let Some(rules) = schema[RULES].as_array().filter(|rules| !rules.is_empty()) {
        let mut alone = schema.clone();
        strip(&mut alone);
        alone[RULES] = Value::Array(rules.clone());
        let compiled = kube_cel::compile_schema(&alone);
        if let Some(error) = compiled.compilation_errors().first() {
            return Err((path.to_owned(), error.to_string()));
        }
        let texts: String = rules.iter().flat_map(texts).collect::<Vec<_>>().join(" ");
        let of_changes = texts.contains("oldSelf");
        let reads = fields(&texts);
        places.push(Place { way: way.clone(), rules: compiled, of_changes, reads });
    }
    let mut into = |step: Step, child: &Value, path: &str| {
        way.push(step);
        let done = collect(child, way, path, places);
        way.pop();
        done
    };
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        into(Step::Property(name.clone()), child, &join(path, name))?;
    }
    if schema["items"].is_object() {
        into(Step::Items, &schema["items"], &format!("{path}[]"))?;
    }
    if schema["additionalProperties"].is_object() {
        into(Step::Values, &schema["additionalProperties"], &format!("{path}[*]"))?;
    }
    Ok(())
}

/// Takes the rules out of a schema and all its parts.
fn strip(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove(RULES);
            map.values_mut().for_each(strip);
        }
        Value::Array(list) => list.iter_mut().for_each(strip),
        _ => {}
    }
}

/// Every part of `value` that lies at the end of `way`, with its path and what it was.
fn visit(
    way: &[Step],
    value: &Value,
    old: Option<&Value>,
    path: String,
    at: &mut impl FnMut(&str, &Value, Option<&Value>),
) {
    let Some((step, rest)) = way.split_first() else { return at(&path, value, old) };
    match step {
        Step::Property(name) => {
            if let Some(part) = value.get(name) {
                let path = join(&path, name);
                visit(rest, part, old.and_then(|o| o.get(name)), path, at);
            }
        }
        Step::Items => {
            for (i, part) in value.as_array().into_iter().flatten().enumerate() {
                let path = format!("{path}[{i}]");
                visit(rest, part, old.and_then(|o| o.get(i)), path, at);
            }
        }
        Step::Values => {
            for (name, part) in value.as_object().into_iter().flatten() {
                let path = join(&path, name);
                visit(rest, part, old.and_then(|o| o.get(name)), path, at);
            }
        }
    }
}

fn broken_rule(path: &str, error: &ValidationError) -> Cause {
    let (reason, prefix) = match error.reason.as_deref() {
        Some("FieldValueForbidden") => ("FieldValueForbidden", "Forbidden"),
        Some("FieldValueRequired") => ("FieldValueRequired", "Required value"),
        Some("FieldValueDuplicate") => ("FieldValueDuplicate", "Duplicate value"),
        _ => ("FieldValueInvalid", "Invalid value"),
    };
    let field = match (path, error.field_path.as_str()) {
        (path, "") => path.to_owned(),
        ("", field) => field.to_owned(),
        (path, field) if field.starts_with('[') => format!("{path}{field}"),
        (path, field) => format!("{path}.{field}"),
    };
    let message = format!("{prefix}: {}", error.message);
    Cause { reason, field, message }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_shown_the_fields_that_they_name() {
        let of = |cel: &str| fields(cel).map(|f| f.into_iter().collect::<Vec<_>>().join(" "));
        assert_eq!(of("self.epoch >= oldSelf.epoch"), Some("epoch".to_owned()));
        assert_eq!(of("!has(oldSelf.a) || self.b.size() > 1"), Some("a b".to_owned()));
        assert_eq!(of("self == oldSelf"), None);
        assert_eq!(of("self.a == 1 && self.all(k, k != '')"), None);
        assert_eq!(of("self.__namespace__ == 'a'"), None);
        assert_eq!(of("size(self) > 1 && self.a"), None);
        assert_eq!(of("itself.a || x.self.b"), Some(String::new()));
    }

    #[test]
    fn a_rule_of_changes_is_asked_even_where_nothing_changed() {
        let schema = json!({"type": "object", "properties": {"n": {
            "type": "object", "properties": {"a": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.a > oldSelf.a"}, {"rule": "self.a < 9"}],
        }}});
        let rules = Rules::compile(&schema, ("g", "v", "K")).unwrap();
        let broken = |new: i64, old: Option<i64>| {
            let object = |a: i64| json!({"n": {"a": a, "b": a}});
            let old = old.map(object);
            let causes = rules.broken(&object(new), old.as_ref());
            causes.into_iter().map(|cause| cause.field).collect::<Vec<_>>()
        };
        assert_eq!(broken(1, None), [""; 0]);
        assert_eq!(broken(9, None), ["n"]);
        assert_eq!(broken(2, Some(1)), [""; 0]);
        assert_eq!(broken(1, Some(1)), ["n"]);
        assert_eq!(broken(9, Some(10)), ["n", "n"]);
    }
}
