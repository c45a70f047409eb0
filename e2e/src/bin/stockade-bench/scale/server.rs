//! What the API server counted, and what it holds.

use std::collections::BTreeMap;

use kube::Client;
use serde_json::Value;

use super::{Error, NAMESPACE, failed};

/// A kind of write: resource, subresource, verb.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    /// `virtualmachines`.
    pub resource: String,
    /// `status`, or empty.
    pub subresource: String,
    /// `POST`, `PUT`, `PATCH` or `DELETE`.
    pub verb: String,
}

/// Requests by kind of write.
pub type Counts = BTreeMap<Write, u64>;

async fn get(client: &Client, path: &str) -> Result<String, Error> {
    let request = http::Request::get(path).body(Vec::new()).map_err(|e| failed(path, e))?;
    client.request_text(request).await.map_err(|e| failed(path, e))
}

fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    let rest = labels.split(',').find_map(|l| l.strip_prefix(name)?.strip_prefix("=\""))?;
    rest.strip_suffix('"')
}

/// Writes that the server has answered and stored so far; beats and reviews of access left out.
pub async fn counts(client: &Client) -> Result<Counts, Error> {
    let text = get(client, "/metrics").await?;
    let mut counts = Counts::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("apiserver_request_total{") else { continue };
        let Some((labels, count)) = rest.rsplit_once("} ") else { continue };
        let of = |name| label(labels, name).unwrap_or_default().to_owned();
        let write =
            Write { resource: of("resource"), subresource: of("subresource"), verb: of("verb") };
        let stored = matches!(write.verb.as_str(), "POST" | "PUT" | "PATCH" | "DELETE")
            && of("code").starts_with('2')
            && !write.resource.ends_with("reviews")
            && write.resource != "leases"
            && write.subresource != "token";
        if stored {
            *counts.entry(write).or_default() += count.parse::<f64>().unwrap_or_default() as u64;
        }
    }
    Ok(counts)
}

/// What was added.
pub fn since(before: &Counts, after: &Counts) -> Counts {
    let added = |(write, n): (&Write, &u64)| {
        let more = n - before.get(write).copied().unwrap_or_default().min(*n);
        (more > 0).then(|| (write.clone(), more))
    };
    after.iter().filter_map(added).collect()
}

/// One object of each kind that is written for a VM, and a heartbeat Lease.
pub async fn samples(client: &Client) -> Result<Vec<Value>, Error> {
    let ours = "/apis/stockade.dev/v1alpha1";
    let mut samples = Vec::new();
    for path in [
        format!("{ours}/namespaces/{NAMESPACE}/virtualmachines"),
        format!("{ours}/domains"),
        format!("{ours}/hosts"),
        format!("/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events"),
        "/apis/coordination.k8s.io/v1/namespaces/stockade-host-h1/leases".to_owned(),
    ] {
        let list: Value = serde_json::from_str(&get(client, &format!("{path}?limit=1")).await?)?;
        let Some(item) = list["items"].get(0) else { continue };
        let mut item = item.clone();
        // Items of a list don't say what they are.
        for key in ["kind", "apiVersion"] {
            if item[key].is_null() {
                let text = list[key].as_str().unwrap_or_default();
                item[key] = Value::String(text.trim_end_matches("List").to_owned());
            }
        }
        samples.push(item);
    }
    Ok(samples)
}
