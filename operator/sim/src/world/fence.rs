//! Fence devices, as the controller calls them.

use std::collections::BTreeMap;
use std::sync::Arc;

use stockade_crds::v1alpha1::FenceAction;
use stockade_host::error::{HostError, HostResult};
use stockade_host::ports::{FenceCall, Power};

use super::event::{Doer, Seen, What};
use super::model::{DeviceMode, Kernel, Net, WatchdogKind};
use super::{Sim, World};
use crate::oracle::Rule;

/// One call of a fence device.
pub(crate) async fn run(sim: &Arc<Sim>, call: &FenceCall) -> HostResult<Option<Power>> {
    let (wait, reached) = {
        let mut w = sim.lock();
        let wait = w.draw(&format!("device/{}", call.device), 200, 900);
        (wait, w.device_answers(call))
    };
    if !reached {
        let limit = u64::try_from(call.spec.timeout_seconds).unwrap_or(20).max(1) * 1000;
        sim.lock().used_up(&call.device);
        sim.wait(limit).await;
        return Err(HostError::unknown("fence", &call.device, "the device does not answer"));
    }
    sim.wait(wait).await;
    sim.lock().device_call(call)
}

/// Milliseconds after its start within which a boot need not have been seen: its agent starts,
/// beats, and a call of a fence device that was in flight comes to its end.
const HARDLY_BEATEN: u64 = 10_000;

/// Milliseconds from the decision to shoot until a device has done it: a fresh read of the Lease
/// and the device's own time.
const CALL_TAKES: u64 = 1_500;

impl World {
    fn wired_host(&self, call: &FenceCall) -> Option<String> {
        let device = self.devices.get(&call.device)?;
        device.wired.iter().find(|(_, plug)| **plug == call.plug).map(|(h, _)| h.clone())
    }

    fn device_answers(&mut self, call: &FenceCall) -> bool {
        let Some(host) = self.wired_host(call) else { return true };
        let Some(device) = self.devices.get(&call.device) else { return false };
        let Some(m) = self.machines.get(&host) else { return false };
        // Its own off leaves it the standby power that it runs on.
        let fed = m.switch && m.cut_by.iter().all(|by| *by == call.device);
        let alive = device.mode != DeviceMode::DiesWithHost || fed;
        m.whole(Net::Bmc) && alive && device.mode != DeviceMode::Timeout
    }

    /// One call that its mode has met.
    fn used_up(&mut self, device: &str) {
        let Some(device) = self.devices.get_mut(device) else { return };
        if let Some(n) = device.times.as_mut() {
            *n = n.saturating_sub(1);
            if *n == 0 {
                device.times = None;
                device.mode = DeviceMode::Ok;
            }
        }
    }

    fn device_call(&mut self, call: &FenceCall) -> HostResult<Option<Power>> {
        let fail = |why: &str| HostError::failed("fence", &call.device, why);
        let host = self.wired_host(call).ok_or_else(|| fail("no such plug"))?;
        let device = self.devices.get_mut(&call.device).ok_or_else(|| fail("no such device"))?;
        let mode = device.mode;
        let mut received: BTreeMap<String, String> = call.spec.parameters.clone();
        received.extend(call.secret.clone());
        received.insert("plug".to_owned(), call.plug.clone());
        let action = match call.action {
            FenceAction::Status => "status",
            FenceAction::Off => "off",
            FenceAction::On => "on",
        };
        received.insert("action".to_owned(), action.to_owned());
        device.calls.push(received);
        let outlet = device.outlet;
        self.used_up(&call.device);
        if mode == DeviceMode::BadCredentials {
            return Err(fail("login refused: check the credentials"));
        }
        let target = if mode == DeviceMode::WrongHost {
            self.machines.keys().find(|h| **h != host).cloned().unwrap_or_else(|| host.clone())
        } else {
            host.clone()
        };
        let Some(m) = self.machines.get(&target) else { return Err(fail("no such machine")) };
        let cut = m.cut_by.contains(&call.device);
        let off = if outlet { cut } else { !m.powered() };
        match call.action {
            FenceAction::Status => {
                let said = match mode {
                    DeviceMode::LiesOn => Power::On,
                    DeviceMode::LiesOff => Power::Off,
                    _ if off => Power::Off,
                    _ => Power::On,
                };
                let truth = self.machines.get(&host).map(|m| (m.powered(), m.boot_id.clone()));
                if let Some((true, boot)) = truth
                    && said == Power::Off
                    && !outlet
                {
                    self.lied.insert((host.clone(), boot));
                }
                let text = if said == Power::Off { "off" } else { "on" };
                let seen = Seen::of(What::FenceRead).host(&host).device(&call.device);
                self.emit(seen.by(Doer::Controller).detail(text));
                Ok(Some(said))
            }
            FenceAction::Off => {
                let seen = Seen::of(What::FenceOff).host(&host).device(&call.device);
                self.emit(seen.by(Doer::Controller));
                self.judge_shot(&host);
                self.judge_brake(&host);
                if mode == DeviceMode::AlreadyOff && off {
                    return Err(fail("the plug is off already"));
                }
                if !matches!(mode, DeviceMode::LiesOff) {
                    if let Some(m) = self.machines.get_mut(&target) {
                        m.cut_by.insert(call.device.clone());
                        if !outlet {
                            m.switch = false;
                        }
                    }
                    self.power_lost(&target, Some(Doer::Controller));
                }
                Ok(None)
            }
            FenceAction::On => {
                if let Some(m) = self.machines.get_mut(&target) {
                    m.cut_by.remove(&call.device);
                    if !outlet {
                        m.switch = true;
                    }
                }
                self.power_back(&target);
                Ok(None)
            }
        }
    }

