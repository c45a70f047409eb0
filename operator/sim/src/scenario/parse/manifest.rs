//! Objects to apply: inline documents, or files of them.

use stockade_crds::GROUP;

use crate::kube::{Kinds, Place, Shape};

use super::super::ast::{Line, Manifest};
use super::super::node::{Key, Kind, Node, documents};
use super::super::problem::unknown;
use super::read::Cx;

/// One or many inline objects or file names.
pub(crate) fn many(cx: &Cx, node: &Node, what: &str) -> Vec<Manifest> {
    let mut found = Vec::new();
    match &node.kind {
        Kind::Seq(items) => {
            for item in items {
                one(cx, item, what, &mut found);
            }
        }
        Kind::Scalar { .. } | Kind::Map(_) => one(cx, node, what, &mut found),
    }
    found
}

fn one(cx: &Cx, node: &Node, what: &str, found: &mut Vec<Manifest>) {
    match &node.kind {
        Kind::Map(_) if is_list(node) => found.extend(items(cx, node, what)),
        Kind::Map(_) => found.extend(object(cx, node, what)),
        Kind::Scalar { text, .. } if text.contains('\n') => {
            inner(cx, text, node.line, what, found);
        }
        Kind::Scalar { text, .. } if !node.is_null() => {
            let Some(base) = &cx.base else {
                cx.problem(node.line, format!("{what}: no file can be read from here"));
                return;
            };
            match std::fs::read_to_string(base.join(text)) {
                Ok(content) => inner(cx, &content, node.line, &format!("{what}, {text}"), found),
                Err(error) => {
                    cx.problem(node.line, format!("{what}: `{text}` cannot be read: {error}"));
                }
            }
        }
        Kind::Scalar { .. } | Kind::Seq(_) => {
            cx.expected(node, what, "a file or an object with apiVersion, kind and metadata");
        }
    }
}

/// The objects of a text; problems in it are reported at `line` of the scenario.
fn inner(cx: &Cx, text: &str, line: u32, what: &str, found: &mut Vec<Manifest>) {
    let mut problems = Vec::new();
    let roots = documents(text, &mut problems);
    for problem in problems {
        cx.problem(line, format!("{what}, its line {}: {}", problem.line, problem.text));
    }
    for mut root in roots {
        let own = root.line;
        set_line(&mut root, line);
        one(cx, &root, &format!("{what}, its line {own}"), found);
    }
}

/// Problems in a file of manifests are reported at the line of the scenario that names it.
fn set_line(node: &mut Node, line: u32) {
    node.line = line;
    match &mut node.kind {
        Kind::Scalar { .. } => {}
        Kind::Seq(items) => items.iter_mut().for_each(|item| set_line(item, line)),
        Kind::Map(entries) => {
            for (key, value) in entries {
                key.line = line;
                set_line(value, line);
            }
        }
    }
}

/// What the API itself writes, and what every kind has.
const OF_EVERY_KIND: [&str; 4] = ["apiVersion", "kind", "metadata", "status"];

/// What may stand in an object of that kind, if it is one of Stockade's.
pub(crate) fn place_of<'a>(kinds: &'a Kinds, kind: &str) -> Option<Place<'a>> {
    match &kinds.get(kinds.by_name(kind, Some(GROUP))?).shape {
        Shape::Custom(schema) => Some(schema.place()),
        Shape::BuiltIn(_) => None,
    }
}

/// Every field of an object of Stockade's is one that its kind has: the API would drop another.
pub(crate) fn fields_known(cx: &Cx, node: &Node, kind: &str, what: &str) {
    let (Ok(kinds), Kind::Map(entries)) = (Kinds::ours(), &node.kind) else { return };
    let Some(place) = place_of(&kinds, kind) else { return };
    for (key, value) in entries.iter().filter(|(key, _)| !OF_EVERY_KIND.contains(&&*key.text)) {
        field_known(cx, key, value, place, "", what);
    }
}

/// A field that may stand at `place`, which is `path`, with all that is in it.
fn field_known(cx: &Cx, key: &Key, value: &Node, place: Place<'_>, path: &str, what: &str) {
    if let Some(inner) = place.field(&key.text) {
        let path = if path.is_empty() { key.text.clone() } else { format!("{path}.{}", key.text) };
        place_known(cx, value, inner, &path, what);
    } else if !place.keeps_all() {
        let known: Vec<&str> = place.names().collect();
        let at = if path.is_empty() { String::new() } else { format!(", in `{path}`") };
        cx.problem(key.line, format!("{what}{at}: {}", unknown("field", &key.text, &known)));
    }
}

