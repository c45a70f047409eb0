//! The libvirt driver against real libvirtds and QEMUs. Needs root.
//!
//! The same program plays the test, the agent inside a host, and libvirt's hook.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::DomainSpec;
use stockade_e2e::conformance::{self, Hands, VM_UID as UID};
use stockade_e2e::local_hosts::{
    LocalHost, LocalHosts, Network, guest_boots, guest_counter, write_guest_disk,
};
use stockade_host::HostError;
use stockade_host::hook::{HookContext, decide};
use stockade_host::journal::FileJournal;
use stockade_host::libvirt::{Libvirt, LibvirtOptions, MigrationOptions};
use stockade_host::machine::BOOT_ID;
use stockade_host::ports::{
    Hypervisor, JournalPort, JournalState, LiveState, MigrateRequest, Presence,
};
use stockade_host::process::qemus_of;
use tokio::time::{Instant, sleep};

const STATE: &str = "/var/lib/stockade";

fn boot_id() -> String {
    fs::read_to_string(BOOT_ID).unwrap().trim().to_owned()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["hook", "--", _name, operation, ..] => hook(operation),
        ["agent", part, shared] => agent(part, Path::new(shared)),
        ["--list", ..] => {}
        _ => orchestrate(),
    }
    ExitCode::SUCCESS
}

fn hook(operation: &str) {
    let mut xml = String::new();
    std::io::stdin().read_to_string(&mut xml).unwrap();
    let context = HookContext { state: STATE.into(), boot_id: BOOT_ID.into() };
    if let Err(error) = decide(&context, operation, &xml) {
        eprintln!("{error}");
        std::process::exit(1);
    }
}

fn orchestrate() {
    let dir = std::env::temp_dir().join(format!("stockade-{}-libvirt", std::process::id()));
    let hosts = LocalHosts::start(2, &dir).unwrap();
    let [h1, h2] = hosts.hosts() else { panic!("two hosts") };
    write_guest_disk(&disk(&hosts.shared())).unwrap();
    let play = |host: &LocalHost, part: &str| {
        let program = std::env::current_exe().unwrap();
        let mut command = host.command(program.to_str().unwrap(), Network::Machine).unwrap();
        let status = command.args(["agent", part]).arg(hosts.shared()).status().unwrap();
        assert!(status.success(), "{part} on {}", host.name());
        println!("ok: {part} on {}", host.name());
    };
    leave_probe(h1);
    play(h1, "conformance");
    play(h1, "thief");
    play(h1, "frozen");
    h1.start_libvirtd().unwrap();
    play(h1, "stuck");
    play(h1, "start");
    play(h2, "expect");
    fs::write(hosts.shared().join("peer"), h2.address()).unwrap();
    let before = guest_counter(&disk(&hosts.shared())).unwrap();
    play(h1, "move");
    play(h2, "arrived");
    assert!(guest_counter(&disk(&hosts.shared())).unwrap() > before, "the guest started anew");
}

/// Leaves the probe's domain behind, as a daemon does that ends before the probe has its answer.
fn leave_probe(host: &LocalHost) {
    let xml = std::env::temp_dir().join(format!("stockade-{}-probe.xml", std::process::id()));
    let text = "<domain type='qemu'><name>stockade-probe</name>\
                <uuid>57ac4ade-0000-4000-8000-00000000b0b0</uuid><memory unit='MiB'>1</memory>\
                <vcpu>1</vcpu><os><type arch='x86_64'>hvm</type></os></domain>";
    fs::write(&xml, text).unwrap();
    let mut virsh = Command::new("virsh");
    virsh.args(["-q", "-c", &host.libvirt_uri(), "create", "--paused"]).arg(&xml);
    assert!(virsh.status().unwrap().success());
    fs::remove_file(xml).unwrap();
}

