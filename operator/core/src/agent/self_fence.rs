//! When a host feeds its watchdog and when it lets itself be reset (safety §4).

use stockade_crds::v1alpha1::SelfFence;

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
    fn a_stamp_from_the_future_is_young() {
        let stamps = Stamps { storage: Some(10), api: None };
        assert_eq!(feed(5, stamps, Some(&SelfFence::default())), Feed::Feed);
    }
}
