//! A request's path and query, read.

use http::{Method, Uri};

use super::kinds::{KindId, Kinds};
use super::refusal::Refusal;

/// The query of a request; what is not listed here is refused or without meaning.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query {
    /// `labelSelector`.
    pub labels: Option<String>,
    /// `fieldSelector`.
    pub fields: Option<String>,
    /// `resourceVersion`; an empty one is none.
    pub version: Option<u64>,
    /// `resourceVersionMatch=Exact` (true) or `NotOlderThan` (false).
    pub exact: Option<bool>,
    /// `limit`, none if 0.
    pub limit: Option<usize>,
    /// `continue`.
    pub token: Option<String>,
    /// `watch`.
    pub watch: bool,
    /// `timeoutSeconds`.
    pub timeout: Option<u64>,
    /// `allowWatchBookmarks`.
    pub bookmarks: bool,
    /// `fieldValidation=Strict`.
    pub strict: bool,
}

/// Which object or collection a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Its kind.
    pub kind: KindId,
    /// Its namespace; none: all of them, or a cluster-scoped kind.
    pub namespace: Option<String>,
    /// Its name; none: the collection.
    pub name: Option<String>,
    /// `/status`.
    pub status: bool,
}

impl Query {
    /// Reads the query of `uri`.
    ///
    /// # Errors
    /// 400 if a value cannot be read, or asks for what this API does not serve.
    pub fn parse(uri: &Uri) -> Result<Self, Refusal> {
        let mut query = Self::default();
        for (key, value) in form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes()) {
            let number = || {
                value.parse::<u64>().map_err(|e| {
                    Refusal::bad_request(format!("{key}: Invalid value: \"{value}\": {e}"))
                })
            };
            let flag = || matches!(&*value, "true" | "1");
            match &*key {
                "labelSelector" => query.labels = Some(value.into_owned()),
                "fieldSelector" => query.fields = Some(value.into_owned()),
                "resourceVersion" if value.is_empty() => {}
                "resourceVersion" => query.version = Some(number()?),
                "resourceVersionMatch" => query.exact = Some(value == "Exact"),
                "limit" => query.limit = Some(number()? as usize).filter(|&n| n > 0),
                "continue" => query.token = Some(value.into_owned()),
                "watch" => query.watch = flag(),
                "timeoutSeconds" => query.timeout = Some(number()?),
                "allowWatchBookmarks" => query.bookmarks = flag(),
                "fieldValidation" => query.strict = value == "Strict",
                "fieldManager" | "pretty" => {}
                other => {
                    let message = format!("query parameter {other} is not served in process");
                    return Err(Refusal::bad_request(message));
                }
            }
        }
        Ok(query)
    }
}

impl Target {
    /// Reads the path of `uri`.
    ///
    /// # Errors
    /// 404 if there is no such path.
    pub fn parse(kinds: &Kinds, uri: &Uri) -> Result<Self, Refusal> {
        let none = Refusal::no_such_resource;
        let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return Err(none()),
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, rest @ ..]
                if !(rest.is_empty() || group.is_empty() && rest == ["status"]) =>
            {
                (Some((*namespace).to_owned()), rest)
            }
            rest => (None, rest),
        };
        let (plural, name, status) = match rest {
            [plural] => (plural, None, false),
            [plural, name] => (plural, Some((*name).to_owned()), false),
            [plural, name, "status"] => (plural, Some((*name).to_owned()), true),
            _ => return Err(none()),
        };
        let id = kinds.by_resource(group, version, plural).ok_or_else(none)?;
        let kind = kinds.get(id);
        let scoped = kind.namespaced == namespace.is_some()
            || (kind.namespaced && namespace.is_none() && name.is_none());
        if !scoped || (status && !kind.status) {
            return Err(none());
        }
        Ok(Self { kind: id, namespace, name, status })
    }
}

/// What a request wants done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// One object.
    Get,
    /// A collection.
    List,
    /// The changes of a collection.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE.
    Delete,
}

impl Verb {
    /// The verb of `method` on `target`.
    ///
    /// # Errors
    /// 405 if the target has no such verb here.
    pub fn of(method: &Method, target: &Target, watch: bool) -> Result<Self, Refusal> {
        let one = target.name.is_some();
        match *method {
            Method::GET if one && !watch => Ok(Self::Get),
            Method::GET if !one && watch => Ok(Self::Watch),
            Method::GET if !one => Ok(Self::List),
            Method::POST if !one => Ok(Self::Create),
            Method::PUT if one => Ok(Self::Update),
            Method::PATCH if one => Ok(Self::Patch),
            Method::DELETE if one && !target.status => Ok(Self::Delete),
            _ => Err(Refusal::no_such_verb()),
        }
    }

    /// Whether it may change what is stored.
    #[must_use]
    pub fn writes(self) -> bool {
        match self {
            Self::Get | Self::List | Self::Watch => false,
            Self::Create | Self::Update | Self::Patch | Self::Delete => true,
        }
    }
}
