//! Puts Stockade's charts on a control plane, so that nothing runs here with more rights than a
//! user's installation gives.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use super::{ControlPlane, Error};

/// The release the charts' requirement is checked against; rendering asks no server.
const KUBE_VERSION: &str = "1.36.3";
/// The namespace that both charts are installed into.
pub const SYSTEM_NAMESPACE: &str = "stockade-system";
/// The one namespace whose secrets the controller may read for cloud-init.
const SECRET_NAMESPACE: &str = "default";

impl ControlPlane {
    /// Renders both charts and applies them with the identity that installs: the kinds first, and
    /// the rest once the server knows them.
    ///
    /// # Errors
    /// [`Error::Failed`] with what helm or kubectl said.
    pub async fn install_charts(&self) -> Result<(), Error> {
        self.ensure_namespace(SYSTEM_NAMESPACE).await?;
        let kinds = self.render_chart("stockade-crds", &[])?;
        self.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &kinds)?;
        self.kubectl_stdin(
            &["wait", "--for=condition=Established", "--timeout=60s", "-f", "-"],
            &kinds,
        )?;
        let secrets = format!("rbac.secretNamespaces={{{SECRET_NAMESPACE}}}");
        let rest = self.render_chart("stockade", &["--set", &secrets])?;
        self.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &rest)?;
        Ok(())
    }

    /// What `helm template` makes of one of our charts; `args` are further ones of helm's.
    ///
    /// # Errors
    /// [`Error::Failed`] with what helm said.
    pub fn render_chart(&self, chart: &str, args: &[&str]) -> Result<String, Error> {
        let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../charts")).join(chart);
        let output = Command::new(self.binaries().helm()?)
            .args(["template", chart])
            .arg(path)
            .args(["--namespace", SYSTEM_NAMESPACE, "--kube-version", KUBE_VERSION])
            .args(args)
            // helm would keep files in the user's home.
            .env("HOME", self.dir())
            .output()
            .map_err(Error::io("run helm"))?;
        succeeded(format!("helm template {chart}"), &output)
    }

    /// Runs kubectl with the identity that installs and `input` as its standard input.
    ///
    /// # Errors
    /// [`Error::Failed`] with what kubectl said.
    pub fn kubectl_stdin(&self, args: &[&str], input: &str) -> Result<String, Error> {
        let kubeconfig = self.setup_kubeconfig()?;
        let mut child = self
            .kubectl_command(&kubeconfig)?
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(Error::io("run kubectl"))?;
        if let Some(mut stdin) = child.stdin.take() {
            // kubectl reads all of it before it writes.
            stdin.write_all(input.as_bytes()).map_err(Error::io("write to kubectl"))?;
        }
        let output = child.wait_with_output().map_err(Error::io("wait for kubectl"))?;
        succeeded(format!("kubectl {}", args.join(" ")), &output)
    }
}

fn succeeded(command: String, output: &Output) -> Result<String, Error> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(Error::Failed { command, stderr })
}
