//! Certificates for live moves: for which names a host's are signed, and when.
//!
//! The keys are the host's own and never leave it. What goes over the API is a request and the
//! signed answer; whom a certificate names is what the Host declares, never what the request says,
//! so that an agent can only ever become itself.
//!
//! ```text
//! Alone ─due or asked─► Announced ─all hosts believe both─► Parting ─all show the new one's─► Alone
//!  signs: old            old                                 new                               new
//!  believed: old         old, new                            new, old                          new
//! ```
//! A host that is silent is not waited for: what it holds is put right before it moves anything.

use stockade_crds::v1alpha1::{Host, HostAgent, MoveIdentity};

use crate::ha::host_state::HostFacts;
use crate::plan::{Intent, Plan};
use crate::world::World;

/// How far one authority's taking over from another is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AuthorityStage {
    /// One signs and is believed.
    #[default]
    Alone,
    /// The next is believed too.
    Announced,
    /// The next signs; the last is still believed.
    Parting,
}

/// The authority, as everybody may know it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Authority {
    /// How far it is.
    pub stage: AuthorityStage,
    /// Who is believed, PEM.
    pub trusted: String,
    /// Who signs, PEM.
    pub signer: String,
    /// When another takes over: seconds since the Unix epoch.
    pub due_seconds: i64,
    /// A person has asked for another.
    pub asked: bool,
}

/// The next step of a change-over, once every host is ready for it.
pub(crate) fn plan(world: &World, hosts: &[HostFacts], out: &mut Plan) {
    let asks = |host: &HostFacts| {
        let report = world.agents.get(&host.name).and_then(|a| a.status.as_ref());
        report.is_some_and(|r| r.move_requests.is_some())
    };
    if !hosts.iter().any(asks) {
        return;
    }
    let Some(authority) = &world.authority else {
        out.intents.push(Intent::ReadAuthority);
        return;
    };
    let goes_on = match authority.stage {
        AuthorityStage::Alone => authority.asked || world.wall_seconds >= authority.due_seconds,
        AuthorityStage::Announced | AuthorityStage::Parting => {
            hosts.iter().filter(|h| h.alive && asks(h)).all(|h| follows(world, &h.name, authority))
        }
    };
    if goes_on {
        out.intents.push(Intent::ChangeAuthority { from: authority.stage });
    }
}

/// Whether what this authority says is in force on a host.
fn follows(world: &World, host: &str, authority: &Authority) -> bool {
    let agent = world.agents.get(host);
    let ordered = agent.and_then(|a| a.spec.migration.as_ref());
    let in_force = agent.and_then(|a| a.status.as_ref()).map(|s| s.moves_serial);
    ordered.is_some_and(|i| fits(i, authority) && in_force == Some(i.serial))
}

fn fits(identity: &MoveIdentity, authority: &Authority) -> bool {
    identity.authority == authority.trusted && identity.signer == authority.signer
}

