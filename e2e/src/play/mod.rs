//! A whole Stockade on one machine: a private control plane with the charts, the controller, and
//! real libvirt hosts in namespaces, each with its agent.
//!
//! In: nothing but the built programs. Out: a [`Cluster`] whose hosts are declared, to play with
//! or to take through the [`tour`](self::tour()). No part of the product has more rights than the
//! charts give. Dropping the value ends and removes all of it.

mod failures;
mod program;
mod simulated;
mod tour;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use kube::{Api, Client};
use stockade_crds::v1alpha1::Host;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

pub use self::program::{Program, Programs, tail};
pub use self::simulated::{DEEDS, Simulated, agent_main};
pub use self::tour::{hung_agent, moves, tour};
use crate::bmc::Bmc;
use crate::control_plane::{self, ControlPlane, Options, SYSTEM_NAMESPACE};
use crate::local_hosts::{
    LocalHost, LocalHosts, LocalHostsError, Network, ProcessId, Signal, end_left,
};
use crate::owned;

/// How long any one thing may take. A host's first start probes what its QEMU can do, and a busy
/// machine takes most of a minute for that.
const LIMIT: Duration = Duration::from_secs(120);
/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(200);
/// Lines of each log in a dump.
const DUMP_LINES: usize = 40;
/// How the folders of plays begin.
const PREFIX: &str = "stockade-play-";
/// Where the hosts are in it.
const HOSTS: &str = "hosts";
/// QEMU's name as the kernel keeps it, 15 bytes at most.
const QEMU: &str = "qemu-system-x86";
/// The SharedStorage that all hosts have.
pub const STORAGE: &str = "shared";

/// Why it can't be played, or what did not happen.
#[derive(Debug, thiserror::Error)]
pub enum PlayError {
    /// A program is not built.
    #[error("{0} is not built: run `cargo build --workspace --bins --features stockade/agent`")]
    Missing(String),
    /// A file or process can't be had.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The control plane can't be started or used.
    #[error("the control plane failed")]
    ControlPlane(#[from] control_plane::Error),
    /// The hosts can't be started or used.
    #[error("the local hosts failed")]
    Hosts(#[from] LocalHostsError),
    /// The API refused something.
    #[error("{what}")]
    Api {
        /// What was asked.
        what: String,
        /// What the server said.
        source: Box<kube::Error>,
    },
    /// A program of ours ended while it was needed.
    #[error("{0} ended by itself")]
    Ended(String),
    /// Something did not happen in time.
    #[error("not within {} s: {what} ({last})", LIMIT.as_secs())]
    NotInTime {
        /// What was awaited.
        what: String,
        /// What was seen last.
        last: String,
    },
    /// Something happened that must not.
    #[error("{0}")]
    Wrong(String),
}

impl PlayError {
    /// Gives an I/O error the words that say what was tried.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Gives an API error the words that say what was asked.
    fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source: Box::new(source) }
    }
}

/// Tells what happened, and when since the start.
#[derive(Clone, Copy, Debug)]
pub struct Log {
    started: Instant,
    on_stderr: bool,
}

impl Log {
    /// Starts to count, and tells on stdout.
    #[must_use]
    pub fn new() -> Self {
        Self { started: Instant::now(), on_stderr: false }
    }

    /// Starts to count, and tells on stderr.
    #[must_use]
    pub fn on_stderr() -> Self {
        Self { on_stderr: true, ..Self::new() }
    }

