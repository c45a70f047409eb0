//! The serving port: no simulated host serves a storage.

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentExport, ExportReport};
use stockade_host::ports::ExportPort;

/// Simulated storages have servers of their own, which the controller reaches as
/// [`SimServer`](super::SimServer).
pub(super) struct SimExports;

impl ExportPort for SimExports {
    fn ensure<'a>(&'a self, exports: &'a [AgentExport]) -> BoxFuture<'a, Vec<ExportReport>> {
        let refused = |export: &AgentExport| ExportReport {
            storage: export.storage.clone(),
            ready: false,
            message: "a simulated host serves nothing; the storage is a server of its own".into(),
            denied: Vec::new(),
            broken: Vec::new(),
        };
        let reports = exports.iter().map(refused).collect();
        async { reports }.boxed()
    }
}
