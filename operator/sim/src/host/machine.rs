//! The machine, its clock, journal and watchdog.

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{GoingDown, HypervisorKind, SelfFence};
use stockade_host::error::{HostError, HostResult};
use stockade_host::ports::{
    Clock, JournalPort, JournalState, MachineFacts, MachinePort, WatchdogPort,
};

use super::Seat;
use crate::world::Sim;
use crate::world::model::{FailOp, WatchdogKind};
use crate::world::power::INHIBIT_MS;

/// Wall clock at the world's beginning: 2030-01-01T00:00:00Z, in milliseconds.
const EPOCH_MS: i64 = 1_893_456_000_000;

pub(super) struct SimClock {
    pub sim: Arc<Sim>,
    pub host: Option<String>,
}

impl Clock for SimClock {
    fn monotonic_millis(&self) -> u64 {
        let w = self.sim.lock();
        self.host.as_ref().map_or_else(|| w.now(), |h| w.monotonic(h))
    }

    fn wall_millis(&self) -> i64 {
        let w = self.sim.lock();
        let now = w.now();
        let (counted, offset) = self
            .host
            .as_ref()
            .and_then(|h| w.machines.get(h))
            .map_or((now, 0), |m| (m.counted(now), m.wall_offset));
        EPOCH_MS + i64::try_from(counted).unwrap_or(i64::MAX) + offset
    }

    fn sleep(&self, millis: u64) -> BoxFuture<'static, ()> {
        let rate = {
            let w = self.sim.lock();
            self.host.as_ref().and_then(|h| w.machines.get(h)).map_or(1.0, |m| m.rate)
        };
        tokio::time::sleep(Duration::from_millis((millis as f64 / rate) as u64)).boxed()
    }
}

pub(super) struct SimMachine(pub Seat);

impl MachinePort for SimMachine {
    fn facts(&self) -> BoxFuture<'_, HostResult<MachineFacts>> {
        async move {
            self.0.enter(1, 3).await;
            let w = self.0.sim.lock();
            let Some(m) = w.machines.get(&self.0.host) else {
                return Err(HostError::failed("facts", &self.0.host, "no such host"));
            };
            Ok(MachineFacts {
                host_uid: m.uid.clone(),
                boot_id: m.boot_id.clone(),
                cpu: m.cpu,
                memory_mib: m.memory_mib,
                hypervisors: vec![HypervisorKind::KVM],
                watchdog: m.watchdog != WatchdogKind::Absent,
                holds_back_seconds: Some(INHIBIT_MS / 1_000),
                problems: Vec::new(),
            })
        }
        .boxed()
    }

    fn going_down(&self) -> Option<GoingDown> {
        self.0.sim.lock().machines.get(&self.0.host).and_then(|m| m.going_down)
    }

    fn going_down_changed(&self) -> BoxFuture<'_, ()> {
        let notify = self.0.sim.lock().machines.get(&self.0.host).map(|m| m.down_changed.clone());
        async move {
            match notify {
                Some(notify) => notify.notified().await,
                None => std::future::pending().await,
            }
        }
        .boxed()
    }

    fn allow_down(&self) {
        if self.0.gate.is_open()
            && let Some(m) = self.0.sim.lock().machines.get_mut(&self.0.host)
        {
            m.down_allowed = true;
        }
    }
}

pub(super) struct SimJournal(pub Seat);

impl JournalPort for SimJournal {
    fn load(&self) -> BoxFuture<'_, HostResult<JournalState>> {
        async move {
            self.0.enter(1, 3).await;
            let w = self.0.sim.lock();
            Ok(w.machines.get(&self.0.host).map(|m| m.durable.journal.clone()).unwrap_or_default())
        }
        .boxed()
    }

    fn store<'a>(&'a self, state: &'a JournalState) -> BoxFuture<'a, HostResult<()>> {
        async move {
            // Up to the fsync's return nothing is promised: a crash before it keeps the old state.
            self.0.enter(2, 8).await;
            let mut w = self.0.sim.lock();
            if w.take_fail(FailOp::Journal, "", &[&self.0.host]).is_some() {
                return Err(HostError::failed("journal", &self.0.host, "read-only file system"));
            }
            let Some(m) = w.machines.get_mut(&self.0.host) else {
                return Err(HostError::failed("journal", &self.0.host, "no such host"));
            };
            m.durable.journal = state.clone();
            w.acted(&self.0.host);
            Ok(())
        }
        .boxed()
    }
}

pub(super) struct SimWatchdog(pub Seat);

impl WatchdogPort for SimWatchdog {
    fn arm<'a>(
        &'a self,
        timings: &'a SelfFence,
        storages: &'a [String],
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.0.enter(1, 5).await;
            let mut w = self.0.sim.lock();
            let (now, mono) = (w.now(), w.monotonic(&self.0.host));
            let Some(m) = w.machines.get_mut(&self.0.host) else {
                return Err(HostError::failed("arm", &self.0.host, "no such host"));
            };
            if m.watchdog == WatchdogKind::Absent {
                return Err(HostError::refused("arm", &self.0.host, "no watchdog device is there"));
            }
            if !m.feeder.works() {
                return Err(HostError::failed("arm", &self.0.host, "the feeder does not answer"));
            }
            let f = &mut m.feeding;
            if f.timings.is_none() {
                // Arming counts as a sign of life.
                f.api = mono;
            }
            f.open = true;
            f.timings = Some(timings.clone());
            f.storages = storages.to_vec();
            f.deadline =
                f.deadline.max(now + u64::try_from(timings.watchdog_seconds).unwrap_or(15) * 1000);
            drop(w);
            self.0.sim.touch();
            Ok(())
        }
        .boxed()
    }

    fn disarm(&self) -> BoxFuture<'_, HostResult<()>> {
        async move {
            self.0.enter(1, 5).await;
            if let Some(m) = self.0.sim.lock().machines.get_mut(&self.0.host) {
                m.feeding.timings = None;
            }
            Ok(())
        }
        .boxed()
    }

    fn armed(&self) -> BoxFuture<'_, HostResult<Option<SelfFence>>> {
        async move {
            self.0.enter(1, 3).await;
            let w = self.0.sim.lock();
            Ok(w.machines.get(&self.0.host).and_then(|m| m.feeding.timings.clone()))
        }
        .boxed()
    }

    fn api_renewed(&self, sent_millis: u64) {
        if self.0.gate.is_open()
            && let Some(m) = self.0.sim.lock().machines.get_mut(&self.0.host)
        {
            m.feeding.api = m.feeding.api.max(sent_millis);
        }
    }
}
