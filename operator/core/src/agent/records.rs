//! Judging the owner records beside a disk before a start (safety §1, §2.5).

use stockade_crds::v1alpha1::{DomainSpec, MigrationSide, Want};

use super::Guards;
use super::types::{OwnerRecord, RecordState};

/// Most void records that one start links; epochs of one disk are near each other.
const VOIDS: i64 = 256;

/// What the records of one disk allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Lower epochs without a record, to be linked as void first.
    pub voids: Vec<i64>,
    /// The own record is there already, from this very attempt.
    pub own: bool,
    /// An earlier epoch may have written the disk: it is never made anew.
    pub ran: bool,
    /// Highest epoch among the records; 0: none.
    pub highest: i64,
    /// Settled records below this epoch that may be removed once it runs, but never
    /// the highest of them.
    pub removable: Vec<i64>,
    /// Records of the dead that this order names: nobody else can mark them as released, and later
    /// orders do not name them for ever. Removed once nothing but the launch is left.
    pub dead: Vec<i64>,
}

/// Why the records of a disk do not allow the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// In a sentence, with the holder's name.
    pub message: String,
    /// Highest epoch among the records.
    pub highest: i64,
}

/// Judges the records of one disk for an order. `resumed`: the journal says that this
/// very attempt was begun in this boot and that nothing was launched yet, so that the
/// own record may be there.
///
/// # Errors
/// A record that forbids the start.
pub fn judge(
    records: &[OwnerRecord],
    order: &DomainSpec,
    cluster_id: &str,
    resumed: bool,
    guards: Guards,
) -> Result<Verdict, Refusal> {
    let highest = records.iter().map(|r| r.epoch).max().unwrap_or(0);
    let refuse = |message: String| Err(Refusal { message, highest });
    let mut verdict = Verdict { highest, ..Verdict::default() };
    for record in records {
        if record.epoch > order.epoch {
            if guards.newer_record {
                return refuse(format!(
                    "epoch {} of VM {} on host {} came later than epoch {}",
                    record.epoch, record.vm_uid, record.host_uid, order.epoch
                ));
            }
            continue;
        }
        if record.epoch == order.epoch {
            let ours = record.vm_uid == order.vm.uid
                && record.cluster_id == cluster_id
                && record.host_uid == order.host_uid
                && record.boot_id == order.boot_id
                && record.state == RecordState::Held;
            if !(ours && resumed) && guards.own_record {
                return refuse(taken(record));
            }
            verdict.own = true;
            continue;
        }
        if record.state != RecordState::Void {
            verdict.ran = true;
        }
        // The source of a live move holds its epoch beside the target's (safety §8.1).
        if is_source(record, order, cluster_id) {
            continue;
        }
        if guards.older_record && !is_settled(record, order, cluster_id) {
            return refuse(held(record));
        }
        if matches!(record.state, RecordState::Void | RecordState::Released) {
            verdict.removable.push(record.epoch);
        } else if is_settled(record, order, cluster_id) {
            verdict.dead.push(record.epoch);
        }
    }
    verdict.removable.sort_unstable();
    let first = (order.settled_through + 1).max(order.epoch - VOIDS).max(1);
    verdict.voids =
        (first..order.epoch).filter(|e| !records.iter().any(|r| r.epoch == *e)).collect();
    Ok(verdict)
}

/// Whether a record is that of the copy which a live move brings here.
fn is_source(record: &OwnerRecord, order: &DomainSpec, cluster_id: &str) -> bool {
    let part = order.migration.as_ref().filter(|m| {
        m.side == MigrationSide::Target
            && order.want == Want::Incoming
            && m.peer_epoch == record.epoch
    });
    part.and_then(|m| m.peer_boot.as_ref()).is_some_and(|boot| {
        record.state == RecordState::Held
            && record.vm_uid == order.vm.uid
            && record.host_uid == boot.host_uid
            && record.boot_id == boot.boot_id
            && record.cluster_id == cluster_id
    })
}

/// Whether an older record no longer stands in the way.
fn is_settled(record: &OwnerRecord, order: &DomainSpec, cluster_id: &str) -> bool {
    if matches!(record.state, RecordState::Released | RecordState::Void) {
        return true;
    }
    let named = order.settled.iter().filter(|s| s.epoch == record.epoch);
    for settled in named {
        match &settled.dead_boot {
            // An unreadable record is held by the boot that the order names.
            Some(_) if record.state == RecordState::Unreadable => return true,
            Some(boot)
                if boot.host_uid == record.host_uid
                    && boot.boot_id == record.boot_id
                    && record.cluster_id == cluster_id =>
            {
                return true;
            }
            Some(_) => {}
            None if record.state == RecordState::Unreadable => return true,
            // Released in the API: that speaks for this VM's own epochs alone.
            None if record.vm_uid == order.vm.uid && record.cluster_id == cluster_id => {
                return true;
            }
            None => {}
        }
    }
    false
}

fn taken(record: &OwnerRecord) -> String {
    match record.state {
        RecordState::Void => {
            format!("epoch {} was made void: a later one came first", record.epoch)
        }
        _ => format!(
            "epoch {} is taken already by VM {} on host {}, boot {}",
            record.epoch, record.vm_uid, record.host_uid, record.boot_id
        ),
    }
}

fn held(record: &OwnerRecord) -> String {
    format!(
        "epoch {} of VM {} may still write it: it is held by host {}, boot {}, and neither \
         released nor proven dead",
        record.epoch, record.vm_uid, record.host_uid, record.boot_id
    )
}
