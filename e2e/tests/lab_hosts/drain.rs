//! A host with six guests that is emptied: in part, then wholly, then without power, and what comes
//! back to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, Prover, Witness, all_ready, boot, comes_back, condition, ensure,
    kubectl, machine, object, said,
};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::play::Log;

use super::moves::{moves_are_ready, only_there};
use super::stage::{LOCKS_BESIDE, LONG, declare, fence, guest, heal};

pub const DRAIN: Case = (
    "six_guests_leave_as_the_dry_run_said_and_come_home_and_none_boots_though_their_host_has_no_power",
    drain,
);

/// The host that is emptied, and that every guest prefers.
const HOME: &str = HOSTS[0];

const GUESTS: [Prover<'static>; 6] = [
    guest("d1", "/srv/vms/default/d1.raw"),
    guest("d2", "/srv/vms/default/d2.raw"),
    guest("d3", "/srv/vms/default/d3.raw"),
    guest("d4", "/srv/vms/default/d4.raw"),
    guest("d5", "/srv/vms/default/d5.raw"),
    guest("d6", "/srv/vms/default/d6.raw"),
];

/// Six moves one after the other take some five minutes on emulated hosts.
const ALL_MOVE: Duration = Duration::from_secs(1_500);

/// Which host each guest is on.
type Places = BTreeMap<String, String>;

fn drain(cluster: &Cluster, log: &Log) -> Outcome {
    heal(cluster)?;
    declare(cluster, &LOCKS_BESIDE)?;
    let home_first = format!("{{preferredHosts: [{{hosts: [{HOME}]}}]}}");
    GUESTS.iter().try_for_each(|prover| prover.declare_with(cluster, &home_first))?;
    GUESTS.iter().try_for_each(|prover| prover.writes(cluster, 1))?;
    moves_are_ready(cluster)?;
    let home = machine(cluster, HOME)?;
    let first_boot = boot(cluster, HOME)?;
    let witness = Witness::start(cluster, &GUESTS)?;
    // A host that was busy for a moment may have sent one elsewhere.
    comes_home(cluster, log, "all are where they prefer to be")?;

    broken_off(cluster, log)?;
    comes_home(cluster, log, "what has left comes home once it may")?;

    let foretold = foretold(cluster, log)?;
    let since = Instant::now();
    emptied(cluster, log)?;
    log.say(format!("{HOME} is empty after {:.1} s", since.elapsed().as_secs_f64()));
    let places = settled(cluster, "all have left", |_, host| host != HOME)?;
    ensure(places == foretold, || format!("{places:?}, and the dry run said {foretold:?}"))?;
    never_booted(cluster, &places)?;

    home.power_cut().map_err(said)?;
    not_fenced_for(cluster, home, &first_boot, LONG)?;
    count_on(cluster)?;

    log.say(cluster.plugin(&["uncordon", HOME]).map_err(said)?.trim());
    comes_back(cluster, home, &first_boot)?;
    comes_home(cluster, log, "all come home after its next boot")?;
    all_ready(cluster)?;
    witness.is_content(cluster)
}

/// Ends a drain once the first guest has left: what has left stays where it is, what has not stays
/// at home, and no guest stands still or boots.
fn broken_off(cluster: &Cluster, log: &Log) -> Outcome {
    log.say(cluster.plugin(&["drain", HOME]).map_err(said)?.trim());
    let left = until("a guest has left", LIMIT, || {
        std::thread::sleep(Duration::from_secs(1));
        let places = places(cluster)?;
        if places.values().any(|host| host != HOME) { Ok(()) } else { Err(format!("{places:?}")) }
    });
    left.map_err(said)?;
    log.say(cluster.plugin(&["uncordon", HOME]).map_err(said)?.trim());
    let places = settled(cluster, "every guest runs somewhere", |_, _| true)?;
    let away = places.values().filter(|host| *host != HOME).count();
    ensure((1..GUESTS.len()).contains(&away), || format!("{away} have left: {places:?}"))?;
    log.say(format!("the drain was broken off when {away} of {} had left", GUESTS.len()));
    never_booted(cluster, &places)
}

/// Lets the guests go back by themselves, waits until all are home, and holds them there no more.
fn comes_home(cluster: &Cluster, log: &Log, what: &str) -> Outcome {
    let since = Instant::now();
    failback(cluster, true)?;
    let places = settled(cluster, what, |_, host| host == HOME)?;
    log.say(format!("{what}: after {:.1} s", since.elapsed().as_secs_f64()));
    failback(cluster, false)?;
    never_booted(cluster, &places)
}

