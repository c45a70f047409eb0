//! NFS that a host of ours serves, under virtlockd's locks, on Debian machines with kernels of
//! their own. The machines boot once; each case goes on where the one before ended.
//!
//! It has a main of its own: the lab's BMCs end with the thread that started them, and the cases
//! have an order. Needs root, the built programs and 10 GiB of memory.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;
use stockade_e2e::lab::{Cluster, Lab, LabError, Machine, until};
use stockade_e2e::local_hosts::{GUEST_DISK_BYTES, boot_sector};
use stockade_e2e::play::Log;

/// How long one thing may take on machines that are emulated, on a machine that is busy.
const LIMIT: Duration = Duration::from_secs(600);
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nfs4-lock-manager");
/// The disk of the proving guest, as its server sees it and as the hosts see it.
const SERVED_DISK: &str = "/srv/vms/default/prover.raw";
const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

type Outcome = Result<(), String>;

#[allow(clippy::type_complexity, reason = "a name and a function")]
const CASES: [(&str, fn(&Cluster, &Log) -> Outcome); 4] = [
    ("one_apply_mounts_the_export_of_a_host_on_three_and_a_vm_runs_there_under_a_lock", from_bare),
    ("a_storage_of_another_cluster_is_refused_and_nothing_is_written_there", foreign_marker),
    ("without_agent_and_hook_a_second_start_by_hand_is_refused_by_the_lock", second_start),
    ("a_host_without_power_is_denied_its_locks_broken_and_its_guest_writes_elsewhere", power_cut),
];

fn main() -> ExitCode {
    let log = Log::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    println!("\nrunning {} tests", CASES.len());
    let say = |text: &str| log.say(text);
    let started = Lab::start(3, &say);
    let cluster = started.and_then(|lab| runtime.block_on(Cluster::start(lab, &say)));
    let cluster = match cluster {
        Ok(cluster) => cluster,
        Err(error) => {
            println!("the lab did not start: {}", chain(&error));
            println!("test result: FAILED. 0 passed; {} failed; 0 ignored", CASES.len());
            return ExitCode::FAILURE;
        }
    };
    let mut passed = 0;
    for (name, case) in CASES {
        match case(&cluster, &log) {
            Ok(()) => {
                passed += 1;
                println!("test {name} ... ok");
            }
            Err(why) => {
                println!("test {name} ... FAILED\n{why}\n{}", cluster.dump());
                break;
            }
        }
    }
    // What comes after a case that failed has nothing to stand on.
    let failed = CASES.len() - passed;
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    text
}

fn said(error: LabError) -> String {
    chain(&error)
}

/// An object as JSON; null if it is not there.
fn object(cluster: &Cluster, words: &[&str]) -> Result<Value, String> {
    let words: Vec<&str> =
        ["get", "--ignore-not-found", "-o", "json"].into_iter().chain(words.to_vec()).collect();
    let text = cluster.plane().kubectl(&words).map_err(|error| error.to_string())?;
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(&text).map_err(|error| error.to_string())
}

fn condition<'a>(object: &'a Value, kind: &str) -> (&'a str, &'a str) {
    let conditions = object["status"]["conditions"].as_array();
    let found = conditions.into_iter().flatten().find(|condition| condition["type"] == kind);
    let text = |field| found.and_then(|c: &Value| c[field].as_str()).unwrap_or_default();
    (text("status"), text("message"))
}

fn sh(machine: &Machine, script: &str) -> Result<String, String> {
    machine.sh(script).map_err(said)
}

fn machine<'a>(cluster: &'a Cluster, name: &str) -> Result<&'a Machine, String> {
    cluster.lab().machine(name).map_err(said)
}

fn apply(cluster: &Cluster, text: &str) -> Outcome {
    let applied = cluster.plane().kubectl_stdin(&["apply", "-f", "-"], text);
    applied.map(drop).map_err(|error| error.to_string())
}

fn ensure(true_: bool, why: impl FnOnce() -> String) -> Outcome {
    if true_ { Ok(()) } else { Err(why()) }
}

