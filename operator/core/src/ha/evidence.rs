//! Signs of life, and how long each path has been silent (safety §7).
//!
//! A beat counts by change, on the reader's monotonic clock; what it says of
//! time is ignored. Silence counts only while the observer itself is well: a
//! stretch of silence begins at the last change or at the moment since which
//! the observer has been well without a break, whichever is later.

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
    /// By storage: the last beat anyone saw, and when it changed.
    pub storage: BTreeMap<String, (SeenBeat, Millis)>,
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
            for (uid, seen_beat) in seen {
                let Some(target) = self.uids.get(uid) else { continue };
                let life = self.hosts.entry(target.clone()).or_default();
                match life.storage.get_mut(storage) {
                    None => {
                        life.storage.insert(storage.clone(), (seen_beat.clone(), now));
                        life.boots.entry(seen_beat.boot.clone()).or_insert(now);
                        news = true;
                    }
                    Some((known, at)) => {
                        let newer = if known.boot == seen_beat.boot {
                            seen_beat.counter > known.counter
                        } else {
                            // Another boot is news only if it was not seen before: a late
                            // reader may still report the old one.
                            !life.boots.contains_key(&seen_beat.boot)
                                || life.lease.boot_id == seen_beat.boot
                        };
                        if newer {
                            news |= now.saturating_sub(*at) > limit || known.boot != seen_beat.boot;
                            life.boots.entry(seen_beat.boot.clone()).or_insert(now);
                            *known = seen_beat.clone();
                            *at = now;
                            if let Some(at) = looked.get(storage) {
                                let sure = (seen_beat.boot.clone(), *at);
                                life.storage_sure.insert(storage.clone(), sure);
                            }
                            let changes = life.storage_changes.entry(storage.clone()).or_default();
                            *changes = changes.saturating_add(1);
                        }
                    }
                }
            }
        }
        if let Some(life) = self.hosts.get_mut(host) {
            life.lease = beat;
        }
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

    /// Milliseconds that a host has been silent on a storage, and who says so; `None` if nobody
    /// who is well looks, or if it never beat there.
    #[must_use]
    pub fn storage_silence(
        &self,
        host: &str,
        storage: &str,
        now: Millis,
        observers: Option<&Observers<'_>>,
    ) -> Option<(Millis, String)> {
        let (_, last) = self.hosts.get(host)?.storage.get(storage)?;
        let Some(observers) = observers else {
            return Some((now.saturating_sub(*last), "controller".to_owned()));
        };
        let (since, name) = observers.0.get(storage)?.iter().find(|(_, name)| *name != host)?;
        Some((now.saturating_sub((*last).max(*since)), (*name).to_owned()))
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
            .filter(|(storage, (beat, _))| {
                beat.boot == boot_id && life.storage_changes.contains_key(*storage)
            })
            .map(|(_, (_, at))| *at)
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
            ((*uid).to_owned(), SeenBeat { boot: "b".to_owned(), counter: *counter })
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

    #[test]
    fn who_looks_longest_at_a_storage_says_how_long_another_is_silent() {
        let mut lives = Lives { limit: 5_000, echo_since: Some(0), ..Lives::default() };
        lives.echo_at = Some(20_000);
        for (name, since) in [("h1", 3_000), ("h2", 1_000), ("h3", 9_000)] {
            let echo = OwnEcho { counter: 9, at: 19_000, since };
            let life = Life {
                lease_at: Some(19_000),
                lease_fresh_since: Some(0),
                storage: [("vms".to_owned(), (SeenBeat::default(), 500))].into(),
                own_fresh: [("vms".to_owned(), echo)].into(),
                ..Life::default()
            };
            lives.hosts.insert(name.to_owned(), life);
        }
        let observers = lives.observers(20_000);
        let silence = |host: &str| lives.storage_silence(host, "vms", 20_000, Some(&observers));
        assert_eq!(silence("h1"), Some((19_000, "h2".to_owned())));
        assert_eq!(silence("h2"), Some((17_000, "h1".to_owned())), "nobody observes itself");
        let unwell = lives.observers(26_000);
        assert_eq!(lives.storage_silence("h1", "vms", 26_000, Some(&unwell)), None);
    }
}
