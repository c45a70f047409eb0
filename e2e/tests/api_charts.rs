//! The charts, as rendered and applied: who gets which rights, and what admission keeps.

use std::time::Duration;

use stockade_e2e::control_plane::{ControlPlane, Options, SYSTEM_NAMESPACE};

const CONTROLLER: &str = "system:serviceaccount:stockade-system:stockade-controller";
const AGENT_A: [&str; 3] =
    ["--as=stockade:host:a", "--as-group=stockade:hosts", "--as-group=system:authenticated"];

const AGENT_B: [&str; 3] =
    ["--as=stockade:host:b", "--as-group=stockade:hosts", "--as-group=system:authenticated"];

/// What is tried, by whom, with which arguments and input, and a word of the refusal.
type Attempt<'a> = (&'a str, &'a [&'a str], Vec<&'a str>, String, &'a str);

/// One kubectl call by somebody: what it said, and whether it was obeyed.
fn call(plane: &ControlPlane, who: &[&str], args: &[&str], input: &str) -> Result<String, String> {
    plane.kubectl_stdin(&[who, args].concat(), input).map_err(|error| error.to_string())
}

fn host_namespace(plane: &ControlPlane, controller: &[&str], host: &str) {
    let namespace = format!("stockade-host-{host}");
    let user = format!("--user=stockade:host:{host}");
    call(plane, controller, &["create", "namespace", &namespace], "").expect("namespace");
    let role = ["create", "rolebinding", "agent", "--clusterrole=stockade-agent", "-n", &namespace];
    call(plane, controller, &[&role[..], &[&user]].concat(), "").expect("the agent's binding");
}

fn lease(name: &str, host: &str) -> String {
    format!(
        "apiVersion: coordination.k8s.io/v1\nkind: Lease\n\
         metadata: {{name: {name}, namespace: stockade-host-{host}}}\n"
    )
}

fn fence(by: &str) -> String {
    format!(
        "apiVersion: stockade.dev/v1alpha1\nkind: HostFence\nmetadata: {{name: a-1}}\n\
         spec: {{host: a, hostUid: u-1, bootId: b-1, reason: test, \
         confirmation: {{reason: saw it unplugged, by: {by}}}}}\n"
    )
}

fn host_agent(namespace: &str) -> String {
    format!(
        "apiVersion: stockade.dev/v1alpha1\nkind: HostAgent\n\
         metadata: {{name: agent, namespace: {namespace}}}\nspec: {{}}\n"
    )
}

fn domain(name: &str, host: &str) -> String {
    format!(
        "apiVersion: stockade.dev/v1alpha1\nkind: Domain\n\
         metadata: {{name: {name}, namespace: stockade-host-{host}}}\n\
         spec: {{vm: {{namespace: default, name: web, uid: {name}}}, hostUid: u, bootId: b, \
         epoch: 1, orderId: 1, want: Stopped, machine: {{cores: 1, memoryMib: 64}}}}\n"
    )
}

/// What users declare, and a certificate that says nothing yet.
const DECLARED: &str = "apiVersion: stockade.dev/v1alpha1\nkind: Host\nmetadata: {name: a}\nspec: {}\n\
    ---\napiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
    metadata: {name: web, namespace: default}\nspec: {memory: 64Mi}\n\
    ---\napiVersion: stockade.dev/v1alpha1\nkind: HostFence\nmetadata: {name: b-1}\n\
    spec: {host: b, hostUid: u, bootId: b}\n";

