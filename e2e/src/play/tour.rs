//! The tour: one VM through what Stockade promises, each step checked at the API, in the
//! hosts' process tables and on the guest's own disk.

use std::path::PathBuf;

use k8s_openapi::api::core::v1::{Event, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Api;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use stockade_crds::names::{REQUEST_ANNOTATION, host_namespace};
use stockade_crds::v1alpha1::{
    Domain, Host, MigrationOutcome, VirtualMachine, VirtualMachineMigration,
    VirtualMachineMigrationSpec, VmState,
};
use stockade_host::ports::{OwnerRecord, RecordState};

use super::{Cluster, Log, PlayError, STORAGE, is_drained};
use crate::local_hosts::{
    LocalHost, ProcessId, Signal, guest_boots, guest_counter, write_guest_disk,
};

const NAMESPACE: &str = "default";
const VM: &str = "demo";

/// A VM as it was seen to run.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) host: String,
    pub(super) epoch: i64,
    pub(super) qemu: ProcessId,
    pub(super) boots: u64,
}

pub(super) struct Tour<'a> {
    pub(super) cluster: &'a mut Cluster,
    pub(super) log: &'a Log,
    vms: Api<VirtualMachine>,
    disk: PathBuf,
}

/// Takes one VM through its life, and tells each step. The hosts must be Ready.
///
/// # Errors
/// The first thing that did not happen, or that must not have.
pub async fn tour(cluster: &mut Cluster, log: &Log) -> Result<(), PlayError> {
    let mut tour = Tour::new(cluster, log);
    let seen = tour.runs().await?;
    let seen = tour.change_waits_for_a_restart(&seen).await?;
    tour.agent_comes_back(&seen).await?;
    let seen = tour.moves_live(seen, 2).await?;
    let seen = tour.drained(seen).await?;
    let seen = tour.crash_is_mended(&seen).await?;
    let seen = tour.power_cut_is_survived(seen).await?;
    let seen = tour.silence_is_survived(seen).await?;
    tour.halts(&seen).await?;
    tour.leaves_its_disk(&seen).await
}

/// Moves one VM live back and forth, `count` times; its guest must never miss a beat or boot anew.
/// The hosts must be Ready.
///
/// # Errors
/// As [`tour`].
pub async fn moves(cluster: &mut Cluster, log: &Log, count: usize) -> Result<(), PlayError> {
    let tour = Tour::new(cluster, log);
    let seen = tour.runs().await?;
    let seen = tour.moves_live(seen, count).await?;
    tour.halts(&seen).await?;
    tour.leaves_its_disk(&seen).await
}

/// Has the agent of a VM's host hang, and the host be isolated for it. The hosts must be Ready.
///
/// # Errors
/// As [`tour`].
pub async fn hung_agent(cluster: &mut Cluster, log: &Log) -> Result<(), PlayError> {
    let tour = Tour::new(cluster, log);
    let seen = tour.runs().await?;
    tour.hung_agent_is_survived(&seen).await
}

impl<'a> Tour<'a> {
    fn new(cluster: &'a mut Cluster, log: &'a Log) -> Self {
        let vms = Api::namespaced(cluster.client(), NAMESPACE);
        let disk = cluster.shared().join(NAMESPACE).join(format!("{VM}.raw"));
        Self { cluster, log, vms, disk }
    }

    async fn runs(&self) -> Result<Seen, PlayError> {
        let folder = self.disk.parent().unwrap_or(&self.disk);
        let made = std::fs::create_dir_all(folder).and_then(|()| write_guest_disk(&self.disk));
        made.map_err(PlayError::io("write the guest's disk"))?;
        let manifest = manifest();
        self.cluster.plane().kubectl_stdin(&["apply", "--server-side", "-f", "-"], &manifest)?;
        self.log.say(format!("VM {VM} is applied"));
        let seen = self.running(0, 0).await?;
        self.log.say(format!(
            "it runs on {} as QEMU {} (epoch {}), and its guest writes",
            seen.host, seen.qemu.pid, seen.epoch
        ));
        self.seed_is(Some(&seen.host)).await?;
        self.log.say("its cloud-init seed was made there, of a Secret that was copied for it");
        Ok(seen)
    }

