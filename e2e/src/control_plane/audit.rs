//! Counts what the server was asked to write, from its own audit log: the one place that no
//! client, cache or retry can hide from.

use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;

use serde::Deserialize;

use super::Error;
use super::identity::write_private;

/// The log, in the control plane's folder.
pub const LOG: &str = "audit.log";
const POLICY: &str = "audit-policy.yaml";

/// Metadata of every write, once it is answered. Leases are heartbeats and leadership, which beat
/// by the clock; reviews ask and store nothing.
const POLICY_TEXT: &str = r#"apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived, ResponseStarted]
rules:
  - level: None
    resources:
      - group: coordination.k8s.io
        resources: [leases]
      - group: authorization.k8s.io
      - group: authentication.k8s.io
  - level: None
    resources:
      - group: ""
        resources: [serviceaccounts/token]
  - level: Metadata
    verbs: [create, update, patch, delete, deletecollection]
"#;

/// One write request that the server has answered.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    /// Who asked.
    pub user: String,
    /// create, update, patch, delete or deletecollection.
    pub verb: String,
    /// The API group, empty for the core group.
    pub group: String,
    /// The resource, with its subresource after a slash.
    pub resource: String,
    /// The namespace, empty where there is none.
    pub namespace: String,
    /// The object's name, empty for a create.
    pub name: String,
    /// The HTTP status of the answer; a refused request is a write request too.
    pub code: u16,
}

/// A point in the audit log, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Mark(u64);

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    verb: String,
    user: User,
    object_ref: Option<ObjectRef>,
    response_status: Option<ResponseStatus>,
    #[serde(default, rename = "requestURI")]
    request_uri: String,
}

#[derive(Deserialize)]
struct User {
    #[serde(default)]
    username: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct ObjectRef {
    resource: String,
    namespace: String,
    name: String,
    api_group: String,
    subresource: String,
}

#[derive(Deserialize)]
struct ResponseStatus {
    #[serde(default)]
    code: u16,
}

/// kube-apiserver's flags for the log; it is written before the answer leaves.
pub const fn flags() -> [&'static str; 3] {
    [
        "--audit-policy-file=audit-policy.yaml",
        "--audit-log-path=audit.log",
        "--audit-log-mode=blocking",
    ]
}

/// Writes the policy into the control plane's folder.
pub fn write_policy(dir: &Path) -> Result<(), Error> {
    write_private(&dir.join(POLICY), POLICY_TEXT)
}

/// Where the log ends now.
pub fn mark(log: &Path) -> Mark {
    Mark(std::fs::metadata(log).map(|metadata| metadata.len()).unwrap_or_default())
}

/// The writes after `mark`, oldest first. Dry runs store nothing and are left out.
pub fn writes_since(log: &Path, mark: Mark) -> Result<Vec<Write>, Error> {
    let mut text = String::new();
    if log.exists() {
        File::open(log)
            .and_then(|mut file| {
                file.seek(SeekFrom::Start(mark.0))?;
                file.read_to_string(&mut text)
            })
            .map_err(Error::io(format!("read {}", log.display())))?;
    }
    Ok(text.lines().filter_map(parse).collect())
}

/// Reads one line; a line that is still being written is no write yet.
pub fn parse(line: &str) -> Option<Write> {
    let line: Line = serde_json::from_str(line).ok()?;
    if line.request_uri.contains("dryRun=") {
        return None;
    }
    let object = line.object_ref.unwrap_or_default();
    let resource = if object.subresource.is_empty() {
        object.resource
    } else {
        format!("{}/{}", object.resource, object.subresource)
    };
    Some(Write {
        user: line.user.username,
        verb: line.verb,
        group: object.api_group,
        resource,
        namespace: object.namespace,
        name: object.name,
        code: line.response_status.map(|status| status.code).unwrap_or_default(),
    })
}
