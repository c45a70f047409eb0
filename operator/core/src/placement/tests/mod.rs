//! The sentences of scenario-format §2 about placement, one by one.

mod hosts;
mod moves;
mod random;
mod tight;
mod together_apart;
