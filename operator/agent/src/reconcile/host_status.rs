//! What the loop says of its host.

use stockade_core::agent::{Observed, self_fence};
use stockade_crds::v1alpha1::{HostAgentSpec, HostAgentStatus};

use super::{Loop, nothing_runs};
use crate::context::locked;
use crate::inventory::{is_ordered, item};
use crate::observe::LockLook;
use crate::shutdown;

/// How long the first report may wait for the first look at everything, in milliseconds.
const FIRST_WORD: u64 = 10_000;

impl Loop {
    /// The host's status, if it differs from what was last acknowledged, or may differ from what
    /// stands there.
    pub(super) fn host_status(
        &mut self,
        o: &Observed,
        spec: &HostAgentSpec,
    ) -> Option<HostAgentStatus> {
        let last = self.host_status.clone()?;
        // The first word must be an inventory: none without a list of orders.
        o.orders.as_ref()?;
        // Nor is a half-made look at the host worth a word, unless it stays one.
        let looked = self.lock.is_some()
            && spec.storages.iter().all(|s| o.storages.iter().any(|r| r.name == s.name));
        if !looked && self.context.now().saturating_sub(self.started) < FIRST_WORD {
            return None;
        }
        let facts = locked(&self.context.facts).clone();
        if let Some(live) = &o.live {
            self.inventory = live.values().filter(|d| !is_ordered(o, d)).map(item).collect();
        }
        let armed = locked(&self.context.armed).clone();
        let too_short = shutdown::problem(spec, &facts);
        let mut problems = facts.problems;
        problems.extend(too_short);
        // Trouble with an order that does not stand any more is none.
        problems.extend(self.arming_trouble.clone().filter(|_| spec.arm || armed.is_some()));
        if o.journal.is_none() {
            problems.push("the journal can't be used: no VM is started here".into());
        }
        if o.suspended {
            problems.push(
                "this boot is certified dead while it runs: its VMs are suspended; reboot the host"
                    .into(),
            );
        }
        // As the kind bounds them: one that is too long must not keep the rest unsaid.
        problems.truncate(32);
        for problem in &mut problems {
            problem.truncate(problem.floor_char_boundary(1_024));
        }
        let mut status = HostAgentStatus {
            host_uid: o.host_uid.clone(),
            boot_id: o.boot_id.clone(),
            report: last.report,
            version: self.context.config.version.clone(),
            cpu: facts.cpu,
            memory_mib: facts.memory_mib,
            hypervisors: facts.hypervisors,
            inventory: self.inventory.clone(),
            storages: o.storages.clone(),
            exports: locked(&self.context.exports).clone(),
            lock_ready: self.lock_works(spec),
            lock_message: LockLook::trouble(self.lock.as_ref()),
            lock: o.lock,
            armed: spec.arm && armed.is_some(),
            self_fence: armed
                .filter(|_| spec.arm)
                .map(|armed| self_fence::reported(&armed, &spec.self_fence)),
            watchdog: facts.watchdog,
            hook_ready: self.hook,
            hypervisor_ready: o.live.is_some(),
            going_down: self.context.ports.machine.going_down(),
            down: self.said_down() || (self.going_down_since.is_some() && nothing_runs(o)),
            lineage: last.lineage.clone(),
            move_requests: locked(&self.context.move_requests).clone(),
            moves_ready: *locked(&self.context.moves_ready),
            moves_serial: *locked(&self.context.moves_serial),
            consoles: locked(&self.context.consoles).clone(),
            problems,
        };
        if last.report == 0 || last.boot_id != status.boot_id || last.inventory != status.inventory
        {
            status.report = last.report + 1;
        }
        (self.host_status_unsure || status != last).then_some(status)
    }
}
