//! Scenario files: what the cluster is at the start, what happens to it, and what must have come
//! of it. The format's own text is `docs/scenario-format.md`; in here it is read ([`load`],
//! [`parse`]), kept ([`ast`]), judged while a run goes on ([`Evaluator`]), told ([`output`]) and
//! printed again ([`print`]).

pub mod ast;
mod node;
mod parse;
mod problem;
pub mod words;

pub use ast::Scenario;
pub use parse::{load, parse};
pub use problem::{Problem, ScenarioError};
