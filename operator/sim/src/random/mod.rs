//! Random runs: a cluster and a schedule of faults from a seed, as a scenario that anyone could
//! have written; and from a failed one the smallest that fails the same way.

mod further;
mod generate;
mod moving;
mod shrink;
#[cfg(test)]
mod tests;

pub use generate::{MENDED, MOVES, scenario};
pub use shrink::{Symptom, shrink};
