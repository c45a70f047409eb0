//! A person at a running Stockade on real hosts: every kubectl verb, a disk that two VMs name,
//! virsh by hand, an order that must not be obeyed, and helm. Needs root and the built programs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::fs;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use stockade_e2e::control_plane::SYSTEM_NAMESPACE;
use stockade_e2e::local_hosts::{LocalHost, Signal, guest_boots, guest_counter, write_guest_disk};
use stockade_e2e::play::{Cluster, Log, STORAGE};

const CONTROLLER: &str = "--as=system:serviceaccount:stockade-system:stockade-controller";

/// A VM whose disk is `<name>.raw`, the proving guest's.
fn manifest(namespace: &str, name: &str, more: &str) -> String {
    format!(
        "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  memory: 64Mi\n  \
         stopGraceSeconds: 30\n  disks:\n    \
         - {{name: root, storage: {STORAGE}, format: raw, existing: {{path: {name}.raw}}}}\n{more}"
    )
}

struct Desk {
    cluster: Cluster,
}

impl Desk {
    /// kubectl with the words, an input and an editor; the exit status is the caller's to judge.
    fn call(&self, words: &[&str], input: &str, editor: &str) -> Output {
        use std::io::Write as _;
        let plane = self.cluster.plane();
        // A watch that a test forgot must not hang it.
        let mut child = Command::new("timeout")
            .arg("60")
            .arg(plane.binaries().kubectl().unwrap())
            .args(words)
            .env("KUBECONFIG", plane.setup_kubeconfig().unwrap())
            .env("KUBECACHEDIR", plane.dir().join("kubectl-cache"))
            .env("KUBE_EDITOR", editor)
            .current_dir(plane.dir())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    }

    fn fed(&self, words: &[&str], input: &str) -> String {
        let output = self.call(words, input, "false");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "kubectl {words:?}: {said}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn k(&self, words: &[&str]) -> String {
        self.fed(words, "")
    }

