//! A real Kubernetes control plane on loopback: etcd and kube-apiserver, with
//! kube-controller-manager where namespaces must go away or charts must settle.
//!
//! In: [`Options`]. Out: a [`ControlPlane`] that writes kubeconfigs for any identity, hands out
//! clients, runs kubectl, and reads the server's audit log. RBAC is on, so nobody has more rights
//! than what was applied gives. Everything lives in one private folder that goes, with the
//! processes, when the value is dropped or when the program dies in whatever way.

mod audit;
mod binaries;
mod charts;
mod identity;
mod nest;
mod shared;
#[cfg(test)]
mod tests;

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Namespace, ServiceAccount};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use rustix::process::Signal;
use tokio::time::{Instant, sleep};

pub use self::audit::{Mark, Write};
pub use self::binaries::Binaries;
pub use self::charts::SYSTEM_NAMESPACE;
use self::identity::Authority;
use self::nest::Nest;
pub use self::shared::{shared, with_control_plane};

/// Why a control plane can't be started or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program is neither built nor installed.
    #[error("{0} is missing: run e2e/tools/build")]
    Missing(String),
    /// A file, folder or process can't be had.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A key or certificate can't be made.
    #[error("certificate for {0}: {1}")]
    Certificate(String, #[source] rcgen::Error),
    /// Our certificates carry two groups at most.
    #[error("{0} has more than two groups: a client certificate of ours carries two at most")]
    TooManyGroups(String),
    /// A program ended while it was needed.
    #[error("{program} ended ({status}); the end of its log:\n{log}")]
    Ended {
        /// The program's name.
        program: String,
        /// How it ended.
        status: String,
        /// The last lines it wrote.
        log: String,
    },
    /// The server did not become ready in time.
    #[error("not ready after {seconds} s ({last}); the end of each log:\n{log}")]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// The last answer of the server.
        last: String,
        /// The last lines of every program.
        log: String,
    },
    /// A kubeconfig that was written here can't be read back.
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The server refused, or could not be reached.
    #[error(transparent)]
    Kube(#[from] Box<kube::Error>),
    /// A command (kubectl, helm) failed.
    #[error("{command}: {stderr}")]
    Failed {
        /// The command line.
        command: String,
        /// What it wrote to stderr.
        stderr: String,
    },
}

impl From<kube::Error> for Error {
    fn from(source: kube::Error) -> Self {
        Self::Kube(Box::new(source))
    }
}

impl Error {
    /// Gives an I/O error the words that say what was tried.
    fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }
}

/// A bearer token that the server knows from its start.
#[derive(Debug, Clone)]
pub struct Token {
    /// The token itself; whoever shows it is `user`.
    pub token: String,
    /// The user's name.
    pub user: String,
    /// The user's groups.
    pub groups: Vec<String>,
}

/// What a control plane is started with.
#[derive(Debug, Clone)]
pub struct Options {
    /// Starts kube-controller-manager too: without it a deleted namespace stays Terminating,
    /// nothing is garbage-collected, no Deployment gets its pods, and the aggregated roles (`admin`,
    /// `edit`, `view`) stay empty.
    pub controller_manager: bool,
    /// Writes an audit log of every write request, for [`ControlPlane::writes_since`].
    pub audit: bool,
    /// Static bearer tokens, beside client certificates and service account tokens.
    pub tokens: Vec<Token>,
    /// How long to wait for the server to be ready.
    pub ready_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controller_manager: false,
            audit: false,
            tokens: Vec::new(),
            ready_timeout: Duration::from_secs(90),
        }
    }
}

/// A running control plane; dropping it ends its processes and removes its folder.
#[derive(Debug)]
pub struct ControlPlane {
    nest: Nest,
    authority: Authority,
    binaries: Binaries,
    server: String,
}

/// The group that may do everything; for installing only, never for a part of the product.
const MASTERS: &str = "system:masters";
/// The identity that installs charts and looks after the tests' own namespaces.
const SETUP_USER: &str = "stockade:setup";

