//! Runs the agents of the fence-agents package: the real [`FenceRunner`].
//!
//! ```text
//! FenceCall ─► allow-list ─► agent's own metadata ─► input text ─► agent (stdin) ─► exit code + words
//! ```
//! An agent is found in one folder, by a name on a list. Everything it is told goes to its standard
//! input, so that no password stands on a command line or in an environment of ours. It runs in a
//! process group of its own under coreutils' `timeout`, which kills the whole group at the
//! deadline even if this process is dead by then (safety, gate 10).
//!
//! Nothing is decided or retried here: that is core's.

mod allowed;
mod answer;
mod input;
mod metadata;
mod process;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures::future::BoxFuture;
use stockade_crds::v1alpha1::FenceAction;

pub use self::allowed::ALLOWED;
use self::metadata::Metadata;
use self::process::Ended;
use crate::error::{HostError, HostResult};
use crate::ports::{FenceCall, FenceRunner, Power};

/// Longest time that an agent may take to describe itself. A Python interpreter on a busy
/// machine starts in a second or two.
const METADATA_LIMIT: Duration = Duration::from_secs(10);

/// Where agents are, and which may be run.
#[derive(Clone, Debug)]
pub struct FenceOptions {
    /// The folder that agents are run from; no other is searched.
    pub folder: PathBuf,
    /// Agents that may be run beside [`ALLOWED`].
    pub extra: BTreeSet<String>,
}

impl Default for FenceOptions {
    fn default() -> Self {
        Self { folder: PathBuf::from("/usr/sbin"), extra: BTreeSet::new() }
    }
}

/// What agents said of themselves, with the time stamp of the file that said it.
type Described = BTreeMap<PathBuf, (Option<SystemTime>, Arc<Metadata>)>;

/// Runs fence agents that are installed on this machine.
#[derive(Debug)]
pub struct FenceAgents {
    options: FenceOptions,
    described: Mutex<Described>,
}

impl FenceAgents {
    /// A runner with these options.
    #[must_use]
    pub fn new(options: FenceOptions) -> Self {
        Self { options, described: Mutex::new(Described::new()) }
    }

    /// The agent's program, if it may be run and is there.
    fn program(&self, op: &'static str, call: &FenceCall) -> HostResult<PathBuf> {
        let agent = call.spec.agent.as_str();
        let refused = |why: String| HostError::refused(op, &call.device, why);
        if !ALLOWED.contains(&agent) && !self.options.extra.contains(agent) {
            return Err(refused(format!(
                "spec.agent: {agent} is not on the list of agents that cut power; name one that \
                 is, or allow it by the controller's --fence-agent"
            )));
        }
        // The list holds plain names, but what an administrator adds might not be one.
        if !agent.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
            return Err(refused(format!("spec.agent: {agent:?} is no name of a fence agent")));
        }
        let program = self.options.folder.join(agent);
        if !program.is_file() {
            return Err(refused(format!(
                "spec.agent: {} is not there; install the fence-agents package where the \
                 controller runs",
                program.display()
            )));
        }
        Ok(program)
    }

    /// What the agent says of itself; asked again when its file has changed.
    async fn describe(
        &self,
        op: &'static str,
        device: &str,
        program: &Path,
    ) -> HostResult<Arc<Metadata>> {
        let changed = std::fs::metadata(program).and_then(|m| m.modified()).ok();
        let known = self.lock().get(program).cloned();
        if let Some((at, metadata)) = known
            && at == changed
        {
            return Ok(metadata);
        }
        let name = program.display();
        let failed = |why: String| HostError::failed(op, device, why);
        let ended = process::run(program, &["-o", "metadata"], "", METADATA_LIMIT)
            .await
            .map_err(|error| failed(format!("{name}: {error}")))?;
        let Ended::Exited { code: Some(0), out, .. } = ended else {
            return Err(failed(format!("{name} does not describe itself (-o metadata): {ended}")));
        };
        let metadata = Metadata::read(&out).map_err(|why| failed(format!("{name}: {why}")))?;
        let metadata = Arc::new(metadata);
        self.lock().insert(program.to_owned(), (changed, Arc::clone(&metadata)));
        Ok(metadata)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Described> {
        self.described.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn call(&self, call: &FenceCall) -> HostResult<Option<Power>> {
        let op = match call.action {
            FenceAction::Status => "status",
            FenceAction::Off => "off",
            FenceAction::On => "on",
        };
        let program = self.program(op, call)?;
        let metadata = self.describe(op, &call.device, &program).await?;
        let input = input::text(&metadata, call, op)
            .map_err(|why| HostError::refused(op, &call.device, why))?;
        let seconds = u64::try_from(call.spec.timeout_seconds).unwrap_or(0).max(1);
        let limit = Duration::from_secs(seconds);
        let ended = process::run(&program, &[], &input, limit).await.map_err(|error| {
            HostError::failed(op, &call.device, format!("{}: {error}", program.display()))
        })?;
        match ended {
            Ended::TimedOut => Err(HostError::unknown(
                op,
                &call.device,
                format!(
                    "{} did not end within {seconds} s (spec.timeoutSeconds) and was killed",
                    call.spec.agent
                ),
            )),
            Ended::Exited { code, out, err } => answer::of(call.action, code, &out, &err)
                .map_err(|why| HostError::failed(op, &call.device, answer::hide(&why, call))),
        }
    }
}

impl FenceRunner for FenceAgents {
    fn run<'a>(&'a self, call: &'a FenceCall) -> BoxFuture<'a, HostResult<Option<Power>>> {
        Box::pin(self.call(call))
    }
}
