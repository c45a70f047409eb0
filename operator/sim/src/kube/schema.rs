//! The structural schema of a CRD: what it drops, fills in and refuses.
//!
//! In: the `openAPIV3Schema` of a version, and objects of its kind. Out: pruned and defaulted
//! objects, and causes of refusal. Follows the order of apiextensions-apiserver: prune, default,
//! validate, rules in CEL. What this reads not of a schema is refused when it is read.

use std::collections::{BTreeMap, BTreeSet};

use regex::Regex;
use serde_json::{Map, Value};

use super::refusal::Cause;
use super::rules::Rules;

/// A schema that this API cannot serve.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema of {kind}, at {path}: {problem}")]
pub struct SchemaError {
    /// The kind it belongs to.
    pub kind: String,
    /// Where in the schema.
    pub path: String,
    /// What is wrong or not served.
    pub problem: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum List {
    Plain,
    Set,
    Map(Vec<String>),
}

#[derive(Debug)]
enum Additional {
    None,
    Anything,
    Of(Box<Node>),
}

#[derive(Debug)]
struct Node {
    kind: Option<Type>,
    nullable: bool,
    int_or_string: bool,
    preserve: bool,
    default: Option<Value>,
    allowed: Option<Vec<Value>>,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    lengths: (Option<u64>, Option<u64>),
    items_count: (Option<u64>, Option<u64>),
    properties_count: (Option<u64>, Option<u64>),
    unique: bool,
    pattern: Option<(String, Regex)>,
    format: Option<String>,
    required: Vec<String>,
    properties: BTreeMap<String, Node>,
    additional: Additional,
    items: Option<Box<Node>>,
    list: List,
    all_of: Vec<Node>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    not: Option<Box<Node>>,
}

/// The schema of one version of a kind, compiled.
#[derive(Debug)]
pub struct Schema {
    root: Node,
    rules: Rules,
}

impl Schema {
    /// Compiles `schema`, the JSON of an `openAPIV3Schema`.
    ///
    /// # Errors
    /// A keyword that is not served, a pattern or rule that does not compile.
    pub fn compile(
        schema: &Value,
        (group, version, kind): (&str, &str, &str),
    ) -> Result<Self, SchemaError> {
        let error = |path: &str, problem: String| SchemaError {
            kind: kind.to_owned(),
            path: path.to_owned(),
            problem,
        };
        let root = Node::read(schema, "").map_err(|(path, problem)| error(&path, problem))?;
        let rules = Rules::compile(schema, (group, version, kind))
            .map_err(|(path, problem)| error(&path, problem))?;
        Ok(Self { root, rules })
    }

    /// Drops what the schema does not know, and returns the paths of what was dropped.
    pub fn prune(&self, object: &mut Value) -> Vec<String> {
        let mut dropped = Vec::new();
        if let Value::Object(map) = object {
            let metadata = map.remove("metadata");
            let names = ["apiVersion", "kind"].map(|k| (k, map.remove(k)));
            self.root.prune_map(map, "", &mut dropped);
            for (key, value) in names {
                value.and_then(|v| map.insert(key.to_owned(), v));
            }
            metadata.and_then(|v| map.insert("metadata".to_owned(), v));
        }
        dropped
    }

    /// What may stand in an object as a whole.
    #[must_use]
    pub fn place(&self) -> Place<'_> {
        Place(&self.root)
    }

    /// Fills in defaults, and drops nulls where the schema allows none.
    pub fn default(&self, object: &mut Value) {
        self.root.default(object);
    }

    /// What the schema and its rules have against `object`; `old` is what is stored now.
    #[must_use]
    pub fn validate(&self, object: &Value, old: Option<&Value>) -> Vec<Cause> {
        let mut causes = Vec::new();
        self.root.validate(object, "", &mut causes);
        if causes.iter().any(Cause::blocks_rules) {
            let message = "some validation rules were not checked because the object was invalid; \
                           correct the existing errors to complete validation";
            causes.push(Cause::invalid("<nil>", message));
            return causes;
        }
        causes.append(&mut self.rules.broken(object, old));
        causes
    }
}

