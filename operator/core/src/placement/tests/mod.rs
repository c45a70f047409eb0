//! The sentences of scenario-format §2 about placement, one by one.

mod hosts;
mod tight;
mod together_apart;