/// Waits until a VM runs, and gives its host.
fn runs(cluster: &Cluster, vm: &str, not_on: &str) -> Result<String, String> {
    let found = until(&format!("{vm} runs"), LIMIT, || {
        let object = object(cluster, &["svm", vm])?;
        let state = object["status"]["printableStatus"].as_str().unwrap_or_default();
        let host = object["status"]["host"].as_str().unwrap_or_default().to_owned();
        let well = state == "Running" && !host.is_empty() && host != not_on;
        if well {
            Ok(host)
        } else {
            Err(format!("{state} on {host}; {}", condition(&object, "Ready").1))
        }
    });
    found.map_err(said)
}

/// Ticks since the guest's last boot, and boots, read where the disk lies.
fn counters(cluster: &Cluster) -> Result<(u64, u64), String> {
    let script = format!("dd if={SERVED_DISK} bs=16 skip=32 count=1 2>/dev/null | od -An -t u8");
    let text = sh(machine(cluster, "s1")?, &script)?;
    let mut numbers = text.split_whitespace().filter_map(|word| word.parse().ok());
    match (numbers.next(), numbers.next()) {
        (Some(ticks), Some(boots)) => Ok((ticks, boots)),
        _ => Err(format!("not two numbers: {text:?}")),
    }
}

/// Silence that counts takes longer on machines that are emulated: here order and proof are
/// judged, not seconds.
const SLOW_POLICY: &str =
    r#"{"spec": {"heartbeatSeconds": 5, "suspectSeconds": 30, "actSeconds": 45}}"#;

fn from_bare(cluster: &Cluster, log: &Log) -> Outcome {
    let server = machine(cluster, "s1")?;
    sh(server, "install -d /srv/vms")?;
    apply(cluster, &cluster.fence_devices())?;
    let policy = ["patch", "sap", "default", "--type=merge", "-p", SLOW_POLICY];
    cluster.plane().kubectl(&policy).map_err(|error| error.to_string())?;
    let applied = cluster.plane().kubectl(&["apply", "-f", EXAMPLE]);
    applied.map_err(|error| error.to_string())?;
    let ready = until("the storage is mounted on three hosts", LIMIT, || {
        let storage = object(cluster, &["sst", "vms"])?;
        let (status, message) = condition(&storage, "Ready");
        let all = status == "True" && storage["status"]["readyHosts"] == 3;
        if all { Ok(()) } else { Err(message.to_owned()) }
    });
    ready.map_err(said)?;
    log.say("mounted on three hosts");
    let versions = sh(server, "cat /proc/fs/nfsd/versions")?;
    ensure(versions.contains("-3 ") && versions.contains("+4.2"), || versions.clone())?;
    let clients = sh(server, "cat /proc/fs/nfsd/clients/*/info")?;
    for name in HOSTS {
        let host = machine(cluster, name)?;
        let mounted = sh(host, "findmnt -n -o FSTYPE,SOURCE,OPTIONS /srv/stockade/vms")?;
        let fits = ["nfs4", "10.78.0.4:/srv/vms", "vers=4.2", "hard", "local_lock=none"];
        ensure(fits.iter().all(|word| mounted.contains(word)), || mounted.clone())?;
        let agent = object(cluster, &["sha", "agent", "-n", &format!("stockade-host-{name}")])?;
        let uid = agent["status"]["hostUid"].as_str().unwrap_or_default().to_owned();
        ensure(!uid.is_empty() && clients.contains(&format!(" {uid}/")), || {
            format!("{name} is not known to the server by {uid:?}: {clients}")
        })?;
    }
    let host = runs(cluster, "hello", "")?;
    log.say(format!("hello runs on {host}"));
    let locked = until("its Domain shows its lock", LIMIT, || {
        let domains = object(cluster, &["sdom", "-n", &format!("stockade-host-{host}")])?;
        let status = &domains["items"][0]["status"];
        if status["lock"]["held"] == true { Ok(()) } else { Err(status.to_string()) }
    });
    locked.map_err(said)?;
    let states = sh(server, "cat /proc/fs/nfsd/clients/*/states")?;
    ensure(states.contains("type: lock"), || format!("the server knows of no lock: {states}"))
}

