//! What the watches say, with what our own writes answered laid over it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use stockade_core::ha::evidence::{LeaseBeat, Lives, SeenBeats};
use stockade_core::world::{Key, Millis, OrderKey, World};
use stockade_crds::names::{AGENT_OBJECT, BEATS_ANNOTATION, LINEAGE_ANNOTATION, host_of_namespace};
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, Domain, FenceDevice, Host, HostAgent, HostFence, Lineage, LockManager,
    SharedStorage, VirtualMachine, VirtualMachineConsole, VirtualMachineMigration,
};

use crate::context::Shared;
use crate::leader::SENT_ANNOTATION;

/// A kind as the world looks it up.
pub(crate) trait Indexed: ResourceExt + PartialEq {
    /// What it is looked up by.
    type Index: Ord;

    /// Where it stands; none if it is nothing of ours.
    fn index(&self) -> Option<Self::Index>;
}

macro_rules! indexed {
    ($index:ty: $($kind:ident),*; $of:expr) => { $(
        impl Indexed for $kind {
            type Index = $index;

            fn index(&self) -> Option<Self::Index> {
                let of: fn(&Self) -> Option<Self::Index> = $of;
                of(self)
            }
        }
    )* };
}

indexed!(Key: VirtualMachine, VirtualMachineMigration, VirtualMachineConsole; |o| Some(Key::of(&o.metadata)));
indexed!(String: Host, SharedStorage, LockManager, FenceDevice, HostFence, AvailabilityPolicy;
    |o| o.metadata.name.clone());
indexed!(String: HostAgent; |o| {
    let host = host_of_namespace(o.metadata.namespace.as_deref()?)?;
    (o.metadata.name.as_deref() == Some(AGENT_OBJECT)).then(|| host.to_owned())
});
indexed!(String: Namespace; |o| host_of_namespace(o.metadata.name.as_deref()?).map(str::to_owned));
indexed!(OrderKey: Domain; |o| {
    let host = host_of_namespace(o.metadata.namespace.as_deref()?)?;
    Some(OrderKey::new(host, o.metadata.name.clone()?))
});

/// Objects of one kind. Each knows its own place, so that a plan borrows the map as it is.
pub(crate) struct Kind<K: Indexed> {
    pub(crate) objects: BTreeMap<K::Index, Arc<K>>,
    listing: Option<BTreeMap<K::Index, Arc<K>>>,
    listed: bool,
}

impl<K: Indexed> Default for Kind<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listing: None, listed: false }
    }
}

fn version<K: ResourceExt>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

/// kubectl's own copy of what was applied.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Drops what is never asked and may be more than all the rest: who wrote which field, and kubectl's
/// copy of the object. Nothing of it goes back to the server: of metadata only what a patch names is
/// written, and a write of a status leaves metadata as it is.
pub(crate) fn prune(meta: &mut ObjectMeta) {
    meta.managed_fields = None;
    if let Some(annotations) = &mut meta.annotations {
        annotations.remove(LAST_APPLIED);
    }
}

impl<K: Indexed> Kind<K> {
    /// Takes what a watch says; whether that changed anything.
    fn take(&mut self, event: Event<K>) -> bool {
        match event {
            Event::Init => {
                self.listing = Some(BTreeMap::new());
                false
            }
            Event::InitApply(mut object) => {
                prune(object.meta_mut());
                if let (Some(listing), Some(index)) = (&mut self.listing, object.index()) {
                    listing.insert(index, Arc::new(object));
                }
                false
            }
            Event::InitDone => match self.listing.take() {
                Some(listing) => {
                    self.objects = listing;
                    self.listed = true;
                    true
                }
                None => false,
            },
            Event::Apply(object) => self.learn(object),
            Event::Delete(object) => {
                object.index().is_some_and(|index| self.objects.remove(&index).is_some())
            }
        }
    }

