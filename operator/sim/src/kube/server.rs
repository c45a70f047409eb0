//! The tower service: latency and faults on the way, the store at its end.

use std::collections::BTreeMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kube::client::Body;
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, sleep};

use super::faults::{Fault, FaultState};
use super::kinds::{KindId, Kinds};
use super::refusal::Refusal;
use super::request::{Query, Target, Verb};
use super::store::{Change, Object, Store};
use super::verbs::{Reply, Session};
use crate::rng::Rng;

/// One leg of a request takes this long at least and at most.
const LEG: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(4));

/// An error below HTTP.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub(super) type ResponseBody = UnsyncBoxBody<Bytes, BoxError>;

/// One committed write.
#[derive(Debug, Clone)]
pub struct Write {
    /// Who wrote.
    pub identity: Arc<str>,
    /// How. A PUT or PATCH that takes the last finalizer of a deleted object removes it.
    pub verb: Verb,
    /// `VirtualMachine`.
    pub kind: String,
    /// The object's namespace.
    pub namespace: Option<String>,
    /// The object's name.
    pub name: String,
    /// The revision of the write.
    pub revision: u64,
    /// What was stored before; none if it was created.
    pub before: Option<Arc<Object>>,
    /// What is stored since; none if it is gone.
    pub after: Option<Arc<Object>>,
}

/// Work that a write leaves for later, as controllers of the cluster do it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Chore {
    /// Delete what lies in a namespace that goes.
    EmptyNamespace(String),
    /// Delete what that uid alone owned.
    Orphans(String),
}

/// How a watch ends before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// As if it had timed out.
    Clean,
    /// The connection is lost.
    Broken,
    /// In 410: what it had still to tell is forgotten.
    Expired,
}

/// An open watch.
#[derive(Debug)]
pub struct Watcher {
    pub identity: Arc<str>,
    pub kind: KindId,
    pub namespace: Option<String>,
    pub end: Option<End>,
    pub wake: Arc<Notify>,
}

type Observer = Box<dyn Fn(&Write) + Send>;

/// Everything behind the lock.
pub struct Inner {
    pub store: Store,
    pub ids: Rng,
    pub faults: FaultState,
    /// Committed writes by identity and kind.
    pub writes: BTreeMap<(String, String), u64>,
    /// Requests by identity.
    pub requests: BTreeMap<String, u64>,
    pub watchers: BTreeMap<u64, Watcher>,
    pub next_watcher: u64,
    /// Counts the times an identity's connections were cut.
    pub epochs: BTreeMap<Arc<str>, u64>,
    pub draws: BTreeMap<Arc<str>, Rng>,
    pub pending: Vec<Arc<Write>>,
    pub chores: Vec<Chore>,
    pub start: Instant,
}

impl Inner {
    /// Wakes the watches that may want to see `change`.
    pub fn notify(&self, kind: KindId, change: &Change) {
        for watcher in self.watchers.values().filter(|w| w.kind == kind) {
            let here = watcher.namespace.as_deref().is_none_or(|namespace| {
                change.key.split_once('/').is_some_and(|(n, _)| n == namespace)
            });
            if here {
                watcher.wake.notify_one();
            }
        }
    }

    /// Has every watch look at the world again.
    pub fn wake_all(&self) {
        self.watchers.values().for_each(|w| w.wake.notify_one());
    }

    /// Ends watches by identity.
    pub fn end_watches(&mut self, covers: impl Fn(&str) -> bool, end: End) {
        for watcher in self.watchers.values_mut().filter(|w| covers(&w.identity)) {
            watcher.end = Some(end);
            watcher.wake.notify_one();
        }
    }
}

/// The API's state.
pub struct Shared {
    pub kinds: Arc<Kinds>,
    pub seed: u64,
    inner: Mutex<Inner>,
    observers: Mutex<Vec<Observer>>,
    subscribers: Mutex<Vec<mpsc::UnboundedSender<Arc<Write>>>>,
}

impl Shared {
    pub fn new(kinds: Arc<Kinds>, seed: u64) -> Self {
        let inner = Inner {
            store: Store::new(kinds.iter().count()),
            ids: Rng::stream(seed, "api/ids"),
            faults: FaultState::default(),
            writes: BTreeMap::new(),
            requests: BTreeMap::new(),
            watchers: BTreeMap::new(),
            next_watcher: 0,
            epochs: BTreeMap::new(),
            draws: BTreeMap::new(),
            pending: Vec::new(),
            chores: Vec::new(),
            start: Instant::now(),
        };
        Self {
            kinds,
            seed,
            inner: Mutex::new(inner),
            observers: Mutex::default(),
            subscribers: Mutex::default(),
        }
    }

