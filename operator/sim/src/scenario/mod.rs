//! Scenario files: what the cluster is at the start, what happens to it, and what must have come
//! of it. In here they are read ([`load`], [`parse`]), kept ([`ast`]), judged while a run goes on
//! ([`Evaluator`], fed with [`observe`] by [`run`]), told ([`output`]) and printed again ([`print`]).

pub mod ast;
#[cfg(feature = "hooks")]
pub mod campaign;
pub mod check;
mod node;
pub mod observe;
pub mod output;
pub(crate) mod parse;
pub mod print;
mod problem;
pub mod run;
pub mod words;

pub use self::parse::{load, parse};
pub use ast::Scenario;
pub use check::{Evaluator, Failure};
pub use problem::{Problem, ScenarioError};
