//! The lab's network: a bridge and taps in namespaces of their own, which end with their owner.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{LabError, step};
use crate::local_hosts::ProcessId;
use crate::local_hosts::namespace::{Namespace, child_of};

/// Where this machine is seen from the lab's machines.
const GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 254);

/// Makes the bridge, the taps and the gateway's address; ends when its owner does, and the kernel
/// then ends everything in its process namespace.
const INIT: &str = r#"set -eu
ip link set lo up
ip link add lab type bridge forward_delay 0
ip address add "$1/24" dev lab
ip link set lab up
shift
for tap in "$@"; do
    ip tuntap add dev "$tap" mode tap
    # Machines may use large frames; AoE is slow without.
    ip link set "$tap" mtu 9000 master lab up
done
echo mounted
exec cat >/dev/null
"#;

/// The network and everything that runs in it.
#[derive(Debug)]
pub(super) struct Network {
    namespace: Namespace,
    /// Ports that are passed on already, with where to.
    forwarded: Mutex<Vec<(u16, SocketAddr)>>,
}

/// The address of the machine with this index.
pub(super) fn address(index: usize) -> Ipv4Addr {
    let last = u8::try_from(index + 1).unwrap_or(u8::MAX);
    Ipv4Addr::new(10, 78, 0, last)
}

impl Network {
    /// Makes the bridge with a tap for each machine; the script lies in `folder`.
    pub(super) fn start(folder: &Path, taps: &[&str]) -> Result<Self, LabError> {
        let failed = || step("making the lab's network");
        let script = folder.join("network.sh");
        std::fs::write(&script, INIT).map_err(failed())?;
        let (script, gateway) = (script.to_string_lossy(), GATEWAY.to_string());
        let words: Vec<&str> =
            [&*script, &*gateway].into_iter().chain(taps.iter().copied()).collect();
        let namespace = Namespace::host(&words, &folder.join("network.log")).map_err(failed())?;
        Ok(Self { namespace, forwarded: Mutex::default() })
    }

    /// First process of the namespaces.
    pub(super) fn init(&self) -> ProcessId {
        self.namespace.init().clone()
    }

    /// A command that will run `program` in the network; it ends with it.
    pub(super) fn enter(&self, program: &str) -> Command {
        self.namespace.enter(program, true)
    }

    /// The program that a child of [`Network::enter`] runs.
    pub(super) fn pid_of(child: &std::process::Child) -> Option<ProcessId> {
        ProcessId::of(child_of(i32::try_from(child.id()).ok()?)?)
    }

    /// Passes connections to the gateway's address on to a port of this machine's loopback.
    pub(super) fn forward(&self, port: u16) -> Result<SocketAddr, LabError> {
        let mut forwarded =
            self.forwarded.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some((_, address)) = forwarded.iter().find(|(known, _)| *known == port) {
            return Ok(*address);
        }
        let failed = || step(format!("passing on port {port} to the lab"));
        let init = self.namespace.init().pid;
        // A socket belongs to the namespace that it was made in, and a namespace is entered by one
        // thread alone: this one makes the socket and goes.
        let listener = thread::spawn(move || -> io::Result<TcpListener> {
            let namespace = std::fs::File::open(format!("/proc/{init}/ns/net"))?;
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            TcpListener::bind((GATEWAY, 0))
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread ended")))
        .map_err(failed())?;
        let address = listener.local_addr().map_err(failed())?;
        thread::Builder::new()
            .name("lab-forward".into())
            .spawn(move || {
                for lab in listener.incoming().flatten() {
                    if let Ok(local) = TcpStream::connect((IpAddr::V4(Ipv4Addr::LOCALHOST), port)) {
                        let _ = pass_on(&lab, &local);
                    }
                }
            })
            .map_err(failed())?;
        forwarded.push((port, address));
        Ok(address)
    }
}

/// Copies both ways, each in a thread of its own, until either side ends.
fn pass_on(one: &TcpStream, other: &TcpStream) -> io::Result<()> {
    for (from, to) in [(one, other), (other, one)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::Builder::new().name("lab-forward".into()).spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(std::net::Shutdown::Both);
        })?;
    }
    Ok(())
}