fn foreign_marker(cluster: &Cluster, _log: &Log) -> Outcome {
    let server = machine(cluster, "s1")?;
    sh(server, "install -d /srv/theirs/.stockade; echo -n other >/srv/theirs/.stockade/cluster")?;
    let before = sh(server, "find /srv/theirs | sort")?;
    apply(
        cluster,
        "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\nmetadata: {name: theirs}\n\
         spec:\n  mountPath: /srv/stockade/theirs\n  hostSelector: {role: hypervisor}\n  \
         nfs: {server: 10.78.0.4, export: /srv/theirs, servedBy: s1, leaseSeconds: 30}\n",
    )?;
    let refused = until("each host refuses it and says why", LIMIT, || {
        let storage = object(cluster, &["sst", "theirs"])?;
        let (status, message) = condition(&storage, "Ready");
        let all = message.matches("belongs to cluster other").count() == HOSTS.len();
        if status == "False" && all { Ok(()) } else { Err(message.to_owned()) }
    });
    refused.map_err(said)?;
    let after = sh(server, "find /srv/theirs | sort")?;
    ensure(before == after, || format!("it was written to: {after}"))?;
    let deleted = cluster.plane().kubectl(&["delete", "sst", "theirs", "--wait=false"]);
    deleted.map_err(|error| error.to_string())?;
    // What is no longer declared is unmounted, since nothing uses it.
    let gone = until("it is unmounted everywhere", LIMIT, || {
        for name in HOSTS {
            let mounted = sh(machine(cluster, name)?, "findmnt -n -t nfs4 -o TARGET")?;
            if mounted.contains("theirs") {
                return Err(format!("{name}: {mounted}"));
            }
        }
        Ok(())
    });
    gone.map_err(said)
}

/// Tries to take what virtlockd holds for the disk: a POSIX lock on a file that is named by the
/// disk's path.
const TAKE_LOCK: &str = r#"
perl -MFcntl -e 'open F, "+<", $ARGV[0] or die "open: $!";
$lock = pack("s s x4 q q l x4", F_WRLCK, 0, 0, 0, 0);
fcntl(F, F_SETLK, $lock) or die "$!\n"; print "it is free\n"' \
"/srv/stockade/vms/.stockade/locks/$(
    printf /srv/stockade/vms/default/prover.raw | sha256sum | cut -d' ' -f1)"
"#;

