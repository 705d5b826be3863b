//! The rules that say where services may be: conflicts found and named, and what is left compiled for placement.
//!
//! Services that are to be together form a *unit*, over all positive rules that share one of them; every other service is
//! a unit of its own. A unit inherits its members' node-affinity rule and negative rules. Rules that cannot all be kept are
//! left out at run time, each with its reason; whoever makes a rule is told before.

use crate::state::{ManagerState, ServiceState};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use stead_model::ha_cfg::{HaRule, HaRuleKind};
use stead_model::{NodeName, ServiceId};

/// Rules that cannot be kept together, or one that can't be kept at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Their names.
    pub rules: BTreeSet<String>,
    /// Why.
    pub reason: String,
}

/// Finds every conflict in a set of rules, on a cluster of these nodes. Rules that are disabled don't count.
pub fn conflicts(rules: &[HaRule], nodes: &BTreeSet<NodeName>) -> Vec<Conflict> {
    sift(rules, nodes).1
}

/// What is left without conflicts, and the conflicts. A rule that one check has taken out is not seen by the next.
fn sift<'r>(rules: &'r [HaRule], nodes: &BTreeSet<NodeName>) -> (Vec<&'r HaRule>, Vec<Conflict>) {
    let mut left: Vec<&HaRule> = rules.iter().filter(|r| !r.disable).collect();
    let mut found = vec![];
    for check in [
        alone,
        one_node_rule,
        no_node_left,
        too_many_apart,
        together_and_apart,
        priorities,
        two_node_rules,
        too_few_nodes,
    ] {
        let bad = check(&left, nodes);
        let out: BTreeSet<&str> = bad.iter().flat_map(|c| c.rules.iter().map(String::as_str)).collect();
        left.retain(|r| !out.contains(r.id.as_str()));
        found.extend(bad);
    }
    (left, found)
}

fn positive(rule: &HaRule) -> bool {
    rule.kind == HaRuleKind::ResourceAffinity { positive: true }
}

fn negative(rule: &HaRule) -> bool {
    rule.kind == HaRuleKind::ResourceAffinity { positive: false }
}

fn about_nodes(rule: &HaRule) -> Option<(&BTreeMap<NodeName, u32>, bool, bool)> {
    match &rule.kind {
        HaRuleKind::NodeAffinity { nodes, strict, positive } => Some((nodes, *strict, *positive)),
        HaRuleKind::ResourceAffinity { .. } => None,
    }
}

fn names<'r>(rules: impl IntoIterator<Item = &'r HaRule>) -> BTreeSet<String> {
    rules.into_iter().map(|r| r.id.clone()).collect()
}

fn quoted(ids: &BTreeSet<String>) -> String {
    ids.iter().map(|id| format!("'{id}'")).collect::<Vec<_>>().join(", ")
}

fn listed(sids: &[ServiceId]) -> String {
    sids.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn alone(rules: &[&HaRule], _: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let small = |r: &&&HaRule| about_nodes(r).is_none() && r.resources.len() < 2;
    let conflict = |r: &&HaRule| Conflict {
        rules: [r.id.clone()].into(),
        reason: "a resource-affinity rule must name at least two resources".into(),
    };
    rules.iter().filter(small).map(conflict).collect()
}

fn one_node_rule(rules: &[&HaRule], _: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let of: BTreeMap<ServiceId, Vec<&HaRule>> = by_service(rules, |r| about_nodes(r).is_some())
        .into_iter()
        .filter(|(_, all)| all.len() > 1)
        .collect();
    let conflict = |(sid, rules): (ServiceId, Vec<&HaRule>)| {
        let rules = names(rules);
        let reason = format!("{sid} is named by more than one node-affinity rule: {}", quoted(&rules));
        Conflict { rules, reason }
    };
    of.into_iter().map(conflict).collect()
}

fn no_node_left(rules: &[&HaRule], nodes: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let excludes_all = |r: &&&HaRule| {
        about_nodes(r).is_some_and(|(named, _, positive)| {
            !positive && !nodes.is_empty() && nodes.iter().all(|n| named.contains_key(n))
        })
    };
    let conflict = |r: &&HaRule| Conflict {
        rules: [r.id.clone()].into(),
        reason: "it excludes every node of the cluster".into(),
    };
    rules.iter().filter(excludes_all).map(conflict).collect()
}

fn too_many_apart(rules: &[&HaRule], nodes: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let many = |r: &&&HaRule| negative(r) && r.resources.len() > nodes.len();
    let conflict = |r: &&HaRule| Conflict {
        rules: [r.id.clone()].into(),
        reason: format!(
            "it keeps {} resources apart, but the cluster has {} nodes",
            r.resources.len(),
            nodes.len()
        ),
    };
    rules.iter().filter(many).map(conflict).collect()
}

/// By service: the rules that name it, of those that pass.
fn by_service<'r>(
    rules: &[&'r HaRule],
    which: impl Fn(&HaRule) -> bool,
) -> HashMap<ServiceId, Vec<&'r HaRule>> {
    let mut of: HashMap<ServiceId, Vec<&HaRule>> = HashMap::new();
    for rule in rules.iter().filter(|r| which(r)) {
        for sid in &rule.resources {
            of.entry(*sid).or_default().push(rule);
        }
    }
    of
}