    /// Takes an object if it is newer than the one that is known; whether it was.
    fn learn(&mut self, mut object: K) -> bool {
        prune(object.meta_mut());
        let Some(index) = object.index() else { return false };
        if let Some(known) = self.objects.get(&index)
            && known.meta().uid == object.meta().uid
        {
            let (old, new) = (version(known.as_ref()), version(&object));
            // A restored API may count the same number twice.
            if old > new || (old == new && **known == object) {
                return false;
            }
        }
        self.objects.insert(index, Arc::new(object));
        true
    }
}

macro_rules! kinds {
    ($($field:ident: $kind:ident),* $(,)?) => {
        /// News of one object, by the watch or as the answer to a write.
        pub(crate) enum Change {
            $(
                #[doc = stringify!($kind)]
                $kind(Event<$kind>),
            )*
            /// A Lease.
            Lease(Event<Lease>),
        }

        /// Everything that was read.
        pub(crate) struct Cache {
            $(pub(crate) $field: Kind<$kind>,)*
            pub(crate) lives: Lives,
            pub(crate) usage: BTreeMap<String, (i64, i64)>,
            pub(crate) wake_at: Option<Millis>,
            /// How many host failures still fit, and when that was counted.
            pub(crate) tolerates: Option<(usize, Millis)>,
            pub(crate) uneven_since: Option<Millis>,
            /// The highest history that each host has journalled.
            pub(crate) lineages: BTreeMap<String, Lineage>,
            /// Since when each fact has been as it is.
            pub(crate) seen_since: BTreeMap<String, Millis>,
            /// How each fact was when it was last noted.
            pub(crate) prints: BTreeMap<String, String>,
            /// Nothing that facts are taken from has changed since they were noted.
            pub(crate) noted: bool,
            identity: String,
            lease_name: String,
            leases_listed: bool,
        }

        /// Longest silence that an agent may announce, in milliseconds.
const LONGEST_PROMISE: Millis = 60_000;

/// For how long a Lease says that it is good.
fn promised(lease: &Lease) -> Millis {
    let seconds = lease.spec.as_ref().and_then(|s| s.lease_duration_seconds).unwrap_or(0);
    (u64::try_from(seconds).unwrap_or(0) * 1_000).min(LONGEST_PROMISE)
}

impl Cache {
            pub(crate) fn new(shared: &Shared) -> Self {
                Self {
                    $($field: Kind::default(),)*
                    lives: Lives { limit: 5_000, late: 3_000, ..Lives::default() },
                    usage: BTreeMap::new(),
                    wake_at: None,
                    tolerates: None,
                    uneven_since: None,
                    lineages: BTreeMap::new(),
                    seen_since: BTreeMap::new(),
                    prints: BTreeMap::new(),
                    noted: false,
                    identity: shared.context.identity.clone(),
                    lease_name: shared.context.lease.clone(),
                    leases_listed: false,
                }
            }

            /// Every kind was listed at least once.
            pub(crate) fn listed(&self) -> bool {
                self.leases_listed $(&& self.$field.listed)*
            }

            /// Takes news; whether a plan might come out differently for them at once.
            pub(crate) fn take(&mut self, change: Change, now: Millis) -> bool {
                match change {
                    $(Change::$kind(event) => {
                        let new = self.$field.take(event);
                        self.noted &= !new;
                        new
                    })*
                    Change::Lease(event) => self.lease(event, now),
                }
            }
        }
    };
}

kinds! {
    vms: VirtualMachine,
    migrations: VirtualMachineMigration,
    consoles: VirtualMachineConsole,
    hosts: Host,
    agents: HostAgent,
    domains: Domain,
    storages: SharedStorage,
    lock_managers: LockManager,
    fence_devices: FenceDevice,
    fences: HostFence,
    policies: AvailabilityPolicy,
    namespaces: Namespace,
}

impl Cache {
    /// Takes what our own writes answered; whether anything of it was new.
    pub(crate) fn learn(&mut self, answers: Vec<Change>, now: Millis) -> bool {
        let mut new = false;
        for answer in answers {
            new |= self.take(answer, now);
        }
        new
    }

