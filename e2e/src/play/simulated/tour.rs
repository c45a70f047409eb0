//! The tour on simulated hosts: the same steps as on real ones, as far as they need neither root nor
//! libvirt, each checked at the API and in the simulated world.

use k8s_openapi::api::core::v1::Event;
use kube::Api;
use kube::api::ListParams;
use serde_json::{Value, json};
use stockade_crds::names::REQUEST_ANNOTATION;
use stockade_crds::v1alpha1::{
    Domain, Host, HostFence, MigrationOutcome, ProofKind, VirtualMachine, VirtualMachineMigration,
    VmState,
};
use stockade_host::ports::{RecordState, StopReason};
use stockade_sim::world::model::{Disk, Machine};
use stockade_sim::world::power::Which;
use tokio::time::Instant;

use super::Simulated;
use crate::play::{Log, PlayError, STORAGE, is_drained};

const NAMESPACE: &str = "default";
const VM: &str = "demo";
/// How long an agent that is killed stays away, in milliseconds.
const AGENT_DOWN: u64 = 5_000;
/// As good as for ever.
const FOR_EVER: u64 = 3_600_000;

/// A VM as it was seen to run.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    uid: String,
    host: String,
    epoch: i64,
    pid: u64,
}

struct Tour<'a> {
    play: &'a Simulated,
    log: &'a Log,
    vms: Api<VirtualMachine>,
}

impl Simulated {
    /// Takes one VM through its life, and tells each step. The hosts must be Ready.
    ///
    /// # Errors
    /// The first thing that did not happen, or that must not have.
    pub async fn tour(&self, log: &Log) -> Result<(), PlayError> {
        let vms = Api::namespaced(self.client.clone(), NAMESPACE);
        let tour = Tour { play: self, log, vms };
        let seen = tour.runs().await?;
        let seen = tour.change_waits_for_a_restart(&seen).await?;
        tour.agent_comes_back(&seen).await?;
        let seen = tour.moves_live(&seen).await?;
        let seen = tour.drained(&seen).await?;
        let seen = tour.crash_is_mended(&seen).await?;
        let seen = tour.power_cut_is_survived(&seen).await?;
        let seen = tour.silence_is_survived(&seen).await?;
        tour.halts().await?;
        tour.leaves_its_disk(&seen).await?;
        let broken: Vec<String> =
            self.sim.lock().oracle.violations.iter().map(|v| v.text.clone()).collect();
        if !broken.is_empty() {
            return Err(PlayError::Wrong(broken.join("; ")));
        }
        log.say("the oracle saw no second copy and no double write");
        Ok(())
    }
}

