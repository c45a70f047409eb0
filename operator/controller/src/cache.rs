//! What the watches say, with what our own writes answered laid over it.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::runtime::watcher::Event;
use stockade_core::ha::evidence::{LeaseBeat, Lives, SeenBeats};
use stockade_core::world::{Key, Millis};
use stockade_crds::names::{AGENT_OBJECT, BEATS_ANNOTATION, LINEAGE_ANNOTATION, host_of_namespace};
use stockade_crds::v1alpha1::{
    AvailabilityPolicy, Domain, FenceDevice, Host, HostAgent, HostFence, Lineage, LockManager,
    SharedStorage, VirtualMachine, VirtualMachineMigration,
};

use crate::context::Shared;
use crate::leader::SENT_ANNOTATION;

/// Objects of one kind, by namespace and name.
pub(crate) struct Kind<K> {
    pub(crate) objects: BTreeMap<Key, Arc<K>>,
    listing: Option<BTreeMap<Key, Arc<K>>>,
    listed: bool,
}

impl<K> Default for Kind<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listing: None, listed: false }
    }
}

fn version<K: ResourceExt>(object: &K) -> u64 {
    object.resource_version().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn key<K: ResourceExt>(object: &K) -> Key {
    Key::new(object.namespace().unwrap_or_default(), object.name_any())
}

impl<K: ResourceExt> Kind<K> {
    fn take(&mut self, event: Event<K>) {
        match event {
            Event::Init => self.listing = Some(BTreeMap::new()),
            Event::InitApply(object) => {
                if let Some(listing) = &mut self.listing {
                    listing.insert(key(&object), Arc::new(object));
                }
            }
            Event::InitDone => {
                if let Some(listing) = self.listing.take() {
                    self.objects = listing;
                    self.listed = true;
                }
            }
            Event::Apply(object) => self.learn(object),
            Event::Delete(object) => {
                self.objects.remove(&key(&object));
            }
        }
    }

    /// Takes an object if it is newer than the one that is known.
    pub(crate) fn learn(&mut self, object: K) {
        let key = key(&object);
        let newer = self.objects.get(&key).is_none_or(|old| {
            version(old.as_ref()) <= version(&object) || old.uid() != object.uid()
        });
        if newer {
            self.objects.insert(key, Arc::new(object));
        }
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
            pub(crate) seen: BTreeMap<String, (String, Millis)>,
            identity: String,
            lease_name: String,
            leases_listed: bool,
        }

        impl Cache {
            pub(crate) fn new(shared: &Shared) -> Self {
                Self {
                    $($field: Kind::default(),)*
                    lives: Lives { limit: 5_000, ..Lives::default() },
                    usage: BTreeMap::new(),
                    wake_at: None,
                    tolerates: None,
                    uneven_since: None,
                    lineages: BTreeMap::new(),
                    seen: BTreeMap::new(),
                    identity: shared.context.identity.clone(),
                    lease_name: shared.context.lease.clone(),
                    leases_listed: false,
                }
            }

            /// Every kind was listed at least once.
            pub(crate) fn listed(&self) -> bool {
                self.leases_listed $(&& self.$field.listed)*
            }

            pub(crate) fn take(&mut self, change: Change, now: Millis) {
                match change {
                    $(Change::$kind(event) => self.$field.take(event),)*
                    Change::Lease(event) => self.lease(event, now),
                }
            }
        }
    };
}

kinds! {
    vms: VirtualMachine,
    migrations: VirtualMachineMigration,
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
    pub(crate) fn learn(&mut self, answers: Vec<Change>) {
        for answer in answers {
            self.take(answer, 0);
        }
    }

    /// Milliseconds until the last plan wants to be made again.
    pub(crate) fn wake_in(&self, shared: &Shared) -> u64 {
        self.wake_at.map_or(u64::MAX, |at| at.saturating_sub(shared.now()).max(1))
    }

    /// Since when `what` has been as `print` says.
    pub(crate) fn since(&mut self, what: String, print: String, now: Millis) {
        let entry = self.seen.entry(what).or_insert_with(|| (print.clone(), now));
        if entry.0 != print {
            *entry = (print, now);
        }
    }

    fn lease(&mut self, event: Event<Lease>, now: Millis) {
        let lease = match event {
            Event::Init | Event::Delete(_) => return,
            Event::InitDone => {
                self.leases_listed = true;
                return;
            }
            Event::InitApply(lease) | Event::Apply(lease) => lease,
        };
        let holder =
            lease.spec.as_ref().and_then(|s| s.holder_identity.clone()).unwrap_or_default();
        let name = lease.name_any();
        if name == self.lease_name && holder == self.identity {
            let sent = lease.annotations().get(SENT_ANNOTATION).and_then(|at| at.parse().ok());
            self.lives.echo(sent.unwrap_or(0), now);
            return;
        }
        let namespace = lease.namespace().unwrap_or_default();
        let Some(host) = host_of_namespace(&namespace).filter(|_| name == AGENT_OBJECT) else {
            return;
        };
        let Some((host_uid, boot_id)) = holder.split_once('/') else { return };
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
        if let Some(lineage) = lineage {
            self.lineages.insert(host.to_owned(), lineage);
        }
        let beat = LeaseBeat {
            host_uid: host_uid.to_owned(),
            boot_id: boot_id.to_owned(),
            version: lease.resource_version().unwrap_or_default(),
            beats,
        };
        self.lives.lease(host, beat, now);
    }
}
