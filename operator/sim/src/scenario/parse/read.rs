//! Readers of values: each says what it expected and what it found.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use super::super::ast::{Count, Line, Millis, Name, Range, Time, Times};
use super::super::node::{Key, Kind, Node};
use super::super::problem::{Problem, unknown};
use super::super::words::Word;
use super::names::{NameKind, Use};

/// Longest time a scenario may name, seconds (30 days).
const MAX_SECONDS: f64 = 2_592_000.0;

/// What is known while one document is read.
pub(crate) struct Cx {
    /// Where manifests that are named by path lie.
    pub base: Option<PathBuf>,
    problems: RefCell<Vec<Problem>>,
    uses: RefCell<Vec<Use>>,
}

impl Cx {
    pub fn new(base: Option<PathBuf>) -> Self {
        Self { base, problems: RefCell::default(), uses: RefCell::default() }
    }

    pub fn into_problems(self) -> Vec<Problem> {
        self.problems.into_inner()
    }

    pub fn problem(&self, line: u32, text: String) {
        self.problems.borrow_mut().push(Problem { line, text });
    }

    pub fn problem_count(&self) -> usize {
        self.problems.borrow().len()
    }

    pub fn expected(&self, node: &Node, what: &str, expected: &str) {
        self.problem(node.line, format!("{what}: expected {expected}, found {}", node.describe()));
    }

    /// Notes that a name was used, to be checked once all are declared.
    pub fn uses(&self, kind: NameKind, name: &str, line: u32) {
        self.uses.borrow_mut().push(Use { kind, name: name.to_owned(), line });
    }

    pub fn take_uses(&self) -> Vec<Use> {
        self.uses.take()
    }

    /// Text; numbers and booleans are no text.
    pub fn string(&self, node: &Node, what: &str) -> Option<String> {
        match &node.kind {
            Kind::Scalar { text, plain }
                if !plain
                    || !(node.is_null()
                        || node.as_bool().is_some()
                        || node.as_number().is_some()) =>
            {
                Some(text.clone())
            }
            Kind::Scalar { .. } | Kind::Seq(_) | Kind::Map(_) => {
                self.expected(node, what, "a string");
                None
            }
        }
    }

    /// Any scalar by its text: values of maps of strings.
    pub fn scalar(&self, node: &Node, what: &str) -> Option<String> {
        match &node.kind {
            Kind::Scalar { text, .. } if !node.is_null() => Some(text.clone()),
            Kind::Scalar { .. } | Kind::Seq(_) | Kind::Map(_) => {
                self.expected(node, what, "a string");
                None
            }
        }
    }

    /// A name: a string, even if it is digits.
    pub fn bare_name(&self, node: &Node, what: &str) -> Option<Name> {
        match &node.kind {
            Kind::Scalar { text, .. } if !node.is_null() && !text.is_empty() => Some(text.clone()),
            Kind::Scalar { .. } | Kind::Seq(_) | Kind::Map(_) => {
                self.expected(node, what, "a name");
                None
            }
        }
    }

    /// A name that must be declared somewhere.
    pub fn name(&self, node: &Node, what: &str, kind: NameKind) -> Option<Name> {
        let name = self.bare_name(node, what)?;
        self.uses(kind, &name, node.line);
        Some(name)
    }

    /// A name or a list of names.
    pub fn names(&self, node: &Node, what: &str, kind: NameKind) -> Option<Vec<Name>> {
        match &node.kind {
            Kind::Seq(items) => {
                Some(items.iter().filter_map(|n| self.name(n, what, kind)).collect())
            }
            Kind::Scalar { .. } if !node.is_null() => {
                self.name(node, what, kind).map(|name| vec![name])
            }
            Kind::Scalar { .. } | Kind::Map(_) => {
                self.expected(node, what, "a name or a list of names");
                None
            }
        }
    }

