//! Local hosts are hosts: they run guests, lose power, come back as another boot, and leave
//! nothing behind. Needs root.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use stockade_e2e::local_hosts::{
    LocalHost, LocalHosts, LocalHostsError, Network, ProcessId, Signal, guest_boots, guest_counter,
    guest_domain_xml, write_guest_disk,
};

/// Local hosts load the machine: one set at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn folder(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("stockade-{}-{name}", std::process::id()))
}

fn virsh(host: &LocalHost, arguments: &[&str]) -> Output {
    Command::new("timeout")
        .args(["60", "virsh", "-c", &host.libvirt_uri()])
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn virsh_ok(host: &LocalHost, arguments: &[&str]) -> String {
    let output = virsh(host, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[track_caller]
fn until(what: &str, mut done: impl FnMut() -> bool) {
    for _ in 0..600 {
        if done() {
            return;
        }
        thread::sleep(Duration::from_millis(50));
    }
    panic!("did not happen within 30 s: {what}");
}

#[track_caller]
fn grows(disk: &Path) {
    let before = guest_counter(disk).unwrap();
    until("the guest writes", || guest_counter(disk).unwrap() > before);
}

fn create(hosts: &LocalHosts, host: &LocalHost, name: &str) -> PathBuf {
    let disk = hosts.shared().join(format!("{name}.raw"));
    if !disk.exists() {
        write_guest_disk(&disk).unwrap();
    }
    let xml = hosts.shared().join(format!("{name}.xml"));
    let uuid = "11111111-2222-4333-8444-000000000001";
    fs::write(&xml, guest_domain_xml(name, uuid, &disk)).unwrap();
    virsh_ok(host, &["create", xml.to_str().unwrap()]);
    disk
}

/// Every process of the machine whose command line, and every mount that, names the folder.
fn traces(dir: &Path) -> Vec<String> {
    let dir = dir.to_str().unwrap();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        for file in ["cmdline", "mountinfo"] {
            let text = fs::read(entry.path().join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text).replace('\0', " ");
            found.extend(
                text.lines()
                    .filter(|line| line.contains(dir))
                    .map(|line| format!("{name} {file}: {line}")),
            );
        }
    }
    found
}

/// Names of all network links of this namespace.
fn links() -> Vec<String> {
    let mut links: Vec<String> = fs::read_dir("/sys/class/net")
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    links.sort();
    links
}

fn named_namespaces() -> usize {
    fs::read_dir("/run/netns").map_or(0, |entries| entries.count())
}

#[test]
fn a_power_cut_ends_the_guest_and_the_boot_and_drop_leaves_nothing() {
    let _alone = alone();
    let dir = folder("life");
    let (links_before, namespaces_before) = (links(), named_namespaces());
    let hosts = LocalHosts::start(3, &dir).unwrap();
    let [h1, h2, h3] = hosts.hosts() else { panic!("three hosts") };
    assert_eq!(links(), links_before, "the machine's own network must not change");

    // Each is a host of its own.
    let boots: Vec<String> = hosts.hosts().iter().map(|host| host.boot_id().unwrap()).collect();
    assert!(boots[0] != boots[1] && boots[1] != boots[2] && boots[0] != boots[2]);
    for host in hosts.hosts() {
        assert_eq!(virsh_ok(host, &["hostname"]).trim(), host.name());
        let capabilities = virsh_ok(host, &["capabilities"]);
        assert!(capabilities.contains(&host.uuid()), "{capabilities}");
    }
    let seen = h1
        .command("cat", Network::Machine)
        .unwrap()
        .arg("/proc/sys/kernel/random/boot_id")
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(seen.stdout).unwrap().trim(), boots[0]);
    let peer = format!("qemu+tcp://{}/system", h3.address());
    let reached = h1
        .command("virsh", Network::Host)
        .unwrap()
        .args(["-c", &peer, "hostname"])
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(reached.stdout).unwrap().trim(), "h3");

    // A guest runs, its lock keeps it from a second start, and a power cut ends it.
    let disk = create(&hosts, h1, "guest");
    grows(&disk);
    assert_eq!(guest_boots(&disk).unwrap(), 1);
    let xml = hosts.shared().join("guest.xml");
    assert!(!virsh(h2, &["create", xml.to_str().unwrap()]).status.success(), "a second copy");

    let mut program = h1.run(&["sleep", "1000"], Network::Machine).unwrap();
    until("the program runs", || h1.processes("sleep").len() == 1);
    assert_eq!(h1.pid_of(&program).unwrap(), h1.processes("sleep")[0]);
    let init = h1.processes("tini");
    h1.power_cut().unwrap();
    assert!(!h1.is_on() && init.iter().all(|process| !process.lives()));
    assert!(!program.wait().unwrap().success());
    assert!(matches!(h1.command("true", Network::Host), Err(LocalHostsError::Off(_))));
    let stopped = guest_counter(&disk).unwrap();
    thread::sleep(Duration::from_millis(500));
    assert_eq!(guest_counter(&disk).unwrap(), stopped, "a guest without power wrote");

    // It runs elsewhere at once, and the host comes back as another boot, without it.
    create(&hosts, h2, "guest");
    grows(&disk);
    assert_eq!(guest_boots(&disk).unwrap(), 2);
    h1.power_on().unwrap();
    assert_ne!(h1.boot_id().unwrap(), boots[0]);
    assert_eq!(virsh_ok(h1, &["list", "--name"]).trim(), "");

    // The guest obeys a clean shutdown.
    virsh_ok(h2, &["shutdown", "guest"]);
    until("the guest shuts down", || virsh_ok(h2, &["list", "--name"]).trim().is_empty());

    // A daemon that was killed comes back on the same boot.
    let boot = h3.boot_id().unwrap();
    assert_eq!(h3.signal("libvirtd", Signal::KILL).unwrap(), 1);
    until("libvirtd is gone", || h3.processes("libvirtd").is_empty());
    h3.start_libvirtd().unwrap();
    virsh_ok(h3, &["list"]);
    assert_eq!(h3.boot_id().unwrap(), boot);

    assert!(matches!(LocalHosts::start(1, &dir), Err(LocalHostsError::InUse(_))));
    create(&hosts, h3, "left-running");
    drop(hosts);
    assert!(!dir.exists());
    assert_eq!(traces(&dir), Vec::<String>::new());
    assert_eq!(links(), links_before);
    assert_eq!(named_namespaces(), namespaces_before);
}

