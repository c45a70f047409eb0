//! `cordon` and `uncordon`: a host's mode.

use kube::ResourceExt as _;
use serde_json::json;
use stockade_crds::v1alpha1::{Host, HostMode};

use super::error::PluginError;
use super::session::{Session, merge};

#[derive(clap::Args)]
pub(super) struct Arguments {
    /// The host.
    host: String,
}

/// No further VM comes.
pub(super) async fn cordon(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let host = session.host(&arguments.host).await?;
    if host.spec.mode == HostMode::Maintenance {
        return Err(PluginError::Refused(format!(
            "host {0} is in maintenance and takes no VM already; `kubectl stockade uncordon {0}` \
             ends that",
            arguments.host
        )));
    }
    set(session, &host, HostMode::Cordoned).await?;
    println!("host {} cordoned: its VMs stay, none comes", arguments.host);
    Ok(())
}

/// VMs run there again.
pub(super) async fn uncordon(session: &Session, arguments: &Arguments) -> Result<(), PluginError> {
    let host = session.host(&arguments.host).await?;
    let drained = host.spec.mode == HostMode::Maintenance;
    set(session, &host, HostMode::Active).await?;
    let more =
        if drained { "; moves away from it are called off, what has moved stays" } else { "" };
    println!("host {} uncordoned{more}", arguments.host);
    Ok(())
}

/// Writes a host's mode.
pub(super) async fn set(
    session: &Session,
    host: &Host,
    mode: HostMode,
) -> Result<Host, PluginError> {
    let name = host.name_any();
    let fields = json!({"spec": {"mode": mode}});
    merge(&session.cluster(), &name, fields, format!("change the mode of host {name}")).await
}
