//! A whole Stockade on the lab: control plane and controller on this machine, the packaged agent as
//! a systemd unit on every machine of the lab.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use kube::Client;

use super::{Lab, LabError, Machine, step};
use crate::control_plane::{ControlPlane, Options, SYSTEM_NAMESPACE};
use crate::local_hosts::{ProcessId, Signal};
use crate::play::{Program, Programs};

/// A running Stockade; dropping it ends and removes all of it.
pub struct Cluster {
    // Fields drop in this order: the controller, the machines, the control plane.
    controller: Mutex<Program>,
    /// What the controller may do, and where it logs.
    kubeconfig: PathBuf,
    log: PathBuf,
    lab: Lab,
    plane: ControlPlane,
    client: Client,
    programs: Programs,
}

impl Cluster {
    /// Starts a control plane with the charts, the controller, and the agent on every machine of
    /// the lab. Nothing is declared yet.
    ///
    /// # Errors
    /// What could not be started; nothing of it is left then.
    pub async fn start(lab: Lab, say: &dyn Fn(&str)) -> Result<Self, LabError> {
        let programs = Programs::find()?;
        let options = Options { controller_manager: false, audit: true, ..Options::default() };
        let plane = ControlPlane::start(options).await?;
        plane.install_charts().await?;
        say(&format!("control plane at {} with the charts", plane.server()));
        let kubeconfig =
            plane.service_account_kubeconfig(SYSTEM_NAMESPACE, "stockade-controller").await?;
        let log = lab.folder().join("controller.log");
        let (controller, _) = programs.controller(&kubeconfig, "info", log.clone())?;
        let controller = Mutex::new(controller);
        let client = plane.setup_client().await?;
        let this = Self { controller, kubeconfig, log, lab, plane, client, programs };
        let package = this.package()?;
        std::thread::scope(|scope| {
            let installs: Vec<_> = this
                .lab
                .machines()
                .iter()
                .map(|machine| scope.spawn(|| this.install(machine, &package)))
                .collect();
            installs.into_iter().try_for_each(|install| {
                let ended = io::Error::other("the thread ended");
                install.join().unwrap_or_else(|_| Err(step("installing the agent")(ended)))
            })
        })?;
        say("the agent is installed and runs on every machine");
        Ok(this)
    }

    /// The machines.
    #[must_use]
    pub const fn lab(&self) -> &Lab {
        &self.lab
    }

    /// The control plane.
    #[must_use]
    pub const fn plane(&self) -> &ControlPlane {
        &self.plane
    }

    /// A client with the rights of the one who installs.
    #[must_use]
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The controller's log.
    #[must_use]
    pub fn controller_log(&self) -> PathBuf {
        self.log.clone()
    }

    /// Kills the controller, and starts another in its place.
    ///
    /// # Errors
    /// The other one can't be started.
    pub fn kill_controller(&self) -> Result<(), LabError> {
        let (next, _) = self.programs.controller(&self.kubeconfig, "info", self.log.clone())?;
        let mut controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        // The one before is killed as it drops.
        *controller = next;
        Ok(())
    }

    /// Signals the controller: to stop it for a while, and to let it go on.
    ///
    /// # Errors
    /// It has ended, or can't be signalled.
    pub fn signal_controller(&self, signal: Signal) -> Result<(), LabError> {
        let controller = self.controller.lock().unwrap_or_else(PoisonError::into_inner);
        let process = i32::try_from(controller.child().id()).ok().and_then(ProcessId::of);
        let process = process.ok_or_else(|| io::Error::other("it has ended"));
        let failed = step("signalling the controller");
        process.and_then(|process| process.signal(signal)).map_err(failed)
    }

    /// The fence devices of the lab's hypervisor hosts and their secrets, as a person would
    /// declare them: a BMC each, named `bmc-<host>`.
    #[must_use]
    pub fn fence_devices(&self) -> String {
        let machines = self.lab.machines().iter();
        machines.map(|m| m.bmc().manifests(m.name(), SYSTEM_NAMESPACE)).collect()
    }

    /// Runs `kubectl stockade` with the rights of the one who installs, and gives what it wrote.
    ///
    /// # Errors
    /// It failed.
    pub fn plugin(&self, words: &[&str]) -> Result<String, LabError> {
        let what = format!("kubectl stockade {}", words.join(" "));
        let output = Command::new(&self.programs.plugin)
            .args(words)
            .env("KUBECONFIG", self.plane.setup_kubeconfig()?)
            .stdin(Stdio::null())
            .output();
        output
            .and_then(|output| {
                let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                let failed = || io::Error::other(text(&output.stderr));
                output.status.success().then(|| text(&output.stdout)).ok_or_else(failed)
            })
            .map_err(step(what))
    }