    /// Judges an order to cut a host's power.
    fn judge_shot(&mut self, host: &str) {
        let at = self.since_zero();
        let beyond = self.fault_beyond_api;
        let broken =
            (!beyond).then(|| format!("{host} was shot though only the API was in trouble"));
        self.oracle.judge(at, Rule::NoShotForTheApi, broken, false);
        let Some(m) = self.machines.get(host) else { return };
        // Of a kernel that is down the processes are gone already: nothing to judge.
        if m.kernel == Kernel::Up || m.kernel == Kernel::Hung {
            // An order that was given may have been obeyed: nobody but the host can say.
            // What is released while the call is on its way comes too late for it.
            let lately = |at: &Option<u64>| at.is_none_or(|at| self.now() - at <= CALL_TAKES);
            let ordered = self
                .expected
                .iter()
                .any(|((h, _), (b, at))| h == host && *b == m.boot_id && lately(at));
            let empty = m.qemus.is_empty() && m.queued.is_empty() && !ordered;
            let serving = m.whole(Net::Storage);
            // A boot that has hardly beaten yet is known to nobody: that shot was meant for the one
            // before, and safety §2.10 allows it.
            let known = self.now().saturating_sub(m.booted_at) > HARDLY_BEATEN;
            let broken = (empty && m.kernel == Kernel::Up && serving && known)
                .then(|| format!("{host} was shot though nothing of ours ran there"));
            self.oracle.judge(at, Rule::NoShotAtEmpty, broken, false);
        }
    }

    /// An order for a VM on a host was written, or released, or is gone (no boot).
    pub fn expect_copy(&mut self, host: &str, vm_uid: &str, boot_id: Option<&str>) {
        let key = (host.to_owned(), vm_uid.to_owned());
        match boot_id {
            Some(boot) => {
                self.expected.insert(key, (boot.to_owned(), None));
            }
            None => {
                let now = self.now();
                if let Some((_, at)) = self.expected.get_mut(&key) {
                    at.get_or_insert(now);
                }
            }
        }
    }

    /// A certificate with proof has been written: it must be true.
    pub fn judge_proof(&mut self, host: &str, boot_id: &str, proof: &str) {
        let at = self.since_zero();
        let key = (host.to_owned(), boot_id.to_owned());
        let Some(m) = self.machines.get(host) else { return };
        let lives = m.boot_id == boot_id && matches!(m.kernel, Kernel::Up | Kernel::Hung);
        let false_proof = match proof {
            "Power" => lives && m.powered(),
            "Elapsed" => lives && !m.qemus.is_empty(),
            _ => false,
        };
        if proof == "Human" && lives {
            self.human.insert(key.clone());
        }
        if proof == "Elapsed" && lives && m.watchdog == WatchdogKind::Dead {
            // A watchdog that was opened and never fires tells an untruth about the boot.
            self.lied.insert(key.clone());
        }
        let broken =
            false_proof.then(|| format!("{host}: proof {proof}, but boot {boot_id} lives"));
        let excused = self.lied.contains(&key);
        self.oracle.judge(at, Rule::TrueProof, broken, excused);
    }
}
