//! What a port can answer besides success.

use thiserror::Error;

/// The result of a port's operation.
pub type HostResult<T> = Result<T, HostError>;

/// Why an operation at the host's edge did not succeed.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum HostError {
    /// It failed, and it is certain that nothing was done.
    #[error("{op} of {target} failed: {message}")]
    Failed {
        /// The operation.
        op: &'static str,
        /// What it was done to.
        target: String,
        /// The answer, with the remedy if there is one.
        message: String,
    },
    /// Its answer is lost: it may have been done, or may still be done.
    #[error("{op} of {target} has no known result: {message}")]
    Unknown {
        /// The operation.
        op: &'static str,
        /// What it was done to.
        target: String,
        /// What is known.
        message: String,
    },
    /// Something that must hold first does not; nothing was done.
    #[error("{op} of {target} was refused: {message}")]
    Refused {
        /// The operation.
        op: &'static str,
        /// What it was done to.
        target: String,
        /// What does not hold, with the remedy.
        message: String,
    },
    /// A lock that guards it is held by another; nothing was done.
    #[error("a lock of {target} is held by {holder}: {message}")]
    Locked {
        /// What is guarded.
        target: String,
        /// The holder, as far as it is known.
        holder: String,
        /// The answer.
        message: String,
    },
}

impl HostError {
    /// Whether the operation may have taken effect.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, Self::Unknown { .. })
    }

    /// A certain failure.
    pub fn failed(op: &'static str, target: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Failed { op, target: target.into(), message: message.into() }
    }

    /// A lost answer.
    pub fn unknown(
        op: &'static str,
        target: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::Unknown { op, target: target.into(), message: message.into() }
    }

    /// A refusal.
    pub fn refused(
        op: &'static str,
        target: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self::Refused { op, target: target.into(), message: message.into() }
    }
}
