//! o2cb, the cluster stack under OCFS2, as the kernel keeps it: one cluster a host, with its nodes
//! and timings in configfs. They are set there and not by o2cb's own tools, which take a machine's
//! name for its node's, and know a running cluster only as it was when it was started.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use stockade_crds::v1alpha1::{AgentOcfs2, OcfsNode};

use crate::cmd;
use crate::error::{HostError, HostResult};
use crate::files::{failed, replace};

const OP: &str = "use o2cb";
/// Port of the nodes' connections.
const PORT: &str = "7777";
/// How long loading the modules may take.
const LOAD_LIMIT: Duration = Duration::from_secs(60);

/// Where the pieces lie.
#[derive(Clone, Debug)]
pub struct O2cb {
    /// Mount point of configfs: `/sys/kernel/config`.
    pub configfs: PathBuf,
    /// The kernel's OCFS2: `/sys/fs/ocfs2`.
    pub sys: PathBuf,
    /// The file for OCFS2's own tools: `/etc/ocfs2/cluster.conf`.
    pub conf: PathBuf,
    /// Numbers of the nodes that beat on a disk of ours: `/sys/kernel/debug/o2hb/livenodes`.
    pub live: PathBuf,
}

impl Default for O2cb {
    fn default() -> Self {
        Self {
            configfs: "/sys/kernel/config".into(),
            sys: "/sys/fs/ocfs2".into(),
            conf: "/etc/ocfs2/cluster.conf".into(),
            live: "/sys/kernel/debug/o2hb/livenodes".into(),
        }
    }
}

/// The name of the o2cb cluster of one of our clusters: at most 16 letters and digits. The file
/// system keeps it, and the kernel mounts no other cluster's.
pub(super) fn cluster_name(cluster_id: &str) -> String {
    cluster_id.chars().filter(char::is_ascii_alphanumeric).take(16).collect()
}

impl O2cb {
    /// Makes the kernel know the cluster with these nodes, and no others: nodes are added to one that
    /// runs, and those that have left are taken out. Idempotent.
    ///
    /// # Errors
    /// [`HostError::Refused`] with the remedy for what a person must mend.
    pub(super) async fn ensure(&self, name: &str, wanted: &AgentOcfs2) -> HostResult<()> {
        self.load().await?;
        let root = self.configfs.join("cluster");
        let others = fs::read_dir(&root).map_err(failed(OP, &root))?.flatten();
        let mut others = others.filter_map(|entry| entry.file_name().into_string().ok());
        if let Some(other) = others.find(|other| other != name) {
            let message = format!(
                "this kernel is in the o2cb cluster {other}: take it out of /etc/ocfs2 and \
                 /etc/default/o2cb, and reboot this host"
            );
            return Err(HostError::refused(OP, name, message));
        }
        let text = conf(name, &wanted.nodes);
        if fs::read_to_string(&self.conf).ok().as_deref() != Some(&*text) {
            if let Some(folder) = self.conf.parent() {
                fs::create_dir_all(folder).map_err(failed(OP, folder))?;
            }
            replace(&self.conf, text.as_bytes()).map_err(failed(OP, &self.conf))?;
        }
        let cluster = root.join(name);
        make(&cluster)?;
        let threshold = cluster.join("heartbeat/dead_threshold");
        // The kernel keeps it as it is while a file system is mounted.
        write(&threshold, &wanted.heartbeat_threshold.to_string())?;
        for node in &wanted.nodes {
            self.node(&cluster, node, node.number == wanted.node_number)?;
        }
        self.without_others(&cluster, &wanted.nodes)
    }

    /// Takes nodes out that are none any more: o2dlm lets nobody mount whose list differs by one.
    ///
    /// A node that beats stays until it has unmounted; so does any if it is not known who beats.
    fn without_others(&self, cluster: &Path, nodes: &[OcfsNode]) -> HostResult<()> {
        let root = cluster.join("node");
        let known = fs::read_dir(&root).map_err(failed(OP, &root))?.flatten();
        let names = known.filter_map(|entry| entry.file_name().into_string().ok());
        let others: Vec<String> =
            names.filter(|name| !nodes.iter().any(|node| node.name == *name)).collect();
        if others.is_empty() {
            return Ok(());
        }
        let Ok(live) = fs::read_to_string(&self.live) else { return Ok(()) };
        for other in others.iter().map(|name| root.join(name)) {
            let number = fs::read_to_string(other.join("num")).unwrap_or_default();
            if live.split_whitespace().any(|beats| beats == number.trim()) {
                continue;
            }
            fs::remove_dir(&other).map_err(failed(OP, &other))?;
        }
        Ok(())
    }

    async fn load(&self) -> HostResult<()> {
        let stack = self.sys.join("cluster_stack");
        if !stack.exists() {
            let modules = ["-a", "configfs", "ocfs2", "ocfs2_stack_o2cb"];
            cmd::run(OP, "ocfs2", "modprobe", &modules, LOAD_LIMIT).await?;
        }
        if !self.configfs.join("cluster").exists() {
            let path = self.configfs.display().to_string();
            let arguments = ["-t", "configfs", "configfs", &path];
            cmd::run(OP, "configfs", "mount", &arguments, LOAD_LIMIT).await?;
        }
        write(&stack, "o2cb")
    }

