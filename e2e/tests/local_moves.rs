//! Live moves between real libvirts: over mutual TLS, again and again, and never with a host that
//! is none of ours. Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair, KeyUsagePurpose,
};
use stockade_crds::names::MOVE_CONTROL;
use stockade_e2e::control_plane::SYSTEM_NAMESPACE;
use stockade_e2e::local_hosts::{Network, guest_boots, guest_counter, write_guest_disk};
use stockade_e2e::play::{Cluster, Log, Programs, STORAGE, moves, on_hosts};

const LIMIT: Duration = Duration::from_secs(90);

#[tokio::test]
async fn a_guest_counts_on_across_twenty_live_moves() {
    on_hosts(2, async |cluster, log| moves(cluster, log, 20).await)
        .await
        .unwrap_or_else(|why| panic!("{why}"));
}

/// A person at a running Stockade on two real hosts.
struct Desk {
    cluster: Cluster,
}

impl Desk {
    fn k(&self, words: &[&str]) -> String {
        self.cluster.plane().kubectl(words).unwrap()
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let started = Instant::now();
        while !done() {
            assert!(started.elapsed() < LIMIT, "not in time: {what}\n{}", self.cluster.dump());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Has a VM run on h1, with certificates in force on both hosts; its disk.
    async fn runs(&self, name: &str) -> PathBuf {
        let disk = self.cluster.shared().join(format!("default/{name}.raw"));
        fs::create_dir_all(disk.parent().unwrap()).unwrap();
        write_guest_disk(&disk).unwrap();
        let vm = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  memory: 64Mi\n  \
             placement: {{preferredHosts: [{{hosts: [h1]}}]}}\n  disks:\n    \
             - {{name: root, storage: {STORAGE}, format: raw, existing: {{path: {name}.raw}}}}\n"
        );
        self.cluster.plane().kubectl_stdin(&["apply", "-f", "-"], &vm).unwrap();
        let ready = "jsonpath={.items[*].status.movesReady}";
        self.until("certificates are in force on both hosts", || {
            self.k(&["get", "sha", "-A", "-o", ready]) == "true true"
        })
        .await;
        self.until("the VM runs", || self.k(&["get", "svm", name]).contains("Running")).await;
        self.until("its guest writes", || guest_counter(&disk).is_ok_and(|n| n > 0)).await;
        disk
    }

    /// Orders a move by the plugin; whether it succeeds, and what is said.
    fn moves_to(&self, host: &str) -> (bool, String) {
        let output = Command::new(Programs::find().unwrap().plugin)
            .args(["migrate", "web", "--to", host, "--wait", "--timeout", "90"])
            .env("KUBECONFIG", self.cluster.plane().setup_kubeconfig().unwrap())
            .output()
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    }

    /// Waits until nothing is left of an earlier move.
    async fn settled(&self) {
        let moving = ["get", "svm", "web", "-o", "jsonpath={.status.migration.name}"];
        let epochs = ["get", "svm", "web", "-o", "jsonpath={.status.placements[*].state}"];
        self.until("nothing is left of the move", || {
            let open = self.k(&epochs).split(' ').filter(|s| *s != "Released").count();
            self.k(&moving).is_empty() && open == 1
        })
        .await;
    }

    /// Gives h2 certificates for its own name by an authority of somebody else's.
    fn forge(&self, folder: &Path, (authority, certificates, keys): Files<'_>) {
        let host = self.cluster.host("h2").unwrap();
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let other = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(["h2".to_owned(), host.address()]).unwrap();
        params.distinguished_name.push(DnType::OrganizationName, MOVE_CONTROL);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let signed = params.signed_by(&key, &other).unwrap();
        let write = |name: &str, text: String| fs::write(folder.join(name), text).unwrap();
        write(authority, other.pem());
        certificates.iter().for_each(|name| write(name, signed.pem()));
        keys.iter().for_each(|name| write(name, key.serialize_pem()));
        self.reread();
    }

    /// Has h2's libvirt read its certificates anew.
    fn reread(&self) {
        let host = self.cluster.host("h2").unwrap();
        let mut command = host.command("virt-admin", Network::Machine).unwrap();
        command.args(["-c", "libvirtd:///system", "server-update-tls", "libvirtd"]);
        assert!(command.status().unwrap().success());
    }
}

/// Names of the authority's file, of those with a certificate, and of those with a key.
type Files<'a> = (&'a str, &'a [&'a str], &'a [&'a str]);

