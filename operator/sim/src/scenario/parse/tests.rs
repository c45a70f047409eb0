//! The format's own example, every word once, and what each kind of mistake is told.

use super::super::ast::*;
use super::super::words::*;
use super::parse;

pub(in crate::scenario) const EXAMPLE: &str = r#"
name: a host whose clock jumps is not dead and still takes VMs
hosts: 3
vms:
  - {name: "101", host: h1, run: Always}
  - {name: "102", host: h2, run: Always}
steps:
  - {at: 10, do: clock, host: h2, step: 3600}
  - {id: mv, at: 60, do: migrate, vm: "101", to: h2}
  - {when: {vm: "101", host: h2}, delay: 30, do: clock, host: h2, step: -7200}
until: 300
expect:
  - {step: mv, outcome: Succeeded}
  - {vm: "101", ran: [h1, h2]}
  - {order: [{event: lock-take, vm: "101", host: h2}, {event: migrated, vm: "101"}], after: mv}
  - {vm: "102", untouched: true}
  - {event: start, count: 0}
  - {never: {fenced: h2}}
  - {host: h2, state: Ready, vms: 2}
"#;

fn one(text: &str) -> Scenario {
    let mut all = parse(text, "t.yaml", None).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

fn refused(text: &str) -> String {
    match parse(text, "t.yaml", None) {
        Ok(read) => panic!("accepted:\n{text}\n{read:#?}"),
        Err(e) => e.to_string(),
    }
}

#[test]
fn the_formats_example_is_read_as_meant() {
    let s = one(EXAMPLE);
    assert_eq!(s.hosts.iter().map(|h| h.name.as_str()).collect::<Vec<_>>(), ["h1", "h2", "h3"]);
    assert_eq!(s.vms[1].host.as_deref(), Some("h2"));
    assert_eq!(s.storage, vec![StorageSetup::standard()]);
    assert_eq!(s.controllers, 2);
    assert_eq!(
        s.steps[0].verb,
        Verb::Clock { hosts: vec!["h2".into()], step: Some(3_600_000), rate: None }
    );
    assert_eq!(s.steps[1].id.as_deref(), Some("mv"));
    assert!(matches!(&s.steps[2].trigger, Trigger::When { delay: 30_000, after: None, .. }));
    assert_eq!(s.until, Some(Time::At(300_000)));
    assert_eq!(s.expect.len(), 7);
    assert!(matches!(&s.expect[5].form, Form::Never(Condition::Fenced(h), _) if h == &["h2"]));
    assert!(matches!(&s.expect[2].form,
        Form::Order(c, Some(Time::After(id, 0))) if c.len() == 2 && id == "mv"));
    let Form::Count(event, _) = &s.expect[4].form else { panic!("{:?}", s.expect[4]) };
    assert_eq!(event.count, Some(Count::exactly(0)));
    assert_eq!(s.expect[0].line.0, 13);
}

/// Each word of the format at least once; nothing of it may be refused.
pub(in crate::scenario) const EVERYTHING: &str = r#"
name: everything
about: |
  Free text,
  on two lines.
hostDefaults: {cpu: 8, memoryMiB: 32768, labels: {rack: a}, bootSeconds: 45, watchdog: reset}
hosts:
  - h1
  - {name: h2, fencing: self, watchdog: poweroff, mode: Cordoned}
  - {name: h3, fencing: none, watchdog: absent, mode: Maintenance, powered: false}
  - {name: h4, fencing: [[pdu-a, pdu-b], [ipmi]], watchdog: dead}
  - {name: h5, fencing: bmc, mode: Active}
  - apiVersion: stockade.dev/v1alpha1
    kind: Host
    metadata: {name: h6}
    spec: {mode: Active}
fenceDevices:
  - {name: pdu-a, agent: fence_apc, plugs: {h4: "3"}, parameters: {ip: 10.0.0.1, port: 23}, secret: {password: x}}
  - {name: pdu-b, agent: fence_apc, plugs: {h4: 4}}
  - {name: ipmi}
  - apiVersion: stockade.dev/v1alpha1
    kind: FenceDevice
    metadata: {name: ilo}
    spec: {agent: fence_ilo}
storage:
  - {name: vms, kind: NFS, hosts: [h1, h2, h4], lockManager: virtlockd}
  - {name: san, kind: OCFS2, lockManager: sanlock}
  - {name: dir, kind: SharedDirectory, lockManager: none}
controllers: 3
defaults:
  heartbeatSeconds: 2
  suspectSeconds: 6
  actSeconds: 8
  acceptedProofs: [[Power], [Human]]
  stormBrakeHosts: 2
  isolatedHost: Fence
  isolatedSeconds: 60
  hostShutdown: Migrate
  hostShutdownLimitSeconds: 300
  stopFailure: Fence
  doubleRun: StopStale
  apiLoss: Stop
  rebalance: Usage
  rebalanceHoldSeconds: 30
  migrationsPerHost: 2
  automation: Active
vms:
  - {name: 101, host: h1, run: Always, cpu: 2, memoryMiB: 2048, load: {cpu: 0.5, memoryMiB: 900}}
  - {name: "102", host: h2, run: RerunOnFailure, requires: [h1, h2], prefers: [h2, [h1, h4], h5], failback: true}
  - {name: "103", run: Manual, togetherWith: ["101"], apartFrom: ["102"], prefersTogetherWith: ["104"], prefersApartFrom: ["105"]}
  - {name: "104", run: Halted, maxRestarts: 1, maxRelocations: 2, priority: -5, recovery: None}
  - {name: "105", recovery: Restart, migratable: false, migrateSeconds: 7.5, stopSeconds: 4, graceSeconds: 30, managed: false, storage: san}
rules:
  - {together: ["101", "103"], strict: false}
  - {apart: ["101", "102", "104"]}
manifests:
  - apiVersion: v1
    kind: ConfigMap
    metadata: {name: note}
steps:
  - {at: 1, do: power-off, host: [h1, h2]}
  - {at: 2, do: power-on, host: h1}
  - {at: 3, do: reset, host: h1}
  - {at: 4, do: panic, host: h1}
  - {at: 5, do: shutdown, host: h1}
  - {at: 6, do: reboot, host: h1}
  - {at: 7, do: isolate, host: h1}
  - {at: 7, do: isolate, host: h1, paths: [api, peers, storage, bmc, migration], way: in}
  - {at: 8, do: heal, host: h1, paths: bmc, way: both}
  - {at: 9, do: clock, host: h1, rate: 1.05}
  - {at: 10, do: crash-agent, host: h1, for: 30, process: feeder}
  - {at: 11, do: restart-agent, host: h1}
  - {at: 12, do: pause-agent, host: h1, process: all}
  - {at: 12, do: pause-agent, host: h1, process: beat, for: 3}
  - {at: 13, do: hang-libvirt, host: h1, for: 20}
  - {at: 14, do: restart-libvirt, host: h1}
  - {at: 15, do: kill-qemu, vm: "101"}
  - {at: 15, do: kill-qemu, vm: ["101", "102"], host: h1}
  - {at: 16, do: virsh, action: start, vm: "101", host: h2, unlocked: true}
  - {at: 16, do: virsh, action: destroy, vm: "101"}
  - {at: 16, do: virsh, action: shutdown, vm: "101", host: h1}
  - {at: 16, do: virsh, action: migrate, vm: "101", to: h2}
  - {at: 17, do: fail, op: start, vm: "106", host: h1, times: 3, as: hang}
  - {at: 17, do: fail, op: migrate, stage: switched, times: always, as: unknown}
  - {at: 17, do: fail, op: kill, vm: "101"}
  - {at: 18, do: mend, op: kill, vm: "101", host: h1}
  - {at: 19, do: load, vm: "101", cpu: 1.5, memoryMiB: 2000}
  - {at: 20, do: bmc, host: h5, is: lies-off, times: 2}
  - {at: 20, do: bmc, device: pdu-a, is: bad-credentials}
  - {at: 20, do: bmc, device: bmc-h5, is: dies-with-host}
  - {at: 21, do: storage, name: vms, is: read-only, only: [h1]}
  - {at: 22, do: lock-manager, is: down, host: h1}
  - {at: 22, do: lock-manager, stale-lock: "101", owner: foreign}
  - {at: 22, do: lock-manager, stale-lock: "101", owner: h2}
  - {at: 22, do: lock-manager, is: stale-lock, vm: "101", owner: h2}
  - {at: 23, do: api, is: reply-lost, only: [h1, controller]}
  - {at: 24, do: controller, is: second-leader}
  - {at: 25, do: apply, manifest: {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}}
  - {at: 26, do: delete, kind: VirtualMachine, name: "101"}
  - {at: 27, do: patch, kind: Host, name: h1, patch: {spec: {mode: Cordoned}}}
  - {id: more, at: 28, do: add, vm: {name: "106", host: h1}}
  - {at: 28, do: add, host: h7}
  - {at: 28, do: add, fenceDevice: {name: pdu-c, plugs: {h7: "1"}}}
  - {at: 29, do: set, vm: "101", run: Halted, requires: null, failback: false}
  - {at: 29, do: set, host: h1, mode: Active, memoryMiB: 1024}
  - {at: 29, do: set, policy: {rebalance: Requests}}
  - {at: 29, do: set, policy: default, stormBrakeHosts: 3, migrationsPerCluster: 4}
  - {at: 29, do: set, rule: {apart: ["101", "106"]}}
  - {at: 30, do: start, vm: "101"}
  - {at: 30, do: stop, vm: "101", graceSeconds: 5}
  - {id: mv, at: more+2.5, do: migrate, vm: "101", to: h2, live: false}
  - {at: mv, do: abort, vm: "101"}
  - {id: ab, at: mv+1, do: abort, step: mv}
  - {at: 31, do: drain, host: h1}
  - {at: 32, do: uncordon, host: h1}
  - {at: 33, do: cordon, host: h1}
  - {at: 34, do: pause}
  - {at: 35, do: resume}
  - {at: 36, do: confirm-dead, host: h1, reason: seen to be dark}
  - {at: 37, do: adopt, vm: "101", host: h2}
  - {at: 38, do: restart-vm, vm: "101"}
  - {at: 38, do: reset-vm, vm: "101"}
  - {when: {any: [{event: boot, host: h1}, {all: [{vm: "101", copies: {max: 1}}, {host: h1, powered: false}]}]}, after: mv+5, delay: 2, do: resume}
until: mv+300
expect:
  - {vm: "101", running: true}
  - {vm: ["101", "102"], copies: 1}
  - {vm: "101", copies: {min: 1, max: 1}, host: [h1, h2], notOn: h3, at: 40}
  - {vm: "101", with: ["102", "103"], at: mv}
  - {vm: "101", notWith: "102", within: 60, after: mv+3}
  - {vm: "101", migrating: false, lockHolder: none}
  - {vm: "101", lockHolder: [h1, h2], state: [Running, Held]}
  - {vm: "101", state: Unplaceable, within: 20}
  - {host: h1, powered: true, state: [Ready, ShuttingDown], fenced: false, proof: power}
  - {host: [h1, h2], armed: true, agent: running, vms: {min: 1}, memoryMiB: {max: 4096}}
  - {vm: "101", exists: true, condition: Ready, status: True, reason: Running, message: runs on}
  - {host: h1, exists: true, condition: Fencing, status: ["False", Unknown]}
  - {object: HostFence/h1-boot, exists: false}
  - {object: SharedStorage/vms, condition: Ready}
  - {event: [start, boot], vm: "101", host: [h1, h2], by: agent}
  - {event: migrate, vm: "101", host: h1, to: h2, after: 10, before: mv}
  - {event: lock-break, holder: [h1, foreign], count: {max: 2}, after: 5}
  - {event: write, by: controller, kind: [VirtualMachine, Domain], count: 3}
  - {event: fence-off, device: [pdu-a, ipmi], host: h4}
  - {event: StormBrake, host: h1}
  - {any: [{fenced: h1}, {host: h1, proof: human}], within: 5, after: 3}
  - {never: {vm: "101", copies: {min: 2}}, after: 3, before: mv+10}
  - {always: {host: h1, armed: true}}
  - {order: [{event: fence-off, host: h1}, {event: fence-read, host: h1}, {vm: "101", running: true}]}
  - {vm: "101", ran: [h1, [h2, h4], "*", h1], after: 3, before: 90}
  - {vm: ["101", "102"], tried: [h1, "*"], after: mv}
  - {vm: "102", untouched: true, before: mv}
  - {step: mv, outcome: [Succeeded, Failed], message: moved}
  - {step: ab, message: [no, done]}
  - {device: pdu-a, received: {action: off, port: 3}}
"#;

#[test]
fn every_word_of_the_format_is_read() {
    let s = one(EVERYTHING);
    assert_eq!(s.hosts.len(), 6);
    assert_eq!(s.hosts[0].fields.cpu(), 8, "hostDefaults reach a host that is only named");
    assert_eq!(s.hosts[1].fields.watchdog(), Watchdog::Poweroff, "its own word wins");
    assert_eq!(s.vms[0].name, "101", "digits are a name");
    assert_eq!(s.vms[4].fields.migrate(), 7_500);
    assert_eq!(s.fence_devices[1].plugs["h4"], "4");
    let words: std::collections::BTreeSet<&str> = s.steps.iter().map(|s| s.verb.word()).collect();
    let missing: Vec<&&str> = VERBS.iter().filter(|v| !words.contains(**v)).collect();
    assert!(missing.is_empty(), "the test above leaves out {missing:?}");
    let heal = s.steps.iter().find(|s| s.verb.word() == "heal").unwrap();
    assert_eq!(
        heal.verb,
        Verb::Heal { hosts: vec!["h1".into()], paths: vec![NetPath::Bmc], way: Way::Both }
    );
    assert!(matches!(&s.steps[6].verb, Verb::Isolate { paths, .. } if paths.len() == 4));
    let set = s.steps.iter().find_map(|s| match &s.verb {
        Verb::SetVm { fields, .. } => Some(fields),
        _ => None,
    });
    assert_eq!(set.unwrap().requires, Some(Vec::new()), "null clears a list");
}

#[test]
fn a_file_holds_several_scenarios() {
    let all = parse("name: a\n---\nname: b\nhosts: 1\n", "t.yaml", None).unwrap();
    assert_eq!(all.len(), 2);
    assert_eq!(all[1].name, "b");
    let unnamed = parse("hosts: 1\n---\nhosts: 2\n", "x/t.yaml", None).unwrap();
    assert_eq!(unnamed[1].name, "t#2");
}

#[test]
fn problems_of_a_file_are_reported_at_once() {
    let text = refused("hots: 3\nvms:\n  - {name: a, rum: Always}\nuntil: soon!\n");
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(lines[0].starts_with("t.yaml:1: "), "{text}");
    assert!(lines[1].starts_with("t.yaml:3: "), "{text}");
    assert!(lines[2].starts_with("t.yaml:4: "), "{text}");
}

#[test]
fn anchors_and_merge_keys_work() {
    let s = one("vms:\n  - &a {name: a, cpu: 2}\n  - {<<: *a, name: b}\n");
    assert_eq!(s.vms[1].name, "b");
    assert_eq!(s.vms[1].fields.cpu(), 2);
}

/// (what stands where, line, words that the message must hold)
const MALFORMED: &[(&str, u32, &[&str])] = &[
    // Top level
    ("hosst: 3", 1, &["unknown field `hosst`", "`hosts`"]),
    ("name: x\nstep: []", 2, &["unknown field `step`", "`steps`"]),
    ("hosts: many", 1, &["`hosts`", "a number or a list", "`many`"]),
    ("hosts: 0", 1, &["`hosts`", "whole number"]),
    ("hosts: []", 1, &["at least one host"]),
    ("hosts: 2\nhosts: 3", 2, &["`hosts` stands twice", "line 1"]),
    ("controllers: two", 1, &["`controllers`", "whole number", "`two`"]),
    ("controllers: 0", 1, &["`controllers`", "from 1"]),
    ("name: [a]", 1, &["`name`", "a string", "a list"]),
    ("about: 5", 1, &["`about`", "a string", "`5`"]),
    ("vms: 3", 1, &["`vms`", "a list", "`3`"]),
    ("until: -5", 1, &["`until`", "number of seconds"]),
    ("until: nowhere", 1, &["no step `nowhere`"]),
    ("just text", 1, &["a scenario", "a mapping"]),
    ("a: [1", 1, &["not valid YAML"]),
    ("", 1, &["no scenario"]),
    ("defaults: {heartbeatSecond: 2}", 1, &["`heartbeatSecond`", "`heartbeatSeconds`"]),
    ("defaults: {isolatedHost: Fense}", 1, &["`Fense`", "`Fence`"]),
    ("defaults: {selfFence: {stopSecond: 20}}", 1, &["`stopSecond`", "`stopSeconds`"]),
    ("defaults: {actSeconds: fast}", 1, &["`actSeconds`", "i32"]),
    ("defaults: [1]", 1, &["`defaults`", "a mapping"]),
    // Hosts
    ("hosts:\n  - {nme: h1}", 2, &["needs `name`"]),
    ("hosts:\n  - {name: h1, cpus: 4}", 2, &["unknown field `cpus`", "`cpu`"]),
    ("hosts:\n  - {name: h1, memoryMiB: 4Gi}", 2, &["`memoryMiB`", "whole number", "`4Gi`"]),
    ("hosts:\n  - {name: h1, fencing: ipmi}", 2, &["unknown word `ipmi`", "bmc, self, none"]),
    (
        "fenceDevices: [{name: pdus, plugs: {h1: '1'}}]\nhosts:\n  - {name: h1, fencing: [[pdu]]}",
        3,
        &["no fence device `pdu`", "`pdus`"],
    ),
    ("hosts:\n  - {name: h1, powered: maybe}", 2, &["`powered`", "true or false", "`maybe`"]),
    ("hosts:\n  - {name: h1, mode: Drained}", 2, &["unknown word `Drained`", "Maintenance"]),
    ("hosts:\n  - {name: h1, watchdog: rest}", 2, &["unknown word `rest`", "`reset`"]),
    ("hosts: [h1, h1]", 1, &["host `h1` is declared twice"]),
    ("hosts: [H1]", 1, &["`H1` is no host name"]),
    ("hostDefaults: {bootSecs: 5}", 1, &["unknown field `bootSecs`", "`bootSeconds`"]),
    ("hosts:\n  - {apiVersion: v1, kind: Hots, metadata: {name: a}}", 2, &["kind Host", "`Hots`"]),
    // Devices, storage, manifests
    ("fenceDevices:\n  - {name: p, plug: {h1: 1}}", 2, &["unknown field `plug`", "`plugs`"]),
    ("fenceDevices:\n  - {name: p, plugs: {h9: 1}}", 2, &["no host `h9`"]),
    ("storage:\n  - {name: s, kind: nfs}", 2, &["unknown word `nfs`", "`NFS`"]),
    ("storage:\n  - {name: s, lockManager: dlm}", 2, &["unknown word `dlm`", "sanlock"]),
    ("manifests:\n  - {kind: Host}", 2, &["apiVersion"]),
    ("manifests:\n  - no-such.yaml", 2, &["no file can be read"]),
    // VMs and rules
    ("vms:\n  - {name: a, hosts: h1}", 2, &["unknown field `hosts`", "`host`"]),
    ("vms:\n  - {name: a, host: h4}", 2, &["no host `h4` is declared", "did you mean `h"]),
    ("vms:\n  - {name: a, run: always}", 2, &["unknown word `always`", "`Always`"]),
    ("vms:\n  - {name: a, failback: yes}", 2, &["`failback`", "true or false", "`yes`"]),
    ("vms:\n  - {name: a}\n  - {name: b, apartFrom: [c]}", 3, &["no VM `c` is declared"]),
    ("vms:\n  - {name: a, maxRestarts: -1}", 2, &["`maxRestarts`", "whole number"]),
    ("vms:\n  - {name: a, load: 3}", 2, &["`load`", "a mapping"]),
    ("vms:\n  - {name: a}\n  - {name: a}", 3, &["VM `a` is declared twice"]),
    ("vms: [{name: a}]\nrules:\n  - {togther: [a, a]}", 3, &["needs `together` or `apart`"]),
    ("vms: [{name: a}]\nrules:\n  - {apart: [a]}", 3, &["at least two VMs"]),
    // Steps
    ("steps:\n  - {at: 5, do: power-of, host: h1}", 2, &["unknown verb `power-of`", "`power-off`"]),
    ("steps:\n  - {at: 5, host: h1}", 2, &["needs `do`"]),
    ("steps:\n  - {do: power-off, host: h1}", 2, &["needs `at` or `when`"]),
    ("steps:\n  - {at: 5, do: power-off}", 2, &["needs `host`"]),
    ("steps:\n  - {at: 5, do: power-off, hots: h1}", 2, &["unknown field `hots`", "`host`"]),
    ("steps:\n  - {at: 5, do: power-off, host: []}", 2, &["`host`", "empty"]),
    ("steps:\n  - {at: 5, do: power-off, host: h8}", 2, &["no host `h8`"]),
    ("steps:\n  - {at: 5, do: pause, host: h1}", 2, &["unknown field `host`"]),
    ("steps:\n  - {at: 5, delay: 2, do: pause}", 2, &["`delay` goes with `when`"]),
    ("steps:\n  - {at: 5, when: {fenced: h1}, do: pause}", 2, &["either `at` or `when`"]),
    ("steps:\n  - {at: x+y, do: pause}", 2, &["`at`", "id+seconds", "`x+y`"]),
    ("steps:\n  - {at: [1], do: pause}", 2, &["`at`", "a list"]),
    ("steps:\n  - {at: \"10\", do: pause}", 2, &["`at`", "the string \"10\""]),
    ("steps:\n  - {at: 5, do: isolate, host: h1, paths: [apis]}", 2, &["`apis`", "`api`"]),
    ("steps:\n  - {at: 5, do: isolate, host: h1, way: up}", 2, &["unknown word `up`", "both"]),
    ("steps:\n  - {at: 5, do: clock, host: h1}", 2, &["`step` or `rate`"]),
    ("steps:\n  - {at: 5, do: crash-agent, host: h1, process: beats}", 2, &["`beats`", "`beat`"]),
    ("steps:\n  - {at: 5, do: crash-agent, host: h1, for: long}", 2, &["`for`", "seconds"]),
    ("vms: [a]\nsteps:\n  - {at: 5, do: virsh, vm: a}", 3, &["needs `action`"]),
    ("vms: [a]\nsteps:\n  - {at: 5, do: virsh, action: start, vm: a}", 3, &["needs `host`"]),
    ("vms: [a]\nsteps:\n  - {at: 5, do: virsh, action: migrate, vm: a}", 3, &["needs `to`"]),
    ("steps:\n  - {at: 5, do: fail, op: boot}", 2, &["unknown word `boot`", "start, stop"]),
    ("steps:\n  - {at: 5, do: fail, op: start, stage: copying}", 2, &["`op: migrate` only"]),
    ("steps:\n  - {at: 5, do: fail, op: start, times: 0}", 2, &["`times`", "`always`"]),
    ("steps:\n  - {at: 5, do: bmc, is: ok}", 2, &["`host` or `device`"]),
    ("steps:\n  - {at: 5, do: bmc, host: h1, is: lies}", 2, &["unknown word `lies`", "lies-on"]),
    ("steps:\n  - {at: 5, do: bmc, device: bmc-h9, is: ok}", 2, &["`bmc-h9`", "`bmc-h"]),
    ("steps:\n  - {at: 5, do: storage, name: nfs, is: down}", 2, &["no storage `nfs`", "`vms`"]),
    ("steps:\n  - {at: 5, do: storage, is: broken}", 2, &["unknown word `broken`"]),
    ("steps:\n  - {at: 5, do: lock-manager, host: h1}", 2, &["`is` or `stale-lock`"]),
    (
        "steps:\n  - {at: 5, do: api, is: down, only: [controler]}",
        2,
        &["`controler`", "`controller`"],
    ),
    ("steps:\n  - {at: 5, do: controller, is: crashed}", 2, &["`crashed`", "`crash`"]),
    ("steps:\n  - {at: 5, do: delete, kind: Vm, name: a}", 2, &["unknown kind `Vm`"]),
    ("steps:\n  - {at: 5, do: patch, kind: Host, name: h1}", 2, &["needs `patch`"]),
    ("steps:\n  - {at: 5, do: apply}", 2, &["needs `manifest`"]),
    ("steps:\n  - {at: 5, do: add, name: a}", 2, &["`vm`, `host`, `fenceDevice`"]),
    ("vms: [a]\nsteps:\n  - {at: 5, do: set, vm: a}", 3, &["changes no field"]),
    ("vms: [a]\nsteps:\n  - {at: 5, do: set, vm: a, memory: 5}", 3, &["`memory`", "`memoryMiB`"]),
    (
        "steps:\n  - {at: 5, do: set, policy: {rebalence: Usage}}",
        2,
        &["`rebalence`", "`rebalance`"],
    ),
    (
        "steps:\n  - {at: 5, do: set, policy: default, actSecond: 9}",
        2,
        &["`actSecond`", "`actSeconds`"],
    ),
    ("steps:\n  - {at: 5, do: abort}", 2, &["`vm` or `step`"]),
    ("steps:\n  - {id: a+b, at: 5, do: pause}", 2, &["`a+b` is no id"]),
    (
        "steps:\n  - {id: a, at: 5, do: pause}\n  - {id: a, at: 6, do: resume}",
        3,
        &["`a` stands twice"],
    ),
    (
        "steps:\n  - {id: a, at: b, do: pause}\n  - {id: b, at: a, do: pause}",
        2,
        &["waits for itself"],
    ),
    ("until: 10\nsteps:\n  - {at: 50, do: pause}", 3, &["never fires"]),
    // Objects
    (
        "manifests:\n- apiVersion: stockade.dev/v1alpha1\n  kind: VirtualMachine\n  \
         metadata: {name: q}\n  spec:\n    runPolcy: Halted",
        6,
        &["in `spec`", "unknown field `runPolcy`", "`runPolicy`"],
    ),
    (
        "manifests:\n- apiVersion: stockade.dev/v1alpha1\n  kind: VirtualMachine\n  \
         metadata: {name: q}\n  spec:\n    disks:\n    - {nam: root}",
        7,
        &["in `spec.disks`", "unknown field `nam`", "`name`"],
    ),
    (
        "manifests:\n- apiVersion: stockade.dev/v1alpha1\n  kind: VirtualMachin\n  \
         metadata: {name: q}",
        3,
        &["unknown kind `VirtualMachin`", "`VirtualMachine`"],
    ),
    (
        "vms: [a]\nsteps:\n  - at: 5\n    do: patch\n    kind: VirtualMachine\n    name: a\n    \
         patch: {spec: {runPolcy: Halted}}",
        7,
        &["`patch`", "unknown field `runPolcy`", "`runPolicy`"],
    ),
    // Conditions and expectations
    (
        "vms: [a]\nexpect:\n  - {never: {vm: a, running: true}, after: 20, before: 10}",
        3,
        &["`before` is not later than `after`"],
    ),
    ("vms: [a]\nexpect:\n  - {vm: a, runing: true}", 3, &["unknown field `runing`", "`running`"]),
    ("vms: [a]\nexpect:\n  - {vn: a, running: true}", 3, &["unknown field `vn`", "`vm`"]),
    ("vms: [a]\nexpect:\n  - {vm: b, running: true}", 3, &["no VM `b`", "`a`"]),
    ("vms: [a]\nexpect:\n  - {vm: a}", 3, &["says nothing"]),
    ("vms: [a]\nexpect:\n  - {vm: a, state: Runing}", 3, &["`Runing`", "`Running`"]),
    ("expect:\n  - {host: h1, state: Running}", 2, &["unknown word `Running`", "Ready"]),
    ("vms: [a]\nexpect:\n  - {vm: a, copies: one}", 3, &["`copies`", "{min, max}"]),
    ("vms: [a]\nexpect:\n  - {vm: a, copies: {mim: 1}}", 3, &["unknown field `mim`", "`min`"]),
    ("expect:\n  - {running: true}", 2, &["needs a subject"]),
    ("expect:\n  - {host: h1, powerd: true}", 2, &["unknown field `powerd`", "`powered`"]),
    ("expect:\n  - {event: strat}", 2, &["unknown event `strat`", "`start`"]),
    ("expect:\n  - {event: start, hosts: h1}", 2, &["unknown field `hosts`", "`host`"]),
    ("expect:\n  - {event: start, by: agents}", 2, &["`agents`", "`agent`"]),
    ("expect:\n  - {host: h1, powered: true, after: 5}", 2, &["`after` and `before` need"]),
    ("expect:\n  - {host: h1, powered: true, at: 5, within: 2}", 2, &["`at` goes with none"]),
    (
        "expect:\n  - {never: {host: h1, powered: true}, at: 5}",
        2,
        &["unknown field `at`", "`after`"],
    ),
    ("expect:\n  - {nevr: {host: h1, powered: true}}", 2, &["unknown field `nevr`", "`never`"]),
    ("expect:\n  - {order: {event: start}}", 2, &["a list of conditions"]),
    ("vms: [a]\nexpect:\n  - {vm: a, ran: [h1, h9]}", 3, &["no host `h9`"]),
    ("vms: [a]\nexpect:\n  - {vm: a, ran: h1}", 3, &["a list of hosts"]),
    ("vms: [a]\nexpect:\n  - {vm: a, untouched: false}", 3, &["can only be true"]),
    ("vms: [a]\nexpect:\n  - {vm: a, ran: [h1], within: 4}", 3, &["unknown field `within`"]),
    ("expect:\n  - {step: mv, outcome: Succeeded}", 2, &["no step `mv`"]),
    (
        "steps: [{id: p, at: 1, do: pause}]\nexpect:\n  - {step: p, outcome: Done}",
        3,
        &["`Done`", "Pending"],
    ),
    (
        "steps: [{id: p, at: 1, do: power-off, host: h1}]\nexpect:\n  - {step: p, outcome: Failed}",
        3,
        &["no user's order"],
    ),
    ("expect:\n  - {device: pdu, received: {a: b}}", 2, &["no fence device `pdu`"]),
    ("expect:\n  - {object: Hst/h1, exists: true}", 2, &["unknown kind `Hst`", "`Host`"]),
    ("expect:\n  - {object: h1, exists: true}", 2, &["Kind/name"]),
    ("expect:\n  - {any: []}", 2, &["`any` is empty"]),
    ("expect:\n  - {host: h1, condition: Ready, status: Yes}", 2, &["`Yes`", "True"]),
    ("vms: [a]\nexpect:\n  - {vm: a, host: h1, within: soon}", 3, &["`within`", "seconds"]),
];

#[test]
fn each_mistake_is_refused_with_its_line_and_what_is_known() {
    for (text, line, words) in MALFORMED {
        let message = refused(text);
        assert!(
            message.contains(&format!("t.yaml:{line}: ")),
            "no line {line}:\n{text}\n{message}"
        );
        for word in *words {
            assert!(message.contains(word), "no {word:?} for\n{text}\n{message}");
        }
    }
    assert!(MALFORMED.len() >= 60);
}

#[test]
fn every_scenario_file_of_the_project_is_read() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/scenarios");
    let mut names = std::collections::BTreeSet::new();
    let mut wrong = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "yaml") {
            continue;
        }
        match super::load(&path) {
            Ok(scenarios) => {
                for scenario in scenarios {
                    assert!(!scenario.expect.is_empty(), "{path:?} expects nothing");
                    assert!(names.insert(scenario.name.clone()), "{} stands twice", scenario.name);
                }
            }
            Err(error) => wrong.push(error.to_string()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(names.len() >= 40, "only {} scenarios", names.len());
}

/// The texts of all scenario files of the project, and the two above.
pub(in crate::scenario) fn all_texts() -> Vec<String> {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/scenarios");
    let mut paths: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml"))
        .collect();
    paths.sort();
    let files = paths.iter().map(|path| std::fs::read_to_string(path).unwrap());
    [EXAMPLE, EVERYTHING].map(str::to_owned).into_iter().chain(files).collect()
}

#[test]
fn no_key_of_any_scenario_is_ignored_when_it_is_misspelled() {
    // Keys below these are the user's own.
    let free = ["labels:", "plugs:", "patch:", "received:", "metadata:", "spec:", "apiVersion:"];
    let mut tried = 0;
    for text in all_texts() {
        let mut start = 0;
        for line in text.split_inclusive('\n') {
            let skip = free.iter().any(|f| line.contains(f))
                || line.trim_start().starts_with("name: ")
                || line.trim_start().starts_with("about: ")
                || line.trim_start().starts_with("kind: ");
            for (at, _) in line.match_indices(": ").filter(|_| !skip) {
                let is_key = line[..at].ends_with(|c: char| c.is_ascii_alphanumeric());
                if is_key && !line[..at].contains('"') {
                    let mut wrong = text.clone();
                    wrong.insert_str(start + at, "zz");
                    assert!(parse(&wrong, "t.yaml", None).is_err(), "accepted: {line}");
                    tried += 1;
                }
            }
            start += line.len();
        }
    }
    assert!(tried > 500, "only {tried} keys tried");
}