fn failback(cluster: &Cluster, on: bool) -> Outcome {
    let patch = format!(r#"{{"spec": {{"placement": {{"failback": {on}}}}}}}"#);
    GUESTS.iter().try_for_each(|prover| {
        kubectl(cluster, &["patch", "svm", prover.name, "--type=merge", "-p", &patch]).map(drop)
    })
}

/// Where the dry run of a drain says that each guest goes; nothing is done by it.
fn foretold(cluster: &Cluster, log: &Log) -> Result<Places, String> {
    let told = cluster.plugin(&["drain", HOME, "--dry-run"]).map_err(said)?;
    log.say(told.trim());
    let mut foretold = Places::new();
    for line in told.lines().filter(|line| line.trim_start().starts_with("wave ")) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [_, _, vm, "from", HOME, "to", to, "live"] = words[..] else {
            return Err(format!("no live move from {HOME}: {line}"));
        };
        let vm = vm.trim_start_matches("default/").to_owned();
        foretold.insert(vm, to.trim_end_matches(',').to_owned());
    }
    ensure(foretold.len() == GUESTS.len(), || format!("not each guest once: {told}"))?;
    let mode = object(cluster, &["shost", HOME])?["spec"]["mode"].clone();
    ensure(mode != "Maintenance", || "the dry run began a drain".to_owned())?;
    Ok(foretold)
}

fn emptied(cluster: &Cluster, log: &Log) -> Outcome {
    log.say(cluster.plugin(&["drain", HOME]).map_err(said)?.trim());
    let empty = until("the host is empty", ALL_MOVE, || {
        std::thread::sleep(Duration::from_secs(1));
        match condition(&object(cluster, &["shost", HOME])?, "Drained") {
            ("True", _) => Ok(()),
            (_, message) => Err(message.to_owned()),
        }
    });
    empty.map_err(said)
}

/// For so many seconds nobody asks for a proof that the drained host is dead, and nobody gives it
/// its power back.
fn not_fenced_for(cluster: &Cluster, host: &Machine, boot: &str, seconds: u64) -> Outcome {
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(seconds) {
        let fence = fence(cluster, boot)?;
        ensure(fence.is_null(), || format!("there is a certificate: {fence}"))?;
        ensure(!host.is_on(), || format!("{} was switched on", host.name()))?;
        std::thread::sleep(Duration::from_secs(2));
    }
    Ok(())
}

/// Waits until every guest runs, none is on its way, and each is where it is wanted.
fn settled(
    cluster: &Cluster,
    what: &str,
    wanted: impl Fn(&str, &str) -> bool,
) -> Result<Places, String> {
    let settled = until(what, ALL_MOVE, || {
        // Each look takes the machine's CPUs from the hosts.
        std::thread::sleep(Duration::from_secs(1));
        let vms = object(cluster, &["svm"])?;
        let items = vms["items"].as_array().map(Vec::as_slice).unwrap_or_default();
        for vm in items {
            let (name, status) = (&vm["metadata"]["name"], &vm["status"]);
            let host = status["host"].as_str().unwrap_or_default();
            let well = status["printableStatus"] == "Running" && status["migration"].is_null();
            if !well || !wanted(name.as_str().unwrap_or_default(), host) {
                let (_, why) = condition(vm, "Ready");
                return Err(format!("{name}: {} on {host}: {why}", status["printableStatus"]));
            }
        }
        places(cluster)
    });
    settled.map_err(said)
}

/// Where each guest is, as its VM says; all of them.
fn places(cluster: &Cluster) -> Result<Places, String> {
    let vms = object(cluster, &["svm"])?;
    let items = vms["items"].as_array().into_iter().flatten();
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
    let places: Places =
        items.map(|vm| (text(&vm["metadata"]["name"]), text(&vm["status"]["host"]))).collect();
    ensure(places.len() == GUESTS.len(), || format!("not all guests are there: {places:?}"))?;
    Ok(places)
}

/// Each guest counts on in its first boot.
fn count_on(cluster: &Cluster) -> Outcome {
    for prover in &GUESTS {
        prover.goes_on(cluster)?;
        let (_, boots) = prover.counters(cluster)?;
        ensure(boots == 1, || format!("{} has booted {boots} times", prover.name))?;
    }
    Ok(())
}

/// As [`count_on`], while all hosts have power: by the one QEMU of each, on this host.
fn never_booted(cluster: &Cluster, places: &Places) -> Outcome {
    count_on(cluster)?;
    places.iter().try_for_each(|(vm, host)| only_there(cluster, vm, host))
}
