//! Live moves: peer to peer, driven by the source's daemon.

use std::time::Duration;

use stockade_core::render::with_epoch;
use virt::domain::MigrateParameters;
use virt::sys;

use super::connect::Connection;
use super::domain;
use crate::error::{HostError, HostResult};
use crate::ports::{LiveState, MigrateRequest};

/// A move may take this long; the agent aborts one that its policy finds too slow.
const LIMIT: Duration = Duration::from_secs(24 * 3600);
/// How long the source may take to say what became of it.
const LOOK: Duration = Duration::from_secs(10);

/// How peers are reached. `{address}` stands for the peer's migration address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationOptions {
    /// The peer's daemon, as the source's daemon calls it.
    pub peer_uri: String,
    /// Where the memory goes.
    pub data_uri: String,
    /// The memory goes over TLS of QEMU's own.
    pub tls: bool,
}

impl MigrationOptions {
    /// Plain TCP for both: for a network that nobody else reaches.
    #[must_use]
    pub fn insecure() -> Self {
        Self {
            peer_uri: "qemu+tcp://{address}/system".into(),
            data_uri: "tcp://{address}".into(),
            tls: false,
        }
    }
}

impl Default for MigrationOptions {
    /// Mutual TLS for both, the only way between real hosts.
    fn default() -> Self {
        Self {
            peer_uri: "qemu+tls://{address}/system".into(),
            data_uri: "tcp://{address}".into(),
            tls: true,
        }
    }
}

/// Moves a running domain; returns when it is over.
///
/// `Failed`: it runs on here. `Unknown`: only reading both sides tells.
pub(super) async fn migrate(
    connection: &Connection,
    options: &MigrationOptions,
    request: &MigrateRequest,
) -> HostResult<()> {
    const OP: &str = "migrate";
    let address = |template: &str| template.replace("{address}", &request.peer_address);
    let (peer, data) = (address(&options.peer_uri), address(&options.data_uri));
    // The disks lie on storages that are known to be shared, whatever libvirt thinks of the file
    // system, and are opened without the page cache: that is what UNSAFE vouches for.
    let mut flags = sys::VIR_MIGRATE_LIVE | sys::VIR_MIGRATE_PEER2PEER | sys::VIR_MIGRATE_UNSAFE;
    if options.tls {
        flags |= sys::VIR_MIGRATE_TLS;
    }
    if request.leave_paused {
        flags |= sys::VIR_MIGRATE_PAUSED;
    }
    if request.auto_converge {
        flags |= sys::VIR_MIGRATE_AUTO_CONVERGE;
    }
    let parallel = request.parallel_connections.max(0);
    if parallel > 0 {
        flags |= sys::VIR_MIGRATE_PARALLEL;
    }
    let (epoch, target_epoch) = (request.epoch, request.target_epoch);
    let bandwidth = u64::from(request.bandwidth_mib_per_second.max(0).unsigned_abs());
    let downtime = u64::from(request.downtime_limit_milliseconds.max(0).unsigned_abs());
    let uid = request.vm_uid.clone();
    let moved = connection
        .change_alone(OP, &request.vm_uid, LIMIT, move |connect| {
            let domain = connect.lookup_domain_by_uuid_string(&uid)?;
            let xml = domain.xml_desc(sys::VIR_DOMAIN_XML_MIGRATABLE)?;
            let Some(xml) = with_epoch(&xml, epoch, target_epoch) else { return Ok(false) };
            if downtime > 0 {
                domain.migrate_set_max_downtime(downtime, 0)?;
            }
            let parameters = MigrateParameters {
                dest_xml: Some(xml),
                uri: Some(data),
                bandwidth: (bandwidth > 0).then_some(bandwidth),
                parallel_connections: (parallel > 0).then_some(parallel),
                ..MigrateParameters::default()
            };
            domain.migrate_to_uri3(Some(&peer), parameters, flags)?;
            Ok(true)
        })
        .await;
    let error = match moved {
        Ok(true) => return Ok(()),
        Ok(false) => {
            let message = format!("the domain that runs here is not of epoch {epoch}");
            return Err(HostError::refused(OP, &request.vm_uid, message));
        }
        Err(error) => error,
    };
    // Only a source that runs on is a certain failure: its last answer may have been lost.
    let uid = request.vm_uid.clone();
    let left = connection
        .read(OP, &request.vm_uid, LOOK, move |connect| {
            domain::see(&connect.lookup_domain_by_uuid_string(&uid)?)
        })
        .await;
    let left = left.ok().flatten().map(|seen| seen.live(false).state);
    let runs = left == Some(LiveState::Running);
    let message = error.to_string();
    if runs {
        return Err(HostError::failed(OP, &request.vm_uid, message));
    }
    Err(HostError::unknown(OP, &request.vm_uid, message))
}
