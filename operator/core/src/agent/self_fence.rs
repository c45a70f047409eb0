//! When a host feeds its watchdog and when it lets itself be reset (safety §4).

use stockade_crds::v1alpha1::SelfFence;

use crate::ha::fencing::elapsed_bound;

/// The newest acknowledged sign of life on each path: the monotonic time, in
/// milliseconds, at which it was *sent*. Arming counts as one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// The newest storage beat of any listed storage.
    pub storage: Option<u64>,
    /// The newest API renewal.
    pub api: Option<u64>,
}

/// What the feeder does now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// It feeds.
    Feed,
    /// It kills the VMs' processes and feeds no more: the host is reset.
    KillAndStop,
}

/// Decides for the time `now` (milliseconds on the clock of the stamps). `armed` holds
/// the timings in force; `None`: disarmed, it feeds whatever happens.
///
/// A feeder that once answered `KillAndStop` must not ask again: the host is reset, always.
#[must_use]
pub fn feed(now: u64, stamps: Stamps, armed: Option<&SelfFence>) -> Feed {
    let Some(timings) = armed else { return Feed::Feed };
    let stop = u64::try_from(timings.stop_seconds).unwrap_or(0).saturating_mul(1000);
    let young = |stamp: Option<u64>| stamp.is_some_and(|at| now.saturating_sub(at) < stop);
    if young(stamps.storage) || young(stamps.api) { Feed::Feed } else { Feed::KillAndStop }
}

/// The timings that a host says it is armed with. The proof counts on them, so longer ones are said
/// before they are in force, and shorter ones only then.
#[must_use]
pub fn reported(armed: &SelfFence, wanted: &SelfFence) -> SelfFence {
    if is_longer(wanted, armed) { times(wanted) } else { times(armed) }
}

/// The timings to be ordered now. `said`: what the API has acknowledged of [`reported`].
#[must_use]
pub fn next(armed: Option<&SelfFence>, wanted: &SelfFence, said: Option<&SelfFence>) -> SelfFence {
    let acknowledged = said.is_some_and(|said| times(said) == times(wanted));
    match armed {
        Some(armed) if is_longer(wanted, armed) && !acknowledged => {
            SelfFence { trust_watchdogs: wanted.trust_watchdogs.clone(), ..times(armed) }
        }
        _ => wanted.clone(),
    }
}

/// Whether a feeder is armed with other times than these.
#[must_use]
pub fn differs(armed: &SelfFence, next: &SelfFence) -> bool {
    times(armed) != times(next)
}

fn is_longer(one: &SelfFence, other: &SelfFence) -> bool {
    elapsed_bound(one) > elapsed_bound(other)
}

/// The times alone: which devices are trusted is no matter of the proof.
fn times(timings: &SelfFence) -> SelfFence {
    SelfFence { trust_watchdogs: Vec::new(), ..timings.clone() }
}

/// What softdog calls itself: it can't reset a kernel that hangs.
const SOFTWARE: &str = "Software Watchdog";

/// Why a watchdog is not relied on; `identity` is empty where there is none. `virtual_machine`: the
/// host is one itself, so that its watchdog is only as good as what runs it. `trusted` names those
/// that are relied on all the same.
#[must_use]
pub fn distrust(identity: &str, virtual_machine: bool, trusted: &[String]) -> Option<String> {
    if identity.is_empty() {
        return Some(
            "no watchdog device is there: load its driver, or give the host spec.fencing".into(),
        );
    }
    let software = identity == SOFTWARE;
    if !(software || virtual_machine) || trusted.iter().any(|name| name == identity) {
        return None;
    }
    let what = if software { "software" } else { "a virtual machine's" };
    Some(format!(
        "its watchdog {identity:?} is {what}: if it is to be relied on, name it in the policy's \
         selfFence.trustWatchdogs"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_young_stamp_keeps_the_host_alive() {
        let t = SelfFence { stop_seconds: 20, ..SelfFence::default() };
        let both = Stamps { storage: Some(100_000), api: Some(50_000) };
        assert_eq!(feed(119_999, both, Some(&t)), Feed::Feed);
        assert_eq!(feed(120_000, both, Some(&t)), Feed::KillAndStop);
        let api = Stamps { storage: None, api: Some(100_000) };
        assert_eq!(feed(119_999, api, Some(&t)), Feed::Feed);
    }

    #[test]
    fn no_stamp_at_all_is_silence() {
        assert_eq!(feed(1, Stamps::default(), Some(&SelfFence::default())), Feed::KillAndStop);
    }

    #[test]
    fn a_disarmed_host_is_never_reset() {
        assert_eq!(feed(u64::MAX, Stamps::default(), None), Feed::Feed);
    }

    #[test]
    fn longer_times_are_said_before_they_are_in_force_and_shorter_ones_only_then() {
        let of = |stop_seconds| SelfFence { stop_seconds, ..SelfFence::default() };
        let (short, long) = (of(20), of(60));
        assert_eq!(next(None, &long, None), long, "it was not armed");
        assert_eq!((reported(&short, &long), next(Some(&short), &long, None)), (of(60), of(20)));
        assert_eq!(next(Some(&short), &long, Some(&short)), short, "the API has not heard it");
        assert_eq!(next(Some(&short), &long, Some(&long)), long);
        assert_eq!((reported(&long, &short), next(Some(&long), &short, None)), (of(60), of(20)));
        let named = SelfFence { trust_watchdogs: vec!["x".into()], ..of(20) };
        assert!(!differs(&short, &named) && differs(&short, &long));
    }

    #[test]
    fn software_and_virtual_watchdogs_are_relied_on_by_name_alone() {
        let named = ["i6300ESB timer".to_owned()];
        assert_eq!(distrust("iTCO_wdt", false, &[]), None);
        assert_eq!(distrust("i6300ESB timer", true, &named), None);
        for (identity, virtual_machine, word) in [
            ("", false, "no watchdog device"),
            (SOFTWARE, false, "is software"),
            (SOFTWARE, true, "is software"),
            ("iTCO_wdt", true, "a virtual machine's"),
        ] {
            let why = distrust(identity, virtual_machine, &named).unwrap_or_default();
            assert!(why.contains(word), "{identity}: {why}");
        }
    }

    #[test]
    fn a_stamp_from_the_future_is_young() {
        let stamps = Stamps { storage: Some(10), api: None };
        assert_eq!(feed(5, stamps, Some(&SelfFence::default())), Feed::Feed);
    }
}
