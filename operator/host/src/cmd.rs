//! Running programs with a deadline.

use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use crate::error::{HostError, HostResult};

/// Runs a program to its end and returns its standard output.
///
/// At the deadline the program is killed and the result is unknown. A program that exits with
/// an error has failed; its standard error is the message.
pub async fn run(
    op: &'static str,
    target: &str,
    program: &str,
    arguments: &[&str],
    limit: Duration,
) -> HostResult<String> {
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| HostError::failed(op, target, format!("{program}: {error}")))?;
    let output = tokio::time::timeout(limit, child.wait_with_output())
        .await
        .map_err(|_| {
            let seconds = limit.as_secs();
            HostError::unknown(op, target, format!("{program} did not end within {seconds} s"))
        })?
        .map_err(|error| HostError::unknown(op, target, format!("{program}: {error}")))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(HostError::failed(op, target, format!("{program}: {}", said.trim())))
}
