//! Consoles for people: a door that is open while a ticket may be shown, and what goes through it.
//!
//! The door listens on the address that the Host declares, over TLS with the certificate that the
//! host shows its peers, and is closed as soon as no ticket waits. Who comes says which ticket it
//! has; each is taken once, however often the agent is restarted. Nothing else listens: the VM's
//! own consoles are opened through libvirt.

mod door;

use std::collections::BTreeMap;
use std::fs::{self, OpenOptions};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use stockade_crds::v1alpha1::{AgentConsole, ConsoleReport, ConsoleState};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::files;
use crate::libvirt::Libvirt;
use crate::ports::ConsolePort;
use door::Door;

const OP: &str = "serve consoles";
/// A ticket that was not shown is worth nothing after so long, whatever the controller says.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// The driver.
pub struct Consoles {
    libvirt: Arc<Libvirt>,
    /// Where each ticket that was ever taken leaves its name.
    taken: PathBuf,
    port: u16,
    tickets: Arc<Tickets>,
    door: tokio::sync::Mutex<Option<Door>>,
}

/// A ticket as it stands here.
struct Ticket {
    wanted: AgentConsole,
    state: ConsoleState,
    message: String,
    since: Instant,
    /// Whoever came with it is to go.
    over: Arc<Notify>,
}

/// Every ticket, by its id.
#[derive(Default)]
struct Tickets(Mutex<BTreeMap<String, Ticket>>);

impl Tickets {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Ticket>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a ticket, if it is one; the same words for every other, so that nobody learns more.
    fn take(&self, id: &str, ticket: &str) -> Result<(AgentConsole, Arc<Notify>), &'static str> {
        const NO: &str = "no such ticket waits here";
        let mut all = self.lock();
        let found = all.get_mut(id).filter(|t| t.state == ConsoleState::Waiting).ok_or(NO)?;
        if found.since.elapsed() >= SHOWN_WITHIN || hash(ticket) != found.wanted.ticket_hash {
            return Err(NO);
        }
        found.state = ConsoleState::Open;
        Ok((found.wanted.clone(), Arc::clone(&found.over)))
    }

    fn close(&self, id: &str, why: &str) {
        if let Some(ticket) = self.lock().get_mut(id) {
            ticket.close(why);
        }
    }
}

impl Ticket {
    fn close(&mut self, why: &str) {
        self.state = ConsoleState::Closed;
        self.message = why.chars().take(1_000).collect();
    }
}