fn second_start(cluster: &Cluster, log: &Log) -> Outcome {
    let server = machine(cluster, "s1")?;
    let size = usize::try_from(GUEST_DISK_BYTES).map_err(|error| error.to_string())?;
    let mut disk = boot_sector().to_vec();
    disk.resize(size, 0);
    server.write(SERVED_DISK, &disk).map_err(said)?;
    apply(
        cluster,
        "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
         metadata: {name: prover, namespace: default}\nspec:\n  memory: 64Mi\n  disks:\n  \
         - {name: root, storage: vms, format: raw, existing: {path: prover.raw}}\n",
    )?;
    let host = runs(cluster, "prover", "")?;
    let writes = until("the guest writes", LIMIT, || match counters(cluster)? {
        (ticks, 1) if ticks > 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    writes.map_err(said)?;
    log.say(format!("prover runs on {host}, and writes"));
    let holder = machine(cluster, &host)?;
    let xml = sh(holder, "virsh dumpxml --inactive default.prover")?;
    let other = HOSTS.into_iter().find(|name| *name != host).unwrap_or_default();
    let other = machine(cluster, other)?;
    sh(other, "systemctl stop stockade-agent && rm /etc/libvirt/hooks/qemu.d/stockade")?;
    sh(other, "systemctl restart libvirtd")?;
    other.write("/root/prover.xml", xml.as_bytes()).map_err(said)?;
    let created = other.try_sh("virsh create /root/prover.xml 2>&1", LIMIT).map_err(said)?;
    log.say(format!("by hand on {}: {}", other.name(), created.out.trim()));
    // QEMU asks for its lock on the image first; libvirt's own comes before the first vCPU runs.
    ensure(!created.ok && created.out.contains("lock"), || {
        format!("a second start was not refused by a lock: {created:?}")
    })?;
    let taken = other.try_sh(TAKE_LOCK, LIMIT).map_err(said)?;
    ensure(!taken.ok && taken.err.contains("temporarily unavailable"), || {
        format!("virtlockd's lock binds nobody on {}: {taken:?}", other.name())
    })?;
    ensure(!sh(other, "virsh list --name")?.contains("prover"), || "it runs twice".to_owned())?;
    let before = counters(cluster)?;
    let rises = until("the guest still writes", LIMIT, || match counters(cluster)? {
        now if now.0 > before.0 && now.1 == 1 => Ok(()),
        now => Err(format!("{before:?} and then {now:?}")),
    });
    rises.map_err(said)?;
    // The agent puts its hook back.
    sh(other, "systemctl start stockade-agent")?;
    let hook = until("the hook is back", LIMIT, || {
        sh(other, "test -x /etc/libvirt/hooks/qemu.d/stockade")
    });
    hook.map(drop).map_err(said)
}

fn power_cut(cluster: &Cluster, log: &Log) -> Outcome {
    let host = runs(cluster, "prover", "")?;
    let all_ready = until("all hosts are Ready and their plugs are trusted", LIMIT, || {
        for name in HOSTS {
            let host = object(cluster, &["shost", name])?;
            for kind in ["Ready", "FencingReady"] {
                let (status, message) = condition(&host, kind);
                if status != "True" {
                    return Err(format!("{name}: {kind}: {message}"));
                }
            }
        }
        Ok(())
    });
    all_ready.map_err(said)?;
    let dead = machine(cluster, &host)?;
    let (ticks, boots) = counters(cluster)?;
    let cut = dead.bmc().ipmitool(&["chassis", "power", "off"]);
    ensure(cut.is_ok_and(|output| output.status.success()), || "the BMC refuses".to_owned())?;
    let off = Instant::now();
    let says =
        |what: &str| log.say(format!("{what} {} s after power off", off.elapsed().as_secs()));
    let denied = until("the boot is proven dead, denied and its locks broken", LIMIT, || {
        let fences = object(cluster, &["shf"])?;
        let all = fences["items"].as_array().cloned().unwrap_or_default();
        let fence = all.iter().find(|fence| fence["spec"]["host"] == host.as_str());
        let status = fence.map(|fence| fence["status"].clone()).unwrap_or_default();
        let has = |field: &str| status[field].as_array().is_some_and(|s| s.contains(&"vms".into()));
        let done = status["proof"] == "Power" && has("denied") && has("locksBroken");
        if done { Ok(()) } else { Err(status.to_string()) }
    });
    denied.map_err(said)?;
    says("proven dead, denied, locks broken");
    let exports = sh(machine(cluster, "s1")?, "cat /etc/exports.d/stockade.exports; exportfs -s")?;
    ensure(!exports.contains(&format!("{}(", dead.address())), || {
        format!("{host} is still exported to: {exports}")
    })?;
    let next = runs(cluster, "prover", &host)?;
    says(&format!("prover runs on {next}"));
    let writes = until("the guest writes again", LIMIT, || match counters(cluster)? {
        (now, again) if again == boots + 1 && now > 0 => Ok(()),
        other => Err(format!("{:?} and then {other:?}", (ticks, boots))),
    });
    writes.map_err(said)?;
    says("the guest writes again");
    // Nothing else broke its locks: the lease is longer than this took, or it did not help.
    dead.power_on().map_err(said)?;
    let back = until("the host is admitted again with its next boot", LIMIT, || {
        let exports = sh(machine(cluster, "s1")?, "cat /etc/exports.d/stockade.exports")?;
        let host = object(cluster, &["shost", &host])?;
        let there = exports.contains(&format!("{}(", dead.address()));
        let (ready, message) = condition(&host, "Ready");
        if there && ready == "True" { Ok(()) } else { Err(format!("{message}; {exports}")) }
    });
    back.map_err(said)
}
