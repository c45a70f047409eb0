//! Hosts that die, and hosts that only seem to: three hosts on NFS that a fourth serves, each with a
//! BMC, a guest on each. Every case brings the lab to that state first, and stands alone.

mod deaths;
mod doubts;
mod stage;

use std::process::ExitCode;

fn main() -> ExitCode {
    stockade_e2e::lab::cases::run(&[
        ("panic", &[deaths::PANIC]),
        ("api", &[doubts::NO_API]),
        ("cable", &[deaths::NO_CABLE]),
        ("agent", &[doubts::HUNG_AGENT]),
        ("liar", &[doubts::LYING_BMC]),
        ("word", &[deaths::NO_PROOF]),
        ("two", &[doubts::TWO_CUT_OFF]),
        ("server", &[doubts::NO_SERVER]),
        ("storage", &[doubts::NO_STORAGE]),
    ])
}
