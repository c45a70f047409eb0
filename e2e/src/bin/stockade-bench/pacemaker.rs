//! The peer: Pacemaker's scheduler by `crm_simulate`, on the same hosts and VMs.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use stockade_core::placement::{Acceptance, HostRow, VmRow};

use crate::report::Error;

/// How Pacemaker is to place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    /// Its default: by the number of VMs alone.
    Default,
    /// By CPU and memory as well, evenly.
    Balanced,
}

/// What Pacemaker planned.
pub struct Planned {
    /// How long it took.
    pub took: Duration,
    /// VMs that it leaves stopped.
    pub stopped: usize,
}

/// Whether the peer is installed.
pub fn present() -> bool {
    Command::new("crm_simulate").arg("--version").stdout(Stdio::null()).status().is_ok()
}

/// Lets Pacemaker plan. Hosts that accept nothing are unclean: lost, to be fenced.
///
/// # Errors
/// If it can't be run, or ends otherwise than with a plan.
pub fn plan(hosts: &[HostRow], vms: &[VmRow], strategy: Strategy) -> Result<Planned, Error> {
    let mut file = tempfile::NamedTempFile::new()?;
    file.write_all(cib(hosts, vms, strategy).as_bytes())?;
    let begin = Instant::now();
    let output = Command::new("crm_simulate").arg("-R").arg("-x").arg(file.path()).output()?;
    let took = begin.elapsed();
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(Error::Peer(text));
    }
    let text = String::from_utf8_lossy(&output.stdout);
    let stopped = text.split("Transition Summary").next().map_or(0, |_| left_stopped(&text, vms));
    Ok(Planned { took, stopped })
}

/// VMs that neither run on a living host nor get an action that lets them run.
fn left_stopped(text: &str, vms: &[VmRow]) -> usize {
    let placed: BTreeSet<&str> = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("* "))
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let action = words.next()?;
            matches!(action, "Start" | "Move" | "Recover" | "Restart").then(|| words.next())?
        })
        .collect();
    // A line `vm (ocf:…): Started h` of the current state tells who runs.
    let runs: BTreeSet<&str> = text
        .lines()
        .filter(|line| line.contains("Started h") && !line.contains("UNCLEAN"))
        .filter_map(|line| line.trim().trim_start_matches("* ").split_whitespace().next())
        .collect();
    let lost = |vm: &&VmRow| {
        !placed.contains(vm.key.name.as_str()) && !runs.contains(vm.key.name.as_str())
    };
    vms.iter().filter(lost).count()
}

/// The cluster as Pacemaker's configuration and state.
fn cib(hosts: &[HostRow], vms: &[VmRow], strategy: Strategy) -> String {
    let mut xml = String::new();
    let strategy = match strategy {
        Strategy::Default => "default",
        Strategy::Balanced => "balanced",
    };
    // Writing to a String can't fail.
    let _ = write!(
        xml,
        "<cib crm_feature_set=\"3.16.0\" validate-with=\"pacemaker-3.9\" epoch=\"1\" \
         num_updates=\"0\" admin_epoch=\"0\" have-quorum=\"1\" dc-uuid=\"{dc}\">\
         <configuration><crm_config><cluster_property_set id=\"o\">\
         <nvpair id=\"o-s\" name=\"stonith-enabled\" value=\"true\"/>\
         <nvpair id=\"o-p\" name=\"placement-strategy\" value=\"{strategy}\"/>\
         </cluster_property_set></crm_config><nodes>",
        dc = hosts.len(),
    );
    let utilization = |xml: &mut String, id: &str, cpu: i64, mib: i64| {
        let _ = write!(
            xml,
            "<utilization id=\"{id}-u\"><nvpair id=\"{id}-c\" name=\"cpu\" value=\"{cpu}\"/>\
             <nvpair id=\"{id}-m\" name=\"memory\" value=\"{mib}\"/></utilization>"
        );
    };
    for (n, host) in hosts.iter().enumerate() {
        let _ = write!(xml, "<node id=\"{}\" uname=\"{}\">", n + 1, host.name);
        utilization(&mut xml, &host.name, host.cpu, host.memory_mib);
        xml.push_str("</node>");
    }
    xml.push_str(
        "</nodes><resources><primitive id=\"shooter\" class=\"stonith\" type=\"fence_ipmilan\"/>",
    );
    for vm in vms {
        let id = &vm.key.name;
        let _ = write!(
            xml,
            "<primitive id=\"{id}\" class=\"ocf\" provider=\"heartbeat\" type=\"VirtualDomain\">"
        );
        utilization(&mut xml, id, vm.cpu, vm.memory_mib);
        let _ = write!(
            xml,
            "<operations><op id=\"{id}-o\" name=\"monitor\" interval=\"30s\"/></operations>\
             </primitive>"
        );
    }
    xml.push_str("</resources><constraints/></configuration><status>");
    let mut by_host: std::collections::BTreeMap<&str, Vec<&str>> = Default::default();
    for vm in vms {
        if let Some(host) = vm.on.first() {
            by_host.entry(host).or_default().push(&vm.key.name);
        }
    }
    for (n, host) in hosts.iter().enumerate() {
        let (member, online) = match host.accepts {
            Acceptance::Yes => ("true", "online"),
            Acceptance::No(_) => ("false", "offline"),
        };
        let id = n + 1;
        let _ = write!(
            xml,
            "<node_state id=\"{id}\" uname=\"{}\" in_ccm=\"{member}\" crmd=\"{online}\" \
             join=\"member\" expected=\"member\"><lrm id=\"{id}\"><lrm_resources>",
            host.name
        );
        for vm in by_host.get(host.name.as_str()).into_iter().flatten() {
            history(&mut xml, vm, &host.name);
        }
        xml.push_str("</lrm_resources></lrm></node_state>");
    }
    xml.push_str("</status></cib>");
    xml
}

/// A VM that was started on a host and is monitored there.
fn history(xml: &mut String, vm: &str, host: &str) {
    let _ = write!(
        xml,
        "<lrm_resource id=\"{vm}\" class=\"ocf\" provider=\"heartbeat\" type=\"VirtualDomain\">"
    );
    for (call, operation, interval) in [(1, "start", 0), (2, "monitor", 30_000)] {
        let _ = write!(
            xml,
            "<lrm_rsc_op id=\"{vm}_{operation}_{interval}\" operation_key=\"{vm}_{operation}_\
             {interval}\" operation=\"{operation}\" crm-debug-origin=\"bench\" \
             crm_feature_set=\"3.16.0\" transition-key=\"{call}:1:0:0a6c3e52-0000-4000-8000-\
             000000000001\" transition-magic=\"0:0;{call}:1:0:0a6c3e52-0000-4000-8000-\
             000000000001\" on_node=\"{host}\" call-id=\"{call}\" rc-code=\"0\" op-status=\"0\" \
             interval=\"{interval}\" op-digest=\"f2317cad3d54cec5d7d7aa7d0bf35cf8\"/>"
        );
    }
    xml.push_str("</lrm_resource>");
}
