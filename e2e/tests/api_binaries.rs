//! What is in which program: the simulator's clock and random numbers in none that touches real hosts,
//! libvirt in the agent alone, and no executor or TLS in those that must go on whatever hangs.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::{Path, PathBuf};
use std::process::Command;

/// The functions that `stockade_sim::link_hooks` replaces.
const HOOKS: [&str; 2] = ["clock_gettime", "getrandom"];

/// The symbols that a program defines itself.
fn symbols(program: &Path) -> Vec<String> {
    let output = Command::new("nm").arg("--defined-only").arg(program).output().unwrap();
    assert!(output.status.success(), "nm {}: {output:?}", program.display());
    let symbols = String::from_utf8(output.stdout).unwrap();
    let names = symbols.lines().filter_map(|line| line.split_whitespace().nth(2));
    names.map(str::to_owned).collect()
}

/// Which of the hooks a program defines.
fn hooks_in(program: &Path) -> Vec<String> {
    symbols(program).into_iter().filter(|name| HOOKS.contains(&name.as_str())).collect()
}

/// The programs that lie beside the one that plays: all that the workspace builds.
fn programs() -> Vec<PathBuf> {
    let play = Path::new(env!("CARGO_BIN_EXE_stockade-play"));
    let entries = std::fs::read_dir(play.parent().unwrap()).unwrap();
    let mut programs: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.is_file() && path.extension().is_none())
        .filter(|path| path.file_name().unwrap().to_string_lossy().contains("stockade"))
        .collect();
    programs.sort();
    programs
}

#[test]
fn only_the_simulator_has_a_clock_of_its_own() {
    let programs = programs();
    for name in ["stockade", "stockade-play", "stockade-bench", "stockade-simulate"] {
        assert!(programs.iter().any(|p| p.ends_with(name)), "{name} is not built: {programs:?}");
    }
    for program in programs {
        let found = hooks_in(&program);
        if program.ends_with("stockade-simulate") {
            assert_eq!(found.len(), HOOKS.len(), "{found:?}");
        } else {
            assert!(found.is_empty(), "{} has {found:?}", program.display());
        }
    }
}

/// The libraries that a program loads.
fn libraries(program: &Path) -> String {
    let output = Command::new("readelf").arg("-d").arg(program).output().unwrap();
    assert!(output.status.success(), "readelf {}: {output:?}", program.display());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn libvirt_is_linked_into_the_agent_alone() {
    for program in programs() {
        let loads = libraries(&program).contains("libvirt.so");
        // A build without libvirt's headers has no agent.
        assert_eq!(loads, program.ends_with("stockade-agent"), "{}", program.display());
    }
}

#[test]
fn feeder_beat_and_hook_have_neither_executor_nor_tls() {
    let programs = programs();
    let found = |name: &str| programs.iter().find(|p| p.ends_with(name));
    let built = |name: &str| found(name).unwrap_or_else(|| panic!("{name} is not built"));
    let count = |program: &Path, word: &str| {
        symbols(program).iter().filter(|symbol| symbol.contains(word)).count()
    };
    for word in ["tokio", "rustls"] {
        assert!(count(built("stockade"), word) > 0, "{word} would be found");
    }
    for name in ["stockade-feeder", "stockade-beat", "stockade-hook"] {
        for word in ["tokio", "rustls"] {
            assert_eq!(count(built(name), word), 0, "{name} has {word}");
        }
    }
}
