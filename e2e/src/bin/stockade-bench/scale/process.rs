//! The controller as a process of its own.

use std::path::PathBuf;

use stockade_e2e::control_plane::{ControlPlane, SYSTEM_NAMESPACE};
use stockade_e2e::play::{Program, Programs};

use super::{Error, failed};

/// A running controller; dropping it ends it.
pub struct Controller {
    program: Program,
    listen: String,
}

impl Controller {
    /// Starts it with the rights that the chart gives.
    ///
    /// # Errors
    /// If it isn't built or can't be started.
    pub async fn start(plane: &ControlPlane) -> Result<Self, Error> {
        let programs = Programs::find().map_err(|e| failed("programs", e))?;
        let account = plane.service_account_kubeconfig(SYSTEM_NAMESPACE, "stockade-controller");
        let kubeconfig = account.await.map_err(|e| failed("account", e))?;
        let log = plane.dir().join("controller.log");
        let started = programs.controller(&kubeconfig, "warn", log);
        let (program, listen) = started.map_err(|e| failed("controller", e))?;
        Ok(Self { program, listen })
    }

    fn proc(&self, file: &str) -> PathBuf {
        format!("/proc/{}/{file}", self.program.child().id()).into()
    }

    /// The most memory that it has had, in MiB.
    ///
    /// # Errors
    /// If it has ended.
    pub fn peak_mib(&self) -> Result<f64, Error> {
        let text = std::fs::read_to_string(self.proc("status"))?;
        let line = text.lines().find_map(|l| l.strip_prefix("VmHWM:"));
        let kib = line.and_then(|l| l.trim().trim_end_matches(" kB").parse::<f64>().ok());
        kib.map(|kib| kib / 1024.0).ok_or_else(|| Error::Ours("no VmHWM".to_owned()))
    }

    /// Seconds of CPU that it has used.
    ///
    /// # Errors
    /// If it has ended.
    pub fn cpu_seconds(&self) -> Result<f64, Error> {
        // proc_pid_stat(5): the 14th and 15th field, in ticks of which Linux tells 100 a second.
        let text = std::fs::read_to_string(self.proc("stat"))?;
        let fields = text.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: f64 = fields.skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
        Ok(ticks / 100.0)
    }

    /// Seconds spent on plans so far, and how many were made.
    ///
    /// # Errors
    /// If its metrics can't be read.
    pub async fn plans(&self) -> Result<(f64, f64), Error> {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(&self.listen).await?;
        let request = format!("GET /metrics HTTP/1.0\r\nHost: {}\r\n\r\n", self.listen);
        stream.write_all(request.as_bytes()).await?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await?;
        let value = |name: &str| {
            let line = text.lines().find_map(|l| l.strip_prefix(name));
            line.and_then(|l| l.trim().parse::<f64>().ok())
                .ok_or_else(|| Error::Ours(format!("the controller does not tell {name}")))
        };
        let name = "stockade_plan_duration_seconds";
        Ok((value(&format!("{name}_sum"))?, value(&format!("{name}_count"))?))
    }
}
