//! Hosts: their namespaces, the orders about the host itself, and their status.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use stockade_crds::conditions::{AGENT_ALIVE, Decided, FENCING_READY, READY, STALLED, VALID};
use stockade_crds::conditions::{PAUSED, STORM_BRAKE, TOLERATES_HOST_FAILURE};
use stockade_crds::names::host_fence_name;
use stockade_crds::quantity;
use stockade_crds::v1alpha1::{
    Automation, AvailabilityPolicySpec, AvailabilityPolicyStatus, BootReference, Evidence, Host,
    HostAgentSpec, HostCapacity, HostState, HostStatus,
};

use crate::certificates::{self, identity};
use crate::consoles;
use crate::ha::brake::Brake;
use crate::ha::fencing;
use crate::ha::host_state::HostFacts;
use crate::lineage;
use crate::locks;
use crate::plan::{Intent, Plan, Report};
use crate::storages;
use crate::validate::{policy_problems, summary};
use crate::vm::basis;
use crate::world::World;

/// Namespaces, HostAgents and the status of hosts, storages, lock managers and the policy.
pub fn plan(world: &World, hosts: &[HostFacts], brake: Brake, tolerates: usize, out: &mut Plan) {
    for facts in hosts {
        let Some(host) = world.hosts.get(&facts.name) else { continue };
        match world.namespaces.get(&facts.name) {
            None => out.intents.push(Intent::EnsureNamespace { host: facts.name.clone() }),
            Some(ns) if ns.ours && !ns.terminating => host_agent(world, facts, host, out),
            Some(_) => {}
        }
        out.hosts.push((facts.name.clone(), host_status(world, facts, host, brake)));
    }
    certificates::plan(world, hosts, out);
    for (name, storage) in &world.storages {
        out.storages.push((name.clone(), storages::report(world, name, storage)));
    }
    for (name, manager) in &world.lock_managers {
        let report = locks::report(world, manager);
        out.lock_managers.push((name.clone(), report));
    }
    if let Some(policy) = &world.policy {
        let status = AvailabilityPolicyStatus {
            observed_generation: policy.metadata.generation.unwrap_or_default(),
            tolerates: i32::try_from(tolerates).unwrap_or(i32::MAX),
            brake_count: i32::try_from(brake.count).unwrap_or(i32::MAX),
            conditions: Vec::new(),
        };
        let paused = policy.spec.automation == Automation::Paused;
        let conditions = vec![
            Decided::new(READY, true, "InForce", "the policy is in force"),
            valid(world, &policy.spec),
            Decided::new(
                TOLERATES_HOST_FAILURE,
                tolerates > 0,
                if tolerates > 0 { "CapacityLeft" } else { "NoCapacityLeft" },
                format!("{tolerates} more host failures fit"),
            ),
            storm(brake),
            Decided::new(PAUSED, paused, "AutomationPaused", "spec.automation is Paused"),
            lineage::report(world, hosts, out),
        ];
        out.policy = Some(Report { status, conditions });
    }
}

/// Whether so many hosts are silent at once that a common cause is more likely than their deaths.
fn storm(brake: Brake) -> Decided {
    if !brake.holds() {
        return Decided::new(STORM_BRAKE, false, "FewSilent", "hosts that fall silent are fenced");
    }
    let message = format!(
        "{} hosts are silent, or were shot or came back lately (limit {}): nobody is shot without a \
         human; look for a common cause, then confirm the HostFences of those that are dead",
        brake.count, brake.limit
    );
    Decided::new(STORM_BRAKE, true, "TooManySilent", message)
}

/// Whether the policy's inequalities hold with the declared storages and hosts (safety §4).
fn valid(world: &World, policy: &AvailabilityPolicySpec) -> Decided {
    let storages = world.storages.iter().map(|(name, storage)| (name.as_str(), storage.as_ref()));
    let self_fencing = world.hosts.values().any(|host| host.spec.self_fencing);
    let problems = policy_problems(policy, storages, self_fencing);
    if problems.is_empty() {
        return Decided::new(VALID, true, "InequalitiesHold", "its inequalities hold");
    }
    Decided::new(VALID, false, "InequalitiesBroken", summary(&problems))
}

