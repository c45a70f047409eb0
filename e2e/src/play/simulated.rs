//! Simulated hosts in real time on a real control plane: the real controller and agents in this
//! process, each under the identity that the charts give it, on hosts that are not there.
//!
//! Neither root nor libvirt is needed. Everything that people see of Stockade is real; what the
//! hosts do, their guests included, is the simulation's.

mod tour;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, MutexGuard};

use futures::FutureExt as _;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use stockade_agent::AgentConfig;
use stockade_controller::{Context, LEASE_NAME};
use stockade_core::world::Guards;
use stockade_crds::v1alpha1::{Host, StorageKind};
use stockade_sim::host::gate::Gate;
use stockade_sim::host::{SimFence, SimServer, true_clock};
use stockade_sim::world::model::{Device, Store, WatchdogKind};
use stockade_sim::world::power::{Build, Which};
use stockade_sim::world::{AgentLife, AgentMain, Sim, World};
use tokio::time::{Instant, sleep};

use super::{LIMIT, Log, PAUSE, PlayError, STORAGE};
use crate::control_plane::{ControlPlane, Options, SYSTEM_NAMESPACE};

/// Where the simulated hosts have their shared storage.
const MOUNT: &str = "/srv/stockade/shared";
/// Milliseconds from power to a running kernel: a play is no place to wait for firmware.
const BOOT_MILLIS: u64 = 5_000;

/// What a person can do to a host.
pub const DEEDS: &str = "cut, on, panic, crash-agent, kill-qemu";

/// A running Stockade on simulated hosts.
pub struct Simulated {
    sim: Arc<Sim>,
    plane: ControlPlane,
    client: Client,
    hosts: Vec<String>,
}

