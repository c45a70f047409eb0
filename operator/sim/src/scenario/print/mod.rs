//! Prints scenarios so that [`super::parse`] reads the same again: shrunk random runs become
//! files, and failures quote what did not hold.

mod expect;
mod setup;
mod step;
#[cfg(test)]
mod tests;
mod yaml;

use self::yaml::Yaml;
use super::ast::{Expectation, HostFields, Scenario, Step, StorageSetup, Time};

/// The whole file: one line a VM, step and expectation.
#[must_use]
pub fn scenario(s: &Scenario) -> String {
    let mut out = String::new();
    let mut line = |key: &str, value: &Yaml| {
        out.push_str(&format!("{key}: {value}\n"));
    };
    line("name", &Yaml::text(&s.name));
    if let Some(about) = &s.about {
        line("about", &Yaml::text(about));
    }
    let counted = setup::counted(&s.hosts, &s.host_defaults);
    if s.host_defaults != HostFields::default() {
        line("hostDefaults", &setup::host_fields(&s.host_defaults).done());
    }
    if let Some(n) = counted {
        line("hosts", &Yaml::number(&n));
    }
    if s.controllers != 2 {
        line("controllers", &Yaml::number(&s.controllers));
    }
    if !s.policy.is_empty() {
        line("defaults", &setup::policy(&s.policy));
    }
    if let Some(until) = &s.until {
        line("until", &time(until));
    }
    let hosts = if counted.is_some() { &[][..] } else { &s.hosts };
    list(&mut out, "hosts", hosts, |h| setup::host(h, &s.host_defaults));
    list(&mut out, "fenceDevices", &s.fence_devices, setup::fence_device);
    if s.storage != [StorageSetup::standard()] {
        list(&mut out, "storage", &s.storage, setup::storage);
        if s.storage.is_empty() {
            out.push_str("storage: []\n");
        }
    }
    list(&mut out, "vms", &s.vms, setup::vm);
    list(&mut out, "rules", &s.rules, setup::rule);
    list(&mut out, "manifests", &s.manifests, |m| Yaml::json(&m.object));
    list(&mut out, "steps", &s.steps, step::step);
    list(&mut out, "expect", &s.expect, |e| expect::form(&e.form));
    out
}

fn list<T>(out: &mut String, key: &str, items: &[T], print: impl Fn(&T) -> Yaml) {
    if items.is_empty() {
        return;
    }
    out.push_str(&format!("{key}:\n"));
    for item in items {
        out.push_str(&format!("  - {}\n", print(item)));
    }
}

/// One step on one line.
#[must_use]
pub fn step(step: &Step) -> String {
    step::step(step).to_string()
}

/// One expectation on one line.
#[must_use]
pub fn expectation(expectation: &Expectation) -> String {
    expect::form(&expectation.form).to_string()
}

fn time(time: &Time) -> Yaml {
    match time {
        Time::At(t) => Yaml::seconds(*t),
        Time::After(id, 0) => Yaml::raw(id),
        Time::After(id, offset) => Yaml::raw(format!("{id}+{}", Yaml::seconds(*offset))),
    }
}