/// The units that positive rules make: each with its members and rules.
fn together<'r>(rules: &[&'r HaRule]) -> Vec<(BTreeSet<ServiceId>, Vec<&'r HaRule>)> {
    let mut units: Vec<(BTreeSet<ServiceId>, Vec<&HaRule>)> = vec![];
    let mut of: HashMap<ServiceId, usize> = HashMap::new();
    for rule in rules.iter().filter(|r| positive(r)) {
        let mut members = rule.resources.clone();
        let mut made = vec![*rule];
        let joined: BTreeSet<usize> = rule.resources.iter().filter_map(|s| of.get(s).copied()).collect();
        for i in joined {
            let (old, by) = std::mem::take(&mut units[i]);
            members.extend(old);
            made.extend(by);
        }
        of.extend(members.iter().map(|s| (*s, units.len())));
        units.push((members, made));
    }
    units.retain(|(members, _)| !members.is_empty());
    units
}

/// By service: the number of its unit.
fn numbers(units: &[(BTreeSet<ServiceId>, Vec<&HaRule>)]) -> HashMap<ServiceId, usize> {
    units.iter().enumerate().flat_map(|(n, (members, _))| members.iter().map(move |s| (*s, n))).collect()
}

fn together_and_apart(rules: &[&HaRule], _: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let units = together(rules);
    let unit_of = numbers(&units);
    let mut found = vec![];
    for rule in rules.iter().filter(|r| negative(r)) {
        let mut by_unit: BTreeMap<usize, Vec<ServiceId>> = BTreeMap::new();
        for sid in &rule.resources {
            if let Some(unit) = unit_of.get(sid) {
                by_unit.entry(*unit).or_default().push(*sid);
            }
        }
        for (unit, both) in by_unit.into_iter().filter(|(_, both)| both.len() > 1) {
            let rules = names(units[unit].1.iter().copied().chain([*rule]));
            let reason =
                format!("{} cannot be kept together and apart at once: {}", listed(&both), quoted(&rules));
            found.push(Conflict { rules, reason });
        }
    }
    found
}

fn priorities(rules: &[&HaRule], _: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let among = by_service(rules, |r| about_nodes(r).is_none());
    let mut found = vec![];
    for rule in rules {
        let Some((nodes, _, true)) = about_nodes(rule) else { continue };
        if nodes.values().collect::<BTreeSet<_>>().len() < 2 {
            continue;
        }
        let mut with: BTreeMap<&str, (&HaRule, Vec<ServiceId>)> = BTreeMap::new();
        for sid in &rule.resources {
            for other in among.get(sid).into_iter().flatten() {
                with.entry(&other.id).or_insert_with(|| (other, vec![])).1.push(*sid);
            }
        }
        for (other, both) in with.into_values() {
            let rules = names([*rule, other]);
            let reason = format!(
                "{} is in a resource-affinity rule and in a node-affinity rule with several priorities: {}",
                listed(&both),
                quoted(&rules)
            );
            found.push(Conflict { rules, reason });
        }
    }
    found
}

