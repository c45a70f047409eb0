//! The storage beat: a small process of its own, so that an agent that hangs or restarts
//! silences one path of life and not both (safety §4).
//!
//! The agent writes what to beat into a file; [`run`] reads it anew before each beat. Each
//! storage has a thread, for a storage that hangs must not silence the others.

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::{HostError, HostResult};
use crate::files::failed;
use crate::machine::boottime_millis;
use crate::ports::Beat;
use crate::watchdog::Renewals;

/// What is to be beaten.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BeatPlan {
    /// This host.
    pub host_uid: String,
    /// This boot.
    pub boot_id: String,
    /// Highest lineage journalled.
    pub lineage: i64,
    /// Seconds between two beats.
    pub heartbeat_seconds: i32,
    /// Mount paths by storage.
    pub storages: BTreeMap<String, PathBuf>,
}

/// File of the plan in the agent's state folder.
#[must_use]
pub fn plan_path(state: &Path) -> PathBuf {
    state.join("beat.json")
}

/// Folder of the beats on a storage.
#[must_use]
pub fn folder(mount: &Path) -> PathBuf {
    mount.join(".stockade/beats")
}

/// The beats on a storage, by host uid. A beat that can't be read is left out: no life seen.
pub fn read_all(mount: &Path) -> HostResult<BTreeMap<String, Beat>> {
    let folder = folder(mount);
    let entries = fs::read_dir(&folder).map_err(failed("read beats", &folder))?;
    let mut beats = BTreeMap::new();
    for entry in entries {
        let path = entry.map_err(failed("read beats", &folder))?.path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let beat = fs::read(&path).ok().and_then(|text| serde_json::from_slice::<Beat>(&text).ok());
        beats.extend(beat.map(|beat| (beat.host_uid.clone(), beat)));
    }
    Ok(beats)
}

/// Beats until killed; what is acknowledged is a sign of life on the watchdog's board in `run`.
/// Returns at once if another process beats for this state folder.
pub fn run(state: &Path, run: &Path) -> HostResult<Infallible> {
    let path = state.join("beat.lock");
    let lock = File::options().create(true).write(true).truncate(false).open(&path);
    let lock = lock.map_err(failed("beat", &path))?;
    if lock.try_lock().is_err() {
        return Err(HostError::refused("beat", path.display().to_string(), "it beats already"));
    }
    let renewals = Arc::new(Renewals::new(run));
    let beating: Arc<Mutex<BTreeSet<PathBuf>>> = Arc::default();
    loop {
        let plan = read_plan(state);
        for mount in plan.storages.values() {
            let mut running = beating.lock().unwrap_or_else(PoisonError::into_inner);
            if running.insert(mount.clone()) {
                let (state, mount, beating) = (state.to_owned(), mount.clone(), beating.clone());
                let renewals = Arc::clone(&renewals);
                thread::spawn(move || {
                    beat_on(&state, &mount, &renewals);
                    beating.lock().unwrap_or_else(PoisonError::into_inner).remove(&mount);
                });
            }
        }
        thread::sleep(Duration::from_millis(200));
    }
}

/// Beats on one storage until the plan leaves it out.
fn beat_on(state: &Path, mount: &Path, renewals: &Renewals) {
    loop {
        let plan = read_plan(state);
        let Some((storage, _)) = plan.storages.iter().find(|(_, planned)| *planned == mount) else {
            return;
        };
        // A failed beat is silence, which is what the others are to see.
        if let Ok(sent) = write_beat(mount, &plan) {
            renewals.beaten(storage, sent);
        }
        thread::sleep(Duration::from_secs(plan.heartbeat_seconds.max(1).unsigned_abs().into()));
    }
}

fn read_plan(state: &Path) -> BeatPlan {
    let text = fs::read(plan_path(state)).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

/// Writes one beat; when it was sent. Its counter is this boot's time, so that it rises over restarts
/// too.
fn write_beat(mount: &Path, plan: &BeatPlan) -> std::io::Result<u64> {
    let sent = boottime_millis();
    let beat = Beat {
        host_uid: plan.host_uid.clone(),
        boot_id: plan.boot_id.clone(),
        counter: sent,
        lineage: plan.lineage,
    };
    let path = folder(mount).join(format!("{}.json", plan.host_uid));
    // Readers must never see half a beat; that it survives a power cut is not needed, that it
    // reached the server is.
    let temporary = path.with_extension("new");
    let file = File::create(&temporary)?;
    serde_json::to_writer(&file, &beat)?;
    file.sync_data()?;
    fs::rename(&temporary, &path)?;
    Ok(sent)
}
