//! The loop: observe, decide, act, report. Nothing in it waits for a VM or the API.

mod host_status;

use std::collections::{BTreeMap, BTreeSet};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{Stream, StreamExt};
use kube::runtime::utils::Backoff;
use kube::runtime::{WatchStreamExt, watcher};
use stockade_core::agent::decide::STORAGE_LOST;
use stockade_core::agent::moves::{
    Copy, CopyEnd, Job, Silence, must_have_come, source_order, target_order,
};
use stockade_core::agent::observed::{Busy, Order, VmMemory};
use stockade_core::agent::types::{LiveDomain, LiveState};
use stockade_core::agent::{HostAction, Observed, decide, self_fence, status_of};
use stockade_crds::v1alpha1::{
    ApiLoss, Domain, DomainState, End, HostAgent, HostAgentSpec, HostAgentStatus, InventoryItem,
    Want,
};
use stockade_host::ports::HypervisorEvent;
use tokio::task::JoinSet;

use crate::act::{Done, act, copy};
use crate::context::{Context, locked, timed};
use crate::observe::{Inspected, LockLook, Look, Seen, inspect, look};
use crate::report::{Report, Reported, report};
use crate::shutdown;

/// News that come together make one round, in milliseconds.
const COALESCE: u64 = 20;
/// A round is made at least so often, in milliseconds.
const TICK: u64 = 1_000;
/// A look at the host that takes longer is told, in milliseconds.
const SLOW_LOOK: u64 = 1_000;
/// Pause after an action that failed, in milliseconds.
const RETRY: u64 = 2_000;
/// Between two looks at addresses, use and locks, in milliseconds.
const INSPECT: u64 = 10_000;

/// A host that goes down stops its VMs by itself once nobody has been reached for so long, in
/// milliseconds.
const ALONE: u64 = 15_000;
/// A host that has released everything waits so long for an API to tell it to, in milliseconds.
const UNHEARD: u64 = 60_000;

type Watch<K> = Pin<Box<dyn Stream<Item = watcher::Result<watcher::Event<K>>> + Send>>;

/// A pause of one second after each error of a watch.
struct Fixed;

