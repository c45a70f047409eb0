//! The whole plan: assess hosts, fence, decide about each VM, place what wants to start.

use std::collections::BTreeMap;

use crate::consoles;
use crate::gate::{self, Gate};
use crate::ha::{brake::brake, fencing, host_state};
use crate::hosts;
use crate::lineage;
use crate::moves::{self, cold};
use crate::placement::{Mode, Unplaceable, VmKey, place, relocate};
use crate::plan::{Intent, Plan};
use crate::vm::{self, Decision};
use crate::world::{Key, World};

/// Plans everything.
#[must_use]
pub fn plan(world: &World) -> Plan {
    let mut out = Plan::default();
    let mut facts = host_state::assess(world);
    if let Some(at) = host_state::next_look(world, &facts) {
        out.wake(at);
    }
    let brake = brake(world, &facts);
    fencing::plan(world, &mut facts, brake, &mut out);
    let claims = vm::Claims::new(world);
    let barred = vm::barred(world, &facts);
    let mut decisions: BTreeMap<Key, Decision> = world
        .vms
        .iter()
        .map(|(key, vm)| {
            (key.clone(), vm::decide(world, &facts, vm, &claims, barred.contains(key)))
        })
        .collect();
    let pinned: BTreeMap<Key, String> = decisions
        .iter()
        .filter_map(|(key, d)| {
            let (_, host) = d.start.as_ref()?;
            Some((key.clone(), host.clone()?))
        })
        .collect();
    let mut pinned = pinned;
    let wanted: Vec<VmKey> = decisions
        .iter()
        .filter(|(_, d)| d.start.is_some())
        .map(|(key, _)| VmKey::new(&key.namespace, &key.name))
        .collect();
    // Most plans place and move nothing.
    let books =
        !wanted.is_empty() || world.tolerates.is_none() || moves::needs_books(world, &facts);
    let mut cluster = books.then(|| vm::cluster(world, &facts, &pinned));
    let mut places = BTreeMap::new();
    if let Some(books) = cluster.as_ref().filter(|_| !wanted.is_empty()) {
        places = place(books, &wanted, Mode::Start);
        // Where the first choice can't be had, any host will do.
        let before = pinned.len();
        pinned.retain(|key, _| {
            let bends = decisions.get(key).is_some_and(|d| d.pin_bends);
            let got = places.get(&VmKey::new(&key.namespace, &key.name)).is_some_and(Result::is_ok);
            got || !bends
        });
        if pinned.len() < before {
            let books = vm::cluster(world, &facts, &pinned);
            places = place(&books, &wanted, Mode::Start);
            cluster = Some(books);
        }
    }
    let unheard = lineage::taking_stock(world, &facts);
    let ahead = match &cluster {
        Some(books) if !places.is_empty() => relocate(books),
        Some(_) | None => BTreeMap::new(),
    };
    for (key, mut answer) in places {
        if let Some(why) = &unheard {
            answer = Err(Unplaceable::rule(why));
        } else if let Some(group) = ahead.get(&key) {
            let why = format!("{}; its group goes to {} first", group.why, group.to);
            answer = Err(Unplaceable::rule(why));
        }
        let key = Key::new(key.namespace, key.name);
        let (Some(vm), Some(decision)) = (world.vms.get(&key), decisions.get_mut(&key)) else {
            continue;
        };
        let Some((machine, _)) = decision.start.clone() else { continue };
        let moving = decision.report.status.migration.as_ref();
        let not_yet = moving.is_some_and(|m| {
            cold::leads_away(m) && (unheard.is_some() || cold::may_yet_take(world, m, &facts))
        });
        match answer {
            Err(_) if not_yet => out.wake(world.now + 1_000),
            Err(_) if turns_back(decision) => out.wake(world.now + 100),
            Err(why) => {
                let refused = {
                    let not_ready = vm::not_ready(world, &facts, vm);
                    vm::unplaceable(decision.clone(), vm, &why.to_string(), not_ready)
                };
                *decision = refused;
                out.wake(world.now + 5_000);
            }
            Ok(host) => {
                let at = facts.binary_search_by(|f| f.name.cmp(&host)).ok();
                let Some(target) = at.and_then(|i| facts.get_mut(i)) else { continue };
                // It is armed no later than its first VM is ordered.
                target.needed = true;
                let Gate::Open(relies_on) =
                    gate::may_place(world, vm, &decision.report.status.placements)
                else {
                    continue;
                };
                let (mut status, order) = vm::place_order(
                    world,
                    vm,
                    decision.report.status.clone(),
                    &host,
                    (&target.uid, &target.boot),
                    machine,
                );
                if let Some(m) = status.migration.as_mut().filter(|m| cold::leads_away(m)) {
                    m.epoch = status.epoch;
                }
                let report = vm::placed(world, vm, status);
                decision.report = report.clone();
                decision.intents.push(Intent::Place {
                    vm: key,
                    basis: vm::basis(&vm.metadata),
                    report,
                    domains: vec![order],
                    relies_on,
                });
            }
        }
    }
    let known = world.tolerates.unwrap_or(0);
    let tolerates = match &cluster {
        Some(books) if world.tolerates.is_none() => crate::placement::tolerates(books),
        Some(_) | None => known,
    };
    out.tolerates = tolerates;
    hosts::plan(world, &facts, brake, tolerates, &mut out);
    moves::plan(world, &facts, cluster.as_ref(), &mut decisions, &mut out);
    for (key, decision) in decisions {
        if let Some(at) = decision.wake {
            out.wake(at);
        }
        let placed = decision.intents.iter().any(|i| matches!(i, Intent::Place { .. }));
        let first = decision.intents.iter().any(|i| matches!(i, Intent::AddFinalizer { .. }));
        let gone = decision.intents.iter().any(|i| matches!(i, Intent::RemoveFinalizer { .. }));
        let waits = world.vms.get(&key).is_some_and(|vm| decision.can_wait(vm));
        out.intents.extend(decision.intents);
        if !placed && !first && !gone && !waits {
            out.vms.push((key, decision.report));
        }
    }
    consoles::plan(world, &mut out);
    vm::remove_copies(world, &mut out);
    out
}

/// A move by stop and start whose target has no place for it any more goes back.
fn turns_back(decision: &mut Decision) -> bool {
    let moving = decision.report.status.migration.as_mut();
    match moving.filter(|m| cold::leads_away(m)) {
        Some(m) => {
            m.returning = true;
            true
        }
        None => false,
    }
}

#[cfg(test)]
mod tests;
