//! What becomes of a user's orders.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::super::ast::{Name, OrderKind, Verb};
use super::super::words::Outcome;
use super::steps::Answer;
use crate::runner::Cluster;

/// What an accepted order still has to bring about.
pub(super) enum Wish {
    /// These run.
    Start(Vec<Name>),
    /// These run no more.
    Stop(Vec<Name>),
    /// These VirtualMachineMigrations end.
    Migrate(Vec<Name>),
    /// These end, called off.
    Abort(Vec<Name>),
    /// These hosts are empty.
    Drain(Vec<Name>),
    /// These HostFences have a proof.
    Confirm(Vec<Name>),
    /// These VMs are the copies that run on this host; the request.
    Adopt(Vec<Name>, Name, String),
    /// This request of these VMs is handled, and they run; those of them that ran when it was made.
    Request(Vec<Name>, String, BTreeSet<Name>),
}

type Said = (Outcome, String);

struct Order {
    step: usize,
    wish: Wish,
    /// What was last said of each VirtualMachineMigration: it may be deleted since.
    moves: BTreeMap<Name, Said>,
    last: Option<Said>,
}

/// The orders that were given, and what became of them so far.
#[derive(Default)]
pub(super) struct Orders {
    followed: Vec<Order>,
    news: Vec<(usize, Said)>,
}

impl Orders {
    /// A step that may be an order was carried out.
    pub(super) fn gave(&mut self, step: usize, verb: &Verb, answer: Answer, wish: Option<Wish>) {
        match (answer, verb.order()) {
            (Err(why), _) => self.news.push((step, (Outcome::Refused, why))),
            (Ok(()), Some(OrderKind::Accepted) | None) => {
                self.news.push((step, (Outcome::Accepted, "accepted by the API".to_owned())));
            }
            (Ok(()), Some(OrderKind::Carried)) => {
                self.news.push((step, (Outcome::Pending, "accepted by the API".to_owned())));
            }
        }
        if let Some(wish) = wish {
            self.followed.push(Order { step, wish, moves: BTreeMap::new(), last: None });
        }
    }

    /// What is new since it was last asked: the step, its outcome, and more for people.
    pub(super) fn look(&mut self, cluster: &Cluster) -> Vec<(usize, Outcome, String)> {
        for order in &mut self.followed {
            // What has succeeded stays so, whatever comes after it; so does a request that came to
            // nothing: a later one takes its place in the VM's status.
            let last = order.last.as_ref().map(|(outcome, _)| *outcome);
            let in_vain = matches!(last, Some(Outcome::Refused | Outcome::Aborted));
            if last == Some(Outcome::Succeeded)
                || (in_vain && matches!(order.wish, Wish::Request(..)))
            {
                continue;
            }
            let said = order.look(cluster);
            if order.last.as_ref() != Some(&said) {
                self.news.push((order.step, said.clone()));
                order.last = Some(said);
            }
        }
        let news = std::mem::take(&mut self.news);
        news.into_iter().map(|(step, (outcome, text))| (step, outcome, text)).collect()
    }
}

