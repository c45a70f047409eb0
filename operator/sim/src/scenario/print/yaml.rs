//! YAML in flow style, keys in the order they are written.

use std::collections::BTreeMap;
use std::fmt;

use super::super::ast::{Millis, Name};
use super::super::words::Word;

/// A value.
pub(super) enum Yaml {
    /// Printed as it is.
    Raw(String),
    /// A string, quoted where it must be.
    Text(String),
    Seq(Vec<Yaml>),
    Map(Vec<(String, Yaml)>),
}

impl Yaml {
    pub fn raw(text: impl Into<String>) -> Self {
        Self::Raw(text.into())
    }
    pub fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
    pub fn number<T: fmt::Display + ?Sized>(n: &T) -> Self {
        Self::Raw(n.to_string())
    }
    pub fn seconds(t: Millis) -> Self {
        if t.is_multiple_of(1000) {
            return Self::number(&(t / 1000));
        }
        let text = format!("{}.{:03}", t / 1000, t % 1000);
        Self::Raw(text.trim_end_matches('0').to_owned())
    }
    pub fn names(names: &[Name]) -> Self {
        Self::Seq(names.iter().map(|n| Self::text(n)).collect())
    }
    /// One name alone, several as a list.
    pub fn one_or_many(names: &[Name]) -> Self {
        match names {
            [one] => Self::text(one),
            many => Self::names(many),
        }
    }
    pub fn words<W: Word>(words: &[W]) -> Self {
        match words {
            [one] => Self::raw(one.word()),
            many => Self::Seq(many.iter().map(|w| Self::raw(w.word())).collect()),
        }
    }
    pub fn strings(map: &BTreeMap<String, String>) -> Self {
        Self::Map(map.iter().map(|(k, v)| (k.clone(), Self::text(v))).collect())
    }
    /// JSON is YAML.
    pub fn json(value: &serde_json::Value) -> Self {
        Self::Raw(value.to_string())
    }
}

/// A mapping that is being written.
#[derive(Default)]
pub(super) struct Map(Vec<(String, Yaml)>);

impl Map {
    pub fn put(&mut self, key: &str, value: Yaml) {
        self.0.push((key.to_owned(), value));
    }
    pub fn some<T>(&mut self, key: &str, value: &Option<T>, print: impl Fn(&T) -> Yaml) {
        if let Some(value) = value {
            self.put(key, print(value));
        }
    }
    pub fn word<W: Word>(&mut self, key: &str, value: Option<W>) {
        self.some(key, &value, |w| Yaml::raw(w.word()));
    }
    /// Names, unless there are none.
    pub fn names(&mut self, key: &str, names: &[Name]) {
        if !names.is_empty() {
            self.put(key, Yaml::one_or_many(names));
        }
    }
    pub fn words<W: Word>(&mut self, key: &str, words: &[W]) {
        if !words.is_empty() {
            self.put(key, Yaml::words(words));
        }
    }
    pub fn append(&mut self, other: Map) {
        self.0.extend(other.0);
    }
    pub fn done(self) -> Yaml {
        Yaml::Map(self.0)
    }
}

impl fmt::Display for Yaml {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw(text) => f.write_str(text),
            Self::Text(text) => f.write_str(&quoted(text)),
            Self::Seq(items) => {
                f.write_str("[")?;
                for (i, item) in items.iter().enumerate() {
                    write!(f, "{}{item}", if i > 0 { ", " } else { "" })?;
                }
                f.write_str("]")
            }
            Self::Map(entries) => {
                f.write_str("{")?;
                for (i, (key, value)) in entries.iter().enumerate() {
                    let comma = if i > 0 { ", " } else { "" };
                    write!(f, "{comma}{}: {value}", quoted(key))?;
                }
                f.write_str("}")
            }
        }
    }
}

/// Plain where nothing could take it for anything but this string, else in double quotes.
fn quoted(text: &str) -> String {
    let plain = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./".contains(c))
        && !["true", "false", "null", "yes", "no", "on", "off", "y", "n"]
            .contains(&text.to_lowercase().as_str());
    if plain {
        return text.to_owned();
    }
    serde_json::Value::from(text).to_string()
}
