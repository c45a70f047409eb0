//! `kubectl stockade` on a real kube-apiserver, with the real controller and agents on simulated
//! hosts: what it tells is what is, and what it orders is done.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stockade_e2e::control_plane::ControlPlane;
use stockade_e2e::play::{Log, Programs, STORAGE, Simulated};

const LIMIT: Duration = Duration::from_secs(90);

struct Desk {
    hosts: Simulated,
    plugin: PathBuf,
    user: PathBuf,
}

impl Desk {
    async fn start() -> Self {
        let hosts = Simulated::start(3, false, &Log::new()).await.unwrap();
        hosts.wait_ready().await.unwrap();
        let user = hosts.plane().setup_kubeconfig().unwrap();
        Self { hosts, plugin: Programs::find().unwrap().plugin, user }
    }

    fn plane(&self) -> &ControlPlane {
        self.hosts.plane()
    }

    /// What `kubectl stockade` says to these words, and whether it succeeds.
    async fn says_as(&self, kubeconfig: &Path, words: &str) -> (bool, String) {
        let command = tokio::process::Command::new(&self.plugin)
            .args(words.split_whitespace())
            .env("KUBECONFIG", kubeconfig)
            .kill_on_drop(true)
            .output();
        let output = tokio::time::timeout(LIMIT, command).await.expect(words).unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(text).unwrap())
    }

    async fn does(&self, words: &str) -> String {
        let (ok, text) = self.says_as(&self.user, words).await;
        assert!(ok, "{words}: {text}\n{}", self.hosts.dump());
        text
    }

    async fn refuses(&self, words: &str) -> String {
        let (ok, text) = self.says_as(&self.user, words).await;
        assert!(!ok, "{words}: {text}");
        text
    }

    fn k(&self, words: &[&str]) -> String {
        self.plane().kubectl(words).unwrap()
    }

    fn apply(&self, name: &str, more: &str) {
        let vm = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
             metadata: {{name: {name}, namespace: default}}\nspec:\n  memory: 1Gi\n  \
             disks: [{{name: root, storage: {STORAGE}, blank: {{}}, size: 1Gi}}]\n{more}"
        );
        self.plane().kubectl_stdin(&["apply", "-f", "-"], &vm).unwrap();
    }

    fn places(&self) -> BTreeMap<String, String> {
        let path = "jsonpath={range .items[*]}{.metadata.name} {.status.host}{\"\\n\"}{end}";
        let text = self.k(&["get", "svm", "-o", path]);
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.map(|(vm, host)| (vm.to_owned(), host.to_owned())).collect()
    }

    async fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let started = std::time::Instant::now();
        while !done() {
            assert!(started.elapsed() < LIMIT, "not in time: {what}\n{}", self.hosts.dump());
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Hosts, evidence on each path, plugs, and a VM's place with its reasons.
    async fn looks(&self) {
        self.until("the failures that fit are counted", || {
            self.k(&["get", "sap", "default", "-o", "jsonpath={.status.tolerates}"]) == "2"
        })
        .await;
        let status = self.does("status").await;
        for word in ["Tolerates: 2 host failures", "VMs: 4 Running", "shared beats (seen by h"] {
            assert!(status.contains(word), "{word}: {status}");
        }
        assert!(!status.contains("silent"), "{status}");
        let read = self.does("fence test h1").await;
        assert!(read.contains("bmc-h1  On"), "{read}");
        let again = self.does("fence test h1").await;
        assert!(again.contains("bmc-h1  On"), "each call is a new reading: {again}");
        let why = self.does("why a").await;
        for word in ["default/a is Running", "h1    here  yes, the first choice", "VmRunning"] {
            assert!(why.contains(word), "{word}: {why}");
        }
        self.does("cordon h2").await;
        self.until("the controller has seen it", || {
            self.k(&["get", "shost", "h2"]).contains("Cordoned")
        })
        .await;
        let why = self.does("why a").await;
        assert!(why.contains("h2          no: cordoned"), "{why}");
        self.does("uncordon h2").await;
        let lost = self.refuses("why nobody").await;
        assert!(lost.contains("no VM nobody in namespace default"), "{lost}");
        let there = self.does("-n default --context stockade why a").await;
        assert!(there.contains("default/a"), "{there}");
    }

    /// The dry run of a drain names exactly the moves that the drain then makes.
    async fn drains(&self) {
        self.until("h2 takes VMs again", || self.k(&["get", "shost", "h2"]).contains("Ready"))
            .await;
        let told = self.does("drain h1 --dry-run").await;
        assert!(told.contains("would move 3 VMs"), "{told}");
        let planned: BTreeMap<String, String> = told
            .lines()
            .filter_map(|line| {
                let (vm, rest) = line.split_once(": default/")?.1.split_once(" from h1 to ")?;
                Some((vm.to_owned(), rest.split_once(',')?.0.to_owned()))
            })
            .collect();
        assert_eq!(planned.len(), 3, "{told}");
        let before = self.places();
        assert_eq!(self.k(&["get", "shost", "h1", "-o", "jsonpath={.spec.mode}"]), "Active");
        let done = self.does("drain h1 --wait --timeout 80").await;
        assert!(done.contains("h1 is empty"), "{done}");
        let expected: BTreeMap<String, String> = before.into_iter().chain(planned).collect();
        assert_eq!(self.places(), expected, "the dry run said: {told}");
        let idle = self.does("drain h1 --dry-run").await;
        assert!(idle.contains("would move 0 VMs"), "{idle}");
        self.does("uncordon h1").await;
        self.until("h1 takes VMs again", || self.k(&["get", "shost", "h1"]).contains("Ready"))
            .await;
    }

    /// Orders to one VM, each waited for.
    async fn orders(&self) {
        let moved = self.does("migrate a --to h1 --wait --timeout 80").await;
        assert!(moved.contains("VM a runs on h1"), "{moved}");
        assert_eq!(self.places()["a"], "h1");
        let twice = self.refuses("migrate a --to h1 --wait").await;
        assert!(twice.contains("refused"), "{twice}");
        let cold = self.does("migrate a --to h2 --cold --wait --timeout 80").await;
        assert!(cold.contains("VM a runs on h2"), "{cold}");
        let epoch = || self.k(&["get", "svm", "a", "-o", "jsonpath={.status.epoch}"]);
        let before = epoch();
        self.does("restart a --wait --timeout 80").await;
        assert_ne!(epoch(), before, "a restart is a new epoch");
        let before = epoch();
        self.does("reset a --wait --timeout 80").await;
        assert_eq!(epoch(), before, "a reset is none");
        self.does("stop a --wait --timeout 80").await;
        let policy = ["get", "svm", "a", "-o", "jsonpath={.spec.runPolicy}"];
        assert_eq!(self.k(&policy), "Halted");
        let off = self.refuses("restart a").await;
        assert!(off.contains("Stopped") && off.contains("why a"), "{off}");
        self.does("start a --run-policy rerun-on-failure --wait --timeout 80").await;
        assert_eq!(self.k(&policy), "RerunOnFailure");
        self.apply("manual", "  runPolicy: Manual\n");
        self.does("start manual --wait --timeout 80").await;
        self.does("stop manual --wait --timeout 80").await;
        assert_eq!(self.k(&["get", "svm", "manual", "-o", "jsonpath={.spec.runPolicy}"]), "Manual");
        let fields = self.k(&["get", "svm", "a", "-o", "yaml", "--show-managed-fields"]);
        assert!(fields.contains("manager: stockade-cli"), "{fields}");
    }

    /// A person with the rights of their own namespace alone.
    async fn a_tenant(&self) {
        for role in ["view", "edit"] {
            let name = format!("ann-{role}");
            let role = format!("--clusterrole=stockade-{role}");
            self.k(&["create", "rolebinding", &name, &role, "--user=ann", "-n", "default"]);
        }
        let ann = self.plane().kubeconfig("ann", &[]).unwrap();
        let (ok, why) = self.says_as(&ann, "why b").await;
        assert!(ok && why.contains("Hosts: not shown"), "{why}");
        let (ok, text) = self.says_as(&ann, "restart b --wait --timeout 80").await;
        assert!(ok, "{text}");
        for words in ["status", "drain h1", "fence confirm h1 --reason gone"] {
            let (ok, text) = self.says_as(&ann, words).await;
            assert!(!ok && text.contains("stockade-operator"), "{words}: {text}");
        }
    }

    /// A host that nothing can prove dead but a person's word.
    async fn a_word(&self) {
        let alive = self.refuses("fence confirm h3 --reason unplugged --yes --boot x").await;
        assert!(alive.contains("is not") || alive.contains("not x"), "{alive}");
        let boot = self.k(&["get", "shost", "h3", "-o", "jsonpath={.status.bootId}"]);
        let alive =
            self.refuses(&format!("fence confirm h3 --reason unplugged --yes --boot {boot}")).await;
        assert!(alive.contains("shows life"), "{alive}");
        let none = r#"{"spec":{"fencing":[]}}"#;
        self.k(&["patch", "shost", "h3", "--type=merge", "-p", none]);
        self.hosts.obey("cut h3").unwrap();
        self.until("h3 awaits a proof", || {
            self.k(&["get", "shost", "h3"]).contains("AwaitingProof")
        })
        .await;
        let status = self.does("status").await;
        let line = status.lines().find(|l| l.starts_with("h3") && l.contains("AwaitingProof"));
        assert!(line.is_some_and(|l| l.contains("shared silent (seen by h")), "{status}");
        assert!(status.contains("c Recovering"), "{status}");
        let asked = self.refuses("fence confirm h3 --reason unplugged").await;
        assert!(asked.contains("--yes"), "nobody can be asked back: {asked}");
        // One who may see hosts, and may not give a word.
        let role = "--clusterrole=stockade-operator";
        self.k(&["create", "clusterrolebinding", "bob", role, "--user=bob"]);
        let bob = self.plane().kubeconfig("bob", &[]).unwrap();
        let word = format!("fence confirm h3 --reason unplugged --yes --boot {boot} --timeout 60");
        let (ok, text) = self.says_as(&bob, &word).await;
        assert!(!ok && text.contains("stockade-confirm"), "{text}");
        self.k(&[
            "create",
            "clusterrolebinding",
            "bob-2",
            "--clusterrole=stockade-confirm",
            "--user=bob",
        ]);
        let (ok, text) = self.says_as(&bob, &word).await;
        assert!(ok && text.contains("as bob") && text.contains("dead by Human"), "{text}");
        let history = self.does("fence history h3").await;
        assert!(history.contains("a word by bob: unplugged"), "{history}");
        assert!(history.contains("proven dead by Human"), "{history}");
        self.until("c runs elsewhere", || {
            let vm = self.k(&["get", "svm", "c"]);
            vm.contains("Running") && !vm.contains("h3")
        })
        .await;
        let again = self.refuses(&word).await;
        assert!(again.contains("proven dead already"), "{again}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_plugin_tells_is_so_and_what_it_orders_is_done() {
    let desk = Desk::start().await;
    for name in ["a", "b", "e"] {
        desk.apply(name, "  placement: {preferredHosts: [{hosts: [h1]}]}\n");
    }
    desk.apply("c", "  placement: {preferredHosts: [{hosts: [h3]}]}\n");
    desk.until("all run", || {
        let table = desk.k(&["get", "svm"]);
        table.matches("Running").count() == 4
    })
    .await;
    desk.looks().await;
    desk.drains().await;
    desk.orders().await;
    desk.a_tenant().await;
    desk.a_word().await;
}

#[tokio::test]
async fn errors_name_their_remedy() {
    let plugin = Programs::find().unwrap().plugin;
    let says = |words: &[&str], kubeconfig: &str| {
        let output = std::process::Command::new(&plugin)
            .args(words)
            .env("KUBECONFIG", kubeconfig)
            .env_remove("KUBERNETES_SERVICE_HOST")
            .env("HOME", "/nonexistent")
            .output()
            .unwrap();
        assert!(!output.status.success());
        String::from_utf8(output.stderr).unwrap()
    };
    let none = says(&["status"], "/nonexistent/config");
    assert!(none.contains("--kubeconfig"), "{none}");
    let plane = ControlPlane::start(Default::default()).await.unwrap();
    let bare = plane.setup_kubeconfig().unwrap();
    let bare = bare.to_str().unwrap();
    let unknown = says(&["status"], bare);
    assert!(unknown.contains("stockade-crds"), "{unknown}");
    let context = says(&["status", "--context", "elsewhere"], bare);
    assert!(context.contains("--context"), "{context}");
    let word = says(&["fence", "confirm", "h1"], bare);
    assert!(word.contains("--reason"), "{word}");
}
