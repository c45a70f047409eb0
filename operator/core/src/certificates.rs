//! Certificates for live moves: for which names a host's are signed, and when.
//!
//! The keys are the host's own and never leave it. What goes over the API is a request and the
//! signed answer; whom a certificate names is what the Host declares, never what the request says,
//! so that an agent can only ever become itself.

use stockade_crds::v1alpha1::{Host, HostAgent, MoveIdentity};

use crate::ha::host_state::HostFacts;
use crate::plan::{Intent, Plan};
use crate::world::World;

/// What the host is to show its peers; orders a signature where that is due.
pub(crate) fn identity(
    world: &World,
    facts: &HostFacts,
    host: &Host,
    agent: Option<&HostAgent>,
    out: &mut Plan,
) -> Option<MoveIdentity> {
    let held = agent.and_then(|a| a.spec.migration.as_ref());
    let signed = world.identities.get(&facts.name);
    let newest = [held, signed].into_iter().flatten().max_by_key(|i| i.renew_at_seconds).cloned();
    let report = agent.and_then(|a| a.status.as_ref());
    // Another machine that reports under this name gets nothing.
    let report = report.filter(|r| !facts.uid.is_empty() && r.host_uid == facts.uid);
    let Some(requests) = report.and_then(|r| r.move_requests.as_ref()) else {
        return newest;
    };
    let names = names(&facts.name, host);
    let fits = newest.as_ref().is_some_and(|i| {
        i.requests == *requests && i.names == names && world.wall_seconds < i.renew_at_seconds
    });
    if !fits {
        let (host, requests) = (facts.name.clone(), requests.clone());
        out.intents.push(Intent::SignIdentity { host, requests, names });
    }
    newest
}

/// By which peers reach the host: its name and its declared addresses.
fn names(name: &str, host: &Host) -> Vec<String> {
    let addresses = &host.spec.addresses;
    let mut names = vec![name.to_owned()];
    for address in [&addresses.migration, &addresses.management].into_iter().flatten() {
        let bare = address.trim_start_matches('[').trim_end_matches(']').to_owned();
        if !names.contains(&bare) {
            names.push(bare);
        }
    }
    names
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use serde_json::json;
    use stockade_crds::v1alpha1::MoveRequests;

    use super::*;

    struct Case {
        world: World,
        facts: HostFacts,
        host: Host,
        agent: HostAgent,
    }

    fn requests(control: &str) -> MoveRequests {
        MoveRequests { control: control.into(), memory: "m".into() }
    }

    fn case() -> Case {
        let host = json!({"metadata": {"name": "h1"},
            "spec": {"addresses": {"migration": "10.0.0.1", "management": "h1.example"}}});
        let mut agent = HostAgent::new("agent", Default::default());
        let status = stockade_crds::v1alpha1::HostAgentStatus {
            host_uid: "u1".into(),
            move_requests: Some(requests("a")),
            ..Default::default()
        };
        agent.status = Some(status);
        Case {
            world: World { wall_seconds: 100, ..World::default() },
            facts: HostFacts { name: "h1".into(), uid: "u1".into(), ..HostFacts::default() },
            host: serde_json::from_value(host).unwrap(),
            agent,
        }
    }

    impl Case {
        fn hold(&mut self, control: &str, renew_at_seconds: i64) -> MoveIdentity {
            let names = names("h1", &self.host);
            let held = MoveIdentity {
                requests: requests(control),
                names,
                renew_at_seconds,
                ..Default::default()
            };
            self.agent.spec.migration = Some(held.clone());
            held
        }

        /// Whether a signature is ordered, and what the host shows meanwhile.
        fn plan(&self) -> (bool, Option<MoveIdentity>) {
            let mut out = Plan::default();
            let shown = identity(&self.world, &self.facts, &self.host, Some(&self.agent), &mut out);
            let signs = out.intents.iter().any(|i| matches!(i, Intent::SignIdentity { .. }));
            (signs, shown)
        }
    }

    #[test]
    fn a_certificate_names_what_the_host_declares() {
        let mut out = Plan::default();
        let c = case();
        identity(&c.world, &c.facts, &c.host, Some(&c.agent), &mut out);
        let [Intent::SignIdentity { host, names, .. }] = &out.intents[..] else { unreachable!() };
        assert_eq!(
            (host.as_str(), &names[..]),
            ("h1", &["h1", "10.0.0.1", "h1.example"].map(String::from)[..])
        );
    }

    #[test]
    fn a_certificate_is_renewed_before_it_ends_and_at_another_key_or_address() {
        let mut c = case();
        let held = c.hold("a", 101);
        assert_eq!(c.plan(), (false, Some(held.clone())));
        c.world.wall_seconds = 101;
        assert_eq!(c.plan(), (true, Some(held)), "the old one is shown until the new one is there");
        let mut c = case();
        c.hold("another key", 1_000);
        assert!(c.plan().0);
        let mut c = case();
        c.hold("a", 1_000);
        c.host.spec.addresses.migration = Some("10.0.0.9".into());
        assert!(c.plan().0);
    }

    #[test]
    fn what_was_just_signed_is_shown_and_not_signed_again() {
        let mut c = case();
        let signed = c.hold("a", 1_000);
        c.agent.spec.migration = None;
        c.world.identities.insert("h1".into(), signed.clone());
        assert_eq!(c.plan(), (false, Some(signed)));
    }

    #[test]
    fn another_machine_under_the_hosts_name_gets_no_certificate() {
        let mut c = case();
        c.facts.uid = "u2".into();
        assert_eq!(c.plan(), (false, None));
    }
}
