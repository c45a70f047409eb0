//! A lock manager in maintenance.

use stockade_e2e::lab::cases::{
    Case, LIMIT, Outcome, apply, condition, ensure, kubectl, object, runs, said,
};
use stockade_e2e::lab::{Cluster, until};
use stockade_e2e::play::Log;

use super::stage::Stage;

pub const MAINTENANCE: Case = (
    "while_its_lock_manager_is_in_maintenance_no_guest_stops_and_none_starts_and_it_says_why",
    maintenance,
);

/// A VM that nobody has started yet.
const LATE: &str = "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
                    metadata: {name: late, namespace: default}\nspec:\n  memory: 64Mi\n  \
                    disks:\n  - {name: root, storage: vms, format: raw, blank: {}, size: 16Mi}\n";

fn maintenance(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let mode = |mode: &str| {
        let patch = format!(r#"{{"spec": {{"mode": "{mode}"}}}}"#);
        kubectl(cluster, &["patch", "slm", "locks", "--type=merge", "-p", &patch]).map(drop)
    };
    mode("Maintenance")?;
    apply(cluster, LATE)?;
    let waits = until("its start waits and says for what", LIMIT, || {
        let vm = object(cluster, &["svm", "late"])?;
        let (state, message) = (&vm["status"]["printableStatus"], condition(&vm, "Ready").1);
        let told = state == "Blocked" && message.contains("locks is in maintenance");
        if told { Ok(message.to_owned()) } else { Err(format!("{state}: {message}")) }
    });
    log.say(waits.map_err(said)?);
    stage.holds_for(20, || {
        stage.left_alone(&[])?;
        let vm = object(cluster, &["svm", "late"])?;
        ensure(vm["status"]["printableStatus"] == "Blocked", || vm["status"].to_string())
    })?;
    mode("Active")?;
    let on = runs(cluster, "late", "")?;
    log.say(format!("late runs on {on}"));
    kubectl(cluster, &["delete", "svm", "late"])?;
    stage.left_alone(&[])?;
    stage.ends_without_a_shot()
}
