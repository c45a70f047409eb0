//! The peer: a loop that writes what Stockade has written, as fast as the server takes it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, TryStreamExt as _};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use stockade_e2e::control_plane::ControlPlane;

use super::server::Counts;
use super::{AT_ONCE, Error, HEARTBEAT, NAMESPACE, failed};

/// A kind that is written, and an object to copy.
struct Sample {
    plural: String,
    resource: ApiResource,
    namespaced: bool,
    object: Value,
}

impl Sample {
    fn of(object: &Value) -> Result<Self, Error> {
        let version = object["apiVersion"].as_str().unwrap_or_default();
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        let kind = object["kind"].as_str().unwrap_or_default();
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let namespaced = object["metadata"]["namespace"].is_string();
        let mut object = object.clone();
        let meta = object["metadata"].take();
        object["metadata"] = json!({"labels": meta["labels"], "annotations": meta["annotations"]});
        Ok(Self { plural: resource.plural.clone(), resource, namespaced, object })
    }

    fn api(&self, client: &Client, namespace: &str) -> Api<DynamicObject> {
        if self.namespaced {
            Api::namespaced_with(client.clone(), namespace, &self.resource)
        } else {
            Api::all_with(client.clone(), &self.resource)
        }
    }

    fn copy(&self, name: &str) -> Result<DynamicObject, Error> {
        let mut object = self.object.clone();
        object["metadata"]["name"] = Value::String(name.to_owned());
        Ok(serde_json::from_value(object)?)
    }
}

/// What is written for one VM: how often each kind of write, so that the sums over all VMs are
/// those that were counted.
struct Share<'a> {
    counts: &'a Counts,
    number: u64,
    vms: u64,
}

impl Share<'_> {
    fn times(&self, count: u64) -> u64 {
        (self.number + 1) * count / self.vms - self.number * count / self.vms
    }
}

struct Loop {
    client: Client,
    samples: BTreeMap<String, Sample>,
    hosts: usize,
}

impl Loop {
    /// All writes for one VM, one after the other as they depend on each other.
    async fn vm(&self, share: Share<'_>) -> Result<(), Error> {
        let host = format!("h{}", share.number as usize % self.hosts + 1);
        let mut order: Vec<_> = share.counts.iter().collect();
        // An object is made before it is changed.
        order.sort_by_key(|(write, _)| (write.verb != "POST", *write));
        for (write, count) in order {
            let Some(sample) = self.samples.get(&write.resource) else { continue };
            for time in 0..share.times(*count) {
                self.write(sample, (&write.verb, &write.subresource), &host, (share.number, time))
                    .await
                    .map_err(|e| failed(&format!("{write:?}"), e))?;
            }
        }
        Ok(())
    }

    async fn write(
        &self,
        sample: &Sample,
        (verb, subresource): (&str, &str),
        host: &str,
        (number, time): (u64, u64),
    ) -> Result<(), Error> {
        let wrong = |e: kube::Error| Error::Ours(e.to_string());
        let post = PostParams::default();
        let in_host = sample.plural == "domains";
        let namespace =
            if in_host { format!("stockade-host-{host}") } else { NAMESPACE.to_owned() };
        let api = sample.api(&self.client, &namespace);
        if verb == "POST" {
            let name = match sample.plural.as_str() {
                "events" => format!("vm{number}.{time}"),
                _ if time > 0 => return Ok(()),
                _ => format!("vm{number}"),
            };
            return api.create(&post, &sample.copy(&name)?).await.map(drop).map_err(wrong);
        }
        let name = if sample.plural == "hosts" { host.to_owned() } else { format!("vm{number}") };
        // Every write is a change: one that is none is not stored.
        let mark = number * 8 + time;
        let change = match (subresource, sample.plural.as_str()) {
            ("", _) => json!({"metadata": {"annotations": {"bench": format!("{verb}{mark}")}}}),
            (_, "virtualmachines") => {
                let mut status = sample.object["status"].clone();
                status["observedGeneration"] = json!(mark);
                json!({ "status": status })
            }
            (_, "domains") => {
                let mut status = sample.object["status"].clone();
                status["message"] = json!(mark.to_string());
                json!({ "status": status })
            }
            _ => json!({"status": {"observedGeneration": mark}}),
        };
        let params = PatchParams::default();
        let patch = Patch::Merge(change);
        if subresource.is_empty() {
            api.patch(&name, &params, &patch).await.map(drop).map_err(wrong)
        } else {
            api.patch_status(&name, &params, &patch).await.map(drop).map_err(wrong)
        }
    }

    /// Renews every host's Lease, for ever, spread over the time between two beats.
    async fn beat(self: Arc<Self>, hosts: usize) -> Result<(), Error> {
        let Some(sample) = self.samples.get("leases") else { return Ok(()) };
        let pause = Duration::from_secs(HEARTBEAT) / u32::try_from(hosts).unwrap_or(1);
        let mut next = tokio::time::interval(pause);
        let mut round = 0_u64;
        loop {
            round += 1;
            for number in 1..=hosts {
                next.tick().await;
                let api = sample.api(&self.client, &format!("stockade-host-h{number}"));
                let mut object = sample.object.clone();
                object["spec"]["leaseDurationSeconds"] = json!(round);
                let change = json!({
                    "metadata": {"annotations": object["metadata"]["annotations"]},
                    "spec": object["spec"],
                });
                let params = PatchParams::default();
                let call = api.patch("agent", &params, &Patch::Merge(change)).await;
                call.map_err(|e| failed("lease", e))?;
            }
        }
    }

    /// What is there before the first VM: namespaces, hosts and Leases.
    async fn prepare(&self, plane: &ControlPlane, hosts: usize) -> Result<(), Error> {
        let post = PostParams::default();
        let calls = (1..=hosts).map(async |number| {
            let namespace = format!("stockade-host-h{number}");
            plane.ensure_namespace(&namespace).await.map_err(|e| failed("namespace", e))?;
            for (plural, name) in [("hosts", format!("h{number}")), ("leases", "agent".to_owned())]
            {
                let Some(sample) = self.samples.get(plural) else { continue };
                let api = sample.api(&self.client, &namespace);
                api.create(&post, &sample.copy(&name)?).await.map_err(|e| failed(plural, e))?;
            }
            Ok::<_, Error>(())
        });
        futures::stream::iter(calls).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
        Ok(())
    }
}

/// Seconds that the same writes take when nobody has to think.
pub async fn run(
    vms: usize,
    hosts: usize,
    counts: &Counts,
    samples: &[Value],
) -> Result<f64, Error> {
    let (plane, client) = super::plane().await?;
    let mut all = BTreeMap::new();
    for object in samples {
        let sample = Sample::of(object)?;
        all.insert(sample.plural.clone(), sample);
    }
    let left_out: u64 =
        counts.iter().filter(|(w, _)| !all.contains_key(&w.resource)).map(|(_, n)| n).sum();
    eprintln!("bench: scale: {left_out} writes of other kinds are left out of the bare loop");
    let this = Arc::new(Loop { client, samples: all, hosts });
    this.prepare(&plane, hosts).await?;
    let beats = tokio::spawn(Arc::clone(&this).beat(hosts));
    let started = Instant::now();
    let calls = (0..vms as u64).map(|number| this.vm(Share { counts, number, vms: vms as u64 }));
    futures::stream::iter(calls).buffer_unordered(AT_ONCE).try_collect::<Vec<_>>().await?;
    let took = started.elapsed().as_secs_f64();
    if beats.is_finished() {
        return Err(Error::Ours("the bare loop's beats failed".to_owned()));
    }
    beats.abort();
    Ok(took)
}
