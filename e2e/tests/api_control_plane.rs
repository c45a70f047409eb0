//! The control plane itself: who may do what on it, what it counts, and that it leaves nothing.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ObjectMeta, Patch, PatchParams, PostParams};
use stockade_e2e::control_plane::{ControlPlane, Options, Token, with_control_plane};

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
        ..ConfigMap::default()
    }
}

#[tokio::test]
async fn an_identity_without_rights_is_refused_until_rbac_gives_them() {
    with_control_plane("refused", async |plane, namespace| {
        let client = plane.client("stockade:host:a", &["stockade:hosts"]).await.expect("client");
        let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
        let refused = maps.create(&PostParams::default(), &config_map("a")).await;
        let Err(kube::Error::Api(status)) = refused else { panic!("not refused: {refused:?}") };
        assert!(status.is_forbidden(), "{status:?}");
        assert!(status.message.contains("stockade:host:a"), "{status:?}");

        // The user of a certificate, its first and its second group: each is seen by the server.
        for subject in ["--user=reader", "--group=one", "--group=two"] {
            let name = subject.replace(['-', '='], "");
            plane
                .kubectl(&[
                    "create",
                    "role",
                    &name,
                    "--verb=list",
                    "--resource=configmaps",
                    "-n",
                    namespace,
                ])
                .expect("role");
            let role = format!("--role={name}");
            plane
                .kubectl(&["create", "rolebinding", &name, &role, subject, "-n", namespace])
                .expect("binding");
        }
        for (user, groups) in [("reader", vec![]), ("a", vec!["one", "x"]), ("b", vec!["x", "two"])]
        {
            let client = plane.client(user, &groups).await.expect("client");
            let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
            maps.list(&kube::api::ListParams::default()).await.expect(user);
        }
    })
    .await
    .expect("control plane");
}

#[tokio::test]
async fn a_service_account_is_known_by_its_token() {
    with_control_plane("account", async |plane, namespace| {
        let kubeconfig =
            plane.service_account_kubeconfig(namespace, "operator").await.expect("kubeconfig");
        let output = plane
            .kubectl_as(&kubeconfig, &["auth", "whoami", "-o", "jsonpath={.status.userInfo}"])
            .expect("kubectl");
        let who = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(who.contains(&format!("system:serviceaccount:{namespace}:operator")), "{who}");
        assert!(who.contains(&format!("system:serviceaccounts:{namespace}")), "{who}");
    })
    .await
    .expect("control plane");
}

#[tokio::test]
async fn writes_are_counted_at_the_server_leases_and_dry_runs_not() {
    with_control_plane("writes", async |plane, namespace| {
        let user = format!("writer-{namespace}");
        let role = ["create", "role", "writer", "--verb=*", "--resource=configmaps"];
        plane.kubectl(&[&role[..], &["-n", namespace]].concat()).expect("role");
        let binding = ["create", "rolebinding", "writer", "--role=writer", "--user", &user];
        plane.kubectl(&[&binding[..], &["-n", namespace]].concat()).expect("binding");
        let mark = plane.mark();
        let client = plane.client(&user, &[]).await.expect("client");
        let maps: Api<ConfigMap> = Api::namespaced(client, namespace);
        maps.create(&PostParams::default(), &config_map("a")).await.expect("create");
        maps.get("a").await.expect("get");
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        maps.create(&dry, &config_map("b")).await.expect("dry run");
        let patch = serde_json::json!({ "data": { "k": "v" } });
        maps.patch("a", &PatchParams::default(), &Patch::Merge(patch)).await.expect("patch");
        let conflict = maps.create(&PostParams::default(), &config_map("a")).await;
        assert!(conflict.is_err());
        maps.delete("a", &DeleteParams::default()).await.expect("delete");
        let lease = plane.kubectl(&["create", "-n", namespace, "-f", &lease_file(plane.dir())]);
        lease.expect("lease");

        let writes = plane.writes_since(mark).expect("audit log");
        let ours: Vec<_> = writes
            .iter()
            .filter(|write| write.namespace == namespace)
            .map(|write| (write.verb.as_str(), write.resource.as_str(), write.code))
            .collect();
        assert_eq!(
            ours,
            [
                ("create", "configmaps", 201),
                ("patch", "configmaps", 200),
                ("create", "configmaps", 409),
                ("delete", "configmaps", 200),
            ]
        );
        assert!(writes.iter().filter(|write| write.user == user).count() == 4);
    })
    .await
    .expect("control plane");
}

fn lease_file(dir: &std::path::Path) -> String {
    let path = dir.join("lease.yaml");
    let text = "apiVersion: coordination.k8s.io/v1\nkind: Lease\nmetadata: {name: beat}\n";
    std::fs::write(&path, text).expect("write");
    path.display().to_string()
}

#[tokio::test]
async fn with_controllers_a_namespace_goes_away_and_after_drop_nothing_is_left() {
    let token = Token {
        token: "a-static-token".to_owned(),
        user: "stockade:tester".to_owned(),
        groups: vec!["one".to_owned(), "two".to_owned(), "three".to_owned()],
    };
    let options = Options { controller_manager: true, tokens: vec![token], ..Options::default() };
    let mut plane = ControlPlane::start(options).await.expect("control plane");
    let kubeconfig = plane.token_kubeconfig("tester", "a-static-token").expect("kubeconfig");
    let output = plane.kubectl_as(&kubeconfig, &["auth", "whoami", "-o", "yaml"]).expect("whoami");
    let who = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(who.contains("username: stockade:tester") && who.contains("- three"), "{who}");

    plane.ensure_namespace("short-lived").await.expect("namespace");
    let namespaces: Api<Namespace> = Api::all(plane.setup_client().await.expect("client"));
    namespaces.delete("short-lived", &DeleteParams::default()).await.expect("delete");
    plane
        .kubectl(&["wait", "--for=delete", "namespace/short-lived", "--timeout=60s"])
        .expect("the namespace is gone");
    plane.all_running().expect("all run");

    let dir = plane.dir().to_owned();
    assert_eq!(dwellers(&dir).len(), 3, "etcd, server and controllers work in the folder");
    drop(plane);
    assert!(!dir.exists(), "the folder is gone");
    assert_eq!(dwellers(&dir), Vec::<String>::new(), "no process is left");
}

/// The processes that work in `dir`, found without the code under test.
fn dwellers(dir: &std::path::Path) -> Vec<String> {
    std::fs::read_dir("/proc")
        .expect("/proc")
        .flatten()
        .filter(|entry| {
            std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| {
                cwd.starts_with(dir) || cwd.to_string_lossy().starts_with(&*dir.to_string_lossy())
            })
        })
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
