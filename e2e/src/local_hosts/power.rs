//! A local host's power switch, for a BMC to work: off kills the host, on asks its owner to boot it.

use std::fs;
use std::io;
use std::path::Path;

use super::namespace::ProcessId;
use crate::bmc::{Bmc, executable};

/// File in a host's folder that names its first process while there is one.
const POWER: &str = "power";
/// File in a host's folder whose presence asks for power.
const WANTED: &str = "power-on";

/// What `ipmi_sim` calls, with the host's folder first.
///
/// The host reads on while exactly its first process lives. The kernel lets that process go only
/// when every other one of its namespace is gone, so what reads off is off. Off is SIGKILL: neither
/// guest nor daemon hears of it.
const SWITCH: &str = r#"#!/bin/sh
folder=$1
alive() {
    read -r pid started <"$folder/power" 2>/dev/null || return 1
    stat=$(cat "/proc/$pid/stat" 2>/dev/null) || return 1
    set -- ${stat##*) }
    [ "$1" != Z ] && [ "$1" != X ] && [ "${20}" = "$started" ]
}
off() {
    tries=0
    while alive && [ "$tries" -lt 100 ]; do
        kill -KILL "$pid" 2>/dev/null
        sleep 0.05
        tries=$((tries + 1))
    done
}
case "$2 $3 $4" in
"get power "*) if alive; then echo power:1; else echo power:0; fi ;;
"set power 0") off ;;
"set power 1") alive || : >"$folder/power-on" ;;
"set reset 1") off && : >"$folder/power-on" ;;
esac
"#;

/// Starts a host's BMC; `folder` is the host's own.
pub(crate) fn bmc(name: &str, folder: &Path) -> io::Result<Bmc> {
    let switch = folder.join("switch.sh");
    executable(&switch, SWITCH)?;
    let words = [switch.to_string_lossy(), folder.to_string_lossy()];
    Bmc::start(&format!("bmc-{name}"), &folder.join("bmc"), &[&words[0], &words[1]])
}

/// Notes the first process of a host that has just been given power.
pub(crate) fn note(folder: &Path, init: &ProcessId) -> io::Result<()> {
    match fs::remove_file(folder.join(WANTED)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::remove_file(folder.join("power.true")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let temporary = folder.join("power.new");
    fs::write(&temporary, format!("{} {}\n", init.pid, init.started))?;
    fs::rename(temporary, folder.join(POWER))
}

/// Has a host read off although it runs, or truly again. Off does nothing to it meanwhile, and its
/// next boot ends the lie.
pub(crate) fn lie(folder: &Path, lies: bool) -> io::Result<()> {
    let (power, truth) = (folder.join(POWER), folder.join("power.true"));
    if !lies {
        return match fs::rename(truth, power) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
    }
    fs::rename(&power, truth)?;
    // There is no such process.
    fs::write(power, "0 0\n")
}

/// Whether power was asked for.
pub(crate) fn is_wanted(folder: &Path) -> bool {
    folder.join(WANTED).exists()
}
