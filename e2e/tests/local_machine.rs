//! What a manifest asks of a machine is there on a real libvirt: firmware, images, networks, sizes,
//! pauses, resets, and what becomes of disks. Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use stockade_e2e::local_hosts::{
    GUEST_DISK_BYTES, Network, ProcessId, guest_boots, guest_counter, write_balloon_disk,
    write_guest_disk,
};
use stockade_e2e::play::{Cluster, Log, STORAGE};
use stockade_host::journal::FileJournal;

const MIB: u64 = 1 << 20;
/// What is asked for by name in the manifests: a bridge, and a libvirt network on it.
const BRIDGE: &str = "br0";
const LAN: &str = "lan";
/// A libvirt network that gives addresses which begin so.
const LEASED: &str = "leased";
const PREFIX: &str = "10.99.7.";
/// A disk of Debian's package ipxe: what boots from it asks for an address, and that is all.
const IPXE: &str = "/usr/lib/ipxe/ipxe.iso";

struct Bench {
    cluster: Cluster,
}

/// A VM as it runs.
struct Seen {
    host: String,
    qemu: ProcessId,
}

#[tokio::test]
async fn a_machine_is_what_its_manifest_says_from_its_firmware_to_the_end_of_its_disks() {
    let cluster = Cluster::start(2, false, &Log::new()).await.unwrap();
    cluster.wait_ready().await.unwrap();
    let bench = Bench { cluster };
    bench.networks().await;
    fs::create_dir_all(bench.cluster.shared().join("default")).unwrap();
    bench.address_of_its_guest().await;
    bench.firmware_image_networks_and_seed().await;
    bench.pause_reset_memory_and_size().await;
    bench.a_blank_disk_from_its_making_to_its_end().await;
}

impl Bench {
    fn k(&self, words: &[&str]) -> String {
        self.cluster.plane().kubectl(words).unwrap()
    }

    fn disk(&self, name: &str) -> PathBuf {
        self.cluster.shared().join("default").join(name)
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> Result<(), String>) {
        if let Err(error) = self.cluster.until(what, async || done()).await {
            panic!("{error}\n{}", self.cluster.dump());
        }
    }