    /// Cuts a machine off from the API server and from nothing else, until
    /// [`Machine::reconnect`].
    ///
    /// # Errors
    /// As [`Machine::cut_off`].
    pub fn cut_from_api(&self, machine: &Machine) -> Result<(), LabError> {
        let server = self.server()?;
        machine.cut_off(server.ip(), Some(server.port()))
    }

    /// The API server's address, as the lab's machines know it.
    fn server(&self) -> Result<SocketAddr, LabError> {
        let port = self.plane.server().rsplit(':').next().and_then(|port| port.parse().ok());
        let failed = || step("looking for the server's port")(io::Error::other("it has none"));
        self.lab.forward(port.ok_or_else(failed)?)
    }

    /// Packs the agent as its users get it.
    fn package(&self) -> Result<Vec<u8>, LabError> {
        let failed = || step("packing the agent");
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../operator/packaging/build-deb");
        let agent = &self.programs.agent;
        let built = agent.parent().unwrap_or(agent);
        let output = Command::new(script)
            .arg(built)
            .arg(self.lab.folder())
            .stdin(Stdio::null())
            .output()
            .map_err(failed())?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(failed()(io::Error::other(said)));
        }
        let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        std::fs::read(path).map_err(failed())
    }

    /// Installs the agent on a machine as a person would: its package, its identity, its settings.
    fn install(&self, machine: &Machine, package: &[u8]) -> Result<(), LabError> {
        let name = machine.name();
        let kubeconfig = self.host_kubeconfig(name)?;
        machine.write("/etc/stockade/agent.kubeconfig", kubeconfig.as_bytes())?;
        // One vCPU a machine would be one guest a host.
        machine.write("/etc/default/stockade-agent", b"STOCKADE_CPUS=8\n")?;
        machine.write("/root/stockade-agent.deb", package)?;
        machine
            .try_sh("dpkg --install --force-confold /root/stockade-agent.deb", INSTALL_LIMIT)
            .and_then(|said| {
                if said.ok {
                    return Ok(());
                }
                Err(LabError::Command {
                    name: name.to_owned(),
                    command: "dpkg --install".to_owned(),
                    said: said.err,
                })
            })
    }

    /// The identity of one host's agent, for the address that the lab knows the server by.
    fn host_kubeconfig(&self, host: &str) -> Result<String, LabError> {
        let failed = || step(format!("writing the kubeconfig of {host}"));
        let user = format!("stockade:host:{host}");
        let path = self.plane.kubeconfig(&user, &["stockade:hosts"])?;
        let text = std::fs::read_to_string(path).map_err(failed())?;
        let server = self.server()?;
        let mut config: serde_json::Value =
            serde_json::from_str(&text).map_err(|error| failed()(io::Error::other(error)))?;
        // A machine of the lab sees no file of ours: what the file names goes into it.
        for (section, part, names) in [
            ("clusters", "cluster", &["certificate-authority"][..]),
            ("users", "user", &["client-certificate", "client-key"]),
        ] {
            let Some(fields) = config[section][0][part].as_object_mut() else { continue };
            for name in names {
                let path = fields.remove(*name).unwrap_or_default();
                let content = std::fs::read(path.as_str().unwrap_or_default()).map_err(failed())?;
                let content = serde_json::json!(k8s_openapi::ByteString(content));
                fields.insert(format!("{name}-data"), content);
            }
        }
        let cluster = &mut config["clusters"][0]["cluster"];
        cluster["server"] = format!("https://{server}").into();
        // The server's certificate names the loopback.
        cluster["tls-server-name"] = "127.0.0.1".into();
        Ok(config.to_string())
    }

    /// What a person needs who asks why something did not happen: objects and logs.
    #[must_use]
    pub fn dump(&self) -> String {
        let kinds = "virtualmachines,domains,hosts,hostagents,hostfences,fencedevices,\
                     sharedstorages,lockmanagers,events";
        let objects = self
            .plane
            .kubectl(&["get", kinds, "--all-namespaces", "-o", "yaml"])
            .unwrap_or_else(|error| error.to_string());
        let mut text = format!(
            "--- objects\n{objects}\n--- controller\n{}\n",
            crate::play::tail(&self.log, 60)
        );
        for machine in self.lab.machines() {
            let script = "journalctl --no-pager -n 60 -u stockade-agent -u libvirtd \
                          -u nfs-server -u virtlockd; findmnt -t nfs4; dmesg | tail -n 15";
            let said = machine.try_sh(script, Duration::from_secs(60));
            let said = said.map_or_else(|error| error.to_string(), |said| said.out);
            let _ = writeln!(text, "--- {}\n{said}", machine.name());
        }
        text
    }
}

/// How long the package may take to install on an emulated machine.
const INSTALL_LIMIT: Duration = Duration::from_secs(300);
