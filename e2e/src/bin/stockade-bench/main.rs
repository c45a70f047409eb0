//! `./dev bench [row…]`: figures of our own beside those of a peer, measured in
//! the same run on the same machine. A JSON line a figure on stdout.

mod drain;
mod fence;
mod locks;
mod migration;
mod pacemaker;
mod plan;
mod recovery;
mod report;
mod scale;
mod simspeed;
mod standby;
mod start;
mod steady;

use std::process::ExitCode;

/// Measures one row and prints its figures.
type Row = fn(&Options) -> Result<(), report::Error>;

/// Rows by name, and what measures them.
const ROWS: [(&str, Row); 10] = [
    ("plan", plan::run),
    ("fence", fence::run),
    ("simspeed", simspeed::run),
    ("recovery", recovery::run),
    ("scale", scale::run),
    ("start", start::start),
    ("writes", start::writes),
    ("migration", migration::run),
    ("drain", drain::run),
    ("locks", locks::run),
];

/// What the command line asks for.
struct Options {
    /// Measure the peer too.
    peer: bool,
    /// VMs of the row `scale`.
    vms: Option<usize>,
}

const HELP: &str = "usage: stockade-bench [--no-peer] [--vms=N] [row…]
rows: plan (planning the failover of a lost host; tight packing)
      fence (off and read back, one host and forty at once)
      simspeed (how fast whole clusters are simulated)
      recovery (simulated seconds from a host's fault to its VM's start, over 1,000 seeds)
      scale (VMs on simulated hosts against a real API server; --vms=N, 10000 if left out)
      start (20 VMs at once on local libvirt hosts; root)
      writes (API writes of a VM's life, by the audit log; root)
      migration (live moves between local libvirt hosts; root)
      drain (a local libvirt host with 20 VMs is emptied; root)
      locks (what each lock manager adds to a start, on the lab's machines; root)
--no-peer leaves the peer out; the row `plan` needs about two minutes with it";

fn main() -> ExitCode {
    let mut rows = Vec::new();
    let mut options = Options { peer: true, vms: None };
    for word in std::env::args().skip(1) {
        match word.as_str() {
            "--no-peer" => options.peer = false,
            // No row can be measured on simulated hosts: all are figures of real ones, or of none.
            "--simulated" => {}
            "-h" | "--help" => {
                println!("{HELP}");
                return ExitCode::SUCCESS;
            }
            _ => match word.strip_prefix("--vms=").map(str::parse) {
                Some(Ok(vms)) => options.vms = Some(vms),
                Some(Err(_)) => {
                    eprintln!("bench: {word}: give a number");
                    return ExitCode::from(2);
                }
                None => rows.push(word),
            },
        }
    }
    for row in &rows {
        if !ROWS.iter().any(|(name, _)| name == row) {
            let known: Vec<&str> = ROWS.iter().map(|(name, _)| *name).collect();
            eprintln!("bench: there is no row {row} yet; there is: {}", known.join(", "));
            return ExitCode::from(2);
        }
    }
    report::warn_if_busy();
    for (name, run) in ROWS {
        if !rows.is_empty() && !rows.iter().any(|row| row == name) {
            continue;
        }
        if let Err(error) = run(&options) {
            eprintln!("bench: {name}: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
