//! What the parts of one agent share.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use stockade_crds::names::host_namespace;
use stockade_crds::v1alpha1::{
    ConsoleReport, Domain, ExportReport, HostAgent, HostAgentSpec, MoveRequests, SelfFence,
    StorageReport,
};
use stockade_host::ports::{AgentPorts, Beat, MachineFacts};
use stockade_host::{HostError, HostResult};
use tokio::sync::Notify;

use crate::config::AgentConfig;
use crate::journal::Journal;
use crate::looks::Look;

/// Seconds that one request to the API may take.
pub(crate) const REQUEST_SECONDS: u64 = 4;

/// What the parts of one agent share.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) ports: AgentPorts,
    pub(crate) config: AgentConfig,
    pub(crate) namespace: String,
    pub(crate) host_uid: String,
    pub(crate) boot_id: String,
    pub(crate) journal: Journal,
    /// Facts as last read.
    pub(crate) facts: Mutex<MachineFacts>,
    /// HostAgent.spec as last seen.
    pub(crate) spec: Mutex<Option<Arc<HostAgentSpec>>>,
    /// It is another one than before, for what is exported.
    pub(crate) spec_changed: Notify,
    /// The same, for consoles.
    pub(crate) tickets_changed: Notify,
    /// Storages as last checked.
    pub(crate) storages: Mutex<BTreeMap<String, StorageReport>>,
    /// Exports as last applied.
    pub(crate) exports: Mutex<Vec<ExportReport>>,
    /// Tickets for consoles, as they stand.
    pub(crate) consoles: Mutex<Vec<ConsoleReport>>,
    /// The last look at each storage's beats.
    pub(crate) looks: Mutex<BTreeMap<String, Look>>,
    /// When a boot's beat was last seen to rise, by storage and boot id.
    pub(crate) risen: Mutex<BTreeMap<(String, String), u64>>,
    /// Since when the beats on a storage are read.
    pub(crate) watched: Mutex<BTreeMap<String, u64>>,
    /// Timings in force, if the watchdog is armed.
    pub(crate) armed: Mutex<Option<SelfFence>>,
    /// Measured use by VM uid.
    pub(crate) usage: Mutex<BTreeMap<String, (i64, i64)>>,
    /// What the authority for live moves is asked to sign.
    pub(crate) move_requests: Mutex<Option<MoveRequests>>,
    /// What it signed is in force.
    pub(crate) moves_ready: Mutex<bool>,
    /// And this of it.
    pub(crate) moves_serial: Mutex<i64>,
    /// When the last acknowledged renewal was sent.
    pub(crate) renewed: Mutex<u64>,
    /// Something changed that a round should look at.
    pub(crate) wake: Notify,
    /// The next heartbeat is to come at once.
    pub(crate) beat_now: Notify,
    /// The API answers again: what hangs is asked anew.
    pub(crate) api_back: Notify,
}

impl Context {
    pub(crate) fn new(
        client: Client,
        ports: AgentPorts,
        config: AgentConfig,
        facts: MachineFacts,
    ) -> Self {
        let renewed = Mutex::new(ports.clock.monotonic_millis());
        Self {
            namespace: host_namespace(&config.host),
            journal: Journal::new(ports.journal.clone(), config.guards.journal),
            host_uid: facts.host_uid.clone(),
            boot_id: facts.boot_id.clone(),
            facts: Mutex::new(facts),
            client,
            ports,
            config,
            spec: Mutex::default(),
            spec_changed: Notify::new(),
            tickets_changed: Notify::new(),
            storages: Mutex::default(),
            exports: Mutex::default(),
            consoles: Mutex::default(),
            looks: Mutex::default(),
            risen: Mutex::default(),
            watched: Mutex::default(),
            armed: Mutex::default(),
            usage: Mutex::default(),
            move_requests: Mutex::default(),
            moves_ready: Mutex::default(),
            moves_serial: Mutex::default(),
            renewed,
            wake: Notify::new(),
            beat_now: Notify::new(),
            api_back: Notify::new(),
        }
    }

    pub(crate) fn now(&self) -> u64 {
        self.ports.clock.monotonic_millis()
    }

