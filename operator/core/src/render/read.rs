//! Reading a domain's XML as libvirt gives it: to the agent, and to the hook.

use roxmltree::{Document, Node};
use thiserror::Error;

use super::DOMAIN_NAMESPACE;

/// Why a domain's XML was not understood.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ReadError {
    /// It is no well-formed XML.
    #[error("not well-formed: {0}")]
    Malformed(String),
    /// An element that every domain has is missing.
    #[error("the domain has no {0}")]
    Missing(&'static str),
    /// Our own metadata is there, but it can't be read.
    #[error("the epoch in the domain's metadata is no number: {0:?}")]
    Epoch(String),
}

/// What Stockade reads of a domain's XML.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainView {
    /// libvirt's name.
    pub name: String,
    /// libvirt's UUID.
    pub uuid: String,
    /// Epoch in our metadata; `None`: a foreign domain.
    pub epoch: Option<i64>,
    /// Boot that the order was for; empty if foreign.
    pub boot_id: String,
    /// Machine type, versioned once libvirt has resolved it.
    pub machine_type: String,
    /// CPU model; empty where none is named.
    pub cpu_model: String,
    /// vCPUs in use.
    pub cores: i32,
    /// MiB in use.
    pub memory_mib: i64,
    /// MiB that it can grow to while it runs.
    pub max_memory_mib: i64,
    /// Disks.
    pub disks: Vec<ViewedDisk>,
    /// File with its UEFI variables; empty where it names none.
    pub variables: String,
    /// MAC addresses of its network interfaces, as libvirt writes them.
    pub macs: Vec<String>,
}

/// A disk of a domain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewedDisk {
    /// File or device on the host; empty if it has none (a network disk, an empty drive).
    pub path: String,
    /// Device name in the guest.
    pub target: String,
    /// The guest may not write it.
    pub read_only: bool,
}

impl DomainView {
    /// Paths of the disks that the domain may write.
    #[must_use]
    pub fn writable(&self) -> Vec<String> {
        let disks = self.disks.iter().filter(|disk| !disk.read_only && !disk.path.is_empty());
        disks.map(|disk| disk.path.clone()).collect()
    }
}

/// Reads a domain's XML.
pub fn read_domain(xml: &str) -> Result<DomainView, ReadError> {
    let document = Document::parse(xml).map_err(|error| ReadError::Malformed(error.to_string()))?;
    let domain = document
        .descendants()
        .find(|node| node.has_tag_name("domain"))
        .ok_or(ReadError::Missing("domain element"))?;
    let child = |name: &str| domain.children().find(|node| node.has_tag_name(name));
    let text = |name: &'static str| {
        let text = child(name).and_then(|node| node.text()).map(str::trim);
        text.filter(|text| !text.is_empty()).ok_or(ReadError::Missing(name))
    };
    let ours = child("metadata").and_then(|metadata| {
        metadata.children().find(|node| node.has_tag_name((DOMAIN_NAMESPACE, "domain")))
    });
    let epoch = ours.map(|node| node.attribute("epoch").unwrap_or_default());
    let epoch = epoch
        .map(|epoch| epoch.parse().map_err(|_| ReadError::Epoch(epoch.to_owned())))
        .transpose()?;
    let in_os =
        |name: &str| child("os").and_then(|os| os.children().find(|node| node.has_tag_name(name)));
    let os_type = in_os("type");
    let variables = in_os("nvram").and_then(|node| {
        let source = node.children().find(|child| child.has_tag_name("source"));
        source.map_or_else(|| node.text().map(str::trim), |source| source.attribute("file"))
    });
    let model = child("cpu").and_then(|cpu| cpu.children().find(|node| node.has_tag_name("model")));
    let vcpu = child("vcpu");
    let cores =
        vcpu.and_then(|node| node.attribute("current").or_else(|| node.text())).unwrap_or("1");
    let maximum = child("memory").map_or(0, mebibytes);
    let devices = |name: &'static str| {
        let all = child("devices").into_iter().flat_map(|devices| devices.children());
        all.filter(move |node| node.has_tag_name(name))
    };
    let macs = devices("interface").filter_map(|interface| {
        let mac = interface.children().find(|node| node.has_tag_name("mac"))?;
        mac.attribute("address").map(str::to_owned)
    });
    Ok(DomainView {
        name: text("name")?.to_owned(),
        uuid: text("uuid")?.to_owned(),
        epoch,
        boot_id: ours.and_then(|node| node.attribute("boot")).unwrap_or_default().to_owned(),
        machine_type: os_type
            .and_then(|node| node.attribute("machine"))
            .unwrap_or_default()
            .to_owned(),
        cpu_model: model.and_then(|node| node.text()).unwrap_or_default().to_owned(),
        cores: cores.trim().parse().unwrap_or(1),
        memory_mib: child("currentMemory").map_or(maximum, mebibytes),
        max_memory_mib: maximum,
        disks: devices("disk").map(disk).collect(),
        variables: variables.unwrap_or_default().to_owned(),
        macs: macs.collect(),
    })
}

/// The XML with another epoch in our metadata: what a live move hands to the target, which
/// runs under an epoch of its own (safety §8.1). `None` if the XML is not of `epoch`.
#[must_use]
pub fn with_epoch(xml: &str, epoch: i64, target_epoch: i64) -> Option<String> {
    let document = Document::parse(xml).ok()?;
    let ours = document.descendants().find(|node| {
        node.has_tag_name((DOMAIN_NAMESPACE, "domain"))
            && node.parent().is_some_and(|parent| parent.has_tag_name("metadata"))
    })?;
    let attribute = ours.attribute_node("epoch")?;
    if attribute.value().parse() != Ok(epoch) {
        return None;
    }
    let value = attribute.range_value();
    Some(format!("{}{target_epoch}{}", &xml[..value.start], &xml[value.end..]))
}

fn disk(node: Node<'_, '_>) -> ViewedDisk {
    let child = |name: &str| node.children().find(|child| child.has_tag_name(name));
    let source = child("source");
    let path =
        source.and_then(|source| source.attribute("file").or_else(|| source.attribute("dev")));
    let target = child("target").and_then(|target| target.attribute("dev"));
    ViewedDisk {
        path: path.unwrap_or_default().to_owned(),
        target: target.unwrap_or_default().to_owned(),
        // libvirt marks a CD drive as read only itself, but a hook may see it before that.
        read_only: child("readonly").is_some() || node.attribute("device") == Some("cdrom"),
    }
}

/// An element's amount of memory in MiB, rounded down; libvirt's default unit is KiB.
fn mebibytes(node: Node<'_, '_>) -> i64 {
    let amount: i64 = node.text().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
    match node.attribute("unit").unwrap_or("KiB") {
        "b" | "bytes" => amount >> 20,
        "KB" => amount.saturating_mul(1000) >> 20,
        "M" | "MiB" => amount,
        "G" | "GiB" => amount.saturating_mul(1 << 10),
        _ => amount >> 10,
    }
}