#[tokio::test]
async fn a_host_with_a_wrong_certificate_gets_no_vm_and_the_vm_runs_on() {
    let cluster = Cluster::start(2, false, &Log::new()).await.unwrap();
    cluster.wait_ready().await.unwrap();
    let desk = Desk { cluster };
    let disk = desk.runs("web").await;

    let pki = desk.cluster.host("h2").unwrap().dir().join("etc/pki");
    let parts: [(&str, Files<'_>); 2] = [
        (
            "control",
            (
                "CA/cacert.pem",
                &["libvirt/servercert.pem", "libvirt/clientcert.pem"],
                &["libvirt/private/serverkey.pem", "libvirt/private/clientkey.pem"],
            ),
        ),
        (
            "memory",
            (
                "qemu/ca-cert.pem",
                &["qemu/server-cert.pem", "qemu/client-cert.pem"],
                &["qemu/server-key.pem", "qemu/client-key.pem"],
            ),
        ),
    ];
    for (part, files) in parts {
        let (authority, certificates, keys) = files;
        let own: Vec<(PathBuf, Vec<u8>)> = [authority]
            .iter()
            .chain(certificates)
            .chain(keys)
            .map(|name| pki.join(name))
            .map(|path| (path.clone(), fs::read(path).unwrap()))
            .collect();
        desk.forge(&pki, files);
        let before = guest_counter(&disk).unwrap();
        let (moved, said) = desk.moves_to("h2");
        println!("{part}: {said}");
        assert!(!moved && said.contains("failed"), "{part}: {said}");
        let on = desk.k(&["get", "svm", "web", "-o", "jsonpath={.status.host}"]);
        assert_eq!(on, "h1", "{part}");
        desk.until("its guest writes on", || guest_counter(&disk).is_ok_and(|n| n > before)).await;
        assert_eq!(guest_boots(&disk).unwrap(), 1, "{part}");
        assert_eq!(desk.cluster.qemus().len(), 1, "{part}");
        own.iter().for_each(|(path, text)| fs::write(path, text).unwrap());
        desk.reread();
        desk.settled().await;
    }
    let (moved, said) = desk.moves_to("h2");
    assert!(moved, "with its own again: {said}");
    assert_eq!(guest_boots(&disk).unwrap(), 1);
}

#[tokio::test]
async fn another_authority_takes_over_while_moves_go_on_and_the_old_one_is_forgotten() {
    let cluster = Cluster::start(2, false, &Log::new()).await.unwrap();
    cluster.wait_ready().await.unwrap();
    let desk = Desk { cluster };
    let disk = desk.runs("web").await;
    let read = |host: &str, name: &str| {
        fs::read_to_string(desk.cluster.host(host).unwrap().dir().join("etc/pki").join(name))
            .unwrap()
    };
    let old = read("h1", "CA/cacert.pem");
    let shown = ["libvirt/servercert.pem", "qemu/server-cert.pem"].map(|name| read("h2", name));
    assert_eq!(old.matches("BEGIN CERTIFICATE").count(), 1);
    // The change-over may take less than one move does.
    let trust = desk.cluster.host("h2").unwrap().dir().join("etc/pki/CA/cacert.pem");
    let (over, seen) = mpsc::channel::<()>();
    let watcher = thread::spawn(move || {
        let both = || fs::read_to_string(&trust).is_ok_and(|t| t.matches("BEGIN").count() == 2);
        let mut met = false;
        while seen.recv_timeout(Duration::from_millis(5)) == Err(RecvTimeoutError::Timeout) {
            met |= both();
        }
        met
    });
    let ask = ["annotate", "secret", "stockade-move-authority", "-n", SYSTEM_NAMESPACE];
    desk.k(&[&ask[..], &["stockade.dev/request=rotate/1"]].concat());
    let (mut at, mut moved) = ("h1", 0);
    let started = Instant::now();
    loop {
        let trusts = ["h1", "h2"].map(|host| read(host, "CA/cacert.pem"));
        let new = |text: &String| !text.contains(old.trim()) && text.matches("BEGIN").count() == 1;
        if trusts.iter().all(new) {
            break;
        }
        assert!(started.elapsed() < LIMIT * 2, "{}", desk.cluster.dump());
        let to = if at == "h1" { "h2" } else { "h1" };
        let (done, said) = desk.moves_to(to);
        assert!(done, "{said}");
        desk.settled().await;
        (at, moved) = (to, moved + 1);
    }
    drop(over);
    assert!(watcher.join().unwrap(), "both were believed for a while");
    for (name, before) in ["libvirt/servercert.pem", "qemu/server-cert.pem"].iter().zip(&shown) {
        assert_ne!(&read("h2", name), before);
    }
    let to = if at == "h1" { "h2" } else { "h1" };
    let (done, said) = desk.moves_to(to);
    assert!(done, "by the new one alone: {said}");
    println!("{moved} moves went on meanwhile");
    assert_eq!(guest_boots(&disk).unwrap(), 1);
}