    /// One value or a list of them, each read by `read`.
    pub fn one_or_many<T>(&self, node: &Node, read: impl Fn(&Self, &Node) -> Option<T>) -> Vec<T> {
        match &node.kind {
            Kind::Seq(items) => items.iter().filter_map(|n| read(self, n)).collect(),
            Kind::Scalar { .. } | Kind::Map(_) => read(self, node).into_iter().collect(),
        }
    }

    pub fn bool(&self, node: &Node, what: &str) -> Option<bool> {
        let value = node.as_bool();
        if value.is_none() {
            self.expected(node, what, "true or false");
        }
        value
    }

    /// A whole number from `min` to `max`.
    pub fn whole(&self, node: &Node, what: &str, min: u64, max: u64) -> Option<u64> {
        let value = match &node.kind {
            Kind::Scalar { text, plain: true } => text.parse::<u64>().ok(),
            Kind::Scalar { .. } | Kind::Seq(_) | Kind::Map(_) => None,
        };
        match value {
            Some(n) if (min..=max).contains(&n) => Some(n),
            Some(_) | None => {
                let range = if max == u64::MAX {
                    format!("a whole number of at least {min}")
                } else {
                    format!("a whole number from {min} to {max}")
                };
                self.expected(node, what, &range);
                None
            }
        }
    }

    pub fn number(&self, node: &Node, what: &str) -> Option<f64> {
        let value = node.as_number();
        if value.is_none() {
            self.expected(node, what, "a number");
        }
        value
    }

    /// A length of time in seconds.
    pub fn seconds(&self, node: &Node, what: &str) -> Option<Millis> {
        match node.as_number().filter(|s| (0.0..=MAX_SECONDS).contains(s)) {
            Some(seconds) => Some(to_millis(seconds)),
            None => {
                self.expected(node, what, "a number of seconds");
                None
            }
        }
    }

    /// A moment: seconds, a step's id, or that and `+seconds`.
    pub fn time(&self, node: &Node, what: &str) -> Option<Time> {
        if node.as_number().is_some() {
            return self.seconds(node, what).map(Time::At);
        }
        let expected = "seconds, a step's id, or `id+seconds`";
        let text = match node.text() {
            Some(text) if !node.is_null() && node.as_bool().is_none() => text.trim(),
            _ => {
                self.expected(node, what, expected);
                return None;
            }
        };
        let (id, offset) = match text.split_once('+') {
            None => (text, 0),
            Some((id, offset)) => {
                match offset.trim().parse::<f64>().ok().filter(|s| (0.0..=MAX_SECONDS).contains(s))
                {
                    Some(seconds) => (id.trim(), to_millis(seconds)),
                    None => {
                        self.expected(node, what, expected);
                        return None;
                    }
                }
            }
        };
        if !is_step_id(id) {
            self.expected(node, what, expected);
            return None;
        }
        self.uses(NameKind::Step, id, node.line);
        Some(Time::After(id.to_owned(), offset))
    }

    pub fn word<W: Word>(&self, node: &Node, what: &str) -> Option<W> {
        let expected = format!("one of {}", W::WORDS.join(", "));
        let Some(text) = node.text().filter(|_| !node.is_null()) else {
            self.expected(node, what, &expected);
            return None;
        };
        let word = W::from_word(text);
        if word.is_none() {
            self.problem(node.line, format!("{what}: {}", unknown("word", text, W::WORDS)));
        }
        word
    }

    /// A number, `{min, max}`, or a list of such alternatives.
    pub fn count(&self, node: &Node, what: &str) -> Option<Count> {
        let ranges = self.one_or_many(node, |cx, n| cx.range(n, what));
        if ranges.is_empty() && matches!(&node.kind, Kind::Seq(items) if items.is_empty()) {
            self.expected(node, what, "a whole number, {min, max} or a list of them");
        }
        (!ranges.is_empty()).then_some(Count(ranges))
    }

