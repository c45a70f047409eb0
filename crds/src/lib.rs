//! The kinds of `stockade.dev/v1alpha1`: types, schemas, conditions and names.
//!
//! One kind a file under [`v1alpha1`]. Users write specs; the controller writes
//! the status of what users see and the spec of what agents see ([`Domain`],
//! [`HostAgent`]); an agent writes the status of those two and its Lease, and
//! nothing else. This crate holds no client and no runtime.
//!
//! [`Domain`]: v1alpha1::Domain
//! [`HostAgent`]: v1alpha1::HostAgent

pub mod conditions;
mod manifest;
pub mod names;
pub mod quantity;
mod schema;
pub mod v1alpha1;

pub use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
pub use manifest::{ManifestError, to_yaml, yaml};

/// The API group of every kind.
pub const GROUP: &str = "stockade.dev";
/// The one served version.
pub const VERSION: &str = "v1alpha1";

/// Every CustomResourceDefinition, in the order in which a reader wants them.
#[must_use]
pub fn all_crds() -> Vec<CustomResourceDefinition> {
    [
        v1alpha1::VirtualMachine::crd(),
        v1alpha1::VirtualMachineMigration::crd(),
        v1alpha1::VirtualMachineConsole::crd(),
        v1alpha1::Host::crd(),
        v1alpha1::SharedStorage::crd(),
        v1alpha1::LockManager::crd(),
        v1alpha1::FenceDevice::crd(),
        v1alpha1::HostFence::crd(),
        v1alpha1::AvailabilityPolicy::crd(),
        v1alpha1::Domain::crd(),
        v1alpha1::HostAgent::crd(),
    ]
    .map(schema::bounded)
    .into()
}
