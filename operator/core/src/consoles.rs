//! Tickets for consoles: which host takes one, for how long, and what its owner is told.
//!
//! Whoever may create a `VirtualMachineConsole` in the VM's namespace gets to the console: that is
//! the whole of the right. Its spec holds a hash, so that nobody who reads the object, or the
//! host's copy of it, can show the ticket.

use stockade_crds::conditions::{Decided, READY};
use stockade_crds::v1alpha1::{
    AgentConsole, ConsoleDevice, ConsoleReport, ConsoleState, Host, VirtualMachine,
    VirtualMachineConsole, VirtualMachineConsoleStatus, VmState,
};

use crate::plan::{Intent, Plan, Report};
use crate::vm::basis;
use crate::world::{Key, Millis, World};

/// A ticket that was not shown is worth nothing after so long.
pub const SHOWN_WITHIN: Millis = 60_000;
/// One that is worth nothing is kept so long, so that its owner can read why.
pub const KEPT: Millis = 30_000;
/// A host takes so many at once.
const AT_ONCE: usize = 64;

/// Status of tickets, and the end of those that are over.
pub(crate) fn plan(world: &World, out: &mut Plan) {
    for (key, console) in &world.consoles {
        if console.metadata.deletion_timestamp.is_some() {
            continue;
        }
        if is_closed(console) {
            let age = world.age_of(&format!("console/{}", uid(console)));
            if age >= KEPT {
                let basis = basis(&console.metadata);
                out.intents.push(Intent::DeleteConsole { key: key.clone(), basis });
            } else {
                out.wake(world.now + KEPT - age);
            }
            continue;
        }
        let report = stands(world, key, console);
        if report.status.state != ConsoleState::Open {
            out.wake(world.now + SHOWN_WITHIN.saturating_sub(age(world, console)).max(1));
        }
        out.consoles.push((key.clone(), report));
    }
}

/// The tickets that a host takes.
pub(crate) fn of_host(world: &World, host: &Host) -> Vec<AgentConsole> {
    let Some(name) = host.metadata.name.as_deref() else { return Vec::new() };
    let taken = world.consoles.iter().filter_map(|(key, console)| {
        if console.metadata.deletion_timestamp.is_some() || is_closed(console) {
            return None;
        }
        let (vm, at) = runs(world, key, console).ok()?;
        // One host alone ever takes it: the one that its status names, for good.
        let named = console.status.as_ref().and_then(|s| s.host.as_deref());
        let here = at.host == name && named == Some(name);
        (here && in_time(world, console)).then(|| AgentConsole {
            id: uid(console).to_owned(),
            address: at.address,
            vm_uid: vm.metadata.uid.clone().unwrap_or_default(),
            epoch: at.epoch,
            device: console.spec.device,
            ticket_hash: console.spec.ticket_hash.clone(),
        })
    });
    taken.take(AT_ONCE).collect()
}

/// Where a VM runs, and how people reach that host.
struct Place {
    host: String,
    epoch: i64,
    address: String,
}

fn uid(console: &VirtualMachineConsole) -> &str {
    console.metadata.uid.as_deref().unwrap_or_default()
}

/// Since when this controller knows it.
fn age(world: &World, console: &VirtualMachineConsole) -> Millis {
    world.age_of(&format!("ticket/{}", uid(console)))
}

fn state(console: &VirtualMachineConsole) -> ConsoleState {
    console.status.as_ref().map(|s| s.state).unwrap_or_default()
}

fn is_closed(console: &VirtualMachineConsole) -> bool {
    state(console) == ConsoleState::Closed
}

/// Whether the ticket was shown, or still may be.
fn in_time(world: &World, console: &VirtualMachineConsole) -> bool {
    state(console) == ConsoleState::Open || age(world, console) < SHOWN_WITHIN
}

