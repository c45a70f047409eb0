//! Why the controller could not do something.

use thiserror::Error;

/// What can go wrong outside a plan.
#[derive(Debug, Error)]
pub enum ControllerError {
    /// A request was refused or failed.
    #[error("{what} failed")]
    Api {
        /// The request, for people.
        what: String,
        /// The answer.
        #[source]
        source: kube::Error,
    },
    /// A certificate can't be made.
    #[error("signing for {host} failed")]
    Certificate {
        /// The host.
        host: String,
        /// Why.
        #[source]
        source: rcgen::Error,
    },
    /// The authority for live moves can't be used; the sentence says what to do.
    #[error("{0}")]
    Authority(String),
    /// Something is missing that only people can give.
    #[error("{what}")]
    Missing {
        /// What, and what to do.
        what: String,
    },
    /// A request was not answered in time; it may have been carried out.
    #[error("{what} was not answered in time")]
    TimedOut {
        /// The request, for people.
        what: String,
    },
}

impl ControllerError {
    /// Whether someone else was faster: the next plan knows more.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => {
                status.is_conflict() || status.is_already_exists() || status.is_not_found()
            }
            Self::Api { .. }
            | Self::Missing { .. }
            | Self::TimedOut { .. }
            | Self::Certificate { .. }
            | Self::Authority(_) => false,
        }
    }
}
