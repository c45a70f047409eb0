//! Shared storage and locks on Debian machines with kernels of their own. Each part begins by
//! itself.

mod by_hand;
mod failover;
mod nfs;
mod ocfs2;
mod sanlock;

use std::process::ExitCode;

fn main() -> ExitCode {
    stockade_e2e::lab::cases::run(&[
        ("nfs", &nfs::CASES),
        ("sanlock", &sanlock::CASES),
        ("ocfs2", &ocfs2::CASES),
    ])
}
