//! Every scenario file of the project holds, for several seeds.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::Command;

use stockade_sim::oracle::{RULES, Rule};
use stockade_sim::scenario::{Scenario, campaign, load};

stockade_sim::link_hooks!();

/// Seeds of each scenario.
const SEEDS: std::ops::Range<u64> = 1..6;

fn files() -> Vec<PathBuf> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scenarios");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.retain(|path| path.extension().is_some_and(|e| e == "yaml"));
    files.sort();
    files
}

/// Runs each job on one of the cores; the failures, in order, and the promises whose situation came
/// up.
fn run_all(jobs: Vec<(String, Scenario, u64)>) -> (Vec<String>, BTreeSet<Rule>) {
    let failures = std::sync::Mutex::new(Vec::new());
    let exercised = std::sync::Mutex::new(BTreeSet::new());
    campaign::on_all_cores(jobs, None, |(file, scenario, seed)| {
        let text = match campaign::one(&scenario, seed) {
            Ok(outcome) => {
                exercised.lock().unwrap().extend(outcome.exercised.keys().copied());
                if outcome.verdict.passed {
                    return ControlFlow::Continue(());
                }
                outcome.verdict.lines(&file)
            }
            Err(why) => format!("{file} seed {seed}: {why}"),
        };
        failures.lock().unwrap().push(text);
        ControlFlow::Continue(())
    });
    let mut failures = failures.into_inner().unwrap();
    failures.sort();
    (failures, exercised.into_inner().unwrap())
}

#[test]
fn every_scenario_holds_for_every_seed() {
    let mut jobs = Vec::new();
    for file in files() {
        let name = file.file_name().unwrap().to_string_lossy().into_owned();
        for scenario in load(&file).unwrap() {
            jobs.extend(SEEDS.map(|seed| (name.clone(), scenario.clone(), seed)));
        }
    }
    assert!(jobs.len() >= 40 * 5, "at least 40 scenarios of our own");
    let (failures, exercised) = run_all(jobs);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    let idle: Vec<_> = RULES.iter().filter(|rule| !exercised.contains(*rule)).collect();
    assert!(idle.is_empty(), "never put to the test: {idle:?}");
}

/// `stockade simulate` is what people run: its exit codes and its JSON are a contract.
#[test]
fn simulate_says_by_its_exit_code_whether_all_held() {
    let target = PathBuf::from(env!("CARGO_BIN_EXE_stockade-play"));
    let program = |name: &str| target.parent().unwrap().join(name);
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let run = |path: &PathBuf, more: &[&str]| {
        Command::new(program("stockade-simulate")).arg(path).args(more).output().unwrap()
    };
    let good = file(
        "good.yaml",
        "hosts: 1\nvms: [{name: \"1\"}]\nuntil: 5\nexpect: [{vm: \"1\", running: true}]\n",
    );
    let bad = file(
        "bad.yaml",
        "hosts: 1\nvms: [{name: \"1\"}]\nuntil: 5\nexpect: [{vm: \"1\", running: false}]\n",
    );
    let wrong = file("wrong.yaml", "hosts: 1\nsteps:\n  - {at: 1, do: power-of, host: h1}\n");

    // `stockade` becomes the simulator: its words, its output and its exit code are that one's.
    let hands_over = |path: &PathBuf, more: &[&str]| {
        let mut command = Command::new(program("stockade"));
        command.arg("simulate").arg(path).args(more).output().unwrap()
    };
    let out = hands_over(&good, &["--seeds", "1..4", "--json"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let lines = String::from_utf8(out.stdout).unwrap();
    let records: Vec<serde_json::Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let verdicts: Vec<_> = records.iter().filter(|r| !r["passed"].is_null()).collect();
    assert_eq!(verdicts.len(), 3);
    assert!(verdicts.iter().all(|v| v["passed"] == true && v["end"]["vms"]["1"].is_object()));

    assert_eq!(hands_over(&bad, &[]).status.code(), Some(1));
    let out = run(&bad, &[]);
    assert_eq!(out.status.code(), Some(1));
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.contains("FAILED") && text.contains("bad.yaml:4"), "{text}");

    let out = run(&wrong, &[]);
    assert_eq!(out.status.code(), Some(2));
    let text = String::from_utf8(out.stderr).unwrap();
    assert!(text.contains(":3") && text.contains("power-off"), "{text}");
}