impl Iterator for Fixed {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

impl Backoff for Fixed {
    fn reset(&mut self) {}
}

/// What a task of the loop came back with.
enum News {
    Seen(Box<Seen>),
    Done(Box<Done>),
    Reported(Box<Reported>),
    Inspected(Inspected),
    Armed(Option<String>),
    /// A move away is over: VM, its identity, what it came to.
    Copied(String, String, CopyEnd),
}

/// An order with the version up to which its status is ours.
struct Known {
    order: Order,
    acknowledged: u64,
}

struct Loop {
    context: Arc<Context>,
    tasks: JoinSet<News>,
    orders: Option<BTreeMap<String, Known>>,
    listing: BTreeMap<String, Known>,
    host_status: Option<HostAgentStatus>,
    /// What was written since may stand in its place: its answer never came.
    host_status_unsure: bool,
    memory: BTreeMap<String, VmMemory>,
    /// When the last action of a VM ended: an older look does not count for it.
    acted: BTreeMap<String, u64>,
    killed: BTreeMap<String, u64>,
    live: Option<BTreeMap<String, LiveDomain>>,
    inventory: Vec<InventoryItem>,
    looking: bool,
    look_again: bool,
    reporting: bool,
    report_after: u64,
    inspecting: bool,
    inspected_at: u64,
    arming: bool,
    /// Why the last try failed.
    arming_trouble: Option<String>,
    /// The storages whose beats feed, by this agent's last order.
    armed_storages: Option<Vec<String>>,
    hook: bool,
    probed_at: Option<u64>,
    lock: Option<LockLook>,
    started: u64,
    lock_at: Option<u64>,
    facts_at: u64,
    allowed_down: bool,
    /// Since when the init system is held back.
    going_down_since: Option<u64>,
    /// Since when each storage was not ready.
    unready_since: BTreeMap<String, u64>,
    /// Since when the lockspace was away outside maintenance.
    unlocked_since: Option<u64>,
}

/// Runs the loop, for ever.
pub(crate) async fn run(context: Arc<Context>) {
    let mut events = context.ports.hypervisor.events();
    let mut domains = watch_domains(&context);
    let mut agents = watch_agents(&context);
    let now = context.now();
    let mut this = Loop {
        context: Arc::clone(&context),
        tasks: JoinSet::new(),
        orders: None,
        listing: BTreeMap::new(),
        host_status: None,
        host_status_unsure: false,
        memory: BTreeMap::new(),
        acted: BTreeMap::new(),
        killed: BTreeMap::new(),
        live: None,
        inventory: Vec::new(),
        looking: false,
        look_again: true,
        reporting: false,
        report_after: 0,
        inspecting: false,
        inspected_at: now,
        arming: false,
        arming_trouble: None,
        armed_storages: None,
        hook: false,
        probed_at: None,
        lock: None,
        started: now,
        lock_at: None,
        facts_at: now,
        allowed_down: false,
        going_down_since: None,
        unready_since: BTreeMap::new(),
        unlocked_since: None,
    };
    context.journal.load().await;
    let mut due = tokio::time::Instant::now();
    loop {
        let soon = tokio::time::Instant::now() + Duration::from_millis(COALESCE);
        tokio::select! {
            biased;
            Some(news) = this.tasks.join_next() => {
                // What was seen has been acted on; everything else may have changed the host.
                if !matches!(news, Ok(News::Seen(_))) {
                    due = due.min(soon);
                }
                if let Ok(news) = news {
                    this.take(news);
                }
            }
            event = events.recv() => match event {
                Some(event) => {
                    this.event(event);
                    due = due.min(soon);
                }
                None => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    events = context.ports.hypervisor.events();
                }
            },
            Some(event) = domains.next() => {
                this.domain_event(event);
                due = due.min(soon);
            }
            Some(event) = agents.next() => {
                this.agent_event(event);
                due = due.min(soon);
            }
            () = context.api_back.notified() => {
                // What hung while the API was away may hang on: ask anew.
                domains = watch_domains(&context);
                agents = watch_agents(&context);
            }
            () = context.wake.notified() => due = due.min(soon),
            () = context.ports.machine.going_down_changed() => {
                due = due.min(soon);
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            () = tokio::time::sleep_until(due) => {
                due = tokio::time::Instant::now() + Duration::from_millis(TICK);
                this.look_again = true;
            }
        }
        if this.look_again && !this.looking {
            this.begin_look();
        }
    }
}

fn watch_domains(context: &Context) -> Watch<Domain> {
    let config = watcher::Config::default().timeout(30);
    Box::pin(watcher(context.domains(), config).backoff(Fixed))
}

fn watch_agents(context: &Context) -> Watch<HostAgent> {
    let config = watcher::Config::default().timeout(30);
    Box::pin(watcher(context.agents(), config).backoff(Fixed))
}

impl Loop {
    fn take(&mut self, news: News) {
        match news {
            News::Seen(seen) => self.seen(*seen),
            News::Done(done) => self.done(*done),
            News::Reported(reported) => self.reported(*reported),
            News::Inspected(inspected) => {
                self.inspecting = false;
                for (uid, addresses) in inspected.addresses {
                    self.memory.entry(uid).or_default().addresses = Some(addresses);
                }
                for (uid, lock) in inspected.locks {
                    self.memory.entry(uid).or_default().lock = Some(lock);
                }
            }
            News::Armed(trouble) => {
                self.arming = false;
                if trouble.is_some() {
                    self.armed_storages = None;
                }
                self.arming_trouble = trouble;
            }
            News::Copied(uid, id, end) => {
                tracing::info!(vm = uid, ?end, "the copy is over");
                self.look_again = true;
                self.acted.insert(uid.clone(), self.context.now());
                let memory = self.memory.entry(uid).or_default();
                memory.copy = Some(Copy { id, end: Some(end) });
            }
        }
    }

    fn event(&mut self, event: HypervisorEvent) {
        self.look_again = true;
        match event {
            HypervisorEvent::Domain { uuid, stopped: Some(reason) } => {
                self.memory.entry(uuid).or_default().stopped = Some(reason);
            }
            HypervisorEvent::Domain { .. } => {}
            // A daemon that was started anew reads its hooks anew.
            HypervisorEvent::Connection { .. } => {
                self.hook = false;
                self.probed_at = None;
            }
        }
    }

