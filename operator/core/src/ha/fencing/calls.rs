//! What the log says of a host's fence devices: which calls count, and which rounds failed.

use stockade_crds::names::host_fence_name;
use stockade_crds::v1alpha1::{FenceAction, FenceDevice, FenceLevel};

use crate::ha::host_state::HostFacts;
use crate::world::{FenceRecord, FenceResult, Millis, World};

pub(super) fn levels<'a>(world: &'a World, facts: &HostFacts) -> &'a [FenceLevel] {
    world.hosts.get(&facts.name).map_or(&[], |h| h.spec.fencing.as_slice())
}

/// A device and its plug for a host, if both are of use: a plug that read off for a beating host
/// proves nothing, and an order through it may cut the power of another machine (safety §3).
pub(super) fn device<'a>(
    world: &'a World,
    name: &str,
    host: &str,
) -> Option<(&'a FenceDevice, String)> {
    let device = world.fence_devices.get(name)?.as_ref();
    let plug = device.spec.plugs.get(host)?;
    (!world.guards.plug_trust || !is_untrusted(device, host)).then(|| (device, plug.clone()))
}

/// Whether a device's plug read off while its host was beating, and was not tested since.
pub(super) fn is_untrusted(device: &FenceDevice, host: &str) -> bool {
    device.status.as_ref().is_some_and(|s| s.untrusted_hosts.iter().any(|h| h == host))
}

/// The calls that count: of this boot, begun while every path was already silent.
pub(super) fn calls<'a>(
    world: &'a World,
    facts: &HostFacts,
    device: &str,
    since: Millis,
) -> Vec<&'a FenceRecord> {
    world
        .fence_log
        .iter()
        .filter(|c| {
            c.device == device
                && c.host == facts.name
                && c.boot_id == facts.boot
                && c.started >= since
        })
        .collect()
}

/// Since when calls count for a host: every path silent, or, for a host that was shot while it
/// lived (isolated, or a VM that would not die), since its certificate was opened.
pub(super) fn counts_since(world: &World, facts: &HostFacts) -> Millis {
    let name = host_fence_name(&facts.name, &facts.boot);
    let open = world.seen_since.get(&format!("fence-open/{name}")).copied();
    match (facts.silent_since, open) {
        (Some(silent), Some(open)) => silent.min(open),
        (Some(silent), None) => silent,
        (None, open) => open.unwrap_or(world.now),
    }
}

/// The first reading of off that had ended when an off order was given.
pub(super) fn read_off_before<'a>(
    calls: &[&'a FenceRecord],
    off: &FenceRecord,
) -> Option<&'a FenceRecord> {
    let reads_off = |c: &&FenceRecord| {
        c.action == FenceAction::Status
            && c.result == FenceResult::Off
            && c.finished.is_some_and(|end| end <= off.started)
    };
    calls.iter().copied().find(reads_off)
}

/// Whether nobody knows what an off order did: it and a reading failed, or two readings did.
pub(super) fn unread(off: &FenceRecord, reads: &[&FenceRecord]) -> bool {
    let failed = |r: &FenceRecord| matches!(r.result, FenceResult::Failed(_));
    let dead = reads.iter().filter(|r| failed(r)).count() + usize::from(failed(off));
    dead >= 2
}

/// When the last of `rounds` off orders was done that the device carried out by its own word and
/// after which it read on all the same; `None`: there were fewer. One more would not help, and
/// would end the boot of whoever switched the host on by hand.
pub(super) fn obeyed_in_vain(calls: &[&FenceRecord], rounds: usize) -> Option<Millis> {
    let offs = calls.iter().filter(|c| c.action == FenceAction::Off);
    let vain: Vec<Millis> = offs
        .filter(|off| !matches!(off.result, FenceResult::Failed(_)))
        .filter_map(|off| {
            let done = off.finished?;
            let on = |c: &&&FenceRecord| {
                c.action == FenceAction::Status && c.started >= done && c.result == FenceResult::On
            };
            calls.iter().any(|c| on(&c)).then_some(done)
        })
        .collect();
    vain.last().copied().filter(|_| vain.len() >= rounds)
}

/// How a device answers at present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answers {
    /// Its last calls did not both fail.
    Well,
    /// They did.
    Not,
    /// They did, and it has read on since that moment. `dark`: it was without an answer for so long
    /// that somebody may have switched it on together with its host.
    Again { since: Millis, dark: bool },
}

/// A device that is there refuses at once; what takes longer is no answer.
const NO_ANSWER_MILLIS: Millis = 3_000;

