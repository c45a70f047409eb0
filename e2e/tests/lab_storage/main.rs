//! Shared storage, locks and failover on Debian machines with kernels of their own. The machines
//! boot once; each case goes on where the one before ended.
//!
//! It has a main of its own: the lab's BMCs end with the thread that started them, and the cases
//! have an order. Needs root, the built programs and 10 GiB of memory. A word as argument takes
//! only the parts whose name holds it: each part begins by itself.

mod by_hand;
mod common;
mod failover;
mod nfs;
mod ocfs2;
mod prover;
mod sanlock;

use std::process::ExitCode;
use std::time::Instant;

use stockade_e2e::lab::{Cluster, Lab, Machine};
use stockade_e2e::play::Log;

use common::{Outcome, chain};

/// A case: the promise, and how it is tried.
type Case = (&'static str, fn(&Cluster, &Log) -> Outcome);

/// The parts, each with its cases in their order.
const PARTS: [(&str, &[Case]); 3] =
    [("nfs", &nfs::CASES), ("sanlock", &sanlock::CASES), ("ocfs2", &ocfs2::CASES)];

fn main() -> ExitCode {
    let log = Log::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("no runtime: {error}");
            return ExitCode::FAILURE;
        }
    };
    let words: Vec<String> = std::env::args().skip(1).filter(|w| !w.starts_with('-')).collect();
    let wanted = |part: &str| words.is_empty() || words.iter().any(|word| part.contains(&**word));
    let parts: Vec<_> = PARTS.iter().filter(|(part, _)| wanted(part)).collect();
    let count: usize = parts.iter().map(|(_, cases)| cases.len()).sum();
    println!("\nrunning {count} tests");
    let say = |text: &str| log.say(text);
    let started = Lab::start(3, &say);
    let cluster = started.and_then(|lab| runtime.block_on(Cluster::start(lab, &say)));
    let cluster = match cluster {
        Ok(cluster) => cluster,
        Err(error) => {
            println!("the lab did not start: {}", chain(&error));
            println!("test result: FAILED. 0 passed; {count} failed; 0 ignored");
            return ExitCode::FAILURE;
        }
    };
    let mut passed = 0;
    for (part, cases) in parts {
        if let Err(error) = cluster.lab().machines().iter().try_for_each(Machine::power_on) {
            println!("{part} has not all machines: {}", chain(&error));
            break;
        }
        for (name, case) in *cases {
            let began = Instant::now();
            let outcome = case(&cluster, &log);
            let seconds = began.elapsed().as_secs();
            match outcome {
                Ok(()) => {
                    passed += 1;
                    println!("test {name} ... ok ({seconds} s)");
                }
                Err(why) => {
                    println!("test {name} ... FAILED ({seconds} s)\n{why}\n{}", cluster.dump());
                    // What comes after it in its part has nothing to stand on.
                    break;
                }
            }
        }
    }
    let failed = count - passed;
    let word = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {word}. {passed} passed; {failed} failed; 0 ignored");
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
