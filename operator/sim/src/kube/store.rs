//! What is stored, and its history.
//!
//! One revision counts all writes, as in etcd. Every object is serialised once, when it is
//! written; readers and watches share those bytes. A kind's history can be walked back, which
//! is how pages of an old list, lagging views and restored backups are made.

use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::time::Instant;

use super::kinds::KindId;

/// History younger than this is kept, however much it is.
const KEEP: Duration = Duration::from_secs(600);
/// So many changes of a kind are kept, however old they are.
const KEEP_CHANGES: usize = 1000;

/// A stored object: one version of it, never changed.
#[derive(Debug)]
pub struct Object {
    /// The whole object, resourceVersion included.
    pub value: Value,
    /// The revision that wrote it.
    pub revision: u64,
    /// [`Self::value`] as JSON.
    pub bytes: Bytes,
}

impl Object {
    /// `value` as written by `revision`.
    #[must_use]
    pub fn new(mut value: Value, revision: u64) -> Self {
        value["metadata"]["resourceVersion"] = Value::String(revision.to_string());
        let bytes = Bytes::from(value.to_string());
        Self { value, revision, bytes }
    }

    /// A string of the metadata; empty if absent.
    #[must_use]
    pub fn meta(&self, key: &str) -> &str {
        self.value["metadata"][key].as_str().unwrap_or_default()
    }
}

/// One change of one object.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its revision.
    pub revision: u64,
    /// When it was written.
    pub at: Instant,
    /// The object's key.
    pub key: Arc<str>,
    /// What was stored before.
    pub before: Option<Arc<Object>>,
    /// What is stored since.
    pub after: Option<Arc<Object>>,
    /// Of a deleted object: what it last was, at the revision of its deletion.
    pub last: Option<Arc<Object>>,
}

/// The objects of one kind by key.
pub type Objects = BTreeMap<Arc<str>, Arc<Object>>;

/// The objects of one kind and how they came to be.
#[derive(Debug, Default)]
pub struct Table {
    objects: Objects,
    log: VecDeque<Change>,
    /// Nobody may ask for what happened up to here.
    compacted: u64,
    /// What happened up to here is not remembered.
    forgotten: u64,
}

/// Everything stored, at one moment.
#[derive(Debug, Clone)]
pub struct Backup {
    revision: u64,
    tables: Vec<Objects>,
}

/// All tables and the revision that they share.
#[derive(Debug)]
pub struct Store {
    tables: Vec<Table>,
    revision: u64,
}

impl Store {
    /// An empty store for that many kinds.
    #[must_use]
    pub fn new(kinds: usize) -> Self {
        // 0 means "any" in requests, so nothing may be written by it.
        Self { tables: (0..kinds).map(|_| Table::default()).collect(), revision: 1 }
    }

    /// The revision of the last write.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The newest version of an object.
    #[must_use]
    pub fn get(&self, kind: KindId, key: &str) -> Option<&Arc<Object>> {
        self.tables[kind].objects.get(key)
    }

    /// All objects of a kind, newest versions.
    #[must_use]
    pub fn objects(&self, kind: KindId) -> &Objects {
        &self.tables[kind].objects
    }

    /// The objects of a kind in a namespace.
    pub fn in_namespace(
        &self,
        kind: KindId,
        namespace: &str,
    ) -> impl Iterator<Item = &Arc<Object>> {
        within(&self.tables[kind].objects, Some(namespace), None).map(|(_, object)| object)
    }

    /// Writes `value` under `key`, and says what changed.
    pub fn put(&mut self, kind: KindId, key: &str, value: Value, at: Instant) -> Change {
        self.revision += 1;
        let object = Arc::new(Object::new(value, self.revision));
        let table = &mut self.tables[kind];
        let key: Arc<str> =
            table.objects.get_key_value(key).map_or_else(|| Arc::from(key), |(k, _)| k.clone());
        let before = table.objects.insert(key.clone(), object.clone());
        let revision = self.revision;
        table.record(Change { revision, at, key, before, after: Some(object), last: None })
    }

    /// Removes what is stored under `key`, and says what changed; none if nothing is there.
    pub fn remove(&mut self, kind: KindId, key: &str, at: Instant) -> Option<Change> {
        let (key, before) = self.tables[kind].objects.remove_entry(key)?;
        self.revision += 1;
        let revision = self.revision;
        let last = Some(Arc::new(Object::new(before.value.clone(), revision)));
        let change = Change { revision, at, key, before: Some(before), after: None, last };
        Some(self.tables[kind].record(change))
    }