/// What may stand at one place of an object.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a>(&'a Node);

impl<'a> Place<'a> {
    /// The fields that are known by name there.
    pub fn names(self) -> impl Iterator<Item = &'a str> {
        self.0.properties.keys().map(String::as_str)
    }

    /// What may stand in that field; `None`: the field is dropped, or what is in it is not looked at.
    #[must_use]
    pub fn field(self, name: &str) -> Option<Self> {
        self.0.child(name).map(Self)
    }

    /// What an item of a list may be.
    #[must_use]
    pub fn item(self) -> Option<Self> {
        self.0.items.as_deref().map(Self)
    }

    /// Whether fields of any name are kept.
    #[must_use]
    pub fn keeps_all(self) -> bool {
        self.0.preserve || matches!(self.0.additional, Additional::Anything)
    }
}

pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

type ReadError = (String, String);

impl Node {
    fn read(schema: &Value, path: &str) -> Result<Self, ReadError> {
        let bad = |problem: String| (path.to_owned(), problem);
        let map = schema.as_object().ok_or_else(|| bad("not an object".to_owned()))?;
        known_keywords(map).map_err(|key| bad(format!("keyword {key} is not served")))?;
        let flag = |key: &str| map.get(key).and_then(Value::as_bool).unwrap_or_default();
        let count = |key: &str| map.get(key).and_then(Value::as_u64);
        let number = |key: &str| map.get(key).and_then(Value::as_f64);
        let strings = |key: &str| -> Vec<String> {
            let list = map.get(key).and_then(Value::as_array);
            list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let branches = |key: &str| -> Result<Vec<Self>, ReadError> {
            let list = map.get(key).and_then(Value::as_array);
            list.into_iter().flatten().map(|s| Self::read(s, path)).collect()
        };
        let boxed = |key: &str, path: &str| -> Result<Option<Box<Self>>, ReadError> {
            map.get(key).map(|s| Self::read(s, path).map(Box::new)).transpose()
        };
        let kind = match map.get("type").and_then(Value::as_str) {
            None | Some("") => None,
            Some("object") => Some(Type::Object),
            Some("array") => Some(Type::Array),
            Some("string") => Some(Type::String),
            Some("integer") => Some(Type::Integer),
            Some("number") => Some(Type::Number),
            Some("boolean") => Some(Type::Boolean),
            Some(other) => return Err(bad(format!("type {other} is not served"))),
        };
        let pattern = map.get("pattern").and_then(Value::as_str).map(|text| {
            Regex::new(text).map(|r| (text.to_owned(), r)).map_err(|e| bad(e.to_string()))
        });
        let mut properties = BTreeMap::new();
        if let Some(known) = map.get("properties").and_then(Value::as_object) {
            for (name, child) in known {
                properties.insert(name.clone(), Self::read(child, &join(path, name))?);
            }
        }
        let additional = match map.get("additionalProperties") {
            None | Some(Value::Bool(false)) => Additional::None,
            Some(Value::Bool(true)) => Additional::Anything,
            Some(child) => Additional::Of(Box::new(Self::read(child, &format!("{path}[*]"))?)),
        };
        let list = match map.get("x-kubernetes-list-type").and_then(Value::as_str) {
            Some("set") => List::Set,
            Some("map") => List::Map(strings("x-kubernetes-list-map-keys")),
            _ => List::Plain,
        };
        Ok(Self {
            kind,
            nullable: flag("nullable"),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            default: map.get("default").cloned(),
            allowed: map.get("enum").and_then(Value::as_array).cloned(),
            minimum: number("minimum").map(|n| (n, flag("exclusiveMinimum"))),
            maximum: number("maximum").map(|n| (n, flag("exclusiveMaximum"))),
            multiple_of: number("multipleOf"),
            lengths: (count("minLength"), count("maxLength")),
            items_count: (count("minItems"), count("maxItems")),
            properties_count: (count("minProperties"), count("maxProperties")),
            unique: flag("uniqueItems"),
            pattern: pattern.transpose()?,
            format: map.get("format").and_then(Value::as_str).map(str::to_owned),
            required: strings("required"),
            properties,
            additional,
            items: boxed("items", &format!("{path}[]"))?,
            list,
            all_of: branches("allOf")?,
            any_of: branches("anyOf")?,
            one_of: branches("oneOf")?,
            not: boxed("not", path)?,
        })
    }

    fn child(&self, key: &str) -> Option<&Self> {
        self.properties.get(key).or(match &self.additional {
            Additional::Of(node) => Some(node),
            Additional::None | Additional::Anything => None,
        })
    }

    fn prune(&self, value: &mut Value, path: &str, dropped: &mut Vec<String>) {
        match value {
            Value::Object(map) => self.prune_map(map, path, dropped),
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    for (i, item) in list.iter_mut().enumerate() {
                        items.prune(item, &format!("{path}[{i}]"), dropped);
                    }
                }
            }
            _ => {}
        }
    }

    fn prune_map(&self, map: &mut Map<String, Value>, path: &str, dropped: &mut Vec<String>) {
        let keep_all = Place(self).keeps_all();
        map.retain(|key, value| {
            if let Some(child) = self.child(key) {
                if value.is_object() || value.is_array() {
                    child.prune(value, &join(path, key), dropped);
                }
                return true;
            }
            if !keep_all {
                dropped.push(join(path, key));
            }
            keep_all
        });
    }

    /// A null where none may be: the default stands in, or nothing.
    fn unwanted_null(&self, value: &Value) -> bool {
        value.is_null() && !self.nullable
    }

    fn default(&self, value: &mut Value) {
        match value {
            Value::Object(map) => {
                map.retain(|key, value| {
                    self.child(key).is_none_or(|c| !c.unwanted_null(value) || c.default.is_some())
                });
                for (key, child) in &self.properties {
                    if let Some(default) = &child.default
                        && map.get(key).is_none_or(|v| child.unwanted_null(v))
                    {
                        map.insert(key.clone(), default.clone());
                    }
                }
                for (key, value) in map.iter_mut() {
                    if let Some(child) = self.child(key) {
                        child.default_item(value);
                    }
                }
            }
            Value::Array(list) => {
                if let Some(items) = &self.items {
                    list.iter_mut().for_each(|item| items.default_item(item));
                }
            }
            _ => {}
        }
    }

    fn default_item(&self, value: &mut Value) {
        if self.unwanted_null(value)
            && let Some(default) = &self.default
        {
            *value = default.clone();
        }
        self.default(value);
    }

    fn validate(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        if value.is_null() && self.nullable {
            return;
        }
        let found = causes.len();
        self.validate_type(value, path, causes);
        if causes.len() > found {
            return;
        }
        if let Some(allowed) = &self.allowed
            && !allowed.contains(value)
        {
            let names: Vec<String> = allowed.iter().map(Value::to_string).collect();
            causes.push(Cause {
                reason: "FieldValueNotSupported",
                field: path.to_owned(),
                message: format!(
                    "Unsupported value: {value}: supported values: {}",
                    names.join(", ")
                ),
            });
        }
        match value {
            Value::String(text) => self.validate_string(text, path, causes),
            Value::Number(number) => self.validate_number(number, path, causes),
            Value::Array(list) => self.validate_list(list, path, causes),
            Value::Object(map) => self.validate_map(map, path, causes),
            Value::Null | Value::Bool(_) => {}
        }
        self.validate_branches(value, path, causes);
    }

    fn validate_type(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        if self.int_or_string {
            if !(value.is_string() || is_integer(value)) {
                let message = format!("{path} in body must be of type integer or string");
                causes.push(Cause::wrong_type(path, message));
            }
            return;
        }
        let Some(kind) = self.kind else { return };
        let (fits, name) = match kind {
            Type::Object => (value.is_object(), "object"),
            Type::Array => (value.is_array(), "array"),
            Type::String => (value.is_string(), "string"),
            Type::Integer => (is_integer(value), "integer"),
            Type::Number => (value.is_number(), "number"),
            Type::Boolean => (value.is_boolean(), "boolean"),
        };
        if !fits {
            let is = type_name(value);
            let message = format!("\"{is}\": {path} in body must be of type {name}: \"{is}\"");
            causes.push(Cause::wrong_type(path, message));
        }
    }

    fn validate_string(&self, text: &str, path: &str, causes: &mut Vec<Cause>) {
        let length = text.chars().count() as u64;
        let (min, max) = self.lengths;
        if let Some(min) = min.filter(|&min| length < min) {
            let message = format!("\"{text}\": {path} in body should be at least {min} chars long");
            causes.push(Cause::invalid(path, message));
        }
        if let Some(max) = max.filter(|&max| length > max) {
            causes.push(Cause {
                reason: "FieldValueTooLong",
                field: path.to_owned(),
                message: format!("Too long: may not be more than {max} bytes"),
            });
        }
        if let Some((pattern, regex)) = &self.pattern
            && !regex.is_match(text)
        {
            let message = format!("\"{text}\": {path} in body should match '{pattern}'");
            causes.push(Cause::invalid(path, message));
        }
        if let Some(format) = &self.format
            && !super::format::fits(format, text)
        {
            let message = format!("\"{text}\": {path} in body must be of type {format}");
            causes.push(Cause::invalid(path, message));
        }
    }

    fn validate_number(&self, number: &serde_json::Number, path: &str, causes: &mut Vec<Cause>) {
        let Some(n) = number.as_f64() else { return };
        let mut refuse = |what: String| {
            causes.push(Cause::invalid(path, format!("{number}: {path} in body {what}")));
        };
        if let Some((min, exclusive)) = self.minimum
            && (n < min || (exclusive && n <= min))
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            refuse(format!("should be greater than{or_equal} {min}"));
        }
        if let Some((max, exclusive)) = self.maximum
            && (n > max || (exclusive && n >= max))
        {
            let or_equal = if exclusive { "" } else { " or equal to" };
            refuse(format!("should be less than{or_equal} {max}"));
        }
        if let Some(step) = self.multiple_of
            && (n / step).fract() != 0.0
        {
            refuse(format!("should be a multiple of {step}"));
        }
        if self.format.as_deref() == Some("int32")
            && !(f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&n)
        {
            refuse("must be of type int32".to_owned());
        }
    }

    fn validate_list(&self, list: &[Value], path: &str, causes: &mut Vec<Cause>) {
        let length = list.len() as u64;
        let (min, max) = self.items_count;
        if let Some(min) = min.filter(|&min| length < min) {
            let message = format!("{length}: {path} in body should have at least {min} items");
            causes.push(Cause::invalid(path, message));
        }
        if let Some(max) = max.filter(|&max| length > max) {
            causes.push(too_many(path, length, max));
        }
        if let Some(items) = &self.items {
            for (i, item) in list.iter().enumerate() {
                items.validate(item, &format!("{path}[{i}]"), causes);
            }
        }
        let identity: Box<dyn Fn(&Value) -> String> = match &self.list {
            List::Plain if self.unique => Box::new(Value::to_string),
            List::Plain => return,
            List::Set => Box::new(Value::to_string),
            List::Map(keys) => Box::new(move |item| {
                let parts: Vec<String> = keys
                    .iter()
                    .map(|k| item.get(k).map_or_else(String::new, Value::to_string))
                    .collect();
                parts.join(",")
            }),
        };
        let mut seen = BTreeSet::new();
        for (i, item) in list.iter().enumerate() {
            if !seen.insert(identity(item)) {
                causes.push(Cause {
                    reason: "FieldValueDuplicate",
                    field: format!("{path}[{i}]"),
                    message: format!("Duplicate value: {}", identity(item)),
                });
            }
        }
    }

    fn validate_map(&self, map: &Map<String, Value>, path: &str, causes: &mut Vec<Cause>) {
        let length = map.len() as u64;
        let (min, max) = self.properties_count;
        if let Some(min) = min.filter(|&min| length < min) {
            let message = format!("{length}: {path} in body should have at least {min} properties");
            causes.push(Cause::invalid(path, message));
        }
        if let Some(max) = max.filter(|&max| length > max) {
            causes.push(too_many(path, length, max));
        }
        for key in self.required.iter().filter(|key| !map.contains_key(*key)) {
            causes.push(Cause::required(join(path, key)));
        }
        for (key, value) in map {
            if let Some(child) = self.child(key) {
                child.validate(value, &join(path, key), causes);
            }
        }
    }

    fn validate_branches(&self, value: &Value, path: &str, causes: &mut Vec<Cause>) {
        for branch in &self.all_of {
            branch.validate(value, path, causes);
        }
        let fitting = |branches: &[Self]| branches.iter().filter(|b| b.fits(value, path)).count();
        if !self.any_of.is_empty() && fitting(&self.any_of) == 0 {
            let message = format!("{path} in body must validate at least one schema (anyOf)");
            causes.push(Cause::invalid(path, message));
        }
        if !self.one_of.is_empty() {
            match fitting(&self.one_of) {
                1 => {}
                0 => {
                    let message =
                        format!("{path} in body must validate one and only one schema (oneOf)");
                    causes.push(Cause::invalid(path, message));
                }
                n => {
                    let message = format!(
                        "{path} in body must validate one and only one schema (oneOf). Found {n} \
                         valid alternatives"
                    );
                    causes.push(Cause::invalid(path, message));
                }
            }
        }
        if self.not.as_ref().is_some_and(|branch| branch.fits(value, path)) {
            let message = format!("{path} in body must not validate the schema (not)");
            causes.push(Cause::invalid(path, message));
        }
    }

    fn fits(&self, value: &Value, path: &str) -> bool {
        let mut causes = Vec::new();
        self.validate(value, path, &mut causes);
        causes.is_empty()
    }
}

