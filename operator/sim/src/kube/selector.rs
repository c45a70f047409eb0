//! Label and field selectors.

use serde_json::Value;

use super::kinds::Kind;
use super::refusal::Refusal;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Wish {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    Absent,
}

/// What a LIST or WATCH wants to see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// Only objects of this namespace.
    pub namespace: Option<String>,
    labels: Vec<(String, Wish)>,
    fields: Vec<(Vec<String>, bool, String)>,
}

impl Filter {
    /// Reads `labelSelector` and `fieldSelector` of a request for objects of `kind`.
    ///
    /// # Errors
    /// 400 if one cannot be read, or names a field that cannot be selected by.
    pub fn parse(
        kind: &Kind,
        namespace: Option<&str>,
        labels: Option<&str>,
        fields: Option<&str>,
    ) -> Result<Self, Refusal> {
        let labels = split_outside_brackets(labels.unwrap_or_default())
            .map(parse_label)
            .collect::<Result<_, _>>()?;
        let fields = fields
            .unwrap_or_default()
            .split(',')
            .filter(|part| !part.is_empty())
            .map(|part| parse_field(kind, part))
            .collect::<Result<_, _>>()?;
        Ok(Self { namespace: namespace.map(str::to_owned), labels, fields })
    }

    /// Whether a selector, not just a namespace, restricts what is seen.
    #[must_use]
    pub fn selects(&self) -> bool {
        !(self.labels.is_empty() && self.fields.is_empty())
    }

    /// Whether `object` is to be seen.
    #[must_use]
    pub fn matches(&self, object: &Value) -> bool {
        let metadata = &object["metadata"];
        let here = self.namespace.as_deref().is_none_or(|n| metadata["namespace"] == n);
        here && self.labels.iter().all(|(key, wish)| {
            let value = metadata["labels"].get(key).and_then(Value::as_str);
            match wish {
                Wish::In(values) => value.is_some_and(|v| values.iter().any(|w| w == v)),
                Wish::NotIn(values) => value.is_none_or(|v| values.iter().all(|w| w != v)),
                Wish::Exists => value.is_some(),
                Wish::Absent => value.is_none(),
            }
        }) && self
            .fields
            .iter()
            .all(|(path, equal, wanted)| (field_text(object, path) == *wanted) == *equal)
    }
}

fn field_text(object: &Value, path: &[String]) -> String {
    match path.iter().fold(object, |value, key| &value[key]) {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn parse_field(kind: &Kind, part: &str) -> Result<(Vec<String>, bool, String), Refusal> {
    let bad = || Refusal::bad_request(format!("invalid field selector: '{part}'"));
    let (path, rest) = part.split_once(['=', '!']).ok_or_else(bad)?;
    let negated = part.as_bytes()[path.len()] == b'!';
    let value = match (negated, rest.strip_prefix('=')) {
        (_, Some(value)) => value,
        (false, None) => rest,
        (true, None) => return Err(bad()),
    };
    if !matches!(path, "metadata.name" | "metadata.namespace") && !kind.selectable.contains(path) {
        return Err(Refusal::bad_request(format!("field label not supported: {path}")));
    }
    Ok((path.split('.').map(str::to_owned).collect(), !negated, value.to_owned()))
}

fn split_outside_brackets(text: &str) -> impl Iterator<Item = &str> {
    let mut depth = 0_i32;
    text.split(move |c| {
        depth += match c {
            '(' => 1,
            ')' => -1,
            _ => 0,
        };
        c == ',' && depth == 0
    })
    .map(str::trim)
    .filter(|part| !part.is_empty())
}

fn parse_label(part: &str) -> Result<(String, Wish), Refusal> {
    let bad = || Refusal::bad_request(format!("unable to parse requirement: '{part}'"));
    let one = |value: &str| vec![value.trim().to_owned()];
    let (key, wish) = if let Some(key) = part.strip_prefix('!') {
        (key, Wish::Absent)
    } else if let Some((key, value)) = part.split_once("!=") {
        (key, Wish::NotIn(one(value)))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key, Wish::In(one(value)))
    } else if let Some((head, values)) = part.strip_suffix(')').and_then(|p| p.split_once('(')) {
        let values = values.split(',').map(|v| v.trim().to_owned()).collect();
        match head.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => (key, Wish::In(values)),
            Some((key, "notin")) => (key, Wish::NotIn(values)),
            _ => return Err(bad()),
        }
    } else {
        (part, Wish::Exists)
    };
    let key = key.trim();
    let readable = match &wish {
        Wish::In(values) | Wish::NotIn(values) => {
            values.iter().all(|v| super::format::is_label_value(v))
        }
        Wish::Exists | Wish::Absent => true,
    };
    if super::format::is_qualified(key) && readable {
        Ok((key.to_owned(), wish))
    } else {
        Err(bad())
    }
}