fn host_agent(world: &World, facts: &HostFacts, host: &Host, out: &mut Plan) {
    let policy = world.policy_spec();
    let agent = world.agents.get(&facts.name);
    let storages = storages::of_host(world, &facts.name, host);
    let lock = locks::agent_lock(world, &facts.name, host, &facts.uid);
    // One that was revoked too late binds still: a copy whose epoch has moved on must not go on.
    let dead_boots = world
        .fences
        .values()
        .filter(|f| f.spec.host == facts.name && fencing::binds(world, f))
        .map(|f| BootReference {
            host_uid: f.spec.host_uid.clone(),
            boot_id: f.spec.boot_id.clone(),
        })
        .collect();
    let spec = HostAgentSpec {
        host_uid: facts.uid.clone(),
        heartbeat_seconds: policy.heartbeat_seconds,
        storages,
        exports: crate::exports::of_host(world, &facts.name),
        lock,
        // Without a watchdog there is nothing to arm, and elapsed time never proves anything.
        arm: host.spec.self_fencing
            && facts.needed
            && policy.automation == Automation::Active
            && agent.and_then(|a| a.status.as_ref()).is_some_and(|s| s.watchdog),
        self_fence: policy.self_fence.clone(),
        api_loss: policy.api_loss,
        api_loss_seconds: policy.api_loss_seconds,
        shutdown_limit_seconds: policy.host_shutdown_limit_seconds,
        dead_boots,
        lineage: None,
        migration: identity(world, facts, host, agent.map(AsRef::as_ref), out),
        consoles: consoles::of_host(world, host),
    };
    if agent.is_none_or(|a| a.spec != spec) {
        out.intents.push(Intent::WriteHostAgent {
            host: facts.name.clone(),
            spec,
            replaces: agent.map(|a| basis(&a.metadata)),
        });
    }
}

