//! Each form of expectation, held and not held, on runs made by hand.

use super::super::ast::ObjectRef;
use super::super::observe::{ConditionObs, HostObs, SimEvent, Snapshot, View, VmObs};
use super::super::parse;
use super::super::words::{By, Outcome, Proof, WorldEvent};
use super::Evaluator;

/// A run made by hand: VMs `a`, `b` and hosts h1…h3, all quiet at the start.
struct Run {
    evaluator: Evaluator,
    view: Snapshot,
    fired: Vec<(u64, usize)>,
}

impl Run {
    fn of(text: &str) -> Self {
        let scenarios = parse(
            &format!("vms: [{{name: a, host: h1}}, {{name: b, host: h2}}]\n{text}"),
            "t.yaml",
            None,
        )
        .unwrap_or_else(|e| panic!("{e}"));
        let mut view = Snapshot::default();
        for (vm, host) in [("a", "h1"), ("b", "h2")] {
            view.vms.insert(
                vm.into(),
                VmObs {
                    hosts: vec![host.into()],
                    state: Some("Running".into()),
                    lock_holder: Some(host.into()),
                    memory_mib: 1024,
                    ..VmObs::default()
                },
            );
        }
        for host in ["h1", "h2", "h3"] {
            view.hosts.insert(
                host.into(),
                HostObs {
                    powered: true,
                    state: Some("Ready".into()),
                    agent_running: true,
                    ..HostObs::default()
                },
            );
        }
        let mut run = Self { evaluator: Evaluator::new(&scenarios[0]), view, fired: vec![] };
        run.evaluator.on_change(0, &run.view);
        run.steps(0);
        run
    }

    /// Fires what is due at `t`, as a simulator would.
    fn steps(&mut self, t: u64) {
        loop {
            let due = self.evaluator.due_steps(t, &self.view);
            if due.is_empty() {
                return;
            }
            self.fired.extend(due.into_iter().map(|i| (t, i)));
            self.evaluator.on_change(t, &self.view);
        }
    }

    /// Goes to second `t`, stopping at every deadline before it.
    fn to(&mut self, t: u64) -> &mut Self {
        let t = t * 1000;
        loop {
            let next = self.evaluator.next_deadline();
            if next > t {
                break;
            }
            self.steps(next);
            if self.evaluator.next_deadline() <= next {
                break;
            }
        }
        self.steps(t);
        self
    }

    fn event(
        &mut self,
        t: u64,
        event: impl Fn(SimEvent) -> SimEvent,
        kind: WorldEvent,
    ) -> &mut Self {
        self.to(t);
        self.evaluator.on_event(&event(SimEvent::world(t * 1000, kind)));
        self.evaluator.on_change(t * 1000, &self.view);
        self.steps(t * 1000);
        self
    }

    fn change(&mut self, t: u64, change: impl Fn(&mut Snapshot)) -> &mut Self {
        self.to(t);
        change(&mut self.view);
        self.evaluator.on_change(t * 1000, &self.view);
        self.steps(t * 1000);
        self
    }

    fn vm_on(&mut self, t: u64, vm: &str, hosts: &[&str]) -> &mut Self {
        self.change(t, |v| {
            v.vms.get_mut(vm).unwrap().hosts = hosts.iter().map(|h| (*h).to_owned()).collect();
        })
    }

    /// The indices of what failed, 1000 + i for a step.
    fn end(&mut self, t: u64) -> Vec<usize> {
        self.to(t);
        let failures = self.evaluator.finish(t * 1000, &self.view);
        failures.iter().map(|f| f.expectation.unwrap_or(1000)).collect()
    }
}

fn on<'a>(vm: &'a str, host: &'a str) -> impl Fn(SimEvent) -> SimEvent + 'a {
    move |e| e.vm(vm).host(host)
}