    async fn change_waits_for_a_restart(&self, seen: &Seen) -> Result<Seen, PlayError> {
        self.patch(json!({"spec": {"memory": "96Mi"}})).await?;
        let message = self
            .cluster
            .until("the VM has the condition PendingRestart", async || {
                let vm = self.vm().await?;
                let condition = condition(&vm, "PendingRestart").filter(|c| c.status == "True");
                condition.map(|c| c.message.clone()).ok_or_else(|| describe(&vm))
            })
            .await?;
        self.untouched(seen, "a change of its memory").await?;
        self.log.say(format!("its memory is changed: PendingRestart, \"{message}\""));
        self.patch(json!({"metadata": {"annotations": {REQUEST_ANNOTATION: "restart/1"}}})).await?;
        let next = self.running(seen.epoch, seen.boots).await?;
        self.cluster
            .until("the request is handled, PendingRestart is gone", async || {
                let vm = self.vm().await?;
                let handled = vm.status.as_ref().and_then(|s| s.last_handled_request.as_deref());
                let pending = condition(&vm, "PendingRestart").is_some_and(|c| c.status == "True");
                let done = handled == Some("restart/1") && !pending;
                done.then_some(()).ok_or_else(|| describe(&vm))
            })
            .await?;
        self.log.say(format!(
            "restarted by request as QEMU {} on {} (epoch {}), PendingRestart is gone",
            next.qemu.pid, next.host, next.epoch
        ));
        Ok(next)
    }

    async fn agent_comes_back(&mut self, seen: &Seen) -> Result<(), PlayError> {
        self.cluster.kill_agent(&seen.host)?;
        self.grows().await?;
        self.log.say(format!("the agent of {} is killed: the guest writes on", seen.host));
        let before = self.beat(&seen.host).await.map_err(PlayError::Wrong)?;
        self.cluster.start_agent(&seen.host)?;
        self.cluster
            .until("the new agent renews its Lease", async || {
                let now = self.beat(&seen.host).await?;
                if now == before { Err(format!("last renewed at {now}")) } else { Ok(()) }
            })
            .await?;
        self.cluster.wait_ready().await?;
        self.untouched(seen, "a restart of its agent").await?;
        self.log.say(format!("a new agent beats: QEMU {} is untouched", seen.qemu.pid));
        Ok(())
    }

    /// Moves it live to another host and back, `count` times in all; its guest writes on and never
    /// boots anew.
    async fn moves_live(&self, mut seen: Seen, count: usize) -> Result<Seen, PlayError> {
        let home = seen.host.clone();
        let names: Vec<String> = self.cluster.hosts().iter().map(LocalHost::name).collect();
        let away = names.into_iter().find(|name| *name != home).unwrap_or_default();
        for to in [&away, &home].into_iter().cycle().take(count) {
            seen = self.moves_to(&seen, to).await?;
        }
        Ok(seen)
    }

