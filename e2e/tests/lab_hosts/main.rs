//! Stockade on Debian machines with kernels of their own: three hosts and a fourth that serves
//! storage, each with a BMC. What only real NFS, OCFS2, locks, watchdogs and power cuts can show.
//!
//! Every part begins by itself, whatever the one before it left. The selected ones are those that
//! every change is tried by: one at least a storage, lock manager, fence path and kind of move.

mod aoe;
mod by_hand;
mod deaths;
mod doubts;
mod drain;
mod healed;
mod move_cuts;
mod moves;
mod nfs;
mod ocfs2;
mod power_cut;
mod sanlock;
mod shutdown;
mod stage;
mod upkeep;
mod watchdog;

use std::process::ExitCode;

use stockade_e2e::lab::cases::Part;

fn main() -> ExitCode {
    stockade_e2e::lab::cases::run(&[
        Part::selected("nfs", &nfs::CASES),
        Part::new("api", &[doubts::NO_API]),
        Part::selected("moves", &[moves::FOUR]),
        Part::new("panic", &[deaths::PANIC]),
        Part::new("controllers", &[deaths::CONTROLLERS]),
        Part::new("cable", &[deaths::NO_CABLE]),
        Part::new("agent", &[doubts::HUNG_AGENT]),
        Part::new("liar", &[doubts::LYING_BMC]),
        Part::new("word", &[deaths::NO_PROOF]),
        Part::new("healed", &[healed::HEALED]),
        Part::new("two", &[doubts::TWO_CUT_OFF]),
        Part::new("server", &[doubts::NO_SERVER]),
        Part::new("storage", &[doubts::NO_STORAGE]),
        Part::new("nfs-down", &[doubts::NO_NFS]),
        Part::new("watchdog", &[watchdog::RESET]),
        Part::new("reboot", &[shutdown::REBOOT]),
        Part::selected("poweroff", &[shutdown::POWER_OFF]),
        Part::new("drain", &[drain::DRAIN]),
        Part::new("canary", &[moves::CANARY]),
        Part::new("cuts", &[move_cuts::CUTS]),
        Part::new("upkeep", &[upkeep::MAINTENANCE]),
        Part::new("lock-server", &[upkeep::LOCK_SERVER]),
        Part::new("marker", &[nfs::MARKER]),
        Part::new("locks", &[nfs::WORD]),
        Part::new("lease", &[nfs::UNBROKEN]),
        Part::begun("sanlock", 2, &sanlock::CASES),
        Part::begun("ocfs2", 1, &ocfs2::CASES),
        Part::new("aoe", &aoe::CASES),
    ])
}