fn two_node_rules(rules: &[&HaRule], _: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let about = by_service(rules, |r| about_nodes(r).is_some());
    let mut found = vec![];
    for (members, by) in together(rules) {
        let of_members = members.iter().filter_map(|s| about.get(s)).flatten();
        let about: BTreeMap<&str, &HaRule> = of_members.map(|r| (r.id.as_str(), *r)).collect();
        if about.len() > 1 {
            let rules = names(by.into_iter().chain(about.into_values()));
            let reason = format!(
                "resources that are to be together are in different node-affinity rules: {}",
                quoted(&rules)
            );
            found.push(Conflict { rules, reason });
        }
    }
    found
}

/// The nodes that a node-affinity rule leaves.
fn leaves(rule: &HaRule, nodes: &BTreeSet<NodeName>) -> BTreeSet<NodeName> {
    match about_nodes(rule) {
        Some((named, _, positive)) => {
            nodes.iter().filter(|n| named.contains_key(*n) == positive).cloned().collect()
        }
        None => nodes.clone(),
    }
}

fn too_few_nodes(rules: &[&HaRule], nodes: &BTreeSet<NodeName>) -> Vec<Conflict> {
    let units = together(rules);
    let unit_of = numbers(&units);
    let strict = by_service(rules, |r| about_nodes(r).is_some_and(|(_, strict, _)| strict));
    let mut found = vec![];
    for rule in rules.iter().filter(|r| negative(r)) {
        let (mut restricted, mut left, mut by) = (0, BTreeSet::new(), BTreeSet::from([rule.id.clone()]));
        for sid in &rule.resources {
            let inherited = || unit_of.get(sid).and_then(|n| units[*n].0.iter().find_map(|m| strict.get(m)));
            if let Some(about) = strict.get(sid).or_else(inherited).and_then(|all| all.first()) {
                restricted += 1;
                left.extend(leaves(about, nodes));
                by.insert(about.id.clone());
            }
        }
        if restricted > left.len() {
            let reason =
                format!("{restricted} resources are to be apart on {} nodes: {}", left.len(), quoted(&by));
            found.push(Conflict { rules: by, reason });
        }
    }
    found
}

/// Services that go together.
#[derive(Debug, Clone, Default)]
pub struct Unit {
    /// In their order.
    pub members: Vec<ServiceId>,
    /// The node-affinity rule, if there is one.
    pub node_rule: Option<NodeRule>,
    /// The negative rules, by number.
    pub apart: Vec<usize>,
}

/// A node-affinity rule.
#[derive(Debug, Clone)]
pub struct NodeRule {
    /// Its name.
    pub id: String,
    /// Without one of its nodes the service waits.
    pub strict: bool,
    nodes: BTreeMap<NodeName, u32>,
    positive: bool,
}

impl NodeRule {
    /// Whether no node is better by this rule than one of this rank.
    pub fn is_best(&self, rank: Option<u32>) -> bool {
        let best = if self.positive { self.nodes.values().max().map(|p| u32::MAX - p) } else { Some(0) };
        rank.is_some() && rank == best
    }

    /// How good a node is, 0 the best; none: not by this rule. Ranks may be left out.
    pub fn rank(&self, node: &NodeName) -> Option<u32> {
        match (self.nodes.get(node), self.positive) {
            (Some(priority), true) => Some(u32::MAX - priority),
            (None, false) => Some(0),
            _ => None,
        }
    }
}

/// Rules that are kept.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    units: Vec<Unit>,
    unit_of: HashMap<ServiceId, usize>,
    /// Names of negative rules.
    pub apart: Vec<String>,
    /// Those that are left out, with the reason.
    pub errors: BTreeMap<String, String>,
}

