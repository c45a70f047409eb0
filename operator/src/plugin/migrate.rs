//! `migrate VM`: one move, by the object that a person could write.

use kube::ResourceExt as _;
use stockade_crds::v1alpha1::{
    MigrationOutcome, VirtualMachineMigration, VirtualMachineMigrationSpec,
};

use super::error::PluginError;
use super::session::{Session, fresh_id, make};
use super::wait::{Seen, Wait, until};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The VM.
    vm: String,
    /// Its new host; absent: chosen as at a start.
    #[arg(long, value_name = "HOST")]
    to: Option<String>,
    /// By stop and start instead of live.
    #[arg(long)]
    cold: bool,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let vm = session.vm(&arguments.vm).await?;
    let spec = VirtualMachineMigrationSpec {
        vm: vm.name_any(),
        target: arguments.to.clone(),
        live: arguments.cold.then_some(false),
    };
    let short: String = arguments.vm.chars().take(200).collect();
    let mut wanted = VirtualMachineMigration::new(&format!("{short}-{}", fresh_id()), spec);
    wanted.metadata.namespace = Some(session.namespace.clone());
    let api = session.namespaced::<VirtualMachineMigration>();
    let made = make(&api, &wanted, format!("order a move of VM {}", arguments.vm)).await?;
    let name = made.name_any();
    println!("virtualmachinemigration.stockade.dev/{name} created");
    if !arguments.wait.wait {
        return Ok(());
    }
    let remedy = format!(
        "the move goes on; `kubectl delete svmm {name} -n {}` calls it off",
        session.namespace
    );
    let outcome = until(arguments.wait.timeout, &remedy, async || {
        let found = api.get_opt(&name).await;
        let found = found.map_err(PluginError::api(format!("read the move {name}")))?;
        Ok(stands(found.as_ref()))
    })
    .await?;
    outcome.map(|text| println!("{text}")).map_err(PluginError::Refused)
}

/// How the move stands: over with its last sentence, or under way.
fn stands(found: Option<&VirtualMachineMigration>) -> Seen<Result<String, String>> {
    let Some(found) = found else {
        return Seen::Over(Err("the move was deleted by somebody".to_owned()));
    };
    let vm = &found.spec.vm;
    let Some(status) = &found.status else {
        return Seen::Pending("waits for the controller".to_owned());
    };
    let message = status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.message.clone());
    let message = message.unwrap_or_default();
    match status.outcome {
        MigrationOutcome::Pending => match &status.progress {
            Some(progress) => Seen::Pending(format!("{message}: {} %", progress.percent)),
            None => Seen::Pending(message),
        },
        MigrationOutcome::Succeeded => Seen::Over(Ok(format!("VM {vm} {message}"))),
        MigrationOutcome::Failed => {
            Seen::Over(Err(format!("the move of VM {vm} failed: {message}")))
        }
        MigrationOutcome::Refused => {
            Seen::Over(Err(format!("the move of VM {vm} was refused: {message}")))
        }
        MigrationOutcome::Aborted => {
            Seen::Over(Err(format!("the move of VM {vm} was aborted: {message}")))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;
    use stockade_crds::v1alpha1::MigrationProgress;

    use super::*;

    #[test]
    fn only_a_move_that_succeeded_is_a_success() {
        let of = |outcome: &str| -> VirtualMachineMigration {
            serde_json::from_value(json!({"metadata": {"name": "m"}, "spec": {"vm": "web"},
                "status": {"outcome": outcome, "conditions": [{"type": "Ready", "status": "False",
                    "reason": "R", "message": "h2: cordoned",
                    "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}))
            .unwrap()
        };
        assert!(matches!(stands(Some(&of("Pending"))), Seen::Pending(_)));
        assert!(matches!(stands(Some(&of("Succeeded"))), Seen::Over(Ok(_))));
        for outcome in ["Failed", "Refused", "Aborted"] {
            let Seen::Over(Err(why)) = stands(Some(&of(outcome))) else { unreachable!() };
            assert!(why.contains(&outcome.to_lowercase()) && why.contains("cordoned"), "{why}");
        }
        assert!(matches!(stands(None), Seen::Over(Err(_))));
        let mut copying = of("Pending");
        copying.status.as_mut().unwrap().progress =
            Some(MigrationProgress { percent: 40, ..MigrationProgress::default() });
        let Seen::Pending(text) = stands(Some(&copying)) else { unreachable!() };
        assert!(text.ends_with(": 40 %"), "{text}");
    }
}
