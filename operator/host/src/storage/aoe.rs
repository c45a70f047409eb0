//! The initiator of AoE: a device that a server on the same Ethernet gives, by shelf and slot.
//!
//! It has no address and no session: the kernel asks all servers on its interfaces what they have,
//! and sends each frame again until it is answered (Linux, Documentation/admin-guide/aoe).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use stockade_crds::v1alpha1::AgentAoe;

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::failed;

const OP: &str = "find the AoE device";
/// How long loading the module may take.
const LOAD_LIMIT: Duration = Duration::from_secs(60);
/// How long servers may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The interfaces that the kernel uses; none: all.
const INTERFACES: &str = "/sys/module/aoe/parameters/aoe_iflist";
/// The kernel's files of orders.
const ORDERS: &str = "/dev/etherd";

fn name(wanted: &AgentAoe) -> String {
    format!("e{}.{}", wanted.shelf, wanted.slot)
}

fn net(interface: &str) -> PathBuf {
    Path::new("/sys/class/net").join(interface)
}

/// Finds the device unless it is there, and gives its path.
///
/// # Errors
/// [`HostError::Refused`] with the remedy for what a person must mend.
pub(super) async fn find(wanted: &AgentAoe) -> HostResult<PathBuf> {
    let name = name(wanted);
    let refused = |message: String| Err(HostError::refused(OP, &name, message));
    let interface = &wanted.interface;
    let state = fs::read_to_string(net(interface).join("operstate"));
    match state.as_deref().map(str::trim) {
        Err(_) => {
            return refused(format!(
                "this host has no network interface {interface}: correct \
                 spec.ocfs2.aoe.interface, or give this one that name"
            ));
        }
        Ok("down") => return refused(format!("{interface} is down: plug it in, or set it up")),
        Ok(_) => {}
    }
    if !Path::new(INTERFACES).exists() {
        // Not told of any, it would ask on all of them at once.
        let only = format!("aoe_iflist={interface}");
        cmd::run(OP, "aoe", "modprobe", &["aoe", &only], LOAD_LIMIT).await?;
    }
    let used = fs::read_to_string(INTERFACES).map_err(failed(OP, Path::new(INTERFACES)))?;
    if let Some(more) = with_interface(&used, interface) {
        order("interfaces", &more)?;
    }
    let device = Path::new(ORDERS).join(&name);
    let state = Path::new("/sys/block").join(format!("etherd!{name}/state"));
    let answers = || {
        let state = fs::read_to_string(&state).unwrap_or_default();
        state.starts_with("up") && device.exists()
    };
    let began = Instant::now();
    while !answers() {
        if began.elapsed() > ANSWER_LIMIT {
            return refused(format!(
                "no server on {interface} gives it: start the server, have it admit this host, or \
                 correct spec.ocfs2.aoe"
            ));
        }
        order("discover", "\n")?;
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    Ok(device)
}

/// Has the kernel forget a device that is no longer wanted here.
pub(super) fn forget(wanted: &AgentAoe) -> HostResult<()> {
    if Path::new(ORDERS).join(name(wanted)).exists() {
        order("flush", &whole(wanted))?;
    }
    Ok(())
}

/// A name with its end: without it e1.1 is also the beginning of e1.10, which may be mounted.
fn whole(wanted: &AgentAoe) -> String {
    format!("{}\0", name(wanted))
}

fn order(file: &str, text: &str) -> HostResult<()> {
    let path = Path::new(ORDERS).join(file);
    fs::write(&path, text).map_err(failed(OP, &path))
}

/// The list of interfaces with one more; `None`: it is used already.
fn with_interface(used: &str, interface: &str) -> Option<String> {
    let used: Vec<&str> = used.split_whitespace().collect();
    let all = used.iter().copied().chain([interface]).collect::<Vec<_>>().join(" ");
    (!used.is_empty() && !used.contains(&interface)).then_some(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_is_added_to_those_that_are_used_and_none_is_taken_away() {
        assert_eq!(with_interface("eth1\n", "eth2").as_deref(), Some("eth1 eth2"));
        assert_eq!(with_interface("eth1 eth2\n", "eth2"), None);
        assert_eq!(with_interface("\n", "eth2"), None, "all are used");
    }

    #[test]
    fn a_device_is_named_by_shelf_and_slot_and_forgotten_by_its_whole_name() {
        let wanted = AgentAoe { shelf: 3, slot: 14, interface: "eth1".into() };
        assert_eq!(name(&wanted), "e3.14");
        assert_eq!(whole(&wanted), "e3.14\0");
    }
}