impl Tour<'_> {
    async fn runs(&self) -> Result<Seen, PlayError> {
        let vm = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
             metadata: {{name: {VM}, namespace: {NAMESPACE}}}\nspec:\n  memory: 1Gi\n  \
             disks: [{{name: root, storage: {STORAGE}, blank: {{}}, size: 1Gi}}]\n"
        );
        self.play.plane.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &vm)?;
        let seen = self.running(0, "").await?;
        self.log.say(format!("VM {VM} is applied and runs on {} ({})", seen.host, self.at(&seen)));
        Ok(seen)
    }

    async fn change_waits_for_a_restart(&self, seen: &Seen) -> Result<Seen, PlayError> {
        self.patch("svm", VM, &json!({"spec": {"memory": "2Gi"}}))?;
        let message = self
            .until_vm("it has the condition PendingRestart", |vm| {
                let pending = condition(vm, "PendingRestart").filter(|c| c.0 == "True");
                pending.map(|c| c.1.to_owned())
            })
            .await?;
        self.untouched(seen, "a change of its memory").await?;
        self.log.say(format!("its memory is changed: PendingRestart, \"{message}\""));
        self.patch(
            "svm",
            VM,
            &json!({"metadata": {"annotations": {REQUEST_ANNOTATION: "restart/1"}}}),
        )?;
        let next = self.running(seen.epoch, "").await?;
        self.until_vm("the request is handled, PendingRestart is gone", |vm| {
            let handled = vm.status.as_ref()?.last_handled_request.as_deref() == Some("restart/1");
            let pending = condition(vm, "PendingRestart").is_some_and(|c| c.0 == "True");
            (handled && !pending).then_some(())
        })
        .await?;
        self.log.say(format!("restarted by request on {} ({})", next.host, self.at(&next)));
        Ok(next)
    }

    async fn agent_comes_back(&self, seen: &Seen) -> Result<(), PlayError> {
        let host = &seen.host;
        let life = || self.play.sim.lock().machines.get(host).map(|m| m.agent.life);
        let before = life();
        self.play.trouble().crash_process(host, Which::Agent, AGENT_DOWN);
        self.writes(seen).await?;
        self.log.say(format!("the agent of {host} is killed: the guest writes on"));
        let heard = self.beat(host)?;
        self.play
            .until("a new agent renews its Lease", async || {
                let now = self.beat(host).map_err(|error| error.to_string())?;
                let renewed = now != heard && life() > before;
                renewed.then_some(()).ok_or_else(|| format!("last renewed at {now}"))
            })
            .await?;
        self.play.wait_ready().await?;
        self.untouched(seen, "a restart of its agent").await?;
        self.log.say("a new agent beats: the VM is untouched");
        Ok(())
    }

    async fn moves_live(&self, seen: &Seen) -> Result<Seen, PlayError> {
        let to = self.play.hosts.iter().find(|host| **host != seen.host);
        let to = to.ok_or_else(|| PlayError::Wrong("there is one host only".to_owned()))?;
        let order = format!(
            "apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachineMigration\n\
             metadata: {{name: {VM}-to-{to}, namespace: {NAMESPACE}}}\n\
             spec: {{vm: {VM}, target: {to}, live: true}}\n"
        );
        self.play.plane.kubectl_stdin(&["apply", "--server-side", "-f", "-"], &order)?;
        let moves: Api<VirtualMachineMigration> =
            Api::namespaced(self.play.client.clone(), NAMESPACE);
        self.play
            .until(&format!("the move to {to} has succeeded"), async || {
                let order = moves.get(&format!("{VM}-to-{to}")).await.map_err(|e| e.to_string())?;
                let status = order.status.unwrap_or_default();
                let done = status.outcome == MigrationOutcome::Succeeded;
                done.then_some(()).ok_or_else(|| format!("{status:?}"))
            })
            .await?;
        let next = self.running(seen.epoch, &seen.host).await?;
        if next.host != *to {
            return Err(PlayError::Wrong(format!("it runs on {}, not on {to}", next.host)));
        }
        self.never_stopped(seen)?;
        self.log.say(format!("moved live from {} to {to} ({})", seen.host, self.at(&next)));
        Ok(next)
    }

    /// Empties its host: it moves live, and comes back nowhere by itself.
    async fn drained(&self, seen: &Seen) -> Result<Seen, PlayError> {
        self.patch("shost", &seen.host, &json!({"spec": {"mode": "Maintenance"}}))?;
        let hosts: Api<Host> = Api::all(self.play.client.clone());
        self.play
            .until(&format!("{} is drained", seen.host), async || {
                is_drained(&hosts, &seen.host).await
            })
            .await?;
        let next = self.running(seen.epoch, &seen.host).await?;
        self.never_stopped(seen)?;
        self.log.say(format!(
            "{} is drained: its VM moved live to {} ({})",
            seen.host,
            next.host,
            self.at(&next)
        ));
        self.patch("shost", &seen.host, &json!({"spec": {"mode": "Active"}}))?;
        self.play.wait_ready().await?;
        self.untouched(&next, "the end of a drain").await?;
        Ok(next)
    }

    async fn crash_is_mended(&self, seen: &Seen) -> Result<Seen, PlayError> {
        self.play.trouble().kill_vm(&seen.host, VM);
        self.log.say(format!("the QEMU on {} is killed", seen.host));
        let next = self.running(seen.epoch, "").await?;
        self.log.say(format!("the VM runs again on {} ({})", next.host, self.at(&next)));
        Ok(next)
    }

    async fn power_cut_is_survived(&self, seen: &Seen) -> Result<Seen, PlayError> {
        self.play.wait_ready().await?;
        let started = Instant::now();
        self.play.trouble().switch_off(&seen.host);
        self.log.say(format!("the power of {} is cut", seen.host));
        self.recovers(seen, started).await
    }

    /// Agent and beat die while the guest writes on: silent, and not dead at all. The host must be
    /// shot before the VM may start elsewhere.
    async fn silence_is_survived(&self, seen: &Seen) -> Result<Seen, PlayError> {
        self.play.wait_ready().await?;
        let started = Instant::now();
        {
            let mut world = self.play.trouble();
            world.crash_process(&seen.host, Which::Agent, FOR_EVER);
            world.crash_process(&seen.host, Which::Beat, FOR_EVER);
        }
        self.writes(seen).await?;
        self.log.say(format!("agent and beat of {} are killed: its guest writes on", seen.host));
        self.recovers(seen, started).await
    }

    /// The host is fenced with proof, the VM runs elsewhere, the host comes back.
    async fn recovers(&self, seen: &Seen, started: Instant) -> Result<Seen, PlayError> {
        let fences: Api<HostFence> = Api::all(self.play.client.clone());
        let all = async || fences.list(&ListParams::default()).await.map_err(|e| e.to_string());
        self.play
            .until("a certificate holds the proof Power", async || {
                let fence = all().await?.items.into_iter().find(|f| f.spec.host == seen.host);
                let status = fence.and_then(|fence| fence.status).unwrap_or_default();
                let proven = status.proof == Some(ProofKind::Power) && status.revoked.is_none();
                proven.then_some(()).ok_or_else(|| format!("{status:?}"))
            })
            .await?;
        let powered = self.play.sim.lock().machines.get(&seen.host).is_some_and(|m| m.powered());
        if powered {
            return Err(PlayError::Wrong(format!("{} still has power", seen.host)));
        }
        let seconds = || started.elapsed().as_secs_f64();
        self.log.say(format!("{} is fenced with proof {:.1} s later", seen.host, seconds()));
        let next = self.running(seen.epoch, &seen.host).await?;
        self.log.say(format!(
            "the VM runs on {} ({}) {:.1} s after the failure",
            next.host,
            self.at(&next),
            seconds()
        ));
        self.play.trouble().switch_on(&seen.host);
        self.play.wait_ready().await?;
        self.play
            .until("the certificate is over", async || {
                let left = all().await?.items.len();
                (left == 0).then_some(()).ok_or_else(|| format!("{left} HostFences"))
            })
            .await?;
        self.log.say(format!("{} has power again and is Ready in a new boot", seen.host));
        Ok(next)
    }

    async fn halts(&self) -> Result<(), PlayError> {
        self.patch("svm", VM, &json!({"spec": {"runPolicy": "Halted"}}))?;
        self.until_vm("it is stopped and Ready", |vm| {
            let stopped = vm.status.as_ref()?.printable_status == VmState::Stopped;
            let ready = condition(vm, "Ready").is_some_and(|c| c.0 == "True");
            (stopped && ready).then_some(())
        })
        .await?;
        self.nothing_runs()?;
        self.log.say("runPolicy Halted: its guest is shut down, the VM is Stopped and Ready");
        Ok(())
    }

    async fn leaves_its_disk(&self, seen: &Seen) -> Result<(), PlayError> {
        let plane = &self.play.plane;
        // Not waited for by kubectl: controller and agents live on this very thread.
        plane.kubectl(&["delete", "svm", VM, "-n", NAMESPACE, "--wait=false"])?;
        self.play
            .until("the VM is gone", async || {
                let left = self.vms.get_opt(VM).await.map_err(|error| error.to_string())?;
                left.map_or(Ok(()), |vm| Err(format!("{:?}", vm.status)))
            })
            .await?;
        let orders: Api<Domain> = Api::all(self.play.client.clone());
        let left = orders.list(&ListParams::default()).await;
        let left = left.map_err(PlayError::api("list Domains"))?.items.len();
        if left > 0 {
            return Err(PlayError::Wrong(format!("{left} Domains are left")));
        }
        self.nothing_runs()?;
        let (disk, record) = {
            let world = self.play.sim.lock();
            let found = world.disks.iter().find(|(_, disk)| disk.records.contains_key(&seen.epoch));
            let record = found.and_then(|(_, disk)| disk.records.get(&seen.epoch).cloned());
            let disk = found.filter(|(_, disk)| disk.exists).map(|(path, _)| path.clone());
            (disk.unwrap_or_default(), record)
        };
        let state = record.map(|record| record.state);
        if disk.is_empty() || state != Some(RecordState::Released) {
            return Err(PlayError::Wrong(format!("its disk is {disk:?}, its record {state:?}")));
        }
        let events: Api<Event> = Api::namespaced(self.play.client.clone(), NAMESPACE);
        let told = self
            .play
            .until("an Event names the disk that stays", async || {
                let all = events.list(&ListParams::default()).await.map_err(|e| e.to_string())?;
                let about =
                    all.items.iter().filter(|e| e.involved_object.name.as_deref() == Some(VM));
                let mut messages = about.filter_map(|event| event.message.clone());
                let named = messages.find(|message| message.contains(&disk));
                named.ok_or_else(|| format!("{} Events, none of {disk}", all.items.len()))
            })
            .await?;
        self.log.say(format!("VM and Domain are deleted, an Event says \"{told}\""));
        self.log.say(format!("the owner record of epoch {} is released", seen.epoch));
        Ok(())
    }

    /// Waits for the VM to run in a later epoch, executed by the host that it is said to be on,
    /// which is not this one, and by no other.
    async fn running(&self, after: i64, not: &str) -> Result<Seen, PlayError> {
        let what = format!("the VM runs in an epoch above {after}");
        let seen = self
            .play
            .until(&what, async || {
                let vm = self.vm().await?;
                let ready = condition(&vm, "Ready").is_some_and(|c| c.0 == "True");
                let status = vm.status.unwrap_or_default();
                let processes = self.processes();
                match &processes[..] {
                    [seen]
                        if ready
                            && status.printable_status == VmState::Running
                            && status.epoch > after
                            && status.epoch == seen.epoch
                            && status.host.as_ref() == Some(&seen.host)
                            && seen.host != not =>
                    {
                        Ok(seen.clone())
                    }
                    _ => Err(format!("{status:?}, executed by {processes:?}")),
                }
            })
            .await?;
        self.writes(&seen).await?;
        Ok(seen)
    }

    /// Fails unless it is still the very same process, and its guest writes.
    async fn untouched(&self, seen: &Seen, by: &str) -> Result<(), PlayError> {
        self.writes(seen).await?;
        let now = self.processes();
        if now == [seen.clone()] {
            return Ok(());
        }
        Err(PlayError::Wrong(format!("the VM was touched by {by}: {now:?}, not {seen:?}")))
    }

    /// Waits until this very process has written to its disk.
    async fn writes(&self, seen: &Seen) -> Result<(), PlayError> {
        let version = || {
            let world = self.play.sim.lock();
            let by =
                |disk: &&Disk| disk.writer.as_ref().is_some_and(|writer| writer.pid == seen.pid);
            world.disks.values().find(by).map_or(0, |disk| disk.version)
        };
        let before = version();
        self.play
            .until("its guest writes", async || {
                let now = version();
                (now > before).then_some(()).ok_or_else(|| format!("version {now} of its disk"))
            })
            .await
    }

    /// Fails if the guest of that process ended in another way than by a move.
    fn never_stopped(&self, seen: &Seen) -> Result<(), PlayError> {
        let world = self.play.sim.lock();
        let machine = world.machines.get(&seen.host);
        let ended = machine.and_then(|machine| machine.ended.get(&seen.uid)).copied();
        match ended {
            Some((epoch, StopReason::Migrated)) if epoch == seen.epoch => Ok(()),
            other => Err(PlayError::Wrong(format!("on {} it ended as {other:?}", seen.host))),
        }
    }

    /// The processes of the VM that are executed.
    fn processes(&self) -> Vec<Seen> {
        let world = self.play.sim.lock();
        let hosts = world.executing_vm(VM);
        let machines = hosts.iter().filter_map(|host| world.machines.get(host));
        let of = |machine: &Machine| {
            let mut all = machine.qemus.values();
            let qemu = all.find(|qemu| qemu.vm == VM)?;
            let (uid, host) = (qemu.uid.clone(), machine.name.clone());
            Some(Seen { uid, host, epoch: qemu.epoch, pid: qemu.pid })
        };
        machines.filter_map(of).collect()
    }

    /// Fails if any host has a process of any VM.
    fn nothing_runs(&self) -> Result<(), PlayError> {
        let world = self.play.sim.lock();
        let left: Vec<&str> = world
            .machines
            .values()
            .filter(|m| !m.qemus.is_empty())
            .map(|m| m.name.as_str())
            .collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(PlayError::Wrong(format!("still something runs on {}", left.join(", "))))
    }

    /// When the host's agent last renewed its Lease.
    fn beat(&self, host: &str) -> Result<String, PlayError> {
        let namespace = stockade_crds::names::host_namespace(host);
        let path = "jsonpath={.spec.renewTime}";
        Ok(self.play.plane.kubectl(&["get", "lease", "agent", "-n", &namespace, "-o", path])?)
    }

    /// As a person changes an object.
    fn patch(&self, kind: &str, name: &str, patch: &Value) -> Result<(), PlayError> {
        let patch = patch.to_string();
        let words = ["patch", kind, name, "-n", NAMESPACE, "--type=merge", "-p", &patch];
        self.play.plane.kubectl(&words)?;
        Ok(())
    }

    async fn vm(&self) -> Result<VirtualMachine, String> {
        self.vms.get(VM).await.map_err(|error| error.to_string())
    }

    async fn until_vm<T>(
        &self,
        what: &str,
        mut probe: impl FnMut(&VirtualMachine) -> Option<T>,
    ) -> Result<T, PlayError> {
        self.play
            .until(what, async || {
                let vm = self.vm().await?;
                probe(&vm).ok_or_else(|| format!("{:?}", vm.status))
            })
            .await
    }

    fn at(&self, seen: &Seen) -> String {
        format!("process {}, epoch {}", seen.pid, seen.epoch)
    }
}

/// Status and message of a condition.
fn condition<'a>(vm: &'a VirtualMachine, kind: &str) -> Option<(&'a str, &'a str)> {
    let mut conditions = vm.status.as_ref()?.conditions.iter();
    conditions.find(|c| c.type_ == kind).map(|c| (c.status.as_str(), c.message.as_str()))
}
