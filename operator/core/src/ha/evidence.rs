//! Signs of life, and how long each path has been silent (safety §7).
//!
//! A beat counts by change, on the reader's monotonic clock; what it says of
//! time is ignored. Silence counts only while the observer itself is well: a
//! stretch of silence begins at the last change or at the moment since which
//! the observer has been well without a break, whichever is later.
//!
//! A reader of a storage tells with each beat for how long it had not changed
//! when it last looked, and tells at once when that gets too long. A Lease takes
//! some time to come, so the beat was made no later than that long before: the
//! silence is dated by who saw it begin, and never too early. It runs on only
//! once a reader that saw its own beat change has looked in vain for long enough;
//! until then it is no longer than that reader has looked.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::world::Millis;

/// The beats of one storage, as one host reports them: host uid → boot and counter.
pub type SeenBeats = BTreeMap<String, SeenBeat>;

/// A beat as its reader reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SeenBeat {
    /// The boot that beats.
    pub boot: String,
    /// Rises with each beat.
    pub counter: u64,
    /// For how long it had stood there unchanged when its reader last looked, on that reader's
    /// monotonic clock; `None`: the reader does not tell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub still: Option<Millis>,
}

impl SeenBeat {
    /// Whether the same boot made this beat after that one.
    fn follows(&self, before: &Self) -> bool {
        self.boot == before.boot && self.counter > before.counter
    }
}

/// The last beat on a storage that anyone told of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LastBeat {
    /// The beat.
    pub beat: SeenBeat,
    /// When it was first told of.
    pub told: Millis,
    /// It was made no later than this.
    pub at: Millis,
    /// For how long a reader that is well has looked at it in vain.
    pub in_vain: Millis,
}

/// How long a host has been silent on a storage.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StorageSilence {
    /// Milliseconds.
    pub silence: Millis,
    /// It grows with time. If not, it is as long as somebody has looked, and grows once told.
    pub runs: bool,
    /// Milliseconds since the last beat was made, at least.
    pub age: Millis,
    /// Who says so.
    pub observer: String,
}

/// A heartbeat Lease as it was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeaseBeat {
    /// The host's uid.
    pub host_uid: String,
    /// The boot that renews.
    pub boot_id: String,
    /// resourceVersion: a change is a beat.
    pub version: String,
    /// By storage.
    pub beats: BTreeMap<String, SeenBeats>,
    /// For how long no next one is to be expected: an agent that is restarted says so.
    pub promised: Millis,
}

/// What is known of one host's life.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Life {
    /// The last Lease.
    pub lease: LeaseBeat,
    /// How often it was seen to change: the first sight may be of a dead host's Lease.
    pub lease_changes: u32,
    /// When the Lease last changed.
    pub lease_at: Option<Millis>,
    /// Since when it has beaten without a break longer than the limit.
    pub lease_fresh_since: Option<Millis>,
    /// When it last beat again in the same boot, after a break longer than the limit.
    pub returned_at: Option<Millis>,
    /// By storage: the last beat anyone saw.
    pub storage: BTreeMap<String, LastBeat>,
    /// By storage: the boot that beat last there, and a moment before which that beat was not made.
    pub storage_sure: BTreeMap<String, (String, Millis)>,
    /// By storage: how often a beat was seen to change. The first sight is none.
    pub storage_changes: BTreeMap<String, u32>,
    /// By storage: since when this host has seen its own beat there come back without a break.
    pub own_fresh: BTreeMap<String, OwnEcho>,
    /// When a boot was first seen.
    pub boots: BTreeMap<String, Millis>,
}

/// A host's own beat on a storage, as it reports it itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnEcho {
    /// Its counter.
    pub counter: u64,
    /// When that last rose.
    pub at: Millis,
    /// Since when without a break.
    pub since: Millis,
}

/// Hosts that are well, by the storage that they look at, the longest first.
#[derive(Clone, Debug, Default)]
pub struct Observers<'a>(BTreeMap<&'a str, Vec<(Millis, &'a str)>>);

/// Every host's life, and the observer's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lives {
    /// By host name.
    pub hosts: BTreeMap<String, Life>,
    /// Host names by uid.
    pub uids: BTreeMap<String, String>,
    /// When the observer's own beat last came back by the watch.
    pub echo_at: Option<Millis>,
    /// Since when it has come back without a break longer than the limit.
    pub echo_since: Option<Millis>,
    /// A gap longer than this is a break.
    pub limit: Millis,
    /// A beat is missed once it is so late: an interval and a half.
    pub late: Millis,
    /// A test takes an echo that comes late for one.
    pub any_echo: bool,
}

