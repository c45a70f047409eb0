//! `start`, `stop`, `restart`, `reset`: whether a VM runs.
//!
//! What a run policy keeps going is stopped by changing the policy; what runs by request is
//! stopped by request. The table is in docs/run-policies.md.

use serde_json::json;
use stockade_crds::conditions::{RUNNING, is_true};
use stockade_crds::names::REQUEST_ANNOTATION;
use stockade_crds::v1alpha1::{Management, RunPolicy, VirtualMachine, VmState};

use super::error::PluginError;
use super::session::{Session, fresh_id, merge};
use super::wait::{Seen, Wait, until};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The VM.
    vm: String,
    #[command(flatten)]
    wait: Wait,
}

#[derive(clap::Args)]
pub(super) struct StartArguments {
    #[command(flatten)]
    common: Arguments,
    /// What a Halted VM runs by from now on; it remembers no policy from before.
    #[arg(long, value_enum, value_name = "POLICY", default_value = "always")]
    run_policy: Keeps,
}

/// Run policies that keep a VM running.
#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Keeps {
    /// Whatever ends it, it is started again.
    Always,
    /// As `always`, but a clean shutdown by its guest is its end.
    RerunOnFailure,
}

/// What is written to the VM so that the order becomes true.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Order {
    /// Another run policy.
    Policy(RunPolicy),
    /// The request `<verb>/<id>`.
    Request(&'static str),
}

pub(super) async fn start(
    session: &Session,
    arguments: &StartArguments,
) -> Result<(), PluginError> {
    let keeps = match arguments.run_policy {
        Keeps::Always => RunPolicy::Always,
        Keeps::RerunOnFailure => RunPolicy::RerunOnFailure,
    };
    let vm = managed(session, &arguments.common.vm).await?;
    let order = match vm.spec.run_policy {
        RunPolicy::Halted => Order::Policy(keeps),
        RunPolicy::Always | RunPolicy::RerunOnFailure | RunPolicy::Manual => {
            Order::Request("start")
        }
    };
    let request = give(session, &arguments.common, &order).await?;
    wait_for(session, &arguments.common, request, "runs", |vm| {
        vm.status.as_ref().is_some_and(|s| is_true(&s.conditions, RUNNING))
    })
    .await
}

pub(super) async fn stop(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let vm = managed(session, &arguments.vm).await?;
    let order = match vm.spec.run_policy {
        RunPolicy::Manual => Order::Request("stop"),
        RunPolicy::Always | RunPolicy::RerunOnFailure => Order::Policy(RunPolicy::Halted),
        RunPolicy::Halted => {
            println!("VM {} is Halted already", arguments.vm);
            return Ok(());
        }
    };
    let request = give(session, arguments, &order).await?;
    wait_for(session, arguments, request, "is stopped", |vm| {
        vm.status.as_ref().is_some_and(|s| s.printable_status == VmState::Stopped)
    })
    .await
}

pub(super) async fn restart(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    running_one(session, arguments, "restart").await
}

pub(super) async fn reset(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    running_one(session, arguments, "reset").await
}

/// A request that means something only to a VM that runs.
async fn running_one(
    session: &Session,
    arguments: &Arguments,
    verb: &'static str,
) -> Result<(), PluginError> {
    let vm = managed(session, &arguments.vm).await?;
    let state = vm.status.as_ref().map(|s| s.printable_status).unwrap_or_default();
    if state != VmState::Running {
        return Err(PluginError::Refused(format!(
            "VM {0} is {state:?}: only a running one can be told to {verb}; `kubectl stockade why \
             {0}` says why it is not",
            arguments.vm
        )));
    }
    let request = give(session, arguments, &Order::Request(verb)).await?;
    wait_for(session, arguments, request, "runs", |vm| {
        vm.status.as_ref().is_some_and(|s| s.printable_status == VmState::Running)
    })
    .await
}

async fn managed(session: &Session, name: &str) -> Result<VirtualMachine, PluginError> {
    let vm = session.vm(name).await?;
    if vm.spec.management == Management::Watched {
        return Err(PluginError::Refused(format!(
            "VM {name} is only watched: Stockade does not start or stop it; set spec.management \
             to Managed first"
        )));
    }
    Ok(vm)
}

/// Writes the order; answers the request if it is one.
async fn give(
    session: &Session,
    arguments: &Arguments,
    order: &Order,
) -> Result<Option<String>, PluginError> {
    let name = &arguments.vm;
    let (fields, told, request) = match order {
        Order::Policy(policy) => {
            let told = format!("VM {name}: runPolicy {policy:?}");
            (json!({"spec": {"runPolicy": policy}}), told, None)
        }
        Order::Request(verb) => {
            let request = format!("{verb}/{}", fresh_id());
            let fields = json!({"metadata": {"annotations": {REQUEST_ANNOTATION: request}}});
            (fields, format!("VM {name}: {verb} requested"), Some(request))
        }
    };
    let api = session.namespaced::<VirtualMachine>();
    merge(&api, name, fields, format!("change VM {name}")).await?;
    println!("{told}");
    Ok(request)
}

async fn wait_for(
    session: &Session,
    arguments: &Arguments,
    request: Option<String>,
    goal: &str,
    done: impl Fn(&VirtualMachine) -> bool,
) -> Result<(), PluginError> {
    if !arguments.wait.wait {
        return Ok(());
    }
    let name = &arguments.vm;
    let remedy = format!("`kubectl stockade why {name}` tells more");
    until(arguments.wait.timeout, &remedy, async || {
        let vm = session.vm(name).await?;
        if answers(&vm, request.as_deref()) && done(&vm) {
            return Ok(Seen::Over(()));
        }
        let conditions = vm.status.iter().flat_map(|s| &s.conditions);
        let ready = conditions.into_iter().find(|c| c.type_ == "Ready");
        Ok(Seen::Pending(ready.map_or_else(
            || "waits for the controller".to_owned(),
            |c| format!("{}: {}", c.reason, c.message),
        )))
    })
    .await?;
    println!("VM {name} {goal}");
    Ok(())
}

/// Whether the status is about the spec as it is now, and answers the request that was given.
fn answers(vm: &VirtualMachine, request: Option<&str>) -> bool {
    vm.status.as_ref().is_some_and(|s| {
        s.observed_generation >= vm.metadata.generation.unwrap_or_default()
            && (request.is_none() || s.last_handled_request.as_deref() == request)
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use super::*;

    #[test]
    fn a_status_of_before_the_order_answers_nothing() {
        let of = |seen: i64, handled: &str| -> VirtualMachine {
            serde_json::from_value(json!({
                "metadata": {"name": "a", "generation": 2}, "spec": {"memory": "1Gi"},
                "status": {"observedGeneration": seen, "lastHandledRequest": handled}}))
            .unwrap()
        };
        let request = Some("restart/2");
        assert!(answers(&of(2, "restart/2"), request));
        assert!(!answers(&of(1, "restart/2"), request), "an older spec");
        assert!(!answers(&of(2, "restart/1"), request), "an older request");
        assert!(answers(&of(2, "restart/1"), None), "what somebody else asked is no matter");
    }
}