#[test]
fn a_plain_condition_is_judged_at_the_end() {
    let mut run = Run::of(
        "expect:\n  - {vm: a, running: true}\n  - {vm: a, running: false}\n  - {vm: [a, b], running: true}\n  - {vm: [a, b], host: h1}\n",
    );
    assert_eq!(run.end(10), [1, 3]);
    run = Run::of("expect:\n  - {vm: a, running: true}\n");
    run.vm_on(5, "a", &[]);
    let failures = run.evaluator.finish(10_000, &run.view);
    assert_eq!(failures[0].seen, "a: runs nowhere, Running");
    assert_eq!(failures[0].text, "{vm: a, running: true}");
    assert_eq!(failures[0].line, 3);
}

#[test]
fn what_a_condition_may_say_of_a_vm() {
    let mut run = Run::of(
        "expect:
  - {vm: a, copies: 1, host: [h1, h3], notOn: [h2, h3], notWith: b, migrating: false}
  - {vm: a, lockHolder: h1, state: [Running, Held]}
  - {vm: a, with: b}
  - {vm: a, notOn: h1}
  - {vm: a, lockHolder: none}
  - {vm: a, copies: {min: 2}}
  - {vm: a, migrating: true}
",
    );
    assert_eq!(run.end(1), [2, 3, 4, 5, 6]);
    let mut both = Run::of(
        "expect:\n  - {vm: a, with: b}\n  - {vm: a, notWith: b}\n  - {vm: a, lockHolder: none}\n",
    );
    both.change(1, |v| {
        v.vms.get_mut("a").unwrap().hosts = vec!["h2".into()];
        v.vms.get_mut("a").unwrap().lock_holder = None;
    });
    assert_eq!(both.end(2), [1]);
}

#[test]
fn a_stopped_vm_is_with_nobody_and_on_nothing() {
    let mut run = Run::of(
        "expect:\n  - {vm: a, notOn: h1, notWith: b}\n  - {vm: a, host: h1}\n  - {vm: a, with: b}\n",
    );
    run.vm_on(1, "a", &[]);
    assert_eq!(run.end(2), [1, 2]);
}

#[test]
fn what_a_condition_may_say_of_a_host() {
    let mut run = Run::of(
        "expect:
  - {host: h1, powered: true, state: [Ready, Lost], fenced: false, armed: false, agent: running, vms: 1, memoryMiB: 1024}
  - {host: h3, vms: 0, memoryMiB: {max: 0}}
  - {host: [h1, h3], vms: 1}
  - {host: h1, proof: power}
  - {fenced: h1}
  - {fenced: [h1, h2]}
  - {host: h2, fenced: true, proof: [elapsed, human]}
",
    );
    run.change(1, |v| v.hosts.get_mut("h2").unwrap().proof = Some(Proof::Human));
    assert_eq!(run.end(2), [2, 3, 4]);
}

#[test]
fn conditions_of_objects_match_as_a_whole() {
    let mut run = Run::of(
        "expect:
  - {vm: a, exists: true, condition: Ready}
  - {vm: a, condition: Ready, status: False}
  - {vm: a, reason: NoHostFits, message: H1 IS FULL}
  - {vm: a, condition: Ready, reason: NoHostFits}
  - {object: HostFence/x, exists: false}
  - {object: Host/h1, exists: true}
  - {vm: a, condition: Placed}
",
    );
    run.change(1, |v| {
        let cond = |t: &str, s: &str, r: &str, m: &str| ConditionObs {
            type_: t.into(),
            status: s.into(),
            reason: r.into(),
            message: m.into(),
        };
        v.objects.insert(
            ObjectRef::vm("a"),
            vec![
                cond("Ready", "True", "Running", "runs on h1"),
                cond("Placed", "False", "NoHostFits", "h1 is full"),
            ],
        );
    });
    assert_eq!(run.end(2), [1, 3, 5, 6]);
}