    fn domain_event(&mut self, event: watcher::Result<watcher::Event<Domain>>) {
        self.look_again = true;
        match event {
            Ok(watcher::Event::Init) => self.listing.clear(),
            Ok(watcher::Event::InitApply(domain)) => {
                self.context.journal.note(&domain);
                let (uid, known) = known(domain);
                self.listing.insert(uid, known);
            }
            Ok(watcher::Event::InitDone) => self.orders = Some(std::mem::take(&mut self.listing)),
            Ok(watcher::Event::Apply(domain)) => {
                self.context.journal.note(&domain);
                let (uid, mut new) = known(domain);
                let orders = self.orders.get_or_insert_default();
                if let Some(old) = orders.get(&uid)
                    && old.order.object_uid == new.order.object_uid
                    && new.acknowledged < old.acknowledged
                {
                    // Older than our own last word about it.
                    new.order.status.clone_from(&old.order.status);
                    new.acknowledged = old.acknowledged;
                }
                orders.insert(uid, new);
            }
            Ok(watcher::Event::Delete(domain)) => {
                let (uid, _) = known(domain);
                if let Some(orders) = &mut self.orders {
                    orders.remove(&uid);
                }
            }
            Err(error) => tracing::warn!(%error, "the watch of the orders failed"),
        }
    }

