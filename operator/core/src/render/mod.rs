//! Rendering: what a hypervisor is told about a VM, and reading back what it says.
//!
//! In: an order and a host's facts. Out: text. The agent adds nothing of its own.

mod domain;
mod read;

pub use domain::{DOMAIN_NAMESPACE, HostRenderFacts, domain_name, domain_xml};
pub use read::{DomainView, ReadError, ViewedDisk, read_domain, with_epoch};

#[cfg(test)]
mod tests;