    /// The changes of a kind after `revision`, oldest first; none if that history is gone.
    #[must_use]
    pub fn changes_after(
        &self,
        kind: KindId,
        revision: u64,
    ) -> Option<impl Iterator<Item = &Change>> {
        let table = &self.tables[kind];
        (revision >= table.compacted).then(|| {
            let start = table.log.partition_point(|c| c.revision <= revision);
            table.log.range(start..)
        })
    }

    /// The revision up to which history can no longer be asked for.
    #[must_use]
    pub fn compacted(&self, kind: KindId) -> u64 {
        self.tables[kind].compacted
    }

    /// The newest revision of a kind that was written at `then` or before.
    #[must_use]
    pub fn revision_at(&self, kind: KindId, then: Instant) -> u64 {
        let table = &self.tables[kind];
        let known = table.log.partition_point(|c| c.at <= then);
        match known.checked_sub(1).and_then(|i| table.log.get(i)) {
            Some(change) => change.revision,
            // Before all that is remembered: just before the first change that is.
            None => table.log.front().map_or(self.revision, |c| c.revision - 1),
        }
    }

    /// The objects of a kind as they were at `revision`, as far as history reaches.
    #[must_use]
    pub fn objects_at(&self, kind: KindId, revision: u64) -> Objects {
        let table = &self.tables[kind];
        let mut objects = table.objects.clone();
        for change in table.log.iter().rev().take_while(|c| c.revision > revision) {
            match &change.before {
                Some(before) => objects.insert(change.key.clone(), before.clone()),
                None => objects.remove(&change.key),
            };
        }
        objects
    }

    /// Forgets all history up to now: watches and pages from before end in 410.
    pub fn compact(&mut self) {
        for table in &mut self.tables {
            // The changes stay for lagging views; nobody may ask for them.
            table.compacted = self.revision;
        }
    }

    /// What is stored now.
    #[must_use]
    pub fn backup(&self) -> Backup {
        let tables = self.tables.iter().map(|t| t.objects.clone()).collect();
        Backup { revision: self.revision, tables }
    }

    /// What was stored at `then`, as far as history reaches.
    #[must_use]
    pub fn backup_at(&self, then: Instant) -> Backup {
        let last = |table: &Table| {
            let known = table.log.partition_point(|c| c.at <= then);
            known
                .checked_sub(1)
                .and_then(|i| table.log.get(i))
                .map_or(table.forgotten, |c| c.revision)
        };
        let revision = self.tables.iter().map(last).max().unwrap_or_default();
        let tables = (0..self.tables.len()).map(|kind| self.objects_at(kind, revision)).collect();
        Backup { revision: revision.max(1), tables }
    }

    /// Goes back to `backup`, revision included: what was written since has never been.
    pub fn restore(&mut self, backup: &Backup) {
        self.revision = backup.revision;
        for (table, objects) in self.tables.iter_mut().zip(&backup.tables) {
            table.objects = objects.clone();
            table.log.clear();
            table.compacted = backup.revision;
            table.forgotten = backup.revision;
        }
    }
}

impl Table {
    fn record(&mut self, change: Change) -> Change {
        self.log.push_back(change.clone());
        while self.log.len() > KEEP_CHANGES
            && let Some(oldest) = self.log.front()
            && change.at.duration_since(oldest.at) > KEEP
        {
            self.compacted = self.compacted.max(oldest.revision);
            self.forgotten = oldest.revision;
            self.log.pop_front();
        }
        change
    }
}

/// The objects of a namespace (or all), in key order, after the key `after`.
pub fn within<'a>(
    objects: &'a Objects,
    namespace: Option<&str>,
    after: Option<&str>,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Arc<Object>)> {
    let prefix = namespace.map(|n| format!("{n}/")).unwrap_or_default();
    let start = match after {
        Some(key) if key >= prefix.as_str() => Bound::Excluded(key.to_owned()),
        _ => Bound::Included(prefix.clone()),
    };
    objects
        .range::<str, _>((start.as_ref().map(String::as_str), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(&prefix))
}
