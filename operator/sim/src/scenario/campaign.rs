//! Many scenarios with many seeds: what `stockade simulate` does.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Mutex;

use super::run::{self, Crash, Outcome, Rules};
use super::{Scenario, load, output, print};
use crate::hooks::run_deterministic;
use crate::random::{self, Symptom};

/// A range of seeds, its end left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeds {
    /// The first.
    pub start: u64,
    /// The one after the last.
    pub end: u64,
}

/// Reads `A..B`, `A..=B` or `A`; `A..A` is A, as who counts B in means it.
///
/// # Errors
/// A sentence that says what is expected.
pub fn parse_seeds(text: &str) -> Result<Seeds, String> {
    let wrong = || format!("{text:?}: give A..B, A..=B or one number, for example 1..101");
    let number = |part: &str| part.trim().parse::<u64>().map_err(|_| wrong());
    let seeds = match text.split_once("..") {
        None => {
            let one = number(text)?;
            Seeds { start: one, end: one.checked_add(1).ok_or_else(wrong)? }
        }
        Some((start, end)) => {
            let (last, more) = end.strip_prefix('=').map_or((end, 0), |end| (end, 1));
            let (start, last) = (number(start)?, number(last)?);
            let more = if start == last { 1 } else { more };
            Seeds { start, end: last.checked_add(more).ok_or_else(wrong)? }
        }
    };
    if seeds.start < seeds.end { Ok(seeds) } else { Err(format!("{text:?} holds no seed")) }
}

/// What is to be run, and how it is told.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Scenario files; empty: each seed draws a scenario of its own.
    pub files: Vec<PathBuf>,
    /// Seeds of each scenario.
    pub seeds: Seeds,
    /// JSON lines instead of text.
    pub json: bool,
    /// No events but those of the first failed run of each scenario.
    pub quiet: bool,
    /// Longest search for a smaller scenario that fails the same way, in runs; 0: none.
    pub shrink: usize,
    /// Safety rules that hold.
    pub rules: Rules,
    /// Runs at once; absent: as many as there are cores.
    pub jobs: Option<usize>,
}

/// One run that is to be made.
struct Job {
    number: usize,
    scenario: usize,
    seed: u64,
}

/// One run that was made.
struct Done {
    file: String,
    scenario: Scenario,
    job: Job,
    result: Result<Outcome, String>,
}

/// Runs of other threads that have ended before their turn to be printed.
#[derive(Default)]
struct Finished {
    next: usize,
    waiting: BTreeMap<usize, Done>,
    failed_scenarios: BTreeSet<usize>,
    failed: bool,
    broken_pipe: bool,
}

