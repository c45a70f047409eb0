//! What this host sees of the others' beats on a storage, and since when (safety §7).
//!
//! Times are this host's monotonic clock, so that no jump of a wall clock makes a silence longer.
//! A look that takes long, or an agent that was stopped meanwhile, dates a beat later than it was
//! made, never earlier.

use std::collections::BTreeMap;

use stockade_host::ports::Beat;

/// On a storage with no more beats than these each is looked at twice in an interval: what one
/// reader sees late is seen by few others then, and looking costs little.
const FEW: usize = 8;
/// Pause between two looks at least, in milliseconds.
const SHORTEST: u64 = 50;

/// A beat, and when a look at it as it is had first ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) beat: Beat,
    pub(crate) since: u64,
}

/// One look at the beats on a storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// When it began.
    pub(crate) began: u64,
    /// By host uid.
    pub(crate) beats: BTreeMap<String, Seen>,
}

impl Look {
    /// The look after this one, which found these beats.
    pub(crate) fn followed_by(&self, beats: BTreeMap<String, Beat>, began: u64, now: u64) -> Self {
        let seen = |(uid, beat): (String, Beat)| {
            let since = self.beats.get(&uid).filter(|s| s.beat == beat).map_or(now, |s| s.since);
            (uid, Seen { beat, since })
        };
        Self { began, beats: beats.into_iter().map(seen).collect() }
    }

    /// For how long a beat had stood there unchanged when this look began.
    pub(crate) fn still(&self, seen: &Seen) -> u64 {
        self.began.saturating_sub(seen.since)
    }

    /// Whose beats are missed: an interval and a half have passed without one.
    pub(crate) fn missed(&self, interval: u64) -> impl Iterator<Item = &str> {
        let late = move |seen: &Seen| self.still(seen) >= late(interval);
        self.beats.iter().filter(move |(_, seen)| late(seen)).map(|(uid, _)| uid.as_str())
    }

    /// Milliseconds until the next look: no later than when the first beat would be missed.
    pub(crate) fn next(&self, interval: u64, now: u64) -> u64 {
        let regular = if self.beats.len() <= FEW { interval / 2 } else { interval };
        let late = late(interval);
        let waiting = self.beats.values().filter(|seen| self.still(seen) < late);
        let first = waiting.map(|seen| (seen.since + late).saturating_sub(now)).min();
        first.map_or(regular, |first| first.clamp(SHORTEST, regular))
    }
}

fn late(interval: u64) -> u64 {
    interval + interval / 2
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beats(hosts: usize, counter: u64) -> BTreeMap<String, Beat> {
        let beat = |host: usize| {
            let uid = format!("u{host}");
            (uid.clone(), Beat { host_uid: uid, boot_id: "b".into(), counter, lineage: 0 })
        };
        (0..hosts).map(beat).collect()
    }

    #[test]
    fn a_beat_is_dated_by_the_end_of_the_look_that_found_it_and_the_next_by_its_beginning() {
        let first = Look::default().followed_by(beats(1, 1), 1_000, 1_400);
        let second = first.followed_by(beats(1, 1), 3_000, 3_900);
        let stood = |look: &Look| look.still(&look.beats["u0"]);
        assert_eq!((stood(&first), stood(&second)), (0, 1_600), "never longer than it was seen");
        assert_eq!(stood(&second.followed_by(beats(1, 2), 4_000, 4_001)), 0, "it rose");
        let stopped = second.followed_by(beats(1, 2), 4_000, 90_000);
        assert_eq!(stopped.beats["u0"].since, 90_000, "an agent that was stopped dates it late");
    }

    #[test]
    fn a_beat_is_missed_after_an_interval_and_a_half_and_looked_at_in_time() {
        for (hosts, regular) in [(FEW, 1_000), (FEW + 1, 2_000)] {
            let first = Look::default().followed_by(beats(hosts, 1), 0, 0);
            assert_eq!(first.next(2_000, 0), regular);
            let second = first.followed_by(beats(hosts, 1), 2_100, 2_100);
            assert_eq!(second.missed(2_000).count(), 0);
            assert_eq!(second.next(2_000, 2_100), 900);
            let third = second.followed_by(beats(hosts, 1), 3_000, 3_000);
            assert_eq!(third.missed(2_000).count(), hosts);
            assert_eq!(third.next(2_000, 3_000), regular, "what is missed already hurries nobody");
        }
    }
}
