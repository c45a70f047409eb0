//! The peer: corosync and Pacemaker on local hosts, with VMs under its agent VirtualDomain, and its
//! standby of a host.
//!
//! Its programs are not installed, for there they would start by themselves: they lie unpacked in a
//! folder that `./dev bench` makes, and each host sees them in its own `/usr`.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use stockade_e2e::local_hosts::{LocalHost, Network};

use crate::report::Error;

/// Names the folder with the peer's programs.
const FOLDER: &str = "STOCKADE_BENCH_PEER";
/// How long any one thing may take.
const LIMIT: Duration = Duration::from_secs(240);

/// Runs inside a host, with mounts of its own: `$1` has the programs, `$2` is the host's folder.
const START: &str = r#"set -eu
tree=$1 own=$2
for file in passwd group; do
    cp "/etc/$file" "$own/$file"
done
echo 'hacluster:x:889:889::/var/lib/pacemaker:/usr/sbin/nologin' >>"$own/passwd"
echo 'haclient:x:889:' >>"$own/group"
mount -t overlay -o "lowerdir=$tree/usr:/usr" overlay /usr
for file in passwd group; do
    mount --bind "$own/$file" "/etc/$file"
done
for folder in etc/corosync var/lib/corosync var/lib/pacemaker var/log/pacemaker; do
    mkdir -p "$own/$folder" "/$folder"
    mount --bind "$own/$folder" "/$folder"
done
mount -t tmpfs tmpfs /dev/shm
cp "$own/corosync.conf" /etc/corosync/corosync.conf
mkdir -p /etc/corosync/uidgid.d /run/resource-agents /var/lib/pacemaker/cib \
    /var/lib/pacemaker/pengine /var/lib/pacemaker/cores /var/lib/pacemaker/blackbox
printf 'uidgid {\n uid: hacluster\n gid: haclient\n}\n' >/etc/corosync/uidgid.d/hacluster
chown -R hacluster:haclient /var/lib/pacemaker /var/log/pacemaker
corosync -f &
tries=0
until corosync-cmapctl runtime.config.totem.token >/dev/null 2>&1; do
    [ "$tries" -lt 200 ]
    tries=$((tries + 1))
    sleep 0.1
done
echo $$ >"$own/pid"
PCMK_logfile="$own/pacemaker.log" PCMK_logfacility=none exec pacemakerd
"#;

/// Pacemaker on hosts; dropping it ends it, and leaves what it started.
pub struct Peer<'a> {
    hosts: Vec<&'a LocalHost>,
    folder: PathBuf,
    children: Vec<Child>,
}

impl<'a> Peer<'a> {
    /// Where its programs are; `None`: they are not there, and the peer is left out.
    pub fn programs() -> Option<PathBuf> {
        std::env::var_os(FOLDER).map(PathBuf::from).filter(|folder| folder.join("usr").is_dir())
    }

    /// Starts a cluster of these hosts, and waits until all of them are online. `folder` gets its
    /// state and logs.
    ///
    /// # Errors
    /// It does not start, or not in time.
    pub fn start(hosts: Vec<&'a LocalHost>, programs: &Path, folder: &Path) -> Result<Self, Error> {
        let mut this = Self { hosts, folder: folder.to_owned(), children: Vec::new() };
        let mut nodes = String::new();
        for (index, host) in this.hosts.iter().enumerate() {
            let (name, address) = (host.name(), host.address());
            let _ = writeln!(
                nodes,
                " node {{\n  ring0_addr: {address}\n  name: {name}\n  nodeid: {}\n }}",
                index + 1
            );
        }
        for host in &this.hosts {
            let own = this.own(host);
            fs::create_dir_all(&own)?;
            let conf = format!(
                "totem {{\n version: 2\n cluster_name: peer\n transport: knet\n \
                 crypto_cipher: none\n crypto_hash: none\n}}\nnodelist {{\n{nodes}}}\n\
                 quorum {{\n provider: corosync_votequorum\n two_node: 1\n wait_for_all: 0\n}}\n\
                 system {{\n sched_rr: no\n move_to_root_cgroup: no\n}}\n\
                 logging {{\n to_syslog: no\n to_stderr: yes\n}}\n"
            );
            fs::write(own.join("corosync.conf"), conf)?;
            let log = File::create(own.join("log"))?;
            let mut command =
                host.command("unshare", Network::Host).map_err(|e| Error::Peer(e.to_string()))?;
            let child = command
                .args(["--mount", "--propagation=private", "sh", "-c", START, "sh"])
                .arg(programs)
                .arg(&own)
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                .spawn()?;
            this.children.push(child);
        }
        this.until("all nodes are online", |this| {
            let said = this.run(&["crm_mon", "-1", "--output-as=xml"])?;
            let online = |host: &&LocalHost| {
                let node = format!("<node name=\"{}\"", host.name());
                said.lines().any(|line| line.contains(&node) && line.contains("online=\"true\""))
            };
            Ok(this.hosts.iter().all(online))
        })?;
        Ok(this)
    }

    fn own(&self, host: &LocalHost) -> PathBuf {
        self.folder.join(format!("peer-{}", host.name()))
    }

