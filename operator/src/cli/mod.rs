//! The subcommands of `stockade`.

mod controller;
mod crds;
mod serve;
mod simulate;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "stockade", version, about = "Keeps virtual machines running on libvirt hosts")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the controller.
    Controller(controller::Arguments),
    /// Print the CustomResourceDefinitions as YAML.
    Crds(crds::Arguments),
    /// Run scenario files on simulated hosts.
    Simulate(simulate::Arguments),
}

/// Runs the subcommand that the command line names.
pub(crate) fn run() -> ExitCode {
    match Arguments::parse().command {
        Command::Controller(arguments) => controller::run(&arguments),
        Command::Crds(arguments) => crds::run(&arguments),
        Command::Simulate(arguments) => simulate::run(&arguments),
    }
}

/// Says why a subcommand failed, with every cause.
fn failed(error: &dyn std::error::Error) -> ExitCode {
    let mut text = format!("stockade: {error}");
    let mut cause = error.source();
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    eprintln!("{text}");
    ExitCode::FAILURE
}