    async fn moves_to(&self, seen: &Seen, to: &str) -> Result<Seen, PlayError> {
        let moves: Api<VirtualMachineMigration> = Api::namespaced(self.cluster.client(), NAMESPACE);
        let spec = VirtualMachineMigrationSpec {
            vm: VM.to_owned(),
            target: Some(to.to_owned()),
            live: Some(true),
        };
        let name = format!("{VM}-to-{to}-{}", seen.epoch);
        let order = VirtualMachineMigration::new(&name, spec);
        let before = guest_counter(&self.disk).map_err(PlayError::io("read the guest's disk"))?;
        let made = moves.create(&PostParams::default(), &order).await;
        made.map_err(PlayError::api(format!("order the move {name}")))?;
        let paused = self
            .cluster
            .until(&format!("the move to {to} has succeeded"), async || {
                let order = moves.get(&name).await.map_err(|error| error.to_string())?;
                let status = order.status.unwrap_or_default();
                let message = status.conditions.first().map(|c| c.message.clone());
                let vm = self.vm().await?;
                match status.outcome {
                    MigrationOutcome::Succeeded => Ok(status.downtime_milliseconds),
                    outcome => Err(format!("{outcome:?}: {message:?}; {}", describe(&vm))),
                }
            })
            .await?;
        let Some(paused) = paused else {
            return Err(PlayError::Wrong(format!("{name} does not tell how long it paused")));
        };
        let (next, now) = self.moved(seen, before).await?;
        if next.host != to {
            return Err(PlayError::Wrong(format!("it runs on {}, not on {to}", next.host)));
        }
        self.log.say(format!(
            "moved live from {} to {to} (epoch {}): its guest counts on, {before} to {now}, after \
             a pause of {paused} ms",
            seen.host, next.epoch
        ));
        Ok(next)
    }

    /// The VM after a live move, and its guest's counter: one QEMU, that of the host that the
    /// status names, and a guest that went on.
    async fn moved(&self, seen: &Seen, before: u64) -> Result<(Seen, u64), PlayError> {
        self.grows().await?;
        let vm = self.vm().await.map_err(PlayError::Wrong)?;
        let status = vm.status.unwrap_or_default();
        let qemus = self.cluster.qemus();
        let [(host, qemu)] = &qemus[..] else {
            return Err(PlayError::Wrong(format!("{} QEMUs after a move", qemus.len())));
        };
        let boots = self.boots()?;
        let now = guest_counter(&self.disk).map_err(PlayError::io("read the guest's disk"))?;
        if status.host.as_ref() != Some(host) || boots != seen.boots || now <= before {
            return Err(PlayError::Wrong(format!(
                "it runs on {host}, booted {boots} times, counts {now} after {before}"
            )));
        }
        let next = Seen { host: host.clone(), epoch: status.epoch, qemu: qemu.clone(), boots };
        Ok((next, now))
    }

    /// Empties its host: it moves live, and comes back nowhere by itself.
    async fn drained(&self, seen: Seen) -> Result<Seen, PlayError> {
        let before = guest_counter(&self.disk).map_err(PlayError::io("read the guest's disk"))?;
        self.set_mode(&seen.host, "Maintenance").await?;
        let hosts: Api<Host> = Api::all(self.cluster.client());
        self.cluster
            .until(&format!("{} is drained", seen.host), async || {
                is_drained(&hosts, &seen.host).await
            })
            .await?;
        let (next, now) = self.moved(&seen, before).await?;
        if next.host == seen.host {
            return Err(PlayError::Wrong(format!("it is still on {}", seen.host)));
        }
        self.log.say(format!(
            "{} is drained: its VM moved live to {} (epoch {}), its guest counts on, {before} to \
             {now}",
            seen.host, next.host, next.epoch
        ));
        self.set_mode(&seen.host, "Active").await?;
        self.cluster.wait_ready().await?;
        self.untouched(&next, "the end of a drain").await?;
        Ok(next)
    }

    async fn set_mode(&self, host: &str, mode: &str) -> Result<(), PlayError> {
        let hosts: Api<Host> = Api::all(self.cluster.client());
        let patch = Patch::Merge(json!({"spec": {"mode": mode}}));
        let answer = hosts.patch(host, &PatchParams::default(), &patch).await;
        answer.map(drop).map_err(PlayError::api(format!("put {host} into mode {mode}")))
    }

