//! `stockade controller`: runs the controller until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use kube::Config;
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use stockade_controller::{Context, CountRequests, Observed, ServingHosts};
use stockade_core::world::Guards;
use stockade_crds::names::SYSTEM_NAMESPACE;
use stockade_host::fence::{FenceAgents, FenceOptions};
use stockade_host::machine::RealClock;
use stockade_host::ports::Clock;
use thiserror::Error;

use super::failed;
use super::serve::serve;

/// Where the API is and who this process is.
#[derive(clap::Args)]
pub(super) struct Arguments {
    /// Kubeconfig of the controller; absent: KUBECONFIG, or the pod's own account.
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Namespace of the leader's Lease and of the fence secrets.
    #[arg(long, env = "POD_NAMESPACE", default_value = SYSTEM_NAMESPACE)]
    namespace: String,
    /// Name of this replica in the leader's Lease.
    #[arg(long, env = "POD_NAME", default_value = "controller")]
    name: String,
    /// Identity of the cluster, named by the marker on each storage.
    #[arg(long, env = "STOCKADE_CLUSTER_ID", default_value = "stockade")]
    cluster_id: String,
    /// Address that /metrics, /healthz and /readyz are served on, as in 0.0.0.0:8080; absent: none.
    #[arg(long, env = "STOCKADE_LISTEN", value_name = "ADDRESS:PORT")]
    listen: Option<SocketAddr>,
    /// Folder that fence agents are run from.
    #[arg(long, env = "STOCKADE_FENCE_FOLDER", default_value = "/usr/sbin")]
    fence_folder: PathBuf,
    /// A fence agent that may be run beside those that are known to cut power; may be repeated.
    #[arg(
        long = "fence-agent",
        value_name = "NAME",
        env = "STOCKADE_FENCE_AGENTS",
        value_delimiter = ','
    )]
    fence_agents: Vec<String>,
}

#[derive(Debug, Error)]
enum StartError {
    #[error("the kubeconfig can't be used")]
    Kubeconfig(#[source] kube::config::KubeconfigError),
    #[error("no API server is configured; give --kubeconfig or KUBECONFIG")]
    Infer(#[source] kube::config::InferConfigError),
    #[error("{0} can't be listened on; give --listen another address or port")]
    Listen(SocketAddr, #[source] std::io::Error),
    #[error("the client can't be built")]
    Client(#[source] kube::Error),
    #[error("the runtime can't be started")]
    Runtime(#[source] std::io::Error),
}

/// Runs it.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env()
                .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info")),
        )
        .with_writer(std::io::stderr)
        .init();
    match start(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

fn start(arguments: &Arguments) -> Result<(), StartError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(StartError::Runtime)?;
    runtime.block_on(async {
        let mut config = match &arguments.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path).map_err(StartError::Kubeconfig)?;
                Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                    .await
                    .map_err(StartError::Kubeconfig)?
            }
            None => Config::infer().await.map_err(StartError::Infer)?,
        };
        // Every request has a time of its own; a retry is the next plan's decision.
        config.default_retry = false;
        let clock = Arc::new(RealClock);
        let observed = Arc::new(Observed::new(clock.clone()));
        let client = ClientBuilder::try_from(config)
            .map_err(StartError::Client)?
            .with_layer(&CountRequests(Arc::clone(&observed)))
            .build();
        let identity = format!("{}-{}-{}", arguments.name, std::process::id(), clock.wall_millis());
        if let Some(address) = arguments.listen {
            let serving = serve(address, Arc::clone(&observed)).await;
            tokio::spawn(serving.map_err(|error| StartError::Listen(address, error))?);
        }
        let storage_server = Arc::new(ServingHosts::new(client.clone(), clock.clone()));
        let context = Context {
            client,
            identity,
            clock,
            fence: Some(Arc::new(FenceAgents::new(FenceOptions {
                folder: arguments.fence_folder.clone(),
                extra: arguments.fence_agents.iter().cloned().collect(),
            }))),
            storage_server: Some(storage_server),
            namespace: arguments.namespace.clone(),
            lease: stockade_controller::LEASE_NAME.to_owned(),
            cluster_id: arguments.cluster_id.clone(),
            guards: Guards::default(),
        };
        tracing::info!(namespace = %arguments.namespace, "the controller begins");
        // A controller that is running has nothing left that could fail for good.
        let ended = stockade_controller::run_observed(context, observed, stop()).await;
        if let Err(error) = ended {
            tracing::error!(%error, "the controller ended");
        }
        tracing::info!("the controller has ended, and leads no more");
        Ok(())
    })
}

/// Ends with SIGTERM or SIGINT.
async fn stop() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut term), Ok(mut int)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return std::future::pending().await;
    };
    tokio::select! {
        biased;
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
}
