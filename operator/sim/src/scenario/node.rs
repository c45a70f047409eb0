//! A YAML document as a tree in which every value and key knows its line.
//!
//! serde can tell where a document is wrong, but not which known word an unknown one is nearest
//! to, nor several mistakes at once. So the text is parsed into this tree first and read from it
//! by hand (`super::parse`).

use granit_parser::{Event, Parser, ScalarStyle};
use std::collections::BTreeMap;

use super::problem::Problem;

/// Nodes a file may expand to: aliases may not blow it up.
const MAX_NODES: usize = 400_000;

/// One value with the line it stands on.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// First line of the value, from 1.
    pub line: u32,
    /// What it is.
    pub kind: Kind,
}

/// The kinds of YAML values.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// A scalar, as written. `plain` is false for quoted and block scalars, which are strings
    /// whatever they look like.
    Scalar { text: String, plain: bool },
    /// A sequence.
    Seq(Vec<Node>),
    /// A mapping, in file order.
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Its line, from 1.
    pub line: u32,
    /// Its text.
    pub text: String,
}

impl Node {
    /// Whether this is YAML's null.
    pub fn is_null(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true }
            if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    /// The boolean this is, if it is one.
    pub fn as_bool(&self) -> Option<bool> {
        match &self.kind {
            Kind::Scalar { text, plain: true } => match text.as_str() {
                "true" | "True" | "TRUE" => Some(true),
                "false" | "False" | "FALSE" => Some(false),
                _ => None,
            },
            Kind::Scalar { .. } | Kind::Seq(_) | Kind::Map(_) => None,
        }
    }

    /// The finite number this is, if it is one.
    pub fn as_number(&self) -> Option<f64> {
        match &self.kind {
            Kind::Scalar { text, plain: true }
                if text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) =>
            {
                text.parse().ok().filter(|n: &f64| n.is_finite())
            }
            Kind::Scalar { .. } | Kind::Seq(_) | Kind::Map(_) => None,
        }
    }

    /// The value under `key`, if this is a mapping that has it.
    pub fn get(&self, key: &str) -> Option<&Node> {
        match &self.kind {
            Kind::Map(entries) => entries.iter().find(|(k, _)| k.text == key).map(|(_, v)| v),
            Kind::Scalar { .. } | Kind::Seq(_) => None,
        }
    }

    /// The text of this scalar.
    pub fn text(&self) -> Option<&str> {
        match &self.kind {
            Kind::Scalar { text, .. } => Some(text),
            Kind::Seq(_) | Kind::Map(_) => None,
        }
    }

    /// What this is, for "expected …, found …".
    pub fn describe(&self) -> String {
        match &self.kind {
            Kind::Seq(_) => "a list".to_owned(),
            Kind::Map(_) => "a mapping".to_owned(),
            Kind::Scalar { .. } if self.is_null() => "nothing".to_owned(),
            Kind::Scalar { text, plain } => {
                let mut shown: String = text.chars().take(40).collect();
                if shown.len() < text.len() {
                    shown.push('…');
                }
                if *plain { format!("`{shown}`") } else { format!("the string \"{shown}\"") }
            }
        }
    }

    /// The same as JSON, plain scalars by YAML's core schema.
    pub fn to_json(&self) -> serde_json::Value {
        use serde_json::Value;
        match &self.kind {
            Kind::Seq(items) => Value::Array(items.iter().map(Node::to_json).collect()),
            Kind::Map(entries) => {
                Value::Object(entries.iter().map(|(k, v)| (k.text.clone(), v.to_json())).collect())
            }
            Kind::Scalar { .. } if self.is_null() => Value::Null,
            Kind::Scalar { text, plain } => {
                if let Some(b) = self.as_bool() {
                    return Value::Bool(b);
                }
                if *plain && let Ok(i) = text.parse::<i64>() {
                    return Value::from(i);
                }
                match self.as_number() {
                    Some(n) => Value::from(n),
                    None => Value::String(text.clone()),
                }
            }
        }
    }
}

/// The documents of `text`, empty ones left out. Duplicate keys, tags other than `!!str`, and
/// keys that are no scalars are problems.
pub(crate) fn documents(text: &str, problems: &mut Vec<Problem>) -> Vec<Node> {
    let mut builder = Builder { problems, stack: Vec::new(), anchors: BTreeMap::new(), nodes: 0 };
    let mut documents = Vec::new();
    for item in Parser::new_from_str(text) {
        let (event, span) = match item {
            Ok(item) => item,
            Err(error) => {
                let line = error.marker().line();
                let full = error.to_string();
                // The parser's own text ends in its own idea of the place.
                let text = full.split(" at ").next().unwrap_or(&full).to_owned();
                builder.problem(line, format!("not valid YAML: {text}"));
                return documents;
            }
        };
        if builder.nodes > MAX_NODES {
            builder.problem(span.start.line(), "the document is too large".to_owned());
            return documents;
        }
        if let Some(root) = builder.take(event, span.start.line()) {
            documents.push(root);
        }
    }
    documents.retain(|d| !d.is_null());
    documents
}