    async fn crash_is_mended(&self, seen: &Seen) -> Result<Seen, PlayError> {
        seen.qemu.signal(Signal::KILL).map_err(PlayError::io("kill the QEMU"))?;
        self.log.say(format!("QEMU {} is killed", seen.qemu.pid));
        let next = self.running(seen.epoch, seen.boots).await?;
        self.log.say(format!(
            "the VM runs again as QEMU {} on {} (epoch {})",
            next.qemu.pid, next.host, next.epoch
        ));
        Ok(next)
    }

    async fn halts(&self, seen: &Seen) -> Result<(), PlayError> {
        self.patch(json!({"spec": {"runPolicy": "Halted"}})).await?;
        self.cluster
            .until("the VM is stopped and Ready", async || {
                let vm = self.vm().await?;
                let stopped =
                    vm.status.as_ref().is_some_and(|s| s.printable_status == VmState::Stopped);
                let ready = condition(&vm, "Ready").is_some_and(|c| c.status == "True");
                (stopped && ready).then_some(()).ok_or_else(|| describe(&vm))
            })
            .await?;
        self.nothing_runs()?;
        let boots = self.boots()?;
        if boots != seen.boots {
            return Err(PlayError::Wrong(format!("{boots} boots, not {}", seen.boots)));
        }
        self.seed_is(None).await?;
        self.log.say("runPolicy Halted: its guest is shut down, the VM is Stopped and Ready");
        Ok(())
    }

    async fn leaves_its_disk(&self, seen: &Seen) -> Result<(), PlayError> {
        let deleted = self.vms.delete(VM, &DeleteParams::default()).await;
        deleted.map_err(PlayError::api("delete the VM"))?;
        self.cluster
            .until("the VM is gone", async || {
                let vm = self.vms.get_opt(VM).await.map_err(|error| error.to_string())?;
                vm.map_or(Ok(()), |vm| Err(describe(&vm)))
            })
            .await?;
        let orders: Api<Domain> = Api::all(self.cluster.client());
        let left = orders.list(&ListParams::default()).await;
        let left = left.map_err(PlayError::api("list Domains"))?.items;
        if !left.is_empty() {
            return Err(PlayError::Wrong(format!("{} Domains are left", left.len())));
        }
        self.nothing_runs()?;
        self.seed_is(None).await?;
        if let Some(lock) = self.locks()?.first() {
            return Err(PlayError::Wrong(format!("its disk is still locked: {lock}")));
        }
        let disk = self.disk.display().to_string();
        let told = self
            .cluster
            .until("an Event names the disk that stays", async || {
                let events: Api<Event> = Api::namespaced(self.cluster.client(), NAMESPACE);
                let events = events.list(&ListParams::default()).await;
                let events = events.map_err(|error| error.to_string())?.items;
                let about = events.iter().filter(|e| e.involved_object.name.as_deref() == Some(VM));
                let mut messages = about.filter_map(|event| event.message.clone());
                let named = messages.find(|message| message.contains(&disk));
                named.ok_or_else(|| format!("{} Events, none of {disk}", events.len()))
            })
            .await?;
        if !self.disk.is_file() {
            return Err(PlayError::Wrong(format!("{disk} is gone")));
        }
        let record = self.record(seen.epoch)?;
        if record.state != RecordState::Released {
            return Err(PlayError::Wrong(format!("its owner record is {:?}", record.state)));
        }
        self.log.say(format!(
            "VM and Domain are deleted, no lock, seed image or copied secret is left, an Event \
             says \"{told}\""
        ));
        self.log.say(format!("the owner record of epoch {} is released", record.epoch));
        Ok(())
    }