/// What agent a must not do to other hosts, to what is everybody's, and to its own orders. Patches
/// come with the object, so that kubectl does not read it first: that would be refused already.
fn beyond_an_agent() -> Vec<Attempt<'static>> {
    let mut all: Vec<Attempt<'static>> = Vec::new();
    let mut add = |what, args: &[&'static str], input: &str, word| {
        all.push((what, &AGENT_A, args.to_vec(), input.to_owned(), word));
    };
    let b = ["-n", "stockade-host-b"];
    let own = ["-n", "stockade-host-a"];
    let with = |args: &[&'static str], more: &[&'static str]| [args, more].concat();
    let of = |kind: &str, name: &str, namespace: &str| {
        let group =
            if kind == "Lease" { "coordination.k8s.io/v1" } else { "stockade.dev/v1alpha1" };
        format!("apiVersion: {group}\nkind: {kind}\nmetadata: {{name: {name}{namespace}}}\n")
    };
    let (in_a, in_b) = (", namespace: stockade-host-a", ", namespace: stockade-host-b");
    let labels = ["patch", "-f", "-", "--type=merge", "-p", r#"{"metadata":{"labels":{"x":"y"}}}"#];
    let generation = r#"{"status":{"observedGeneration":9}}"#;
    let status = ["patch", "-f", "-", "--type=merge", "-p", generation, "--subresource=status"];

    add("b's facts", &with(&["get", "hostagent", "agent"], &b), "", "cannot get");
    add("b's order", &with(&["get", "domain", "d-b"], &b), "", "cannot get");
    add("b's Lease", &with(&["get", "lease", "agent"], &b), "", "cannot get");
    let agent_b = of("HostAgent", "agent", in_b);
    add("b's orders anew", &labels, &agent_b, "cannot patch resource \"hostagents\"");
    add("b's facts anew", &status, &agent_b, "cannot patch resource \"hostagents/status\"");
    let domain_b = of("Domain", "d-b", in_b);
    add("b's order anew", &labels, &domain_b, "cannot patch resource \"domains\"");
    add("b's release", &status, &domain_b, "cannot patch resource \"domains/status\"");
    let beat = ["patch", "-f", "-", "--type=merge", "-p", r#"{"spec":{"holderIdentity":"a"}}"#];
    add("b's beat", &beat, &of("Lease", "agent", in_b), "cannot patch resource \"leases\"");
    add("b's Lease's end", &with(&["delete", "lease", "agent"], &b), "", "cannot delete");
    let secret = ["create", "secret", "generic", "s", "--from-literal=k=v"];
    add("a secret for b", &with(&secret, &b), "", "cannot create resource \"secrets\"");

    add(
        "what is said of a",
        &status,
        &of("Host", "a", ""),
        "cannot patch resource \"hosts/status\"",
    );
    add("what a is to be", &labels, &of("Host", "a", ""), "cannot patch resource \"hosts\"");
    let vm = of("VirtualMachine", "web", ", namespace: default");
    add("a VM's epoch", &status, &vm, "cannot patch resource \"virtualmachines/status\"");
    add("a VM", &labels, &vm, "cannot patch resource \"virtualmachines\"");
    let certificate = of("HostFence", "b-1", "");
    add("a proof", &status, &certificate, "cannot patch resource \"hostfences/status\"");
    let word = fence("stockade:host:a");
    add("a certificate", &["create", "-f", "-"], &word, "cannot create resource \"hostfences\"");

    let order = of("Domain", "d-a", in_a);
    add("its order", &labels, &order, "cannot patch resource \"domains\"");
    let gone = with(&["delete", "domain", "d-a"], &own);
    add("its order's end", &gone, "", "cannot delete resource \"domains\"");
    let another = domain("d-2", "a");
    add("an order", &["create", "-f", "-"], &another, "cannot create resource \"domains\"");
    let event = "apiVersion: v1\nkind: Event\n\
        metadata: {name: e, namespace: stockade-host-a}\n\
        involvedObject: {kind: Domain, name: d-a, namespace: stockade-host-a}\n";
    add("an Event", &["create", "-f", "-"], event, "cannot create resource \"events\"");
    let role = ["create", "rolebinding", "x", "--clusterrole=view", "--user=stockade:host:a"];
    add("rights", &with(&role, &own), "", "cannot create resource \"rolebindings\"");
    let token = with(&["create", "token", "default"], &own);
    add("a token", &token, "", "cannot create resource \"serviceaccounts/token\"");
    all
}

#[tokio::test]
async fn nobody_has_more_rights_than_the_charts_give() {
    let plane = ControlPlane::start(Options::default()).await.expect("control plane");
    plane.install_charts().await.expect("charts");
    plane.install_charts().await.expect("charts, a second time");
    let account = "--as-group=system:serviceaccounts:stockade-system";
    let as_user = format!("--as={CONTROLLER}");
    let controller = [as_user.as_str(), account, "--as-group=system:authenticated"];
    plane.kubectl(&["get", "availabilitypolicy", "default"]).expect("the default policy");

    // Policies are compiled and watched in the background: wait until the first one bites.
    let mut tries = 0;
    while call(&plane, &controller, &["create", "namespace", "elsewhere"], "").is_ok() {
        plane.kubectl(&["delete", "namespace", "elsewhere", "--wait=false"]).expect("delete");
        tries += 1;
        assert!(tries < 100, "the admission policies never took hold");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }

    host_namespace(&plane, &controller, "a");
    host_namespace(&plane, &controller, "b");
    let setup: &[&str] = &[];
    let apply = ["create", "-f", "-"];

    // What must work.
    call(&plane, &controller, &apply, &host_agent("stockade-host-a")).expect("an order");
    call(&plane, &AGENT_A, &apply, &lease("agent", "a")).expect("the agent's Lease");
    let patch = ["patch", "hostagent", "agent", "-n", "stockade-host-a", "--type=merge", "-p"];
    let status = [&patch[..], &[r#"{"status":{"observedGeneration":1}}"#, "--subresource=status"]];
    call(&plane, &AGENT_A, &status.concat(), "").expect("the agent's status");
    call(&plane, &controller, &apply, &host_agent("stockade-host-b")).expect("b's order");
    call(&plane, &controller, &apply, &domain("d-a", "a")).expect("an order for a VM");
    call(&plane, &controller, &apply, &domain("d-b", "b")).expect("b's for a VM");
    call(&plane, &AGENT_B, &apply, &lease("agent", "b")).expect("b's Lease");
    call(&plane, setup, &apply, DECLARED).expect("what users declare");

    // A secret of its own host, once the controller has put it there; of a user only one that is
    // asked for by name, where the chart says so.
    let own = ["-n", "stockade-host-a"];
    let role = ["create", "rolebinding", "mine", "--clusterrole=stockade-controller-host"];
    let me = format!("--user={CONTROLLER}");
    call(&plane, &controller, &[&role[..], &own, &[&me]].concat(), "").expect("its own binding");
    let seed = ["create", "secret", "generic", "seed-1", "--from-literal=userData=x"];
    let seeded = [&seed[..], &own].concat();
    for tries in 0.. {
        match call(&plane, &controller, &seeded, "") {
            Ok(_) => break,
            Err(error) => assert!(tries < 50, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let read = |namespace| vec!["get", "secret", "seed-1", "-n", namespace];
    call(&plane, &AGENT_A, &read("stockade-host-a"), "").expect("its own secret");
    plane.kubectl(&[&seed[..], &["-n", "default"]].concat()).expect("a user's secret");
    call(&plane, &controller, &read("default"), "").expect("the secret of a seed, by name");

    // What must not: each with a word of the refusal.
    let spec = [&patch[..], &[r#"{"spec":{}}"#]].concat();
    let b = ["-n", "stockade-host-b"];
    let bind = |role| {
        let role: &'static str = role;
        let to = ["--user=y", "-n", "stockade-host-a", "--clusterrole"];
        [&["create", "rolebinding", "x"][..], &to, &[role]].concat()
    };
    let mut refused: Vec<Attempt<'_>> = vec![
        ("a Lease of another name", &AGENT_A, apply.into(), lease("other", "a"), "named agent"),
        ("another host's Lease", &AGENT_A, apply.into(), lease("agent", "b"), "forbidden"),
        ("its own order", &AGENT_A, spec, String::new(), "cannot patch"),
        ("a new order", &AGENT_A, apply.into(), host_agent("stockade-host-a"), "cannot create"),
        (
            "another's orders",
            &AGENT_A,
            [&["get", "domains"], &b[..]].concat(),
            String::new(),
            "cannot list",
        ),
        (
            "another's secrets",
            &AGENT_A,
            [&["get", "secrets"], &b[..]].concat(),
            String::new(),
            "cannot list",
        ),
        ("another's secret", &AGENT_A, read("stockade-host-b"), String::new(), "cannot get"),
        ("a user's secret", &AGENT_A, read("default"), String::new(), "cannot get"),
        ("a fence secret", &AGENT_A, read("stockade-system"), String::new(), "cannot get"),
        ("all secrets", &AGENT_A, vec!["get", "secrets", "-A"], String::new(), "cannot list"),
        ("a secret of its own", &AGENT_A, seeded.clone(), String::new(), "cannot create"),
        (
            "its secret's end",
            &AGENT_A,
            [&["delete", "secret", "seed-1"], &own[..]].concat(),
            String::new(),
            "cannot delete",
        ),
        ("all Domains", &AGENT_A, vec!["get", "domains", "-A"], String::new(), "cannot list"),
        ("users' VMs", &AGENT_A, vec!["get", "svm", "-A"], String::new(), "cannot list"),
        ("hosts", &AGENT_A, vec!["get", "shost"], String::new(), "cannot list"),
        (
            "a configmap",
            &AGENT_A,
            vec!["create", "configmap", "x", "-n", "stockade-host-a"],
            String::new(),
            "cannot create",
        ),
        (
            "its Lease's end",
            &AGENT_A,
            vec!["delete", "lease", "agent", "-n", "stockade-host-a"],
            String::new(),
            "cannot delete",
        ),
        (
            "an order by an administrator",
            setup,
            apply.into(),
            host_agent("stockade-host-b"),
            "VirtualMachine",
        ),
        (
            "an order's end by an administrator",
            setup,
            vec!["delete", "hostagent", "agent", "-n", "stockade-host-a"],
            String::new(),
            "VirtualMachine",
        ),
        (
            "a host's namespace",
            setup,
            vec!["delete", "namespace", "stockade-host-a"],
            String::new(),
            "delete the Host",
        ),
        (
            "a host's Lease",
            setup,
            vec!["delete", "lease", "agent", "-n", "stockade-host-a"],
            String::new(),
            "delete the Host",
        ),
        ("another's word", setup, apply.into(), fence("somebody"), "your own user name"),
        (
            "a foreign namespace",
            &controller,
            vec!["create", "namespace", "other"],
            String::new(),
            "hosts only",
        ),
        ("cluster-admin", &controller, bind("cluster-admin"), String::new(), "forbidden"),
        ("an empty role", &controller, bind("admin"), String::new(), "roles of hosts only"),
        (
            "a list of users' secrets",
            &controller,
            vec!["get", "secrets", "-n", "default"],
            String::new(),
            "cannot list",
        ),
        (
            "a secret where the chart names no seeds",
            &controller,
            read("kube-system"),
            String::new(),
            "cannot get",
        ),
        (
            "a secret of a host without a seed",
            &controller,
            [&seed[..], &b[..]].concat(),
            String::new(),
            "cannot create",
        ),
        ("all secrets", &controller, vec!["get", "secrets", "-A"], String::new(), "cannot list"),
        ("the agent's status", &controller, status.concat(), String::new(), "cannot patch"),
        (
            "a VM",
            &controller,
            vec!["delete", "svm", "x", "-n", "default"],
            String::new(),
            "cannot delete",
        ),
    ];
    refused.extend(beyond_an_agent());
    let by_the_agent = refused.iter().filter(|(_, who, ..)| **who == AGENT_A).count();
    assert!(by_the_agent >= 20, "only {by_the_agent} attempts by the agent");
    for (what, who, args, input, word) in refused {
        let answer = call(&plane, who, &args, &input);
        let error = answer.expect_err(what);
        assert!(error.contains(word), "{what}: {error}");
    }

    // With its own certificate it can't be somebody else either.
    let itself = plane.kubeconfig("stockade:host:a", &["stockade:hosts"]).expect("a kubeconfig");
    let as_b = ["get", "hostagent", "agent", "-n", "stockade-host-b", "--as=stockade:host:b"];
    let output = plane.kubectl_as(&itself, &as_b).expect("kubectl");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && said.contains("cannot impersonate"), "{said}");

    // And were it bound to every right there is, admission would keep it where it belongs.
    let wide = ["create", "clusterrolebinding", "wide", "--clusterrole=cluster-admin"];
    plane.kubectl(&[&wide[..], &["--user=stockade:host:a"]].concat()).expect("too wide a binding");
    let kept = [
        ("own host's namespace only", "hostagent", "agent", "stockade-host-b", true),
        ("own host's namespace only", "domain", "d-b", "stockade-host-b", true),
        ("own host's namespace only", "svm", "web", "default", true),
        ("own host's namespace only", "shost", "a", "", true),
        // Two policies forbid it; either may be the one that is told.
        ("an agent", "domain", "d-a", "stockade-host-a", false),
    ];
    for (word, kind, name, namespace, is_status) in kept {
        let patch = r#"{"metadata":{"labels":{"x":"y"}},"status":{"observedGeneration":9}}"#;
        let mut args = vec!["patch", kind, name, "--type=merge", "-p", patch];
        args.extend((!namespace.is_empty()).then_some(["-n", namespace]).into_iter().flatten());
        args.extend(is_status.then_some("--subresource=status"));
        // Rights are read from a cache: until the new one is there, they are what refuses.
        let mut tries = 0;
        let error = loop {
            let error = call(&plane, &AGENT_A, &args, "").expect_err(name);
            tries += 1;
            if tries > 50 || !error.contains("cannot ") {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        assert!(error.contains(word), "{namespace}/{name}: {error}");
    }

    // A human's word: by whoever holds the right, in their own name, and for good.
    call(&plane, setup, &apply, &fence("stockade:setup")).expect("a word");
    let unsay = r#"{"spec":{"confirmation":null}}"#;
    let taken_back = ["patch", "hostfence", "a-1", "--type=merge", "-p", unsay];
    let error = call(&plane, setup, &taken_back, "").expect_err("taken back");
    assert!(error.contains("taken back"), "{error}");
    let error = call(&plane, setup, &["delete", "hostfence", "a-1"], "").expect_err("certificate");
    assert!(error.contains("certificate"), "{error}");
}

#[tokio::test]
async fn values_are_checked_and_kinds_are_kept() {
    let plane = ControlPlane::start(Options::default()).await.expect("control plane");
    let error = plane.render_chart("stockade", &["--set", "replica=1"]).expect_err("a wrong key");
    assert!(error.to_string().contains("replica"), "{error}");
    let kept = plane.render_chart("stockade-crds", &[]).expect("render");
    let kinds = kept.matches("kind: CustomResourceDefinition").count();
    assert_eq!(kinds, stockade_crds::all_crds().len());
    assert_eq!(kept.matches("helm.sh/resource-policy: keep").count(), kinds);
    let loose = plane.render_chart("stockade-crds", &["--set", "keep=false"]).expect("render");
    assert!(!loose.contains("resource-policy"));
    let rest = plane.render_chart("stockade", &[]).expect("render");
    assert!(!rest.contains("cluster-admin"), "nobody is cluster-admin");
    for wanted in ["--listen=0.0.0.0:8080", "path: /healthz", "path: /readyz", "kind: Service\n"] {
        assert!(rest.contains(wanted), "{wanted}");
    }
    let agents = ["--set", "fencing.agents={fence_mine}", "--set", "http.port=9000"];
    let rest = plane.render_chart("stockade", &agents).expect("render");
    assert!(rest.contains("--fence-agent=fence_mine") && rest.contains("0.0.0.0:9000"), "{rest}");
    let error = plane.render_chart("stockade", &["--set", "fencing.agents={/bin/sh}"]);
    assert!(error.expect_err("no agent's name").to_string().contains("fencing"));

    // helm itself installs, upgrades and uninstalls them; objects of our kinds outlive that.
    let helm = |args: &[&str]| {
        let output = std::process::Command::new(plane.binaries().helm().expect("helm"))
            .env("KUBECONFIG", plane.setup_kubeconfig().expect("kubeconfig"))
            .env("HOME", plane.dir())
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../charts"))
            .args(args)
            .args(["--namespace", SYSTEM_NAMESPACE])
            .output()
            .expect("helm runs");
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    helm(&["install", "stockade-crds", "./stockade-crds", "--create-namespace"]);
    plane
        .kubectl(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"])
        .expect("established");
    helm(&["install", "stockade", "./stockade"]);
    helm(&["upgrade", "stockade-crds", "./stockade-crds"]);
    helm(&["upgrade", "stockade", "./stockade", "--set", "replicas=3"]);
    helm(&["uninstall", "stockade"]);
    helm(&["uninstall", "stockade-crds"]);
    plane.kubectl(&["get", "crd", "virtualmachines.stockade.dev"]).expect("the kinds are kept");
}