impl Lives {
    /// Notes the observer's own beat, come back by the watch; whether that is news: a beat that
    /// only goes on decides nothing. One that took longer than the limit says that what the watch
    /// shows is old: it is no echo (safety §7).
    pub fn echo(&mut self, sent: Millis, now: Millis) -> bool {
        if now.saturating_sub(sent) > self.limit && !self.any_echo {
            return false;
        }
        let broken = self.echo_at.is_none_or(|at| now.saturating_sub(at) > self.limit);
        if broken {
            self.echo_since = Some(now);
        }
        self.echo_at = Some(now);
        broken
    }

    /// Whether the observer reads the API fresh.
    #[must_use]
    pub fn api_fresh(&self, now: Millis) -> bool {
        self.echo_at.is_some_and(|at| now.saturating_sub(at) <= self.limit)
    }

    /// Notes a heartbeat Lease. The same version twice is no beat. Whether it is news: a boot or
    /// a path that was not known, or a beat after a pause; beats that only go on decide nothing.
    pub fn lease(&mut self, host: &str, beat: LeaseBeat, now: Millis) -> bool {
        let limit = self.limit;
        let life = self.hosts.entry(host.to_owned()).or_default();
        if life.lease.version == beat.version {
            return false;
        }
        let paused = life.lease_at.is_none_or(|at| now.saturating_sub(at) > limit / 2);
        // Up to its second beat a host is not trusted to be alive.
        let mut news = paused || life.lease_changes < 2 || life.lease.boot_id != beat.boot_id;
        let first = life.lease_at.is_none();
        life.lease_changes = life.lease_changes.saturating_add(1);
        let broken = life.lease_at.is_none_or(|at| now.saturating_sub(at) > limit);
        if broken || life.lease.boot_id != beat.boot_id {
            life.lease_fresh_since = Some(now);
        }
        if broken && !first && life.lease.boot_id == beat.boot_id {
            life.returned_at = Some(now);
        }
        // A Lease that was there before this observer came is no beat that it saw.
        life.lease_at = Some(now);
        if !first || !beat.boot_id.is_empty() {
            life.boots.entry(beat.boot_id.clone()).or_insert(now);
        }
        // When this reader last saw each storage well: what it did not see then was made later.
        let looked: BTreeMap<String, Millis> =
            life.own_fresh.iter().map(|(storage, echo)| (storage.clone(), echo.at)).collect();
        for (storage, seen) in &beat.beats {
            if let Some(own) = seen.get(&beat.host_uid) {
                let echo = life.own_fresh.entry(storage.clone()).or_insert_with(|| OwnEcho {
                    counter: own.counter,
                    at: now,
                    since: now,
                });
                if own.counter != echo.counter {
                    if now.saturating_sub(echo.at) > limit {
                        echo.since = now;
                        news = true;
                    }
                    echo.counter = own.counter;
                    echo.at = now;
                }
            }
        }
        if self.uids.get(&beat.host_uid).is_none_or(|name| name != host) {
            self.uids.retain(|_, name| name != host);
            self.uids.insert(beat.host_uid.clone(), host.to_owned());
        }
        for (storage, seen) in &beat.beats {
            // Who does not see its own beat change sees nobody's.
            let looks_well = seen.get(&beat.host_uid).and_then(|own| own.still);
            let looks_well = looks_well.is_some_and(|still| still < self.late);
            for (uid, seen_beat) in seen {
                let Some(target) = self.uids.get(uid).cloned() else { continue };
                let before = looked.get(storage).copied();
                news |= self.stored(&target, storage, seen_beat, (looks_well, before), now);
            }
        }
        if let Some(life) = self.hosts.get_mut(host) {
            life.lease = beat;
        }
        news
    }

