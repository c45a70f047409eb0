//! A scenario, typed. What each word does is said by the format's text; this says how it is kept.
//!
//! Names are as written, times are [`Millis`]. `Line` fields never take part in comparisons, so
//! that a printed and re-parsed scenario equals the one it was printed from.

mod expect;
mod setup;
mod step;

pub use expect::*;
pub use setup::*;
pub use step::*;

/// Milliseconds of simulated time since second 0.
pub type Millis = u64;

/// Name of a host, VM, device or storage.
pub type Name = String;

/// Where in the file something stands (from 1; 0: nowhere). All lines are equal.
#[derive(Clone, Copy, Debug, Default)]
pub struct Line(pub u32);

impl PartialEq for Line {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

/// One scenario: the state at second 0, what happens then, and what must come of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Scenario {
    /// One line.
    pub name: String,
    /// Free text.
    pub about: Option<String>,
    /// What hosts share; already part of each host's fields.
    pub host_defaults: HostFields,
    /// The hosts at second 0.
    pub hosts: Vec<HostSetup>,
    /// Declared fence devices; a host with [`Fencing::Bmc`] has one more of its own, named by
    /// [`bmc_name`].
    pub fence_devices: Vec<FenceDeviceSetup>,
    /// The storages; the first is where a VM's disks are unless it says otherwise.
    pub storage: Vec<StorageSetup>,
    /// Controller replicas.
    pub controllers: u32,
    /// AvailabilityPolicy fields that differ from the CRD's defaults.
    pub policy: PolicyFields,
    /// The VMs at second 0.
    pub vms: Vec<VmSetup>,
    /// Rules between VMs.
    pub rules: Vec<Rule>,
    /// Objects applied before the start, as JSON, in file order.
    pub manifests: Vec<Manifest>,
    /// What happens, in file order.
    pub steps: Vec<Step>,
    /// What must hold.
    pub expect: Vec<Expectation>,
    /// When the run ends; absent: see [`crate::scenario::Evaluator::until`].
    pub until: Option<Time>,
}

/// A moment that a file names.
#[derive(Clone, Debug, PartialEq)]
pub enum Time {
    /// Since second 0.
    At(Millis),
    /// So long after the step of this id has fired.
    After(String, Millis),
}

/// An object to apply.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The object.
    pub object: serde_json::Value,
    /// Where it stands.
    pub line: Line,
}

impl Manifest {
    /// The object's kind, empty if it has none.
    #[must_use]
    pub fn kind(&self) -> &str {
        self.object.get("kind").and_then(|k| k.as_str()).unwrap_or_default()
    }

    /// The object's name, empty if it has none.
    #[must_use]
    pub fn name(&self) -> &str {
        self.object.pointer("/metadata/name").and_then(|n| n.as_str()).unwrap_or_default()
    }
}

/// Name of the fence device that a host with `fencing: bmc` has.
#[must_use]
pub fn bmc_name(host: &str) -> String {
    format!("bmc-{host}")
}
