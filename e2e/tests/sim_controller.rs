//! The real controller on the in-process API, on virtual time, without any host.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use serde_json::json;
use stockade_controller::{Context, ServingHosts};
use stockade_core::world::Guards;
use stockade_crds::v1alpha1::{Host, HostAgent, HostState, VirtualMachine, VmState};
use stockade_host::HostError;
use stockade_host::ports::{Clock, StorageServer};
use stockade_sim::kube::SimApi;
use tokio::time::Instant;

/// The virtual time of the runtime.
struct Virtual(Instant);

impl Clock for Virtual {
    fn monotonic_millis(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_millis()).unwrap()
    }

    fn wall_millis(&self) -> i64 {
        1_767_225_600_000 + i64::try_from(self.0.elapsed().as_millis()).unwrap()
    }

    fn sleep(&self, millis: u64) -> BoxFuture<'static, ()> {
        Box::pin(tokio::time::sleep(Duration::from_millis(millis)))
    }
}

fn start(api: &SimApi, name: &str) -> tokio::task::JoinHandle<()> {
    let context = Context {
        client: api.client(&format!("controller/{name}")),
        identity: name.to_owned(),
        clock: Arc::new(Virtual(Instant::now())),
        fence: None,
        storage_server: None,
        namespace: "stockade-system".to_owned(),
        lease: stockade_controller::LEASE_NAME.to_owned(),
        cluster_id: "test".to_owned(),
        guards: Guards::default(),
    };
    tokio::spawn(async move {
        stockade_controller::run(context, std::future::pending()).await.unwrap();
    })
}

fn cluster() -> SimApi {
    let api = SimApi::ours(5).unwrap();
    for name in ["stockade-system", "default"] {
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        api.admin().apply(&namespace).unwrap();
    }
    for (kind, name, spec) in [
        ("AvailabilityPolicy", "default", json!({})),
        ("SharedStorage", "vms", json!({"mountPath": "/srv/vms", "directory": {}})),
        ("Host", "h1", json!({})),
        ("Host", "h2", json!({})),
    ] {
        let object = json!({
            "apiVersion": "stockade.dev/v1alpha1", "kind": kind,
            "metadata": {"name": name}, "spec": spec,
        });
        api.admin().apply(&object).unwrap();
    }
    let vm = json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "VirtualMachine",
        "metadata": {"name": "web", "namespace": "default"},
        "spec": {"memory": "1Gi", "disks": [
            {"name": "root", "storage": "vms", "format": "raw", "existing": {"path": "web.img"}},
        ]},
    });
    api.admin().apply(&vm).unwrap();
    api
}

#[tokio::test(start_paused = true)]
async fn a_declared_host_gets_its_namespace_and_its_order_and_joins() {
    let api = cluster();
    let controller = start(&api, "a");
    tokio::time::sleep(Duration::from_secs(20)).await;
    let agent: HostAgent = api.admin().get_as(Some("stockade-host-h1"), "agent").unwrap();
    assert_eq!(agent.spec.storages[0].name, "vms");
    let host: Host = api.admin().get_as(None, "h2").unwrap();
    assert_eq!(host.status.unwrap().printable_status, HostState::Joining);
    controller.abort();
}

#[tokio::test(start_paused = true)]
async fn a_vm_that_no_host_takes_says_why_for_each() {
    let api = cluster();
    let controller = start(&api, "a");
    tokio::time::sleep(Duration::from_secs(20)).await;
    let vm: VirtualMachine = api.admin().get_as(Some("default"), "web").unwrap();
    let status = vm.status.unwrap();
    assert_eq!(status.printable_status, VmState::Unplaceable);
    let ready = &status.conditions[0];
    assert!(ready.message.contains("h1") && ready.message.contains("never reported"), "{ready:?}");
    controller.abort();
}

#[tokio::test(start_paused = true)]
async fn a_converged_controller_writes_nothing_but_its_lease() {
    let api = cluster();
    let controller = start(&api, "a");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let writes = || api.admin().writes_without_leases(|who| who.starts_with("controller/"));
    let before = writes();
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(writes(), before);
    controller.abort();
}

#[tokio::test(start_paused = true)]
async fn a_standby_takes_over_after_the_leader_has_crashed_and_only_then() {
    let api = cluster();
    let leader = start(&api, "a");
    tokio::time::sleep(Duration::from_secs(5)).await;
    let standby = start(&api, "b");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let wrote = |who: &'static str| {
        api.admin().writes_without_leases(move |identity| identity == format!("controller/{who}"))
    };
    assert_eq!(wrote("b"), 0, "a standby writes nothing");
    leader.abort();
    let host = json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "Host", "metadata": {"name": "h3"}, "spec": {},
    });
    api.admin().apply(&host).unwrap();
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert!(api.admin().get_as::<HostAgent>(Some("stockade-host-h3"), "agent").is_some());
    assert!(wrote("b") > 0);
    standby.abort();
}

#[tokio::test(start_paused = true)]
async fn a_denial_that_was_taken_back_is_awaited_anew_and_no_other_is() {
    let api = cluster();
    let served = json!({
        "apiVersion": "stockade.dev/v1alpha1", "kind": "SharedStorage",
        "metadata": {"name": "served"},
        "spec": {
            "mountPath": "/srv/served",
            "nfs": {"server": "10.0.0.1", "export": "/srv/served", "servedBy": "h1"},
        },
    });
    api.admin().apply(&served).unwrap();
    let clock = Arc::new(Virtual(Instant::now()));
    let server = ServingHosts::new(api.client("controller/0"), clock);
    let counts_as_silent = async |boot: &str| match server.deny("served", "h2", boot).await {
        Err(HostError::Refused { .. }) => true,
        Err(HostError::Unknown { .. }) => false,
        other => panic!("h1 has no agent: {other:?}"),
    };
    assert!(!counts_as_silent("first").await);
    assert!(!counts_as_silent("second").await);
    tokio::time::sleep(Duration::from_secs(20)).await;
    server.admit("served", "h2", "first").await.unwrap();
    tokio::time::sleep(Duration::from_secs(20)).await;
    assert!(!counts_as_silent("first").await, "it is asked for the first time");
    assert!(counts_as_silent("second").await);
}
