//! What a serving host exports, to whom, and who is left out (safety §6.2).

use stockade_crds::v1alpha1::{
    AgentExport, AgentTarget, BootReference, ExportClient, Host, HostFence, SharedStorage,
};

use crate::storages::{agent_aoe, aoe_taken_by, denying_host, selects, serving_host};
use crate::world::World;

/// The exports of the host of that name.
///
/// A host is left out of a storage's clients while a certificate against its last boot stands, or
/// its denial there has not been taken back; its next boot is admitted again. Locks are broken only
/// once the certificate in the API says that the denial is in force.
#[must_use]
pub fn of_host(world: &World, server: &str) -> Vec<AgentExport> {
    world
        .storages
        .iter()
        .filter(|(_, storage)| serving_host(storage) == Some(server))
        .filter(|(name, storage)| aoe_taken_by(world, name, storage).is_none())
        .filter_map(|(name, storage)| Some((name, storage, empty(name, storage)?)))
        .map(|(name, storage, mut export)| {
            if denying_host(storage).is_none() {
                return export;
            }
            for (host, object) in &world.hosts {
                if host == server || !selects(storage, host, object) {
                    continue;
                }
                match denied(world, name, host) {
                    None => export.clients.push(ExportClient {
                        host: host.clone(),
                        address: storage_address(host, object),
                    }),
                    Some(fence) => {
                        let boot = BootReference {
                            host_uid: fence.spec.host_uid.clone(),
                            boot_id: fence.spec.boot_id.clone(),
                        };
                        if may_break(world, name, fence) {
                            export.broken.push(boot.clone());
                        }
                        export.denied.push(boot);
                    }
                }
            }
            export
        })
        .collect()
}

/// What is served of a storage, to nobody yet.
fn empty(name: &str, storage: &SharedStorage) -> Option<AgentExport> {
    let export = AgentExport { storage: name.to_owned(), ..AgentExport::default() };
    if let Some(nfs) = &storage.spec.nfs {
        let (path, lease_seconds) = (nfs.export.clone(), nfs.lease_seconds);
        return Some(AgentExport { path, lease_seconds, ..export });
    }
    let ocfs2 = storage.spec.ocfs2.as_ref()?;
    if let Some(aoe) = &ocfs2.aoe {
        let path = aoe.backing.clone()?;
        return Some(AgentExport { path, aoe: Some(agent_aoe(aoe)), ..export });
    }
    let iscsi = ocfs2.iscsi.as_ref()?;
    let target = AgentTarget { name: iscsi.target.clone(), lun: iscsi.lun };
    Some(AgentExport { path: iscsi.backing.clone()?, target: Some(target), ..export })
}

/// How a server sees a host: its storage address, else the one that is declared, else its name.
pub(crate) fn storage_address(name: &str, host: &Host) -> String {
    let addresses = &host.spec.addresses;
    let given = [&addresses.storage, &addresses.management, &addresses.migration];
    given.into_iter().flatten().next().cloned().unwrap_or_else(|| name.to_owned())
}

/// The certificate for which a host is denied at a storage now: one for the boot that it last
/// reported, or any if it reports none. That another boot beats is what ends a denial.
fn denied<'a>(world: &'a World, storage: &str, host: &str) -> Option<&'a HostFence> {
    let status = world.agents.get(host).and_then(|agent| agent.status.as_ref());
    let boot = status.map(|status| status.boot_id.as_str()).unwrap_or_default();
    let about = |f: &&HostFence| f.spec.host == host && (boot.is_empty() || f.spec.boot_id == boot);
    world.fences.values().map(|fence| &**fence).filter(about).find(|fence| {
        fence.status.as_ref().is_some_and(|status| {
            let stands = status.proof.is_some() && status.revoked.is_none();
            stands || status.denied.iter().any(|denied| denied == storage)
        })
    })
}

