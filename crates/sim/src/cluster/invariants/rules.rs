//! Strict rules are never broken by what the manager has chosen. Judged by the rules as they were read for the decision, by
//! code of its own.

use std::collections::BTreeSet;
use stead_ha::{ManagerState, Process, Service, ServiceState, View};
use stead_model::ha_cfg::{HaRule, HaRuleKind, RequestedState};
use stead_model::{NodeName, ServiceId};

pub(in crate::cluster) fn check(
    rules: &[HaRule],
    view: &View,
    before: &ManagerState,
    now: &ManagerState,
) -> Option<String> {
    if rules.is_empty() {
        return None;
    }
    let wanted =
        |sid: &ServiceId| view.services.get(sid).is_some_and(|s| s.resource.state == RequestedState::Started);
    // What is stopped, and stays so, may be kept anywhere.
    let chosen = now.service_status.iter().filter(|(sid, _)| wanted(sid)).filter_map(|(sid, s)| {
        let old = before.service_status.get(sid);
        Some((*sid, chosen(view, *sid, old, s)?))
    });
    let chosen: Vec<(ServiceId, &NodeName)> = chosen.collect();
    for rule in rules.iter().filter(|r| !r.disable && !now.rule_errors.contains_key(&r.id)) {
        for (sid, to) in chosen.iter().filter(|(sid, _)| rule.resources.contains(sid)) {
            if let Some(how) = breaks(rule, now, *sid, to, wanted) {
                return Some(format!("{sid} is sent to {to}, but by rule '{}' {how}", rule.id));
            }
        }
    }
    None
}

/// The node that was chosen for a service in this round, if one was.
fn chosen<'s>(view: &View, sid: ServiceId, old: Option<&Service>, new: &'s Service) -> Option<&'s NodeName> {
    if old.is_some_and(|o| o.uid == new.uid && o.target == new.target) {
        return None;
    }
    if let Some(target) = &new.target {
        return Some(target);
    }
    // Started anew where it is: that is a choice too.
    let seen = view.services.get(&sid)?;
    let rests = old.is_some_and(|o| o.state == ServiceState::RequestStart)
        && seen.process == Process::Absent
        && !seen.running;
    (rests && new.state == ServiceState::Started).then_some(&new.node)
}

fn breaks(
    rule: &HaRule,
    now: &ManagerState,
    sid: ServiceId,
    to: &NodeName,
    wanted: impl Fn(&ServiceId) -> bool,
) -> Option<String> {
    match &rule.kind {
        HaRuleKind::NodeAffinity { nodes, strict: true, positive } => {
            (nodes.contains_key(to) != *positive).then(|| "must not be there".to_owned())
        }
        HaRuleKind::ResourceAffinity { positive: false } => {
            let there = |other: &&ServiceId| {
                **other != sid
                    && wanted(other)
                    && now.service_status.get(other).is_some_and(|s| stands(s) == Some(to))
            };
            let others: BTreeSet<String> =
                rule.resources.iter().filter(there).map(ToString::to_string).collect();
            let others: Vec<String> = others.into_iter().collect();
            (!others.is_empty()).then(|| format!("is kept apart from {}, which is there", others.join(", ")))
        }
        HaRuleKind::NodeAffinity { .. } | HaRuleKind::ResourceAffinity { .. } => None,
    }
}

/// The node that a service holds: where it runs, or is to run.
fn stands(s: &Service) -> Option<&NodeName> {
    match s.state {
        ServiceState::Started => Some(&s.node),
        ServiceState::Migrate | ServiceState::Relocate | ServiceState::Recovery => s.target.as_ref(),
        _ => None,
    }
}
