//! The text that an agent reads on its standard input, a `name=value` a line.

use std::fmt::Write as _;

use super::metadata::{Content, Metadata};
use crate::ports::FenceCall;

/// Parameters that are Stockade's own, or that would let whoever declares a FenceDevice run a
/// program or write a file where the controller runs.
fn is_ours(name: &str) -> bool {
    let ours = [
        "action",
        "option",
        "plug",
        "port",
        "nodename",
        "help",
        "version",
        "separator",
        "use_sudo",
        "sudo",
        "debug",
        "debug_file",
        "verbose",
        "verbose_level",
    ];
    ours.contains(&name) || name.ends_with("_script") || name.ends_with("_path")
}

/// Checks a call against what its agent says of itself, and writes the agent's input.
///
/// # Errors
/// Every problem at once, each with its field and what to do.
pub(super) fn text(metadata: &Metadata, call: &FenceCall, action: &str) -> Result<String, String> {
    let agent = &call.spec.agent;
    let mut problems = Vec::new();
    let mut text = format!("action={action}\n");
    for action in ["status", "off"] {
        if !metadata.actions.contains(action) {
            problems.push(format!(
                "spec.agent: {agent} has no action {action:?}, so it can't prove a host off; name \
                 another agent"
            ));
        }
    }
    // An agent without plugs has one device to cut, whatever its plug is called.
    if let Some(name) = metadata.plug()
        && let Err(why) = line(&mut text, name, &call.plug)
    {
        problems.push(format!("spec.plugs: {why}"));
    }
    let secret = call.spec.secret.as_deref().unwrap_or_default();
    let given = call
        .spec
        .parameters
        .iter()
        .map(|(name, value)| (format!("spec.parameters.{name}"), name, value))
        .chain(
            call.secret
                .iter()
                .map(|(name, value)| (format!("key {name:?} of Secret {secret:?}"), name, value)),
        );
    for (field, name, value) in given {
        let value = value.trim_end_matches(['\r', '\n']);
        if let Err(why) = check(metadata, agent, name, value) {
            problems.push(format!("{field}: {why}"));
        } else if let Err(why) = line(&mut text, name, value) {
            problems.push(format!("{field}: {why}"));
        }
    }
    for name in call.spec.parameters.keys().filter(|name| call.secret.contains_key(*name)) {
        problems.push(format!(
            "spec.parameters.{name}: Secret {secret:?} has it too; keep one of them"
        ));
    }
    for (name, parameter) in &metadata.parameters {
        let has = |name: &String| {
            call.spec.parameters.contains_key(name) || call.secret.contains_key(name)
        };
        let given = has(name) || parameter.older.as_ref().is_some_and(has);
        if parameter.required && !is_ours(name) && !given {
            problems.push(format!("spec.parameters.{name}: {agent} needs it; set it"));
        }
    }
    if problems.is_empty() { Ok(text) } else { Err(problems.join(". ")) }
}

fn check(metadata: &Metadata, agent: &str, name: &str, value: &str) -> Result<(), String> {
    if is_ours(name) {
        return Err("this is not for a FenceDevice to set; leave it out".to_owned());
    }
    let Some(parameter) = metadata.parameters.get(name) else {
        let near = metadata
            .parameters
            .keys()
            .filter(|known| !is_ours(known))
            .map(|known| (strsim::damerau_levenshtein(known, name), known))
            .min()
            .filter(|(distance, _)| *distance <= 3);
        let hint = match near {
            Some((_, known)) => format!("did you mean {known}?"),
            None => format!("see {agent} -o metadata for those it has"),
        };
        return Err(format!("{agent} has no such parameter; {hint}"));
    };
    match &parameter.content {
        Content::Text => Ok(()),
        Content::Number if value.parse::<u64>().is_ok() => Ok(()),
        Content::Number => Err("write a whole number".to_owned()),
        Content::Switch => {
            let words = ["1", "yes", "on", "true", "0", "no", "off", "false"];
            let known = words.contains(&value.to_lowercase().as_str());
            known.then_some(()).ok_or_else(|| "write \"1\" or \"0\"".to_owned())
        }
        Content::OneOf(words) if words.iter().any(|word| word == value) => Ok(()),
        Content::OneOf(words) => Err(format!("write one of: {}", words.join(", "))),
    }
}

fn line(text: &mut String, name: &str, value: &str) -> Result<(), String> {
    // A line break would begin a parameter of its own.
    if value.chars().any(char::is_control) {
        return Err("it holds a control character, such as a line break; take it out".to_owned());
    }
    // fencing.py strips lines, and one pair of quotes around a value.
    let quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    let written = if quoted || value.trim() != value {
        writeln!(text, "{name}=\"{value}\"")
    } else {
        writeln!(text, "{name}={value}")
    };
    written.map_err(|error| error.to_string())
}
