//! Hosts that look dead from one side and are not: nobody is shot, and nothing runs twice.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use stockade_e2e::lab::cases::{
    Case, HOSTS, LIMIT, Outcome, condition, ensure, machine, object, said,
};
use stockade_e2e::lab::{Cluster, Machine, until};
use stockade_e2e::local_hosts::Signal;
use stockade_e2e::play::Log;

use super::stage::{BRAKE, LONG, Stage, allow_nfs_server, signal_agent, stop_nfs_server};

pub const NO_API: Case =
    ("a_host_cut_off_from_the_api_alone_is_isolated_and_its_guest_goes_on", no_api);
pub const HUNG_AGENT: Case =
    ("a_host_whose_agent_hangs_is_isolated_and_its_guest_goes_on", hung_agent);
pub const LYING_BMC: Case = (
    "a_bmc_that_says_off_about_a_host_that_beats_is_not_believed_and_its_plug_is_untrusted",
    lying_bmc,
);
pub const TWO_CUT_OFF: Case =
    ("when_two_of_three_hosts_are_cut_off_at_once_nobody_is_shot", two_cut_off);
pub const NO_SERVER: Case =
    ("an_api_server_that_hangs_for_three_minutes_touches_no_guest", no_server);
pub const NO_STORAGE: Case = (
    "a_host_cut_off_from_its_storage_alone_is_not_shot_and_its_guest_waits_until_it_is_drained",
    no_storage,
);
pub const NO_NFS: Case = (
    "an_nfs_server_down_for_five_minutes_costs_its_guests_and_no_host_and_they_write_again_by_themselves",
    no_nfs,
);

/// While it is isolated, a host's guest goes on and nobody is shot.
fn isolated(stage: &Stage<'_>, host: &str, since: Instant) -> Outcome {
    stage.host_is(host, "Isolated", since)?;
    stage.holds_for(LONG, || {
        stage.nobody_is_shot()?;
        stage.left_alone(&[])
    })
}

fn no_api(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    cluster.cut_from_api(host).map_err(said)?;
    isolated(&stage, host.name(), Instant::now())?;
    host.reconnect().map_err(said)?;
    stage.host_is(host.name(), "Ready", Instant::now())?;
    stage.left_alone(&[])?;
    stage.ends_without_a_shot()
}

fn hung_agent(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    signal_agent(host, "STOP")?;
    isolated(&stage, host.name(), Instant::now())?;
    signal_agent(host, "CONT")?;
    stage.host_is(host.name(), "Ready", Instant::now())?;
    stage.left_alone(&[])?;
    stage.ends_without_a_shot()
}

fn lying_bmc(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    host.bmc_lies(true).map_err(said)?;
    cluster.cut_from_api(host).map_err(said)?;
    isolated(&stage, host.name(), Instant::now())?;
    host.reconnect().map_err(said)?;
    let device = format!("bmc-{}", host.name());
    let untrusted = until("its plug is untrusted", LIMIT, || {
        let device = object(cluster, &["sfd", &device])?;
        let (status, message) = condition(&device, "Ready");
        let told = status == "False" && message.contains("reads off for beating hosts");
        if told { Ok(()) } else { Err(message.to_owned()) }
    });
    untrusted.map_err(said)?;
    log.say("its plug is untrusted");
    stage.host_is(host.name(), "Ready", Instant::now())?;
    host.bmc_lies(false).map_err(said)?;
    log.say(cluster.plugin(&["fence", "test", host.name()]).map_err(said)?.trim());
    stage.left_alone(&[])?;
    stage.ends_without_a_shot()
}

fn two_cut_off(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set_with(cluster, log, BRAKE)?;
    let cut: Vec<&str> = HOSTS.into_iter().take(2).collect();
    for name in &cut {
        machine(cluster, name)?.cable(false).map_err(said)?;
    }
    let since = Instant::now();
    log.say(format!("{} have no cable", cut.join(" and ")));
    let held = until("the brake holds", LIMIT, || {
        let policy = object(cluster, &["sap", "default"])?;
        let (status, message) = condition(&policy, "StormBrake");
        if status == "True" { Ok(message.to_owned()) } else { Err(policy.to_string()) }
    });
    log.say(held.map_err(said)?);
    for name in &cut {
        // Where no guest is, nothing waits for a proof.
        let empty = stage.guests_on(&[name], true).is_empty();
        stage.host_is(name, if empty { "Lost" } else { "AwaitingProof" }, since)?;
    }
    stage.holds_for(LONG, || {
        stage.nobody_is_shot()?;
        stage
            .guests_on(&cut, true)
            .into_iter()
            .try_for_each(|guest| stage.not_ordered_anew(guest))?;
        stage.left_alone(&cut)
    })?;
    for name in &cut {
        machine(cluster, name)?.cable(true).map_err(said)?;
    }
    stage.ends_without_a_shot()
}