    /// Notes a beat on a storage, as a reader tells it that looks well there or not, and that
    /// looked before at some moment. Whether it is news.
    fn stored(
        &mut self,
        host: &str,
        storage: &str,
        beat: &SeenBeat,
        (looks_well, looked): (bool, Option<Millis>),
        now: Millis,
    ) -> bool {
        let (limit, late) = (self.limit, self.late);
        let in_vain = match beat.still {
            Some(still) if looks_well => still,
            Some(_) => 0,
            None => Millis::MAX,
        };
        let new = LastBeat { beat: beat.clone(), told: now, at: now, in_vain };
        let life = self.hosts.entry(host.to_owned()).or_default();
        let Some(known) = life.storage.get_mut(storage) else {
            life.storage.insert(storage.to_owned(), new);
            life.boots.entry(beat.boot.clone()).or_insert(now);
            return true;
        };
        let other_boot = known.beat.boot != beat.boot;
        // Another boot is news only if it was not seen before: a late reader may still report
        // the old one.
        let began =
            other_boot && (!life.boots.contains_key(&beat.boot) || life.lease.boot_id == beat.boot);
        let mut news = false;
        if began || beat.follows(&known.beat) {
            news = now.saturating_sub(known.at) > limit || other_boot;
            life.boots.entry(beat.boot.clone()).or_insert(now);
            *known = new;
            if let Some(at) = looked {
                life.storage_sure.insert(storage.to_owned(), (beat.boot.clone(), at));
            }
            let changes = life.storage_changes.entry(storage.to_owned()).or_default();
            *changes = changes.saturating_add(1);
        } else if other_boot || beat.counter != known.beat.counter {
            return false;
        }
        // A reader that was cut off tells what it saw long ago; then the telling counts.
        let seen = beat.still.map(|still| now.saturating_sub(still));
        if let Some(seen) = seen.filter(|seen| seen.saturating_add(late) >= known.told) {
            known.at = known.at.min(seen);
        }
        news |= known.in_vain < late && in_vain >= late;
        known.in_vain = known.in_vain.max(in_vain);
        news
    }

    /// Milliseconds that a host has been silent to the API, for an observer who was well.
    #[must_use]
    pub fn api_silence(&self, host: &str, now: Millis, need_health: bool) -> Millis {
        let last = self.hosts.get(host).and_then(|l| l.lease_at);
        let since = if need_health {
            if !self.api_fresh(now) {
                return 0;
            }
            last.max(self.echo_since)
        } else {
            last
        };
        since.map_or(0, |s| now.saturating_sub(s))
    }