impl Order {
    fn look(&mut self, cluster: &Cluster) -> Said {
        match &self.wish {
            Wish::Start(vms) => all(vms, |vm| match word(cluster, vm).as_str() {
                "Running" => (Outcome::Succeeded, format!("{vm} runs")),
                "Error" => (Outcome::Failed, ready(cluster, "VirtualMachine", vm)),
                _ => (Outcome::Pending, ready(cluster, "VirtualMachine", vm)),
            }),
            Wish::Stop(vms) => all(vms, |vm| {
                let gone = cluster.vm(vm).is_none();
                match word(cluster, vm).as_str() {
                    _ if gone => (Outcome::Succeeded, format!("{vm} is deleted")),
                    "Stopped" => (Outcome::Succeeded, format!("{vm} is stopped")),
                    "Error" => (Outcome::Failed, ready(cluster, "VirtualMachine", vm)),
                    "Blocked" if !cluster.running(vm).is_empty() => {
                        (Outcome::Failed, ready(cluster, "VirtualMachine", vm))
                    }
                    _ => (Outcome::Pending, ready(cluster, "VirtualMachine", vm)),
                }
            }),
            Wish::Migrate(names) => {
                for name in names {
                    remember(&mut self.moves, cluster, name);
                }
                all(names, |name| self.moves.get(name).cloned().unwrap_or_else(pending))
            }
            Wish::Abort(names) => {
                for name in names {
                    remember(&mut self.moves, cluster, name);
                }
                all(names, |name| {
                    let there = migration(cluster, name).is_some();
                    match self.moves.get(name).cloned().unwrap_or_else(pending) {
                        (Outcome::Aborted, text) => (Outcome::Succeeded, text),
                        (Outcome::Succeeded, _) => {
                            (Outcome::Failed, "the move was complete before".to_owned())
                        }
                        (Outcome::Failed | Outcome::Refused, text) => (Outcome::Succeeded, text),
                        (_, text) if there => (Outcome::Pending, text),
                        (_, text) => (Outcome::Succeeded, text),
                    }
                })
            }
            Wish::Drain(hosts) => all(hosts, |host| {
                let object = cluster.api.admin().get("Host", None, host);
                let Some(object) = object else {
                    return (Outcome::Failed, format!("{host} is deleted"));
                };
                if object.value["spec"]["mode"].as_str() != Some("Maintenance") {
                    return (Outcome::Aborted, format!("{host} takes VMs again"));
                }
                let remaining = object.value["status"]["drain"]["remaining"].as_i64();
                let blocked = object.value["status"]["drain"]["blocked"].to_string();
                match remaining {
                    Some(0) => (Outcome::Succeeded, format!("{host} is empty")),
                    Some(n) => (Outcome::Pending, format!("{n} VMs are still there: {blocked}")),
                    None => pending(),
                }
            }),
            Wish::Confirm(names) => all(names, |name| {
                let fence = cluster.api.admin().get("HostFence", None, name);
                let Some(fence) = fence else {
                    return match self.last.as_ref() {
                        Some((Outcome::Succeeded, text)) => (Outcome::Succeeded, text.clone()),
                        _ => (Outcome::Refused, "the certificate is closed".to_owned()),
                    };
                };
                let status = &fence.value["status"];
                let text = ready(cluster, "HostFence", name);
                if status["proof"].is_string() && !status["revoked"].is_string() {
                    return (Outcome::Succeeded, text);
                }
                if status["observedGeneration"] == fence.value["metadata"]["generation"] {
                    return (Outcome::Refused, text);
                }
                (Outcome::Pending, text)
            }),
            Wish::Adopt(vms, host, id) => all(vms, |vm| {
                let text = ready(cluster, "VirtualMachine", vm);
                let handled = handled(cluster, vm, id);
                let there = cluster.running(vm) == [host.clone()];
                match word(cluster, vm).as_str() {
                    "Running" if there && handled => {
                        (Outcome::Succeeded, format!("{vm} is the copy on {host}"))
                    }
                    "Running" | "Starting" => (Outcome::Pending, text),
                    _ if handled => (Outcome::Refused, text),
                    _ => (Outcome::Pending, text),
                }
            }),
            Wish::Request(vms, id, ran) => all(vms, |vm| {
                let text = ready(cluster, "VirtualMachine", vm);
                match word(cluster, vm).as_str() {
                    "Stopped" if handled(cluster, vm, id) && ran.contains(vm) => {
                        (Outcome::Aborted, text)
                    }
                    "Stopped" if handled(cluster, vm, id) => (Outcome::Refused, text),
                    "Running" if handled(cluster, vm, id) => {
                        (Outcome::Succeeded, format!("{vm} runs"))
                    }
                    "Error" => (Outcome::Failed, text),
                    _ => (Outcome::Pending, text),
                }
            }),
        }
    }
}

fn pending() -> Said {
    (Outcome::Pending, "nothing was said of it yet".to_owned())
}

/// What became of several: the worst of what is over, or what is still pending.
fn all(names: &[Name], mut of: impl FnMut(&Name) -> Said) -> Said {
    let rank = |outcome: Outcome| match outcome {
        Outcome::Failed => 0,
        Outcome::Refused => 1,
        Outcome::Aborted => 2,
        Outcome::Pending => 3,
        Outcome::Accepted => 4,
        Outcome::Succeeded => 5,
    };
    names.iter().map(&mut of).min_by_key(|said| rank(said.0)).unwrap_or_else(pending)
}

fn word(cluster: &Cluster, vm: &str) -> String {
    let object = cluster.api.admin().get("VirtualMachine", Some("default"), vm);
    let word =
        object.and_then(|o| o.value["status"]["printableStatus"].as_str().map(str::to_owned));
    word.unwrap_or_default()
}

fn handled(cluster: &Cluster, vm: &str, id: &str) -> bool {
    cluster
        .vm(vm)
        .and_then(|vm| vm.status)
        .is_some_and(|s| s.last_handled_request.as_deref() == Some(id))
}

/// The message of an object's Ready condition.
fn ready(cluster: &Cluster, kind: &str, name: &str) -> String {
    let object = cluster.api.admin().get(kind, Some("default"), name);
    let Some(object) = object else { return format!("{name} is not there") };
    let conditions = object.value["status"]["conditions"].as_array();
    let ready = conditions.into_iter().flatten().find(|c| c["type"] == "Ready");
    let text = |c: &Value, key: &str| c[key].as_str().unwrap_or_default().to_owned();
    ready.map(|c| format!("{}: {}", text(c, "reason"), text(c, "message"))).unwrap_or_default()
}

fn migration(cluster: &Cluster, name: &str) -> Option<std::sync::Arc<crate::kube::Object>> {
    cluster.api.admin().get("VirtualMachineMigration", Some("default"), name)
}

fn remember(moves: &mut BTreeMap<Name, Said>, cluster: &Cluster, name: &Name) {
    let Some(object) = migration(cluster, name) else {
        // Deleted while it was under way.
        let before = moves.entry(name.clone()).or_insert_with(pending);
        if before.0 == Outcome::Pending {
            *before = (Outcome::Aborted, "it was deleted before it was done".to_owned());
        }
        return;
    };
    let outcome = match object.value["status"]["outcome"].as_str() {
        Some("Succeeded") => Outcome::Succeeded,
        Some("Failed") => Outcome::Failed,
        Some("Refused") => Outcome::Refused,
        Some("Aborted") => Outcome::Aborted,
        _ => Outcome::Pending,
    };
    let text = ready(cluster, "VirtualMachineMigration", name);
    moves.insert(name.clone(), (outcome, text));
}
