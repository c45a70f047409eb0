//! What runs on the host without an order.

use stockade_core::agent::observed::Observed;
use stockade_core::agent::types::{LiveDomain, LiveState};
use stockade_crds::v1alpha1::InventoryItem;

/// Whether a Domain's status speaks, or will speak, of this live domain.
pub(crate) fn is_ordered(o: &Observed, live: &LiveDomain) -> bool {
    // What was settled here and runs again is nobody's order.
    let over = o.journalled(&live.uuid).is_some_and(|j| j.epoch == live.epoch && j.released);
    !over
        && o.order(&live.uuid)
            .is_some_and(|order| order.spec.epoch == live.epoch && order.spec.boot_id == o.boot_id)
}

/// How the inventory lists it.
pub(crate) fn item(live: &LiveDomain) -> InventoryItem {
    InventoryItem {
        name: live.name.clone(),
        uuid: live.uuid.clone(),
        epoch: live.epoch,
        running: live.state == LiveState::Running,
        cpu_milli: None,
        memory_mib: None,
    }
}
