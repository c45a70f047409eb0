//! The machine's lock on shutdowns, against a stand-in of logind and against the real one, on a bus
//! of the test's own. The real one finds a stand-in of systemd that refuses to go down. Needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stockade_crds::v1alpha1::GoingDown;
use stockade_host::logind::ShutdownLock;
use tokio::net::unix::pipe;
use zbus::{Connection, Variant, fdo, interface, proxy};

const REAL: &str = "/lib/systemd/systemd-logind";
const PATH: &str = "/org/freedesktop/login1";
const NAME: &str = "org.freedesktop.login1";
const MANAGER: &str = "org.freedesktop.login1.Manager";

/// What people and their programs ask logind.
#[proxy(
    interface = "org.freedesktop.login1.Manager",
    default_service = "org.freedesktop.login1",
    default_path = "/org/freedesktop/login1"
)]
trait Asker {
    fn reboot(&self, interactive: bool) -> zbus::Result<()>;
    fn power_off(&self, interactive: bool) -> zbus::Result<()>;
    fn schedule_shutdown(&self, kind: &str, micros: u64) -> zbus::Result<()>;
    #[allow(clippy::type_complexity, reason = "what, who, why, mode, uid, pid")]
    fn list_inhibitors(&self) -> zbus::Result<Vec<(String, String, String, String, u32, u32)>>;
}

/// A dbus-daemon that ends with this.
struct Bus {
    daemon: Child,
    folder: tempfile::TempDir,
}

impl Bus {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = format!(
            "<busconfig><type>system</type><listen>{}</listen><auth>EXTERNAL</auth>\
             <policy context=\"default\"><allow user=\"*\"/><allow own=\"*\"/>\
             <allow send_destination=\"*\"/><allow receive_sender=\"*\"/></policy></busconfig>",
            address(folder.path())
        );
        fs::write(folder.path().join("config"), config).unwrap();
        let daemon = daemon(folder.path());
        Self { daemon, folder }
    }

    fn address(&self) -> String {
        address(self.folder.path())
    }

    fn end(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }

    fn restart(&mut self) {
        self.end();
        fs::remove_file(self.folder.path().join("bus")).unwrap();
        self.daemon = daemon(self.folder.path());
    }

    async fn connect(&self) -> Connection {
        let builder = zbus::conn::Builder::address(self.address().as_str());
        builder.method_timeout(Duration::from_secs(10)).build().await.unwrap()
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        self.end();
    }
}

fn address(folder: &Path) -> String {
    format!("unix:path={}", folder.join("bus").display())
}

fn daemon(folder: &Path) -> Child {
    let daemon = Command::new("dbus-daemon")
        .arg(format!("--config-file={}", folder.join("config").display()))
        .args(["--nofork", "--nopidfile"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("dbus-daemon is missing: install dbus");
    let bus = folder.join("bus");
    let started = (0..200).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        bus.exists()
    });
    assert!(started, "the bus did not start");
    daemon
}

/// What the stand-in of logind holds.
#[derive(Default)]
struct Held {
    /// Locks by number: what, who, why, mode.
    locks: HashMap<u64, [String; 4]>,
    taken: u64,
    going: bool,
    scheduled: (String, u64),
}

/// A stand-in of logind's manager. systemd refuses what it is asked for, so that a shutdown is
/// always called off once the last lock was let go.
#[derive(Clone)]
struct StandIn {
    held: Arc<Mutex<Held>>,
    bus: Connection,
    /// Says how the machine goes down, as systemd does since 255.
    metadata: bool,
}

impl StandIn {
    async fn prepare(&self, start: bool, kind: &str) {
        if self.metadata {
            let metadata = HashMap::from([("type", Variant::from(kind))]);
            let signal = "PrepareForShutdownWithMetadata";
            self.bus
                .emit_signal(None::<&str>, PATH, MANAGER, signal, &(start, metadata))
                .await
                .unwrap();
        }
        let signal = "PrepareForShutdown";
        self.bus.emit_signal(None::<&str>, PATH, MANAGER, signal, &(start,)).await.unwrap();
    }

    async fn go_down(&self, kind: &str) {
        self.held.lock().unwrap().going = true;
        self.prepare(true, kind).await;
        let (this, kind) = (self.clone(), kind.to_owned());
        tokio::spawn(async move {
            while !this.held.lock().unwrap().locks.is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            this.held.lock().unwrap().going = false;
            this.prepare(false, &kind).await;
        });
    }
}