impl Simulated {
    /// Starts everything and declares `count` hosts, h1 first, each with a BMC.
    ///
    /// # Errors
    /// What could not be started.
    pub async fn start(count: usize, all: bool, log: &Log) -> Result<Self, PlayError> {
        let options = Options { controller_manager: all, audit: true, ..Options::default() };
        let plane = ControlPlane::start(options).await?;
        plane.install_charts().await?;
        log.say(format!("control plane at {} with the charts", plane.server()));
        let hosts: Vec<String> = (1..=count).map(|i| format!("h{i}")).collect();
        let mut clients = BTreeMap::new();
        for host in &hosts {
            let user = format!("stockade:host:{host}");
            let file = plane.kubeconfig(&user, &["stockade:hosts"])?;
            clients.insert(host.clone(), client_of(&file).await?);
        }
        // Seeded by the time: in real time no two runs are alike anyway.
        let sim = Sim::new(u64::from(std::process::id()));
        let client = plane.setup_client().await?;
        let this = Self { sim, plane, client, hosts };
        this.build(clients);
        this.plane.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &this.declared())?;
        this.run_controller().await?;
        log.say(format!("{count} simulated hosts are declared, controller and agents run"));
        Ok(this)
    }

    /// Builds the simulated machines and boots them; each boot runs the real agent.
    fn build(&self, clients: BTreeMap<String, Client>) {
        let mut world = self.sim.lock();
        world.set_agent_main(agent_main(clients));
        let store = Store {
            name: STORAGE.to_owned(),
            kind: StorageKind::SharedDirectory,
            ..Store::default()
        };
        world.stores.insert(STORAGE.to_owned(), store);
        for host in &self.hosts {
            let name = format!("bmc-{host}");
            let wired = [(host.clone(), "1".to_owned())].into();
            let device = Device { name: name.clone(), wired, ..Device::default() };
            world.devices.insert(name.clone(), device);
            world.build(Build {
                name: host.clone(),
                cpu: 8,
                memory_mib: 16_384,
                boot_ms: BOOT_MILLIS,
                watchdog: WatchdogKind::Reset,
                levels: vec![vec![name]],
            });
            world.boot_now(host);
        }
    }

    fn declared(&self) -> String {
        let mut text = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\n\
             metadata: {{name: {STORAGE}}}\nspec: {{mountPath: {MOUNT}, directory: {{}}}}\n"
        );
        for host in &self.hosts {
            text.push_str(&format!(
                "---\napiVersion: stockade.dev/v1alpha1\nkind: FenceDevice\n\
                 metadata: {{name: bmc-{host}}}\n\
                 spec: {{agent: fence_ipmilan, plugs: {{{host}: \"1\"}}}}\n\
                 ---\napiVersion: stockade.dev/v1alpha1\nkind: Host\n\
                 metadata: {{name: {host}}}\nspec: {{fencing: [{{devices: [bmc-{host}]}}]}}\n"
            ));
        }
        text
    }

    async fn run_controller(&self) -> Result<(), PlayError> {
        let account =
            self.plane.service_account_kubeconfig(SYSTEM_NAMESPACE, "stockade-controller").await?;
        let gate = Gate::open();
        let context = Context {
            client: client_of(&account).await?,
            identity: format!("play-{}", std::process::id()),
            clock: true_clock(&self.sim),
            fence: Some(Arc::new(SimFence { sim: self.sim.clone(), gate: gate.clone() })),
            storage_server: Some(Arc::new(SimServer { sim: self.sim.clone(), gate })),
            namespace: SYSTEM_NAMESPACE.to_owned(),
            lease: LEASE_NAME.to_owned(),
            cluster_id: "stockade".to_owned(),
            guards: Guards::default(),
        };
        tokio::spawn(async move {
            if let Err(error) = stockade_controller::run(context, std::future::pending()).await {
                tracing::error!(%error, "the controller ended");
            }
        });
        Ok(())
    }

    /// The control plane.
    #[must_use]
    pub const fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Carries out a line that a person types, as in `cut h1`: one of [`DEEDS`] and a host.
    ///
    /// # Errors
    /// What is wrong with the line.
    pub fn obey(&self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [verb, host] = words[..] else {
            return Err(format!("say one of {DEEDS}, and a host, as in: cut h1"));
        };
        if !self.hosts.iter().any(|known| known == host) {
            return Err(format!("there is no host {host}; there is: {}", self.hosts.join(", ")));
        }
        let mut world = self.trouble();
        match verb {
            "cut" => world.switch_off(host),
            "on" => world.switch_on(host),
            "panic" => world.panic(host),
            "crash-agent" => world.crash_process(host, Which::Agent, 0),
            "kill-qemu" => {
                let machine = world.machines.get(host);
                let uids: Vec<String> =
                    machine.map(|m| m.qemus.keys().cloned().collect()).unwrap_or_default();
                for uid in &uids {
                    world.kill_process(host, uid);
                }
            }
            other => return Err(format!("{other} is unknown; say one of {DEEDS}")),
        }
        Ok(())
    }

    /// The world, for something to happen to it. Its oracle is told: from now on shooting a host
    /// may be right.
    fn trouble(&self) -> MutexGuard<'_, World> {
        let mut world = self.sim.lock();
        world.fault_beyond_api = true;
        world
    }

    /// The objects as they are, for who asks why something did not happen.
    #[must_use]
    pub fn dump(&self) -> String {
        let kinds = "virtualmachines,domains,hosts,hostfences,fencedevices,events";
        let objects = self.plane.kubectl(&["get", kinds, "-A", "-o", "yaml"]);
        objects.unwrap_or_else(|error| error.to_string())
    }

    /// Waits until every host is Ready and its plug trusted.
    ///
    /// # Errors
    /// [`PlayError::NotInTime`].
    pub async fn wait_ready(&self) -> Result<(), PlayError> {
        let hosts: Api<Host> = Api::all(self.client.clone());
        self.until("every host is Ready, and its fencing too", async || {
            let all = hosts.list(&ListParams::default()).await.map_err(|e| e.to_string())?.items;
            let is = |host: &Host, kind: &str| {
                let conditions = host.status.iter().flat_map(|status| &status.conditions);
                conditions.into_iter().any(|c| c.type_ == kind && c.status == "True")
            };
            let ready = all.iter().filter(|h| is(h, "Ready") && is(h, "FencingReady")).count();
            if ready == self.hosts.len() { Ok(()) } else { Err(format!("{ready} are")) }
        })
        .await
    }

    async fn until<T>(
        &self,
        what: &str,
        mut probe: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, PlayError> {
        let started = Instant::now();
        loop {
            let last = match probe().await {
                Ok(value) => return Ok(value),
                Err(last) => last,
            };
            if started.elapsed() > LIMIT {
                return Err(PlayError::NotInTime { what: what.to_owned(), last });
            }
            sleep(PAUSE).await;
        }
    }
}

/// A client that retries nothing by itself, as the programs have.
async fn client_of(kubeconfig: &Path) -> Result<Client, PlayError> {
    let what = || format!("use {}", kubeconfig.display());
    let wrong = |error: &dyn std::error::Error| PlayError::Wrong(format!("{}: {error}", what()));
    let file = Kubeconfig::read_from(kubeconfig).map_err(|error| wrong(&error))?;
    let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| wrong(&error))?;
    config.default_retry = false;
    Client::try_from(config).map_err(PlayError::api(what()))
}

/// What runs as the agent in each life of a simulated host's: the real one, by the host's client.
/// One that gives up is started again by its supervisor.
#[must_use]
pub fn agent_main(clients: BTreeMap<String, Client>) -> AgentMain {
    Arc::new(move |life: AgentLife| {
        let client = clients.get(&life.host).cloned();
        async move {
            let Some(client) = client else { return };
            let gate = life.gate.clone();
            let config = AgentConfig::new(life.host);
            let agent = stockade_agent::run(client, life.ports, config, std::future::pending());
            let _ = gate.run(agent).await;
        }
        .boxed()
    })
}