fn too_many(path: &str, length: u64, max: u64) -> Cause {
    Cause {
        reason: "FieldValueTooMany",
        field: path.to_owned(),
        message: format!("Too many: {length}: must have at most {max} items"),
    }
}

fn is_integer(value: &Value) -> bool {
    // 1.0 is an integer to a JSON schema, as it is to kube-apiserver.
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_integer(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn known_keywords(map: &Map<String, Value>) -> Result<(), String> {
    const KNOWN: &[&str] = &[
        "additionalProperties",
        "allOf",
        "anyOf",
        "default",
        "description",
        "enum",
        "example",
        "exclusiveMaximum",
        "exclusiveMinimum",
        "externalDocs",
        "format",
        "items",
        "maxItems",
        "maxLength",
        "maxProperties",
        "maximum",
        "minItems",
        "minLength",
        "minProperties",
        "minimum",
        "multipleOf",
        "not",
        "nullable",
        "oneOf",
        "pattern",
        "properties",
        "required",
        "title",
        "type",
        "uniqueItems",
        "x-kubernetes-int-or-string",
        "x-kubernetes-list-map-keys",
        "x-kubernetes-list-type",
        "x-kubernetes-map-type",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-validations",
    ];
    map.keys().find(|key| !KNOWN.contains(&key.as_str())).map_or(Ok(()), |key| Err(key.clone()))
}