#[test]
fn at_means_before_the_steps_of_that_moment() {
    let mut run = Run::of(
        "steps:
  - {id: off, at: 10, do: power-off, host: h1}
expect:
  - {host: h1, powered: true, at: 10}
  - {host: h1, powered: true, at: off}
  - {host: h1, powered: false, at: off+1}
  - {host: h1, powered: true, at: 11}
",
    );
    run.change(10, |v| v.hosts.get_mut("h1").unwrap().powered = false);
    assert_eq!(run.end(20), [3]);
    assert_eq!(run.fired, [(10_000, 0)]);
}

#[test]
fn within_holds_if_it_was_true_once_in_its_time() {
    let mut run = Run::of(
        "steps:
  - {id: x, at: 10, do: pause}
expect:
  - {vm: a, host: h2, within: 10, after: x}
  - {vm: a, host: h2, within: 4, after: x}
  - {vm: a, host: h1, within: 1, after: x}
  - {event: start, vm: a, within: 10, after: x}
  - {event: start, vm: a, within: 30}
",
    );
    run.event(5, on("a", "h1"), WorldEvent::Start);
    run.vm_on(15, "a", &["h2"]).vm_on(16, "a", &["h3"]);
    assert_eq!(run.end(60), [1, 3], "a start before the window does not count in it");
}

#[test]
fn within_includes_its_last_instant() {
    let mut run = Run::of(
        "expect:\n  - {vm: a, host: h2, within: 15}\n  - {vm: a, host: h2, within: 14.999}\n",
    );
    run.vm_on(15, "a", &["h2"]);
    assert_eq!(run.end(60), [1]);
}

#[test]
fn never_and_always_keep_to_their_windows() {
    let mut run = Run::of(
        "steps:
  - {id: x, at: 10, do: pause}
expect:
  - {never: {vm: a, host: h2}}
  - {never: {vm: a, host: h2}, before: x}
  - {never: {vm: a, host: h1}, after: x}
  - {always: {vm: a, host: h1}, before: 15}
  - {always: {vm: a, host: h1}}
  - {always: {vm: a, host: h2}, after: 15}
  - {always: {vm: b, running: true}}
  - {never: {event: exit, vm: a}, after: x}
  - {never: {event: exit, vm: a}, before: x}
",
    );
    run.event(5, on("a", "h1"), WorldEvent::Exit);
    run.vm_on(15, "a", &["h2"]);
    // At 15 the absolute window opened before the change: the state then is still h1.
    assert_eq!(run.end(60), [0, 2, 4, 5, 8]);
}

#[test]
fn a_host_that_was_shot_counts_as_fenced_under_never() {
    let text = "expect:\n  - {never: {fenced: h1}}\n  - {never: {host: h1, fenced: true}}\n  - {never: {fenced: h2}}\n";
    let mut shot = Run::of(text);
    shot.event(5, |e| e.host("h1").device("bmc-h1"), WorldEvent::FenceOff);
    assert_eq!(shot.end(10), [0]);
    let mut certified = Run::of(text);
    certified.change(5, |v| v.hosts.get_mut("h1").unwrap().proof = Some(Proof::Elapsed));
    certified.change(6, |v| v.hosts.get_mut("h1").unwrap().proof = None);
    assert_eq!(certified.end(10), [0, 1]);
}

#[test]
fn events_are_counted_in_their_window_and_by_their_fields() {
    let mut run = Run::of(
        "steps:
  - {id: x, when: {event: start, vm: a}, do: pause}
expect:
  - {event: start, count: 2}
  - {event: start, vm: a, count: 1}
  - {event: [start, exit], vm: [a, b], count: {min: 3, max: 3}}
  - {event: start, host: h2, count: 0}
  - {event: start, count: 1, before: x}
  - {event: start, count: 1, after: x}
  - {event: start, by: virsh}
  - {event: start, by: [virsh, agent], count: 1}
  - {event: NodeLost, count: 1}
",
    );
    run.event(5, |e| e.vm("a").host("h1").by(By::Agent), WorldEvent::Start);
    run.event(5, on("b", "h2"), WorldEvent::Start);
    run.event(6, on("b", "h2"), WorldEvent::Exit);
    assert_eq!(run.end(20), [3, 6, 8]);
    assert_eq!(run.fired, [(5_000, 0)]);
}

