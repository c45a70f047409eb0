//! `drain HOST`: maintenance, or with `--dry-run` the plan of it.

use std::fmt::Write as _;

use kube::ResourceExt as _;
use stockade_core::ha::reported::reported;
use stockade_core::moves::drain_preview;
use stockade_core::placement::DrainPlan;
use stockade_crds::conditions::DRAINED;
use stockade_crds::v1alpha1::{Host, HostMode};

use super::error::PluginError;
use super::session::Session;
use super::wait::{Seen, Wait, until};
use super::{cordon, read};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The host.
    host: String,
    /// Only tell which VM would go where, by the plan that the drain follows.
    #[arg(long, conflicts_with = "wait")]
    dry_run: bool,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn run(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let name = &arguments.host;
    let host = session.host(name).await?;
    if arguments.dry_run {
        let world = read::world(session).await?;
        let (plan, blocked) = drain_preview(&world, &reported(&world), name);
        print!("{}", told(name, &plan, &blocked));
        return Ok(());
    }
    let ordered = if host.spec.mode == HostMode::Maintenance {
        host
    } else {
        cordon::set(session, &host, HostMode::Maintenance).await?
    };
    println!("host {name} in maintenance: its VMs are moved away");
    if !arguments.wait.wait {
        println!(
            "`kubectl stockade drain {name} --wait` waits, `kubectl stockade uncordon {name}` ends it"
        );
        return Ok(());
    }
    let generation = ordered.metadata.generation.unwrap_or_default();
    let remedy = format!("the drain goes on; `kubectl stockade uncordon {name}` ends it");
    until(arguments.wait.timeout, &remedy, async || stands(&session.host(name).await?, generation))
        .await?;
    println!("host {name} is empty: it may be switched off");
    Ok(())
}

/// How far the drain is that this generation of the host asks for.
fn stands(host: &Host, generation: i64) -> Result<Seen<()>, PluginError> {
    if host.spec.mode != HostMode::Maintenance {
        return Err(PluginError::Refused(format!(
            "host {} was put into mode {:?} by somebody: the drain has ended",
            host.name_any(),
            host.spec.mode
        )));
    }
    let conditions = host.status.iter().flat_map(|s| &s.conditions);
    let drained = conditions
        .filter(|c| c.observed_generation.unwrap_or_default() >= generation)
        .find(|c| c.type_ == DRAINED);
    Ok(match drained {
        Some(c) if c.status == "True" => Seen::Over(()),
        Some(c) => Seen::Pending(c.message.clone()),
        None => Seen::Pending("waits for the controller".to_owned()),
    })
}

/// The plan for people: waves of moves, who is on the way already, and who can't leave.
fn told(host: &str, plan: &DrainPlan, blocked: &[String]) -> String {
    let mut text = String::new();
    let moves = plan.moves().map(|m| m.vms.len()).sum::<usize>();
    // Writing to a String does not fail.
    let _ = writeln!(
        text,
        "draining {host} would move {moves} VMs in {} waves (dry run: nothing was done)",
        plan.waves.len()
    );
    for (i, wave) in plan.waves.iter().enumerate() {
        for one in wave {
            for mover in &one.vms {
                let how = if mover.live { "live" } else { "stopped and started" };
                let (vm, from, to) = (&mover.vm, &mover.from, &one.to);
                let _ = writeln!(text, "  wave {}: {vm} from {from} to {to}, {how}", i + 1);
            }
        }
    }
    for vm in &plan.moving {
        let _ = writeln!(text, "  on the way already: {vm}");
    }
    for line in blocked {
        let _ = writeln!(text, "  can't leave: {line}");
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;
    use stockade_core::placement::{Move, Mover, VmKey};

    use super::*;

    #[test]
    fn the_plan_names_each_vm_its_target_and_those_that_stay() {
        let one = Move {
            vms: vec![Mover { vm: VmKey::new("n", "a"), from: "h1".into(), live: false }],
            to: "h2".into(),
            why: String::new(),
        };
        let moving = vec![VmKey::new("n", "m")];
        let plan = DrainPlan { waves: vec![vec![one]], moving, blocked: Vec::new() };
        let text = told("h1", &plan, &["n/b: h2: cordoned".to_owned()]);
        assert_eq!(
            text,
            "draining h1 would move 1 VMs in 1 waves (dry run: nothing was done)\n  \
             wave 1: n/a from h1 to h2, stopped and started\n  \
             on the way already: n/m\n  can't leave: n/b: h2: cordoned\n"
        );
    }

    #[test]
    fn a_drain_is_over_only_when_the_status_answers_the_order() {
        let host = |mode: &str, seen: i64, status: &str| -> Host {
            let condition = json!({"type": "Drained", "status": status, "reason": "R",
                "message": "2 VMs are left", "observedGeneration": seen,
                "lastTransitionTime": "2026-01-01T00:00:00Z"});
            serde_json::from_value(json!({"metadata": {"name": "h1"}, "spec": {"mode": mode},
                "status": {"conditions": [condition]}}))
            .unwrap()
        };
        let old = stands(&host("Maintenance", 1, "True"), 2).unwrap();
        assert!(matches!(old, Seen::Pending(_)), "an earlier drain's answer");
        let under_way = stands(&host("Maintenance", 2, "False"), 2).unwrap();
        assert!(matches!(under_way, Seen::Pending(why) if why.contains("2 VMs")));
        assert!(matches!(stands(&host("Maintenance", 2, "True"), 2), Ok(Seen::Over(()))));
        assert!(stands(&host("Active", 3, "True"), 2).is_err());
    }
}
