//! `simspeed`: how many seconds of a whole cluster one second of one core simulates.

use std::fmt::Write as _;
use std::time::Instant;

use stockade_sim::scenario::{campaign, parse};

use crate::Options;
use crate::report::{Error, Figure};

/// A cluster of `hosts` hosts with ten VMs each, and a fault every ten seconds.
fn scenario(hosts: usize, seconds: usize) -> String {
    let mut text = format!("name: simspeed\nhosts: {hosts}\nuntil: {seconds}\nvms:\n");
    for host in 1..=hosts {
        for vm in 0..10 {
            // Writing to a string can't fail.
            let _ = writeln!(text, "  - {{name: vm-{host}-{vm}, host: h{host}}}");
        }
    }
    text += "steps:\n";
    for (index, at) in (10..seconds).step_by(10).enumerate() {
        let host = index % hosts + 1;
        let fault = match index % 4 {
            0 => format!("do: kill-qemu, vm: vm-{host}-0"),
            1 => format!("do: crash-agent, host: h{host}"),
            2 => format!("do: power-off, host: h{host}"),
            _ => format!("do: isolate, host: h{host}, paths: [api]"),
        };
        let _ = writeln!(text, "  - {{at: {at}, {fault}}}");
    }
    text
}

/// Seconds of this process's time that simulating `seconds` takes, beyond reaching second 0.
fn cost(hosts: usize, seconds: usize) -> Result<f64, Error> {
    let time = |seconds: usize| {
        let read = parse(&scenario(hosts, seconds), "simspeed", None);
        let read = read.map_err(|error| Error::Ours(error.to_string()))?;
        let Some(scenario) = read.first() else {
            return Err(Error::Ours("no scenario was written".to_owned()));
        };
        let began = Instant::now();
        let outcome = campaign::one(scenario, 1).map_err(Error::Ours)?;
        let took = began.elapsed().as_secs_f64();
        if outcome.verdict.passed { Ok(took) } else { Err(Error::Ours(outcome.verdict.lines("-"))) }
    };
    Ok((time(seconds)? - time(1)?).max(f64::EPSILON))
}

/// Measures a small cluster and a large one.
///
/// # Errors
/// A run that fails.
pub fn run(_: &Options) -> Result<(), Error> {
    let rows = [
        ("4 hosts, 40 VMs, with faults", 4, 600, None),
        // More is better: what is told is the time a simulated second takes, so that less is.
        ("100 hosts, 1000 VMs, with faults", 100, 30, Some(0.1)),
    ];
    for (figure, hosts, seconds, goal) in rows {
        let took = cost(hosts, seconds)?;
        Figure {
            row: "simspeed",
            figure,
            unit: "ms of one core a simulated second",
            ours: took * 1000.0 / seconds as f64,
            goal,
            n: 1,
            ..Figure::default()
        }
        .print()?;
    }
    Ok(())
}