    /// Waits for the VM to run in a later epoch, as one QEMU on the host it is said to be on, its
    /// guest booted just once more and writing.
    pub(super) async fn running(&self, after: i64, boots: u64) -> Result<Seen, PlayError> {
        let what = format!("the VM runs in an epoch above {after}");
        let (host, epoch, qemu) = self
            .cluster
            .until(&what, async || {
                let vm = self.vm().await?;
                let qemus = self.cluster.qemus();
                let status = vm.status.clone().unwrap_or_default();
                let ready = condition(&vm, "Ready").is_some_and(|c| c.status == "True");
                let runs = status.printable_status == VmState::Running;
                match &qemus[..] {
                    [(host, qemu)]
                        if ready
                            && runs
                            && status.epoch > after
                            && status.host.as_ref() == Some(host) =>
                    {
                        Ok((host.clone(), status.epoch, qemu.clone()))
                    }
                    _ => Err(format!("{}; {} QEMUs", describe(&vm), qemus.len())),
                }
            })
            .await?;
        let now = self
            .cluster
            .until("the guest boots", async || {
                let now = self.boots().map_err(|error| error.to_string())?;
                if now > boots { Ok(now) } else { Err(format!("{now} boots")) }
            })
            .await?;
        if now != boots + 1 {
            return Err(PlayError::Wrong(format!("the guest booted {} times", now - boots)));
        }
        self.grows().await?;
        if self.locks()?.is_empty() {
            return Err(PlayError::Wrong(
                "it runs, and nobody holds a lock on its disk".to_owned(),
            ));
        }
        Ok(Seen { host, epoch, qemu, boots: now })
    }

    /// Fails unless it is still the very same process, and its guest writes.
    pub(super) async fn untouched(&self, seen: &Seen, by: &str) -> Result<(), PlayError> {
        self.grows().await?;
        let vm = self.vm().await.map_err(PlayError::Wrong)?;
        let epoch = vm.status.map_or(0, |status| status.epoch);
        let alone = self.cluster.qemus() == [(seen.host.clone(), seen.qemu.clone())];
        if alone && epoch == seen.epoch && self.boots()? == seen.boots {
            return Ok(());
        }
        Err(PlayError::Wrong(format!("the VM was touched by {by}")))
    }

    pub(super) async fn grows(&self) -> Result<(), PlayError> {
        let count = || guest_counter(&self.disk).map_err(|error| error.to_string());
        let before = count().map_err(PlayError::Wrong)?;
        self.cluster
            .until("the guest writes", async || {
                let now = count()?;
                if now > before { Ok(()) } else { Err(format!("its counter is {now}")) }
            })
            .await
    }

    fn boots(&self) -> Result<u64, PlayError> {
        guest_boots(&self.disk).map_err(PlayError::io("read the guest's disk"))
    }

    /// Fails if a QEMU, or a domain that libvirt knows, is on any host.
    fn nothing_runs(&self) -> Result<(), PlayError> {
        let left = self.cluster.qemus();
        if !left.is_empty() {
            return Err(PlayError::Wrong(format!("still there: {left:?}")));
        }
        for host in self.cluster.hosts() {
            let output = std::process::Command::new("timeout")
                .args(["30", "virsh", "-c", &host.libvirt_uri(), "list", "--all", "--name"])
                .output()
                .map_err(PlayError::io("run virsh"))?;
            let text = String::from_utf8_lossy(&output.stdout);
            if !output.status.success() || !text.trim().is_empty() {
                let error = String::from_utf8_lossy(&output.stderr);
                let name = host.name();
                return Err(PlayError::Wrong(format!("domains on {name}: {text}{error}")));
            }
        }
        Ok(())
    }

    /// Waits until the seed image and the copy of its Secret are on this host and on no other.
    async fn seed_is(&self, on: Option<&str>) -> Result<(), PlayError> {
        let what = format!("its seed is on {on:?} alone");
        self.cluster
            .until(&what, async || {
                for host in self.cluster.hosts() {
                    let name = host.name();
                    let wanted = usize::from(on == Some(name.as_str()));
                    let folder = host.dir().join("var/lib/stockade/seeds");
                    let images = std::fs::read_dir(folder).map_or(0, Iterator::count);
                    let secrets: Api<Secret> =
                        Api::namespaced(self.cluster.client(), &host_namespace(&name));
                    let copies = secrets.list(&ListParams::default()).await;
                    let copies = copies.map_err(|error| error.to_string())?.items.len();
                    if (images, copies) != (wanted, wanted) {
                        return Err(format!("{name}: {images} images, {copies} secrets"));
                    }
                }
                Ok(())
            })
            .await
    }