/// A collection that is not complete yet.
enum Open {
    Seq(u32, usize, Vec<Node>),
    Map(u32, usize, Vec<(Key, Node)>, Option<Key>),
}

struct Builder<'a> {
    problems: &'a mut Vec<Problem>,
    stack: Vec<Open>,
    anchors: BTreeMap<usize, Node>,
    nodes: usize,
}

impl Builder<'_> {
    fn problem(&mut self, line: usize, text: String) {
        self.problems.push(Problem { line: to_line(line), text });
    }

    /// Takes one event; returns the root node once it is complete.
    fn take(&mut self, event: Event<'_>, line: usize) -> Option<Node> {
        let at = to_line(line);
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let mut plain = style == ScalarStyle::Plain;
                if let Some(tag) = tag {
                    plain = plain && !self.string_tag(&tag.to_string(), line);
                }
                let kind = Kind::Scalar { text: text.into_owned(), plain };
                self.value(Node { line: at, kind }, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                if let Some(tag) = tag {
                    self.string_tag(&tag.to_string(), line);
                }
                self.stack.push(Open::Seq(at, anchor, Vec::new()));
                None
            }
            Event::MappingStart(_, anchor, tag) => {
                if let Some(tag) = tag {
                    self.string_tag(&tag.to_string(), line);
                }
                self.stack.push(Open::Map(at, anchor, Vec::new(), None));
                None
            }
            Event::SequenceEnd | Event::MappingEnd => match self.stack.pop()? {
                Open::Seq(line, anchor, items) => {
                    self.value(Node { line, kind: Kind::Seq(items) }, anchor)
                }
                Open::Map(line, anchor, entries, _) => {
                    let entries = self.merged(entries);
                    self.value(Node { line, kind: Kind::Map(entries) }, anchor)
                }
            },
            Event::Alias(id) => match self.anchors.get(&id).cloned() {
                Some(node) => {
                    self.nodes += count(&node);
                    self.value(node, 0)
                }
                None => {
                    self.problem(line, "an alias inside its own anchor".to_owned());
                    self.value(null(at), 0)
                }
            },
            _ => None,
        }
    }

    /// Whether the tag says "string"; any other one is a problem.
    fn string_tag(&mut self, tag: &str, line: usize) -> bool {
        if tag.ends_with("!str") || tag.ends_with(":str") {
            return true;
        }
        self.problem(line, format!("the tag `{tag}` means nothing here"));
        false
    }

    fn value(&mut self, node: Node, anchor: usize) -> Option<Node> {
        self.nodes += 1;
        if anchor > 0 {
            self.anchors.insert(anchor, node.clone());
        }
        match self.stack.last_mut() {
            None => return Some(node),
            Some(Open::Seq(_, _, items)) => items.push(node),
            Some(Open::Map(_, _, entries, pending)) => match pending.take() {
                Some(key) => entries.push((key, node)),
                None => {
                    let line = node.line;
                    let Kind::Scalar { text, .. } = node.kind else {
                        *pending = Some(Key { line, text: String::new() });
                        let text = "a key must be one word".to_owned();
                        self.problems.push(Problem { line, text });
                        return None;
                    };
                    if let Some((first, _)) = entries.iter().find(|(k, _)| k.text == text) {
                        let text =
                            format!("the key `{text}` stands twice, first on line {}", first.line);
                        self.problems.push(Problem { line, text });
                    }
                    *pending = Some(Key { line, text });
                }
            },
        }
        None
    }

    /// Resolves merge keys (`<<`): what is written in the mapping itself wins.
    fn merged(&mut self, entries: Vec<(Key, Node)>) -> Vec<(Key, Node)> {
        if !entries.iter().any(|(k, _)| k.text == "<<") {
            return entries;
        }
        let (merges, mut own): (Vec<_>, Vec<_>) =
            entries.into_iter().partition(|(k, _)| k.text == "<<");
        for (key, node) in merges {
            let sources = match node.kind {
                Kind::Map(entries) => vec![entries],
                Kind::Seq(items) => items
                    .into_iter()
                    .filter_map(|n| if let Kind::Map(m) = n.kind { Some(m) } else { None })
                    .collect(),
                Kind::Scalar { .. } => {
                    self.problem(key.line as usize, "`<<` merges mappings only".to_owned());
                    Vec::new()
                }
            };
            for (k, v) in sources.into_iter().flatten() {
                if !own.iter().any(|(o, _)| o.text == k.text) {
                    own.push((k, v));
                }
            }
        }
        own
    }
}

fn null(line: u32) -> Node {
    Node { line, kind: Kind::Scalar { text: String::new(), plain: true } }
}

fn count(node: &Node) -> usize {
    1 + match &node.kind {
        Kind::Scalar { .. } => 0,
        Kind::Seq(items) => items.iter().map(count).sum(),
        Kind::Map(entries) => entries.iter().map(|(_, v)| count(v)).sum(),
    }
}

fn to_line(line: usize) -> u32 {
    u32::try_from(line).unwrap_or(u32::MAX)
}
