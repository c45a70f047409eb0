//! Text → [`Scenario`]s. Nothing is ever ignored: a key, verb, field or word that is not known is
//! a problem with its line and the nearest known word, and so is a value of another type than
//! the format says. All problems of a file are reported at once.

mod condition;
mod expect;
mod manifest;
mod names;
mod policy;
mod read;
mod setup;
mod step;
#[cfg(test)]
pub(super) mod tests;

use std::path::Path;

use self::names::NameKind;
use self::read::{Cx, Fields};
use super::ast::{HostFields, Name, RuleKind, Scenario, StorageSetup};
use super::node::{Kind, Node, documents};
use super::problem::{Problem, ScenarioError};

/// The scenarios of a file; manifests that it names are looked for beside it.
///
/// # Errors
/// If it can't be read or is wrong anywhere.
pub fn load(path: &Path) -> Result<Vec<Scenario>, ScenarioError> {
    let file = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|source| ScenarioError::Read { file: file.clone(), source })?;
    parse(&text, &file, path.parent())
}

/// The scenarios of a text, one a YAML document. `file` is what messages call it, `base` where
/// manifests it names by path lie (absent: such a path is a problem).
///
/// # Errors
/// If it is wrong anywhere.
pub fn parse(text: &str, file: &str, base: Option<&Path>) -> Result<Vec<Scenario>, ScenarioError> {
    let mut problems = Vec::new();
    let roots = documents(text, &mut problems);
    if roots.is_empty() && problems.is_empty() {
        problems.push(Problem { line: 1, text: "no scenario in this file".to_owned() });
    }
    let stem = Path::new(file)
        .file_stem()
        .map_or_else(|| "scenario".to_owned(), |s| s.to_string_lossy().into_owned());
    let mut scenarios = Vec::new();
    for (index, root) in roots.iter().enumerate() {
        let name = if roots.len() > 1 { format!("{stem}#{}", index + 1) } else { stem.clone() };
        let cx = Cx::new(base.map(Path::to_path_buf));
        if let Some(scenario) = document(&cx, root, name) {
            names::check(&cx, &scenario);
            scenarios.push(scenario);
        }
        problems.append(&mut cx.into_problems());
    }
    if problems.is_empty() {
        return Ok(scenarios);
    }
    problems.sort_by_key(|p| p.line);
    problems.dedup();
    Err(ScenarioError::Invalid { file: file.to_owned(), problems })
}

/// Most hosts a scenario may have.
const MAX_HOSTS: u64 = 2_000;

fn document(cx: &Cx, root: &Node, fallback_name: String) -> Option<Scenario> {
    let mut f = Fields::of(cx, root, "a scenario")?;
    let name = f.read("name", |cx, n, w| cx.scalar(n, w)).unwrap_or(fallback_name);
    let about = f.string("about");

    let defaults = f
        .take("hostDefaults")
        .and_then(|n| {
            let mut f = Fields::of(cx, n, "`hostDefaults`")?;
            let fields = setup::host_fields(&mut f, false);
            f.finish();
            Some(fields)
        })
        .unwrap_or_default();
    let hosts = hosts(cx, f.take("hosts"), root.line, &defaults);

    let fence_devices = list(cx, f.take("fenceDevices"), "fenceDevices", setup::fence_device);
    let storage = match f.take("storage") {
        None => vec![StorageSetup::standard()],
        node => list(cx, node, "storage", setup::storage),
    };
    let controllers = match f.take("controllers") {
        None => 2,
        Some(n) => cx.whole(n, "`controllers`", 1, 16).unwrap_or(2) as u32,
    };
    let policy =
        f.take("defaults").map(|n| policy::fields(cx, n, "`defaults`")).unwrap_or_default();
    let vms = list(cx, f.take("vms"), "vms", setup::vm);
    let rules = list(cx, f.take("rules"), "rules", setup::rule);
    let manifests =
        f.take("manifests").map(|n| manifest::many(cx, n, "`manifests`")).unwrap_or_default();
    let steps = list(cx, f.take("steps"), "steps", step::step);
    let expect = list(cx, f.take("expect"), "expect", expect::expectation);
    let until = f.take("until").and_then(|n| cx.time(n, "`until`"));
    f.finish();
    Some(Scenario {
        name,
        about,
        host_defaults: defaults,
        hosts,
        fence_devices,
        storage,
        controllers,
        policy,
        vms,
        rules,
        manifests,
        steps,
        expect,
        until,
    })
}

fn hosts(
    cx: &Cx,
    node: Option<&Node>,
    line: u32,
    defaults: &HostFields,
) -> Vec<super::ast::HostSetup> {
    let counted = |n: u64| {
        (1..=n).map(|i| setup::host_named(format!("h{i}"), defaults.clone(), line)).collect()
    };
    let Some(node) = node else { return counted(3) };
    if let Kind::Seq(items) = &node.kind {
        if items.is_empty() {
            cx.problem(node.line, "`hosts`: at least one host is needed".to_owned());
        }
        return items.iter().filter_map(|n| setup::host(cx, n, defaults)).collect();
    }
    match node.as_number() {
        Some(_) => counted(cx.whole(node, "`hosts`", 1, MAX_HOSTS).unwrap_or(3)),
        None => {
            cx.expected(node, "`hosts`", "a number or a list");
            Vec::new()
        }
    }
}

/// A top-level list, each element read by `read`.
fn list<T>(
    cx: &Cx,
    node: Option<&Node>,
    key: &str,
    read: impl Fn(&Cx, &Node) -> Option<T>,
) -> Vec<T> {
    let Some(node) = node else { return Vec::new() };
    match &node.kind {
        Kind::Seq(items) => items.iter().filter_map(|n| read(cx, n)).collect(),
        Kind::Scalar { .. } if node.is_null() => Vec::new(),
        Kind::Scalar { .. } | Kind::Map(_) => {
            cx.expected(node, &format!("`{key}`"), "a list");
            Vec::new()
        }
    }
}

/// `together` or `apart`, and its members.
fn rule_kind(f: &mut Fields<'_>, what: &str) -> Option<(RuleKind, Vec<Name>)> {
    let together = f.names("together", NameKind::Vm);
    let apart = f.names("apart", NameKind::Vm);
    match (together, apart) {
        (Some(vms), None) => Some((RuleKind::Together, vms)),
        (None, Some(vms)) => Some((RuleKind::Apart, vms)),
        (Some(_), Some(_)) => {
            f.problem(format!("{what} is either `together` or `apart`, not both"));
            None
        }
        (None, None) => {
            f.problem(format!("{what} needs `together` or `apart` with a list of VMs"));
            None
        }
    }
}
