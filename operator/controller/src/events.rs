//! Kubernetes Events: what people are told.

use kube::Resource;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use stockade_core::plan::{About, Event as Told};
use stockade_core::world::World;
use stockade_crds::v1alpha1::{AvailabilityPolicy, Host, HostFence, VirtualMachine};

use crate::context::{Shared, request};
use crate::watch::chain;

/// Publishes one; a lost Event is logged and not tried again.
pub(crate) async fn publish(shared: &Shared, world: &World, told: &Told) {
    shared.observed.told(told.reason);
    let reporter = Reporter { controller: "stockade-controller".into(), instance: None };
    let recorder = Recorder::new(shared.client(), reporter);
    let mut reference = match &told.about {
        About::Vm(key) => {
            let mut r = VirtualMachine::object_ref_by_name(&key.name);
            r.namespace = Some(key.namespace.clone());
            r
        }
        About::Host(name) => Host::object_ref_by_name(name),
        About::Fence(name) => HostFence::object_ref_by_name(name),
        About::Policy => AvailabilityPolicy::object_ref_by_name("default"),
    };
    reference.uid = uid_of(world, &told.about);
    let event = Event {
        type_: if told.warning { EventType::Warning } else { EventType::Normal },
        reason: told.reason.to_owned(),
        note: Some(told.message.chars().take(1000).collect()),
        action: told.reason.to_owned(),
        secondary: None,
    };
    let call = recorder.publish(&event, &reference);
    if let Err(error) = request(|| format!("event {}", told.reason), call).await {
        tracing::warn!(error = %chain(&error), reason = told.reason, "an Event was lost");
    }
}

/// A reference by name alone; the uid is added where it is known.
trait ByName: Resource<DynamicType = ()> {
    fn object_ref_by_name(name: &str) -> k8s_openapi::api::core::v1::ObjectReference {
        k8s_openapi::api::core::v1::ObjectReference {
            api_version: Some(Self::api_version(&()).into_owned()),
            kind: Some(Self::kind(&()).into_owned()),
            name: Some(name.to_owned()),
            ..Default::default()
        }
    }
}

impl<K: Resource<DynamicType = ()>> ByName for K {}

/// The uid of what an Event is about, without which `kubectl describe` does not find it.
fn uid_of(world: &World, about: &About) -> Option<String> {
    match about {
        About::Vm(key) => world.vms.get(key)?.metadata.uid.clone(),
        About::Host(name) => world.hosts.get(name)?.metadata.uid.clone(),
        About::Fence(name) => world.fences.get(name)?.metadata.uid.clone(),
        About::Policy => world.policy.as_ref()?.metadata.uid.clone(),
    }
}