    fn range(&self, node: &Node, what: &str) -> Option<Range> {
        match &node.kind {
            Kind::Map(_) => {
                let mut f = Fields::of(self, node, what)?;
                let min = f.whole("min", 0, u64::MAX);
                let max = f.whole("max", 0, u64::MAX);
                f.finish();
                match (min, max) {
                    (None, None) => {
                        self.problem(node.line, format!("{what}: `min`, `max` or both"));
                        None
                    }
                    (Some(min), Some(max)) if min > max => {
                        self.problem(node.line, format!("{what}: `min` is above `max`"));
                        None
                    }
                    (min, max) => Some(Range { min: min.unwrap_or(0), max }),
                }
            }
            Kind::Scalar { text, plain: true } if text.parse::<u64>().is_ok() => {
                text.parse().ok().map(Range::exactly)
            }
            Kind::Scalar { .. } | Kind::Seq(_) => {
                self.expected(node, what, "a whole number or {min, max}");
                None
            }
        }
    }

    /// True, false, or a list of alternatives; both of them say nothing.
    pub fn either(&self, node: &Node, what: &str) -> Option<bool> {
        let all = self.one_or_many(node, |cx, n| cx.bool(n, what));
        let first = all.first().copied()?;
        all.iter().all(|b| *b == first).then_some(first)
    }

    /// A number of times, or `always`.
    pub fn times(&self, node: &Node, what: &str) -> Option<Times> {
        match &node.kind {
            Kind::Scalar { text, .. } if text == "always" => Some(Times::Always),
            Kind::Scalar { text, plain: true } => match text.parse::<u32>() {
                Ok(n) if n > 0 => Some(Times::Count(n)),
                Ok(_) | Err(_) => {
                    self.expected(node, what, "a whole number of at least 1, or `always`");
                    None
                }
            },
            Kind::Scalar { .. } | Kind::Seq(_) | Kind::Map(_) => {
                self.expected(node, what, "a whole number of at least 1, or `always`");
                None
            }
        }
    }

    /// A mapping of strings.
    pub fn string_map(&self, node: &Node, what: &str) -> Option<BTreeMap<String, String>> {
        let Kind::Map(entries) = &node.kind else {
            self.expected(node, what, "a mapping");
            return None;
        };
        Some(
            entries
                .iter()
                .filter_map(|(k, v)| {
                    let value = self.scalar(v, &format!("{what}, `{}`", k.text))?;
                    Some((k.text.clone(), value))
                })
                .collect(),
        )
    }
}

/// Whether this may be the id of a step: a letter, then letters, digits, `_`, `-`, `.`.
pub(crate) fn is_step_id(id: &str) -> bool {
    id.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c))
}

pub(crate) fn to_millis(seconds: f64) -> Millis {
    // In range: the callers bound it.
    (seconds * 1000.0).round() as Millis
}

/// A mapping whose keys are taken one by one; what is left at the end is unknown.
pub(crate) struct Fields<'a> {
    /// Where problems go.
    pub cx: &'a Cx,
    /// What it is, for messages.
    pub what: String,
    /// Its first line.
    pub line: u32,
    entries: &'a [(Key, Node)],
    known: Vec<&'static str>,
    /// Set once somebody else judges the keys that were not taken.
    open: bool,
}

impl<'a> Fields<'a> {
    /// The mapping in `node`; a problem if it is none.
    pub fn of(cx: &'a Cx, node: &'a Node, what: &str) -> Option<Self> {
        let Kind::Map(entries) = &node.kind else {
            cx.expected(node, what, "a mapping");
            return None;
        };
        Some(Self {
            cx,
            what: what.to_owned(),
            line: node.line,
            entries,
            known: Vec::new(),
            open: false,
        })
    }