    fn agent_event(&mut self, event: watcher::Result<watcher::Event<HostAgent>>) {
        self.look_again = true;
        match event {
            Ok(watcher::Event::InitApply(agent) | watcher::Event::Apply(agent)) => {
                if self.host_status.is_none() {
                    self.host_status = Some(agent.status.unwrap_or_default());
                }
                *locked(&self.context.spec) = Some(Arc::new(agent.spec));
                self.context.spec_changed.notify_one();
                self.context.tickets_changed.notify_one();
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the watch of the HostAgent failed"),
        }
    }

    fn begin_look(&mut self) {
        let now = self.context.now();
        self.looking = true;
        self.look_again = false;
        let journal = self.context.journal.state().unwrap_or_default();
        let mut request = Look { began: now, ..Look::default() };
        for (uid, vm) in &journal.vms {
            if vm.launched && !vm.released {
                request.epochs.insert(uid.clone(), (vm.epoch, vm.name.clone()));
            }
            let order = self.orders.as_ref().and_then(|o| o.get(uid));
            let source = order.and_then(|known| source_order(&known.order.spec));
            if source.is_some_and(|m| vm.moving.as_ref() == Some(&m.id)) && vm.end.is_none() {
                request.moving.push(uid.clone());
            }
            let comes = |memory: &VmMemory| memory.came.is_some() && memory.arrival.is_none();
            if order.is_some_and(|known| known.order.spec.epoch == vm.epoch)
                && self.memory.get(uid).is_some_and(comes)
            {
                request.arriving.push(uid.clone());
            }
            if order.is_some_and(|known| must_have_come(&known.order.spec)) {
                request.came_in.insert(uid.clone(), vm.epoch);
            }
        }
        if !self.hook && self.probed_at.is_none_or(|at| now.saturating_sub(at) >= 2_000) {
            request.probe = true;
            self.probed_at = Some(now);
        }
        if let Some(spec) = self.context.joined_spec() {
            let every = if self.lock_works(&spec) { 10_000 } else { 2_000 };
            if self.lock_at.is_none_or(|at| now.saturating_sub(at) >= every) {
                request.lock = Some(spec.lock.clone());
                self.lock_at = Some(now);
            }
        }
        if now.saturating_sub(self.facts_at) >= 30_000 {
            request.facts = true;
            self.facts_at = now;
        }
        let context = Arc::clone(&self.context);
        self.tasks.spawn(async move {
            context.journal.load().await;
            News::Seen(Box::new(look(context, request).await))
        });
    }

    /// Whether the lock manager that is wanted now works.
    fn lock_works(&self, spec: &HostAgentSpec) -> bool {
        LockLook::works(self.lock.as_ref(), spec.lock.as_ref())
    }

    fn seen(&mut self, mut seen: Seen) {
        let now = self.context.now();
        let took = now.saturating_sub(seen.began);
        if took >= SLOW_LOOK {
            tracing::warn!(milliseconds = took, "the host was slow to answer");
        }
        self.looking = false;
        if let Some(hook) = seen.hook {
            self.hook = hook;
        }
        if let Some(lock) = seen.lock.take() {
            self.lock = Some(lock);
        }
        self.remember(&seen, now);
        self.live.clone_from(&seen.live);
        if self.context.ports.machine.going_down().is_some() {
            self.going_down_since.get_or_insert(now);
        } else {
            self.going_down_since = None;
            self.allowed_down = false;
        }
        let Some(spec) = self.context.joined_spec() else {
            // Nobody has ever ordered anything here.
            if self.going_down_since.is_some() && !self.allowed_down {
                self.allowed_down = true;
                self.context.ports.machine.allow_down();
            }
            return;
        };
        self.note_storages(&spec, now);
        let observed = self.observed(&spec, now);
        if observed.orders.is_some() {
            self.begin_actions(&observed, seen.began, now);
        }
        let observed = Observed { memory: self.memory.clone(), ..observed };
        self.host_tasks(&spec);
        self.begin_inspection(&observed, now);
        self.begin_report(&observed, &spec, now);
        self.go_down(&observed, &spec, now);
    }

    fn note_storages(&mut self, spec: &HostAgentSpec, now: u64) {
        let storages = locked(&self.context.storages).clone();
        self.unready_since.retain(|name, _| storages.get(name).is_some_and(|s| !s.ready));
        for report in storages.values().filter(|s| !s.ready) {
            self.unready_since.entry(report.name.clone()).or_insert(now);
        }
        // In maintenance the lock server may be away for as long as it likes.
        let space = spec.lock.as_ref().filter(|lock| !lock.maintenance);
        let away = space.is_some_and(|lock| self.unready_since.contains_key(&lock.storage));
        self.unlocked_since = if away { self.unlocked_since.or(Some(now)) } else { None };
    }

    /// For how long the init system was held back.
    fn held_back(&self, now: u64) -> Option<u64> {
        self.going_down_since.map(|since| now.saturating_sub(since))
    }

    /// Whether this boot's end was reported: then nothing starts in it any more, even if the
    /// shutdown is called off.
    fn said_down(&self) -> bool {
        self.host_status.as_ref().is_some_and(|s| s.down && s.boot_id == self.context.boot_id)
    }

    fn remember(&mut self, seen: &Seen, now: u64) {
        for (uid, presence) in &seen.presence {
            self.memory.entry(uid.clone()).or_default().presence = *presence;
        }
        for (uid, reason) in &seen.reasons {
            let memory = self.memory.entry(uid.clone()).or_default();
            // Until a process of this epoch is there, the log tells of an earlier one's end.
            let to_come = self.context.journal.vm(uid).is_some_and(|vm| vm.incoming);
            if !to_come && memory.busy.is_none() {
                memory.stopped.get_or_insert(*reason);
            }
        }
        for (uid, job) in &seen.jobs {
            let memory = self.memory.entry(uid.clone()).or_default();
            memory.job = Some(Job::read(memory.job, *job, now));
            memory.silent = None;
        }
        for uid in &seen.silent {
            let state = seen.live.as_ref().map(|live| live.get(uid).map(|d| d.state));
            let memory = self.memory.entry(uid.clone()).or_default();
            memory.silent = Silence::after(memory.silent, state, now);
        }
        for (uid, arrival) in &seen.arrivals {
            let memory = self.memory.entry(uid.clone()).or_default();
            let mut arrival = *arrival;
            // libvirt's count ends with its call; what was left paused waited on for the swap.
            if let (Some(since), true) = (memory.whole_since, arrival.downtime_milliseconds > 0) {
                let waited = i64::try_from(now.saturating_sub(since)).unwrap_or(i64::MAX);
                arrival.downtime_milliseconds =
                    arrival.downtime_milliseconds.saturating_add(waited);
            }
            memory.arrival.get_or_insert(arrival);
        }
        for (uid, known) in self.orders.iter().flatten() {
            let memory = self.memory.entry(uid.clone()).or_default();
            if memory.first_seen.0 != known.order.spec.epoch {
                // A new attempt: what was known of the last one is history.
                *memory = VmMemory {
                    first_seen: (known.order.spec.epoch, now),
                    busy: memory.busy,
                    presence: memory.presence,
                    stopped: memory.stopped,
                    missing_since: memory.missing_since,
                    ..VmMemory::default()
                };
            }
            if let Some(comes) = target_order(&known.order.spec) {
                memory.came.get_or_insert_with(|| comes.id.clone());
            }
            let epoch = memory.first_seen.0;
            memory.came_in |= seen.came_in.get(uid) == Some(&epoch);
        }
        if let Some(live) = &seen.live {
            for (uid, memory) in &mut self.memory {
                match live.get(uid) {
                    Some(domain) => {
                        memory.missing_since = None;
                        memory.came_in |= domain.epoch == memory.first_seen.0;
                        if domain.state == LiveState::Switched {
                            memory.whole_since.get_or_insert(now);
                        }
                    }
                    None => {
                        memory.missing_since.get_or_insert(now);
                    }
                }
            }
        }
    }

    fn observed(&self, spec: &HostAgentSpec, now: u64) -> Observed {
        let context = &self.context;
        let armed = locked(&context.armed).is_some();
        let silent = now.saturating_sub(*locked(&context.renewed));
        let loss = u64::try_from(spec.api_loss_seconds).unwrap_or(0).saturating_mul(1_000);
        let held_back = self.held_back(now);
        let limit = shutdown::limit(spec, &locked(&context.facts));
        // Nobody orders what a clean end needs: the agent does it by itself.
        let alone = held_back.is_some_and(|ms| ms >= ALONE) && silent >= ALONE;
        let late = held_back.is_some_and(|ms| ms >= limit);
        let lost = spec.api_loss == ApiLoss::Stop && loss > 0 && silent >= loss;
        let orders = self.orders.as_ref().map(|orders| {
            let mut orders: BTreeMap<String, Order> =
                orders.iter().map(|(uid, known)| (uid.clone(), known.order.clone())).collect();
            for order in orders.values_mut().filter(|_| alone || late || lost) {
                if late {
                    order.spec.want = Want::Killed;
                } else if order.spec.want == Want::Running {
                    order.spec.want = Want::Stopped;
                }
            }
            orders
        });
        let no_starts = if held_back.is_some() {
            "this host is going down".to_owned()
        } else if self.said_down() {
            "this boot was reported over; reboot the host".to_owned()
        } else {
            String::new()
        };
        let long = |since: &u64| now.saturating_sub(*since) >= STORAGE_LOST;
        let lost_storages =
            self.unready_since.iter().filter(|(_, s)| long(s)).map(|(n, _)| n.clone()).collect();
        Observed {
            host_uid: context.host_uid.clone(),
            boot_id: context.boot_id.clone(),
            journal: context.journal.state(),
            live: self.live.clone(),
            orders,
            memory: self.memory.clone(),
            storages: locked(&context.storages).values().cloned().collect(),
            hook_ready: self.hook,
            lock: spec.lock.as_ref().filter(|_| self.lock_works(spec)).map(|l| l.kind),
            arming: spec.arm && !armed,
            suspended: context.config.guards.suspends
                && spec
                    .dead_boots
                    .iter()
                    .any(|b| b.host_uid == context.host_uid && b.boot_id == context.boot_id),
            lost: lost_storages,
            unlocked: match (&spec.lock, &self.unlocked_since) {
                (Some(lock), Some(since)) if long(since) => lock.guards.iter().cloned().collect(),
                _ => BTreeSet::new(),
            },
            no_starts,
            guards: context.config.guards,
        }
    }

    fn begin_actions(&mut self, observed: &Observed, began: u64, now: u64) {
        for (uid, action) in decide(observed, now) {
            // The look must be younger than what was last done about the VM.
            if self.acted.get(&uid).is_some_and(|at| *at >= began) {
                self.look_again = true;
                continue;
            }
            let memory = self.memory.entry(uid.clone()).or_default();
            match &action {
                HostAction::Kill { .. }
                | HostAction::Abandon { .. }
                | HostAction::GiveUp { .. } => {
                    if self.killed.get(&uid).is_some_and(|at| now.saturating_sub(*at) < RETRY) {
                        continue;
                    }
                    self.killed.insert(uid.clone(), now);
                    memory.kill_asked.get_or_insert(now);
                    memory.storage_lost |= matches!(action, HostAction::Abandon { .. });
                    memory.hung |= matches!(action, HostAction::GiveUp { .. });
                }
                HostAction::Shutdown => memory.shutdown_asked = Some(now),
                HostAction::Start | HostAction::Prepare => {
                    memory.stopped = None;
                    memory.missing_since = None;
                }
                HostAction::Migrate { .. } => {
                    memory.copy = None;
                    memory.job = None;
                    memory.silent = None;
                    memory.abort_asked = None;
                }
                HostAction::AbortMove => {
                    let first = memory.abort_asked.map_or(now, |(first, _)| first);
                    memory.abort_asked = Some((first, now));
                }
                _ => {}
            }
            memory.busy = Some(Busy { starting: action == HostAction::Start, since: now });
            tracing::info!(vm = uid, ?action, "act");
            let order = observed.order(&uid).cloned();
            let call = act(Arc::clone(&self.context), uid, action, order);
            self.tasks.spawn(async move { News::Done(Box::new(call.await)) });
        }
    }

    fn done(&mut self, done: Done) {
        let now = self.context.now();
        self.look_again = true;
        self.acted.insert(done.uid.clone(), now);
        let deleted = self
            .orders
            .as_ref()
            .and_then(|o| o.get(&done.uid))
            .filter(|_| done.action == Some(HostAction::DeleteDisks) && done.trouble.is_empty())
            .map(|known| known.order.spec.order_id);
        let memory = self.memory.entry(done.uid.clone()).or_default();
        memory.busy = None;
        if let Some((id, request)) = done.copy {
            memory.copy = Some(Copy { id: id.clone(), end: None });
            memory.job = None;
            let (context, uid) = (Arc::clone(&self.context), done.uid);
            self.tasks.spawn(async move {
                let end = copy(&context, &request).await;
                News::Copied(uid, id, end)
            });
        }
        memory.highest_record = memory.highest_record.max(done.highest_record);
        if let Some(order_id) = deleted {
            memory.deleted_order = order_id;
        }
        if done.started.is_some() {
            memory.started = done.started;
        }
        if done.lock.is_some() {
            memory.lock = done.lock;
        }
        if done.resized.is_some() {
            memory.resized = done.resized;
        }
        if done.trouble.is_empty() {
            // Why a start failed is still true once it is released.
            if !matches!(
                done.action,
                Some(HostAction::Release {
                    end: End::StartFailed | End::Refused | End::LockHeld,
                    ..
                }) | Some(HostAction::Void { end: End::StartFailed | End::Refused, .. })
            ) {
                memory.trouble.clear();
            }
        } else {
            if memory.trouble.is_empty() {
                memory.trouble_since = now;
            }
            memory.trouble = done.trouble.chars().take(1_000).collect();
            memory.retry_at = now + RETRY;
        }
    }

    fn reported(&mut self, reported: Reported) {
        self.reporting = false;
        if reported.failed {
            self.report_after = self.context.now() + 1_000;
        }
        for (uid, status, version) in reported.domains {
            if let Some(known) = self.orders.as_mut().and_then(|o| o.get_mut(&uid)) {
                known.order.status = Some(status);
                known.acknowledged = known.acknowledged.max(version);
            }
        }
        self.host_status_unsure |= reported.host_unsure;
        if reported.host.is_some() {
            self.host_status_unsure = false;
            self.host_status = reported.host;
        }
    }

    fn begin_inspection(&mut self, observed: &Observed, now: u64) {
        if self.inspecting || now.saturating_sub(self.inspected_at) < INSPECT {
            return;
        }
        let running: Vec<(String, bool)> = observed
            .live
            .iter()
            .flatten()
            .filter(|(_, d)| d.epoch > 0 && d.state == LiveState::Running)
            .filter_map(|(uid, _)| {
                let order = observed.order(uid)?;
                Some((uid.clone(), order.spec.machine.lock.is_some()))
            })
            .collect();
        self.inspected_at = now;
        self.inspecting = true;
        let call = inspect(Arc::clone(&self.context), running);
        self.tasks.spawn(async move { News::Inspected(call.await) });
    }

    /// Arms before it is reported; disarms only after the status has said so.
    fn host_tasks(&mut self, spec: &HostAgentSpec) {
        let armed = locked(&self.context.armed).clone();
        let storages: Vec<String> = spec.storages.iter().map(|s| s.name.clone()).collect();
        let said = self.host_status.as_ref();
        let said_timings = said.and_then(|s| s.self_fence.as_ref());
        let timings = self_fence::next(armed.as_ref(), &spec.self_fence, said_timings);
        let is_so = armed.as_ref().is_some_and(|armed| !self_fence::differs(armed, &timings))
            && self.armed_storages.as_ref() == Some(&storages);
        let arm = spec.arm && !is_so;
        let disarm = !spec.arm && armed.is_some() && said.is_some_and(|s| !s.armed);
        if self.arming || !(arm || disarm) {
            return;
        }
        self.arming = true;
        let context = Arc::clone(&self.context);
        self.armed_storages = arm.then(|| storages.clone());
        self.tasks.spawn(async move {
            let watchdog = &context.ports.watchdog;
            let result = if arm {
                timed("arm", "watchdog", 10, watchdog.arm(&timings, &storages)).await
            } else {
                timed("disarm", "watchdog", 10, watchdog.disarm()).await
            };
            match result {
                Ok(()) => {
                    *locked(&context.armed) = arm.then_some(timings);
                    News::Armed(None)
                }
                Err(error) => {
                    tracing::warn!(%error, "the watchdog");
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    News::Armed(Some(error.to_string()))
                }
            }
        });
    }

    fn begin_report(&mut self, observed: &Observed, spec: &HostAgentSpec, now: u64) {
        if self.reporting || now < self.report_after {
            return;
        }
        let mut wanted = Report::default();
        for (uid, known) in self.orders.iter().flatten() {
            if let Some(status) = status_of(observed, uid, now)
                && known.order.status.as_ref() != Some(&status)
            {
                wanted.domains.push((uid.clone(), status));
            }
        }
        wanted.host = self.host_status(observed, spec);
        if wanted.host.is_none() && wanted.domains.is_empty() {
            return;
        }
        self.reporting = true;
        let call = report(Arc::clone(&self.context), wanted);
        self.tasks.spawn(async move { News::Reported(Box::new(call.await)) });
    }

    /// Lets the machine go down once nothing of ours runs and the API knows it; at last without
    /// that, when the policy's limit is over.
    fn go_down(&mut self, o: &Observed, spec: &HostAgentSpec, now: u64) {
        let Some(held_back) = self.held_back(now) else { return };
        let reported = self.orders.iter().flatten().all(|(_, known)| {
            known
                .order
                .status
                .as_ref()
                .is_none_or(|s| s.released || s.state == DomainState::Pending)
        });
        let limit = shutdown::limit(spec, &locked(&self.context.facts));
        let over = held_back >= limit.saturating_add(shutdown::LAST_WORD);
        let silent = now.saturating_sub(*locked(&self.context.renewed));
        let unheard = held_back >= UNHEARD && silent >= UNHEARD;
        let clean = nothing_runs(o) && (unheard || (self.said_down() && reported));
        if !self.allowed_down && (clean || over) {
            self.allowed_down = true;
            self.context.ports.machine.allow_down();
        }
    }
}

fn known(domain: Domain) -> (String, Known) {
    let version = domain.metadata.resource_version.as_deref().and_then(|v| v.parse().ok());
    let order = Order {
        object_uid: domain.metadata.uid.unwrap_or_default(),
        spec: domain.spec,
        status: domain.status,
    };
    let uid = order.spec.vm.uid.clone();
    (uid, Known { order, acknowledged: version.unwrap_or(0) })
}

/// Whether no VM of ours is left here: listed, launched, or about to be.
fn nothing_runs(o: &Observed) -> bool {
    let (Some(live), Some(journal)) = (&o.live, &o.journal) else { return false };
    live.values().all(|d| d.epoch == 0)
        && journal.vms.values().all(|vm| !vm.launched || vm.released)
        && o.memory.values().all(|m| m.busy.is_none())
}
