//! When faults have ended for long enough, every service is in its requested state, and strict rules are kept.

use crate::cluster::world::World;
use stead_model::ha_cfg::{HaRule, HaRuleKind, RequestedState};
use stead_model::{NodeName, Ownership, ServiceId};

pub(in crate::cluster) fn check(world: &World) -> Option<String> {
    let tree = world.store.newest();
    if !world.helped.is_empty() || !world.edits.is_empty() || !tree.config.requests.is_empty() {
        return Some("users' changes are not carried out".to_owned());
    }
    for (sid, resource) in &tree.config.resources {
        let Some(own) = tree.owners.get(&sid.vmid) else { continue };
        let as_wanted = match resource.state {
            RequestedState::Started => world
                .nodes
                .iter()
                .any(|n| n.name == own.owner && n.guest_executes(world.now, sid.vmid).is_some()),
            RequestedState::Stopped | RequestedState::Disabled => {
                !own.running && world.nodes.iter().all(|n| !n.copies.contains_key(&sid.vmid))
            }
            RequestedState::Ignored => true,
        };
        if !as_wanted && !waits_for_a_rule(world, *sid) {
            return Some(unlike(world, *sid, resource.state, own));
        }
    }
    let errors = &tree.manager.0.rule_errors;
    tree.config
        .rules
        .iter()
        .filter(|r| !r.disable && !errors.contains_key(&r.id))
        .find_map(|r| broken(world, r))
}

/// Rules may leave no place: then a service waits, and says so.
fn waits_for_a_rule(world: &World, sid: ServiceId) -> bool {
    let tree = world.store.newest();
    let state = tree.manager.0.service_status.get(&sid);
    let waits = |s: &stead_ha::Service| {
        s.reason.split_once("; waits: ").is_some_and(|(_, why)| why.contains(" rule "))
    };
    !tree.config.rules.is_empty() && state.is_some_and(waits)
}

fn unlike(world: &World, sid: ServiceId, wanted: RequestedState, own: &Ownership) -> String {
    let tree = world.store.newest();
    let state = tree.manager.0.service_status.get(&sid);
    let state = state
        .map_or("not cared for".to_owned(), |s| format!("{} on {}: {}", s.state.as_str(), s.node, s.reason));
    let copies: Vec<String> = world
        .nodes
        .iter()
        .filter_map(|n| {
            n.copies.get(&sid.vmid).map(|c| format!("on {} {c:?}, guarded: {:?}", n.name, n.holds()))
        })
        .collect();
    let member = tree.nodes.get(&own.owner);
    format!(
        "{sid} is to be {}, and is not; HA says: {state}; its record: {own:?}; its owner: {member:?}; processes: {copies:?}",
        wanted.as_str()
    )
}

/// Where a service that is to run does.
fn place(world: &World, sid: &ServiceId) -> Option<NodeName> {
    let tree = world.store.newest();
    let wanted = tree.config.resources.get(sid).is_some_and(|r| r.state == RequestedState::Started);
    tree.owners.get(&sid.vmid).filter(|_| wanted).map(|o| o.owner.clone())
}

fn broken(world: &World, rule: &HaRule) -> Option<String> {
    let places: Vec<NodeName> = rule.resources.iter().filter_map(|sid| place(world, sid)).collect();
    let mut distinct = places.clone();
    distinct.sort();
    distinct.dedup();
    let kept = match &rule.kind {
        HaRuleKind::NodeAffinity { nodes, strict: true, positive } => {
            places.iter().all(|n| nodes.contains_key(n) == *positive)
        }
        HaRuleKind::NodeAffinity { .. } => true,
        HaRuleKind::ResourceAffinity { positive: true } => distinct.len() <= 1,
        HaRuleKind::ResourceAffinity { positive: false } => distinct.len() == places.len(),
    };
    let waits = rule.resources.iter().any(|sid| waits_for_a_rule(world, *sid));
    (!kept && !waits).then(|| format!("rule '{}' is not kept: its resources run on {places:?}", rule.id))
}