/// What the owner does that the next test kills: this program once more, with this variable set.
const OWNER: &str = "STOCKADE_TEST_OWNER_FOLDER";

fn owner_to_be_killed(dir: &Path) {
    let hosts = LocalHosts::start(1, dir).unwrap();
    create(&hosts, &hosts.hosts()[0], "orphan");
    fs::write(hosts.shared().join("ready"), "").unwrap();
    thread::sleep(Duration::from_secs(600));
}

#[test]
fn a_start_cleans_up_after_an_owner_that_was_killed() {
    if let Some(dir) = std::env::var_os(OWNER) {
        return owner_to_be_killed(Path::new(&dir));
    }
    let _alone = alone();
    let dir = folder("owner");
    let mut owner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_start_cleans_up_after_an_owner_that_was_killed"])
        .env(OWNER, &dir)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    until("the owner's host runs a guest", || dir.join("shared/ready").exists());
    let recorded = fs::read_to_string(dir.join("processes.json")).unwrap();
    owner.kill().unwrap();
    owner.wait().unwrap();

    // A process number that now belongs to somebody else must survive the clean-up.
    let mut bystander = Command::new("sleep").arg("600").spawn().unwrap();
    let mut recorded: serde_json::Value = serde_json::from_str(&recorded).unwrap();
    let reused = ProcessId { started: 1, ..ProcessId::of(bystander.id() as i32).unwrap() };
    recorded["h9"] = serde_json::to_value([reused]).unwrap();
    fs::write(dir.join("processes.json"), recorded.to_string()).unwrap();

    let hosts = LocalHosts::start(1, &dir).unwrap();
    assert!(!dir.join("shared/ready").exists());
    let host = &hosts.hosts()[0];
    assert_eq!(virsh_ok(host, &["list", "--name"]).trim(), "");
    assert!(host.processes("qemu-system-x86").is_empty());
    let disk = create(&hosts, host, "orphan");
    grows(&disk);
    drop(hosts);
    assert_eq!(traces(&dir), Vec::<String>::new());
    assert!(bystander.try_wait().unwrap().is_none(), "somebody else's process was killed");
    bystander.kill().unwrap();
    bystander.wait().unwrap();
}

#[test]
fn a_folder_with_other_things_in_it_is_refused() {
    let _alone = alone();
    let dir = folder("foreign");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("precious"), "x").unwrap();
    assert!(matches!(LocalHosts::start(1, &dir), Err(LocalHostsError::Foreign(_))));
    assert!(dir.join("precious").exists());
    fs::remove_dir_all(&dir).unwrap();
}
