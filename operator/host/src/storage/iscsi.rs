//! The initiator of iSCSI: a login by hand to one target, and the device that comes of it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use stockade_crds::v1alpha1::AgentIscsi;
use tokio::net::{TcpStream, lookup_host};

use crate::cmd;
use crate::error::{HostError, HostResult};

const OP: &str = "log in by iSCSI";
/// How long a login may take.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a portal may take to accept a connection.
const REACH_LIMIT: Duration = Duration::from_secs(5);
/// How long the device may take to appear after the login.
const DEVICE_LIMIT: Duration = Duration::from_secs(30);

/// Host and port of a portal.
fn parts(portal: &str) -> (&str, u16) {
    let split =
        portal.rsplit_once(':').filter(|(host, _)| !host.contains(':') || host.ends_with(']'));
    let (host, port) = split.map_or((portal, None), |(host, port)| (host, port.parse().ok()));
    (host.trim_start_matches('[').trim_end_matches(']'), port.unwrap_or(3260))
}

/// The stable path of the device, as udev makes it.
fn device(address: IpAddr, port: u16, iscsi: &AgentIscsi) -> PathBuf {
    format!("/dev/disk/by-path/ip-{address}:{port}-iscsi-{}-lun-{}", iscsi.target, iscsi.lun).into()
}

/// Logs in unless that is done, and gives the device's stable path.
///
/// # Errors
/// [`HostError::Refused`] with the remedy for what a person must mend.
pub(super) async fn login(iscsi: &AgentIscsi) -> HostResult<PathBuf> {
    let (host, port) = parts(&iscsi.portal);
    let resolved = lookup_host((host, port)).await.ok().and_then(|mut found| found.next());
    let Some(address) = resolved else {
        let message = "the portal's name is not known here; correct spec.ocfs2.iscsi.portal";
        return Err(HostError::refused(OP, &iscsi.portal, message));
    };
    let device = device(address.ip(), port, iscsi);
    if device.exists() {
        return Ok(device);
    }
    let reached = tokio::time::timeout(REACH_LIMIT, TcpStream::connect(address)).await;
    if !matches!(reached, Ok(Ok(_))) {
        let message = format!(
            "{address} can't be reached: start the target's server, open the port, or correct \
             spec.ocfs2.iscsi.portal"
        );
        return Err(HostError::refused(OP, &iscsi.portal, message));
    }
    cmd::run(OP, "iscsid", "systemctl", &["start", "iscsid.service"], LIMIT).await?;
    let portal = address.to_string();
    let node = ["-m", "node", "-T", &iscsi.target, "-p", &portal];
    let ask = |words: &'static [&'static str]| {
        let arguments: Vec<&str> = node.iter().copied().chain(words.iter().copied()).collect();
        async move { cmd::run(OP, &iscsi.target, "iscsiadm", &arguments, LIMIT).await }
    };
    ask(&["-o", "new"]).await?;
    // At boot the agent logs in, once the server has its denials in force.
    ask(&["-o", "update", "-n", "node.startup", "-v", "manual"]).await?;
    match ask(&["--login"]).await {
        Err(HostError::Failed { message, .. }) if message.contains("authorization") => {
            let message =
                format!("the target does not admit this host: add its address there ({message})");
            return Err(HostError::refused(OP, &iscsi.target, message));
        }
        Err(HostError::Failed { message, .. }) if message.contains("not found") => {
            let message = format!(
                "the portal has no such target: serve it, or correct spec.ocfs2.iscsi.target \
                 ({message})"
            );
            return Err(HostError::refused(OP, &iscsi.target, message));
        }
        // A session that is there is as good.
        Err(HostError::Failed { message, .. }) if message.contains("already present") => {}
        other => {
            other?;
        }
    }
    let began = Instant::now();
    while !device.exists() {
        if began.elapsed() > DEVICE_LIMIT {
            let message = format!(
                "logged in, but there is no LUN {}: correct spec.ocfs2.iscsi.lun",
                iscsi.lun
            );
            return Err(HostError::refused(OP, &iscsi.target, message));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    Ok(device)
}

/// Ends the session of a target that is no longer wanted here.
pub(super) async fn logout(iscsi: &AgentIscsi) -> HostResult<()> {
    let arguments = ["-m", "node", "-T", &iscsi.target, "--logout"];
    match cmd::run(OP, &iscsi.target, "iscsiadm", &arguments, LIMIT).await {
        Err(HostError::Failed { message, .. })
            if message.contains("No matching sessions") || message.contains("No records") =>
        {
            Ok(())
        }
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_portal_may_name_its_port_and_a_device_is_named_by_where_it_comes_from() {
        assert_eq!(parts("10.0.0.9"), ("10.0.0.9", 3260));
        assert_eq!(parts("10.0.0.9:3261"), ("10.0.0.9", 3261));
        assert_eq!(parts("[fd00::1]:3261"), ("fd00::1", 3261));
        assert_eq!(parts("fd00::1"), ("fd00::1", 3260));
        let target = "iqn.2026-01.dev.stockade:vms".to_owned();
        let iscsi = AgentIscsi { portal: "10.0.0.9".into(), target, lun: 1 };
        assert_eq!(
            device("10.0.0.9".parse().unwrap(), 3260, &iscsi).to_string_lossy(),
            "/dev/disk/by-path/ip-10.0.0.9:3260-iscsi-iqn.2026-01.dev.stockade:vms-lun-1"
        );
    }
}
