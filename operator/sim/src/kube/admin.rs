//! The simulator's own access: at once, past latency and faults, told of every write.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;

use super::kinds::KindId;
use super::refusal::Refusal;
use super::request::{Query, Target, Verb};
use super::server::{Shared, Write};
use super::store::{Object, within};

/// Direct access. Kinds are named by kind, `VirtualMachine`, or `Event.events.k8s.io` where
/// the group matters.
#[derive(Clone)]
pub struct Admin {
    pub(super) shared: Arc<Shared>,
    pub(super) identity: Arc<str>,
}

impl Admin {
    /// The same access, its writes under another name.
    #[must_use]
    pub fn named(&self, identity: &str) -> Self {
        Self { shared: self.shared.clone(), identity: Arc::from(identity) }
    }

    fn kind(&self, kind: &str) -> Result<KindId, Refusal> {
        let (name, group) = kind.split_once('.').map_or((kind, None), |(k, g)| (k, Some(g)));
        self.shared.kinds.by_name(name, group).ok_or_else(Refusal::no_such_resource)
    }

    fn serve(&self, verb: Verb, target: &Target, body: &Value) -> Result<Value, Refusal> {
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let query = Query::default();
        let (_, bytes) = self
            .shared
            .session(&self.identity, None, |s| s.serve(verb, target, &query, true, &body))?;
        serde_json::from_slice(&bytes)
            .map_err(|e| Refusal::new(500, "InternalError", e.to_string()))
    }

    fn target(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: Option<&str>,
        status: bool,
    ) -> Result<Target, Refusal> {
        let kind = self.kind(kind)?;
        let namespaced = self.shared.kinds.get(kind).namespaced;
        let namespace = namespace.filter(|_| namespaced).map(str::to_owned);
        Ok(Target { kind, namespace, name: name.map(str::to_owned), status })
    }

    /// The stored object, or none.
    #[must_use]
    pub fn get(&self, kind: &str, namespace: Option<&str>, name: &str) -> Option<Arc<Object>> {
        let id = self.kind(kind).ok()?;
        let key = self.shared.kinds.get(id).key(namespace, name);
        self.shared.lock().store.get(id, &key).cloned()
    }

    /// [`Self::get`] as a typed object; none also if it cannot be read as one.
    #[must_use]
    pub fn get_as<K>(&self, namespace: Option<&str>, name: &str) -> Option<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        let kind = format!("{}.{}", K::kind(&()), K::group(&()));
        let object = self.get(&kind, namespace, name)?;
        serde_json::from_value(object.value.clone()).ok()
    }

    /// The stored objects of a kind, in key order; all namespaces if none is given.
    #[must_use]
    pub fn list(&self, kind: &str, namespace: Option<&str>) -> Vec<Arc<Object>> {
        let Ok(id) = self.kind(kind) else { return Vec::new() };
        let inner = self.shared.lock();
        within(inner.store.objects(id), namespace, None).map(|(_, o)| o.clone()).collect()
    }

    /// [`Self::list`] as typed objects; those that cannot be read as such are left out.
    #[must_use]
    pub fn list_as<K>(&self, namespace: Option<&str>) -> Vec<K>
    where
        K: kube::Resource<DynamicType = ()> + DeserializeOwned,
    {
        let kind = format!("{}.{}", K::kind(&()), K::group(&()));
        let objects = self.list(&kind, namespace);
        objects.iter().filter_map(|o| serde_json::from_value(o.value.clone()).ok()).collect()
    }

    /// Creates `object`, which names its kind and namespace itself.
    ///
    /// # Errors
    /// As the API refuses.
    pub fn create(&self, object: &impl Serialize) -> Result<Value, Refusal> {
        let object = to_value(object)?;
        let target = self.target_of(&object, false)?;
        self.serve(Verb::Create, &Target { name: None, ..target }, &object)
    }

    /// Creates `object`, or merges it into what is there, as `kubectl apply` would.
    ///
    /// # Errors
    /// As the API refuses.
    pub fn apply(&self, object: &impl Serialize) -> Result<Value, Refusal> {
        let object = to_value(object)?;
        let target = self.target_of(&object, false)?;
        match self.serve(Verb::Patch, &target, &object) {
            Err(refusal) if refusal.code == 404 => {
                self.serve(Verb::Create, &Target { name: None, ..target }, &object)
            }
            done => done,
        }
    }

    /// Writes the status of `object` (the rest of it is not looked at).
    ///
    /// # Errors
    /// As the API refuses.
    pub fn set_status(&self, object: &impl Serialize) -> Result<Value, Refusal> {
        let object = to_value(object)?;
        let target = self.target_of(&object, true)?;
        let patch = serde_json::json!({"status": object["status"]});
        self.serve(Verb::Patch, &target, &patch)
    }

    /// Applies a merge patch to an object, or to its status.
    ///
    /// # Errors
    /// As the API refuses.
    pub fn apply_merge(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
        patch: &Value,
        status: bool,
    ) -> Result<Value, Refusal> {
        self.serve(Verb::Patch, &self.target(kind, namespace, Some(name), status)?, patch)
    }

    /// Deletes an object, as a user would: finalizers hold it.
    ///
    /// # Errors
    /// As the API refuses.
    pub fn delete(
        &self,
        kind: &str,
        namespace: Option<&str>,
        name: &str,
    ) -> Result<Value, Refusal> {
        let target = self.target(kind, namespace, Some(name), false)?;
        self.serve(Verb::Delete, &target, &Value::Null)
    }

    fn target_of(&self, object: &Value, status: bool) -> Result<Target, Refusal> {
        let kind = self.shared.kinds.of(object).ok_or_else(Refusal::no_such_resource)?;
        let metadata = &object["metadata"];
        let text = |key: &str| metadata[key].as_str().filter(|s| !s.is_empty()).map(str::to_owned);
        let namespaced = self.shared.kinds.get(kind).namespaced;
        let namespace =
            namespaced.then(|| text("namespace").unwrap_or_else(|| "default".to_owned()));
        Ok(Target { kind, namespace, name: text("name"), status })
    }

    /// A channel that gets every write committed from now on.
    #[must_use]
    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Arc<Write>> {
        self.shared.subscribe()
    }

    /// Has `observer` called with every write committed from now on, at that instant. It may
    /// read through an [`Admin`], but not write.
    pub fn on_write(&self, observer: impl Fn(&Write) + Send + 'static) {
        self.shared.observe(Box::new(observer));
    }

    /// Committed writes by identity and kind.
    #[must_use]
    pub fn writes(&self) -> BTreeMap<(String, String), u64> {
        self.shared.lock().writes.clone()
    }

    /// Committed writes of all identities that `covers` holds for, Leases left out.
    pub fn writes_without_leases(&self, covers: impl Fn(&str) -> bool) -> u64 {
        let inner = self.shared.lock();
        let counted = inner.writes.iter().filter(|((who, kind), _)| covers(who) && kind != "Lease");
        counted.map(|(_, n)| n).sum()
    }

    /// Requests by identity, refused ones included.
    #[must_use]
    pub fn requests(&self) -> BTreeMap<String, u64> {
        self.shared.lock().requests.clone()
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.shared.lock().store.revision()
    }
}

fn to_value(object: &impl Serialize) -> Result<Value, Refusal> {
    serde_json::to_value(object).map_err(|e| Refusal::bad_request(e.to_string()))
}
