//! The hypervisor port.

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentLock, DomainSpec, LockReport, MigrationProgress};
use stockade_host::error::{HostError, HostResult};
use stockade_host::ports::{
    Arrival, Hypervisor, HypervisorEvent, LiveChange, LiveDomain, LiveState, MigrateRequest,
    Presence, Started, StopReason,
};
use tokio::sync::{mpsc, oneshot};

use super::Seat;
use crate::world::event::Doer;
use crate::world::model::{Qemu, QemuState};
use crate::world::{moves, qemu};

/// After so long a connection whose daemon does not answer is given up.
const KEEPALIVE_MS: u64 = 10_000;

pub(super) struct SimHypervisor(pub Seat);

impl SimHypervisor {
    /// Waits for the daemon to answer.
    async fn daemon(&self, op: &'static str) -> HostResult<()> {
        self.0.enter(1, 4).await;
        let mut waited = 0;
        loop {
            let state = {
                let w = self.0.sim.lock();
                w.machines.get(&self.0.host).map(|m| (m.libvirt_up, m.libvirt_running))
            };
            match state {
                Some((true, _)) => return Ok(()),
                Some((false, true)) if waited < KEEPALIVE_MS => {}
                _ => {
                    let why = "libvirt's daemon does not answer; restart it";
                    return Err(HostError::failed(op, &self.0.host, why));
                }
            }
            self.0.sim.wait(250).await;
            self.0.gate.pass().await;
            waited += 250;
        }
    }

    /// A job of the daemon: it goes on if its caller dies.
    async fn job<T, F, Fut>(&self, op: &'static str, target: &str, make: F) -> HostResult<T>
    where
        T: Send + 'static,
        F: FnOnce(Seat) -> Fut,
        Fut: Future<Output = HostResult<T>> + Send + 'static,
    {
        self.daemon(op).await?;
        self.0.sim.lock().acted(&self.0.host);
        let life = self.life();
        let (send, mut receive) = oneshot::channel();
        let work = make(self.0.clone());
        tokio::spawn(async move {
            // A caller that is gone does not hear it.
            let _ = send.send(work.await);
        });
        loop {
            tokio::select! {
                biased;
                answer = &mut receive => {
                    self.0.gate.pass().await;
                    return answer.unwrap_or_else(|_| {
                        Err(HostError::unknown(op, target, "the job is gone"))
                    });
                }
                () = self.0.sim.wait(500) => {
                    if self.life() != life {
                        self.0.gate.pass().await;
                        return Err(HostError::unknown(op, target, "the connection was lost"));
                    }
                }
            }
        }
    }

    /// Asks the daemon something that it has to ask the process of a VM.
    async fn monitor(&self, op: &'static str, uid: &str) -> HostResult<()> {
        self.daemon(op).await?;
        if self.with_qemu(uid, |q| q.deaf) == Some(true) {
            std::future::pending::<()>().await;
        }
        Ok(())
    }

    /// What the process of a VM does that the daemon is asked about.
    fn domain(&self, op: &'static str, uid: &str) -> HostResult<QemuState> {
        let found = self.0.sim.lock().domain(&self.0.host, uid);
        found.map_err(|why| HostError::failed(op, uid, why))
    }

    fn life(&self) -> u64 {
        self.0.sim.lock().machines.get(&self.0.host).map_or(0, |m| m.libvirt_life)
    }

    fn with_qemu<T>(&self, uid: &str, f: impl FnOnce(&Qemu) -> T) -> Option<T> {
        self.0.sim.lock().machines.get(&self.0.host).and_then(|m| m.qemus.get(uid)).map(f)
    }
}

fn live(q: &Qemu) -> LiveDomain {
    LiveDomain {
        name: q.name.clone(),
        uuid: q.uid.clone(),
        epoch: q.epoch,
        state: match q.state {
            QemuState::Running => LiveState::Running,
            QemuState::Launching | QemuState::Paused => LiveState::Paused,
            QemuState::Incoming => LiveState::Incoming,
            QemuState::Switched => LiveState::Switched,
            QemuState::Dying => LiveState::Dying,
        },
        disks: q.disks.iter().map(|d| d.path.clone()).collect(),
        cores: q.cores,
        memory_mib: q.memory_mib,
    }
}

impl Hypervisor for SimHypervisor {
    fn list(&self) -> BoxFuture<'_, HostResult<Vec<LiveDomain>>> {
        async move {
            self.daemon("list").await?;
            let w = self.0.sim.lock();
            let m = w.machines.get(&self.0.host);
            let listed = |q: &&Qemu| !q.unlisted;
            Ok(m.map(|m| m.qemus.values().filter(listed).map(live).collect()).unwrap_or_default())
        }
        .boxed()
    }