    fn node(&self, cluster: &Path, node: &OcfsNode, local: bool) -> HostResult<()> {
        let folder = cluster.join("node").join(&node.name);
        let number = node.number.to_string();
        let new = !folder.exists();
        make(&folder)?;
        // In this order: a node is one once it has its number, and must be reachable by then.
        if new {
            write(&folder.join("ipv4_port"), PORT)?;
            write(&folder.join("ipv4_address"), &node.address).map_err(|error| {
                let message = format!(
                    "{:?} is no IPv4 address ({error}): give Host {} one as \
                     spec.addresses.storage",
                    node.address, node.name
                );
                HostError::refused(OP, &node.name, message)
            })?;
            write(&folder.join("num"), &number).map_err(|error| {
                // A folder that is no node yet goes again, so that the next try starts afresh.
                let _ = fs::remove_dir(&folder);
                let message = format!("another node has the number {number} here ({error})");
                HostError::refused(OP, &node.name, message)
            })?;
        }
        for (file, value) in [("num", number.as_str()), ("ipv4_address", &node.address)] {
            let path = folder.join(file);
            let found = fs::read_to_string(&path).map_err(failed(OP, &path))?;
            if found.trim() != value {
                let message = format!(
                    "this kernel knows it by {file} {}, and {value} is meant: reboot this host",
                    found.trim()
                );
                return Err(HostError::refused(OP, &node.name, message));
            }
        }
        if local { write(&folder.join("local"), "1") } else { Ok(()) }
    }
}

fn make(folder: &Path) -> HostResult<()> {
    match fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(failed(OP, folder)(error))
        }
        _ => Ok(()),
    }
}

/// Sets a value that differs.
fn write(path: &Path, value: &str) -> HostResult<()> {
    if fs::read_to_string(path).is_ok_and(|now| now.trim() == value) {
        return Ok(());
    }
    fs::write(path, format!("{value}\n")).map_err(failed(OP, path))
}

/// What OCFS2's own tools read.
fn conf(name: &str, nodes: &[OcfsNode]) -> String {
    let mut text = format!("cluster:\n\tnode_count = {}\n\tname = {name}\n", nodes.len());
    for node in nodes {
        text.push_str(&format!(
            "\nnode:\n\tip_port = {PORT}\n\tip_address = {}\n\tnumber = {}\n\tname = {}\n\t\
             cluster = {name}\n",
            node.address, node.number, node.name
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, number: i32, address: &str) -> OcfsNode {
        OcfsNode { name: name.into(), number, address: address.into() }
    }

    /// The kernel's folders, as files that keep what is written.
    fn place() -> (tempfile::TempDir, O2cb) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("config/cluster")).unwrap();
        fs::create_dir_all(at("sys")).unwrap();
        fs::write(at("sys/cluster_stack"), "o2cb\n").unwrap();
        let o2cb = O2cb {
            configfs: at("config"),
            sys: at("sys"),
            conf: at("etc/ocfs2/cluster.conf"),
            live: at("livenodes"),
        };
        (folder, o2cb)
    }

    fn wanted(nodes: Vec<OcfsNode>) -> AgentOcfs2 {
        AgentOcfs2 { node_number: 2, nodes, heartbeat_threshold: 31, ..AgentOcfs2::default() }
    }

    #[tokio::test]
    async fn a_node_that_joins_later_is_added_and_a_number_never_changes_under_a_kernel() {
        let (folder, o2cb) = place();
        let at = |name: &str| folder.path().join("config/cluster/c1").join(name);
        fs::create_dir_all(at("heartbeat")).unwrap();
        fs::create_dir_all(at("node")).unwrap();
        let (h1, h2) = (node("h1", 1, "10.0.0.1"), node("h2", 2, "10.0.0.2"));
        o2cb.ensure("c1", &wanted(vec![h2.clone()])).await.unwrap();
        o2cb.ensure("c1", &wanted(vec![h1.clone(), h2.clone()])).await.unwrap();
        let read = |name: &str| fs::read_to_string(at(name)).unwrap().trim().to_owned();
        assert_eq!(read("heartbeat/dead_threshold"), "31");
        assert_eq!((read("node/h1/num"), read("node/h1/ipv4_port")), ("1".into(), "7777".into()));
        assert_eq!(read("node/h2/local"), "1");
        assert!(!at("node/h1/local").exists(), "h1 is not this host");
        let text = fs::read_to_string(folder.path().join("etc/ocfs2/cluster.conf")).unwrap();
        assert!(text.contains("node_count = 2") && text.contains("name = h1"), "{text}");
        let moved = wanted(vec![node("h1", 5, "10.0.0.1"), h2.clone()]);
        assert!(matches!(o2cb.ensure("c1", &moved).await, Err(HostError::Refused { .. })));
        let other = o2cb.ensure("c2", &wanted(vec![h2])).await;
        assert!(other.unwrap_err().to_string().contains("o2cb cluster c1"));
    }

    #[tokio::test]
    async fn a_node_that_has_left_is_taken_out_once_it_beats_no_more() {
        let (folder, o2cb) = place();
        let nodes = folder.path().join("config/cluster/c1/node");
        fs::create_dir_all(folder.path().join("config/cluster/c1/heartbeat")).unwrap();
        // The kernel's folders go with their files; these have none.
        fs::create_dir_all(nodes.join("gone")).unwrap();
        fs::create_dir_all(nodes.join("beats")).unwrap();
        fs::write(nodes.join("beats/num"), "3\n").unwrap();
        let own = || wanted(vec![node("h2", 2, "10.0.0.2")]);
        o2cb.ensure("c1", &own()).await.unwrap();
        assert!(nodes.join("gone").exists(), "it is not known who beats");
        fs::write(folder.path().join("livenodes"), "2 3 \n").unwrap();
        o2cb.ensure("c1", &own()).await.unwrap();
        let left = |name: &str| nodes.join(name).exists();
        assert_eq!((left("gone"), left("beats"), left("h2")), (false, true, true));
    }

    #[test]
    fn a_clusters_name_is_short_and_its_own() {
        let name = cluster_name("1c0f6a3e-8f7b-4d11-9d42-000000000001");
        assert_eq!(name, "1c0f6a3e8f7b4d11");
    }
}
