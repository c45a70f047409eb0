//! The tour's failures of whole hosts: power cut and silence, fenced with proof, running elsewhere.

use std::time::Duration;

use kube::Api;
use kube::api::ListParams;
use stockade_crds::v1alpha1::{FenceAction, Host, HostFence, HostState, ProofKind};
use tokio::time::Instant;

use super::tour::{Seen, Tour};
use super::{LIMIT, PAUSE, PlayError};
use crate::local_hosts::Signal;

/// The beat writer's name as the kernel keeps it.
const BEAT: &str = "stockade-beat";
/// The agent's.
const AGENT: &str = "stockade-agent";
/// Longer than the default policy waits before it acts, so that it would have acted.
const LONG: Duration = Duration::from_secs(30);

impl Tour<'_> {
    /// The plug is pulled: every process of the host is gone at once, its BMC reads off.
    pub(super) async fn power_cut_is_survived(&mut self, seen: Seen) -> Result<Seen, PlayError> {
        self.plugs_are_trusted().await?;
        let started = Instant::now();
        self.cluster.host(&seen.host)?.power_cut()?;
        self.log.say(format!("the power of {} is cut", seen.host));
        self.fenced(&seen, started).await?;
        let next = self.elsewhere(&seen, started).await?;
        self.power_comes_back(&seen.host).await?;
        Ok(next)
    }

    /// Agent and beat die while the guest writes on: silent, and not dead at all. The host must be
    /// shot before the VM may start elsewhere.
    pub(super) async fn silence_is_survived(&mut self, seen: Seen) -> Result<Seen, PlayError> {
        self.plugs_are_trusted().await?;
        let started = Instant::now();
        self.cluster.kill_agent(&seen.host)?;
        let left = self.cluster.host(&seen.host)?.signal(BEAT, Signal::KILL)?;
        if left == 0 {
            return Err(PlayError::Wrong("no beat writer outlived the agent".to_owned()));
        }
        self.grows().await?;
        self.log.say(format!("agent and beat of {} are killed: its guest writes on", seen.host));
        self.fenced(&seen, started).await?;
        if self.cluster.host(&seen.host)?.is_on() {
            return Err(PlayError::Wrong(format!("{} still has power", seen.host)));
        }
        let next = self.elsewhere(&seen, started).await?;
        self.power_comes_back(&seen.host).await?;
        Ok(next)
    }

    /// The agent hangs while its beat writer goes on: the host is isolated for as long, it keeps its
    /// power, and nobody takes its VM.
    pub(super) async fn hung_agent_is_survived(&self, seen: &Seen) -> Result<(), PlayError> {
        self.plugs_are_trusted().await?;
        let started = Instant::now();
        let host = self.cluster.host(&seen.host)?;
        let hung = host.signal(AGENT, Signal::STOP)?;
        if hung == 0 {
            return Err(PlayError::Wrong(format!("no agent runs on {}", seen.host)));
        }
        self.log.say(format!("the agent of {} hangs", seen.host));
        let hosts: Api<Host> = Api::all(self.cluster.client());
        let state = async || {
            let host = hosts.get(&seen.host).await.map_err(|error| error.to_string())?;
            Ok::<_, String>(host.status.unwrap_or_default().printable_status)
        };
        self.cluster
            .until("the host is Isolated", async || match state().await? {
                HostState::Isolated => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await?;
        self.log.say(format!(
            "{} is Isolated {:.1} s later",
            seen.host,
            started.elapsed().as_secs_f64()
        ));
        let fences: Api<HostFence> = Api::all(self.cluster.client());
        let isolated = Instant::now();
        while isolated.elapsed() < LONG {
            self.untouched(seen, "an agent that hangs").await?;
            let certificates = fences.list(&ListParams::default()).await;
            let certificates = certificates.map_err(PlayError::api("list the certificates"))?.items;
            let now = state().await.map_err(PlayError::Wrong)?;
            if !certificates.is_empty() || now != HostState::Isolated || !host.is_on() {
                let power = if host.is_on() { "power" } else { "no power" };
                return Err(PlayError::Wrong(format!(
                    "{} is {now:?} with {power}: {certificates:?}",
                    seen.host
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
        host.signal(AGENT, Signal::CONT)?;
        self.cluster.wait_ready().await?;
        self.untouched(seen, "an agent that hung").await?;
        self.log.say(format!("it goes on: QEMU {} is untouched", seen.qemu.pid));
        Ok(())
    }

    /// Every host's plug was read on while the host was beating.
    async fn plugs_are_trusted(&self) -> Result<(), PlayError> {
        let hosts: Api<Host> = Api::all(self.cluster.client());
        self.cluster
            .until("every host's fencing is ready", async || {
                let all = hosts.list(&ListParams::default()).await;
                let all = all.map_err(|error| error.to_string())?.items;
                let conditions = all.iter().filter_map(|host| {
                    let status = host.status.as_ref()?;
                    status.conditions.iter().find(|c| c.type_ == "FencingReady")
                });
                let open: Vec<&str> =
                    conditions.filter(|c| c.status != "True").map(|c| c.message.as_str()).collect();
                if open.is_empty() { Ok(()) } else { Err(open.join("; ")) }
            })
            .await
    }

    /// Waits for the certificate: the host's power was cut, and read back by a call of its own.
    async fn fenced(&self, seen: &Seen, since: Instant) -> Result<(), PlayError> {
        let fences: Api<HostFence> = Api::all(self.cluster.client());
        let attempts = self
            .cluster
            .until("a certificate holds the proof Power", async || {
                let all = fences.list(&ListParams::default()).await;
                let all = all.map_err(|error| error.to_string())?.items;
                let fence = all.into_iter().find(|fence| fence.spec.host == seen.host);
                let status = fence.and_then(|f| f.status).ok_or("there is no certificate yet")?;
                match (status.proof, &status.revoked) {
                    (Some(ProofKind::Power), None) => Ok(status.attempts),
                    _ => Err(format!("{status:?}")),
                }
            })
            .await?;
        let off = attempts.iter().rposition(|a| a.action == FenceAction::Off && a.result == "Done");
        let read =
            attempts.iter().rposition(|a| a.action == FenceAction::Status && a.result == "Off");
        if off.is_none() || off >= read {
            return Err(PlayError::Wrong(format!("off was not read back: {attempts:?}")));
        }
        let calls: Vec<String> =
            attempts.iter().map(|a| format!("{:?}: {}", a.action, a.result)).collect();
        self.log.say(format!(
            "{} is fenced with proof {:.1} s later: {}",
            seen.host,
            since.elapsed().as_secs_f64(),
            calls.join(", ")
        ));
        Ok(())
    }

    async fn elsewhere(&self, seen: &Seen, since: Instant) -> Result<Seen, PlayError> {
        let next = self.running(seen.epoch, seen.boots).await?;
        if next.host == seen.host {
            return Err(PlayError::Wrong(format!("{} was fenced and runs a VM", next.host)));
        }
        self.log.say(format!(
            "the VM runs on {} (epoch {}) and its guest writes {:.1} s after the failure",
            next.host,
            next.epoch,
            since.elapsed().as_secs_f64()
        ));
        Ok(next)
    }

    /// A person gives power back at the BMC: a new boot joins, the certificate is over.
    async fn power_comes_back(&mut self, host: &str) -> Result<(), PlayError> {
        let asked = self.cluster.bmc(host)?.ipmitool(&["chassis", "power", "on"]);
        let asked = asked.map_err(PlayError::io("run ipmitool"))?;
        if !asked.status.success() {
            let said = String::from_utf8_lossy(&asked.stderr).into_owned();
            return Err(PlayError::Wrong(format!("{host} is not switched on: {said}")));
        }
        let started = Instant::now();
        while !self.cluster.host(host)?.is_on() {
            if started.elapsed() > LIMIT {
                return Err(PlayError::Wrong(format!("{host} was never asked to boot")));
            }
            self.cluster.tend()?;
            tokio::time::sleep(PAUSE).await;
        }
        self.cluster.wait_ready().await?;
        let fences: Api<HostFence> = Api::all(self.cluster.client());
        self.cluster
            .until("the certificate is over", async || {
                let all = fences.list(&ListParams::default()).await;
                let left = all.map_err(|error| error.to_string())?.items.len();
                if left == 0 { Ok(()) } else { Err(format!("{left} HostFences")) }
            })
            .await?;
        self.log.say(format!("{host} has power again by its BMC, and is Ready in a new boot"));
        Ok(())
    }
}