/// What the last calls say of a device. It was dark if nothing answered for at least `long`.
pub(super) fn answers(calls: &[&FenceRecord], long: Millis) -> Answers {
    let done: Vec<&FenceRecord> = calls.iter().copied().filter(|c| c.finished.is_some()).collect();
    let reads_on =
        |c: &&FenceRecord| c.action == FenceAction::Status && c.result == FenceResult::On;
    let failed = |c: &&FenceRecord| matches!(c.result, FenceResult::Failed(_));
    let end = |c: &FenceRecord| c.finished.unwrap_or(c.started);
    let before_on = done.len() - done.iter().rev().take_while(|c| reads_on(c)).count();
    let (past, on) = done.split_at(before_on);
    let failures: Vec<&FenceRecord> = past.iter().rev().copied().take_while(failed).collect();
    let (Some(last), Some(first)) = (failures.first(), failures.last()) else {
        return Answers::Well;
    };
    if failures.len() < 2 {
        return Answers::Well;
    }
    let silent = failures.iter().all(|c| end(c) >= c.started + NO_ANSWER_MILLIS);
    let dark = silent && end(last) >= first.started + long;
    on.first().map_or(Answers::Not, |c| Answers::Again { since: c.started, dark })
}

/// Failed rounds: off orders whose device did not read off afterwards.
pub(super) fn failed_rounds(calls: &[&FenceRecord]) -> (usize, Option<Millis>) {
    let mut rounds = 0;
    let mut last = None;
    for off in calls.iter().filter(|c| c.action == FenceAction::Off) {
        let Some(done) = off.finished else { continue };
        let reads =
            calls.iter().copied().filter(|c| c.action == FenceAction::Status && c.started >= done);
        let reads: Vec<_> = reads.collect();
        let answered_on = reads.iter().any(|r| r.result == FenceResult::On);
        if answered_on || unread(off, &reads) {
            rounds += 1;
            last = reads.iter().filter_map(|r| r.finished).max();
        }
    }
    (rounds, last)
}

/// Hosts that one device reads off at present: a chassis manager may lie for all of them.
pub(super) fn off_by_one_device(world: &World, device: &str) -> usize {
    let mut hosts: Vec<&str> = world
        .fence_log
        .iter()
        .filter(|c| {
            c.device == device
                && c.result == FenceResult::Off
                && world.now.saturating_sub(c.started) < 60_000
        })
        .map(|c| c.host.as_str())
        .collect();
    hosts.sort_unstable();
    hosts.dedup();
    hosts.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(action: FenceAction, at: Millis, result: FenceResult) -> FenceRecord {
        FenceRecord {
            device: "bmc".into(),
            host: "h1".into(),
            boot_id: "b".into(),
            generation: 1,
            action,
            acts: true,
            started: at,
            finished: Some(at + 500),
            result,
        }
    }

    fn failed() -> FenceResult {
        FenceResult::Failed("no answer".into())
    }

    #[test]
    fn an_order_that_is_obeyed_and_read_on_twice_was_in_vain() {
        let (off, read) = (FenceAction::Off, FenceAction::Status);
        let log = [
            call(off, 0, FenceResult::Done),
            call(read, 1_000, FenceResult::On),
            call(off, 20_000, failed()),
            call(read, 21_000, FenceResult::On),
            call(off, 40_000, FenceResult::Done),
            call(read, 41_000, FenceResult::On),
        ];
        let log: Vec<&FenceRecord> = log.iter().collect();
        assert_eq!(obeyed_in_vain(&log[..4], 2), None, "an order that failed may be tried again");
        assert_eq!(obeyed_in_vain(&log[..5], 2), None, "not read yet");
        assert_eq!(obeyed_in_vain(&log, 2), Some(40_500));
    }

    #[test]
    fn a_device_that_gave_no_answer_for_long_was_dark_and_one_that_refused_was_not() {
        let (off, read) = (FenceAction::Off, FenceAction::Status);
        let slow =
            |action, at| FenceRecord { finished: Some(at + 10_000), ..call(action, at, failed()) };
        let on = |at| call(read, at, FenceResult::On);
        let log = [slow(off, 0), slow(read, 20_000), slow(read, 60_000), on(75_000), on(85_000)];
        let log: Vec<&FenceRecord> = log.iter().collect();
        assert_eq!(answers(&log[..1], 60_000), Answers::Well, "one failure");
        assert_eq!(answers(&log[..3], 60_000), Answers::Not);
        let again = |dark| Answers::Again { since: 75_000, dark };
        assert_eq!(answers(&log, 60_000), again(true));
        assert_eq!(answers(&log, 90_000), again(false), "not for long");
        assert_eq!(answers(&log[3..], 60_000), Answers::Well, "it never failed");
        let refused = [call(off, 0, failed()), call(read, 60_000, failed()), on(75_000)];
        let refused: Vec<&FenceRecord> = refused.iter().collect();
        assert_eq!(answers(&refused, 60_000), again(false), "it was there, and refused");
    }
}