impl ControlPlane {
    /// Starts etcd and kube-apiserver and waits until the server is ready (2–5 s).
    ///
    /// # Errors
    /// [`Error::Missing`] when a program is not built, [`Error::Ended`] and [`Error::NotReady`]
    /// with the logs when one does not come up.
    pub async fn start(options: Options) -> Result<Self, Error> {
        let binaries = Binaries::find()?;
        let mut attempt = 0;
        loop {
            attempt += 1;
            match Self::attempt(&binaries, &options).await {
                // Between choosing a free port and listening on it somebody else may have
                // taken it.
                Err(Error::Ended { log, .. })
                    if attempt < 4 && log.contains("address already in use") => {}
                other => return other,
            }
        }
    }

    async fn attempt(binaries: &Binaries, options: &Options) -> Result<Self, Error> {
        let mut nest = Nest::new()?;
        let port = free_port()?;
        let authority = Authority::new(nest.dir())?;
        let plane_files = write_files(&nest, &authority, options)?;
        nest.start("etcd", &mut etcd(binaries))?;
        nest.start("kube-apiserver", &mut apiserver(binaries, port, &plane_files))?;
        let mut plane = Self {
            nest,
            authority,
            binaries: binaries.clone(),
            server: format!("https://127.0.0.1:{port}"),
        };
        plane.wait_ready(options.ready_timeout).await?;
        if options.controller_manager {
            let kubeconfig = plane.kubeconfig("system:kube-controller-manager", &[])?;
            let mut command = controller_manager(&plane.binaries, &kubeconfig);
            plane.nest.start("kube-controller-manager", &mut command)?;
        }
        Ok(plane)
    }

    /// Asks /readyz until it says ok, and gives up early when a program has ended.
    async fn wait_ready(&mut self, timeout: Duration) -> Result<(), Error> {
        let client = self.client(SETUP_USER, &[MASTERS]).await?;
        let start = Instant::now();
        loop {
            self.nest.all_running()?;
            let request = http_get("/readyz");
            let last = match client.request_text(request).await {
                Ok(_) => return Ok(()),
                Err(error) => error.to_string(),
            };
            if start.elapsed() >= timeout {
                return Err(Error::NotReady {
                    seconds: timeout.as_secs(),
                    last,
                    log: self.nest.logs(),
                });
            }
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The server's address, `https://127.0.0.1:<port>`.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The private folder of this control plane; it goes when the value is dropped.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.nest.dir()
    }

    /// The programs that it runs.
    #[must_use]
    pub const fn binaries(&self) -> &Binaries {
        &self.binaries
    }

    /// The last lines of the log of every program, each under its name.
    #[must_use]
    pub fn logs(&self) -> String {
        self.nest.logs()
    }

    /// Fails when one of the programs has ended, with the end of its log.
    ///
    /// # Errors
    /// [`Error::Ended`].
    pub fn all_running(&mut self) -> Result<(), Error> {
        self.nest.all_running()
    }

    /// Sends a signal to one of the programs (etcd, kube-apiserver, …).
    ///
    /// # Errors
    /// There is none of that name, or it has ended.
    pub fn signal(&self, program: &str, signal: Signal) -> Result<(), Error> {
        self.nest.signal(program, signal)
    }

    /// Writes a kubeconfig that shows a client certificate for `user` in `groups` (two at most),
    /// and gives its path. The same identity gets the same file.
    ///
    /// # Errors
    /// [`Error::TooManyGroups`], or a file that can't be written.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> Result<PathBuf, Error> {
        self.authority.kubeconfig(&self.server, user, groups)
    }

