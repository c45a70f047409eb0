//! Taking in a domain that somebody else started, and why a domain ended.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use stockade_core::render::DOMAIN_NAMESPACE;
use stockade_crds::v1alpha1::DomainSpec;
use virt::sys;

use super::{Libvirt, keep, pid_in};
use crate::error::{HostError, HostResult};
use crate::ports::StopReason;

/// So much of the end of libvirt's log of a domain is read.
const LOG_TAIL: u64 = 4_096;

/// Writes the order's epoch into a domain's metadata. libvirt gives the locks of a suspended
/// domain back and takes them again when it is resumed, so that a lock which can't be had fails
/// the resume and not this.
pub(super) async fn adopt(driver: &Libvirt, order: &DomainSpec, from: i64) -> HostResult<()> {
    let uid = order.vm.uid.clone();
    let element = format!(
        "<domain epoch='{}' host='{}' boot='{}' namespace='{}' name='{}'/>",
        order.epoch, order.host_uid, order.boot_id, order.vm.namespace, order.vm.name
    );
    let name = driver
        .on_domain("adopt", &uid, move |domain| {
            domain.set_metadata(
                sys::VIR_DOMAIN_METADATA_ELEMENT as i32,
                Some(&element),
                Some("stockade"),
                Some(DOMAIN_NAMESPACE),
                sys::VIR_DOMAIN_AFFECT_LIVE,
            )?;
            domain.name()
        })
        .await?;
    let Some(process) = pid_in(&driver.pid_file(&name)) else {
        return Err(HostError::failed("adopt", uid, "its process can't be told"));
    };
    driver.records.saw(&uid, order.epoch, process)?;
    if from > 0 {
        keep(driver.records.forget(&uid, from));
    }
    Ok(())
}

/// The reason in the last line that libvirt wrote when a domain ended.
pub(super) fn end_reason(logs: &Path, name: &str) -> Option<StopReason> {
    let mut file = File::open(logs.join(format!("{name}.log"))).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).ok()?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail).ok()?;
    last_reason(&String::from_utf8_lossy(&tail))
}

/// A start writes `starting up`, an end `shutting down, reason=…`: only an end that nothing
/// follows is the one asked for.
fn last_reason(log: &str) -> Option<StopReason> {
    let line = log
        .lines()
        .rev()
        .find(|line| line.contains(": shutting down, reason=") || line.contains(": starting up"))?;
    let (_, reason) = line.split_once("shutting down, reason=")?;
    Some(match reason.trim() {
        "shutdown" => StopReason::Shutdown,
        "destroyed" => StopReason::Destroyed,
        "crashed" => StopReason::Crashed,
        "migrated" => StopReason::Migrated,
        "failed" => StopReason::Failed,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reason_is_that_of_the_last_end() {
        let end = "2026-01-01 10:00:00.1+0000: shutting down, reason=shutdown\n";
        let start = "2026-01-01 10:00:05.1+0000: starting up libvirt version: 11.3.0\n";
        assert_eq!(last_reason(&format!("{start}{end}")), Some(StopReason::Shutdown));
        assert_eq!(last_reason(&format!("{end}{start}qemu: terminating on signal 9\n")), None);
        let crash = end.replace("=shutdown", "=crashed");
        assert_eq!(last_reason(&format!("{end}{start}{crash}")), Some(StopReason::Crashed));
        assert_eq!(last_reason(""), None);
    }
}
