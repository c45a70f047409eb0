//! What a VM's owner asks for: its run policy, and requests by annotation.

use stockade_crds::names::{ADOPT, REQUEST_ANNOTATION};
use stockade_crds::v1alpha1::{RunPolicy, VirtualMachine, VirtualMachineStatus};

/// A request by annotation that was not handled yet.
pub(super) struct Request {
    pub(super) verb: String,
    pub(super) text: String,
    /// The host of the copy that is to be taken in.
    pub(super) adopt: Option<String>,
}

impl Request {
    pub(super) fn pending(vm: &VirtualMachine, status: &VirtualMachineStatus) -> Option<Self> {
        let text = vm.metadata.annotations.as_ref()?.get(REQUEST_ANNOTATION)?.clone();
        if status.last_handled_request.as_ref() == Some(&text) {
            return None;
        }
        let mut parts = text.split('/');
        let verb = parts.next().unwrap_or_default().to_owned();
        let adopt = (verb == ADOPT).then(|| parts.next().map(str::to_owned)).flatten();
        Some(Self { verb, text, adopt })
    }
}

pub(super) fn obey_request(request: &Option<Request>, status: &mut VirtualMachineStatus) {
    let Some(request) = request else { return };
    match request.verb.as_str() {
        "start" => {
            status.manual_run = true;
            status.completed = false;
            status.failures = None;
            status.last_handled_request = Some(request.text.clone());
        }
        "stop" => {
            status.manual_run = false;
            status.failures = None;
            status.last_handled_request = Some(request.text.clone());
        }
        // Restart and reset are handled once they have taken effect.
        _ => {}
    }
}

pub(super) fn wants_to_run(vm: &VirtualMachine, status: &VirtualMachineStatus) -> bool {
    if vm.metadata.deletion_timestamp.is_some() {
        return false;
    }
    match vm.spec.run_policy {
        RunPolicy::Always => true,
        RunPolicy::RerunOnFailure => !status.completed,
        RunPolicy::Manual => status.manual_run,
        RunPolicy::Halted => false,
    }
}
