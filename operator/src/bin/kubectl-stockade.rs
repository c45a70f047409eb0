//! `kubectl stockade`: the plugin. What it does is in `plugin/`, one verb a file.

#[path = "../plugin/mod.rs"]
mod plugin;

fn main() -> std::process::ExitCode {
    plugin::run()
}
