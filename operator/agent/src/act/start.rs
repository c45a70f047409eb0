//! The start of an epoch: the agent's side of the gate (safety §2.5).

use std::collections::BTreeMap;

use stockade_core::agent::observed::{Order, writable_disks};
use stockade_core::agent::records::{Verdict, judge};
use stockade_core::agent::types::{Beat, JournalVm, OwnerRecord, Presence, RecordState};
use stockade_crds::names::{SEED_KEY, domain_name};
use stockade_crds::v1alpha1::{DomainSpec, End, LockReport};
use stockade_host::HostError;
use stockade_host::ports::Linked;

use super::{CALL_SECONDS, Done, release};
use crate::context::{Context, request, timed};

/// Seconds that a start may take; longer has no known result.
const START_SECONDS: u64 = 60;
/// Why nothing is started in the place of what lives.
pub(super) const BEATS_AGAIN: &str = "a boot that is named dead beats on the storage again";
/// Seconds that making a disk may take.
const DISK_SECONDS: u64 = 600;

/// Why a start did not come to be.
pub(super) enum Stop {
    /// Nothing was launched; the attempt may go on later, its epoch stays open.
    Later(String),
    /// Nothing was launched, and this epoch never will be.
    Never(End, String),
    /// It was launched and failed: nothing came of it.
    Failed(End, String),
    /// It was launched, its result is not known.
    Unknown(String),
}

/// A new journal entry for an order.
pub(super) fn entry(order: &DomainSpec, boot: &str) -> JournalVm {
    let disks = &order.machine.disks;
    JournalVm {
        epoch: order.epoch,
        boot_id: boot.to_owned(),
        order_id: order.order_id,
        disks: writable_disks(order),
        name: domain_name(&order.vm.namespace, &order.vm.name),
        reset: order.reset.clone(),
        sizes: disks.iter().map(|d| (d.path.clone(), d.size_bytes)).collect(),
        ..JournalVm::default()
    }
}

/// Obeys an order to run: returns once it runs, or once it is known that it does not.
pub(super) async fn start(context: &Context, order: &Order, done: &mut Done) -> Result<(), String> {
    let outcome = attempt(context, order, done).await;
    settle(context, order, outcome).await
}

/// Settles the epoch of an attempt that came to nothing; why it did is the error.
pub(super) async fn settle(
    context: &Context,
    order: &Order,
    outcome: Result<(), Stop>,
) -> Result<(), String> {
    let (uid, epoch) = (&order.spec.vm.uid, order.spec.epoch);
    match outcome {
        Ok(()) => Ok(()),
        Err(Stop::Later(message) | Stop::Unknown(message)) => Err(message),
        Err(Stop::Never(end, message)) => {
            release::void(context, uid, epoch, end, Some(order)).await?;
            Err(message)
        }
        Err(Stop::Failed(end, message)) => {
            match release::release(context, uid, epoch, end, false, false).await {
                Ok(()) => Err(message),
                Err(more) => Err(format!("{message}; not released: {more}")),
            }
        }
    }
}

async fn attempt(context: &Context, order: &Order, done: &mut Done) -> Result<(), Stop> {
    let guards = context.config.guards;
    let spec = &order.spec;
    let uid = spec.vm.uid.as_str();
    let before = context.journal.vm(uid);
    let resumed = before.as_ref().is_some_and(|j| {
        j.epoch == spec.epoch && j.boot_id == context.boot_id && j.open && !j.launched
    });
    let boot = context.boot_id.clone();
    context
        .journal
        .update(uid, |vm| {
            if vm.epoch > spec.epoch && guards.epoch {
                return Err(format!("epoch {} was ordered here before", vm.epoch));
            }
            let again = vm.epoch == spec.epoch && (vm.launched || vm.end.is_some());
            if again && guards.once {
                return Err(format!("epoch {} was started before", vm.epoch));
            }
            *vm = entry(spec, &boot);
            vm.open = true;
            Ok(())
        })
        .await
        .map_err(Stop::Later)?;
    let beats = dead_beats(context, spec).await?;
    let verdicts = take_records(context, spec, resumed, done).await?;
    for disk in &spec.machine.disks {
        let may_create = !verdicts.get(&disk.path).is_some_and(|v| v.ran);
        let call = context.ports.storage.ensure_disk(disk, may_create);
        timed("make disk", &disk.path, DISK_SECONDS, call)
            .await
            .map_err(|e| Stop::Never(End::StartFailed, e.to_string()))?;
    }
    ensure_seed(context, spec).await?;
    let fresh = if guards.fresh_read { still_ordered(context, order).await? } else { spec.clone() };
    if dead_beats(context, &fresh).await? != beats {
        return Err(Stop::Never(End::Refused, BEATS_AGAIN.into()));
    }
    bury(context, &verdicts).await?;
    if guards.journal_first {
        let launched = context.journal.set(uid, |vm| vm.launched = true);
        launched.await.map_err(Stop::Later)?;
    }
    launch(context, &fresh, done).await?;
    tidy(context, spec, &verdicts).await;
    Ok(())
}