    /// Takes back what was lent to a plan.
    pub(crate) fn take_back(&mut self, world: World) {
        self.vms.objects = world.vms;
        self.migrations.objects = world.migrations;
        self.consoles.objects = world.consoles;
        self.hosts.objects = world.hosts;
        self.agents.objects = world.agents;
        self.domains.objects = world.domains;
        self.storages.objects = world.storages;
        self.lock_managers.objects = world.lock_managers;
        self.fence_devices.objects = world.fence_devices;
        self.fences.objects = world.fences;
        self.lives = world.lives;
        self.seen_since = world.seen_since;
        self.usage = world.usage;
    }

    /// Milliseconds until the last plan wants to be made again.
    pub(crate) fn wake_in(&self, shared: &Shared) -> u64 {
        self.wake_at.map_or(u64::MAX, |at| at.saturating_sub(shared.now()).max(1))
    }

    fn lease(&mut self, event: Event<Lease>, now: Millis) -> bool {
        let lease = match event {
            Event::Init | Event::Delete(_) => return false,
            Event::InitDone => return !std::mem::replace(&mut self.leases_listed, true),
            Event::InitApply(lease) | Event::Apply(lease) => lease,
        };
        let holder =
            lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
        let name = lease.name_any();
        if name == self.lease_name && holder == self.identity {
            let sent = lease.annotations().get(SENT_ANNOTATION).and_then(|at| at.parse().ok());
            return self.lives.echo(sent.unwrap_or(0), now);
        }
        let namespace = lease.namespace().unwrap_or_default();
        let Some(host) = host_of_namespace(&namespace).filter(|_| name == AGENT_OBJECT) else {
            return false;
        };
        let Some((host_uid, boot_id)) = holder.split_once('/') else { return false };
        let beats: BTreeMap<String, SeenBeats> = lease
            .annotations()
            .get(BEATS_ANNOTATION)
            .and_then(|text| serde_json::from_str(text).ok())
            .unwrap_or_default();
        if let Some(usage) = lease.annotations().get("stockade.dev/usage") {
            let usage: BTreeMap<String, (i64, i64)> =
                serde_json::from_str(usage).unwrap_or_default();
            self.usage.extend(usage);
        }
        let lineage = lease.annotations().get(LINEAGE_ANNOTATION).and_then(|t| t.parse().ok());
        // Another history may stop everything: that is news.
        let rewound = lineage.is_some_and(|lineage: Lineage| {
            self.lineages.insert(host.to_owned(), lineage.clone()) != Some(lineage)
        });
        let beat = LeaseBeat {
            host_uid: host_uid.to_owned(),
            boot_id: boot_id.to_owned(),
            version: lease.resource_version().unwrap_or_default(),
            beats,
            promised: promised(&lease),
        };
        self.lives.lease(host, beat, now) || rewound
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(name: &str) -> VirtualMachine {
        serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": name, "namespace": "default", "uid": name, "resourceVersion": "7",
                "managedFields": [{"manager": "kubectl", "operation": "Apply"}],
                "annotations": {LAST_APPLIED: "{\"spec\":{}}", "stockade.dev/request": "restart/1"},
            },
            "spec": {"memory": "1Gi"},
        }))
        .unwrap()
    }

    #[test]
    fn objects_are_pruned_before_they_are_kept_whichever_way_they_come() {
        let mut vms = Kind::<VirtualMachine>::default();
        vms.take(Event::Init);
        vms.take(Event::InitApply(applied("listed")));
        assert!(vms.take(Event::InitDone));
        assert!(vms.take(Event::Apply(applied("watched"))));
        assert!(!vms.take(Event::Apply(applied("watched"))), "the same again is no news");
        assert_eq!(vms.objects.len(), 2);
        for vm in vms.objects.values() {
            assert_eq!(vm.metadata.managed_fields, None);
            let kept: Vec<&String> = vm.annotations().keys().collect();
            assert_eq!(kept, ["stockade.dev/request"]);
        }
    }
}