impl Rules {
    /// Compiles rules for a cluster of these nodes.
    pub fn compile(rules: &[HaRule], nodes: &BTreeSet<NodeName>) -> Self {
        let (kept, conflicts) = sift(rules, nodes);
        let mut out = Self::default();
        for conflict in conflicts {
            for id in conflict.rules {
                out.errors.entry(id).or_insert_with(|| conflict.reason.clone());
            }
        }
        for (members, _) in together(&kept) {
            out.unit_of.extend(members.iter().map(|s| (*s, out.units.len())));
            out.units.push(Unit { members: members.into_iter().collect(), ..Unit::default() });
        }
        for rule in kept {
            match &rule.kind {
                HaRuleKind::ResourceAffinity { positive: true } => {}
                HaRuleKind::ResourceAffinity { positive: false } => {
                    out.apart.push(rule.id.clone());
                    let number = out.apart.len() - 1;
                    for sid in &rule.resources {
                        out.unit(*sid).apart.push(number);
                    }
                }
                HaRuleKind::NodeAffinity { nodes, strict, positive } => {
                    let (nodes, strict, positive) = (nodes.clone(), *strict, *positive);
                    let node_rule = NodeRule { id: rule.id.clone(), strict, nodes, positive };
                    for sid in &rule.resources {
                        out.unit(*sid).node_rule = Some(node_rule.clone());
                    }
                }
            }
        }
        out
    }

    fn unit(&mut self, sid: ServiceId) -> &mut Unit {
        let number = *self.unit_of.entry(sid).or_insert_with(|| {
            self.units.push(Unit { members: vec![sid], ..Unit::default() });
            self.units.len() - 1
        });
        &mut self.units[number]
    }

    /// The unit of a service that rules name, with its number.
    pub fn of(&self, sid: ServiceId) -> Option<(usize, &Unit)> {
        let number = *self.unit_of.get(&sid)?;
        Some((number, &self.units[number]))
    }

    /// How many units there are.
    pub fn len(&self) -> usize {
        self.units.len()
    }

    /// Whether no rule is kept.
    pub fn is_empty(&self) -> bool {
        self.units.is_empty()
    }
}

/// By what kind of rule a move is blocked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    /// A strict node-affinity rule does not allow the node.
    NodeAffinity,
    /// A negative resource-affinity rule keeps it from a resource there.
    ResourceAffinity,
}

/// What a user's move of a resource would mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MovePreview {
    /// Resources that go with it.
    pub with: Vec<ServiceId>,
    /// Resources for whose sake it is refused, the moved one itself if the node is not allowed to it.
    pub blocked_by: Vec<(ServiceId, Cause)>,
}

/// What a move of a resource to a node would mean by the rules, as things stand.
pub fn preview(
    rules: &[HaRule],
    nodes: &BTreeSet<NodeName>,
    state: &ManagerState,
    sid: ServiceId,
    target: &NodeName,
) -> MovePreview {
    let rules = Rules::compile(rules, nodes);
    let Some((number, unit)) = rules.of(sid) else { return MovePreview::default() };
    let of = |s: &ServiceId| state.service_status.get(s);
    let runs = |s: &&ServiceId| {
        of(s).is_some_and(|s| !matches!(s.state, ServiceState::Stopped | ServiceState::Error))
    };
    let alone = of(&sid).is_none_or(|s| s.state == ServiceState::Stopped);
    let mut preview = MovePreview::default();
    if unit.node_rule.as_ref().is_some_and(|r| r.strict && r.rank(target).is_none()) {
        preview.blocked_by.push((sid, Cause::NodeAffinity));
    }
    if alone {
        return preview;
    }
    preview.with = unit.members.iter().filter(|m| **m != sid).filter(runs).copied().collect();
    let there = |s: &&ServiceId| {
        of(s).is_some_and(|s| s.node == *target || s.target.as_ref() == Some(target)) && runs(s)
    };
    let others = rules
        .units
        .iter()
        .enumerate()
        .filter(|(n, u)| *n != number && u.apart.iter().any(|rule| unit.apart.contains(rule)));
    let blocking: BTreeSet<ServiceId> =
        others.flat_map(|(_, u)| u.members.iter().filter(there).copied()).collect();
    preview.blocked_by.extend(blocking.into_iter().map(|s| (s, Cause::ResourceAffinity)));
    preview
}

#[cfg(test)]
mod tests;