impl Campaign {
    /// Runs everything, and prints it in the order of files and seeds.
    pub fn run(&self, out: &mut (impl Write + Send)) -> ExitCode {
        let mut scenarios: Vec<(String, Scenario)> = Vec::new();
        let mut unread = false;
        for file in &self.files {
            match load(file) {
                Ok(read) => {
                    scenarios.extend(read.into_iter().map(|s| (file.display().to_string(), s)));
                }
                Err(error) => {
                    eprintln!("{error}");
                    unread = true;
                }
            }
        }
        if unread {
            return ExitCode::from(2);
        }
        let mut jobs = Vec::new();
        for scenario in 0..scenarios.len().max(1) {
            for seed in self.seeds.start..self.seeds.end {
                jobs.push(Job { number: jobs.len(), scenario, seed });
            }
        }
        let finished = Mutex::new((Finished::default(), out));
        on_all_cores(jobs, self.jobs, |job| {
            let done = self.make(&scenarios, job);
            let mut finished = locked(&finished);
            let (state, out) = &mut *finished;
            state.waiting.insert(done.job.number, done);
            self.tell(state, *out);
            if state.broken_pipe { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if locked(&finished).0.failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
    }

    fn make(&self, scenarios: &[(String, Scenario)], job: Job) -> Done {
        let (file, scenario) = match scenarios.get(job.scenario) {
            Some((file, scenario)) => (file.clone(), scenario.clone()),
            None => match random::scenario(job.seed) {
                Ok(scenario) => ("drawn".to_owned(), scenario),
                Err(error) => {
                    let (file, scenario) = ("drawn".to_owned(), Scenario::default());
                    return Done { file, scenario, job, result: Err(error.to_string()) };
                }
            },
        };
        let result = one_under(&scenario, job.seed, self.rules, None);
        Done { file, scenario, job, result }
    }

    /// Prints the runs whose turn it is.
    fn tell(&self, state: &mut Finished, out: &mut impl Write) {
        while let Some(done) = state.waiting.remove(&state.next) {
            state.next += 1;
            let Done { file, scenario, job, result } = done;
            let passed = result.as_ref().is_ok_and(|outcome| outcome.verdict.passed);
            state.failed |= !passed;
            let first_failure = !passed && state.failed_scenarios.insert(job.scenario);
            let mut text = match &result {
                Ok(outcome) => self.text(&file, outcome, first_failure),
                Err(why) if self.json => serde_json::json!({
                    "scenario": scenario.name, "seed": job.seed, "passed": false, "error": why,
                })
                .to_string(),
                Err(why) => format!("FAILED  {}  seed {}\n  {why}", scenario.name, job.seed),
            };
            if first_failure && self.shrink > 0 && !self.json {
                text += &self.smaller(&file, &scenario, job.seed, &result);
            }
            if writeln!(out, "{text}").and_then(|()| out.flush()).is_err() {
                state.broken_pipe = true;
                state.failed = true;
                return;
            }
        }
    }

    /// The smallest file that was found to fail as this run did.
    fn smaller(
        &self,
        file: &str,
        scenario: &Scenario,
        seed: u64,
        run: &Result<Outcome, String>,
    ) -> String {
        let symptom = |run: &Result<Outcome, String>| Symptom::of(run.as_ref().ok()?);
        let Some(wanted) = symptom(run) else { return String::new() };
        let mended = if file == "drawn" { random::MENDED * 1000 } else { u64::MAX };
        let mut tried = 0;
        let mut small = random::shrink(scenario, &wanted, mended, self.shrink, |candidate| {
            tried += 1;
            symptom(&one_under(candidate, seed, self.rules, None))
        });
        small.name = format!("{} shrunk", small.name);
        let text = print::scenario(&small);
        format!("\n# fails the same way with --seeds {seed} (found in {tried} runs):\n{text}")
    }

    fn text(&self, file: &str, outcome: &Outcome, first_failure: bool) -> String {
        let mut lines = Vec::new();
        if self.json {
            if !self.quiet {
                lines.extend(outcome.events.iter().map(output::json));
            }
            lines.push(outcome.verdict.json());
        } else {
            if !self.quiet || first_failure {
                lines.extend(outcome.events.iter().map(output::line));
            }
            lines.push(outcome.verdict.lines(file));
        }
        lines.join("\n")
    }
}

/// Does `work` for each job, several at once: as many as there are cores, or `threads`. After a
/// break no further job is begun. A panic in `work` goes on here.
pub fn on_all_cores<J: Send>(
    jobs: Vec<J>,
    threads: Option<usize>,
    work: impl Fn(J) -> ControlFlow<()> + Sync,
) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = threads.unwrap_or(cores).clamp(1, jobs.len().max(1));
    let jobs = Mutex::new(VecDeque::from(jobs));
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    // The lock is let go before the work begins.
                    let job = locked(&jobs).pop_front();
                    let Some(job) = job else { return };
                    if work(job).is_break() {
                        locked(&jobs).clear();
                    }
                }
            });
        }
    });
}

/// One run, on a thread, a clock and random numbers of its own.
///
/// # Errors
/// Why it could not be made.
pub fn one(scenario: &Scenario, seed: u64) -> Result<Outcome, String> {
    one_under(scenario, seed, Rules::default(), None)
}

/// [`one`], with some safety rules dropped, and a process that dies in it.
///
/// # Errors
/// Why it could not be made.
pub fn one_under(
    scenario: &Scenario,
    seed: u64,
    rules: Rules,
    crash: Option<Crash>,
) -> Result<Outcome, String> {
    let scenario = scenario.clone();
    let run = move || async move { run::run(&scenario, seed, rules, crash).await };
    match run_deterministic(seed, run) {
        Ok(Ok(outcome)) => Ok(outcome),
        Ok(Err(error)) => Err(error.to_string()),
        Err(error) => Err(format!("no thread for a run: {error}")),
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range_or_one() {
        assert_eq!(parse_seeds("1..4"), Ok(Seeds { start: 1, end: 4 }));
        assert_eq!(parse_seeds("1..=4"), Ok(Seeds { start: 1, end: 5 }));
        assert_eq!(parse_seeds("7"), Ok(Seeds { start: 7, end: 8 }));
        assert_eq!(parse_seeds("3..3"), Ok(Seeds { start: 3, end: 4 }));
        for wrong in ["", "a", "4..1", "1...3", "-1", "18446744073709551615"] {
            assert!(parse_seeds(wrong).is_err(), "{wrong}");
        }
    }
}
