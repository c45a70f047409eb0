//! WATCH: the changes of a collection as lines of JSON.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, sleep_until};

use super::faults::Fault;
use super::kinds::KindId;
use super::refusal::Refusal;
use super::request::{Query, Target};
use super::selector::Filter;
use super::server::{BoxError, End, Endpoint, Inner, ResponseBody, Shared, Watcher, refused};
use super::store::{Object, within};

/// A watch without `timeoutSeconds` ends after this.
const TIMEOUT: Duration = Duration::from_secs(1800);
/// Bookmarks come about this often, and one so long before the end.
const BOOKMARK: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(2));

/// Opens a watch of `target`.
pub fn open(endpoint: &Endpoint, target: &Target, query: &Query) -> Result<ResponseBody, Refusal> {
    let shared = &endpoint.shared;
    let kind = shared.kinds.get(target.kind);
    let filter = Filter::parse(
        kind,
        target.namespace.as_deref(),
        query.labels.as_deref(),
        query.fields.as_deref(),
    )?;
    let now = Instant::now();
    let wake = Arc::new(Notify::new());
    let mut inner = shared.lock();
    let mut first = Vec::new();
    let cursor = match query.version {
        Some(revision) if revision > 0 => revision,
        any => {
            // No version: what is there now comes first.
            let view = any.and_then(|_| inner.view(&endpoint.identity, target.kind, now));
            let revision = view.unwrap_or_else(|| inner.store.revision());
            let objects = inner.store.objects_at(target.kind, revision);
            for (_, object) in within(&objects, target.namespace.as_deref(), None) {
                if filter.matches(&object.value) {
                    line(&mut first, "ADDED", &object.bytes);
                }
            }
            revision
        }
    };
    let id = inner.next_watcher;
    inner.next_watcher += 1;
    inner.watchers.insert(
        id,
        Watcher {
            identity: endpoint.identity.clone(),
            kind: target.kind,
            namespace: target.namespace.clone(),
            end: None,
            wake: wake.clone(),
        },
    );
    drop(inner);
    let timeout = query.timeout.filter(|&s| s > 0).map_or(TIMEOUT, Duration::from_secs);
    let watch = Watch {
        shared: shared.clone(),
        identity: endpoint.identity.clone(),
        id,
        kind: target.kind,
        filter,
        cursor,
        first,
        wake,
        deadline: now + timeout,
        bookmark: if query.bookmarks { next_bookmark(now, now + timeout) } else { None },
        over: false,
    };
    let frames = stream::unfold(watch, |mut watch| async move {
        let chunk = watch.next().await?;
        Some((chunk.map(|bytes| Frame::data(Bytes::from(bytes))), watch))
    });
    Ok(StreamBody::new(frames).boxed_unsync())
}

/// When the next bookmark is due, if one is before the end.
fn next_bookmark(now: Instant, deadline: Instant) -> Option<Instant> {
    let due = (now + BOOKMARK.0).min(deadline.checked_sub(BOOKMARK.1)?);
    (due > now).then_some(due)
}

struct Watch {
    shared: Arc<Shared>,
    identity: Arc<str>,
    id: u64,
    kind: KindId,
    filter: Filter,
    cursor: u64,
    first: Vec<u8>,
    wake: Arc<Notify>,
    deadline: Instant,
    bookmark: Option<Instant>,
    over: bool,
}

enum Step {
    Lines(Vec<u8>),
    Wait(Instant),
    Over(End),
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.shared.lock().watchers.remove(&self.id);
    }
}

impl Watch {
    async fn next(&mut self) -> Option<Result<Vec<u8>, BoxError>> {
        if self.over {
            return None;
        }
        if !self.first.is_empty() {
            return Some(Ok(std::mem::take(&mut self.first)));
        }
        loop {
            let step = self.step();
            match step {
                Step::Lines(lines) => {
                    let delay = Duration::from_micros(500 + self.id % 7 * 100);
                    sleep(delay).await;
                    return Some(Ok(lines));
                }
                Step::Over(End::Clean) => return None,
                Step::Over(End::Broken) => {
                    self.over = true;
                    return Some(Err(refused()));
                }
                Step::Over(End::Expired) => {
                    self.over = true;
                    return Some(Ok(self.expired()));
                }
                Step::Wait(until) => {
                    let wake = self.wake.clone();
                    tokio::select! {
                        biased;
                        () = wake.notified() => {}
                        () = sleep_until(until) => {}
                    }
                }
            }
        }
    }

