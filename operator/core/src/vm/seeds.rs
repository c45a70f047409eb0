//! The secrets that VMs start with: copied to the host that is to start one, gone once it has ended.

use stockade_crds::v1alpha1::{Domain, VirtualMachine};

use crate::plan::{Intent, Plan};
use crate::world::{Millis, OrderKey, World};

/// A secret that could not be had is asked for again after so long.
const ASK_AGAIN: Millis = 5_000;

/// Why a VM can't start for want of its secret, and until when that is taken to be so.
pub(super) fn refused(world: &World, vm: &VirtualMachine) -> Option<(Millis, String)> {
    vm.spec.cloud_init.as_ref()?.user_data_secret.as_ref()?;
    let (at, why) = world.seed_refusals.get(vm.metadata.uid.as_deref()?)?;
    let until = at.saturating_add(ASK_AGAIN);
    (world.now < until).then(|| (until, why.clone()))
}

/// Removes the copies whose epoch is over. Each is there only as long as its order, so that none
/// can be left without one that tells of it.
pub fn remove_copies(world: &World, out: &mut Plan) {
    for (OrderKey { vm_uid, host }, domain) in &world.domains {
        let Some(epoch) = ended_seed(domain) else { continue };
        let key = (host.clone(), vm_uid.clone(), epoch);
        let again = out.intents.iter().any(|intent| orders(intent, host, vm_uid));
        if !again && !world.seeds_gone.contains(&key) {
            let (host, vm_uid, epoch) = key;
            out.intents.push(Intent::RemoveSeed { host, vm_uid, epoch });
        }
    }
}

/// The epoch of a Domain that had a secret and is released.
fn ended_seed(domain: &Domain) -> Option<i64> {
    domain.spec.machine.seed.as_ref()?.secret.as_ref()?;
    let status = domain.status.as_ref()?;
    let epoch = domain.spec.epoch;
    (status.released && status.epoch == epoch).then_some(epoch)
}

/// Whether an intent writes the next order for the same VM and host, or removes this one.
fn orders(intent: &Intent, host: &str, vm_uid: &str) -> bool {
    match intent {
        Intent::Place { domains, .. } => {
            domains.iter().any(|write| write.host == host && write.vm_uid == vm_uid)
        }
        Intent::WriteDomain(write) => write.host == host && write.vm_uid == vm_uid,
        Intent::DeleteDomain { host: of, vm_uid: vm, .. } => of == host && vm == vm_uid,
        _ => false,
    }
}
