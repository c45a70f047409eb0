//! Whether the API's history is one and the same (safety §2.9).
//!
//! An API server that was restored from a backup, or built anew, has forgotten placements and
//! certificates. So one Lease carries a counter that is raised before each of them; hosts journal
//! the highest they were given and say it with each heartbeat. Whoever knows more than the API
//! shows that the API went back.

use stockade_crds::conditions::{Decided, HISTORY_INTACT};
use stockade_crds::v1alpha1::{Automation, Lineage};

use crate::ha::host_state::HostFacts;
use crate::plan::{Intent, Plan};
use crate::world::World;

/// Reason of the condition while the API has gone back and nobody has resumed.
const WENT_BACK: &str = "WentBack";
/// Reason of the condition from the resumption until every host was heard.
const TAKING_STOCK: &str = "TakingStock";

/// Who knows a history that the API has forgotten, and how far it went; `None`: nobody does.
///
/// A history under another uid counts no more once a person has named the new one.
#[must_use]
pub fn went_back(world: &World) -> Option<(&str, &Lineage)> {
    let now = world.lineage.as_ref().filter(|_| world.guards.lineage)?;
    let resumed = world
        .policy
        .as_ref()
        .and_then(|p| p.spec.resume_from.as_ref())
        .is_some_and(|from| from.uid == now.uid);
    world
        .lineages
        .iter()
        .map(|(who, known)| (who.as_str(), known))
        .filter(
            |(_, known)| {
                if known.uid == now.uid { known.counter > now.counter } else { !resumed }
            },
        )
        .max_by_key(|(_, known)| known.counter)
}

/// Whether nothing is fenced, started, stopped or moved: a person has said so, or the API went
/// back. Watchdogs stay as the policy has them.
#[must_use]
pub fn is_paused(world: &World) -> bool {
    world.policy_spec().automation == Automation::Paused || went_back(world).is_some()
}

/// Why nothing is placed though automation goes on: after a resumption every declared host is
/// heard first, or proven dead.
#[must_use]
pub fn taking_stock(world: &World, hosts: &[HostFacts]) -> Option<String> {
    if !was_broken(world) {
        return None;
    }
    let unheard: Vec<&str> = hosts
        .iter()
        .filter(|h| !h.uid.is_empty())
        .filter(|h| !h.alive && h.proof.is_none() && !h.went_down_cleanly)
        .map(|h| h.name.as_str())
        .collect();
    (!unheard.is_empty()).then(|| {
        let names = unheard.join(", ");
        format!("the API went back: nothing starts before {names} are heard or proven dead")
    })
}

/// Whether the policy's status says that the history was broken and is not yet whole again.
fn was_broken(world: &World) -> bool {
    world.policy.as_ref().and_then(|p| p.status.as_ref()).is_some_and(|s| {
        s.conditions.iter().any(|c| c.type_ == HISTORY_INTACT && c.status != "True")
    })
}

/// The condition on the policy; takes up a person's resumption.
pub(crate) fn report(world: &World, hosts: &[HostFacts], out: &mut Plan) -> Decided {
    let (Some((who, known)), Some(now)) = (went_back(world), &world.lineage) else {
        return match taking_stock(world, hosts) {
            Some(why) => Decided::new(HISTORY_INTACT, None, TAKING_STOCK, why),
            None => {
                Decided::new(HISTORY_INTACT, true, "Continuous", "the API remembers all orders")
            }
        };
    };
    let from = world.policy.as_ref().and_then(|p| p.spec.resume_from.as_ref());
    if from == Some(now) {
        out.intents.push(Intent::ResumeLineage { from: now.clone(), above: known.counter });
    }
    let message = format!(
        "the API is at {now}, but {who} knows {known}: it was restored or built anew; nothing is \
         fenced, started, stopped or moved. Compare what runs (kubectl get svm, virsh list on each \
         host) with what is declared, then set spec.resumeFrom to {{uid: {}, counter: {}}}",
        now.uid, now.counter
    );
    Decided::new(HISTORY_INTACT, false, WENT_BACK, message)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stockade_crds::v1alpha1::{AvailabilityPolicy, AvailabilityPolicySpec};

    use super::*;

    fn world(now: &str, known: &[(&str, &str)], resume_from: Option<&str>) -> World {
        let pair = |text: &str| text.parse().unwrap();
        let spec = AvailabilityPolicySpec {
            resume_from: resume_from.map(pair),
            ..AvailabilityPolicySpec::default()
        };
        World {
            lineage: Some(pair(now)),
            lineages: known.iter().map(|(who, text)| ((*who).to_owned(), pair(text))).collect(),
            policy: Some(Arc::new(AvailabilityPolicy::new("default", spec))),
            ..World::default()
        }
    }

    #[test]
    fn who_knows_more_than_the_api_shows_that_it_went_back() {
        let told = |w: World| went_back(&w).map(|(who, l)| format!("{who} {l}"));
        assert_eq!(told(world("a/7", &[("h1", "a/7"), ("h2", "a/3")], None)), None);
        let back = || world("a/4", &[("h1", "a/7"), ("h2", "a/5")], None);
        assert_eq!(told(back()).as_deref(), Some("h1 a/7"));
        assert!(is_paused(&back()));
        // A person's word about that very pair is taken up; it does not make h1 forget.
        let mut out = Plan::default();
        let condition = report(&world("a/4", &[("h1", "a/7")], Some("a/4")), &[], &mut out);
        assert_eq!(condition.reason, WENT_BACK);
        let from = Lineage { uid: "a".into(), counter: 4 };
        assert_eq!(out.intents, [Intent::ResumeLineage { from, above: 7 }]);
        let mut out = Plan::default();
        report(&world("a/4", &[("h1", "a/7")], Some("a/3")), &[], &mut out);
        assert_eq!(out.intents, []);
    }

    #[test]
    fn another_history_counts_until_a_person_names_the_new_one() {
        assert!(is_paused(&world("b/1", &[("h1", "a/1")], None)));
        assert!(is_paused(&world("b/1", &[("h1", "a/1")], Some("a/1"))));
        assert!(!is_paused(&world("b/1", &[("h1", "a/1")], Some("b/0"))));
    }
}