    fn until(&self, what: &str, mut done: impl FnMut() -> Result<(), String>) {
        let started = Instant::now();
        loop {
            let Err(last) = done() else { return };
            assert!(started.elapsed() < Duration::from_secs(60), "not in time: {what}: {last}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    fn disk(&self, namespace: &str, name: &str) -> std::path::PathBuf {
        let folder = self.cluster.shared().join(namespace);
        fs::create_dir_all(&folder).unwrap();
        folder.join(format!("{name}.raw"))
    }

    fn virsh(&self, host: &LocalHost, words: &[&str]) -> Output {
        Command::new("timeout")
            .args(["30", "virsh", "-c", &host.libvirt_uri()])
            .args(words)
            .output()
            .unwrap()
    }

    fn host_of(&self, name: &str) -> &LocalHost {
        let host = self.k(&["get", "svm", name, "-o", "jsonpath={.status.host}"]);
        self.cluster.host(&host).unwrap()
    }

    /// Every verb that people use, with an ordinary kubectl and no extra flags.
    fn kubectl(&self) {
        write_guest_disk(&self.disk("default", "web")).unwrap();
        let web = manifest("default", "web", "");
        let dry = self.fed(&["apply", "--dry-run=server", "-f", "-"], &web);
        assert!(dry.contains("created (server dry run)"), "{dry}");
        assert!(!self.call(&["get", "svm", "web"], "", "").status.success(), "it was dry");
        let wrong = self.call(&["apply", "-f", "-"], &web.replace("64Mi", "lots"), "");
        assert!(String::from_utf8_lossy(&wrong.stderr).contains("memory"), "{wrong:?}");
        let made = self.fed(&["apply", "-f", "-"], &web);
        assert!(made.contains("virtualmachine.stockade.dev/web created"), "{made}");
        self.k(&["wait", "--for=condition=Ready", "svm/web", "--timeout=50s"]);
        // kubectl may say "configured": it does not know the defaults of a list's items.
        self.fed(&["apply", "-f", "-"], &web);
        let generation = ["get", "svm", "web", "-o", "jsonpath={.metadata.generation}"];
        assert_eq!(self.k(&generation), "1", "applied again, nothing is changed");

        let table = self.k(&["get", "svm"]);
        for word in ["NAME", "STATUS", "READY", "HOST", "AGE", "web", "Running", "True"] {
            assert!(table.contains(word), "{word}: {table}");
        }
        assert!(!table.contains("EPOCH"), "that is for -o wide: {table}");
        let wide = self.k(&["get", "virtualmachines.stockade.dev", "-o", "wide"]);
        assert!(wide.contains("EPOCH") && wide.contains("running on h"), "{wide}");
        let all = self.k(&["get", "stockade", "-A"]);
        for word in ["virtualmachine", "host", "sharedstorage", "fencedevice", "availabilitypolicy"]
        {
            assert!(all.contains(&format!("{word}.stockade.dev/")), "{word}: {all}");
        }
        let hosts = self.k(&["get", "shost"]);
        assert!(hosts.contains("FENCING") && hosts.contains("Ready"), "{hosts}");

        let told = self.k(&["describe", "svm", "web"]);
        let events = told.split("Events:").nth(1).unwrap();
        assert!(events.contains("VmRunning") && events.contains("running on h"), "{told}");
        let explained = self.k(&["explain", "svm.spec.disks.existing"]);
        assert!(explained.contains("path") && explained.contains("FIELDS"), "{explained}");

        let more = web.replace("64Mi", "80Mi");
        let diff = self.call(&["diff", "-f", "-"], &more, "");
        assert_eq!(diff.status.code(), Some(1), "1: there are differences");
        let diff = String::from_utf8_lossy(&diff.stdout).into_owned();
        assert!(diff.contains("-  memory: 64Mi") && diff.contains("+  memory: 80Mi"), "{diff}");
        assert!(!diff.contains("status"), "defaults and status are no difference: {diff}");
        self.fed(&["apply", "--server-side", "-f", "-"], &more);
        self.k(&["wait", "--for=condition=PendingRestart", "svm/web", "--timeout=30s"]);
        self.k(&["patch", "svm", "web", "--type=merge", "-p", r#"{"spec":{"memory":"64Mi"}}"#]);
        self.until("nothing is pending any more", || {
            let path = "jsonpath={.status.conditions[?(@.type=='PendingRestart')].status}";
            let pending = self.k(&["get", "svm", "web", "-o", path]);
            if pending == "True" { Err(pending) } else { Ok(()) }
        });

        let label = self.k(&["label", "svm", "web", "tier=front"]);
        assert!(label.contains("labeled"), "{label}");
        assert!(self.k(&["get", "svm", "-l", "tier=front", "-o", "name"]).contains("/web"));
        let edit = "sed -i s/stopGraceSeconds:.30/stopGraceSeconds:\\ 20/";
        let edited = self.call(&["edit", "svm", "web"], "", edit);
        assert!(String::from_utf8_lossy(&edited.stdout).contains("edited"), "{edited:?}");
        assert_eq!(self.k(&["get", "svm", "web", "-o", "jsonpath={.spec.stopGraceSeconds}"]), "20");
        let boots = guest_boots(&self.disk("default", "web")).unwrap();
        assert_eq!(boots, 1, "none of this touched the guest");
    }

    /// `get -w` tells of a change as it happens, and `delete --wait` returns when all is gone.
    fn watched_and_deleted(&self) {
        let plane = self.cluster.plane();
        let watch = Command::new("timeout")
            .arg("8")
            .arg(plane.binaries().kubectl().unwrap())
            .args(["get", "svm", "web", "-w"])
            .env("KUBECONFIG", plane.setup_kubeconfig().unwrap())
            .env("KUBECACHEDIR", plane.dir().join("kubectl-cache"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(1500));
        let gone = self.k(&["delete", "svm", "web", "--wait"]);
        assert!(gone.contains("deleted"), "{gone}");
        assert!(self.cluster.qemus().is_empty(), "nothing runs when delete has returned");
        assert_eq!(self.k(&["get", "sdom", "-A", "-o", "name"]), "", "no order is left");
        assert!(self.disk("default", "web").is_file(), "its disk stays");
        let told = watch.wait_with_output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(told.contains("Running") && told.contains("Stopping"), "{told}");
    }

    /// Two VMs of two namespaces name one file: the second is Blocked and never opens it.
    fn a_disk_has_one_owner(&self) {
        let shared = self.cluster.shared();
        let storage = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: SharedStorage\nmetadata: {{name: {STORAGE}}}\n\
             spec: {{mountPath: {}, directory: {{}}, allowOtherPaths: true}}\n",
            shared.display()
        );
        self.fed(&["apply", "--server-side", "-f", "-"], &storage);
        let disk = self.disk("default", "one");
        write_guest_disk(&disk).unwrap();
        self.k(&["create", "namespace", "other"]);
        let of = |namespace, name| {
            manifest(namespace, name, "").replace(&format!("{name}.raw"), "default/one.raw")
        };
        self.fed(&["apply", "-f", "-"], &of("default", "one"));
        self.k(&["wait", "--for=condition=Ready", "svm/one", "--timeout=50s"]);
        self.fed(&["apply", "-f", "-"], &of("other", "two"));
        let stalled =
            ["wait", "--for=condition=Stalled", "svm/two", "-n", "other", "--timeout=30s"];
        self.k(&stalled);
        let two = self.k(&["get", "svm", "two", "-n", "other", "-o", "wide"]);
        assert!(two.contains("Blocked"), "{two}");
        assert!(two.contains("belongs to VM default/one"), "it names the owner: {two}");
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(self.cluster.qemus().len(), 1);
        let orders = self.k(&["get", "sdom", "-A", "-o", "jsonpath={.items[*].spec.vm.name}"]);
        assert_eq!(orders, "one", "no host was ever told to open it for the second");
        assert_eq!(guest_boots(&disk).unwrap(), 1);
        self.k(&["delete", "svm", "two", "-n", "other", "--wait"]);
        self.k(&["wait", "--for=condition=Ready", "svm/one", "--timeout=10s"]);
    }

    /// A seed is made of the Secret as it is at the start, by way of a copy that no other host sees
    /// and that goes when its VM ends.
    fn a_seed_comes_from_a_secret(&self) {
        write_guest_disk(&self.disk("default", "seeded")).unwrap();
        let seeded = "  cloudInit: {userDataSecret: {name: seeded, key: userdata}}\n";
        self.fed(&["apply", "-f", "-"], &manifest("default", "seeded", seeded));
        let message = ["get", "svm", "seeded", "-o"];
        let path = "jsonpath={.status.conditions[?(@.type=='Ready')].message}";
        let says = |word: &str| {
            self.until(word, || {
                let said = self.k(&[&message[..], &[path]].concat());
                if said.contains(word) { Ok(()) } else { Err(said) }
            });
        };
        says("spec.cloudInit.userDataSecret: there is no Secret \"seeded\" in namespace");
        self.k(&["create", "secret", "generic", "seeded", "--from-literal=other=x"]);
        says("Secret \"seeded\" has no key \"userdata\" (it has: other)");
        assert!(self.k(&["get", "svm", "seeded"]).contains("Blocked"));
        let fill = |text: &str| {
            let patch = json!({"stringData": {"userdata": text}}).to_string();
            self.k(&["patch", "secret", "seeded", "--type=merge", "-p", &patch]);
        };
        fill("#cloud-config\npassword: first-word\n");
        self.k(&["wait", "--for=condition=Ready", "svm/seeded", "--timeout=50s"]);
        let host = self.host_of("seeded");
        let namespace = format!("stockade-host-{}", host.name());
        let uid = self.k(&[&message[..], &["jsonpath={.metadata.uid}"]].concat());
        let image = host.dir().join(format!("var/lib/stockade/seeds/{uid}.iso"));
        let holds = |word: &str| {
            let bytes = fs::read(&image).unwrap();
            bytes.windows(word.len()).any(|window| window == word.as_bytes())
        };
        assert!(holds("first-word") && holds("user-data") && holds(&uid));
        let copies = || self.k(&["get", "secrets", "-A", "-o", "name"]);
        assert!(copies().contains(&format!("secret/seed-{uid}")));
        assert!(self.k(&["get", "secrets", "-n", &namespace, "-o", "name"]).contains(&uid));

        fill("#cloud-config\npassword: second-word\n");
        let policy = |policy: &str| {
            let patch = json!({"spec": {"runPolicy": policy}}).to_string();
            self.k(&["patch", "svm", "seeded", "--type=merge", "-p", &patch]);
        };
        assert!(holds("first-word"), "what a guest sees does not change while it runs");
        policy("Halted");
        self.until("the copy goes when the VM has stopped", || {
            let left = copies();
            if left.contains(&uid) || image.exists() { Err(left) } else { Ok(()) }
        });
        policy("Always");
        self.k(&["wait", "--for=condition=Running", "svm/seeded", "--timeout=50s"]);
        let host = self.host_of("seeded");
        let image = host.dir().join(format!("var/lib/stockade/seeds/{uid}.iso"));
        let bytes = fs::read(&image).unwrap();
        assert!(bytes.windows(11).any(|window| window == b"second-word"));
        self.k(&["delete", "svm", "seeded", "--wait"]);
        assert!(!copies().contains(&uid) && !image.exists());

        // A namespace that the chart does not name keeps its secrets to itself.
        self.k(&["create", "namespace", "closed"]);
        self.k(&[
            "create",
            "secret",
            "generic",
            "seeded",
            "-n",
            "closed",
            "--from-literal=userdata=x",
        ]);
        write_guest_disk(&self.disk("closed", "seeded")).unwrap();
        self.fed(&["apply", "-f", "-"], &manifest("closed", "seeded", seeded));
        self.until("it says what the controller lacks", || {
            let said = self.k(&["get", "svm", "seeded", "-n", "closed", "-o", path]);
            if said.contains("rbac.secretNamespaces") { Ok(()) } else { Err(said) }
        });
        self.k(&["delete", "svm", "seeded", "-n", "closed", "--wait"]);
    }

    /// libvirt's own hook refuses what a person starts by hand, on either host.
    fn virsh_by_hand(&self) {
        let host = self.host_of("one");
        let name = "default.one";
        let xml = self.virsh(host, &["dumpxml", "--inactive", name]);
        assert!(xml.status.success(), "{xml:?}");
        let file = self.cluster.folder().join("by-hand.xml");
        fs::write(&file, &xml.stdout).unwrap();
        let file = file.to_str().unwrap();
        let refused = |host: &LocalHost, words: &[&str], why: &str| {
            let output = self.virsh(host, words);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(!output.status.success(), "{words:?} on {} was let in", host.name());
            assert!(said.contains("Hook script execution failed") && said.contains(why), "{said}");
        };
        let other = self.cluster.hosts().iter().find(|h| h.name() != host.name()).unwrap();
        refused(other, &["create", file], "no order for it was ever taken here");
        assert!(self.virsh(other, &["define", file]).status.success());
        refused(other, &["start", name], "no order for it was ever taken here");
        assert!(self.virsh(other, &["undefine", name]).status.success());
        // Where it ran last, once it is stopped.
        self.k(&[
            "patch",
            "svm",
            "one",
            "--type=merge",
            "-p",
            r#"{"spec":{"runPolicy":"Halted"}}"#,
        ]);
        self.until("it is stopped", || {
            let state = self.k(&["get", "svm", "one", "-o", "jsonpath={.status.printableStatus}"]);
            if state == "Stopped" { Ok(()) } else { Err(state) }
        });
        let boots = guest_boots(&self.disk("default", "one")).unwrap();
        refused(host, &["create", file], "");
        assert!(self.cluster.qemus().is_empty());
        assert_eq!(guest_boots(&self.disk("default", "one")).unwrap(), boots);
        self.k(&[
            "patch",
            "svm",
            "one",
            "--type=merge",
            "-p",
            r#"{"spec":{"runPolicy":"Always"}}"#,
        ]);
        self.k(&["wait", "--for=condition=Running", "svm/one", "--timeout=50s"]);
    }

    /// An agent that has forgotten everything gets a later epoch's order while the earlier one
    /// runs, as from a lying API: the record beside the disk refuses it.
    fn the_owner_record_refuses_a_second_start(&mut self) {
        let from = self.host_of("one").name();
        let to = self.cluster.hosts().iter().map(LocalHost::name).find(|h| *h != from).unwrap();
        self.cluster.signal_controller(Signal::STOP).unwrap();
        self.cluster.kill_agent(&to).unwrap();
        let state = self.cluster.host(&to).unwrap().dir().join("var/lib/stockade");
        let journal: Vec<_> = fs::read_dir(&state)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.file_name().unwrap().to_string_lossy().starts_with("journal"))
            .collect();
        assert!(!journal.is_empty(), "the journal is somewhere in {}", state.display());
        for path in journal {
            fs::remove_file(path).unwrap();
        }
        self.cluster.start_agent(&to).unwrap();
        let namespace = format!("stockade-host-{from}");
        let order = self.k(&["get", "sdom", "-n", &namespace, "-o", "json"]);
        let order: Value = serde_json::from_str(&order).unwrap();
        let mut order = order["items"][0].clone();
        let epoch = order["spec"]["epoch"].as_i64().unwrap() + 1;
        let there = format!("stockade-host-{to}");
        let agent = self.k(&["get", "hostagent", "agent", "-n", &there, "-o", "json"]);
        let agent: Value = serde_json::from_str(&agent).unwrap();
        order["metadata"] = json!({
            "name": order["metadata"]["name"], "namespace": there,
            "labels": order["metadata"]["labels"],
        });
        order["spec"]["epoch"] = json!(epoch);
        order["spec"]["orderId"] = json!(1);
        order["spec"]["hostUid"] = agent["status"]["hostUid"].clone();
        order["spec"]["bootId"] = agent["status"]["bootId"].clone();
        order.as_object_mut().unwrap().remove("status");
        let before = self.cluster.qemus();
        let group = "--as-group=system:serviceaccounts:stockade-system";
        let create = ["create", "-f", "-", CONTROLLER, group, "--as-group=system:authenticated"];
        self.fed(&create, &order.to_string());
        let name = order["metadata"]["name"].as_str().unwrap();
        let get = ["get", "sdom", name, "-n", &there, "-o", "jsonpath={.status}"];
        self.until("the agent has answered", || {
            let status = self.k(&get);
            if status.contains("may still write it") { Ok(()) } else { Err(status) }
        });
        let status = self.k(&get);
        assert!(status.contains("held by host"), "{status}");
        assert_eq!(self.cluster.qemus(), before, "the same QEMU, and no other");
        let count = guest_counter(&self.disk("default", "one")).unwrap();
        self.until("the guest writes on", || {
            let now = guest_counter(&self.disk("default", "one")).unwrap();
            if now > count { Ok(()) } else { Err(now.to_string()) }
        });
    }

    /// helm takes both charts over, upgrades and removes them: kinds, objects and guests stay.
    fn helm(&self) {
        let plane = self.cluster.plane();
        let helm = |words: &[&str]| {
            let output = Command::new(plane.binaries().helm().unwrap())
                .env("KUBECONFIG", plane.setup_kubeconfig().unwrap())
                .env("HOME", plane.dir())
                .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../charts"))
                .args(words)
                .args(["--namespace", SYSTEM_NAMESPACE])
                .output()
                .unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success(), "helm {words:?}: {said}");
        };
        let before = self.cluster.qemus();
        assert_eq!(before.len(), 1);
        helm(&["install", "stockade-crds", "./stockade-crds", "--take-ownership"]);
        helm(&["install", "stockade", "./stockade", "--take-ownership"]);
        helm(&["upgrade", "stockade-crds", "./stockade-crds"]);
        helm(&["upgrade", "stockade", "./stockade", "--set", "log=debug"]);
        assert!(self.k(&["get", "deployment", "-A", "-o", "yaml"]).contains("value: debug"));
        helm(&["uninstall", "stockade"]);
        helm(&["uninstall", "stockade-crds"]);
        assert!(self.k(&["get", "svm"]).contains("one"), "kinds and objects are kept");
        assert_eq!(self.cluster.qemus(), before, "guests run on without the operator");
    }
}

#[tokio::test]
async fn a_person_with_kubectl_helm_and_virsh_gets_what_they_ask_and_no_second_copy() {
    let log = Log::new();
    let cluster = Cluster::start(2, false, &log).await.unwrap();
    if let Err(error) = cluster.wait_ready().await {
        panic!("{error}\n{}", cluster.dump());
    }
    let mut desk = Desk { cluster };
    desk.kubectl();
    log.say("kubectl: apply to edit");
    desk.watched_and_deleted();
    log.say("kubectl: watch and delete");
    desk.a_seed_comes_from_a_secret();
    log.say("cloud-init from a Secret");
    desk.a_disk_has_one_owner();
    log.say("one disk, one owner");
    desk.virsh_by_hand();
    log.say("virsh by hand is refused");
    desk.the_owner_record_refuses_a_second_start();
    log.say("the owner record refuses");
    desk.helm();
    log.say("helm");
}
