//! A whole cluster in this process: the real controllers and agents on the in-process API and
//! the simulated hosts.

mod cluster;
#[cfg(test)]
mod ha_tests;
#[cfg(test)]
mod history_tests;
mod process;
#[cfg(test)]
mod tests;
mod wishes;

pub use cluster::{Cluster, ClusterError, Dies, HostPlan, disk_path, mount_path};