fn no_server(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let signal = |signal| {
        cluster.plane().signal("kube-apiserver", signal).map_err(|error| error.to_string())
    };
    signal(Signal::STOP)?;
    log.say("the API server hangs");
    stage.holds_for(180, || {
        stage.nobody_is_shot()?;
        stage.guests.iter().try_for_each(|guest| guest.prover.goes_on(cluster))
    })?;
    signal(Signal::CONT)?;
    log.say("the API server goes on");
    stage.left_alone(&[])?;
    for name in HOSTS {
        stage.host_is(name, "Ready", Instant::now())?;
    }
    // What was decided on what was seen last would be done by now.
    stage.holds_for(LONG, || stage.left_alone(&[]))?;
    stage.ends_without_a_shot()
}

fn no_storage(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let host = stage.victim()?;
    let server: IpAddr = machine(cluster, "s1")?.address().parse().map_err(|_| "no address")?;
    host.cut_off(server, None).map_err(said)?;
    let since = Instant::now();
    log.say(format!("{} is cut off from its storage", host.name()));
    is_killed(host)?;
    log.say(format!("its guest is killed after {:.1} s", since.elapsed().as_secs_f64()));
    stage.holds_for(LONG, || {
        stage.nobody_is_shot()?;
        let mut waiting = stage.guests_on(&[host.name()], true).into_iter();
        waiting.try_for_each(|guest| stage.not_ordered_anew(guest))?;
        stage.left_alone(&[host.name()])
    })?;
    host.reconnect().map_err(said)?;
    stage.ends_without_a_shot()
}

/// For how long the NFS server is down.
const DOWN: Duration = Duration::from_secs(300);

fn no_nfs(cluster: &Cluster, log: &Log) -> Outcome {
    let stage = Stage::set(cluster, log)?;
    let server = machine(cluster, "s1")?;
    stop_nfs_server(server)?;
    let since = Instant::now();
    log.say("the NFS server is down");
    for name in HOSTS {
        is_killed(machine(cluster, name)?)?;
    }
    log.say(format!("all guests are killed after {:.1} s", since.elapsed().as_secs_f64()));
    // Ended is not drained: what their hosts still have to write may come with the server.
    for guest in &stage.guests {
        let told = until("it is said that it is not released", LIMIT, || {
            let vm = object(cluster, &["svm", guest.prover.name])?;
            let (state, message) = (&vm["status"]["printableStatus"], condition(&vm, "Ready").1);
            if state == "Blocked" {
                Ok(message.to_owned())
            } else {
                Err(format!("{state}: {message}"))
            }
        });
        log.say(told.map_err(said)?);
    }
    stage.holds_for(DOWN.saturating_sub(since.elapsed()).as_secs() + 1, || {
        stage.nobody_is_shot()?;
        stage.guests.iter().try_for_each(|guest| stage.not_ordered_anew(guest))
    })?;
    let runs_again = server.try_sh("systemctl is-active nfs-server", LIMIT).map_err(said)?;
    ensure(!runs_again.ok, || "the NFS server was started".to_owned())?;
    allow_nfs_server(server)?;
    let since = Instant::now();
    log.say("the NFS server may start");
    for guest in &stage.guests {
        stage.restarted(guest)?;
        let (name, seconds) = (guest.prover.name, since.elapsed().as_secs_f64());
        log.say(format!("{name} writes again after {seconds:.1} s"));
    }
    stage.ends_without_a_shot()
}

/// Waits until no guest runs on a host.
fn is_killed(host: &Machine) -> Outcome {
    let killed = until("its guest is killed", LIMIT, || {
        // virsh may hang on a guest that waits for its disk. What was killed stays for as long as
        // the kernel waits for its last writes, and has no arguments any more.
        let script = "ps -eo stat=,args= | grep '/[q]emu-system' | grep -v '^Z' || true";
        let said = host.try_sh(script, Duration::from_secs(60)).map_err(said)?;
        if said.ok && said.out.trim().is_empty() { Ok(()) } else { Err(said.out) }
    });
    killed.map_err(said)
}