    /// Runs one of its programs on the first host; gives what it wrote.
    fn run(&self, words: &[&str]) -> Result<String, Error> {
        let host = self.hosts.first().ok_or_else(|| Error::Peer("it has no host".into()))?;
        let pid = fs::read_to_string(self.own(host).join("pid"))?;
        let mut command =
            host.command("nsenter", Network::Host).map_err(|e| Error::Peer(e.to_string()))?;
        let output =
            command.args(["--target", pid.trim(), "--mount", "--"]).args(words).output()?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Err(Error::Peer(format!("{}: {said}", words.join(" "))))
    }

    fn until(&self, what: &str, is: impl Fn(&Self) -> Result<bool, Error>) -> Result<(), Error> {
        let began = Instant::now();
        loop {
            let last = is(self);
            if matches!(last, Ok(true)) {
                return Ok(());
            }
            if began.elapsed() > LIMIT {
                let why = last.err().map(|error| error.to_string()).unwrap_or_default();
                let logs: String = self
                    .hosts
                    .iter()
                    .map(|host| fs::read_to_string(self.own(host).join("log")).unwrap_or_default())
                    .collect();
                return Err(Error::Peer(format!("not in time: {what}: {why}\n{logs}")));
            }
            std::thread::sleep(Duration::from_millis(500));
        }
    }

    /// Sets a property of the cluster.
    ///
    /// # Errors
    /// Its words.
    pub fn property(&self, name: &str, value: &str) -> Result<(), Error> {
        let words = ["crm_attribute", "--type", "crm_config", "--name", name, "--update", value];
        self.run(&words).map(drop)
    }

    /// Puts a host in standby, or takes it back; it answers at once.
    ///
    /// # Errors
    /// Its words.
    pub fn standby(&self, host: &str, on: bool) -> Result<(), Error> {
        let value = if on { "on" } else { "off" };
        self.run(&["crm_standby", "--node", host, "--update", value]).map(drop)
    }

    /// Has it keep these domains running, by name and XML file, and move them live: as its own
    /// documents have it, and with what libvirt needs here.
    ///
    /// # Errors
    /// Its words.
    pub fn keep(&self, domains: &[(String, PathBuf)]) -> Result<(), Error> {
        let mut text = String::from("<resources>\n");
        for (name, file) in domains {
            let file = file.display();
            let pair = |set: &str, key: &str, value: &str| {
                format!("<nvpair id=\"{name}-{set}-{key}\" name=\"{key}\" value=\"{value}\"/>")
            };
            let meta = [("allow-migrate", "true"), ("resource-stickiness", "INFINITY")];
            let meta: String = meta.into_iter().map(|(k, v)| pair("meta", k, v)).collect();
            let file = file.to_string();
            let attributes = [
                ("config", file.as_str()),
                ("hypervisor", "qemu:///system"),
                ("migration_transport", "tls"),
                ("migrate_options", "--unsafe --tls"),
            ];
            let attributes: String =
                attributes.into_iter().map(|(k, v)| pair("set", k, v)).collect();
            let operation = |action: &str, interval: &str| {
                format!(
                    "<op id=\"{name}-{action}\" name=\"{action}\" interval=\"{interval}\" \
                     timeout=\"180s\"/>"
                )
            };
            let operations: String = [
                ("start", "0s"),
                ("stop", "0s"),
                ("monitor", "10s"),
                ("migrate_to", "0s"),
                ("migrate_from", "0s"),
            ]
            .into_iter()
            .map(|(action, interval)| operation(action, interval))
            .collect();
            let _ = writeln!(
                text,
                "<primitive id=\"{name}\" class=\"ocf\" provider=\"heartbeat\" \
                 type=\"VirtualDomain\"><meta_attributes id=\"{name}-meta\">{meta}\
                 </meta_attributes><instance_attributes id=\"{name}-set\">{attributes}\
                 </instance_attributes><operations>{operations}</operations></primitive>"
            );
        }
        text.push_str("</resources>\n");
        let file = self.folder.join("resources.xml");
        fs::write(&file, text)?;
        let file = file.display().to_string();
        self.run(&["cibadmin", "--replace", "--scope", "resources", "--xml-file", &file]).map(drop)
    }

    /// Waits until it has nothing under way.
    ///
    /// # Errors
    /// It is not so in time.
    pub fn idle(&self) -> Result<(), Error> {
        self.until("nothing is under way", |this| {
            let said = this.run(&["crmadmin", "--status=h1"]).unwrap_or_default();
            let other = this.run(&["crmadmin", "--status=h2"]).unwrap_or_default();
            Ok(said.contains("S_IDLE") || other.contains("S_IDLE"))
        })
    }

    /// What its own status says, for a person who asks why something did not happen.
    pub fn status(&self) -> String {
        self.run(&["crm_mon", "-1", "-r"]).unwrap_or_else(|error| error.to_string())
    }
}

impl Drop for Peer<'_> {
    fn drop(&mut self) {
        for host in &self.hosts {
            for name in ["pacemakerd", "pacemaker-based", "pacemaker-contr", "corosync"] {
                let _ = host.signal(name, stockade_e2e::local_hosts::Signal::KILL);
            }
        }
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
