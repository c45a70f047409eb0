//! One kind a file.

mod console;
mod domain;
mod fence_device;
mod host;
mod host_agent;
mod host_fence;
mod lock_manager;
mod migration;
mod policy;
mod storage;
mod vm;

pub use console::*;
pub use domain::*;
pub use fence_device::*;
pub use host::*;
pub use host_agent::*;
pub use host_fence::*;
pub use lock_manager::*;
pub use migration::*;
pub use policy::*;
pub use storage::*;
pub use vm::*;