    fn step(&mut self) -> Step {
        let shared = self.shared.clone();
        let inner = shared.lock();
        let now = Instant::now();
        if let Some(end) = inner.watchers.get(&self.id).and_then(|w| w.end) {
            return Step::Over(end);
        }
        if [Fault::BlackHole, Fault::Deaf].iter().any(|f| inner.faults.has(&self.identity, f)) {
            // Silent, without an end that the client could see; healing wakes it.
            return Step::Wait(now + Duration::from_secs(3600));
        }
        let lag = inner.faults.lag(&self.identity);
        match self.collect(&inner, lag.map(|lag| (lag, now))) {
            None => return Step::Over(End::Expired),
            Some(lines) if !lines.is_empty() => return Step::Lines(lines),
            Some(_) => {}
        }
        if now >= self.deadline {
            return Step::Over(End::Clean);
        }
        if let Some(due) = self.bookmark
            && now >= due
        {
            self.bookmark = next_bookmark(now, self.deadline);
            if self.cursor >= inner.store.revision() || lag.is_none() {
                return Step::Lines(self.bookmark_line());
            }
        }
        let next = self.bookmark.map_or(self.deadline, |b| b.min(self.deadline));
        Step::Wait(match lag {
            Some(_) => next.min(now + Duration::from_millis(100)),
            None => next,
        })
    }

    /// The line that ends a watch whose history is gone.
    fn expired(&self) -> Vec<u8> {
        let oldest = self.shared.lock().store.compacted(self.kind);
        let why = format!("too old resource version: {} ({oldest})", self.cursor);
        let mut lines = Vec::new();
        line(&mut lines, "ERROR", &Refusal::expired(why).body());
        lines
    }

    /// What is to be told since the last time; none if that history is gone.
    fn collect(&mut self, inner: &Inner, lag: Option<(Duration, Instant)>) -> Option<Vec<u8>> {
        let mut lines = Vec::new();
        for change in inner.store.changes_after(self.kind, self.cursor)? {
            if lag.is_some_and(|(lag, now)| change.at + lag > now) {
                return Some(lines);
            }
            self.cursor = change.revision;
            let seen = |o: &Option<Arc<Object>>| {
                o.as_ref().filter(|o| self.filter.matches(&o.value)).cloned()
            };
            match (seen(&change.before), seen(&change.after)) {
                (None, None) => {}
                (None, Some(after)) => line(&mut lines, "ADDED", &after.bytes),
                (Some(_), Some(after)) => line(&mut lines, "MODIFIED", &after.bytes),
                (Some(before), None) => match &change.last {
                    Some(last) => line(&mut lines, "DELETED", &last.bytes),
                    // It left the selection: what it was, at the revision of leaving.
                    None => {
                        let left = Object::new(before.value.clone(), change.revision);
                        line(&mut lines, "DELETED", &left.bytes);
                    }
                },
            }
        }
        // All changes up to now are known to be none of ours.
        if lag.is_none() {
            self.cursor = self.cursor.max(inner.store.revision());
        }
        Some(lines)
    }

    fn bookmark_line(&self) -> Vec<u8> {
        let kind = self.shared.kinds.get(self.kind);
        let object = serde_json::json!({
            "apiVersion": kind.api_version(), "kind": kind.kind,
            "metadata": {"resourceVersion": self.cursor.to_string()},
        });
        let mut lines = Vec::new();
        line(&mut lines, "BOOKMARK", object.to_string().as_bytes());
        lines
    }
}

fn line(lines: &mut Vec<u8>, event: &str, object: &[u8]) {
    lines.extend_from_slice(b"{\"type\":\"");
    lines.extend_from_slice(event.as_bytes());
    lines.extend_from_slice(b"\",\"object\":");
    lines.extend_from_slice(object);
    lines.extend_from_slice(b"}\n");
}