    /// Who looks at each storage now and is well: by storage, since when without a break. A host
    /// is no observer of itself, so the best two are enough for all.
    #[must_use]
    pub fn observers(&self, now: Millis) -> Observers<'_> {
        let mut all: BTreeMap<&str, Vec<(Millis, &str)>> = BTreeMap::new();
        if !self.api_fresh(now) {
            return Observers(all);
        }
        for (name, life) in &self.hosts {
            let Some(lease_at) = life.lease_at else { continue };
            if now.saturating_sub(lease_at) > self.limit {
                continue;
            }
            for (storage, echo) in &life.own_fresh {
                if now.saturating_sub(echo.at) > self.limit * 2 {
                    continue;
                }
                let since = echo
                    .since
                    .max(life.lease_fresh_since.unwrap_or(now))
                    .max(self.echo_since.unwrap_or(now));
                let best = all.entry(storage).or_default();
                best.push((since, name));
                best.sort_unstable();
                best.truncate(2);
            }
        }
        Observers(all)
    }

    /// How long a host has been silent on a storage; `None` if nobody who is well looks, or if it
    /// never beat there.
    #[must_use]
    pub fn storage_silence(
        &self,
        host: &str,
        storage: &str,
        now: Millis,
        observers: Option<&Observers<'_>>,
    ) -> Option<StorageSilence> {
        let last = self.hosts.get(host)?.storage.get(storage)?;
        let age = now.saturating_sub(last.at);
        let Some(observers) = observers else {
            let observer = "controller".to_owned();
            return Some(StorageSilence { silence: age, runs: true, age, observer });
        };
        let (since, name) = observers.0.get(storage)?.iter().find(|(_, name)| *name != host)?;
        let runs = last.in_vain >= self.late;
        let longest = if runs { Millis::MAX } else { last.in_vain };
        let silence = now.saturating_sub(last.at.max(*since)).min(longest);
        Some(StorageSilence { silence, runs, age, observer: (*name).to_owned() })
    }

    /// The last moment at which this observer saw this boot beat: a first sight may be of a
    /// beat that was made long before.
    #[must_use]
    pub fn beat_seen(&self, host: &str, boot_id: &str) -> Option<Millis> {
        let life = self.hosts.get(host)?;
        let lease =
            life.lease_at.filter(|_| life.lease.boot_id == boot_id && life.lease_changes >= 2);
        life.storage
            .iter()
            .filter(|(storage, last)| {
                last.beat.boot == boot_id && life.storage_changes.contains_key(*storage)
            })
            .map(|(_, last)| last.at)
            .chain(lease)
            .max()
    }

    /// A moment at or after which this boot lived for sure, but for `late` milliseconds that a
    /// beat takes to be seen. What is seen so soon after a break in the observer's own view may
    /// have happened during it; what a reader of a storage had not seen for long, long before.
    #[must_use]
    pub fn surely_alive_at(
        &self,
        host: &str,
        boot_id: &str,
        now: Millis,
        late: Millis,
    ) -> Option<Millis> {
        let since = self.echo_since.filter(|_| self.api_fresh(now))?;
        let life = self.hosts.get(host)?;
        let lease = (life.lease.boot_id == boot_id).then_some(life.lease_at).flatten();
        let stored = life.storage_sure.values().filter(|(boot, _)| boot == boot_id);
        stored.map(|(_, at)| *at).chain(lease).max().filter(|at| *at > since + late)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(version: u64, boot: &str, seen: &[(&str, u64)]) -> LeaseBeat {
        let beat = |(uid, counter): &(&str, u64)| {
            ((*uid).to_owned(), SeenBeat { boot: "b".to_owned(), counter: *counter, still: None })
        };
        LeaseBeat {
            host_uid: "u1".to_owned(),
            boot_id: boot.to_owned(),
            version: version.to_string(),
            beats: [("vms".to_owned(), seen.iter().map(beat).collect())].into(),
            promised: 2_000,
        }
    }

    #[test]
    fn a_beat_of_ones_own_that_comes_back_late_shows_nothing_fresh() {
        let mut lives = Lives { limit: 5_000, ..Lives::default() };
        assert!(!lives.echo(10_000, 40_000));
        assert!(!lives.api_fresh(40_000));
        assert!(lives.echo(38_000, 40_000));
        assert!(lives.api_fresh(40_000));
    }

    #[test]
    fn only_a_beat_that_goes_on_is_no_news() {
        let mut lives = Lives { limit: 5_000, ..Lives::default() };
        assert!(lives.echo(0, 0) && !lives.echo(2_000, 2_000) && lives.echo(8_000, 8_000));
        assert!(lives.lease("h1", beat(1, "b", &[("u1", 1)]), 0), "the first");
        assert!(lives.lease("h1", beat(2, "b", &[("u1", 2)]), 2_000), "now it is trusted");
        assert!(!lives.lease("h1", beat(3, "b", &[("u1", 3)]), 4_000));
        assert!(!lives.lease("h1", beat(3, "b", &[("u1", 3)]), 9_000), "no beat");
        assert!(lives.lease("h1", beat(4, "b", &[("u1", 4)]), 9_000), "after a pause");
        assert!(lives.lease("h1", beat(5, "c", &[("u1", 5)]), 10_000), "another boot");
        lives.uids.insert("u2".to_owned(), "h2".to_owned());
        assert!(lives.lease("h1", beat(6, "c", &[("u1", 6), ("u2", 1)]), 12_000), "another path");
        assert!(!lives.lease("h1", beat(7, "c", &[("u1", 7), ("u2", 2)]), 14_000));
        for (version, at) in [(8, 16_000), (9, 18_000), (10, 20_000)] {
            assert!(!lives.lease("h1", beat(version, "c", &[("u1", version), ("u2", 2)]), at));
        }
        let back = beat(11, "c", &[("u1", 11), ("u2", 3)]);
        assert!(lives.lease("h1", back, 22_000), "a silent host beats on the storage");
    }

    /// What a second host tells of the storage: its own beat, and the first host's.
    fn tell(lives: &mut Lives, now: Millis, own: (u64, Millis), other: (u64, Millis)) -> bool {
        lives.echo(now, now);
        let beat = |(counter, still)| SeenBeat { boot: "b".into(), counter, still: Some(still) };
        let seen: SeenBeats = [("u2".to_owned(), beat(own)), ("u1".to_owned(), beat(other))].into();
        let lease = LeaseBeat {
            host_uid: "u2".to_owned(),
            version: now.to_string(),
            beats: [("vms".to_owned(), seen)].into(),
            ..LeaseBeat::default()
        };
        lives.lease("h2", lease, now)
    }

    fn silence(lives: &Lives, now: Millis) -> (Millis, bool) {
        let found = lives.storage_silence("h1", "vms", now, Some(&lives.observers(now))).unwrap();
        (found.silence, found.runs)
    }

    fn observed() -> Lives {
        let mut lives = Lives { limit: 5_000, late: 3_000, ..Lives::default() };
        lives.uids.insert("u1".to_owned(), "h1".to_owned());
        tell(&mut lives, 0, (1, 0), (1, 0));
        lives
    }

    #[test]
    fn a_silence_begins_where_its_reader_saw_it_begin_and_runs_once_it_is_told() {
        let mut lives = observed();
        tell(&mut lives, 2_000, (2, 0), (2, 500));
        assert_eq!(silence(&lives, 4_400), (500, false), "nobody has looked for longer");
        tell(&mut lives, 4_000, (3, 0), (2, 2_500));
        assert_eq!(silence(&lives, 4_400), (2_500, false), "a beat may come late");
        assert!(tell(&mut lives, 4_600, (3, 600), (2, 3_100)), "a missed beat is news");
        assert_eq!(silence(&lives, 4_700), (3_200, true), "since 1,500");
        assert_eq!(silence(&lives, 6_000), (4_500, true));
        assert!(!tell(&mut lives, 6_600, (4, 0), (2, 5_000)));
        assert_eq!(silence(&lives, 7_000), (5_500, true), "a Lease that took longer says no more");
        tell(&mut lives, 7_100, (4, 500), (3, 0));
        assert_eq!(silence(&lives, 9_000), (0, false));
    }

    #[test]
    fn who_does_not_see_its_own_beat_change_proves_no_silence() {
        let mut lives = observed();
        tell(&mut lives, 2_000, (2, 0), (2, 0));
        tell(&mut lives, 6_000, (2, 4_000), (2, 4_000));
        assert_eq!(silence(&lives, 6_000), (0, false));
        tell(&mut lives, 6_500, (3, 0), (2, 4_500));
        assert_eq!(silence(&lives, 6_500), (4_500, true));
    }

    #[test]
    fn a_beat_that_is_told_long_after_it_was_seen_counts_from_when_it_was_told() {
        let mut lives = observed();
        for (at, still) in [(20_000, 11_000), (22_000, 13_000)] {
            tell(&mut lives, at, (at, 0), (2, still));
            assert_eq!(lives.hosts["h1"].storage["vms"].at, 20_000);
        }
        assert_eq!(lives.beat_seen("h1", "b"), Some(20_000), "it may have lived after a proof");
    }

    #[test]
    fn who_looks_longest_at_a_storage_says_how_long_another_is_silent() {
        let mut lives = Lives { limit: 5_000, echo_since: Some(0), ..Lives::default() };
        lives.echo_at = Some(20_000);
        let last = LastBeat { at: 500, in_vain: 19_000, ..LastBeat::default() };
        for (name, since) in [("h1", 3_000), ("h2", 1_000), ("h3", 9_000)] {
            let echo = OwnEcho { counter: 9, at: 19_000, since };
            let life = Life {
                lease_at: Some(19_000),
                lease_fresh_since: Some(0),
                storage: [("vms".to_owned(), last.clone())].into(),
                own_fresh: [("vms".to_owned(), echo)].into(),
                ..Life::default()
            };
            lives.hosts.insert(name.to_owned(), life);
        }
        let observers = lives.observers(20_000);
        let silence = |host: &str| {
            let found = lives.storage_silence(host, "vms", 20_000, Some(&observers)).unwrap();
            (found.silence, found.observer)
        };
        assert_eq!(silence("h1"), (19_000, "h2".to_owned()));
        assert_eq!(silence("h2"), (17_000, "h1".to_owned()), "nobody observes itself");
        let unwell = lives.observers(26_000);
        assert_eq!(lives.storage_silence("h1", "vms", 26_000, Some(&unwell)), None);
    }
}
