//! Whether what users declared can be carried out.
//!
//! The schema and its CEL rules refuse what is wrong in itself; here is what
//! only several objects together can show, every problem at once.

mod policy;

#[cfg(test)]
mod tests;

pub use policy::{DRAIN_SECONDS, elapsed_proof_seconds, policy_problems};

/// Why an object can't be carried out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, by its path from the object's root.
    pub field: String,
    /// What is wrong.
    pub message: String,
    /// What to do about it.
    pub remedy: String,
    /// Nothing but a change of this object can mend it; otherwise it may mend
    /// by itself, as when the object that it names is applied a moment later.
    pub stalled: bool,
}

impl Problem {
    fn stalled(field: &str, message: String, remedy: &str) -> Self {
        Self { field: field.to_owned(), message, remedy: remedy.to_owned(), stalled: true }
    }

    fn waiting(field: &str, message: String, remedy: &str) -> Self {
        Self { stalled: false, ..Self::stalled(field, message, remedy) }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}; {}", self.field, self.message, self.remedy)
    }
}

/// Every problem as one message for a condition.
#[must_use]
pub fn summary(problems: &[Problem]) -> String {
    problems.iter().map(ToString::to_string).collect::<Vec<_>>().join(". ")
}
