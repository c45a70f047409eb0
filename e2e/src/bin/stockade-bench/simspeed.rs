//! `simspeed`: how many seconds of a whole cluster one second of one core simulates.

use std::fmt::Write as _;
use std::process::Command;
use std::time::Instant;

use crate::Options;
use crate::report::{Error, Figure, quantile};

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

/// Runs of each size; the median is told.
const RUNS: usize = 3;

/// Seconds that simulating `seconds` takes, beyond reaching second 0. The simulator is a program
/// of its own: no other has its clock.
fn cost(hosts: usize, seconds: usize) -> Result<f64, Error> {
    let program = std::env::current_exe()?.with_file_name("stockade-simulate");
    let folder = tempfile::tempdir()?;
    let time = |seconds: usize| {
        let file = folder.path().join(format!("{seconds}.yaml"));
        std::fs::write(&file, scenario(hosts, seconds))?;
        let began = Instant::now();
        let output = Command::new(&program).arg(&file).args(["--seeds", "1", "-q"]).output()?;
        let took = began.elapsed().as_secs_f64();
        if output.status.success() {
            return Ok(took);
        }
        let told = [output.stdout, output.stderr].concat();
        Err(Error::Ours(String::from_utf8_lossy(&told).into_owned()))
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
        ("100 hosts, 1000 VMs, with faults", 100, 60, Some(10_000.0)),
    ];
    for (figure, hosts, seconds, goal) in rows {
        let mut took = (0..RUNS).map(|_| cost(hosts, seconds)).collect::<Result<Vec<_>, _>>()?;
        Figure {
            row: "simspeed",
            figure,
            unit: "cluster-seconds a second of one core",
            ours: seconds as f64 / quantile(&mut took, 0.5),
            goal,
            more_is_better: true,
            n: RUNS,
            ..Figure::default()
        }
        .print()?;
    }
    Ok(())
}
