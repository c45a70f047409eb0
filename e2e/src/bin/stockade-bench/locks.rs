//! Row `locks`: seconds that each lock manager adds to a VM's start, on the lab's machines. They are
//! emulated, so that the seconds are longer than those of real ones.

use std::time::{Duration, Instant};

use kube::Api;
use kube::api::{Patch, PatchParams};
use kube::runtime::wait::await_condition;
use serde_json::json;
use stockade_crds::v1alpha1::{VirtualMachine, VmState};
use stockade_e2e::lab::cases::{
    LIMIT, apply, condition, hosts_declared, kubectl, machine, object, runs, said, sh, without_vms,
};
use stockade_e2e::lab::{Cluster, Lab, until};
use stockade_e2e::play::Log;

use crate::Options;
use crate::report::{Error, Figure, quantile};
use crate::start::{failed, runtime};

const HOSTS_FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nfs-sanlock/10-hosts.yaml");
const STORAGE_FILE: &str =
    concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/nfs-sanlock/20-storage.yaml");
const NAMESPACE: &str = "default";
const VM: &str = "timed";
/// Starts under each lock manager.
const STARTS: usize = 9;
/// What guards the VM, and what its figure is called.
const MANAGERS: [(Option<&str>, &str); 3] = [
    (None, "power-on of a VM on NFS without a lock manager"),
    (Some("virtlockd"), "power-on under virtlockd on the same NFS"),
    (Some("sanlock"), "power-on under sanlock on the same NFS"),
];

/// Measures the row `locks`.
///
/// # Errors
/// If the lab can't be started, or something does not run on it.
pub fn run(_: &Options) -> Result<(), Error> {
    let log = Log::on_stderr();
    let say = |text: &str| log.say(text);
    let runtime = runtime()?;
    let lab = Lab::start(3, &say).map_err(|e| failed("lab", said(e)))?;
    let cluster =
        runtime.block_on(Cluster::start(lab, &say)).map_err(|e| failed("lab", said(e)))?;
    let ours = |error: String| failed("locks", error);
    sh(machine(&cluster, "s1").map_err(ours)?, "install -d /srv/vms").map_err(ours)?;
    hosts_declared(&cluster, HOSTS_FILE).map_err(ours)?;
    kubectl(&cluster, &["apply", "-f", STORAGE_FILE]).map_err(ours)?;
    let mut without = None;
    for (manager, figure) in MANAGERS {
        let mut took = measure(&runtime, &cluster, manager).map_err(ours)?;
        let median = quantile(&mut took, 0.5);
        Figure {
            row: "locks",
            figure,
            unit: "s",
            ours: median,
            peer: without,
            peer_name: without.map(|_| "no lock manager"),
            n: STARTS,
            ..Figure::default()
        }
        .print()?;
        without = without.or(Some(median));
    }
    Ok(())
}

/// Seconds from the wish to the VM's state Running, start by start, on one host.
fn measure(
    runtime: &tokio::runtime::Runtime,
    cluster: &Cluster,
    manager: Option<&str>,
) -> Result<Vec<f64>, String> {
    without_vms(cluster)?;
    if let Some(kind) = manager {
        apply(
            cluster,
            &format!(
                "apiVersion: stockade.dev/v1alpha1\nkind: LockManager\nmetadata: {{name: timed}}\n\
                 spec: {{kind: {kind}, storage: vms, hostSelector: {{role: hypervisor}}}}\n"
            ),
        )?;
        let ready = until("the lock manager works on three hosts", LIMIT, || {
            let manager = object(cluster, &["slm", "timed"])?;
            let (status, message) = condition(&manager, "Ready");
            let all = status == "True" && manager["status"]["readyHosts"] == 3;
            if all { Ok(()) } else { Err(message.to_owned()) }
        });
        ready.map_err(said)?;
    }
    apply(
        cluster,
        &format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
             metadata: {{name: {VM}, namespace: {NAMESPACE}}}\n\
             spec:\n  memory: 64Mi\n  stopGraceSeconds: 0\n  \
             placement: {{requiredHosts: [h1]}}\n  \
             disks: [{{name: {}, storage: vms, blank: {{}}, size: 16Mi, format: raw}}]\n",
            manager.unwrap_or("none")
        ),
    )?;
    runs(cluster, VM, "")?;
    let vms: Api<VirtualMachine> = Api::namespaced(cluster.client(), NAMESPACE);
    let mut took = Vec::new();
    for _ in 0..STARTS {
        runtime.block_on(becomes(&vms, "Halted", VmState::Stopped))?;
        // What the stop leaves to do is no part of the start.
        std::thread::sleep(Duration::from_secs(3));
        let began = Instant::now();
        runtime.block_on(becomes(&vms, "Always", VmState::Running))?;
        took.push(began.elapsed().as_secs_f64());
        std::thread::sleep(Duration::from_secs(3));
    }
    Ok(took)
}

/// Wishes for a run policy, and waits for the state that follows.
async fn becomes(vms: &Api<VirtualMachine>, policy: &str, wanted: VmState) -> Result<(), String> {
    let patch = Patch::Merge(json!({"spec": {"runPolicy": policy}}));
    let call = vms.patch(VM, &PatchParams::default(), &patch).await;
    call.map_err(|error| error.to_string())?;
    let is = move |vm: Option<&VirtualMachine>| {
        let status = vm.and_then(|vm| vm.status.as_ref());
        status.is_some_and(|status| status.printable_status == wanted)
    };
    match tokio::time::timeout(LIMIT, await_condition(vms.clone(), VM, is)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("{VM} is not {wanted:?} after {} s", LIMIT.as_secs())),
    }
}
