//! `recovery`: simulated seconds from a host's fault until its VM's start is ordered elsewhere, and
//! until it runs.

use std::process::Command;

use serde_json::Value;

use crate::Options;
use crate::report::{Error, Figure, quantile};

/// Runs of each fault.
const SEEDS: usize = 1_000;
/// When the fault comes, in seconds.
const AT: f64 = 20.0;

/// One VM on the first of three hosts with a BMC each.
fn scenario(fault: &str) -> String {
    format!(
        "name: recovery\nhosts: 3\nvms: [{{name: vm, host: h1}}]\n\
         steps: [{{at: {AT}, do: {fault}, host: h1}}]\nuntil: 60\n\
         expect: [{{vm: vm, running: true, notOn: h1}}]\n"
    )
}

/// Seconds after the fault: when each run's order was written, and when its VM ran.
fn runs(fault: &str) -> Result<(Vec<f64>, Vec<f64>), Error> {
    // The simulator is a program of its own: no other has its clock.
    let program = std::env::current_exe()?.with_file_name("stockade-simulate");
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("recovery.yaml");
    std::fs::write(&file, scenario(fault))?;
    let seeds = format!("1..={SEEDS}");
    let output = Command::new(&program).arg(&file).args(["--json", "--seeds", &seeds]).output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let last = text.lines().last().unwrap_or_default().to_owned();
        return Err(Error::Ours(format!("{fault}: a run failed: {last}")));
    }
    let (mut ordered, mut ran) = (Vec::new(), Vec::new());
    for line in text.lines() {
        let event: Value = serde_json::from_str(line)?;
        let time = event["time"].as_f64().unwrap_or_default();
        if time < AT {
            continue;
        }
        // One a run: the order of its new host.
        let order = event["event"] == "write"
            && event["kind"] == "Domain"
            && event["by"] == "controller"
            && event["host"] != "h1";
        if order && ordered.len() == ran.len() {
            ordered.push(time - AT);
        } else if event["event"] == "start" {
            ran.push(time - AT);
        }
    }
    if ordered.len() != SEEDS || ran.len() != SEEDS {
        let found = format!("{} orders and {} starts", ordered.len(), ran.len());
        return Err(Error::Ours(format!("{fault}: {found} in {SEEDS} runs")));
    }
    Ok((ordered, ran))
}

/// Measures a power cut, which the BMC reads off, and a hang, after which it has to be ordered.
///
/// # Errors
/// A run that fails.
pub fn run(_: &Options) -> Result<(), Error> {
    let rows = [
        ("power-off", "power cut to the order to start, P99", "power cut to running, P50", 7.0),
        ("panic", "panic to the order to start, P99", "panic to running, P50", 12.0),
    ];
    for (fault, order, running, goal) in rows {
        let (mut ordered, mut ran) = runs(fault)?;
        let figure = |figure, ours, goal| Figure {
            row: "recovery",
            figure,
            unit: "simulated s",
            ours,
            goal,
            n: SEEDS,
            ..Figure::default()
        };
        figure(order, quantile(&mut ordered, 0.99), Some(goal)).print()?;
        figure(running, quantile(&mut ran, 0.5), None).print()?;
    }
    Ok(())
}