    /// Tells one thing.
    pub fn say(&self, text: impl AsRef<str>) {
        let line = format!("{:6.1} s  {}", self.started.elapsed().as_secs_f64(), text.as_ref());
        if self.on_stderr {
            eprintln!("{line}");
        } else {
            println!("{line}");
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self::new()
    }
}

/// Whether a host is drained; what it says instead.
async fn is_drained(hosts: &Api<Host>, name: &str) -> Result<(), String> {
    let host = hosts.get(name).await.map_err(|error| error.to_string())?;
    let conditions = host.status.map(|s| s.conditions).unwrap_or_default();
    match conditions.into_iter().find(|c| c.type_ == "Drained") {
        Some(c) if c.status == "True" => Ok(()),
        other => Err(format!("{:?}", other.map(|c| c.message))),
    }
}

/// A running Stockade; dropping it ends and removes all of it.
pub struct Cluster {
    // Fields drop in this order: programs, their hosts, the control plane, the logs.
    agents: BTreeMap<String, Program>,
    controller: Program,
    listen: String,
    /// Further words for each agent.
    words: Vec<String>,
    bmcs: BTreeMap<String, Bmc>,
    hosts: LocalHosts,
    plane: ControlPlane,
    folder: TempDir,
    programs: Programs,
    client: Client,
}

/// Does something on so many hosts that are Ready, and ends them all.
///
/// # Errors
/// What went wrong, its source, and [`Cluster::dump`] if it came to hosts at all.
pub async fn on_hosts(
    count: usize,
    deed: impl AsyncFnOnce(&mut Cluster, &Log) -> Result<(), PlayError>,
) -> Result<(), String> {
    let told = |error: PlayError| {
        let source = std::error::Error::source(&error).map(ToString::to_string);
        format!("{error}: {source:?}")
    };
    let log = Log::new();
    let mut cluster = Cluster::start(count, false, &log).await.map_err(told)?;
    let mut done = cluster.wait_ready().await;
    if done.is_ok() {
        done = deed(&mut cluster, &log).await;
    }
    done.map_err(|error| format!("{}\n{}", told(error), cluster.dump()))
}

impl Cluster {
    /// Starts everything and declares `count` hosts, h1 first, with one shared storage. What a killed
    /// owner left is ended and removed first.
    ///
    /// `controller_manager`: namespaces of deleted hosts go away too.
    ///
    /// # Errors
    /// What could not be started; nothing of it is left then.
    pub async fn start(
        count: usize,
        controller_manager: bool,
        log: &Log,
    ) -> Result<Self, PlayError> {
        Self::start_with(count, controller_manager, &[], log).await
    }

    /// As [`Cluster::start`], with further words for each `stockade-agent run`.
    ///
    /// # Errors
    /// As there.
    pub async fn start_with(
        count: usize,
        controller_manager: bool,
        words: &[&str],
        log: &Log,
    ) -> Result<Self, PlayError> {
        let programs = Programs::find()?;
        owned::sweep(PREFIX, |folder| end_left(&folder.join(HOSTS)));
        let folder = tempfile::Builder::new()
            .prefix(PREFIX)
            .tempdir()
            .map_err(PlayError::io("make a folder"))?;
        owned::own(folder.path()).map_err(PlayError::io("name the folder's owner"))?;
        let options = Options { controller_manager, audit: true, ..Options::default() };
        let plane = ControlPlane::start(options).await?;
        plane.install_charts().await?;
        log.say(format!("control plane at {} with the charts", plane.server()));
        let hosts = LocalHosts::start(count, &folder.path().join(HOSTS))?;
        log.say(format!("{count} hosts, each with a libvirtd of its own"));
        let mut bmcs = BTreeMap::new();
        for host in hosts.hosts() {
            bmcs.insert(host.name(), host.bmc()?);
        }
        let kubeconfig =
            plane.service_account_kubeconfig(SYSTEM_NAMESPACE, "stockade-controller").await?;
        let log_file = folder.path().join("controller.log");
        let (controller, listen) = programs.controller(&kubeconfig, "info", log_file)?;
        let client = plane.setup_client().await?;
        let mut this = Self {
            agents: BTreeMap::new(),
            controller,
            listen,
            words: words.iter().map(|word| (*word).to_owned()).collect(),
            bmcs,
            hosts,
            plane,
            folder,
            programs,
            client,
        };
        this.plane.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &this.declared())?;
        for name in this.host_names() {
            this.start_agent(&name)?;
        }
        log.say("controller and agents are started, hosts and storage are declared");
        Ok(this)
    }