fn agent(part: &str, shared: &Path) {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let program = std::env::current_exe().unwrap().display().to_string();
        let hook = vec![program, "hook".to_owned()];
        let options = LibvirtOptions {
            emulated: true,
            restart_daemon: Vec::new(),
            migration: MigrationOptions {
                peer_uri: "qemu+tcp://{address}/system".into(),
                data_uri: "tcp://{address}".into(),
                tls: false,
            },
            ..LibvirtOptions::new(Path::new(STATE), "local", &boot_id(), hook)
        };
        let libvirt = Libvirt::new(options).unwrap();
        match part {
            "conformance" => conformance::hypervisor(&libvirt, &Real(shared)).await,
            "thief" => thief(shared),
            "frozen" => frozen(&libvirt, shared).await,
            "stuck" => stuck(&libvirt, shared).await,
            "start" => start(&libvirt, shared).await,
            "expect" => expect(&libvirt, shared).await,
            "move" => leave(&libvirt, shared).await,
            "arrived" => arrived(&libvirt, shared).await,
            other => panic!("{other}"),
        }
    });
    // Threads of libvirt's may wait for a daemon; they end with the process.
    std::process::exit(0);
}

fn disk(shared: &Path) -> PathBuf {
    shared.join("db.raw")
}

fn order(shared: &Path, epoch: i64) -> DomainSpec {
    conformance::order("host", &boot_id(), &disk(shared).display().to_string(), epoch)
}

/// Writes the journal as an agent would that obeys, or obeyed, this epoch.
async fn journal(shared: &Path, epoch: i64, open: bool) {
    Real(shared).write_journal(&conformance::journal(&order(shared, epoch), open)).await;
}

/// The host that this program runs in, with the shared folder.
struct Real<'a>(&'a Path);

impl Hands for Real<'_> {
    fn order(&self, epoch: i64) -> DomainSpec {
        order(self.0, epoch)
    }

    fn write_journal<'a>(&'a self, state: &'a JournalState) -> BoxFuture<'a, ()> {
        async { FileJournal::open(Path::new(STATE)).unwrap().store(state).await.unwrap() }.boxed()
    }

    fn written(&self) -> (u64, u64) {
        let counter = guest_counter(&disk(self.0)).unwrap();
        (guest_boots(&disk(self.0)).unwrap(), counter)
    }

    fn crash(&self) {
        let processes = qemus_of(UID).unwrap();
        assert_eq!(processes.len(), 1, "{processes:?}");
        processes[0].kill().unwrap();
    }
}

async fn grows(shared: &Path) {
    let before = guest_counter(&disk(shared)).unwrap();
    until("the guest writes", async || guest_counter(&disk(shared)).unwrap() > before).await;
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if done().await {
            return;
        }
        sleep(Duration::from_millis(50)).await;
    }
    panic!("did not happen within 20 s: {what}");
}

async fn gone(libvirt: &Libvirt, epoch: i64) {
    until("the process is gone", async || libvirt.presence(UID, epoch).await == Presence::Gone)
        .await;
}

/// A foreign domain that names a disk of ours is kept out.
fn thief(shared: &Path) {
    let foreign = format!(
        "<domain type='qemu'><name>thief</name><memory>16384</memory><os><type>hvm</type></os>\
         <devices><disk type='file'><source file='{}'/><target dev='vda'/></disk></devices>\
         </domain>",
        disk(shared).display()
    );
    let xml = shared.join("thief.xml");
    fs::write(&xml, foreign).unwrap();
    let created = Command::new("virsh").arg("create").arg(&xml).output().unwrap();
    let said = String::from_utf8_lossy(&created.stderr).into_owned();
    assert!(!created.status.success() && said.contains("is a disk of Stockade"), "{said}");
}

/// Signals this host's libvirtd.
fn daemon(signal: &str) {
    let pid = fs::read_to_string("/run/libvirtd.pid").unwrap();
    let status = Command::new("kill").args([signal, pid.trim()]).status().unwrap();
    assert!(status.success());
}