    pub fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn observe(&self, observer: Observer) {
        self.observers.lock().unwrap_or_else(PoisonError::into_inner).push(observer);
    }

    pub fn subscribe(&self) -> mpsc::UnboundedReceiver<Arc<Write>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).push(sender);
        receiver
    }

    /// Runs `work` at this instant as `identity`, then tells of what it wrote.
    pub fn session<T>(
        self: &Arc<Self>,
        identity: &Arc<str>,
        view_of: Option<KindId>,
        work: impl FnOnce(&mut Session) -> T,
    ) -> T {
        let now = Instant::now();
        let mut inner = self.lock();
        let stamp = super::timestamp(now - inner.start);
        let view = view_of.and_then(|kind| inner.view(identity, kind, now));
        let mut session = Session {
            kinds: &self.kinds,
            inner: &mut inner,
            identity: identity.clone(),
            now,
            stamp,
            view,
        };
        let result = work(&mut session);
        let writes = std::mem::take(&mut inner.pending);
        let chores = std::mem::take(&mut inner.chores);
        drop(inner);
        for write in writes {
            self.tell(&write);
        }
        for chore in chores {
            self.do_later(chore);
        }
        result
    }

    fn tell(&self, write: &Arc<Write>) {
        let observers = self.observers.lock().unwrap_or_else(PoisonError::into_inner);
        observers.iter().for_each(|observer| observer(write));
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.retain(|s| s.send(write.clone()).is_ok());
    }

    fn do_later(self: &Arc<Self>, chore: Chore) {
        let shared = self.clone();
        let work = move || {
            let identity: Arc<str> = Arc::from("cluster");
            shared.session(&identity, None, |session| match &chore {
                Chore::EmptyNamespace(name) => session.empty_namespace(name),
                Chore::Orphans(uid) => session.delete_orphans(uid),
            });
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                sleep(Duration::from_millis(20)).await;
                work();
            });
        } else {
            work();
        }
    }
}

/// One identity's way to the API.
#[derive(Clone)]
pub struct Endpoint {
    pub shared: Arc<Shared>,
    pub identity: Arc<str>,
}

/// What the way of one request is like.
struct Way {
    there: Duration,
    back: Duration,
    error: Option<Refusal>,
    lose_reply: bool,
    outlives_client: bool,
    epoch: u64,
}

impl Endpoint {
    fn way(&self) -> Way {
        let mut inner = self.shared.lock();
        let inner = &mut *inner;
        let (slow, errors, lost) = inner.faults.odds(&self.identity);
        let epoch = *inner.epochs.entry(self.identity.clone()).or_default();
        *inner.requests.entry(self.identity.to_string()).or_default() += 1;
        let seed = self.shared.seed;
        let draws = inner
            .draws
            .entry(self.identity.clone())
            .or_insert_with(|| Rng::stream(seed, &format!("api/{}", self.identity)));
        let mut there = draws.duration(LEG.0, LEG.1);
        let back = draws.duration(LEG.0, LEG.1);
        if let Some((low, high)) = slow {
            there += draws.duration(low, high);
        }
        let error = draws.chance(errors).then(|| {
            if draws.chance(0.5) {
                Refusal::new(500, "InternalError", "injected: etcdserver: request timed out")
            } else {
                Refusal::new(429, "TooManyRequests", "injected: too many requests")
            }
        });
        let lose_reply = draws.chance(lost);
        let outlives_client = draws.chance(0.25);
        Way { there, back, error, lose_reply, outlives_client, epoch }
    }

    /// Waits until packets to the API pass; an error if the connection is refused or has been cut.
    async fn pass(&self, epoch: u64) -> Result<(), BoxError> {
        self.pass_unless(epoch, &[Fault::BlackHole]).await
    }

    /// [`Self::pass`], for the way back.
    async fn pass_back(&self, epoch: u64) -> Result<(), BoxError> {
        self.pass_unless(epoch, &[Fault::BlackHole, Fault::Deaf]).await
    }

    async fn pass_unless(&self, epoch: u64, faults: &[Fault]) -> Result<(), BoxError> {
        loop {
            let wait = {
                let inner = self.shared.lock();
                let now = inner.epochs.get(&self.identity).copied().unwrap_or_default();
                if now != epoch || inner.faults.has(&self.identity, &Fault::Down) {
                    return Err(refused());
                }
                faults.iter().any(|fault| inner.faults.has(&self.identity, fault))
            };
            if !wait {
                return Ok(());
            }
            // Packets are sent again every so often until one passes.
            sleep(Duration::from_millis(200)).await;
        }
    }

