//! The world as one reading of the API shows it, for the functions of `core` that explain.
//!
//! No beats are in it: what hosts are is taken from their status
//! ([`stockade_core::ha::reported`]), as the controller wrote it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::jiff::Timestamp;
use kube::ResourceExt;
use stockade_core::world::{Key, World};
use stockade_crds::names::{POLICY_NAME, host_of_namespace};
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, FenceDevice, Host, HostAgent, HostFence, LockManager, SharedStorage,
    VirtualMachine, VirtualMachineMigration,
};

use super::error::PluginError;
use super::session::Session;

/// Everything that placement and drains depend on.
///
/// # Errors
/// The server's: a person needs to read hosts and VMs of all namespaces.
pub(super) async fn world(session: &Session) -> Result<World, PluginError> {
    let (policies, vms, migrations, hosts, agents, storages, lock_managers, devices, fences) = tokio::try_join!(
        session.all::<AvailabilityPolicy>(),
        session.all::<VirtualMachine>(),
        session.all::<VirtualMachineMigration>(),
        session.all::<Host>(),
        session.all::<HostAgent>(),
        session.all::<SharedStorage>(),
        session.all::<LockManager>(),
        session.all::<FenceDevice>(),
        session.all::<HostFence>(),
    )?;
    Ok(World {
        fresh: true,
        wall_seconds: Timestamp::now().as_second(),
        policy: policies.into_iter().find(|p| p.name_any() == POLICY_NAME).map(Arc::new),
        vms: by_key(vms),
        migrations: by_key(migrations),
        hosts: by_name(hosts),
        agents: agents
            .into_iter()
            .filter_map(|a| Some((host_of_namespace(&a.namespace()?)?.to_owned(), Arc::new(a))))
            .collect(),
        storages: by_name(storages),
        lock_managers: by_name(lock_managers),
        fence_devices: by_name(devices),
        fences: by_name(fences),
        ..World::default()
    })
}

fn by_name<K: ResourceExt>(objects: Vec<K>) -> BTreeMap<String, Arc<K>> {
    objects.into_iter().map(|o| (o.name_any(), Arc::new(o))).collect()
}

fn by_key<K: ResourceExt>(objects: Vec<K>) -> BTreeMap<Key, Arc<K>> {
    objects.into_iter().map(|o| (Key::of(o.meta()), Arc::new(o))).collect()
}