    /// Runs a program on a host, in its own network.
    fn on(&self, host: &str, words: &[&str]) -> String {
        let mut command =
            self.cluster.host(host).unwrap().command(words[0], Network::Host).unwrap();
        let output = command.args(&words[1..]).output().unwrap();
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn virsh(&self, host: &str, words: &[&str]) -> String {
        self.try_virsh(host, words).unwrap_or_else(|error| panic!("{words:?}: {error}"))
    }

    fn try_virsh(&self, host: &str, words: &[&str]) -> Result<String, String> {
        let uri = self.cluster.host(host).unwrap().libvirt_uri();
        let mut command = Command::new("timeout");
        let output = command.args(["30", "virsh", "-c", &uri]).args(words).output().unwrap();
        if output.status.success() {
            return Ok(String::from_utf8(output.stdout).unwrap());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// What an administrator has made on every host.
    async fn networks(&self) {
        let lan = format!("<forward mode='bridge'/><bridge name='{BRIDGE}'/>");
        let leased = format!(
            "<bridge name='leased0'/><ip address='{PREFIX}1' netmask='255.255.255.0'><dhcp>\
             <range start='{PREFIX}100' end='{PREFIX}109'/></dhcp></ip>"
        );
        let files = [(LAN, lan), (LEASED, leased)].map(|(name, body)| {
            let file = self.cluster.folder().join(format!("{name}.xml"));
            fs::write(&file, format!("<network><name>{name}</name>{body}</network>")).unwrap();
            file
        });
        for host in ["h1", "h2"] {
            self.on(host, &["ip", "link", "add", BRIDGE, "type", "bridge"]);
            self.on(host, &["ip", "link", "set", BRIDGE, "up"]);
            for file in &files {
                // A host that has just been given its certificates restarts its libvirtd.
                self.until("there is a network", || {
                    self.try_virsh(host, &["net-create", text(file)]).map(drop)
                })
                .await;
            }
        }
    }

    /// The guest is told its address by its network, and whoever looks at the VM is, too.
    async fn address_of_its_guest(&self) {
        let image = fs::read(IPXE).unwrap_or_else(|error| panic!("the package ipxe: {error}"));
        fs::write(self.disk("asks.raw"), image).unwrap();
        let mac = "52:54:00:77:00:09";
        self.apply(
            "asks",
            json!({
                "memory": "64Mi", "stopGraceSeconds": 1,
                "disks": [{
                    "name": "root", "storage": STORAGE, "format": "raw",
                    "existing": {"path": "asks.raw"},
                }],
                "networks": [{"name": "a", "network": LEASED, "mac": mac}],
            }),
        );
        let seen = self.running("asks").await;
        self.until("its address is told", || {
            let told = self.says("asks", "{.status.addresses}");
            if told.contains(PREFIX) { Ok(()) } else { Err(told) }
        })
        .await;
        let leases = self.virsh(&seen.host, &["net-dhcp-leases", LEASED]);
        let told: Vec<String> =
            serde_json::from_str(&self.says("asks", "{.status.addresses}")).unwrap();
        let [address] = &told[..] else { panic!("{told:?}") };
        let lease = leases.lines().find(|line| line.contains(mac)).unwrap_or_default();
        assert!(lease.contains(&format!(" {address}/24 ")), "{address}: {leases}");
        assert!(self.k(&["get", "svm", "asks"]).contains(address), "a column shows it");
        self.gone("asks").await;
    }

    fn apply(&self, name: &str, spec: Value) {
        let vm = json!({
            "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
            "metadata": {"name": name, "namespace": "default"}, "spec": spec,
        });
        self.cluster.plane().kubectl_stdin(&["apply", "-f", "-"], &vm.to_string()).unwrap();
    }

    fn patch(&self, name: &str, spec: Value) {
        let patch = json!({"spec": spec}).to_string();
        self.k(&["patch", "svm", name, "--type=merge", "-p", &patch]);
    }

    fn says(&self, name: &str, path: &str) -> String {
        self.k(&["get", "svm", name, "-o", &format!("jsonpath={path}")])
    }

    fn condition(&self, name: &str, kind: &str) -> String {
        self.says(name, &format!("{{.status.conditions[?(@.type=='{kind}')].status}}"))
    }

    /// Waits until the VM runs, whatever else does.
    async fn running(&self, name: &str) -> Seen {
        self.until(&format!("{name} runs and is Ready"), || {
            let state = self.says(name, "{.status.printableStatus}");
            let ready = self.condition(name, "Ready");
            let runs = state == "Running" && ready == "True";
            runs.then_some(()).ok_or_else(|| format!("{state}, Ready {ready}"))
        })
        .await;
        let host = self.says(name, "{.status.host}");
        let qemu = self.qemu(name, &host).unwrap();
        Seen { host, qemu }
    }

    fn qemu(&self, name: &str, host: &str) -> Option<ProcessId> {
        let word = format!("guest=default.{name},");
        let of = |process: &ProcessId| {
            let line = fs::read(format!("/proc/{}/cmdline", process.pid)).unwrap_or_default();
            String::from_utf8_lossy(&line).contains(&word)
        };
        let all = self.cluster.qemus().into_iter().filter(|(at, _)| at == host);
        all.map(|(_, process)| process).find(of)
    }

    /// Fails unless the VM is still the very process that it was.
    fn same(&self, name: &str, seen: &Seen) {
        assert_eq!(self.qemu(name, &seen.host).as_ref(), Some(&seen.qemu), "{name} was restarted");
    }

    async fn gone(&self, name: &str) {
        self.k(&["delete", "svm", name, "--wait=false"]);
        self.until(&format!("{name} is deleted"), || {
            let left = self.k(&["get", "svm", "-o", "name"]);
            let is_there = left.lines().any(|line| line.ends_with(&format!("/{name}")));
            if is_there { Err(left) } else { Ok(()) }
        })
        .await;
    }

    async fn firmware_image_networks_and_seed(&self) {
        let (disk, variables) = (self.disk("uefi-root.qcow2"), self.disk("uefi-root.qcow2.nvram"));
        write_guest_disk(&self.disk("golden.img")).unwrap();
        let mac = "52:54:00:77:00:01";
        self.apply(
            "uefi",
            json!({
                "memory": "128Mi", "stopGraceSeconds": 1, "firmware": {"kind": "UEFI"},
                "cloudInit": {"userData": "#cloud-config\npassword: written-inline\n"},
                "disks": [{
                    "name": "root", "storage": STORAGE, "image": {"path": "golden.img"},
                    "format": "qcow2", "size": "8Mi", "bus": "sata",
                }],
                "networks": [
                    {"name": "a", "network": LAN, "mac": mac}, {"name": "b", "bridge": BRIDGE},
                ],
            }),
        );
        let seen = self.running("uefi").await;

        let shown = qemu_img(&["info", "-U", "--output=json", text(&disk)]);
        let shown: Value = serde_json::from_str(&shown).unwrap();
        assert_eq!((&shown["format"], &shown["virtual-size"]), (&json!("qcow2"), &json!(8 * MIB)));
        let plain = self.cluster.folder().join("plain");
        qemu_img(&["convert", "-U", "-f", "qcow2", "-O", "raw", text(&disk), text(&plain)]);
        let image = fs::read(self.disk("golden.img")).unwrap();
        assert!(fs::read(&plain).unwrap().starts_with(&image), "it is no copy of its image");

        let xml = self.virsh(&seen.host, &["dumpxml", "default.uefi"]);
        for part in [
            &format!(">{}</nvram>", variables.display())[..],
            &format!("<source file='{}'", disk.display())[..],
            "bus='sata'",
            &format!("<source network='{LAN}'")[..],
            &format!("<source bridge='{BRIDGE}'")[..],
            &format!("<mac address='{mac}'/>")[..],
        ] {
            assert!(xml.contains(part), "no {part} in {xml}");
        }
        assert!(open_files(&seen.qemu).contains(&variables), "its UEFI writes elsewhere");
        let taps = self.on(&seen.host, &["ip", "-oneline", "link", "show", "master", BRIDGE]);
        assert_eq!(taps.lines().count(), 2, "{taps}");

        let seeds = self.cluster.host(&seen.host).unwrap().dir().join("var/lib/stockade/seeds");
        let seed = fs::read_dir(seeds).unwrap().next().unwrap().unwrap().path();
        let seed = String::from_utf8_lossy(&fs::read(seed).unwrap()).into_owned();
        assert!(seed.contains("password: written-inline"), "not in the seed image");

        // Its firmware has no balloon driver: what it was given it keeps until it is started anew.
        self.patch("uefi", json!({"memory": "96Mi"}));
        self.until("its memory waits for a restart", || {
            let pending = self.condition("uefi", "PendingRestart");
            (pending == "True").then_some(()).ok_or(pending)
        })
        .await;
        self.same("uefi", &seen);

        self.gone("uefi").await;
        assert!(disk.is_file() && variables.is_file(), "what is retained is gone");
        let taken = self.qemu("uefi", &seen.host);
        assert!(taken.is_none(), "{taken:?}");
    }

    async fn pause_reset_memory_and_size(&self) {
        let disk = self.disk("web.raw");
        write_balloon_disk(&disk).unwrap();
        File::options().write(true).open(&disk).unwrap().write_all_at(b"end", END).unwrap();
        let root = json!({
            "name": "root", "storage": STORAGE, "format": "raw", "existing": {"path": "web.raw"},
        });
        self.apply("web", json!({"memory": "64Mi", "stopGraceSeconds": 5, "disks": [root]}));
        let seen = self.running("web").await;
        self.counts(&disk).await;
        let domain = "default.web";

        self.patch("web", json!({"paused": true}));
        self.until("it is paused", || {
            let state = self.virsh(&seen.host, &["domstate", domain]);
            (state.trim() == "paused").then_some(()).ok_or(state)
        })
        .await;
        let stands = guest_counter(&disk).unwrap();
        // Whatever the agent does next must not resume it.
        self.until("the controller has seen that too", || {
            let message = self.says("web", "{.status.conditions[?(@.type=='Running')].message}");
            message.contains("paused").then_some(()).ok_or(message)
        })
        .await;
        assert_eq!(guest_counter(&disk).unwrap(), stands, "a paused guest counts on");
        self.patch("web", json!({"paused": false}));
        self.counts(&disk).await;
        self.same("web", &seen);
        assert_eq!(guest_boots(&disk).unwrap(), 1, "it was to go on where it stood");

        self.k(&["annotate", "svm", "web", "stockade.dev/request=reset/1"]);
        self.until("it boots again, by request", || {
            let (boots, handled) =
                (guest_boots(&disk).unwrap(), self.says("web", "{.status.lastHandledRequest}"));
            let done = boots == 2 && handled == "reset/1";
            done.then_some(()).ok_or_else(|| format!("{boots} boots, {handled:?} handled"))
        })
        .await;
        self.counts(&disk).await;
        self.same("web", &seen);

        for (memory, kib) in [("48Mi", 48 << 10), ("64Mi", 64 << 10)] {
            self.patch("web", json!({"memory": memory}));
            self.until(&format!("it has {memory} and waits for nothing"), || {
                let info = self.virsh(&seen.host, &["dominfo", domain]);
                let used = info.lines().find(|line| line.starts_with("Used memory")).unwrap();
                let pending = self.condition("web", "PendingRestart");
                let done = used.contains(&format!(" {kib} KiB")) && pending != "True";
                done.then_some(()).ok_or_else(|| format!("{used}, PendingRestart {pending}"))
            })
            .await;
        }
        self.patch("web", json!({"memory": "96Mi"}));
        self.until("more than it was started with waits for a restart", || {
            let pending = self.condition("web", "PendingRestart");
            (pending == "True").then_some(()).ok_or(pending)
        })
        .await;
        self.same("web", &seen);

        // A size below that of the file is no order to cut it off.
        for (size, bytes, length) in
            [("512Ki", MIB / 2, GUEST_DISK_BYTES), ("2Mi", 2 * MIB, 2 * MIB)]
        {
            let mut sized = root.clone();
            sized["size"] = json!(size);
            self.patch("web", json!({"disks": [sized]}));
            self.until(&format!("the agent has acted on a size of {size}"), || {
                let acted = self.grown(&seen.host, &disk);
                (acted == Some(bytes)).then_some(()).ok_or_else(|| format!("{acted:?}"))
            })
            .await;
            assert_eq!(fs::metadata(&disk).unwrap().len(), length, "{size}");
        }
        let mut end = [0; 3];
        File::open(&disk).unwrap().read_exact_at(&mut end, END).unwrap();
        assert_eq!(&end, b"end");
        self.counts(&disk).await;
        self.same("web", &seen);
        assert_eq!(guest_boots(&disk).unwrap(), 2);
        self.gone("web").await;
    }

    /// The size to which the host's agent has grown a disk, as its journal has it.
    fn grown(&self, host: &str, disk: &Path) -> Option<u64> {
        let state = self.cluster.host(host).unwrap().dir().join("var/lib/stockade");
        let journal = FileJournal::read(&state).unwrap();
        let mut sizes = journal.vms.values().flat_map(|vm| &vm.sizes);
        let size = sizes.find(|(path, _)| Path::new(path) == disk).map(|(_, size)| *size);
        size.and_then(|size| u64::try_from(size).ok())
    }

    async fn counts(&self, disk: &Path) {
        let before = guest_counter(disk).unwrap();
        self.until("the guest counts", || {
            let now = guest_counter(disk).unwrap();
            // A boot begins anew.
            if now != before { Ok(()) } else { Err(format!("{now}")) }
        })
        .await;
    }

    async fn a_blank_disk_from_its_making_to_its_end(&self) {
        let disk = self.disk("new-data.raw");
        let spec = |size: &str| {
            json!([{
                "name": "data", "storage": STORAGE, "format": "raw", "blank": {}, "size": size,
                "reclaim": "Delete",
            }])
        };
        let firmware = json!({"kind": "UEFI"});
        self.apply(
            "new",
            json!({
                "memory": "128Mi", "stopGraceSeconds": 1, "firmware": firmware,
                "disks": spec("1Mi"),
            }),
        );
        let seen = self.running("new").await;
        assert_eq!(fs::metadata(&disk).unwrap().len(), MIB);
        assert_eq!(self.of("new-data.raw"), ["", ".nvram", ".stockade"]);

        self.patch("new", json!({"disks": spec("4Mi")}));
        self.until("its disk grows while it runs", || {
            let info = self.virsh(&seen.host, &["domblkinfo", "default.new", text(&disk)]);
            let capacity = info.lines().find(|line| line.starts_with("Capacity")).unwrap();
            let done = capacity.ends_with(&format!(" {}", 4 * MIB));
            done.then_some(()).ok_or_else(|| capacity.to_owned())
        })
        .await;
        assert_eq!(fs::metadata(&disk).unwrap().len(), 4 * MIB);
        self.same("new", &seen);

        self.gone("new").await;
        assert!(self.of("new-data.raw").is_empty(), "{:?}", self.of("new-data.raw"));
    }

    /// What lies on the storage that begins with this name: how the names go on.
    fn of(&self, name: &str) -> Vec<String> {
        let entries = fs::read_dir(self.cluster.shared().join("default")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut ends: Vec<_> =
            names.filter_map(|n| Some(n.strip_prefix(name)?.to_owned())).collect();
        ends.sort();
        ends
    }
}

/// The last bytes of the guest's disk.
const END: u64 = GUEST_DISK_BYTES - 3;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn qemu_img(words: &[&str]) -> String {
    let output = Command::new("qemu-img").args(words).output().unwrap();
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What a process has open.
fn open_files(process: &ProcessId) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{}/fd", process.pid)).unwrap();
    entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).collect()
}
