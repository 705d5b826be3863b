//! Where a service may and should run.

use crate::state::{ManagerState, NodeWord, ServiceState, View};
use std::collections::{BTreeMap, BTreeSet};
use stead_model::ha_cfg::HaRuleKind;
use stead_model::{NodeName, ServiceId};

/// A choice with its reason, or why there is none.
pub type Choice = Result<(NodeName, String), String>;

/// The nodes that rules of node affinity leave, in groups of falling priority.
fn by_affinity(view: &View, sid: ServiceId, online: &BTreeSet<NodeName>) -> Vec<BTreeSet<NodeName>> {
    let rule = view.rules.iter().find_map(|r| match &r.kind {
        HaRuleKind::NodeAffinity { nodes, strict, positive } if !r.disable && r.resources.contains(&sid) => {
            Some((nodes, *strict, *positive))
        }
        _ => None,
    });
    let Some((nodes, strict, positive)) = rule else { return vec![online.clone()] };
    let mut groups: BTreeMap<std::cmp::Reverse<u32>, BTreeSet<NodeName>> = BTreeMap::new();
    let mut rest = BTreeSet::new();
    for n in online {
        let group = match (nodes.get(n), positive) {
            (Some(priority), true) => groups.entry(std::cmp::Reverse(*priority)).or_default(),
            (None, false) => groups.entry(std::cmp::Reverse(0)).or_default(),
            _ => &mut rest,
        };
        group.insert(n.clone());
    }
    let mut out: Vec<_> = groups.into_values().collect();
    if !strict && !rest.is_empty() {
        out.push(rest);
    }
    out
}

/// Where the services that `sid` must be with, or must not be with, are now.
fn by_resources(
    view: &View,
    state: &ManagerState,
    sid: ServiceId,
) -> (BTreeSet<NodeName>, BTreeSet<NodeName>) {
    let (mut with, mut without) = (BTreeSet::new(), BTreeSet::new());
    for rule in view.rules.iter().filter(|r| !r.disable && r.resources.contains(&sid)) {
        let HaRuleKind::ResourceAffinity { positive } = rule.kind else { continue };
        for other in rule.resources.iter().filter(|o| **o != sid) {
            let Some(s) = state.service_status.get(other) else { continue };
            let placed = !matches!(
                s.state,
                ServiceState::Stopped | ServiceState::Fence | ServiceState::Recovery | ServiceState::Error
            );
            if placed {
                let place = s.target.as_ref().unwrap_or(&s.node).clone();
                if positive {
                    with.insert(place)
                } else {
                    without.insert(place)
                };
            }
        }
    }
    (with, without)
}

/// Services on each node, as load.
fn load(view: &View, state: &ManagerState) -> BTreeMap<NodeName, usize> {
    let mut load: BTreeMap<NodeName, usize> = view.nodes.keys().map(|n| (n.clone(), 0)).collect();
    for s in state.service_status.values() {
        if matches!(s.state, ServiceState::Started | ServiceState::Migrate | ServiceState::Relocate) {
            *load.entry(s.target.as_ref().unwrap_or(&s.node).clone()).or_default() += 1;
        }
    }
    load
}

/// Chooses a node for a service. `stay`: where it is, if it would rather stay there; `avoid`: where it failed.
pub fn choose(
    view: &View,
    state: &ManagerState,
    sid: ServiceId,
    stay: Option<&NodeName>,
    avoid: &BTreeSet<NodeName>,
) -> Choice {
    let online: BTreeSet<NodeName> =
        view.nodes.iter().filter(|(_, n)| n.word == NodeWord::Online).map(|(n, _)| n.clone()).collect();
    if online.is_empty() {
        return Err("no node is online".into());
    }
    let (with, without) = by_resources(view, state, sid);
    let load = load(view, state);
    let groups = by_affinity(view, sid, &online);
    if groups.iter().all(BTreeSet::is_empty) {
        return Err("no node that its node-affinity rule allows is online".into());
    }
    for group in groups {
        let fits = |n: &&NodeName| {
            !avoid.contains(*n) && !without.contains(*n) && (with.is_empty() || with.contains(*n))
        };
        let mut fitting: Vec<&NodeName> = group.iter().filter(fits).collect();
        if let Some(here) = stay.filter(|s| fitting.contains(s)) {
            return Ok((here.clone(), "it is there".into()));
        }
        fitting.sort_by_key(|n| (load.get(*n).copied().unwrap_or(0), (*n).clone()));
        if let Some(best) = fitting.first() {
            let n = load.get(*best).copied().unwrap_or(0);
            return Ok(((*best).clone(), format!("the allowed node with the fewest services ({n})")));
        }
    }
    Err("no online node is allowed by its rules, apart from those on which it failed".into())
}