/// Makes the seed image of an order, with the secret that lies in this host's namespace.
pub(super) async fn ensure_seed(context: &Context, spec: &DomainSpec) -> Result<(), Stop> {
    let uid = spec.vm.uid.as_str();
    let mut spec = spec.clone();
    if let Some(seed) = &mut spec.machine.seed
        && let Some(name) = &seed.secret
    {
        let found = request(context.secrets().get_opt(name))
            .await
            .map_err(|e| Stop::Later(format!("the seed's secret can't be read: {e}")))?;
        let text = found.and_then(|secret| secret.data?.remove(SEED_KEY));
        let text = text.and_then(|bytes| String::from_utf8(bytes.0).ok());
        let missing = || format!("this host has no secret {name} to make its seed image of");
        seed.user_data = Some(text.ok_or_else(|| Stop::Never(End::StartFailed, missing()))?);
    }
    let call = context.ports.storage.ensure_seed(&spec);
    timed("make seed", uid, CALL_SECONDS, call)
        .await
        .map_err(|e| Stop::Never(End::StartFailed, e.to_string()))
}

/// The last counters of every boot that the order names dead, on every storage it uses.
///
/// # Errors
/// A storage can't be read, or such a boot beats: its counter has risen since this agent last
/// read it, or did so only lately. What is dead fell silent long before its proof.
pub(super) async fn dead_beats(
    context: &Context,
    spec: &DomainSpec,
) -> Result<BTreeMap<String, Vec<Beat>>, Stop> {
    let dead: Vec<_> = spec.settled.iter().filter_map(|s| s.dead_boot.as_ref()).collect();
    let mut found = BTreeMap::new();
    if dead.is_empty() || !context.config.guards.dead_beats {
        return Ok(found);
    }
    for disk in &spec.machine.disks {
        if found.contains_key(&disk.storage) {
            continue;
        }
        let call = context.ports.storage.beats(&disk.storage);
        let beats = timed("read beats", &disk.storage, CALL_SECONDS, call)
            .await
            .map_err(|e| Stop::Never(End::Refused, e.to_string()))?;
        let of_dead = beats
            .into_values()
            .filter(|b| dead.iter().any(|d| d.host_uid == b.host_uid && d.boot_id == b.boot_id))
            .collect::<Vec<Beat>>();
        for beat in &of_dead {
            match context.beats_still(&disk.storage, beat) {
                Some(false) => {}
                Some(true) => return Err(Stop::Never(End::Refused, BEATS_AGAIN.into())),
                None => {
                    let why = "the beats of a boot that is named dead were not watched for long \
                               enough";
                    return Err(Stop::Later(why.into()));
                }
            }
        }
        found.insert(disk.storage.clone(), of_dead);
    }
    Ok(found)
}

/// Writes this epoch's owner record beside every writable disk, if what stands allows it.
pub(super) async fn take_records(
    context: &Context,
    spec: &DomainSpec,
    resumed: bool,
    done: &mut Done,
) -> Result<BTreeMap<String, Verdict>, Stop> {
    let storage = &context.ports.storage;
    let refused =
        |disk: &str, why: String| Stop::Never(End::Refused, format!("disk {disk}: {why}"));
    let mut verdicts = BTreeMap::new();
    // All are judged before the first is written.
    for disk in writable_disks(spec) {
        let verdict = read_verdict(context, spec, &disk, resumed, done).await?;
        verdicts.insert(disk, verdict);
    }
    if !context.config.guards.record {
        return Ok(verdicts);
    }
    for (disk, verdict) in &verdicts {
        let voids = verdict.voids.iter().map(|epoch| (*epoch, RecordState::Void));
        let own = (!verdict.own).then_some((spec.epoch, RecordState::Held));
        for (epoch, state) in voids.chain(own) {
            let record = record(context, spec, epoch, state);
            let linked =
                timed("link record", disk, CALL_SECONDS, storage.link_record(disk, &record))
                    .await
                    .map_err(|e| refused(disk, e.to_string()))?;
            if linked == Linked::Exists && context.config.guards.own_record {
                let why = format!("a record of epoch {epoch} came first");
                return Err(refused(disk, why));
            }
        }
    }
    for disk in verdicts.keys() {
        if context.config.guards.own_record {
            let again = read_verdict(context, spec, disk, true, done).await?;
            if !again.own {
                return Err(refused(disk, "its record is not there after it was linked".into()));
            }
        }
    }
    Ok(verdicts)
}