#[test]
fn order_compares_when_each_came_true_first() {
    let text = "expect:
  - {order: [{event: lock-take, vm: a}, {event: start, vm: a}, {vm: a, host: h2}]}
  - {order: [{event: start, vm: a}, {event: lock-take, vm: a}]}
  - {order: [{vm: a, host: h2}, {event: exit, vm: a}]}
  - {order: [{event: start, vm: a}, {vm: a, host: h2}], after: 20}
";
    let mut run = Run::of(text);
    run.event(5, on("a", "h2"), WorldEvent::LockTake);
    run.event(6, on("a", "h2"), WorldEvent::Start);
    run.vm_on(6, "a", &["h2"]);
    assert_eq!(run.end(60), [1, 2, 3]);
}

#[test]
fn ran_is_the_hosts_in_order_from_where_it_was() {
    let mut run = Run::of(
        "steps:
  - {id: x, at: 20, do: pause}
expect:
  - {vm: a, ran: [h1, h2, h3]}
  - {vm: a, ran: [h1, [h2, h3], h3]}
  - {vm: a, ran: [h1, \"*\"]}
  - {vm: a, ran: [\"*\", h3, \"*\"]}
  - {vm: a, ran: [h1, h3]}
  - {vm: a, ran: [h2, h3], after: x}
  - {vm: a, ran: [h1, h2], before: x}
  - {vm: [a, b], ran: [h1, \"*\"]}
  - {vm: a, ran: [], after: 50}
",
    );
    run.vm_on(5, "a", &[]).vm_on(6, "a", &["h1"]).vm_on(8, "a", &["h2"]);
    run.vm_on(25, "a", &[]).vm_on(30, "a", &["h3"]).vm_on(40, "a", &[]);
    assert_eq!(run.end(60), [4, 7]);
}

#[test]
fn every_start_is_an_entry_of_tried() {
    let mut run = Run::of(
        "expect:
  - {vm: a, tried: [h1, h1, h2]}
  - {vm: a, tried: [h1, h2]}
  - {vm: a, tried: [h1, \"*\"]}
  - {vm: a, tried: [h2], after: 7}
  - {vm: b, tried: []}
",
    );
    run.event(5, on("a", "h1"), WorldEvent::StartFailed);
    run.event(6, on("a", "h1"), WorldEvent::StartFailed);
    run.event(7, on("a", "h2"), WorldEvent::Start);
    assert_eq!(run.end(20), [1]);
}

#[test]
fn untouched_forbids_orders_not_exits() {
    let mut run = Run::of(
        "expect:\n  - {vm: a, untouched: true}\n  - {vm: b, untouched: true}\n  - {vm: b, untouched: true, before: 7}\n",
    );
    run.event(5, on("a", "h1"), WorldEvent::Exit);
    run.event(7, on("b", "h2"), WorldEvent::Pause);
    assert_eq!(run.end(20), [1]);
}

#[test]
fn outcomes_are_the_last_word_on_an_order() {
    let mut run = Run::of(
        "steps:
  - {id: mv, at: 1, do: migrate, vm: a, to: h2}
  - {id: st, at: 1, do: set, vm: a, cpu: 2}
  - {id: no, at: 1, do: stop, vm: b}
expect:
  - {step: mv, outcome: Succeeded}
  - {step: mv, outcome: [Accepted, Refused]}
  - {step: mv, outcome: Failed}
  - {step: st, outcome: Succeeded}
  - {step: st, outcome: Accepted}
  - {step: no, outcome: Pending}
  - {step: mv, message: RUNS ON}
  - {step: mv, outcome: Succeeded, message: nowhere}
",
    );
    run.to(2);
    run.evaluator.step_outcome(0, Outcome::Pending, "copying");
    run.evaluator.step_outcome(0, Outcome::Succeeded, "runs on h2");
    run.evaluator.step_outcome(1, Outcome::Accepted, "");
    assert_eq!(run.end(20), [2, 7]);
}

#[test]
fn a_device_was_called_with_all_of_these_at_once() {
    let mut run = Run::of(
        "expect:
  - {device: bmc-h1, received: {action: off, port: 3}}
  - {device: bmc-h1, received: {action: off, port: 4}}
  - {device: bmc-h2, received: {action: off}}
",
    );
    let call = |pairs: &[(&str, &str)]| {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    };
    run.evaluator.device_called("bmc-h1", &call(&[("action", "status"), ("port", "4")]));
    run.evaluator.device_called("bmc-h1", &call(&[("action", "off"), ("port", "3"), ("ip", "x")]));
    assert_eq!(run.end(20), [1, 2]);
}

#[test]
fn when_steps_fire_once_after_their_delay() {
    let mut run = Run::of(
        "steps:
  - {id: w, when: {vm: a, host: h2}, delay: 3, do: pause}
  - {id: late, when: {event: start}, after: 20, do: resume}
  - {id: rel, at: w+2, do: resume}
  - {when: {vm: b, running: false}, do: pause}
",
    );
    run.event(4, on("a", "h2"), WorldEvent::Start);
    run.vm_on(5, "a", &["h2"]).vm_on(6, "a", &["h1"]).vm_on(9, "a", &["h2"]);
    run.event(25, on("a", "h2"), WorldEvent::Start);
    assert_eq!(run.end(60), [1000], "the last step never fired, and that is a failure");
    assert_eq!(run.fired, [(8_000, 0), (10_000, 2), (25_000, 1)]);
}

#[test]
fn steps_of_one_instant_fire_in_file_order() {
    let run = {
        let mut run = Run::of(
            "steps:\n  - {at: x, do: pause}\n  - {id: x, at: 5, do: pause}\n  - {at: 5, do: resume}\n",
        );
        run.to(10);
        run
    };
    assert_eq!(run.fired, [(5_000, 1), (5_000, 2), (5_000, 0)]);
}

#[test]
fn a_run_without_until_ends_some_time_after_its_last_step() {
    let mut run = Run::of(
        "steps:\n  - {at: 10, do: pause}\nexpect:\n  - {vm: a, running: true, within: 40}\n",
    );
    run.to(11);
    assert_eq!(run.evaluator.until(), 160_000);
    assert!(!run.evaluator.is_over(159_999));
    assert_eq!(run.end(160), [0usize; 0]);
    let waits = Run::of("steps:\n  - {id: w, when: {vm: a, host: h2}, do: pause}\nuntil: w+30\n");
    assert_eq!(waits.evaluator.until(), 600_000);
}

#[test]
fn any_and_all_nest() {
    let mut run = Run::of(
        "expect:
  - {any: [{vm: a, host: h3}, {all: [{vm: a, host: h1}, {event: exit, vm: b}]}]}
  - {all: [{vm: a, running: true}, {event: exit, count: 0}]}
  - {any: [{vm: a, host: h3}, {host: h1, powered: false}], within: 5}
",
    );
    run.event(5, on("b", "h2"), WorldEvent::Exit);
    assert_eq!(run.end(20), [1, 2]);
}

#[test]
fn a_window_that_never_opens_is_a_failure() {
    let mut run = Run::of("expect:\n  - {never: {vm: a, host: h3}, after: 500}\n");
    assert_eq!(run.end(20), [0]);
}

#[test]
fn a_view_sums_what_runs_on_a_host() {
    let run = Run::of("hosts: 3");
    assert_eq!(run.view.host_memory_mib("h1"), 1024);
    assert_eq!(run.view.host_vms("h2"), ["b"]);
}