    /// A kubeconfig of the identity that installs: it may do everything. No part of the product
    /// runs with it.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn setup_kubeconfig(&self) -> Result<PathBuf, Error> {
        self.kubeconfig(SETUP_USER, &[MASTERS])
    }

    /// A client with the identity that installs.
    ///
    /// # Errors
    /// As [`ControlPlane::client`].
    pub async fn setup_client(&self) -> Result<Client, Error> {
        self.client(SETUP_USER, &[MASTERS]).await
    }

    /// A client that shows a certificate for `user` in `groups` (two at most). It belongs to the
    /// runtime that it was made on: make one a test.
    ///
    /// # Errors
    /// As [`ControlPlane::kubeconfig`].
    pub async fn client(&self, user: &str, groups: &[&str]) -> Result<Client, Error> {
        client_of(&self.kubeconfig(user, groups)?).await
    }

    /// Writes a kubeconfig that shows a bearer token (of [`Options::tokens`], say); `name` names
    /// the file.
    ///
    /// # Errors
    /// A file that can't be written.
    pub fn token_kubeconfig(&self, name: &str, token: &str) -> Result<PathBuf, Error> {
        self.authority.token_kubeconfig(&self.server, name, token)
    }

    /// Writes a kubeconfig with a fresh token of a service account, as a pod would have it. The
    /// account and its namespace are made if they are not there.
    ///
    /// # Errors
    /// The server's refusal, or a file that can't be written.
    pub async fn service_account_kubeconfig(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<PathBuf, Error> {
        let client = self.setup_client().await?;
        self.ensure_namespace(namespace).await?;
        let accounts: Api<ServiceAccount> = Api::namespaced(client, namespace);
        if accounts.get_opt(name).await?.is_none() {
            let account = ServiceAccount {
                metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
                ..ServiceAccount::default()
            };
            accounts.create(&PostParams::default(), &account).await?;
        }
        let request = TokenRequest {
            spec: TokenRequestSpec {
                expiration_seconds: Some(24 * 3600),
                ..TokenRequestSpec::default()
            },
            ..TokenRequest::default()
        };
        let answer = accounts.create_token_request(name, &PostParams::default(), &request).await?;
        let token = answer.status.map(|status| status.token).unwrap_or_default();
        self.authority.token_kubeconfig(&self.server, &format!("{namespace}.{name}"), &token)
    }

    /// A client with a fresh token of a service account.
    ///
    /// # Errors
    /// As [`ControlPlane::service_account_kubeconfig`].
    pub async fn service_account_client(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Client, Error> {
        client_of(&self.service_account_kubeconfig(namespace, name).await?).await
    }

    /// Makes a namespace unless it is there.
    ///
    /// # Errors
    /// The server's refusal.
    pub async fn ensure_namespace(&self, name: &str) -> Result<(), Error> {
        let namespaces: Api<Namespace> = Api::all(self.setup_client().await?);
        let namespace = Namespace {
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            ..Namespace::default()
        };
        match namespaces.create(&PostParams::default(), &namespace).await {
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            other => other.map(|_| ()).map_err(Error::from),
        }
    }

    /// Runs kubectl with the identity that installs, and gives what it wrote.
    ///
    /// # Errors
    /// [`Error::Failed`] with kubectl's stderr when it exits with an error.
    pub fn kubectl(&self, args: &[&str]) -> Result<String, Error> {
        let output = self.kubectl_as(&self.setup_kubeconfig()?, args)?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(Error::Failed {
            command: format!("kubectl {}", args.join(" ")),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// Runs kubectl with a kubeconfig, and gives its exit status and what it wrote.
    ///
    /// # Errors
    /// When it can't be run at all.
    pub fn kubectl_as(&self, kubeconfig: &Path, args: &[&str]) -> Result<Output, Error> {
        self.kubectl_command(kubeconfig)?.args(args).output().map_err(Error::io("run kubectl"))
    }

    fn kubectl_command(&self, kubeconfig: &Path) -> Result<Command, Error> {
        let mut command = Command::new(self.binaries.kubectl()?);
        command
            .env("KUBECONFIG", kubeconfig)
            // No cache of discovery: it would stay in the user's home.
            .env("KUBECACHEDIR", self.dir().join("kubectl-cache"))
            .current_dir(self.dir());
        Ok(command)
    }

    /// A point in the audit log, to count from.
    #[must_use]
    pub fn mark(&self) -> Mark {
        audit::mark(&self.audit_log())
    }

    /// The write requests that the server has answered since `mark`, Events included; Leases and
    /// reviews (of access, of tokens) left out. Empty unless [`Options::audit`] was set.
    ///
    /// # Errors
    /// A log that can't be read.
    pub fn writes_since(&self, mark: Mark) -> Result<Vec<Write>, Error> {
        audit::writes_since(&self.audit_log(), mark)
    }

    fn audit_log(&self) -> PathBuf {
        self.dir().join(audit::LOG)
    }
}

/// The paths that kube-apiserver's flags name.
struct PlaneFiles {
    audit: bool,
    tokens: bool,
}

fn write_files(nest: &Nest, authority: &Authority, options: &Options) -> Result<PlaneFiles, Error> {
    authority.write_server_files()?;
    if options.audit {
        audit::write_policy(nest.dir())?;
    }
    if !options.tokens.is_empty() {
        let lines: String = options
            .tokens
            .iter()
            .map(|token| {
                let Token { token, user, groups } = token;
                format!("{token},{user},{user},\"{}\"\n", groups.join(","))
            })
            .collect();
        identity::write_private(&nest.dir().join("tokens.csv"), &lines)?;
    }
    Ok(PlaneFiles { audit: options.audit, tokens: !options.tokens.is_empty() })
}

/// The programs run in the nest's folder, so their files are named relative to it. etcd listens on
/// sockets in that private folder: nobody else on the machine can go around the server's rules.
fn etcd(binaries: &Binaries) -> Command {
    let mut command = Command::new(&binaries.etcd);
    command.args([
        "--data-dir=etcd",
        // The data dies with the folder; there is nothing to make durable.
        "--unsafe-no-fsync",
        "--listen-client-urls=unix://etcd.sock:0",
        "--advertise-client-urls=unix://etcd.sock:0",
        "--listen-peer-urls=unix://peer.sock:0",
        "--initial-advertise-peer-urls=unix://peer.sock:0",
        "--initial-cluster=default=unix://peer.sock:0",
        "--log-level=warn",
    ]);
    command
}

fn apiserver(binaries: &Binaries, port: u16, files: &PlaneFiles) -> Command {
    let mut command = Command::new(&binaries.kube_apiserver);
    command.args([
        "--etcd-servers=unix://etcd.sock:0",
        "--bind-address=127.0.0.1",
        "--external-hostname=localhost",
        "--authorization-mode=Node,RBAC",
        "--client-ca-file=ca.crt",
        "--tls-cert-file=server.crt",
        "--tls-private-key-file=server.key",
        "--service-account-issuer=https://kubernetes.default.svc",
        "--service-account-key-file=sa.pub",
        "--service-account-signing-key-file=sa.key",
        "--service-cluster-ip-range=10.0.0.0/24",
        // An Endpoints object may not name a loopback address.
        "--endpoint-reconciler-type=none",
        // Pods never run here; their accounts need not be there before them.
        "--disable-admission-plugins=ServiceAccount",
        "--profiling=false",
    ]);
    command.arg(format!("--secure-port={port}"));
    if files.tokens {
        command.arg("--token-auth-file=tokens.csv");
    }
    if files.audit {
        command.args(audit::flags());
    }
    command
}

fn controller_manager(binaries: &Binaries, kubeconfig: &Path) -> Command {
    let mut command = Command::new(&binaries.kube_controller_manager);
    command.args([
        "--service-account-private-key-file=sa.key",
        "--root-ca-file=ca.crt",
        "--cluster-signing-cert-file=ca.crt",
        "--cluster-signing-key-file=ca.key",
        // As a real cluster does it: each controller with its own narrow role.
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        // No metrics port.
        "--secure-port=0",
        "--profiling=false",
    ]);
    command.arg(format!("--kubeconfig={}", kubeconfig.display()));
    command
}

async fn client_of(kubeconfig: &Path) -> Result<Client, Error> {
    let read = Kubeconfig::read_from(kubeconfig)?;
    let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn http_get(path: &str) -> http::Request<Vec<u8>> {
    let mut request = http::Request::new(Vec::new());
    if let Ok(uri) = path.parse() {
        *request.uri_mut() = uri;
    }
    request
}

fn free_port() -> Result<u16, Error> {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(Error::io("find a free port"))
}
