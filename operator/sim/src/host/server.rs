//! What the controller reaches: fence devices and the serving side of storages.

use std::sync::Arc;

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::StorageKind;
use stockade_host::error::{HostError, HostResult};
use stockade_host::ports::{FenceCall, FenceRunner, Power, StorageServer};

use super::gate::Gate;
use crate::world::Sim;
use crate::world::fence;
use crate::world::model::StorageMode;

/// The fence devices, for one life of a controller.
pub struct SimFence {
    /// The world.
    pub sim: Arc<Sim>,
    /// The controller's gate.
    pub gate: Gate,
}

impl FenceRunner for SimFence {
    fn run<'a>(&'a self, call: &'a FenceCall) -> BoxFuture<'a, HostResult<Option<Power>>> {
        async move {
            self.gate.pass().await;
            let answer = fence::run(&self.sim, call).await;
            self.gate.pass().await;
            answer
        }
        .boxed()
    }
}

/// The servers of storages, for one life of a controller.
pub struct SimServer {
    /// The world.
    pub sim: Arc<Sim>,
    /// The controller's gate.
    pub gate: Gate,
}

impl SimServer {
    async fn reach(&self, op: &'static str, storage: &str) -> HostResult<()> {
        self.gate.pass().await;
        self.sim.latency("server", 30, 150).await;
        self.gate.pass().await;
        let w = self.sim.lock();
        let Some(s) = w.stores.get(storage) else {
            return Err(HostError::failed(op, storage, "no such storage"));
        };
        if s.mode == StorageMode::Down {
            return Err(HostError::unknown(op, storage, "its server does not answer"));
        }
        if s.kind == StorageKind::NFS || op == "break" {
            return Ok(());
        }
        Err(HostError::refused(op, storage, "this storage can't deny a host"))
    }
}

impl StorageServer for SimServer {
    fn deny<'a>(
        &'a self,
        storage: &'a str,
        host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.reach("deny", storage).await?;
            let mut w = self.sim.lock();
            if !w.stores.get(storage).is_some_and(|s| s.obeys) {
                return Err(HostError::refused("deny", storage, "its server does not obey"));
            }
            if let Some(s) = w.stores.get_mut(storage) {
                s.denied.insert(host.to_owned(), boot_id.to_owned());
            }
            Ok(())
        }
        .boxed()
    }

    fn admit<'a>(
        &'a self,
        storage: &'a str,
        host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.reach("admit", storage).await?;
            if let Some(s) = self.sim.lock().stores.get_mut(storage)
                && s.denied.get(host).is_some_and(|boot| boot == boot_id)
            {
                s.denied.remove(host);
            }
            Ok(())
        }
        .boxed()
    }

    fn break_locks<'a>(
        &'a self,
        storage: &'a str,
        host: &'a str,
        boot_id: &'a str,
    ) -> BoxFuture<'a, HostResult<()>> {
        async move {
            self.reach("break", storage).await?;
            let broken = self.sim.lock().break_locks(storage, host, boot_id);
            broken.map_err(|why| HostError::refused("break", storage, why))
        }
        .boxed()
    }
}