async fn frozen(libvirt: &Libvirt, shared: &Path) {
    journal(shared, 9, true).await;
    libvirt.start(&order(shared, 9)).await.unwrap();
    grows(shared).await;
    daemon("-STOP");
    let asked = Instant::now();
    assert!(libvirt.list().await.is_err());
    assert!(asked.elapsed() < Duration::from_secs(12), "a frozen daemon held the agent");
    // What counts works without the daemon.
    assert_eq!(libvirt.presence(UID, 9).await, Presence::Present);
    libvirt.kill(UID, 9).await.unwrap();
    gone(libvirt, 9).await;
    daemon("-CONT");
    until("libvirt is there again", async || libvirt.list().await.is_ok_and(|all| all.is_empty()))
        .await;

    // A start whose answer is lost is neither there nor gone until its daemon has ended.
    journal(shared, 10, true).await;
    daemon("-STOP");
    let lost = libvirt.start(&order(shared, 10)).await;
    assert!(lost.as_ref().is_err_and(HostError::is_unknown), "{lost:?}");
    assert_eq!(libvirt.presence(UID, 10).await, Presence::Unknown);
    journal(shared, 10, false).await;
    let boots = guest_boots(&disk(shared)).unwrap();
    daemon("-CONT");
    until("libvirt is there again", async || libvirt.list().await.is_ok()).await;
    sleep(Duration::from_secs(2)).await;
    assert_eq!(guest_boots(&disk(shared)).unwrap(), boots, "the late start got past the hook");
    assert_eq!(libvirt.presence(UID, 10).await, Presence::Unknown);
    daemon("-KILL");
    gone(libvirt, 10).await;
}

/// Signals the lock daemon.
fn lock_daemon(signal: &str) {
    let status = Command::new("pkill").args([signal, "-x", "virtlockd"]).status().unwrap();
    assert!(status.success());
}

/// Copies of libvirtd that are to become QEMUs.
fn copies() -> usize {
    let found = Command::new("pgrep").args(["-x", "rpc-libvirtd"]).output().unwrap();
    String::from_utf8(found.stdout).unwrap().lines().count()
}

/// The copy that is to become the QEMU waits for its lock for good, and the daemon for the copy.
async fn stuck(libvirt: &Libvirt, shared: &Path) {
    journal(shared, 10, true).await;
    lock_daemon("-STOP");
    let order = order(shared, 10);
    let mends = async {
        until("a copy waits", async || copies() > 0).await;
        assert!(libvirt.list().await.is_err(), "the daemon answers");
        until("the copy is ended", async || libvirt.list().await.is_ok() || copies() == 0).await;
        lock_daemon("-CONT");
        until("the daemon answers again", async || libvirt.list().await.is_ok()).await;
    };
    let (started, ()) = tokio::join!(libvirt.start(&order), mends);
    assert!(started.is_err(), "{started:?}");
    gone(libvirt, 10).await;
}

async fn start(libvirt: &Libvirt, shared: &Path) {
    journal(shared, 11, true).await;
    libvirt.start(&order(shared, 11)).await.unwrap();
    grows(shared).await;
}

async fn expect(libvirt: &Libvirt, shared: &Path) {
    journal(shared, 12, true).await;
    libvirt.prepare_incoming(&order(shared, 12)).await.unwrap();
    assert_eq!(libvirt.presence(UID, 12).await, Presence::Gone);
}

async fn leave(libvirt: &Libvirt, shared: &Path) {
    let request = MigrateRequest {
        vm_uid: UID.into(),
        name: "shop/db".into(),
        epoch: 11,
        target_epoch: 12,
        peer: "h2".into(),
        peer_address: fs::read_to_string(shared.join("peer")).unwrap(),
        bandwidth_mib_per_second: 0,
        downtime_limit_milliseconds: 100,
        auto_converge: true,
        parallel_connections: 2,
        leave_paused: true,
    };
    // A target that has no such order refuses it, and the source runs on.
    let elsewhere = MigrateRequest { target_epoch: 13, ..request.clone() };
    let refused = libvirt.migrate(&elsewhere).await;
    assert!(matches!(refused, Err(HostError::Failed { .. })), "{refused:?}");
    grows(shared).await;
    libvirt.migrate(&request).await.unwrap();
    gone(libvirt, 11).await;
}

async fn arrived(libvirt: &Libvirt, shared: &Path) {
    let list = libvirt.list().await.unwrap();
    let [domain] = &list[..] else { panic!("{list:?}") };
    assert_eq!((domain.epoch, domain.state), (12, LiveState::Switched));
    assert_eq!(libvirt.presence(UID, 12).await, Presence::Present);
    let boots = guest_boots(&disk(shared)).unwrap();
    libvirt.resume(UID).await.unwrap();
    grows(shared).await;
    assert_eq!(guest_boots(&disk(shared)).unwrap(), boots, "it was started anew");
    assert_eq!(libvirt.list().await.unwrap()[0].state, LiveState::Running);
}