    /// Remembers the beats on a storage as they were read, by a look that `began` at that moment,
    /// and has it told at once if other hosts' beats are missed now than before. How many
    /// milliseconds later it is to be looked at again: a beat is not missed before it is late.
    pub(crate) fn take_beats(
        &self,
        storage: &str,
        beats: BTreeMap<String, Beat>,
        began: u64,
    ) -> u64 {
        let now = self.now();
        let interval = self.interval();
        locked(&self.watched).entry(storage.to_owned()).or_insert(now);
        let mut looks = locked(&self.looks);
        let before = looks.remove(storage).unwrap_or_default();
        let mut risen = locked(&self.risen);
        // The first sight of a beat may be of one that was made long ago.
        let rose = |b: &&Beat| before.beats.get(&b.host_uid).is_some_and(|a| a.beat != **b);
        for beat in beats.values().filter(rose) {
            risen.insert((storage.to_owned(), beat.boot_id.clone()), now);
        }
        risen.retain(|(of, boot), _| of != storage || beats.values().any(|b| b.boot_id == *boot));
        let look = before.followed_by(beats, began, now);
        if look.missed(interval).ne(before.missed(interval)) {
            self.beat_now.notify_one();
        }
        let wait = look.next(interval, now);
        looks.insert(storage.to_owned(), look);
        wait
    }

    /// Whether a beat that was read just now has risen since the last reading, or lately; `None`:
    /// this agent has not read that storage's beats for long enough to tell.
    pub(crate) fn beats_still(&self, storage: &str, beat: &Beat) -> Option<bool> {
        // A little more than the time between two readings.
        let lately = self.interval() * 5 / 4;
        let age = |at: u64| self.now().saturating_sub(at);
        let watched = locked(&self.watched).get(storage).copied();
        let known = locked(&self.looks).get(storage)?.beats.get(&beat.host_uid).cloned();
        let rose = locked(&self.risen).get(&(storage.to_owned(), beat.boot_id.clone())).copied();
        let beats =
            known.is_none_or(|seen| seen.beat != *beat) || rose.is_some_and(|at| age(at) < lately);
        watched.filter(|since| beats || age(*since) >= lately).map(|_| beats)
    }

    pub(crate) fn domains(&self) -> Api<Domain> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    pub(crate) fn agents(&self) -> Api<HostAgent> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Copies of the secrets that this host needs.
    pub(crate) fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The cluster's id as owner records carry it: the joined cluster's, if one is known.
    pub(crate) fn cluster_id(&self) -> String {
        let spec = locked(&self.spec);
        let mut joined = spec.iter().flat_map(|s| &s.storages).map(|s| &s.cluster_id);
        joined.find(|id| !id.is_empty()).unwrap_or(&self.config.cluster_id).clone()
    }

    /// Milliseconds between two beats.
    pub(crate) fn interval(&self) -> u64 {
        let seconds = self.joined_spec().map_or(2, |s| s.heartbeat_seconds.max(1));
        u64::try_from(seconds).unwrap_or(2) * 1_000
    }

    /// The spec, if this machine is the one that claimed the host's name.
    pub(crate) fn joined_spec(&self) -> Option<Arc<HostAgentSpec>> {
        let spec = locked(&self.spec).clone()?;
        (spec.host_uid.is_empty() || spec.host_uid == self.host_uid).then_some(spec)
    }
}

/// Locks; a panic elsewhere leaves plain data behind, which is as good as before.
pub(crate) fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A port's operation within a time; longer has no known result.
pub(crate) async fn timed<T>(
    op: &'static str,
    target: &str,
    seconds: u64,
    call: impl Future<Output = HostResult<T>>,
) -> HostResult<T> {
    tokio::time::timeout(Duration::from_secs(seconds), call).await.unwrap_or_else(|_| {
        Err(HostError::unknown(op, target, format!("no answer within {seconds} s")))
    })
}

/// A request to the API within its time; the error is for a log or a message.
pub(crate) async fn request<T>(
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, String> {
    match tokio::time::timeout(Duration::from_secs(REQUEST_SECONDS), call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the API did not answer within {REQUEST_SECONDS} s")),
    }
}