fn host_status(world: &World, facts: &HostFacts, host: &Host, brake: Brake) -> Report<HostStatus> {
    let old = host.status.clone().unwrap_or_default();
    let agent = world.agents.get(&facts.name);
    let report = agent.and_then(|a| a.status.as_ref());
    // Ages change every second; they are stored as of the last change of state.
    let evidence = if old.printable_status == facts.state && !old.evidence.is_empty() {
        old.evidence
    } else {
        facts
            .evidence
            .iter()
            .map(|(path, age, observer)| Evidence {
                path: path.clone(),
                age_seconds: i32::try_from(age / 1000).unwrap_or(i32::MAX),
                observer: observer.clone(),
            })
            .collect()
    };
    let status = HostStatus {
        observed_generation: host.metadata.generation.unwrap_or_default(),
        printable_status: facts.state,
        host_uid: old.host_uid.or_else(|| (!facts.uid.is_empty()).then(|| facts.uid.clone())),
        boot_id: (!facts.boot.is_empty()).then(|| facts.boot.clone()),
        capacity: report
            .map(|r| HostCapacity { cpu: r.cpu, memory: quantity::from_mib(r.memory_mib) })
            .or(old.capacity),
        evidence,
        drain: None,
        last_shot_time: if facts.shot_due { wall_time(world) } else { old.last_shot_time },
        conditions: Vec::new(),
    };
    let word = format!("{:?}", facts.state);
    let ready = match (&facts.refuses, facts.state) {
        (None, _) => Decided::new(READY, true, "Ready", "beats, and takes VMs"),
        // What the user asked for is true.
        (Some(why), HostState::Cordoned | HostState::Maintenance | HostState::Stopped) => {
            Decided::new(READY, true, word, why.clone())
        }
        (Some(why), HostState::Joining) => Decided::new(READY, None, word, why.clone()),
        (Some(why), _) => Decided::new(READY, false, word, explained(facts, why, brake)),
    };
    let alive = Decided::new(
        AGENT_ALIVE,
        facts.alive,
        if facts.alive { "Beats" } else { "Silent" },
        if facts.alive { "its agent renews its Lease" } else { "its agent's Lease is not renewed" },
    );
    let tested = host.spec.fencing.iter().any(|level| {
        !level.devices.is_empty()
            && level.devices.iter().all(|d| {
                world
                    .fence_devices
                    .get(d)
                    .and_then(|d| d.status.as_ref())
                    .is_some_and(|s| s.trusted_hosts.contains(&facts.name))
            })
    });
    let fencing = if tested {
        Decided::new(FENCING_READY, true, "Power", "its plug was read on while it was beating")
    } else if !host.spec.fencing.is_empty() {
        Decided::new(
            FENCING_READY,
            false,
            "Untested",
            "no level of its fence devices has read its plug on; see the FenceDevices' conditions",
        )
    } else if host.spec.self_fencing && report.is_some_and(|r| !r.watchdog) {
        Decided::new(
            FENCING_READY,
            false,
            "NoWatchdog",
            "it declares selfFencing and has no watchdog: if it fails, its VMs wait for a human's \
             word; give it a watchdog, or spec.fencing",
        )
    } else if host.spec.self_fencing
        && agent.is_some_and(|a| a.spec.arm)
        && report.is_some_and(|r| !r.armed)
    {
        Decided::new(
            FENCING_READY,
            false,
            "NotArmed",
            "its watchdog was ordered to be armed and is not: see status.problems of its HostAgent",
        )
    } else if host.spec.self_fencing {
        Decided::new(FENCING_READY, true, "SelfFencing", "it resets itself when it is cut off")
    } else {
        Decided::new(
            FENCING_READY,
            false,
            "NoFencing",
            "if this host fails, its VMs wait for a human's word: give it spec.fencing",
        )
    };
    let stalled = match world.namespaces.get(&facts.name) {
        Some(ns) if ns.terminating => {
            Decided::new(STALLED, true, "NamespaceTerminating", "its namespace is being deleted")
        }
        Some(ns) if !ns.ours => Decided::new(
            STALLED,
            true,
            "NamespaceTaken",
            "a namespace of that name exists without our label; rename the host or the namespace",
        ),
        _ => Decided::new(STALLED, false, "NotStalled", ""),
    };
    Report { status, conditions: vec![ready, alive, fencing, stalled] }
}

/// The time of this plan as the API writes it.
fn wall_time(world: &World) -> Option<Time> {
    Timestamp::from_second(world.wall_seconds).ok().map(Time)
}

/// Why a host is not Ready, in a sentence that says what comes next.
fn explained(facts: &HostFacts, why: &str, brake: Brake) -> String {
    let fence = host_fence_name(&facts.name, &facts.boot);
    match facts.state {
        HostState::Suspect => "has missed beats; its power is read if it can be".to_owned(),
        HostState::Isolated => {
            "is silent to the API but alive on storage: its VMs run on there".to_owned()
        }
        HostState::Lost => {
            "is silent on every path; its VMs wait for proof that it is dead".to_owned()
        }
        HostState::Fencing => {
            format!("is silent, and its power is being cut; see HostFence {fence}")
        }
        HostState::AwaitingProof if brake.holds() => format!(
            "is silent with too many others ({} of {} hosts count) for anyone to be shot without a \
             human: its VMs wait for the cause to be mended, or for a word on HostFence {fence}",
            brake.count, brake.limit
        ),
        HostState::AwaitingProof => format!(
            "is silent, and nothing proves it dead by itself: its VMs wait for a human's word; see \
             HostFence {fence}"
        ),
        HostState::Fenced => {
            let proof = facts.proof.map(|proof| format!(" ({proof:?})")).unwrap_or_default();
            format!("its last boot is proven dead{proof}; give it power and it joins again")
        }
        _ => why.to_owned(),
    }
}
