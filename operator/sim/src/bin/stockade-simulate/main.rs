//! `stockade-simulate FILE… [--seeds A..B] [--json]`: runs scenario files on simulated hosts.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use stockade_sim::scenario::campaign::{self, Campaign};
use stockade_sim::scenario::run::Rules;

stockade_sim::link_hooks!();

/// Runs scenario files against the real controller and agents on simulated hosts. Exits with 0
/// only if every expectation and every safety invariant held for every seed of every file.
#[derive(Parser)]
#[command(name = "stockade simulate", version)]
struct Arguments {
    /// Scenario files (docs/scenario-files.md).
    #[arg(required_unless_present = "random", value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Each seed draws a cluster and a schedule of faults of its own.
    #[arg(long, conflicts_with = "files")]
    random: bool,
    /// Looks for a smaller scenario that fails as the first failed run did, in N runs at most,
    /// and prints it as a file.
    #[arg(long, value_name = "N", default_value = "0", default_missing_value = "200", num_args = 0..=1)]
    shrink: usize,
    /// Seeds: `A..B` (B left out of it), `A..=B`, or one number.
    #[arg(long, default_value = "1", value_parser = campaign::parse_seeds)]
    seeds: campaign::Seeds,
    /// Prints every event and the verdict as JSON lines.
    #[arg(long)]
    json: bool,
    /// Prints verdicts alone; events only of the first failed run of each scenario.
    #[arg(long, short)]
    quiet: bool,
    /// Drops safety rules, to see what each is for: controller.brake,agent.epoch …
    #[arg(long, value_name = "RULES", value_parser = Rules::without)]
    without: Option<Rules>,
    /// Runs at once.
    #[arg(long, value_name = "N")]
    jobs: Option<usize>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if std::env::var_os("RUST_LOG").is_some() {
        let filter = tracing_subscriber::EnvFilter::from_default_env();
        tracing_subscriber::fmt()
            .with_env_filter(filter)
            .with_writer(std::io::stderr)
            .without_time()
            .init();
    }
    let campaign = Campaign {
        files: arguments.files,
        seeds: arguments.seeds,
        json: arguments.json,
        quiet: arguments.quiet,
        shrink: arguments.shrink,
        rules: arguments.without.unwrap_or_default(),
        jobs: arguments.jobs,
    };
    campaign.run(&mut std::io::stdout())
}