/// Every field below `path` is one that may stand there.
pub(crate) fn place_known(cx: &Cx, node: &Node, place: Place<'_>, path: &str, what: &str) {
    match &node.kind {
        Kind::Scalar { .. } => {}
        Kind::Seq(items) => {
            let Some(place) = place.item() else { return };
            items.iter().for_each(|item| place_known(cx, item, place, path, what));
        }
        Kind::Map(entries) => {
            entries.iter().for_each(|(key, value)| field_known(cx, key, value, place, path, what));
        }
    }
}

/// A kind of Stockade's that there is.
fn kind_known(cx: &Cx, node: &Node, manifest: &Manifest, what: &str) -> bool {
    let version = node.get("apiVersion").and_then(Node::text).unwrap_or_default();
    let of_ours = version.split('/').next() == Some(GROUP);
    let Ok(kinds) = Kinds::ours() else { return true };
    if !of_ours || kinds.by_name(manifest.kind(), Some(GROUP)).is_some() {
        return true;
    }
    let ours = kinds.iter().filter(|(_, kind)| kind.group == GROUP);
    let known: Vec<&str> = ours.map(|(_, kind)| kind.kind.as_str()).collect();
    let line = node.get("kind").map_or(node.line, |kind| kind.line);
    cx.problem(line, format!("{what}: {}", unknown("kind", manifest.kind(), &known)));
    false
}

/// Whether a mapping is an object of the API rather than shorthand.
pub(crate) fn is_object(node: &Node) -> bool {
    node.get("apiVersion").is_some() || node.get("metadata").is_some()
}

/// Whether an object is what `kubectl get` exports of several.
fn is_list(node: &Node) -> bool {
    let kind = node.get("kind").and_then(Node::text);
    kind.is_some_and(|k| k.ends_with("List")) && node.get("items").is_some()
}

fn items(cx: &Cx, node: &Node, what: &str) -> Vec<Manifest> {
    match node.get("items").map(|items| &items.kind) {
        Some(Kind::Seq(items)) => items.iter().filter_map(|i| object(cx, i, what)).collect(),
        _ => {
            cx.expected(node, what, "a list with `items: [...]`");
            Vec::new()
        }
    }
}

/// What a server writes into an object, and refuses in one that is to be created.
const OF_THE_SERVER: [&str; 8] = [
    "uid",
    "resourceVersion",
    "generation",
    "creationTimestamp",
    "deletionTimestamp",
    "managedFields",
    "selfLink",
    "ownerReferences",
];

/// Leaves of an exported object what its user wrote.
fn forget_the_server(object: &mut serde_json::Value) {
    let Some(fields) = object.as_object_mut() else { return };
    fields.remove("status");
    if let Some(metadata) = fields.get_mut("metadata").and_then(|m| m.as_object_mut()) {
        metadata.retain(|key, _| !OF_THE_SERVER.contains(&key.as_str()));
    }
}

/// One object; lists (`kind: List`) are not.
pub(crate) fn object(cx: &Cx, node: &Node, what: &str) -> Option<Manifest> {
    let manifest = Manifest { object: node.to_json(), line: Line(node.line) };
    let mut whole = true;
    for (key, there) in [
        ("apiVersion", node.get("apiVersion").is_some_and(|n| n.text().is_some() && !n.is_null())),
        ("kind", !manifest.kind().is_empty()),
    ] {
        if !there {
            cx.problem(node.line, format!("{what}: an object needs `{key}`"));
            whole = false;
        }
    }
    let name = node.get("metadata").and_then(|m| m.get("name"));
    if !name.is_some_and(|n| n.text().is_some() && !n.is_null()) {
        cx.problem(node.line, format!("{what}: an object needs `metadata.name`"));
        whole = false;
    }
    if !whole || !kind_known(cx, node, &manifest, what) {
        return None;
    }
    fields_known(cx, node, manifest.kind(), what);
    let mut object = manifest.object;
    // A name of digits is a name all the same.
    if let (Some(name), Some(slot)) =
        (name.and_then(Node::text), object.pointer_mut("/metadata/name"))
    {
        *slot = serde_json::Value::String(name.to_owned());
    }
    forget_the_server(&mut object);
    Some(Manifest { object, line: manifest.line })
}

/// An object of one kind, in the place of a shorthand.
pub(crate) fn of_kind(cx: &Cx, node: &Node, what: &str, kind: &str) -> Option<Manifest> {
    let manifest = object(cx, node, what)?;
    if manifest.kind() != kind {
        cx.problem(
            node.line,
            format!("{what}: expected an object of kind {kind}, found `{}`", manifest.kind()),
        );
        return None;
    }
    Some(manifest)
}