/// Whether a host asks for certificates for live moves, and what was signed last is not in force.
pub(crate) fn unproven(world: &World, host: &str) -> bool {
    let Some(agent) = world.agents.get(host) else { return false };
    let Some(report) = agent.status.as_ref().filter(|r| r.move_requests.is_some()) else {
        return false;
    };
    let ordered = agent.spec.migration.as_ref().map(|i| i.serial);
    // An older agent does not tell.
    let stale = report.moves_serial != 0 && ordered.is_some_and(|s| s != report.moves_serial);
    !report.moves_ready || stale
}

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
    let newest = [held, signed].into_iter().flatten().max_by_key(|i| i.serial).cloned();
    let report = agent.and_then(|a| a.status.as_ref());
    // Another machine that reports under this name gets nothing.
    let report = report.filter(|r| !facts.uid.is_empty() && r.host_uid == facts.uid);
    let Some(requests) = report.and_then(|r| r.move_requests.as_ref()) else {
        return newest;
    };
    let names = names(&facts.name, host);
    let holds = newest.as_ref().is_some_and(|i| {
        i.requests == *requests
            && i.names == names
            && world.wall_seconds < i.renew_at_seconds
            && world.authority.as_ref().is_none_or(|authority| fits(i, authority))
    });
    if !holds {
        let (host, requests) = (facts.name.clone(), requests.clone());
        let above = newest.as_ref().map_or(0, |i| i.serial);
        out.intents.push(Intent::SignIdentity { host, requests, names, above });
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
                serial: renew_at_seconds,
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

    fn authority(stage: AuthorityStage, trusted: &str, signer: &str) -> Authority {
        let (trusted, signer) = (trusted.to_owned(), signer.to_owned());
        Authority { stage, trusted, signer, due_seconds: 1_000, asked: false }
    }

    /// Hosts h1 to h3: the first two are alive, and hold what was signed with these.
    fn cluster(authority: Authority, held: [(&str, &str, bool); 2]) -> (World, Vec<HostFacts>) {
        let mut world = World { wall_seconds: 100, ..World::default() };
        world.authority = Some(authority);
        let mut facts = Vec::new();
        for (index, name) in ["h1", "h2", "h3"].into_iter().enumerate() {
            let mut c = case();
            let (trusted, signer, in_force) = held.get(index).copied().unwrap_or_default();
            let mut identity = c.hold("a", 1_000);
            identity.authority = trusted.into();
            identity.signer = signer.into();
            c.agent.spec.migration = Some(identity);
            c.agent.status.as_mut().unwrap().moves_ready = true;
            c.agent.status.as_mut().unwrap().moves_serial = if in_force { 1_000 } else { 7 };
            world.agents.insert(name.into(), std::sync::Arc::new(c.agent));
            let alive = index < 2;
            facts.push(HostFacts { name: name.into(), alive, ..HostFacts::default() });
        }
        (world, facts)
    }

    fn steps(world: &World, facts: &[HostFacts]) -> Vec<Intent> {
        let mut out = Plan::default();
        plan(world, facts, &mut out);
        out.intents
    }

    #[test]
    fn an_authority_takes_over_step_by_step_once_every_living_host_follows() {
        use AuthorityStage::{Alone, Announced, Parting};
        let change = |from| vec![Intent::ChangeAuthority { from }];
        let old = ("old", "old", true);
        let (mut w, f) = cluster(authority(Alone, "old", "old"), [old, old]);
        assert!(steps(&w, &f).is_empty());
        w.authority.as_mut().unwrap().asked = true;
        assert_eq!(steps(&w, &f), change(Alone), "a person asked");
        w.authority.as_mut().unwrap().asked = false;
        w.wall_seconds = 1_000;
        assert_eq!(steps(&w, &f), change(Alone), "it is due");

        let both = |in_force| ("old new", "old", in_force);
        let (w, f) = cluster(authority(Announced, "old new", "old"), [both(true), old]);
        assert!(steps(&w, &f).is_empty(), "h2 was not told yet");
        let (w, f) = cluster(authority(Announced, "old new", "old"), [both(true), both(false)]);
        assert!(steps(&w, &f).is_empty(), "it is not in force on h2 yet");
        let (w, f) = cluster(authority(Announced, "old new", "old"), [both(true), both(true)]);
        assert_eq!(steps(&w, &f), change(Announced), "h3 is silent, and is not waited for");

        let new = ("new old", "new", true);
        let (w, f) = cluster(authority(Parting, "new old", "new"), [new, both(true)]);
        assert!(steps(&w, &f).is_empty(), "h2 shows what the old one signed");
        let (w, f) = cluster(authority(Parting, "new old", "new"), [new, new]);
        assert_eq!(steps(&w, &f), change(Parting));

        let (mut w, f) = cluster(authority(Alone, "new", "new"), [new, new]);
        w.authority = None;
        assert_eq!(steps(&w, &f), [Intent::ReadAuthority]);
    }

    #[test]
    fn another_authority_means_another_signature_and_no_move_before_it_is_in_force() {
        let mut c = case();
        let mut held = c.hold("a", 1_000);
        (held.authority, held.signer) = ("old".into(), "old".into());
        c.agent.spec.migration = Some(held);
        c.world.authority = Some(authority(AuthorityStage::Alone, "old", "old"));
        assert!(!c.plan().0);
        c.world.authority = Some(authority(AuthorityStage::Announced, "old new", "old"));
        assert!(c.plan().0, "another is believed");
        c.world.authority = Some(authority(AuthorityStage::Parting, "old", "new"));
        assert!(c.plan().0, "another signs");
        let new = ("n", "n", true);
        let (w, _) = cluster(authority(AuthorityStage::Alone, "n", "n"), [new, ("n", "n", false)]);
        assert!(!unproven(&w, "h1") && unproven(&w, "h2") && !unproven(&w, "nobody"));
    }

    #[test]
    fn another_machine_under_the_hosts_name_gets_no_certificate() {
        let mut c = case();
        c.facts.uid = "u2".into();
        assert_eq!(c.plan(), (false, None));
    }
}
