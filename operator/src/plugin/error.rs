//! What can go wrong, each with what to do about it.

use kube::config::{InferConfigError, KubeconfigError};
use thiserror::Error;

/// Why a verb could not be obeyed.
#[derive(Debug, Error)]
pub(super) enum PluginError {
    #[error("the runtime can't be started")]
    Runtime(#[source] std::io::Error),
    #[error("the kubeconfig can't be used; see --kubeconfig and --context")]
    Kubeconfig(#[source] KubeconfigError),
    #[error("no API server is known; give --kubeconfig, or set KUBECONFIG")]
    Infer(#[source] InferConfigError),
    #[error("the client can't be built")]
    Client(#[source] kube::Error),
    /// What the server, or the way to it, said no to.
    #[error("{}", refused(.what, .source))]
    Api {
        /// What was tried: "list hosts".
        what: String,
        /// The answer.
        source: kube::Error,
    },
    /// Something that the person must change first; the sentence names it.
    #[error("{0}")]
    Refused(String),
    /// It was ordered, and is not done yet.
    #[error("not within {seconds} s: {what}")]
    NotInTime {
        /// What is awaited, and how to go on.
        what: String,
        /// How long was waited.
        seconds: u64,
    },
}

impl PluginError {
    /// Gives the API's refusal the words that say what was tried.
    pub(super) fn api(what: impl Into<String>) -> impl FnOnce(kube::Error) -> Self {
        let what = what.into();
        move |source| Self::Api { what, source }
    }

    /// Whether the server said that this person may not.
    pub(super) fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api { source: kube::Error::Api(status), .. } if status.code == 403)
    }
}

/// An API error as a person wants it: the server's words are its own sentence.
fn refused(what: &str, source: &kube::Error) -> String {
    let kube::Error::Api(status) = source else {
        return format!(
            "can't {what}: the API server does not answer; see --kubeconfig, --context"
        );
    };
    let said = &status.message;
    match status.code {
        401 => format!("can't {what}: the API server does not know you: {said}"),
        // Admission names its own remedy.
        403 if said.contains("ValidatingAdmissionPolicy") => format!("can't {what}: {said}"),
        403 => format!(
            "can't {what}: {said}; the ClusterRoles stockade-operator (hosts and fencing), \
             stockade-edit (VMs) and stockade-confirm (a human's word) give these rights"
        ),
        404 if status.details.as_ref().is_none_or(|d| d.name.is_empty()) => format!(
            "can't {what}: this cluster does not know Stockade's kinds; install the charts \
             stockade-crds and stockade"
        ),
        409 => format!("can't {what}: it changed meanwhile; look again and repeat"),
        _ => format!("can't {what}: {said}"),
    }
}

/// The error with its causes; what an API answered is in the first sentence already.
pub(super) fn told(error: &PluginError) -> String {
    let mut text = error.to_string();
    if matches!(error, PluginError::Api { source: kube::Error::Api(_), .. }) {
        return text;
    }
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        text.push_str(&format!(": {inner}"));
        cause = inner.source();
    }
    text
}