    /// The locks that anybody holds on the disk, as the kernel tells them.
    fn locks(&self) -> Result<Vec<String>, PlayError> {
        use std::os::unix::fs::MetadataExt as _;
        let inode = std::fs::metadata(&self.disk).map_err(PlayError::io("look at the disk"))?.ino();
        let locks =
            std::fs::read_to_string("/proc/locks").map_err(PlayError::io("read the locks"))?;
        let of_disk = |line: &&str| line.contains(&format!(":{inode} "));
        Ok(locks.lines().filter(of_disk).map(str::to_owned).collect())
    }

    /// When the host's agent last renewed its Lease.
    async fn beat(&self, host: &str) -> Result<String, String> {
        use k8s_openapi::api::coordination::v1::Lease;
        use stockade_crds::names::AGENT_OBJECT;
        let leases: Api<Lease> = Api::namespaced(self.cluster.client(), &host_namespace(host));
        let lease = leases.get(AGENT_OBJECT).await.map_err(|error| error.to_string())?;
        let renewed = lease.spec.and_then(|spec| spec.renew_time);
        serde_json::to_string(&renewed).map_err(|error| error.to_string())
    }

    /// The owner record of an epoch, as it lies beside the disk.
    fn record(&self, epoch: i64) -> Result<OwnerRecord, PlayError> {
        let folder = format!("{}.stockade", self.disk.display());
        let text = std::fs::read(format!("{folder}/{epoch}.json"))
            .map_err(PlayError::io("read the owner record"))?;
        serde_json::from_slice(&text)
            .map_err(|error| PlayError::Wrong(format!("the owner record is spoilt: {error}")))
    }

    async fn vm(&self) -> Result<VirtualMachine, String> {
        self.vms.get(VM).await.map_err(|error| error.to_string())
    }

    async fn patch(&self, patch: Value) -> Result<(), PlayError> {
        let answer = self.vms.patch(VM, &PatchParams::default(), &Patch::Merge(&patch)).await;
        answer.map(drop).map_err(PlayError::api(format!("patch the VM with {patch}")))
    }
}

/// The VM as a person would apply it.
fn manifest() -> String {
    format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: {VM}-seed, namespace: {NAMESPACE}}}\n\
         stringData: {{userdata: \"#cloud-config\\npassword: demo\\n\"}}\n---\n\
         apiVersion: stockade.dev/v1alpha1\nkind: VirtualMachine\n\
         metadata: {{name: {VM}, namespace: {NAMESPACE}}}\nspec:\n  memory: 64Mi\n  \
         stopGraceSeconds: 30\n  cloudInit:\n    \
         userDataSecret: {{name: {VM}-seed, key: userdata}}\n  disks:\n    \
         - {{name: root, storage: {STORAGE}, format: raw, existing: {{path: {VM}.raw}}}}\n"
    )
}

fn condition<'a>(vm: &'a VirtualMachine, kind: &str) -> Option<&'a Condition> {
    vm.status.as_ref()?.conditions.iter().find(|condition| condition.type_ == kind)
}

/// What a VM says of itself, in a line.
fn describe(vm: &VirtualMachine) -> String {
    let Some(status) = &vm.status else { return "it has no status".to_owned() };
    let conditions: Vec<String> = status
        .conditions
        .iter()
        .map(|c| format!("{}={} {}: {}", c.type_, c.status, c.reason, c.message))
        .collect();
    format!("{:?}, epoch {}, {}", status.printable_status, status.epoch, conditions.join(", "))
}
