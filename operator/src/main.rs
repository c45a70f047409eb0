//! The `stockade` binary. What it does is in `cli/`, one subcommand a file.

mod cli;

fn main() -> std::process::ExitCode {
    cli::run()
}
