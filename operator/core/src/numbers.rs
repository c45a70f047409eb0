//! Small numbers that hosts keep for good: sanlock's host ids, o2cb's node numbers (safety §6.6).

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::world::World;

/// The numbers that are given, and one for each of these hosts that has claimed its uid and has
/// none yet: the lowest that was never given. By host uid.
///
/// None is ever taken back, not even by proof or a clean leave: what a host that is long gone may
/// still send carries a number that nobody else has. Where all are given, hosts stay without.
#[must_use]
pub fn allot<'a>(
    world: &World,
    given: &BTreeMap<String, i32>,
    hosts: impl Iterator<Item = &'a String>,
    range: RangeInclusive<i32>,
) -> BTreeMap<String, i32> {
    let mut all = given.clone();
    if !world.guards.numbers {
        let hosts = || world.hosts.values().filter_map(|host| host.status.as_ref());
        all.retain(|uid, _| hosts().any(|status| status.host_uid.as_ref() == Some(uid)));
    }
    for name in hosts {
        let status = world.hosts.get(name).and_then(|host| host.status.as_ref());
        let Some(uid) = status.and_then(|status| status.host_uid.as_ref()) else { continue };
        if all.contains_key(uid) {
            continue;
        }
        let next = range.clone().find(|number| !all.values().any(|used| used == number));
        if let Some(next) = next {
            all.insert(uid.clone(), next);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stockade_crds::v1alpha1::{Host, HostSpec, HostStatus};

    use super::*;

    fn world(hosts: &[(&str, &str)]) -> World {
        let mut world = World::default();
        for (name, uid) in hosts {
            let mut host = Host::new(name, HostSpec::default());
            let host_uid = (!uid.is_empty()).then(|| (*uid).to_owned());
            host.status = Some(HostStatus { host_uid, ..HostStatus::default() });
            world.hosts.insert((*name).to_owned(), Arc::new(host));
        }
        world
    }

    #[test]
    fn a_number_is_kept_for_good_and_never_given_twice() {
        let now = world(&[("h1", "u1"), ("h2", "u2"), ("h3", "")]);
        let first = allot(&now, &BTreeMap::new(), now.hosts.keys(), 1..=3);
        assert_eq!(first, [("u1".into(), 1), ("u2".into(), 2)].into());
        // h1 is another machine now, h2 is not declared any more.
        let now = world(&[("h1", "u9"), ("h3", "u3")]);
        let second = allot(&now, &first, now.hosts.keys(), 1..=3);
        let expected = [("u1".into(), 1), ("u2".into(), 2), ("u9".into(), 3)];
        assert_eq!(second, expected.into(), "u3 finds none left, and takes no other's");
    }
}
