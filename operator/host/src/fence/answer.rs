//! What an agent's exit code and words mean.
//!
//! The fence agent API: for `status` 0 is on, 2 is off and 1 an error; for all other actions 0 is
//! success. Agents built on fencing.py also print `Status: ON` or `Status: OFF`, and both must
//! agree here: an interpreter that can't start may exit with any code.

use stockade_crds::v1alpha1::FenceAction;

use crate::ports::{FenceCall, Power};

/// Longest message, in characters.
const MESSAGE_LIMIT: usize = 300;

/// The power that was read, or `None` for an order that the agent says it has carried out.
///
/// # Errors
/// What the agent said, on one line.
pub(super) fn of(
    action: FenceAction,
    code: Option<i32>,
    out: &str,
    err: &str,
) -> Result<Option<Power>, String> {
    let word = out
        .lines()
        .rev()
        .find_map(|line| line.trim().strip_prefix("Status:"))
        .map(|word| word.trim().to_ascii_uppercase());
    match (action, code, word.as_deref()) {
        (FenceAction::Status, Some(0), Some("ON")) => Ok(Some(Power::On)),
        (FenceAction::Status, Some(2), Some("OFF")) => Ok(Some(Power::Off)),
        (FenceAction::Off | FenceAction::On, Some(0), _) => Ok(None),
        _ => Err(said(code, out, err)),
    }
}

fn said(code: Option<i32>, out: &str, err: &str) -> String {
    let mut lines: Vec<&str> = Vec::new();
    for line in err.lines().chain(out.lines()) {
        let line = unstamped(line.trim());
        if !line.is_empty() && !line.starts_with("Please use '-h'") && !lines.contains(&line) {
            lines.push(line);
        }
    }
    let code = code.map_or_else(|| "killed by a signal".to_owned(), |c| format!("exit code {c}"));
    let text = if lines.is_empty() { code } else { format!("{} ({code})", lines.join("; ")) };
    text.chars().take(MESSAGE_LIMIT).collect()
}

/// A line of Python's logging without its time stamp and level.
fn unstamped(line: &str) -> &str {
    for level in ["ERROR: ", "WARNING: "] {
        if let Some((stamp, rest)) = line.split_once(level)
            && stamp.chars().all(|c| c.is_ascii_digit() || "-:, ".contains(c))
        {
            return rest.trim();
        }
    }
    line
}

/// The message without the values of the call's secret, should an agent print one.
pub(super) fn hide(message: &str, call: &FenceCall) -> String {
    let mut text = message.to_owned();
    for value in call.secret.values().map(|v| v.trim()).filter(|v| !v.is_empty()) {
        text = text.replace(value, "***");
    }
    text
}