    /// The objects that a person would declare.
    fn declared(&self) -> String {
        let mut text = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\n\
             metadata: {{name: {STORAGE}}}\nspec: {{mountPath: {}, directory: {{}}}}\n",
            self.hosts.shared().display()
        );
        for host in self.hosts.hosts() {
            let name = host.name();
            let _ = write!(
                text,
                "---\napiVersion: stockade.dev/v1alpha1\nkind: Host\nmetadata: {{name: {name}}}\n\
                 spec: {{addresses: {{management: {}, migration: {}}}, fencing: [{{devices: \
                 [bmc-{name}]}}]}}\n",
                host.management_address(),
                host.address()
            );
            if let Some(bmc) = self.bmcs.get(&name) {
                text.push_str(&bmc.manifests(&name, SYSTEM_NAMESPACE));
            }
        }
        text
    }

    /// Waits until every host is Ready.
    ///
    /// # Errors
    /// [`PlayError::NotInTime`] with what each host says.
    pub async fn wait_ready(&self) -> Result<(), PlayError> {
        let hosts: Api<Host> = Api::all(self.client.clone());
        let count = self.hosts.hosts().len();
        self.until("every host is Ready", async || {
            let all = hosts.list(&kube::api::ListParams::default()).await;
            let all = all.map_err(|error| error.to_string())?.items;
            let mut waiting = Vec::new();
            let mut ready = 0;
            for host in &all {
                let conditions = host.status.iter().flat_map(|status| &status.conditions);
                let condition = conditions.into_iter().find(|c| c.type_ == "Ready");
                if condition.is_some_and(|c| c.status == "True") {
                    ready += 1;
                } else {
                    let why = condition.map_or("no condition", |c| c.message.as_str());
                    waiting.push(format!("{}: {why}", host.metadata.name.as_deref().unwrap_or("")));
                }
            }
            if ready == count { Ok(()) } else { Err(waiting.join("; ")) }
        })
        .await
    }

    /// A client with the rights of the one who plays.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The control plane.
    #[must_use]
    pub const fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// Folder that all hosts share: the storage [`STORAGE`].
    #[must_use]
    pub fn shared(&self) -> PathBuf {
        self.hosts.shared()
    }

    /// Where the controller's metrics are.
    #[must_use]
    pub fn metrics_url(&self) -> String {
        format!("http://{}/metrics", self.listen)
    }

    /// The folder with the logs.
    #[must_use]
    pub fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// The hosts.
    #[must_use]
    pub fn hosts(&self) -> &[LocalHost] {
        self.hosts.hosts()
    }

    fn host_names(&self) -> Vec<String> {
        self.hosts().iter().map(LocalHost::name).collect()
    }

    /// A host by its name.
    ///
    /// # Errors
    /// [`PlayError::Wrong`] if there is none.
    pub fn host(&self, name: &str) -> Result<&LocalHost, PlayError> {
        let host = self.hosts().iter().find(|host| host.name() == name);
        host.ok_or_else(|| PlayError::Wrong(format!("there is no host {name:?}")))
    }

    /// Starts a host's agent inside the host, with the identity of that host alone.
    ///
    /// # Errors
    /// A host without power, or a file or process that can't be had.
    pub fn start_agent(&mut self, name: &str) -> Result<(), PlayError> {
        let user = format!("stockade:host:{name}");
        let kubeconfig = self.plane.kubeconfig(&user, &["stockade:hosts"])?;
        let program = self.programs.agent.to_string_lossy();
        // The control plane is on the machine's loopback. A machine that is itself a guest may
        // have a /dev/kvm that QEMU dies of.
        let mut command = self.host(name)?.command(&program, Network::Machine)?;
        command
            .args(["run", "--emulated", "--host", name, "--restart-libvirt"])
            .arg(self.host(name)?.restart_program())
            .args(&self.words)
            .env("KUBECONFIG", kubeconfig)
            .env("RUST_LOG", "info");
        let log = self.folder.path().join(format!("agent-{name}.log"));
        let agent = Program::start(&format!("agent of {name}"), log, command)?;
        self.agents.insert(name.to_owned(), agent);
        Ok(())
    }

    /// Signals the controller.
    ///
    /// # Errors
    /// It can't be signalled.
    pub fn signal_controller(&self, signal: Signal) -> Result<(), PlayError> {
        let pid = i32::try_from(self.controller.child().id()).ok();
        let process = pid.and_then(ProcessId::of);
        let process = process.ok_or_else(|| PlayError::Ended("controller".to_owned()))?;
        process.signal(signal).map_err(PlayError::io("signal the controller"))
    }

    /// A host's BMC.
    ///
    /// # Errors
    /// [`PlayError::Wrong`] if there is none.
    pub fn bmc(&self, name: &str) -> Result<&Bmc, PlayError> {
        self.bmcs.get(name).ok_or_else(|| PlayError::Wrong(format!("no BMC belongs to {name:?}")))
    }

    /// Boots the hosts whose BMC was told to give power, and their agents as an init would.
    ///
    /// # Errors
    /// A host that does not boot.
    pub fn tend(&mut self) -> Result<(), PlayError> {
        let wanted: Vec<String> = self
            .hosts()
            .iter()
            .filter(|host| host.is_power_wanted())
            .map(LocalHost::name)
            .collect();
        for name in wanted {
            self.host(&name)?.power_on()?;
            self.start_agent(&name)?;
        }
        Ok(())
    }

    /// Kills a host's agent, and nothing else.
    ///
    /// # Errors
    /// [`PlayError::Wrong`] if it does not run.
    pub fn kill_agent(&mut self, name: &str) -> Result<(), PlayError> {
        let agent = self.agents.remove(name);
        drop(agent.ok_or_else(|| PlayError::Wrong(format!("no agent runs on {name}")))?);
        Ok(())
    }

    /// Every QEMU that runs, with its host.
    #[must_use]
    pub fn qemus(&self) -> Vec<(String, ProcessId)> {
        let of = |host: &LocalHost| {
            let name = host.name();
            host.processes(QEMU).into_iter().map(move |process| (name.clone(), process))
        };
        self.hosts().iter().flat_map(of).collect()
    }

    /// Looks until the probe says that it is so. What it says instead is told if it never is.
    ///
    /// # Errors
    /// [`PlayError::NotInTime`], [`PlayError::Ended`].
    pub async fn until<T>(
        &self,
        what: &str,
        mut probe: impl AsyncFnMut() -> Result<T, String>,
    ) -> Result<T, PlayError> {
        let started = Instant::now();
        loop {
            // What ran on a host without power has ended with it.
            let agents =
                self.agents.iter().filter(|(name, _)| self.host(name).is_ok_and(LocalHost::is_on));
            let mut programs =
                std::iter::once(&self.controller).chain(agents.map(|(_, agent)| agent));
            if let Some(ended) = programs.find(|program| !program.lives()) {
                return Err(PlayError::Ended(ended.name().to_owned()));
            }
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

    /// What a person needs who asks why something did not happen: the objects and the logs.
    #[must_use]
    pub fn dump(&self) -> String {
        let kinds = "virtualmachines,domains,hosts,hostagents,hostfences,\
                     fencedevices,sharedstorages,leases,events";
        let objects = self
            .plane
            .kubectl(&["get", kinds, "--all-namespaces", "-o", "yaml"])
            .unwrap_or_else(|error| error.to_string());
        let mut text = format!("--- objects\n{objects}\n");
        let mut logs: Vec<PathBuf> = std::fs::read_dir(self.folder.path())
            .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
            .unwrap_or_default();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        logs.extend(self.hosts().iter().map(|host| host.dir().join("libvirtd.log")));
        for log in logs {
            let _ = writeln!(text, "--- {}\n{}", log.display(), tail(&log, DUMP_LINES));
        }
        text
    }
}
