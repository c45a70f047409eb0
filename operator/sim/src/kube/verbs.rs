//! What the verbs do: one request against the store, at one instant.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::kinds::{Kind, KindId, Kinds, Shape};
use super::meta;
use super::refusal::{Cause, Refusal};
use super::request::{Query, Target, Verb};
use super::selector::Filter;
use super::server::{Chore, Inner, Write};
use super::store::{Change, Object, Objects, within};

/// A code and a body.
pub type Reply = (u16, Bytes);

/// One request being served.
pub struct Session<'a> {
    pub kinds: &'a Kinds,
    pub inner: &'a mut Inner,
    pub identity: Arc<str>,
    pub now: Instant,
    /// `now` as `metadata.creationTimestamp` has it.
    pub stamp: String,
    /// For reads that may be old: what the caller's view shows; none: the newest.
    pub view: Option<u64>,
}

fn reply(object: &Object) -> Reply {
    (200, object.bytes.clone())
}

impl Session<'_> {
    /// Serves every verb but WATCH.
    pub fn serve(
        &mut self,
        verb: Verb,
        target: &Target,
        query: &Query,
        merge: bool,
        body: &[u8],
    ) -> Result<Reply, Refusal> {
        let name = target.name.as_deref().unwrap_or_default();
        match verb {
            Verb::Get => self.get(target, name, query),
            Verb::List => self.list(target, query),
            Verb::Watch => Err(Refusal::no_such_verb()),
            Verb::Create => {
                let object = self.create(target, parse(body)?, query.strict)?;
                Ok((201, object.bytes.clone()))
            }
            Verb::Update => self.replace(target, name, parse(body)?, query.strict),
            Verb::Patch if !merge => Err(Refusal::new(
                415,
                "UnsupportedMediaType",
                "only application/merge-patch+json is served in process",
            )),
            Verb::Patch => self.patch(target, name, &parse(body)?, query.strict),
            Verb::Delete => {
                let options = if body.is_empty() { Value::Null } else { parse(body)? };
                self.delete(target, name, &options)
            }
        }
    }

    fn get(&self, target: &Target, name: &str, query: &Query) -> Result<Reply, Refusal> {
        let kind = self.kinds.get(target.kind);
        let key = kind.key(target.namespace.as_deref(), name);
        let current = self.inner.store.revision();
        match (query.version, self.view) {
            (Some(asked), _) if asked > current => return Err(Refusal::future(asked, current)),
            (Some(0), Some(view)) => {
                let old = self.inner.store.objects_at(target.kind, view);
                return old
                    .get(key.as_str())
                    .map(|o| reply(o))
                    .ok_or_else(|| Refusal::not_found(kind, name));
            }
            _ => {}
        }
        let found = self.inner.store.get(target.kind, &key);
        found.map(|o| reply(o)).ok_or_else(|| Refusal::not_found(kind, name))
    }

    fn list(&self, target: &Target, query: &Query) -> Result<Reply, Refusal> {
        let kind = self.kinds.get(target.kind);
        let store = &self.inner.store;
        let namespace = target.namespace.as_deref();
        let filter =
            Filter::parse(kind, namespace, query.labels.as_deref(), query.fields.as_deref())?;
        if let Some(exact) = query.exact {
            let wrong = match query.version {
                None => {
                    Some("resourceVersionMatch is forbidden unless resourceVersion is provided")
                }
                Some(0) if exact => {
                    Some("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
                }
                Some(_) => None,
            };
            if let Some(message) = wrong {
                let cause = Cause::forbidden("resourceVersionMatch", message);
                return Err(Refusal::invalid(kind, "", &[cause]));
            }
        }
        let mut after = None;
        // A list "at any version" comes from the server's cache, which knows no pages.
        let limit = query.limit.filter(|_| query.version != Some(0));
        let at = if let Some(token) = &query.token {
            if query.version.is_some_and(|v| v != 0) {
                let message = "specifying resource version is not allowed when using continue";
                return Err(Refusal::bad_request(message));
            }
            let parsed = token
                .split_once(':')
                .and_then(|(revision, key)| Some((revision.parse::<u64>().ok()?, key)));
            let (revision, key) = parsed
                .ok_or_else(|| Refusal::bad_request("continue key is not valid: cannot be read"))?;
            after = Some(key.to_owned());
            Some(revision)
        } else {
            match query.version {
                None => None,
                Some(0) => self.view,
                Some(asked) if asked > store.revision() => {
                    return Err(Refusal::future(asked, store.revision()));
                }
                Some(asked) if query.exact == Some(true) => Some(asked),
                Some(asked) if query.exact.is_none() && limit.is_some() => Some(asked),
                Some(_) => None,
            }
        };
        if let Some(revision) = at
            && query.version != Some(0)
            && revision < store.compacted(target.kind)
        {
            let message = "The provided resource version or continue token is too old to display \
                           a consistent list";
            return Err(Refusal::expired(message));
        }
        let old: Objects;
        let (objects, revision) = match at {
            Some(revision) => {
                old = store.objects_at(target.kind, revision);
                (&old, revision)
            }
            None => (store.objects(target.kind), store.revision()),
        };
        let seen: Vec<_> = within(objects, namespace, after.as_deref())
            .filter(|(_, object)| filter.matches(&object.value))
            .collect();
        let page = &seen[..limit.unwrap_or(seen.len()).min(seen.len())];
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if page.len() < seen.len()
            && let Some((key, _)) = page.last()
        {
            metadata["continue"] = json!(format!("{revision}:{key}"));
            if !filter.selects() {
                metadata["remainingItemCount"] = json!(seen.len() - page.len());
            }
        }
        let size: usize = page.iter().map(|(_, o)| o.bytes.len() + 1).sum();
        let mut body = Vec::with_capacity(size + 200);
        body.extend_from_slice(
            format!(
                "{{\"apiVersion\":\"{}\",\"kind\":\"{}List\",\"metadata\":{metadata},\"items\":[",
                kind.api_version(),
                kind.kind
            )
            .as_bytes(),
        );
        for (i, (_, object)) in page.iter().enumerate() {
            if i > 0 {
                body.push(b',');
            }
            body.extend_from_slice(&object.bytes);
        }
        body.extend_from_slice(b"]}");
        Ok((200, Bytes::from(body)))
    }

    /// Reads what a client sent as an object of `kind`.
    fn read(&self, target: &Target, mut object: Value, strict: bool) -> Result<Value, Refusal> {
        let kind = self.kinds.get(target.kind);
        let Some(map) = object.as_object_mut() else {
            return Err(Refusal::bad_request("the body is not an object"));
        };
        for (key, expected) in [("kind", kind.kind.clone()), ("apiVersion", kind.api_version())] {
            let custom = matches!(kind.shape, Shape::Custom(_));
            match map.get(key).and_then(Value::as_str).filter(|s| !s.is_empty()) {
                Some(given) if given == expected => {}
                None if !custom => {
                    map.insert(key.to_owned(), json!(expected));
                }
                given => {
                    let message = format!(
                        "the {key} in the data ({}) does not match the expected {key} ({expected})",
                        given.unwrap_or_default()
                    );
                    return Err(Refusal::bad_request(message));
                }
            }
        }
        let metadata = map.remove("metadata").unwrap_or_default();
        let metadata = meta::tidy(metadata).map_err(Refusal::bad_request)?;
        let mut object = match &kind.shape {
            Shape::Custom(schema) => {
                let dropped = schema.prune(&mut object);
                if strict && let Some(first) = dropped.first() {
                    let message = format!("strict decoding error: unknown field \"{first}\"");
                    return Err(Refusal::bad_request(message));
                }
                schema.default(&mut object);
                object
            }
            Shape::BuiltIn(built_in) => {
                map_null_out(&mut object);
                (built_in.typed)(object).map_err(|e| Refusal::bad_request(e.to_string()))?
            }
        };
        object["metadata"] = Value::Object(metadata);
        let given = object["metadata"]["namespace"].as_str();
        match (target.namespace.as_deref(), given) {
            (Some(path), Some(given)) if path != given => {
                let message = "the namespace of the provided object does not match the namespace \
                               sent on the request";
                return Err(Refusal::bad_request(message));
            }
            (Some(path), _) => object["metadata"]["namespace"] = json!(path),
            (None, _) => {
                metadata_of(&mut object).remove("namespace");
            }
        }
        Ok(object)
    }

    fn namespace_takes(&self, kind: &Kind, target: &Target, name: &str) -> Result<(), Refusal> {
        let Some(namespace) = target.namespace.as_deref() else { return Ok(()) };
        let home = self.kinds.get(self.kinds.namespaces);
        let found = self.inner.store.get(self.kinds.namespaces, namespace);
        let found = found.ok_or_else(|| Refusal::not_found(home, namespace))?;
        if meta::is_deleting(&found.value) {
            let why = format!(
                "unable to create new content in namespace {namespace} because it is being \
                 terminated"
            );
            return Err(Refusal::forbidden(kind, name, &why));
        }
        Ok(())
    }

    fn create(
        &mut self,
        target: &Target,
        body: Value,
        strict: bool,
    ) -> Result<Arc<Object>, Refusal> {
        let kinds = self.kinds;
        let kind = kinds.get(target.kind);
        let mut object = self.read(target, body, strict)?;
        let metadata = metadata_of(&mut object);
        let text = |m: &Map<String, Value>, key: &str| {
            m.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
        };
        let mut name = text(metadata, "name");
        let prefix = text(metadata, "generateName");
        if name.is_empty() && !prefix.is_empty() {
            const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
            let ids = &mut self.inner.ids;
            let end = (0..5).map(|_| char::from(LETTERS[ids.index(LETTERS.len())]));
            name = end.fold(prefix, |name, c| name + &c.to_string());
        }
        self.namespace_takes(kind, target, &name)?;
        if metadata.contains_key("resourceVersion") {
            let message = "resourceVersion should not be set on objects to be created";
            return Err(Refusal::new(500, "InternalError", message));
        }
        for key in ["deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
            metadata.remove(key);
        }
        metadata.insert("name".to_owned(), json!(name));
        metadata.insert("uid".to_owned(), json!(self.inner.ids.uuid()));
        metadata.insert("creationTimestamp".to_owned(), json!(self.stamp));
        if kind.generation {
            metadata.insert("generation".to_owned(), json!(1));
        }
        let mut causes = Vec::new();
        if name.is_empty() {
            causes.push(Cause {
                message: "Required value: name or generateName is required".to_owned(),
                ..Cause::required("metadata.name")
            });
        } else if !kind.allows_name(&name) {
            causes.push(Cause::invalid("metadata.name", format!("\"{name}\"")));
        }
        match &kind.shape {
            Shape::Custom(schema) => {
                if kind.status {
                    remove(&mut object, "status");
                    schema.default(&mut object);
                }
                causes.append(&mut schema.validate(&object, None));
            }
            Shape::BuiltIn(built_in) => {
                (built_in.prepare)(&mut object, None);
                causes.append(&mut (built_in.validate)(&object, None));
            }
        }
        causes.append(&mut meta::validate(&object));
        if !causes.is_empty() {
            return Err(Refusal::invalid(kind, &name, &causes));
        }
        let key = kind.key(target.namespace.as_deref(), &name);
        if self.inner.store.get(target.kind, &key).is_some() {
            return Err(Refusal::already_exists(kind, &name));
        }
        Ok(self.put(target.kind, &key, object, Verb::Create))
    }

    fn replace(
        &mut self,
        target: &Target,
        name: &str,
        body: Value,
        strict: bool,
    ) -> Result<Reply, Refusal> {
        let kinds = self.kinds;
        let kind = kinds.get(target.kind);
        let object = self.read(target, body, strict)?;
        let given = object["metadata"]["name"].as_str().unwrap_or_default();
        if given != name {
            let message = format!(
                "the name of the object ({given}) does not match the name on the URL ({name})"
            );
            return Err(Refusal::bad_request(message));
        }
        let key = kind.key(target.namespace.as_deref(), name);
        let Some(old) = self.inner.store.get(target.kind, &key).cloned() else {
            if !kind.create_on_update || target.status {
                return Err(Refusal::not_found(kind, name));
            }
            if object["metadata"]["uid"].is_string() {
                let why = "Precondition failed: UID in precondition does not match";
                return Err(Refusal::conflict(kind, name, why));
            }
            let mut object = object;
            metadata_of(&mut object).remove("resourceVersion");
            let made = self.create(target, object, strict)?;
            return Ok((201, made.bytes.clone()));
        };
        self.update(target, object, &old, Verb::Update, kind.unconditional_update)
    }

    fn patch(
        &mut self,
        target: &Target,
        name: &str,
        patch: &Value,
        strict: bool,
    ) -> Result<Reply, Refusal> {
        let kinds = self.kinds;
        let kind = kinds.get(target.kind);
        let key = kind.key(target.namespace.as_deref(), name);
        let old = self.inner.store.get(target.kind, &key).cloned();
        let old = old.ok_or_else(|| Refusal::not_found(kind, name))?;
        if !patch.is_object() {
            return Err(Refusal::bad_request("the patch is not an object"));
        }
        let mut object = old.value.clone();
        meta::merge(&mut object, patch);
        let object = self.read(target, object, strict).map_err(|refusal| match &kind.shape {
            // A patch that leaves an object that cannot be read is invalid, not malformed.
            Shape::BuiltIn(_) if refusal.code == 400 => {
                let cause = Cause::invalid("patch", refusal.message);
                Refusal::invalid(kind, name, &[cause])
            }
            Shape::BuiltIn(_) | Shape::Custom(_) => refusal,
        })?;
        if object["metadata"]["name"] != name {
            let message = "the name of the object does not match the name on the URL";
            return Err(Refusal::bad_request(message));
        }
        // A patch that says no version is applied to whatever is there.
        self.update(target, object, &old, Verb::Patch, true)
    }

    fn update(
        &mut self,
        target: &Target,
        mut object: Value,
        old: &Arc<Object>,
        verb: Verb,
        unconditional: bool,
    ) -> Result<Reply, Refusal> {
        let kinds = self.kinds;
        let kind = kinds.get(target.kind);
        let name = old.meta("name").to_owned();
        let given = object["metadata"]["uid"].as_str();
        // A PUT's uid is a precondition, a patch's a change, which is refused below.
        if verb == Verb::Update && given.is_some_and(|uid| uid != old.meta("uid")) {
            let why = format!(
                "Precondition failed: UID in precondition: {}, UID in object meta: {}",
                given.unwrap_or_default(),
                old.meta("uid")
            );
            return Err(Refusal::conflict(kind, &name, &why));
        }
        let version = object["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        match version {
            "" | "0" if unconditional => {}
            "" | "0" => {
                let cause = Cause::invalid(
                    "metadata.resourceVersion",
                    "0: must be specified for an update",
                );
                return Err(Refusal::invalid(kind, &name, &[cause]));
            }
            given if given == old.meta("resourceVersion") => {}
            given if given.parse::<u64>().is_err() => {
                return Err(Refusal::bad_request(format!(
                    "resourceVersion \"{given}\" is no number"
                )));
            }
            _ => return Err(Refusal::stale_write(kind, &name)),
        }
        if target.status {
            let status = object.get("status").cloned();
            object = old.value.clone();
            match status {
                Some(status) => object["status"] = status,
                None => remove(&mut object, "status"),
            }
        }
        let metadata = metadata_of(&mut object);
        for key in ["uid", "creationTimestamp", "generation", "resourceVersion"] {
            if key == "uid" && metadata.contains_key(key) {
                continue;
            }
            match old.value["metadata"].get(key) {
                Some(value) => metadata.insert(key.to_owned(), value.clone()),
                None => metadata.remove(key),
            };
        }
        if meta::is_deleting(&old.value) {
            for key in ["deletionTimestamp", "deletionGracePeriodSeconds"] {
                if let Some(value) = old.value["metadata"].get(key) {
                    metadata.insert(key.to_owned(), value.clone());
                }
            }
        }
        let mut causes = Vec::new();
        match &kind.shape {
            Shape::Custom(schema) => {
                if kind.status && !target.status {
                    match old.value.get("status") {
                        Some(status) => object["status"] = status.clone(),
                        None => remove(&mut object, "status"),
                    }
                    schema.default(&mut object);
                }
                let counted = !target.status && differs_beyond_metadata(&object, &old.value);
                if kind.generation && counted {
                    let generation = old.value["metadata"]["generation"].as_i64();
                    object["metadata"]["generation"] = json!(generation.unwrap_or_default() + 1);
                }
                if object != old.value {
                    causes.append(&mut schema.validate(&object, Some(&old.value)));
                }
            }
            Shape::BuiltIn(built_in) => {
                (built_in.prepare)(&mut object, Some(&old.value));
                causes.append(&mut (built_in.validate)(&object, Some(&old.value)));
            }
        }
        causes.append(&mut meta::validate_update(&object, &old.value));
        if !causes.is_empty() {
            return Err(Refusal::invalid(kind, &name, &causes));
        }
        let key = kind.key(target.namespace.as_deref(), &name);
        if meta::is_deleting(&object)
            && meta::finalizers(&object).next().is_none()
            && target.kind != kinds.namespaces
        {
            let bytes = Bytes::from(object.to_string());
            self.remove(target.kind, &key, verb);
            return Ok((200, bytes));
        }
        if object == old.value {
            return Ok(reply(old));
        }
        Ok(reply(&self.put(target.kind, &key, object, verb)))
    }

    fn delete(&mut self, target: &Target, name: &str, options: &Value) -> Result<Reply, Refusal> {
        let kinds = self.kinds;
        let kind = kinds.get(target.kind);
        let key = kind.key(target.namespace.as_deref(), name);
        let old = self.inner.store.get(target.kind, &key).cloned();
        let old = old.ok_or_else(|| Refusal::not_found(kind, name))?;
        if !options["dryRun"].as_array().is_none_or(Vec::is_empty) {
            return Err(Refusal::bad_request("dryRun is not served in process"));
        }
        if let Some(policy @ ("Foreground" | "Orphan")) = options["propagationPolicy"].as_str() {
            let message = format!("propagationPolicy {policy} is not served in process");
            return Err(Refusal::bad_request(message));
        }
        for key in ["uid", "resourceVersion"] {
            if let Some(wanted) = options["preconditions"][key].as_str()
                && wanted != old.meta(key)
            {
                let why = format!(
                    "Precondition failed: {key} in precondition: {wanted}, in object meta: {}",
                    old.meta(key)
                );
                return Err(Refusal::conflict(kind, name, &why));
            }
        }
        let is_namespace = target.kind == kinds.namespaces;
        if is_namespace && matches!(name, "default" | "kube-system" | "kube-public") {
            return Err(Refusal::forbidden(kind, name, "this namespace may not be deleted"));
        }
        if is_namespace || meta::finalizers(&old.value).next().is_some() {
            if meta::is_deleting(&old.value) {
                return Ok(reply(&old));
            }
            let mut object = old.value.clone();
            let metadata = metadata_of(&mut object);
            metadata.insert("deletionTimestamp".to_owned(), json!(self.stamp));
            if is_namespace {
                object["status"]["phase"] = json!("Terminating");
                self.inner.chores.push(Chore::EmptyNamespace(name.to_owned()));
            } else {
                metadata.insert("deletionGracePeriodSeconds".to_owned(), json!(0));
                if let Some(generation) = metadata.get("generation").and_then(Value::as_i64) {
                    metadata.insert("generation".to_owned(), json!(generation + 1));
                }
            }
            return Ok(reply(&self.put(target.kind, &key, object, Verb::Delete)));
        }
        self.remove(target.kind, &key, Verb::Delete);
        if let Shape::BuiltIn(built_in) = &kind.shape
            && built_in.returns_deleted
        {
            return Ok(reply(&old));
        }
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success",
            "details": {"name": name, "kind": kind.plural, "uid": old.meta("uid")},
        });
        if !kind.group.is_empty() {
            status["details"]["group"] = kind.group.clone().into();
        }
        Ok((200, Bytes::from(status.to_string())))
    }

    fn put(&mut self, kind: KindId, key: &str, value: Value, verb: Verb) -> Arc<Object> {
        let change = self.inner.store.put(kind, key, value, self.now);
        let object = change.after.clone();
        self.note(kind, verb, change);
        object.unwrap_or_else(|| Arc::new(Object::new(Value::Null, 0)))
    }

    fn remove(&mut self, kind: KindId, key: &str, verb: Verb) {
        let Some(change) = self.inner.store.remove(kind, key, self.now) else { return };
        if let Some(last) = &change.last {
            self.inner.chores.push(Chore::Orphans(last.meta("uid").to_owned()));
            let namespace = last.meta("namespace");
            let home = self.inner.store.get(self.kinds.namespaces, namespace);
            if home.is_some_and(|n| meta::is_deleting(&n.value)) {
                self.inner.chores.push(Chore::EmptyNamespace(namespace.to_owned()));
            }
        }
        self.note(kind, verb, change);
    }

    fn note(&mut self, kind: KindId, verb: Verb, change: Change) {
        let kind_name = &self.kinds.get(kind).kind;
        self.inner.notify(kind, &change);
        let key = (self.identity.to_string(), kind_name.clone());
        *self.inner.writes.entry(key).or_default() += 1;
        let shown = change.after.as_ref().or(change.last.as_ref());
        let meta = |key: &str| shown.map(|o| o.meta(key).to_owned()).unwrap_or_default();
        self.inner.pending.push(Arc::new(Write {
            identity: self.identity.clone(),
            verb,
            kind: kind_name.clone(),
            namespace: Some(meta("namespace")).filter(|n| !n.is_empty()),
            name: meta("name"),
            revision: change.revision,
            before: change.before,
            after: change.after,
        }));
    }

    /// Deletes the content of a namespace that goes, and the namespace once it is empty.
    pub fn empty_namespace(&mut self, name: &str) {
        let kinds = self.kinds;
        let home = self.inner.store.get(kinds.namespaces, name);
        if !home.is_some_and(|n| meta::is_deleting(&n.value)) {
            return;
        }
        for (id, _) in kinds.iter().filter(|(_, k)| k.namespaced) {
            let names: Vec<String> = self
                .inner
                .store
                .in_namespace(id, name)
                .map(|o| o.meta("name").to_owned())
                .collect();
            for object in names {
                self.delete_quietly(id, Some(name), &object);
            }
        }
        let empty = kinds
            .iter()
            .filter(|(_, k)| k.namespaced)
            .all(|(id, _)| self.inner.store.in_namespace(id, name).next().is_none());
        if empty {
            self.remove(kinds.namespaces, name, Verb::Delete);
        }
    }

    /// Deletes what has no other owner than the object of that uid, which is gone.
    pub fn delete_orphans(&mut self, uid: &str) {
        let kinds = self.kinds;
        for (id, _) in kinds.iter() {
            let orphans: Vec<(String, String)> = self
                .inner
                .store
                .objects(id)
                .values()
                .filter(|o| {
                    let owners = o.value["metadata"]["ownerReferences"].as_array();
                    owners.is_some_and(|l| !l.is_empty() && l.iter().all(|r| r["uid"] == uid))
                })
                .map(|o| (o.meta("namespace").to_owned(), o.meta("name").to_owned()))
                .collect();
            for (namespace, name) in orphans {
                self.delete_quietly(id, Some(namespace.as_str()).filter(|n| !n.is_empty()), &name);
            }
        }
    }

    fn delete_quietly(&mut self, kind: KindId, namespace: Option<&str>, name: &str) {
        let namespace = namespace.map(str::to_owned);
        let target = Target { kind, namespace, name: None, status: false };
        // Gone or deleting already: that is what is wanted.
        let _ = self.delete(&target, name, &Value::Null);
    }
}

impl Kind {
    fn allows_name(&self, name: &str) -> bool {
        match &self.shape {
            Shape::Custom(_) => super::format::is_subdomain(name),
            Shape::BuiltIn(built_in) => (built_in.name)(name),
        }
    }
}

fn parse(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body)
        .map_err(|e| Refusal::bad_request(format!("the body cannot be read: {e}")))
}

/// The metadata that [`meta::tidy`] or the store has put there.
fn metadata_of(object: &mut Value) -> &mut Map<String, Value> {
    map_in(&mut object["metadata"])
}

fn map_in(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    match value {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

fn remove(object: &mut Value, key: &str) {
    if let Some(map) = object.as_object_mut() {
        map.remove(key);
    }
}

/// Kubernetes' own types take null for absent.
fn map_null_out(object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.retain(|_, value| !value.is_null());
        map.values_mut().for_each(map_null_out);
    }
}

fn differs_beyond_metadata(a: &Value, b: &Value) -> bool {
    let rest = |v: &Value| -> Vec<(String, Value)> {
        let map = v.as_object().into_iter().flatten();
        map.filter(|(k, _)| *k != "metadata").map(|(k, v)| (k.clone(), v.clone())).collect()
    };
    rest(a) != rest(b)
}
