//! Consoles of VMs on real libvirts: by a ticket alone, for those who may, before and after a move.
//! Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use kube::Api;
use kube::api::PostParams;
use stockade_crds::v1alpha1::{
    ConsoleDevice, ConsoleState, VirtualMachineConsole, VirtualMachineConsoleSpec,
};
use stockade_e2e::local_hosts::write_echo_disk;
use stockade_e2e::play::{Cluster, Log, Programs, STORAGE};

const LIMIT: Duration = Duration::from_secs(90);
const PORT: u16 = 16_515;

/// Agents of all tests live in the machine's own network, each on the same addresses.
static ONE_AT_A_TIME: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

struct Desk {
    cluster: Cluster,
    _alone: tokio::sync::MutexGuard<'static, ()>,
}

/// `kubectl stockade console`, as it runs.
struct Line {
    child: Child,
    input: Option<ChildStdin>,
    heard: Receiver<u8>,
    text: String,
}

impl Desk {
    async fn start() -> Self {
        let alone = ONE_AT_A_TIME.lock().await;
        let cluster = Cluster::start(2, false, &Log::new()).await.unwrap();
        cluster.wait_ready().await.unwrap();
        let disk = cluster.shared().join("default/web.raw");
        fs::create_dir_all(disk.parent().unwrap()).unwrap();
        write_echo_disk(&disk).unwrap();
        let vm = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
             metadata: {{name: web, namespace: default}}\nspec:\n  memory: 64Mi\n  \
             console: {{serial: true, vnc: true}}\n  \
             placement: {{preferredHosts: [{{hosts: [h1]}}]}}\n  disks:\n    \
             - {{name: root, storage: {STORAGE}, format: raw, existing: {{path: web.raw}}}}\n"
        );
        cluster.plane().kubectl_stdin(&["apply", "-f", "-"], &vm).unwrap();
        let this = Self { cluster, _alone: alone };
        let ready = "jsonpath={.items[*].status.movesReady}";
        this.until("certificates are in force on both hosts", || {
            this.k(&["get", "sha", "-A", "-o", ready]) == "true true"
        })
        .await;
        this.until("the VM runs", || this.k(&["get", "svm", "web"]).contains("Running")).await;
        this
    }

    fn k(&self, words: &[&str]) -> String {
        self.cluster.plane().kubectl(words).unwrap()
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < LIMIT, "not in time: {what}\n{}", self.cluster.dump());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn plugin(&self, kubeconfig: PathBuf, words: &[&str]) -> Command {
        let mut command = Command::new(Programs::find().unwrap().plugin);
        command.args(words).env("KUBECONFIG", kubeconfig);
        command
    }

    fn admin(&self) -> PathBuf {
        self.cluster.plane().setup_kubeconfig().unwrap()
    }

    /// Opens the serial line.
    fn console(&self) -> Line {
        let mut command = self.plugin(self.admin(), &["console", "web"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut output = child.stdout.take().unwrap();
        let (said, heard) = channel();
        std::thread::spawn(move || {
            let mut byte = [0];
            while output.read_exact(&mut byte).is_ok() && said.send(byte[0]).is_ok() {}
        });
        Line { input: child.stdin.take(), child, heard, text: String::new() }
    }

    /// A ticket for the serial line, made by hand.
    async fn ticket(&self, name: &str, ticket: &str) -> VirtualMachineConsole {
        let api: Api<VirtualMachineConsole> = Api::namespaced(self.cluster.client(), "default");
        let digest = ring::digest::digest(&ring::digest::SHA256, ticket.as_bytes());
        let spec = VirtualMachineConsoleSpec {
            vm: "web".into(),
            device: ConsoleDevice::Serial,
            ticket_hash: digest.as_ref().iter().map(|b| format!("{b:02x}")).collect(),
        };
        let console = VirtualMachineConsole::new(name, spec);
        api.create(&PostParams::default(), &console).await.unwrap();
        let started = Instant::now();
        loop {
            let found = api.get(name).await.unwrap();
            let state = found.status.as_ref().map(|s| s.state).unwrap_or_default();
            if state != ConsoleState::Pending {
                return found;
            }
            assert!(started.elapsed() < LIMIT, "{found:?}\n{}", self.cluster.dump());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Shows a ticket to the host that the object names; what it answers first.
    fn show(&self, console: &VirtualMachineConsole, ticket: &str) -> Result<String, String> {
        let status = console.status.as_ref().unwrap();
        let file = self.cluster.folder().join("authority.pem");
        fs::write(&file, status.authority.as_ref().unwrap()).unwrap();
        let id = console.metadata.uid.as_ref().unwrap();
        let mut child = Command::new("openssl")
            .args(["s_client", "-quiet", "-verify_return_error", "-verify_hostname"])
            .arg(status.host.as_ref().unwrap())
            .args(["-CAfile", file.to_str().unwrap(), "-connect"])
            .arg(status.address.as_ref().unwrap())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut input = child.stdin.take().unwrap();
        input.write_all(format!("stockade-console 1 {id} {ticket}\n").as_bytes()).unwrap();
        let mut text = Vec::new();
        let mut byte = [0];
        let mut output = child.stdout.take().unwrap();
        while output.read_exact(&mut byte).is_ok() && byte[0] != b'\n' {
            text.push(byte[0]);
        }
        drop(input);
        let _ = child.kill();
        let rest = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&text).into_owned();
        if text.is_empty() {
            return Err(String::from_utf8_lossy(&rest.stderr).into_owned());
        }
        Ok(text)
    }
}

impl Line {
    fn types(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    /// Listens until the guest has said this.
    fn hears(&mut self, what: &str) {
        let end = Instant::now() + LIMIT;
        while !self.text.contains(what) {
            let left = end.saturating_duration_since(Instant::now());
            match self.heard.recv_timeout(left) {
                Ok(byte) => self.text.push(byte as char),
                Err(error) => panic!("{error}: waits for {what}, has {:?}", self.text),
            }
        }
        self.text.clear();
    }

    /// The person is done.
    fn ends(mut self) {
        drop(self.input.take());
        assert!(self.child.wait().unwrap().success());
    }
}

fn listens(address: &str) -> bool {
    TcpStream::connect((address, PORT)).is_ok()
}

/// Where somebody listens: addresses and ports, in hex as the kernel writes them.
fn listening(folder: &str) -> Vec<(String, String)> {
    let read = |name: &str| fs::read_to_string(format!("{folder}/{name}")).unwrap();
    let table = read("tcp") + &read("tcp6");
    let sockets = table.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (address, port) = words.get(1)?.split_once(':')?;
        (*words.get(3)? == "0A").then(|| (address.to_owned(), port.to_owned()))
    });
    sockets.collect()
}

/// The addresses on which tickets are taken.
fn doors() -> Vec<String> {
    let port = format!("{PORT:04X}");
    let all = listening("/proc/self/net").into_iter().filter(|(_, at)| *at == port);
    all.map(|(address, _)| address).collect()
}

#[tokio::test]
async fn a_serial_line_goes_along_with_its_vm_and_a_screen_is_there_before_and_after() {
    let desk = Desk::start().await;
    let (h1, h2) = ("127.77.0.1", "127.77.0.2");
    assert!(!listens(h1) && !listens(h2), "nobody listens while no ticket waits");

    let mut line = desk.console();
    line.types("x");
    line.hears("xA");
    desk.until("the door is closed again", || !listens(h1)).await;
    line.types("y");
    line.hears("yB");
    screen(&desk);
    for (_, qemu) in desk.cluster.qemus() {
        let ports = listening(&format!("/proc/{}/net", qemu.pid));
        let screens: Vec<_> = ports.iter().filter(|(_, port)| port.starts_with("17")).collect();
        assert!(screens.is_empty(), "no port of the host shows a screen (59xx): {screens:?}");
    }

    let moved = desk
        .plugin(desk.admin(), &["migrate", "web", "--to", "h2", "--wait", "--timeout", "90"])
        .output()
        .unwrap();
    assert!(moved.status.success(), "{}", String::from_utf8_lossy(&moved.stderr));
    // The same call of the plugin goes on, with a ticket of the other host.
    desk.until("it is open on h2", || {
        desk.k(&["get", "svmc", "-o", "jsonpath={.items[*].status.state}:{.items[*].status.host}"])
            .contains("Open:h2")
    })
    .await;
    line.types("z");
    line.hears("zC");
    screen(&desk);
    line.ends();
    desk.until("no ticket is left", || desk.k(&["get", "svmc", "-o", "name"]).is_empty()).await;
    assert!(!listens(h1) && !listens(h2));
}

/// A viewer's first words with the VM's screen.
fn screen(desk: &Desk) {
    let mut command = desk.plugin(desk.admin(), &["vnc", "web"]);
    let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut output = child.stdout.take().unwrap();
    let mut byte = [0];
    while !said.ends_with(';') {
        output.read_exact(&mut byte).unwrap();
        said.push(byte[0] as char);
    }
    let at = said.split("vnc://").nth(1).unwrap().trim_end_matches(';');
    let mut viewer = TcpStream::connect(at).unwrap();
    viewer.set_read_timeout(Some(LIMIT)).unwrap();
    let mut version = [0; 12];
    viewer.read_exact(&mut version).unwrap();
    assert_eq!(&version, b"RFB 003.008\n");
    viewer.write_all(&version).unwrap();
    let mut security = [0; 2];
    viewer.read_exact(&mut security).unwrap();
    assert_eq!(security, [1, 1], "one kind of security: none, for the ticket was it");
    drop(viewer);
    assert!(child.wait().unwrap().success());
}

#[tokio::test]
async fn only_the_right_ticket_in_time_and_once_opens_a_console_and_only_for_those_who_may() {
    let desk = Desk::start().await;
    let console = desk.ticket("by-hand", "right").await;
    assert_eq!(console.status.as_ref().unwrap().state, ConsoleState::Waiting, "{console:?}");
    assert_eq!(doors(), ["01004D7F"], "127.77.0.1 alone");
    let refused = "refused: no such ticket waits here";
    assert_eq!(desk.show(&console, "wrong").unwrap(), refused);
    let hash = console.spec.ticket_hash.clone();
    assert_eq!(desk.show(&console, &hash).unwrap(), refused, "what the API knows opens nothing");
    // A second ticket keeps the door open for what follows.
    let other = desk.ticket("other", "another").await;
    assert_eq!(desk.show(&console, "another").unwrap(), refused, "it is for another ticket");
    assert_eq!(desk.show(&console, "right").unwrap(), "ok");
    assert_eq!(desk.show(&console, "right").unwrap(), refused, "it was shown before");
    // A host with a certificate of nobody we know is not talked to.
    let mut forged = other.clone();
    forged.status.as_mut().unwrap().host = Some("h2".into());
    let why = desk.show(&forged, "another").unwrap_err();
    assert!(why.contains("verify"), "{why}");
    // The other one is not shown in time.
    desk.until("it is worth nothing", || {
        let words = ["get", "svmc", "other", "-o", "jsonpath={.status.conditions[0].message}"];
        let said = desk.cluster.plane().kubectl(&words).unwrap_or_default();
        said.contains("not shown")
    })
    .await;
    assert!(!listens("127.77.0.1"));

    let plane = desk.cluster.plane();
    let words = ["create", "rolebinding", "looks", "-n", "default", "--clusterrole=stockade-view"];
    plane.kubectl(&[&words[..], &["--user=ada"]].concat()).unwrap();
    let try_it = |user: &str| {
        let mut command =
            desk.plugin(plane.kubeconfig(user, &[]).unwrap(), &["console", "web", "--once"]);
        let output = command.stdin(Stdio::null()).output().unwrap();
        (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (opened, said) = try_it("ada");
    assert!(!opened && said.contains("virtualmachineconsoles"), "{said}");
    let words = ["create", "rolebinding", "talks", "-n", "default"];
    plane
        .kubectl(&[&words[..], &["--clusterrole=stockade-console", "--user=ada"]].concat())
        .unwrap();
    let (opened, said) = try_it("ada");
    assert!(opened, "{said}");

    // A VM that has none says so.
    desk.k(&[
        "patch",
        "svm",
        "web",
        "--type=merge",
        "-p",
        r#"{"spec": {"console": {"serial": false}}}"#,
    ]);
    let (opened, said) = try_it("ada");
    assert!(!opened && said.contains("spec.console.serial"), "{said}");
}
