//! What is true of each host as its status says: for a reader who asks once and sees no beats.

use stockade_crds::conditions::{AGENT_ALIVE, READY, is_true};
use stockade_crds::v1alpha1::HostState;

use super::host_state::HostFacts;
use crate::world::World;

/// The facts of every host, by name, as far as the controller has written them down. Silences
/// are not: they age.
#[must_use]
pub fn reported(world: &World) -> Vec<HostFacts> {
    world
        .hosts
        .iter()
        .map(|(name, host)| {
            let status = host.status.clone().unwrap_or_default();
            let ready = status.conditions.iter().find(|c| c.type_ == READY);
            // A cordoned host is Ready too: what was asked of it is true.
            let takes = status.printable_status == HostState::Ready
                && ready.is_some_and(|c| c.status == "True");
            let why = ready.map_or("the controller has not looked at it yet", |c| &c.message);
            HostFacts {
                name: name.clone(),
                uid: status.host_uid.clone().unwrap_or_default(),
                boot: status.boot_id.clone().unwrap_or_default(),
                alive: is_true(&status.conditions, AGENT_ALIVE),
                state: status.printable_status,
                refuses: (!takes).then(|| why.to_owned()),
                keeps_its_own: status.printable_status == HostState::Cordoned,
                ..HostFacts::default()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use std::sync::Arc;

    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_takes_vms_only_if_its_status_says_so() {
        let mut world = World::default();
        for (name, state, ready, why) in [
            ("a", "Ready", "True", "beats, and takes VMs"),
            ("b", "Cordoned", "True", "cordoned"),
            ("c", "Lost", "False", "is silent"),
            ("d", "Ready", "False", "its hypervisor does not answer"),
        ] {
            let condition = json!({"type": "Ready", "status": ready, "reason": "R",
                "message": why, "lastTransitionTime": "2026-01-01T00:00:00Z"});
            let host = json!({"metadata": {"name": name}, "spec": {},
                "status": {"printableStatus": state, "conditions": [condition]}});
            world.hosts.insert(name.into(), Arc::new(serde_json::from_value(host).unwrap()));
        }
        let bare = json!({"metadata": {"name": "e"}, "spec": {}});
        world.hosts.insert("e".into(), Arc::new(serde_json::from_value(bare).unwrap()));
        let told: Vec<_> = reported(&world).into_iter().map(|f| f.refuses).collect();
        let told: Vec<_> = told.iter().map(Option::as_deref).collect();
        assert_eq!(
            told,
            [
                None,
                Some("cordoned"),
                Some("is silent"),
                Some("its hypervisor does not answer"),
                Some("the controller has not looked at it yet")
            ]
        );
    }
}
