//! What no system could have known: devices and people that told an untruth about a boot, and
//! until when that excuses what came of it (safety §10).

use stockade_crds::v1alpha1::DomainSpec;

use super::World;

/// An untruth is no excuse any more once the boot has renewed its Lease for so long: a placement
/// may have been under way.
const HEARD_MS: u64 = 12_000;
/// Renewals further apart are no unbroken row.
const LEASE_GAP_MS: u64 = 5_000;
/// Nor is it once the boot has beaten on the storage for so long: whoever starts in its place
/// reads that.
const BEATEN_MS: u64 = 15_000;
/// Beats further apart are no unbroken row.
const BEAT_GAP_MS: u64 = 3_500;

/// Signs of life of a boot without a gap.
#[derive(Clone, Debug, Default)]
pub struct Row {
    /// The boot.
    pub boot_id: String,
    /// When the row began.
    pub since: u64,
    /// The latest.
    pub last: u64,
}

impl Row {
    fn extend(&mut self, boot_id: &str, now: u64, gap: u64) {
        if self.boot_id != boot_id || now.saturating_sub(self.last) > gap {
            boot_id.clone_into(&mut self.boot_id);
            self.since = now;
        }
        self.last = now;
    }

    fn covers(&self, boot_id: &str, at: u64, length: u64, gap: u64) -> bool {
        self.boot_id == boot_id && self.since + length < at && at < self.last + gap
    }
}

impl World {
    /// Whether a device or a person told an untruth about a boot.
    pub(super) fn untrue(&self, host: &str, boot_id: &str) -> bool {
        let key = (host.to_owned(), boot_id.to_owned());
        self.lied.contains(&key) || self.human.contains(&key)
    }

    /// Whether the untruth about a boot excuses what a later epoch of a VM does beside it: not if
    /// the boot had been heard for long when that epoch was ordered.
    pub(super) fn excuses(&self, host: &str, boot_id: &str, uid: &str, epoch: i64) -> bool {
        let ordered = self.ordered.get(&(uid.to_owned(), epoch));
        let known = self
            .heard
            .get(host)
            .zip(ordered)
            .is_some_and(|(heard, at)| heard.covers(boot_id, *at, HEARD_MS, LEASE_GAP_MS));
        self.untrue(host, boot_id) && !known
    }

    /// Whether whoever starts this order now could read that a boot beats.
    pub(super) fn beats_beside(&self, host: &str, boot_id: &str, order: &DomainSpec) -> bool {
        let now = self.now();
        order.machine.disks.iter().any(|disk| {
            let row = self.beaten.get(&(host.to_owned(), disk.storage.clone()));
            row.is_some_and(|row| row.covers(boot_id, now, BEATEN_MS, BEAT_GAP_MS))
        })
    }

    /// A boot has renewed its Lease.
    pub fn hear(&mut self, host: &str, boot_id: &str) {
        let now = self.now();
        if !self.heard.contains_key(host) {
            self.heard.insert(host.to_owned(), Row::default());
        }
        if let Some(row) = self.heard.get_mut(host) {
            row.extend(boot_id, now, LEASE_GAP_MS);
        }
    }

    /// The boot that has last renewed its host's Lease.
    pub(super) fn last_heard(&self, host: &str) -> Option<&str> {
        self.heard.get(host).map(|row| row.boot_id.as_str())
    }

    /// A boot has written its beat to a storage. It is of interest after an untruth alone.
    pub(super) fn beaten(&mut self, host: &str, boot_id: &str, storage: &str) {
        if self.untrue(host, boot_id) {
            let now = self.now();
            let row = self.beaten.entry((host.to_owned(), storage.to_owned())).or_default();
            row.extend(boot_id, now, BEAT_GAP_MS);
        }
    }

    /// An epoch of a VM has been ordered. It is of interest after an untruth alone.
    pub fn order(&mut self, uid: &str, epoch: i64) {
        if !(self.human.is_empty() && self.lied.is_empty()) {
            let at = self.now();
            self.ordered.entry((uid.to_owned(), epoch)).or_insert(at);
        }
    }
}
