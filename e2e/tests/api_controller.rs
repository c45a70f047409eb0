//! The controller as a program on a real kube-apiserver: what it tells of itself, and how it goes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use stockade_e2e::control_plane::{ControlPlane, Options, SYSTEM_NAMESPACE};
use stockade_e2e::play::Programs;

const LIMIT: Duration = Duration::from_secs(30);

struct Controller {
    child: Child,
    port: u16,
}

impl Controller {
    fn start(kubeconfig: &Path, name: &str) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "--"])
            .arg(Programs::find().unwrap().stockade)
            .args(["controller", "--name", name, "--listen", &format!("127.0.0.1:{port}")])
            .env("KUBECONFIG", kubeconfig)
            .env("RUST_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { child, port }
    }

    /// Status code and body of an endpoint; `None`: nobody listens.
    fn get(&self, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).ok()?;
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }

    async fn tells(&self, path: &str, line: &str) -> String {
        let mut last = None;
        let started = Instant::now();
        while started.elapsed() < LIMIT {
            last = self.get(path);
            if let Some((200, body)) = &last
                && body.contains(line)
            {
                return body.clone();
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("{path} never told {line:?}, but {last:?}");
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test]
async fn a_controller_tells_of_itself_and_gives_the_lead_back_when_it_is_told_to_end() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    plane.install_charts().await.unwrap();
    let account =
        plane.service_account_kubeconfig(SYSTEM_NAMESPACE, "stockade-controller").await.unwrap();
    let mut first = Controller::start(&account, "first");
    first.tells("/readyz", "ok").await;
    first.tells("/healthz", "ok").await;
    first.tells("/metrics", "stockade_controller_leading 1\n").await;
    let vm = "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
              metadata: {name: web, namespace: default}\nspec: {memory: 64Mi, runPolicy: Halted}\n";
    plane.kubectl_stdin(&["apply", "-f", "-"], vm).unwrap();
    // Each by itself: the server may first refuse a watch of a kind whose definition is seconds old
    // (429, "storage is (re)initializing"), which is asked for again.
    for line in [
        "stockade_vms{state=\"Stopped\"} 1\n",
        "# TYPE stockade_plan_duration_seconds histogram",
        "stockade_build_info{version=\"",
        "stockade_api_requests_total{verb=\"update\",resource=\"virtualmachines/status\",code=\"200\"}",
        "stockade_api_requests_total{verb=\"watch\",resource=\"hosts\",code=\"200\"}",
        "stockade_failover_tolerated_hosts ",
    ] {
        first.tells("/metrics", line).await;
    }
    let told = first.tells("/metrics", "").await;
    assert!(told.trim_end().ends_with("# EOF"), "the OpenMetrics text format ends so");

    let second = Controller::start(&account, "second");
    second.tells("/readyz", "ok").await;
    let standby = second.tells("/metrics", "stockade_controller_leading 0\n").await;
    assert!(!standby.contains("stockade_vms{"), "{standby}");

    // Told to end, the first one ends well, and the other need not wait for the Lease to run out.
    let asked = Instant::now();
    let pid = rustix::process::Pid::from_child(&first.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert!(first.child.wait().unwrap().success());
    let ended = asked.elapsed();
    assert!(ended < Duration::from_secs(5), "{ended:?}");
    let leases: Api<Lease> = Api::namespaced(plane.setup_client().await.unwrap(), SYSTEM_NAMESPACE);
    let holder = leases.get("stockade-controller").await.unwrap().spec.unwrap().holder_identity;
    assert!(holder.is_none_or(|holder| !holder.starts_with("first")));
    second.tells("/metrics", "stockade_controller_leading 1\n").await;
    let taken = asked.elapsed();
    assert!(taken < Duration::from_secs(8), "{taken:?}, and a Lease runs for 15 s");
}

#[tokio::test]
async fn an_address_that_is_taken_is_an_error_that_names_it() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let output = Command::new(Programs::find().unwrap().stockade)
        .args(["controller", "--listen", &address])
        .env("KUBECONFIG", plane.setup_kubeconfig().unwrap())
        .output()
        .unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains(&address) && said.contains("--listen"), "{said}");
}
