//! `stockade simulate`: hands over to `stockade-simulate`, which alone links the simulator.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

/// What `stockade-simulate` is told; it has its own help.
#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(super) struct Arguments {
    /// Scenario files and options; see `stockade simulate --help`.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FILE…")]
    rest: Vec<OsString>,
}

/// Becomes `stockade-simulate`: the one beside this program, else the one in PATH.
pub(super) fn run(arguments: &Arguments) -> ExitCode {
    let name = "stockade-simulate";
    let beside = std::env::current_exe().ok().and_then(|me| {
        let path = me.parent()?.join(name);
        path.exists().then_some(path)
    });
    let program = beside.unwrap_or_else(|| PathBuf::from(name));
    let error = Command::new(&program).args(&arguments.rest).exec();
    eprintln!(
        "stockade: {} can't be run: {error}; install it beside this program \
         (cargo build -p stockade-sim --features hooks)",
        program.display()
    );
    ExitCode::FAILURE
}
