//! What a domain does, in the words of the port.

use stockade_core::render::{DomainView, read_domain};
use virt::connect::Connect;
use virt::domain::{Domain, DomainPausedReason, DomainState, DomainStateReason};
use virt::enumutil::Enum;
use virt::error::{Error, ErrorNumber};
use virt::sys;

use crate::ports::{LiveDomain, LiveState};

/// A domain as libvirt shows it.
pub(super) struct Seen {
    pub(super) view: DomainView,
    state: Enum<DomainState, sys::virDomainState>,
    /// Paused in the middle of a live move.
    migrating: bool,
    /// Paused since its start: of what is to come in nothing has come yet.
    starting: bool,
}

/// Reads every running domain; one that ends meanwhile is left out.
pub(super) fn list(connect: &Connect) -> Result<Vec<Seen>, Error> {
    let mut all = Vec::new();
    for domain in connect.list_all_domains(sys::VIR_CONNECT_LIST_DOMAINS_ACTIVE)? {
        match see(&domain) {
            Ok(seen) => all.extend(seen),
            Err(error) if error.code().is(ErrorNumber::NoDomain) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(all)
}

/// Reads one domain; `None` if its XML makes no sense to us, which libvirt's own always does.
pub(super) fn see(domain: &Domain) -> Result<Option<Seen>, Error> {
    let (state, reason) = domain.state()?;
    let xml = domain.xml_desc(0)?;
    let view = match read_domain(&xml) {
        Ok(view) => view,
        Err(error) => {
            tracing::warn!(%error, "a domain's XML was not understood");
            return Ok(None);
        }
    };
    let paused = match reason {
        Enum::Known(DomainStateReason::Paused(Enum::Known(reason))) => Some(reason),
        _ => None,
    };
    let migrating =
        matches!(paused, Some(DomainPausedReason::Migration | DomainPausedReason::PostCopy));
    let starting = matches!(paused, Some(DomainPausedReason::StartingUp));
    Ok(Some(Seen { view, state, migrating, starting }))
}

impl Seen {
    /// In the port's words. `incoming`: it came in by a live move and was not resumed yet.
    pub(super) fn live(self, incoming: bool) -> LiveDomain {
        let partial = self.migrating || (incoming && self.starting);
        let state = match (self.state, incoming, partial) {
            (Enum::Known(DomainState::Paused | DomainState::PMSuspended), true, true) => {
                LiveState::Incoming
            }
            (Enum::Known(DomainState::Paused | DomainState::PMSuspended), true, false)
            | (Enum::Known(DomainState::Paused | DomainState::PMSuspended), false, true) => {
                LiveState::Switched
            }
            (Enum::Known(DomainState::Paused | DomainState::PMSuspended), false, false) => {
                LiveState::Paused
            }
            (Enum::Known(DomainState::Running | DomainState::Blocked), _, _) => LiveState::Running,
            (
                Enum::Known(
                    DomainState::Shutdown
                    | DomainState::Shutoff
                    | DomainState::Crashed
                    | DomainState::NoState,
                )
                | Enum::Unknown(_),
                _,
                _,
            ) => LiveState::Dying,
        };
        let disks = self.view.writable();
        LiveDomain {
            name: self.view.name,
            uuid: self.view.uuid,
            epoch: self.view.epoch.unwrap_or(0),
            state,
            disks,
            cores: self.view.cores,
            memory_mib: self.view.memory_mib,
        }
    }
}