/// Whether its locks may be broken: it is denied in the API's own words, its proof stands, and no
/// other boot may hold the other side of a move (safety §8.3).
fn may_break(world: &World, storage: &str, fence: &HostFence) -> bool {
    let (uid, boot) = (&fence.spec.host_uid, &fence.spec.boot_id);
    fence.status.as_ref().is_some_and(|status| {
        status.proof.is_some()
            && status.revoked.is_none()
            && (status.denied.iter().any(|denied| denied == storage) || !world.guards.denial_first)
    }) && !crate::moves::undecided(world, uid, boot.as_str())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stockade_crds::v1alpha1::{
        AgentAoe, HostAgent, HostAgentSpec, HostAgentStatus, HostFenceSpec, HostFenceStatus,
        HostSpec, ProofKind,
    };

    use super::*;

    /// h1 and h2 mount what s1 serves; h1 last reported the boot `reported`.
    fn world(reported: &str, fence: Option<HostFenceStatus>) -> World {
        let mut world = World::default();
        for (name, address) in [("h1", "10.0.0.1"), ("h2", "10.0.0.2"), ("s1", "10.0.0.9")] {
            let mut host = Host::new(name, HostSpec::default());
            host.spec.addresses.storage = Some(address.into());
            world.hosts.insert(name.into(), Arc::new(host));
        }
        let spec = "{mountPath: /srv/vms, nfs: {server: 10.0.0.9, export: /x, servedBy: s1}}";
        let storage = SharedStorage::new("vms", serde_yaml::from_str(spec).unwrap());
        world.storages.insert("vms".into(), Arc::new(storage));
        let mut agent = HostAgent::new("agent", HostAgentSpec::default());
        agent.status = Some(HostAgentStatus { boot_id: reported.into(), ..Default::default() });
        world.agents.insert("h1".into(), Arc::new(agent));
        if let Some(status) = fence {
            let spec = HostFenceSpec {
                host: "h1".into(),
                host_uid: "uid-1".into(),
                boot_id: "dead".into(),
                reason: String::new(),
                confirmation: None,
            };
            let mut fence = HostFence::new("f", spec);
            fence.status = Some(status);
            world.fences.insert("f".into(), Arc::new(fence));
        }
        world
    }

    fn proven(denied: &[&str]) -> HostFenceStatus {
        HostFenceStatus {
            proof: Some(ProofKind::Power),
            denied: denied.iter().map(ToString::to_string).collect(),
            ..HostFenceStatus::default()
        }
    }

    /// Addresses, whether h1's boot is denied, whether its locks are to be broken.
    fn told(world: &World) -> (Vec<String>, bool, bool) {
        let exports = of_host(world, "s1");
        assert!(of_host(world, "h2").is_empty());
        let [export] = &exports[..] else { panic!("{exports:?}") };
        let addresses = export.clients.iter().map(|client| client.address.clone()).collect();
        (addresses, !export.denied.is_empty(), !export.broken.is_empty())
    }

    #[test]
    fn every_host_is_named_by_its_address_and_the_server_is_no_client_of_its_own() {
        let all = vec!["10.0.0.1".to_owned(), "10.0.0.2".to_owned()];
        assert_eq!(told(&world("alive", None)), (all, false, false));
    }

    #[test]
    fn a_boot_proven_dead_is_left_out_and_its_locks_wait_until_that_is_acknowledged() {
        let others = vec!["10.0.0.2".to_owned()];
        assert_eq!(told(&world("dead", Some(proven(&[])))), (others.clone(), true, false));
        assert_eq!(told(&world("dead", Some(proven(&["vms"])))), (others, true, true));
    }

    #[test]
    fn a_device_on_aoe_is_open_to_its_network_and_nobody_is_denied_there() {
        let mut world = world("dead", Some(proven(&[])));
        let spec = |path: &str| {
            let text = format!(
                "{{mountPath: {path}, ocfs2: {{aoe: {{shelf: 1, slot: 2, interface: eth1, \
                 servedBy: s1, backing: /dev/vg/vms}}}}}}"
            );
            serde_yaml::from_str(&text).unwrap()
        };
        let vms = SharedStorage::new("vms", spec("/srv/vms"));
        world.storages.insert("vms".into(), Arc::new(vms));
        // One device is given once, whoever else names it.
        let other = SharedStorage::new("without", spec("/srv/without"));
        world.storages.insert("without".into(), Arc::new(other));
        let device = AgentAoe { shelf: 1, slot: 2, interface: "eth1".into() };
        let export = AgentExport {
            storage: "vms".into(),
            path: "/dev/vg/vms".into(),
            aoe: Some(device),
            ..AgentExport::default()
        };
        assert_eq!(of_host(&world, "s1"), [export]);
    }

    #[test]
    fn a_host_whose_agent_object_is_gone_stays_denied() {
        assert_eq!(told(&world("", Some(proven(&["vms"])))).0, ["10.0.0.2"]);
    }

    #[test]
    fn its_next_boot_is_admitted_and_so_is_one_that_nothing_denies_any_more() {
        assert_eq!(told(&world("next", Some(proven(&["vms"])))).0.len(), 2);
        let revoked = HostFenceStatus { revoked: Some("it beats".into()), ..proven(&[]) };
        assert_eq!(
            told(&world("dead", Some(revoked.clone()))),
            (vec!["10.0.0.1".into(), "10.0.0.2".into()], false, false)
        );
        // Something was placed in its name: it is kept out, and nothing more is broken.
        let kept = HostFenceStatus { denied: vec!["vms".into()], ..revoked };
        assert_eq!(told(&world("dead", Some(kept))), (vec!["10.0.0.2".into()], true, false));
    }
}