    fn events(&self) -> mpsc::UnboundedReceiver<HypervisorEvent> {
        let (send, receive) = mpsc::unbounded_channel();
        if !self.0.gate.is_dead()
            && let Some(m) = self.0.sim.lock().machines.get_mut(&self.0.host)
        {
            m.news = Some(send);
        }
        receive
    }

    fn probe_hook(&self) -> BoxFuture<'_, HostResult<bool>> {
        async move { self.daemon("probe").await.map(|()| true) }.boxed()
    }

    fn start<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<Started>> {
        let order = order.clone();
        async move {
            let name = order.vm.name.clone();
            self.job("start", &name, |seat| async move {
                qemu::start(&seat.sim, &seat.host, &order).await
            })
            .await
        }
        .boxed()
    }

    fn adopt<'a>(&'a self, order: &'a DomainSpec, from: i64) -> BoxFuture<'a, HostResult<()>> {
        let order = order.clone();
        async move {
            let name = order.vm.name.clone();
            self.job("adopt", &name, move |seat| async move {
                seat.sim.latency(&format!("adopt/{}", seat.host), 20, 100).await;
                seat.sim.lock().adopt(&seat.host, &order, from)
            })
            .await
        }
        .boxed()
    }

    fn end_reason<'a>(
        &'a self,
        vm_uid: &'a str,
        _name: &'a str,
        epoch: i64,
    ) -> BoxFuture<'a, Option<StopReason>> {
        async move {
            self.0.enter(1, 3).await;
            let w = self.0.sim.lock();
            let (of, reason) = w.machines.get(&self.0.host)?.ended.get(vm_uid)?;
            (*of == epoch).then_some(*reason)
        }
        .boxed()
    }

    fn prepare_incoming<'a>(&'a self, order: &'a DomainSpec) -> BoxFuture<'a, HostResult<()>> {
        let order = order.clone();
        async move {
            let name = order.vm.name.clone();
            self.job("prepare", &name, |seat| async move {
                moves::prepare(&seat.sim, &seat.host, &order).await
            })
            .await
        }
        .boxed()
    }

    fn migrate<'a>(&'a self, request: &'a MigrateRequest) -> BoxFuture<'a, HostResult<()>> {
        let request = request.clone();
        async move {
            let name = request.name.clone();
            self.job("migrate", &name, |seat| async move {
                moves::migrate(&seat.sim, &seat.host, &request).await
            })
            .await
        }
        .boxed()
    }

    fn migration_job<'a>(
        &'a self,
        vm_uid: &'a str,
    ) -> BoxFuture<'a, HostResult<Option<MigrationProgress>>> {
        async move {
            self.monitor("read move", vm_uid).await?;
            let w = self.0.sim.lock();
            let found = w.machines.get(&self.0.host).and_then(|m| m.qemus.get(vm_uid));
            let moving = found.filter(|q| q.moving_to.is_some());
            Ok(moving.map(|q| moves::progress(q, w.profile(&q.vm).migrate_ms)))
        }
        .boxed()
    }

    fn arrival<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Option<Arrival>>> {
        async move {
            self.daemon("read move").await?;
            let w = self.0.sim.lock();
            let found = w.machines.get(&self.0.host).and_then(|m| m.qemus.get(vm_uid));
            let came = found.filter(|q| q.whole_at.is_some());
            let took = came.map(|q| moves::arrival(q, w.profile(&q.vm).migrate_ms));
            Ok(Some(took.unwrap_or_default()))
        }
        .boxed()
    }

    fn abort_migration<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.monitor("abort", vm_uid).await?;
            let mut w = self.0.sim.lock();
            let q = w.machines.get_mut(&self.0.host).and_then(|m| m.qemus.get_mut(vm_uid));
            if let Some(q) = q {
                q.abort = true;
            }
            Ok(())
        }
        .boxed()
    }

    fn shutdown<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.monitor("shutdown", vm_uid).await?;
            self.domain("shutdown", vm_uid)?;
            qemu::shutdown(&self.0.sim, &self.0.host, vm_uid, Doer::Agent);
            Ok(())
        }
        .boxed()
    }

    fn kill<'a>(&'a self, vm_uid: &'a str, epoch: i64) -> BoxFuture<'a, HostResult<()>> {
        async move {
            // SIGKILL needs no daemon.
            self.0.enter(1, 3).await;
            qemu::kill(&self.0.sim, &self.0.host, vm_uid, epoch, Doer::Agent).await
        }
        .boxed()
    }

    fn reset<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.monitor("reset", vm_uid).await?;
            let reset = self.0.sim.lock().reset_guest(&self.0.host, vm_uid);
            reset.map_err(|why| HostError::failed("reset", vm_uid, why))
        }
        .boxed()
    }

    fn suspend<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.monitor("suspend", vm_uid).await?;
            self.domain("suspend", vm_uid)?;
            self.0.sim.lock().suspend(&self.0.host, vm_uid, Doer::Agent);
            Ok(())
        }
        .boxed()
    }

    fn resume<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.monitor("resume", vm_uid).await?;
            if self.domain("resume", vm_uid)? == QemuState::Running {
                return Err(HostError::failed("resume", vm_uid, "domain is already running"));
            }
            let resumed = self.0.sim.lock().resume(&self.0.host, vm_uid);
            resumed.map_err(|why| HostError::failed("resume", vm_uid, why))
        }
        .boxed()
    }

    fn resize<'a>(
        &'a self,
        vm_uid: &'a str,
        cores: i32,
        memory_mib: i64,
    ) -> BoxFuture<'a, HostResult<LiveChange>> {
        async move {
            self.daemon("resize").await?;
            let same = self.with_qemu(vm_uid, |q| q.cores == cores && q.memory_mib == memory_mib);
            Ok(if same == Some(true) { LiveChange::Applied } else { LiveChange::NeedsRestart })
        }
        .boxed()
    }

    fn resize_disk<'a>(
        &'a self,
        _vm_uid: &'a str,
        _path: &'a str,
        _bytes: i64,
    ) -> BoxFuture<'a, HostResult<LiveChange>> {
        async move { self.daemon("resize").await.map(|()| LiveChange::Applied) }.boxed()
    }

    fn presence<'a>(&'a self, vm_uid: &'a str, epoch: i64) -> BoxFuture<'a, Presence> {
        async move {
            self.0.enter(1, 2).await;
            match self.with_qemu(vm_uid, |q| q.epoch) {
                Some(e) if e == epoch => Presence::Present,
                _ => Presence::Gone,
            }
        }
        .boxed()
    }

    fn lock<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<Option<LockReport>>> {
        async move {
            self.daemon("lock").await?;
            let kind = self.with_qemu(vm_uid, |q| q.lock).flatten();
            let holder = self.0.sim.lock().lock_holder(vm_uid).unwrap_or_default();
            Ok(kind.map(|manager| LockReport { manager, held: holder == self.0.host, holder }))
        }
        .boxed()
    }

    fn addresses<'a>(&'a self, _vm_uid: &'a str) -> BoxFuture<'a, HostResult<Vec<String>>> {
        async move { self.daemon("addresses").await.map(|()| Vec::new()) }.boxed()
    }

    fn usage<'a>(&'a self, vm_uid: &'a str) -> BoxFuture<'a, HostResult<(i64, i64)>> {
        async move {
            self.daemon("usage").await?;
            let found = self.with_qemu(vm_uid, |q| (q.vm.clone(), q.cores, q.memory_mib));
            let Some((vm, cores, memory)) = found else { return Ok((0, 0)) };
            let profile = self.0.sim.lock().profile(&vm);
            let cpu = profile.load_cpu.unwrap_or_else(|| f64::from(cores));
            Ok(((cpu * 1000.0) as i64, profile.load_memory_mib.unwrap_or(memory)))
        }
        .boxed()
    }

    fn ensure_lock_manager<'a>(
        &'a self,
        lock: Option<&'a AgentLock>,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            const OP: &str = "use lock manager";
            self.0.enter(2, 10).await;
            let mut w = self.0.sim.lock();
            let mounted =
                |m: &crate::world::model::Machine, l: &AgentLock| m.mounts.contains(&l.storage);
            let Some(m) = w.machines.get_mut(&self.0.host) else {
                return Err(HostError::refused(OP, &self.0.host, "there is no such host"));
            };
            if m.lock_manager.as_ref() != lock
                && let Some(lock) = lock
            {
                w.judge_number(&self.0.host, lock);
            }
            let Some(m) = w.machines.get_mut(&self.0.host) else {
                return Err(HostError::refused(OP, &self.0.host, "there is no such host"));
            };
            m.lock_manager = lock.cloned();
            let ready = lock.is_none_or(|l| m.lock_daemon && mounted(m, l));
            let storage = lock.map(|l| l.storage.clone());
            let answers = |s: &String| w.reach(&self.0.host, s).answers();
            match storage {
                Some(s) if !ready => Err(HostError::refused(OP, s, "it does not run")),
                Some(s) if !answers(&s) => Err(HostError::refused(OP, s, "its storage is away")),
                _ => Ok(()),
            }
        }
        .boxed()
    }
}