#[interface(name = "org.freedesktop.login1.Manager")]
impl StandIn {
    async fn inhibit(
        &self,
        what: String,
        who: String,
        why: String,
        mode: String,
    ) -> fdo::Result<zbus::OwnedFd> {
        let (given, kept) = pipe::pipe().map_err(|error| fdo::Error::Failed(error.to_string()))?;
        let number = {
            let mut held = self.held.lock().unwrap();
            if held.going {
                return Err(fdo::Error::Failed("the operation is running already".into()));
            }
            held.taken += 1;
            let number = held.taken;
            held.locks.insert(number, [what, who, why, mode]);
            number
        };
        let held = Arc::clone(&self.held);
        tokio::spawn(async move {
            // At its end nobody holds the other side any more.
            while !matches!(kept.try_read(&mut [0]), Ok(0)) {
                kept.readable().await.unwrap();
            }
            held.lock().unwrap().locks.remove(&number);
        });
        Ok(given.into_blocking_fd().unwrap().into())
    }

    async fn reboot(&self, _interactive: bool) {
        self.go_down("reboot").await;
    }

    async fn power_off(&self, _interactive: bool) {
        self.go_down("poweroff").await;
    }

    /// Those that are due alone.
    async fn schedule_shutdown(&self, kind: String, micros: u64) {
        self.held.lock().unwrap().scheduled = (kind.clone(), micros);
        self.go_down(&kind).await;
    }

    fn list_inhibitors(&self) -> Vec<(String, String, String, String, u32, u32)> {
        let held = self.held.lock().unwrap();
        let all = held.locks.values().cloned();
        all.map(|[what, who, why, mode]| (what, who, why, mode, 0, 0)).collect()
    }

    #[zbus(property)]
    fn preparing_for_shutdown(&self) -> bool {
        self.held.lock().unwrap().going
    }

    #[zbus(property)]
    fn scheduled_shutdown(&self) -> (String, u64) {
        self.held.lock().unwrap().scheduled.clone()
    }

    #[zbus(property, name = "InhibitDelayMaxUSec")]
    fn inhibit_delay_max_usec(&self) -> u64 {
        5_000_000
    }
}

/// Only says, on introspection, that there is a signal with metadata.
struct Since255;

#[interface(name = "dev.stockade.Since255")]
impl Since255 {
    #[zbus(signal)]
    async fn prepare_for_shutdown_with_metadata(
        emitter: &zbus::object_server::SignalEmitter<'_>,
        start: bool,
        metadata: HashMap<&str, Variant<'_>>,
    ) -> zbus::Result<()>;
}

/// A stand-in of systemd for the real logind: its targets are there, and none is ever started.
struct Systemd;

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Systemd {
    fn subscribe(&self) {}

    fn start_unit(&self, name: String, _mode: String) -> fdo::Result<zbus::OwnedObjectPath> {
        Err(fdo::Error::AccessDenied(format!("{name} is not started here")))
    }
}

struct Target;

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Target {
    #[zbus(property)]
    fn load_state(&self) -> &'static str {
        "loaded"
    }
}

/// A logind on a bus of its own.
struct Logind {
    bus: Bus,
    kind: Kind,
    running: Option<Running>,
}

#[derive(Clone, Copy)]
enum Kind {
    StandIn { metadata: bool },
    Real,
}

enum Running {
    StandIn(Connection),
    Real(Child, #[allow(dead_code, reason = "it serves as long as it is there")] Connection),
}

impl Logind {
    async fn start(kind: Kind) -> Self {
        let mut this = Self { bus: Bus::start(), kind, running: None };
        this.run().await;
        this
    }

    async fn run(&mut self) {
        let connection = self.bus.connect().await;
        self.running = Some(match self.kind {
            Kind::StandIn { metadata } => {
                let manager = StandIn { held: Arc::default(), bus: connection.clone(), metadata };
                connection.object_server().at(PATH, manager).await.unwrap();
                if metadata {
                    connection.object_server().at(PATH, Since255).await.unwrap();
                }
                connection.request_name(NAME).await.unwrap();
                Running::StandIn(connection)
            }
            Kind::Real => {
                let server = connection.object_server();
                server.at("/org/freedesktop/systemd1", Systemd).await.unwrap();
                for unit in ["reboot_2etarget", "poweroff_2etarget"] {
                    let path = format!("/org/freedesktop/systemd1/unit/{unit}");
                    server.at(path, Target).await.unwrap();
                }
                connection.request_name("org.freedesktop.systemd1").await.unwrap();
                // It can't reset the machine, whatever it is told.
                let script = format!("mount -t tmpfs none /run; mkdir /run/systemd; exec {REAL}");
                let logind = Command::new("unshare")
                    .args(["--mount", "--fork", "--kill-child=KILL"])
                    .args(["setpriv", "--bounding-set=-sys_boot", "sh", "-ec", &script])
                    .env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address())
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .spawn()
                    .unwrap();
                Running::Real(logind, connection)
            }
        });
    }

