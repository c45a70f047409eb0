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

/// Runs the parts: each begins by itself, and in it each case goes on where the one before ended.
/// A word on the command line takes only the parts whose name holds it.
#[must_use]
pub fn run(parts: &[(&str, &[Case])]) -> ExitCode {
    let log = Log::new();
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with('-')).collect();
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| part.contains(&**word));
    let parts: Vec<_> = parts.iter().filter(|(part, _)| wanted(part)).collect();
    let count: usize = parts.iter().map(|(_, cases)| cases.len()).sum();
    println!("\nrunning {count} tests");
    let mut passed = 0;
    match start(&log) {
        Ok((_runtime, cluster)) => {
            for (part, cases) in parts {
                let machines = cluster.lab().machines();
                if let Err(error) = machines.iter().try_for_each(Machine::power_on) {
                    println!("{part} has not all machines: {}", asks::chain(&error));
                    break;
                }
                passed += passed_of(cases, &cluster, &log);
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
