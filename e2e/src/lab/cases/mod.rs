//! What tests on the lab are made of: parts, each with cases in their order, on machines that boot
//! once.
//!
//! Such a test has a main of its own, which is [`run`]: the lab's BMCs end with the thread that
//! started them, and the cases have an order. It needs root, the built programs and 10 GiB of
//! memory.

mod asks;
mod prover;
mod witness;

use std::process::ExitCode;
use std::time::Instant;

use tokio::runtime::Runtime;

pub use self::asks::{
    HOSTS, LIMIT, Outcome, all_ready, apply, boot, comes_back, condition, ensure, hosts_declared,
    kubectl, machine, object, runs, said, sh, without_vms,
};
pub use self::prover::Prover;
pub use self::witness::Witness;
use super::{Cluster, Lab, LabError, Machine};
use crate::play::Log;

/// A case: the promise, and how it is tried.
pub type Case = (&'static str, fn(&Cluster, &Log) -> Outcome);

/// Cases that go on where the one before ended. A part begins by itself.
#[derive(Clone, Copy, Debug)]
pub struct Part {
    /// By what it is asked for.
    pub name: &'static str,
    /// How many of the first cases are of the selection that every change is tried by.
    pub selected: usize,
    /// What it tries, in this order.
    pub cases: &'static [Case],
}

impl Part {
    /// A part that runs where all of them do.
    #[must_use]
    pub const fn new(name: &'static str, cases: &'static [Case]) -> Self {
        Self { name, selected: 0, cases }
    }

    /// A part of the selection.
    #[must_use]
    pub const fn selected(name: &'static str, cases: &'static [Case]) -> Self {
        Self { name, selected: cases.len(), cases }
    }

    /// A part whose first cases, so many, are of the selection.
    #[must_use]
    pub const fn begun(name: &'static str, selected: usize, cases: &'static [Case]) -> Self {
        Self { name, selected, cases }
    }
}

/// Which of the parts the words of a command line ask for: those that are named, or all by `--all`,
/// or else the selection.
fn wanted(parts: &[Part], words: &[String]) -> Vec<Part> {
    let all = words.iter().any(|word| word == "--all");
    let names: Vec<_> = words.iter().filter(|word| !word.starts_with('-')).collect();
    let named = |part: &Part| names.iter().any(|name| **name == part.name);
    let taken = |part: &Part| {
        let count = match (names.is_empty(), all) {
            (false, _) if !named(part) => 0,
            (true, false) => part.selected,
            _ => part.cases.len(),
        };
        Part { cases: &part.cases[..count], ..*part }
    };
    parts.iter().map(taken).filter(|part| !part.cases.is_empty()).collect()
}

/// Runs the parts that the command line asks for on one lab: part names, `--all`, or nothing for
/// the selection.
#[must_use]
pub fn run(parts: &[Part]) -> ExitCode {
    let log = Log::new();
    let words: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<_> = parts.iter().map(|part| part.name).collect();
    let parts = wanted(parts, &words);
    if parts.is_empty() {
        println!("no such part; there are: {}", names.join(" "));
        return ExitCode::FAILURE;
    }
    let count: usize = parts.iter().map(|part| part.cases.len()).sum();
    println!("\nrunning {count} tests");
    let mut passed = 0;
    match start(&log) {
        Ok((_runtime, cluster)) => {
            for part in parts {
                let machines = cluster.lab().machines();
                if let Err(error) = machines.iter().try_for_each(Machine::power_on) {
                    println!("{} has not all machines: {}", part.name, asks::chain(&error));
                    break;
                }
                passed += passed_of(part.cases, &cluster, &log);
            }
        }
        Err(error) => println!("the lab did not start: {}", asks::chain(&error)),
    }
    let failed = count - passed;
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// A cluster, and the runtime that its clients belong to.
fn start(log: &Log) -> Result<(Runtime, Cluster), LabError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(super::step("making a runtime"))?;
    let say = |text: &str| log.say(text);
    let lab = Lab::start(HOSTS.len(), &say)?;
    let cluster = runtime.block_on(Cluster::start(lab, &say))?;
    Ok((runtime, cluster))
}

/// Runs the cases of a part, and gives how many of them hold.
fn passed_of(cases: &[Case], cluster: &Cluster, log: &Log) -> usize {
    for (index, (name, case)) in cases.iter().enumerate() {
        let began = Instant::now();
        let outcome = case(cluster, log);
        let seconds = began.elapsed().as_secs();
        match outcome {
            Ok(()) => println!("test {name} ... ok ({seconds} s)"),
            Err(why) => {
                println!("test {name} ... FAILED ({seconds} s)\n{why}\n{}", cluster.dump());
                // What comes after it in its part has nothing to stand on.
                return index;
            }
        }
    }
    cases.len()
}