/// The VM of a ticket and where it runs, or why there is nothing to open.
fn runs<'a>(
    world: &'a World,
    key: &Key,
    console: &VirtualMachineConsole,
) -> Result<(&'a VirtualMachine, Place), String> {
    let name = &console.spec.vm;
    let vm = world.vms.get(&Key::new(&key.namespace, name)).map(AsRef::as_ref);
    let vm = vm.ok_or_else(|| format!("there is no VM {name} in namespace {}", key.namespace))?;
    let (has, field) = match console.spec.device {
        ConsoleDevice::Serial => (vm.spec.console.serial, "serial"),
        ConsoleDevice::VNC => (vm.spec.console.vnc, "vnc"),
    };
    if !has {
        return Err(format!(
            "VM {name} has no such console: set spec.console.{field}; it takes effect at its next \
             start"
        ));
    }
    let status = vm.status.clone().unwrap_or_default();
    let here = matches!(status.printable_status, VmState::Running | VmState::Migrating);
    let host = status.host.filter(|_| here);
    let host = host.ok_or_else(|| format!("VM {name} is not running"))?;
    let placed = status.placements.iter().rev().find(|p| p.host == host && !p.state.is_settled());
    let placed = placed.ok_or_else(|| format!("VM {name} is not running"))?;
    let addresses = world.hosts.get(&host).map(|h| h.spec.addresses.clone()).unwrap_or_default();
    let address = addresses.management.or(addresses.migration);
    let address = address.ok_or_else(|| {
        format!("host {host} declares no address: set its spec.addresses.management")
    })?;
    Ok((vm, Place { epoch: placed.epoch, host, address }))
}

/// What the host says of a ticket.
fn said<'a>(world: &'a World, host: &str, id: &str) -> Option<&'a ConsoleReport> {
    let report = world.agents.get(host)?.status.as_ref()?;
    report.consoles.iter().find(|c| c.id == id)
}

fn stands(
    world: &World,
    key: &Key,
    console: &VirtualMachineConsole,
) -> Report<VirtualMachineConsoleStatus> {
    let mut status = console.status.clone().unwrap_or_default();
    status.observed_generation = console.metadata.generation.unwrap_or_default();
    let named = status.host.clone();
    let (state, message) = match runs(world, key, console) {
        Err(why) => (ConsoleState::Closed, why),
        Ok((_, place)) if named.as_ref().is_some_and(|host| *host != place.host) => {
            (ConsoleState::Closed, format!("VM {} has moved to {}", console.spec.vm, place.host))
        }
        Ok((_, place)) => {
            let agent = world.agents.get(&place.host);
            let identity = agent.and_then(|a| a.spec.migration.as_ref());
            status.host = Some(place.host.clone());
            match said(world, &place.host, uid(console)) {
                Some(report) if report.state != ConsoleState::Pending => {
                    status.address = Some(report.address.clone()).filter(|a| !a.is_empty());
                    status.authority = identity.map(|i| i.authority.clone());
                    let message = match report.state {
                        ConsoleState::Open => "it is open".to_owned(),
                        ConsoleState::Waiting => format!("{} takes the ticket", place.host),
                        ConsoleState::Pending | ConsoleState::Closed => report.message.clone(),
                    };
                    (report.state, message)
                }
                _ => (ConsoleState::Pending, format!("{} gets ready", place.host)),
            }
        }
    };
    status.state = state;
    let late =
        matches!(state, ConsoleState::Pending | ConsoleState::Waiting) && !in_time(world, console);
    let message = if late {
        status.state = ConsoleState::Closed;
        format!("the ticket was not shown within {} s", SHOWN_WITHIN / 1_000)
    } else {
        message
    };
    let word = format!("{:?}", status.state);
    let ready = match status.state {
        ConsoleState::Pending => None,
        ConsoleState::Waiting | ConsoleState::Open => Some(true),
        ConsoleState::Closed => Some(false),
    };
    Report { status, conditions: vec![Decided::new(READY, ready, word, message)] }
}

#[cfg(test)]
mod tests;
