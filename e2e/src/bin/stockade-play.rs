//! `./dev play`: a whole Stockade on this machine, to play with or to see it do its work.

use std::process::ExitCode;
use std::time::Duration;

use stockade_e2e::play::{Cluster, DEEDS, Log, PlayError, STORAGE, Simulated, tour};
use tokio::signal::unix::{SignalKind, signal};

const HELP: &str = "usage: stockade-play [--simulated] [--once]
without --once: three hosts to play with until Ctrl-C
--simulated: hosts that are not there, in real time; neither root nor libvirt is needed
--once: a VM is taken through its life, a line a step; exits 0 only if all of it happened";

/// Pause between two looks at what the BMCs were told.
const TEND: Duration = Duration::from_millis(300);

/// Refused by name, because they are not there yet.
const NOT_THERE: [&str; 1] = ["--kubeconfig"];

// One thread: programs that die with the thread that started them then die with us alone.
#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    let (mut once, mut simulated) = (false, false);
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--once" => once = true,
            "--simulated" => simulated = true,
            "-h" | "--help" => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            other => {
                let name = other.split('=').next().unwrap_or_default();
                if NOT_THERE.contains(&name) {
                    eprintln!("play: {name} is not there yet");
                } else {
                    eprintln!("play: {other} is unknown\n{HELP}");
                }
                return ExitCode::from(2);
            }
        }
    }
    tracing_subscriber::fmt()
        // Until the server is up each try to reach it fails.
        .with_env_filter(tracing_subscriber::EnvFilter::new("warn,kube_client=off"))
        .with_writer(std::io::stderr)
        .init();
    let played = tokio::select! {
        biased;
        () = asked_to_end() => Ok(false),
        played = async {
            if simulated { play_simulated(once).await } else { play(once).await }
        } => played,
    };
    match played {
        Ok(true) => ExitCode::SUCCESS,
        // Asked to end: what was to be seen with --once has not all happened.
        Ok(false) if !once => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            report(&error);
            ExitCode::FAILURE
        }
    }
}

/// Ctrl-C, or a polite kill.
async fn asked_to_end() {
    let terminated = async {
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => {
                signal.recv().await;
            }
            Err(_) => std::future::pending().await,
        }
    };
    tokio::select! {
        biased;
        _ = tokio::signal::ctrl_c() => {}
        () = terminated => {}
    }
    eprintln!("play: ending everything");
}

/// Everything that was started has ended when this returns or is dropped.
async fn play(once: bool) -> Result<bool, PlayError> {
    let log = Log::new();
    let mut cluster = Cluster::start(3, !once, &log).await?;
    let played = show(&mut cluster, &log, once).await;
    if let Err(error) = &played {
        report(error);
        eprintln!("{}", cluster.dump());
    }
    played
}

/// The same on simulated hosts.
async fn play_simulated(once: bool) -> Result<bool, PlayError> {
    let log = Log::new();
    let hosts = Simulated::start(3, !once, &log).await?;
    let played = async {
        hosts.wait_ready().await?;
        log.say("all hosts are Ready");
        if once {
            hosts.tour(&log).await?;
            log.say("all of it happened");
        }
        Ok(once)
    };
    let played = played.await;
    match &played {
        Ok(false) => {}
        Ok(true) => return played,
        Err(error) => {
            report(error);
            eprintln!("{}", hosts.dump());
            return played;
        }
    }
    let kubeconfig = hosts.plane().setup_kubeconfig()?;
    let kubectl = hosts.plane().binaries().kubectl()?;
    println!(
        "\nexport KUBECONFIG={}\nalias kubectl={}\n\n\
         Type here what is to happen to a host ({DEEDS}), as in: cut h1\n\
         Ctrl-C ends and removes everything.",
        kubeconfig.display(),
        kubectl.display()
    );
    let (typed, mut lines) = tokio::sync::mpsc::unbounded_channel();
    std::thread::spawn(move || {
        for line in std::io::stdin().lines().map_while(Result::ok) {
            if typed.send(line).is_err() {
                return;
            }
        }
    });
    while let Some(line) = lines.recv().await {
        match hosts.obey(&line) {
            Ok(()) => log.say(format!("done: {}", line.trim())),
            Err(why) => println!("{why}"),
        }
    }
    std::future::pending().await
}

async fn show(cluster: &mut Cluster, log: &Log, once: bool) -> Result<bool, PlayError> {
    cluster.wait_ready().await?;
    log.say("all hosts are Ready");
    if once {
        tour(cluster, log).await?;
        log.say("all of it happened");
        return Ok(true);
    }
    println!("{}", to_try(cluster)?);
    loop {
        // A BMC may be told to give a host its power back.
        cluster.tend()?;
        tokio::time::sleep(TEND).await;
    }
}

fn report(error: &dyn std::error::Error) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    eprintln!("play: {text}");
}

fn to_try(cluster: &Cluster) -> Result<String, PlayError> {
    let kubeconfig = cluster.plane().setup_kubeconfig()?;
    let kubectl = cluster.plane().binaries().kubectl()?;
    let bmc = cluster.bmc("h1")?.command_line();
    let virsh = cluster.hosts().first().map(|host| host.libvirt_uri()).unwrap_or_default();
    Ok(format!(
        "
export KUBECONFIG={kubeconfig}
alias kubectl={kubectl}

Things to try:
  kubectl get shost,sst,sap
  kubectl apply -f - <<'YAML'
  apiVersion: stockade.dev/v1alpha1
  kind: VirtualMachine
  metadata: {{name: demo, namespace: default}}
  spec:
    memory: 64Mi
    disks: [{{name: root, storage: {STORAGE}, blank: {{}}, size: 16Mi}}]
YAML
  kubectl get svm demo -o wide -w
  kubectl annotate svm demo stockade.dev/request=restart/1 --overwrite
  kubectl patch svm demo --type=merge -p '{{\"spec\":{{\"runPolicy\":\"Halted\"}}}}'
  kubectl get sdom -A; kubectl get events
  virsh -c '{virsh}' list
  {bmc} chassis power off        # h1 is dead at once; on again: it boots
  kubectl get shost,shf,sfd -w; kubectl describe shost h1
  curl {metrics}
  kubectl delete svm demo

The hosts share {shared}; the logs are {logs}/*.log.
Ctrl-C ends and removes everything.",
        kubeconfig = kubeconfig.display(),
        kubectl = kubectl.display(),
        metrics = cluster.metrics_url(),
        shared = cluster.shared().display(),
        logs = cluster.folder().display(),
    ))
}