    /// The line of the mapping, for the AST.
    pub fn at(&self) -> Line {
        Line(self.line)
    }

    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|(k, _)| k.text == key)
    }

    /// The keys as written.
    pub fn keys(&self) -> impl Iterator<Item = &'a Key> {
        self.entries.iter().map(|(k, _)| k)
    }

    pub fn problem(&self, text: String) {
        self.cx.problem(self.line, text);
    }

    /// A key that must be there is not.
    pub fn missing(&self, key: &str) {
        self.problem(format!("{} needs `{key}`", self.what));
    }

    /// Marks `key` as known and returns its value.
    pub fn take(&mut self, key: &'static str) -> Option<&'a Node> {
        if !self.known.contains(&key) {
            self.known.push(key);
        }
        self.entries.iter().find(|(k, _)| k.text == key).map(|(_, n)| n)
    }

    fn label(&self, key: &str) -> String {
        format!("`{key}` of {}", self.what)
    }

    pub fn read<T>(
        &mut self,
        key: &'static str,
        read: impl Fn(&Cx, &'a Node, &str) -> Option<T>,
    ) -> Option<T> {
        let node = self.take(key)?;
        read(self.cx, node, &self.label(key))
    }

    pub fn string(&mut self, key: &'static str) -> Option<String> {
        self.read(key, |cx, n, w| cx.string(n, w))
    }
    pub fn bool(&mut self, key: &'static str) -> Option<bool> {
        self.read(key, |cx, n, w| cx.bool(n, w))
    }

    /// A boolean of a condition: lists are alternatives.
    pub fn either(&mut self, key: &'static str) -> Option<bool> {
        self.read(key, |cx, n, w| cx.either(n, w))
    }
    pub fn whole(&mut self, key: &'static str, min: u64, max: u64) -> Option<u64> {
        self.read(key, |cx, n, w| cx.whole(n, w, min, max))
    }
    pub fn seconds(&mut self, key: &'static str) -> Option<Millis> {
        self.read(key, |cx, n, w| cx.seconds(n, w))
    }
    pub fn time(&mut self, key: &'static str) -> Option<Time> {
        self.read(key, |cx, n, w| cx.time(n, w))
    }
    pub fn word<W: Word>(&mut self, key: &'static str) -> Option<W> {
        self.read(key, |cx, n, w| cx.word(n, w))
    }
    pub fn words<W: Word>(&mut self, key: &'static str) -> Vec<W> {
        self.read(key, |cx, n, w| Some(cx.one_or_many(n, |cx, n| cx.word(n, w))))
            .unwrap_or_default()
    }
    pub fn name(&mut self, key: &'static str, kind: NameKind) -> Option<Name> {
        self.read(key, |cx, n, w| cx.name(n, w, kind))
    }
    pub fn names(&mut self, key: &'static str, kind: NameKind) -> Option<Vec<Name>> {
        self.read(key, |cx, n, w| cx.names(n, w, kind))
    }
    /// Names; absent is none.
    pub fn names_or_none(&mut self, key: &'static str, kind: NameKind) -> Vec<Name> {
        self.names(key, kind).unwrap_or_default()
    }
    /// Names that must be there and be some.
    pub fn some_names(&mut self, key: &'static str, kind: NameKind) -> Option<Vec<Name>> {
        if !self.has(key) {
            self.take(key);
            self.missing(key);
            return None;
        }
        let names = self.names(key, kind)?;
        if names.is_empty() {
            self.problem(format!("{} is empty", self.label(key)));
            return None;
        }
        Some(names)
    }

    /// The entries but those of `common` keys and of keys taken so far; from now on all are known.
    pub fn beside(&mut self, common: &[&str]) -> Vec<(&'a Key, &'a Node)> {
        let mut rest = Vec::new();
        for (key, node) in self.entries {
            if !common.contains(&key.text.as_str()) && !self.known.contains(&key.text.as_str()) {
                rest.push((key, node));
            }
        }
        self.open = true;
        rest
    }

    /// Every key that was not taken is a problem.
    pub fn finish(self) {
        if self.open {
            return;
        }
        for (key, _) in self.entries {
            if !self.known.contains(&key.text.as_str()) {
                let text = unknown("field", &key.text, &self.known);
                self.cx.problem(key.line, format!("{}: {text}", self.what));
            }
        }
    }
}