/// SHA-256 in lower-case hex.
fn hash(ticket: &str) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, ticket.as_bytes());
    digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Consoles {
    /// Listens nowhere until there is a ticket. `state`: the agent's state folder.
    #[must_use]
    pub fn new(libvirt: Arc<Libvirt>, state: &std::path::Path, port: u16) -> Self {
        let taken = state.join("consoles");
        Self { libvirt, taken, port, tickets: Arc::default(), door: tokio::sync::Mutex::default() }
    }

    /// Leaves the name of a ticket that is seen for the first time; false: it was seen before.
    fn is_new(&self, id: &str) -> Result<bool, String> {
        let failed = |error: std::io::Error| error.to_string();
        fs::create_dir_all(&self.taken).map_err(failed)?;
        // An id is a Kubernetes uid; whatever it is, it names a file of this folder alone.
        let name = id.replace('/', "_");
        match OpenOptions::new().write(true).create_new(true).open(self.taken.join(name)) {
            Ok(_) => files::sync_folder(&self.taken).map(|()| true).map_err(failed),
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Takes in what is wanted, and lets go of what is not.
    fn follow(&self, wanted: &[AgentConsole]) {
        let mut all = self.tickets.lock();
        all.retain(|id, ticket| {
            let stays = wanted.contains(&ticket.wanted);
            if !stays {
                ticket.over.notify_one();
                let _ = fs::remove_file(self.taken.join(id.replace('/', "_")));
            }
            stays
        });
        for one in wanted {
            if all.contains_key(&one.id) {
                continue;
            }
            let mut ticket = Ticket {
                wanted: one.clone(),
                state: ConsoleState::Pending,
                message: String::new(),
                since: Instant::now(),
                over: Arc::default(),
            };
            match self.is_new(&one.id) {
                Ok(true) => {}
                Ok(false) => ticket.close("the agent was restarted; ask again"),
                Err(why) => ticket.close(&why),
            }
            all.insert(one.id.clone(), ticket);
        }
        for ticket in all.values_mut() {
            let unused = matches!(ticket.state, ConsoleState::Pending | ConsoleState::Waiting);
            if unused && ticket.since.elapsed() >= SHOWN_WITHIN {
                ticket.close("the ticket was not shown in time");
            }
        }
    }

    /// The address of the tickets that wait to be shown.
    fn awaited(&self) -> Option<String> {
        let all = self.tickets.lock();
        let mut waiting = all
            .values()
            .filter(|t| matches!(t.state, ConsoleState::Pending | ConsoleState::Waiting));
        waiting.next().map(|ticket| ticket.wanted.address.clone())
    }

    /// Opens the door while a ticket waits; the address where it is.
    async fn keep_door(&self) -> Option<String> {
        let mut door = self.door.lock().await;
        let Some(address) = self.awaited() else {
            *door = None;
            return None;
        };
        if door.as_ref().is_none_or(|door| door.declared != address) {
            *door = None;
            let libvirt = Arc::clone(&self.libvirt);
            match Door::open(libvirt, Arc::clone(&self.tickets), &address, self.port).await {
                Ok(opened) => *door = Some(opened),
                Err(why) => {
                    tracing::warn!(why, "no console can be opened");
                    for ticket in self.tickets.lock().values_mut() {
                        if ticket.state != ConsoleState::Open {
                            ticket.close(&why);
                        }
                    }
                }
            }
        }
        door.as_ref().map(|door| door.at.to_string())
    }

    fn reports(&self, wanted: &[AgentConsole], at: Option<String>) -> Vec<ConsoleReport> {
        let mut all = self.tickets.lock();
        let reports = wanted.iter().filter_map(|one| {
            let ticket = all.get_mut(&one.id)?;
            if ticket.state == ConsoleState::Pending && at.is_some() {
                ticket.state = ConsoleState::Waiting;
            }
            let waits = ticket.state == ConsoleState::Waiting;
            Some(ConsoleReport {
                id: one.id.clone(),
                state: ticket.state,
                address: at.clone().filter(|_| waits).unwrap_or_default(),
                message: ticket.message.clone(),
            })
        });
        reports.collect()
    }
}

impl ConsolePort for Consoles {
    fn serve<'a>(&'a self, tickets: &'a [AgentConsole]) -> BoxFuture<'a, Vec<ConsoleReport>> {
        async move {
            self.follow(tickets);
            let at = self.keep_door().await;
            self.reports(tickets, at)
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test")]

    use stockade_crds::v1alpha1::ConsoleDevice;

    use super::*;

    fn waiting(ticket: &str) -> Tickets {
        let wanted = AgentConsole {
            id: "c1".into(),
            address: "127.0.0.1".into(),
            vm_uid: "u".into(),
            epoch: 1,
            device: ConsoleDevice::Serial,
            ticket_hash: hash(ticket),
        };
        let ticket = Ticket {
            wanted,
            state: ConsoleState::Waiting,
            message: String::new(),
            since: Instant::now(),
            over: Arc::default(),
        };
        Tickets(Mutex::new([("c1".to_owned(), ticket)].into()))
    }

    #[test]
    fn the_hash_is_sha_256_in_lower_case_hex() {
        let known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hash("abc"), known);
    }

    #[tokio::test(start_paused = true)]
    async fn a_ticket_is_taken_once_in_time_and_by_nothing_else() {
        let tickets = waiting("right");
        assert!(tickets.take("c1", "wrong").is_err() && tickets.take("c2", "right").is_err());
        assert!(tickets.take("c1", &hash("right")).is_err(), "the hash is no ticket");
        assert!(tickets.take("c1", "right").is_ok());
        assert!(tickets.take("c1", "right").is_err(), "it was shown before");
        let late = waiting("right");
        tokio::time::advance(SHOWN_WITHIN).await;
        assert!(late.take("c1", "right").is_err());
    }
}