    /// Presses the power button, which no call says; whether there is one.
    async fn power_button(&self) -> bool {
        let Some(Running::StandIn(connection)) = &self.running else { return false };
        let manager = connection.object_server().interface::<_, StandIn>(PATH).await.unwrap();
        let manager = manager.get().await.clone();
        manager.go_down("poweroff").await;
        true
    }

    /// Ends it as a crash does, and starts it again.
    async fn restart(&mut self) {
        self.end().await;
        self.run().await;
    }

    async fn end(&mut self) {
        match self.running.take() {
            Some(Running::StandIn(connection)) => connection.close().await.unwrap(),
            Some(Running::Real(mut child, connection)) => {
                child.kill().unwrap();
                child.wait().unwrap();
                connection.close().await.unwrap();
            }
            None => {}
        }
    }

    /// How many locks of ours delay a shutdown.
    async fn locks(&self) -> usize {
        let bus = self.bus.connect().await;
        let Ok(asker) = AskerProxy::new(&bus).await else { return 0 };
        let all = asker.list_inhibitors().await.unwrap_or_default();
        all.iter()
            .filter(|(what, who, _, mode, ..)| {
                (what.as_str(), who.as_str(), mode.as_str()) == ("shutdown", "Stockade", "delay")
            })
            .count()
    }
}

impl Drop for Logind {
    fn drop(&mut self) {
        if let Some(Running::Real(child, _)) = &mut self.running {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

async fn until(what: &str, mut done: impl AsyncFnMut() -> bool) {
    for _ in 0..400 {
        if done().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("did not happen within 20 s: {what}");
}

/// A shutdown is seen as what it is, waits for the lock, and is called off in the end.
async fn waits(logind: &Logind, lock: &ShutdownLock, how: GoingDown) {
    until("it is seen", async || lock.going_down() == Some(how)).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!((lock.going_down(), logind.locks().await), (Some(how), 1), "it did not wait");
    lock.let_go();
    until("it is called off", async || lock.going_down().is_none()).await;
    until("the lock is taken again", async || logind.locks().await == 1).await;
}

/// What holds for every logind.
async fn promises(kind: Kind) {
    let mut logind = Logind::start(kind).await;
    let lock = ShutdownLock::hold(Some(logind.bus.address()));
    until("the lock is held", async || logind.locks().await == 1).await;
    assert_eq!(lock.going_down(), None);
    let (patience, trouble) = lock.facts().await;
    assert!(patience.is_some_and(|seconds| seconds > 0) && trouble.is_none(), "{trouble:?}");
    lock.let_go();
    assert_eq!(logind.locks().await, 1, "it let go though nothing goes down");

    let bus = logind.bus.connect().await;
    let asker = AskerProxy::new(&bus).await.unwrap();
    asker.reboot(false).await.unwrap();
    waits(&logind, &lock, GoingDown::Reboot).await;
    asker.power_off(false).await.unwrap();
    waits(&logind, &lock, GoingDown::Shutdown).await;
    asker.schedule_shutdown("reboot", micros()).await.unwrap();
    waits(&logind, &lock, GoingDown::Reboot).await;
    // What was scheduled stands there still, and says nothing of a later way down.
    asker.power_off(false).await.unwrap();
    waits(&logind, &lock, GoingDown::Shutdown).await;
    if logind.power_button().await {
        waits(&logind, &lock, GoingDown::Shutdown).await;
    }

    // One that dies forgets what it was asked for.
    asker.reboot(false).await.unwrap();
    until("it is seen", async || lock.going_down() == Some(GoingDown::Reboot)).await;
    logind.restart().await;
    until("a new logind has a lock", async || logind.locks().await == 1).await;
    until("nothing goes down", async || lock.going_down().is_none()).await;

    logind.end().await;
    logind.bus.restart();
    until("it is said that nothing holds", async || lock.facts().await.1.is_some()).await;
    logind.run().await;
    until("a new bus's logind has a lock", async || logind.locks().await == 1).await;
    until("nothing is the matter", async || lock.facts().await == (patience, None)).await;
    drop(lock);
    until("the lock goes with its holder", async || logind.locks().await == 0).await;
}

fn micros() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    u64::try_from(now.as_micros()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logind_that_says_how_it_goes_down_is_held_back_until_let_go() {
    promises(Kind::StandIn { metadata: true }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_logind_is_held_back_and_its_callers_tell_how_it_goes_down() {
    promises(Kind::StandIn { metadata: false }).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_real_logind_is_held_back_until_let_go() {
    promises(Kind::Real).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_logind_says_what_that_means() {
    let folder = tempfile::tempdir().unwrap();
    let lock = ShutdownLock::hold(Some(address(folder.path())));
    let (holds_back, trouble) = lock.facts().await;
    assert_eq!((holds_back, lock.going_down()), (None, None));
    let trouble = trouble.unwrap();
    assert!(trouble.contains("looks like a power cut"), "{trouble}");
    lock.let_go();
}
