//! Simulated hosts in real time, each with the real agent under an identity of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::PostParams;
use kube::{Api, Client};
use serde_json::json;
use stockade_crds::v1alpha1::{Host, SharedStorage, StorageKind};
use stockade_e2e::control_plane::ControlPlane;
use stockade_e2e::play::agent_main;
use stockade_sim::world::Sim;
use stockade_sim::world::model::{Store, WatchdogKind};
use stockade_sim::world::power::Build;

use super::{AT_ONCE, Error, failed, rack};

/// Where hosts see a storage.
fn mount(storage: &str) -> String {
    format!("/srv/stockade/{storage}")
}

/// The hosts, declared and built.
pub struct Fleet {
    sim: Arc<Sim>,
    hosts: Vec<String>,
}

impl Fleet {
    /// Declares `count` hosts, h1 first, and their storages, and builds the machines.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn declare(
        plane: &ControlPlane,
        client: &Client,
        count: usize,
        racks: usize,
    ) -> Result<Self, Error> {
        let hosts: Vec<String> = (1..=count).map(|i| format!("h{i}")).collect();
        let post = PostParams::default();
        let storages: Api<SharedStorage> = Api::all(client.clone());
        for number in 0..racks {
            let name = rack(number, racks);
            let storage = serde_json::from_value(json!({
                "apiVersion": "stockade.dev/v1alpha1", "kind": "SharedStorage",
                "metadata": {"name": name},
                "spec": {
                    "mountPath": mount(&name), "directory": {},
                    "hostSelector": {"rack": name},
                },
            }))?;
            storages.create(&post, &storage).await.map_err(|e| failed("storage", e))?;
        }
        let declared: Api<Host> = Api::all(client.clone());
        let calls = hosts.iter().enumerate().map(async |(number, name)| {
            let host = serde_json::from_value(json!({
                "apiVersion": "stockade.dev/v1alpha1", "kind": "Host",
                "metadata": {"name": name, "labels": {"rack": rack(number, racks)}},
                "spec": {},
            }))?;
            declared.create(&post, &host).await.map_err(|e| failed("host", e))
        });
        futures::stream::iter(calls).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        let mut clients = BTreeMap::new();
        for host in &hosts {
            let user = format!("stockade:host:{host}");
            let client = plane.client(&user, &["stockade:hosts"]).await;
            clients.insert(host.clone(), client.map_err(|e| failed("client", e))?);
        }
        let this = Self { sim: Sim::new(1), hosts };
        this.build(clients, racks);
        Ok(this)
    }

    fn build(&self, clients: BTreeMap<String, Client>, racks: usize) {
        let mut world = self.sim.lock();
        world.set_agent_main(agent_main(clients));
        for number in 0..racks {
            let name = rack(number, racks);
            let kind = StorageKind::SharedDirectory;
            let store = Store { name: name.clone(), kind, mount: mount(&name), ..Store::default() };
            world.stores.insert(name, store);
        }
        for name in &self.hosts {
            world.build(Build {
                name: name.clone(),
                cpu: 16,
                memory_mib: 65_536,
                boot_ms: 1_000,
                watchdog: WatchdogKind::Reset,
                levels: Vec::new(),
            });
        }
    }

    /// Boots all hosts.
    pub fn boot(&self) {
        let mut world = self.sim.lock();
        for name in &self.hosts {
            world.boot_now(name);
        }
    }

    /// What the oracle found wrong.
    pub fn violations(&self) -> Vec<String> {
        self.sim.lock().oracle.violations.iter().map(|v| v.text.clone()).collect()
    }
}