async fn read_verdict(
    context: &Context,
    spec: &DomainSpec,
    disk: &str,
    resumed: bool,
    done: &mut Done,
) -> Result<Verdict, Stop> {
    let call = context.ports.storage.records(disk);
    let records = timed("read records", disk, CALL_SECONDS, call)
        .await
        .map_err(|e| Stop::Never(End::Refused, e.to_string()))?;
    let config = &context.config;
    match judge(&records, spec, &context.cluster_id(), resumed, config.guards) {
        Ok(verdict) => {
            done.highest_record = done.highest_record.max(verdict.highest);
            Ok(verdict)
        }
        Err(refusal) => {
            done.highest_record = done.highest_record.max(refusal.highest);
            Err(Stop::Never(End::Refused, format!("disk {disk}: {}", refusal.message)))
        }
    }
}

/// A record of this VM in the running boot.
pub(super) fn record(
    context: &Context,
    spec: &DomainSpec,
    epoch: i64,
    state: RecordState,
) -> OwnerRecord {
    OwnerRecord {
        cluster_id: context.cluster_id(),
        vm_uid: spec.vm.uid.clone(),
        epoch,
        host_uid: context.host_uid.clone(),
        boot_id: context.boot_id.clone(),
        state,
    }
}

/// Reads the order again: the same object, epoch and wish, and the disks that were taken.
pub(super) async fn still_ordered(context: &Context, order: &Order) -> Result<DomainSpec, Stop> {
    let uid = &order.spec.vm.uid;
    let fresh = request(context.domains().get(uid))
        .await
        .map_err(|e| Stop::Later(format!("the order can't be read again: {e}")))?;
    let same = fresh.metadata.uid.as_deref() == Some(order.object_uid.as_str())
        && fresh.spec.epoch == order.spec.epoch
        && fresh.spec.boot_id == order.spec.boot_id
        && fresh.spec.host_uid == order.spec.host_uid
        && fresh.spec.want == order.spec.want
        && fresh.spec.migration.as_ref().map(|m| (&m.id, m.step))
            == order.spec.migration.as_ref().map(|m| (&m.id, m.step))
        && fresh.spec.machine.disks == order.spec.machine.disks;
    if same { Ok(fresh.spec) } else { Err(Stop::Later("the order has changed".into())) }
}

async fn launch(context: &Context, spec: &DomainSpec, done: &mut Done) -> Result<(), Stop> {
    let hypervisor = &context.ports.hypervisor;
    let uid = spec.vm.uid.as_str();
    let result = timed("start", uid, START_SECONDS, hypervisor.start(spec)).await;
    let returned = !result.as_ref().is_err_and(stockade_host::HostError::is_unknown);
    let end = match &result {
        Ok(_) => None,
        Err(HostError::Unknown { .. }) => None,
        Err(HostError::Locked { holder, .. }) => {
            done.lock = spec.machine.lock.map(|manager| LockReport {
                manager,
                held: false,
                holder: holder.clone(),
            });
            Some(End::LockHeld)
        }
        Err(HostError::Refused { .. }) => Some(End::Refused),
        Err(HostError::Failed { .. }) => Some(End::StartFailed),
    };
    // From here on the hook refuses whatever is late.
    let closed = context
        .journal
        .set(uid, |vm| {
            // It says so already, unless a test drops `journal_first`.
            vm.launched = true;
            vm.open = false;
            vm.returned = returned;
            vm.end = end;
        })
        .await;
    match result {
        Ok(started) => {
            done.started = Some(started);
            if spec.machine.lock.is_some() {
                done.lock = timed("read lock", uid, CALL_SECONDS, hypervisor.lock(uid))
                    .await
                    .unwrap_or_default();
            }
            closed.map_err(Stop::Unknown)
        }
        Err(error) if returned => {
            if hypervisor.presence(uid, spec.epoch).await == Presence::Present {
                return Err(Stop::Unknown(error.to_string()));
            }
            Err(Stop::Failed(end.unwrap_or(End::StartFailed), error.to_string()))
        }
        Err(error) => Err(Stop::Unknown(error.to_string())),
    }
}

/// Removes the records of the dead, below this epoch's own.
pub(super) async fn bury(
    context: &Context,
    verdicts: &BTreeMap<String, Verdict>,
) -> Result<(), Stop> {
    for (disk, verdict) in verdicts {
        for epoch in &verdict.dead {
            let call = context.ports.storage.remove_record(disk, *epoch);
            timed("remove record", disk, CALL_SECONDS, call)
                .await
                .map_err(|e| Stop::Never(End::Refused, e.to_string()))?;
        }
    }
    Ok(())
}

/// Removes settled records below the one that runs, but never the highest of them.
async fn tidy(context: &Context, spec: &DomainSpec, verdicts: &BTreeMap<String, Verdict>) {
    for (disk, verdict) in verdicts {
        let keep = verdict.removable.len().saturating_sub(8);
        for epoch in verdict.removable.iter().take(keep).filter(|e| **e < spec.epoch) {
            let call = context.ports.storage.remove_record(disk, *epoch);
            if let Err(error) = timed("remove record", disk, CALL_SECONDS, call).await {
                tracing::debug!(%error, "a settled record stays");
            }
        }
    }
}