    async fn serve(self, request: Request<Body>) -> Result<Response<ResponseBody>, BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let way = self.way();
        let read = Query::parse(&parts.uri).and_then(|query| {
            let target = Target::parse(&self.shared.kinds, &parts.uri)?;
            let verb = Verb::of(&parts.method, &target, query.watch)?;
            Ok((query, target, verb))
        });
        let accept = parts.headers.get(http::header::ACCEPT).and_then(|v| v.to_str().ok());
        let partial = accept.is_some_and(|a| a.contains("as="));
        let content = parts.headers.get(http::header::CONTENT_TYPE).and_then(|v| v.to_str().ok());
        let merge = content.is_some_and(|c| c.starts_with("application/merge-patch+json"));
        let (query, target, verb) = match read {
            Ok(_) if partial => {
                let refusal =
                    Refusal::new(406, "NotAcceptable", "metadata alone is not served in process");
                sleep(way.there + way.back).await;
                return Ok(respond((refusal.code, refusal.body())));
            }
            Ok(read) => read,
            Err(refusal) => {
                self.pass(way.epoch).await?;
                sleep(way.there + way.back).await;
                return Ok(respond((refusal.code, refusal.body())));
            }
        };
        if verb == Verb::Watch {
            return self.watch(way, target, query).await;
        }
        let journey = {
            let this = self.clone();
            async move {
                this.journey(way.there, way.epoch, way.error, verb, target, query, merge, body)
                    .await
            }
        };
        // A write on its way arrives whether or not its sender still waits for the answer:
        // once it has left, or, through a black hole, sometimes.
        let outlives = verb.writes() && (way.outlives_client || !self.in_black_hole());
        let reply = if outlives {
            tokio::spawn(journey).await.map_err(BoxError::from)??
        } else {
            journey.await?
        };
        sleep(way.back).await;
        self.pass_back(way.epoch).await?;
        if way.lose_reply { Err(refused()) } else { Ok(respond(reply)) }
    }

    fn in_black_hole(&self) -> bool {
        self.shared.lock().faults.has(&self.identity, &Fault::BlackHole)
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one request")]
    async fn journey(
        self,
        there: Duration,
        epoch: u64,
        error: Option<Refusal>,
        verb: Verb,
        target: Target,
        query: Query,
        merge: bool,
        body: Bytes,
    ) -> Result<Reply, BoxError> {
        sleep(there).await;
        self.pass(epoch).await?;
        if let Some(error) = error {
            return Ok((error.code, error.body()));
        }
        if verb == Verb::Create {
            let kind = &self.shared.kinds.get(target.kind).kind;
            if self.shared.lock().faults.barred.contains(kind) {
                let refusal = Refusal::new(503, "ServiceUnavailable", "injected: not ready yet");
                return Ok((refusal.code, refusal.body()));
            }
        }
        let served = self.shared.session(&self.identity, Some(target.kind), |session| {
            session.serve(verb, &target, &query, merge, &body)
        });
        Ok(served.unwrap_or_else(|refusal| (refusal.code, refusal.body())))
    }

    async fn watch(
        self,
        way: Way,
        target: Target,
        query: Query,
    ) -> Result<Response<ResponseBody>, BoxError> {
        sleep(way.there).await;
        self.pass(way.epoch).await?;
        if let Some(error) = way.error {
            sleep(way.back).await;
            return Ok(respond((error.code, error.body())));
        }
        let opened = super::watch::open(&self, &target, &query);
        sleep(way.back).await;
        match opened {
            Ok(body) => {
                let mut response = Response::new(body);
                json_content(&mut response);
                Ok(response)
            }
            Err(refusal) => Ok(respond((refusal.code, refusal.body()))),
        }
    }
}

pub(super) fn refused() -> BoxError {
    Box::new(std::io::Error::new(std::io::ErrorKind::ConnectionReset, "connection lost"))
}

fn json_content(response: &mut Response<ResponseBody>) {
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(http::header::CONTENT_TYPE, json);
}

fn respond((code, body): Reply) -> Response<ResponseBody> {
    let body = Full::new(body).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() =
        http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    json_content(&mut response);
    response
}

impl tower::Service<Request<Body>> for Endpoint {
    type Response = Response<ResponseBody>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().serve(request))
    }
}
