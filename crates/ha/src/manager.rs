//! The manager's decisions.

use crate::agent::Outcome;
use crate::placement::choose;
use crate::state::{
    Command, ManagerState, NodeStatus, NodeWord, Process, Request, Service, ServiceState, ServiceView, View,
};
use std::collections::BTreeSet;
use stead_model::ha_cfg::RequestedState;
use stead_model::{NodeName, ServiceId};

/// How the reason of a service begins that nothing can be done for now.
const WAITS: &str = "waits: ";

/// Decides once. `now` in seconds since 1970 is only shown to people. Returns what to do; `state` is to be
/// committed if it changed, *before* the commands are carried out.
pub fn step(now: u64, view: &View, state: &mut ManagerState) -> Vec<Command> {
    let before = state.clone();
    state.master_node = Some(view.me.clone());
    state.version = 1;
    let shown = |w| match w {
        NodeWord::Online => NodeStatus::Online,
        NodeWord::Unknown => NodeStatus::Unknown,
        NodeWord::Lost => NodeStatus::Fence,
    };
    state.node_status = view.nodes.iter().map(|(n, v)| (n.clone(), shown(v.word))).collect();
    state.service_status.retain(|sid, _| view.services.contains_key(sid));
    let mut out = vec![];
    for (sid, seen) in &view.services {
        if !state.service_status.contains_key(sid) {
            let first = match seen.resource.state {
                RequestedState::Started => ServiceState::RequestStart,
                _ => ServiceState::RequestStop,
            };
            enter(state, *sid, first, &seen.owner, "added to HA".into());
        }
        // A service passes through several states in one step, each with its reason; a bound ends a defect.
        for _ in 0..8 {
            let was = state.service_status.get(sid).cloned();
            out.extend(advance(view, state, *sid, seen));
            if state.service_status.get(sid) == was.as_ref() {
                break;
            }
        }
    }
    let same = ManagerState { timestamp: before.timestamp, ..state.clone() } == before;
    state.timestamp = if same { before.timestamp } else { now };
    out.dedup();
    out
}

fn enter(state: &mut ManagerState, sid: ServiceId, to: ServiceState, node: &NodeName, reason: String) {
    state.last_uid += 1;
    let old = state.service_status.get(&sid);
    let (failed_nodes, relocate_tries) =
        old.map(|s| (s.failed_nodes.clone(), s.relocate_tries)).unwrap_or_default();
    let service = Service {
        state: to,
        node: node.clone(),
        target: None,
        uid: state.last_uid,
        reason,
        failed_nodes,
        relocate_tries,
        maintenance_node: None,
        timeout: None,
    };
    state.service_status.insert(sid, service);
}

fn word(view: &View, node: &NodeName) -> NodeWord {
    // A node that was removed was either empty or recovered before; its guests are nobody's.
    view.nodes.get(node).map_or(NodeWord::Lost, |n| n.word)
}

fn advance(view: &View, state: &mut ManagerState, sid: ServiceId, seen: &ServiceView) -> Vec<Command> {
    let Some(service) = state.service_status.get(&sid).cloned() else { return vec![] };
    let lost = word(view, &seen.owner) == NodeWord::Lost;
    use ServiceState as S;
    if lost && !matches!(service.state, S::Fence | S::Recovery | S::Error) {
        if seen.resource.state == RequestedState::Disabled {
            return vec![];
        }
        let why = format!("node '{}' is lost", seen.owner);
        enter(state, sid, S::Fence, &seen.owner, why);
        return vec![];
    }
    // Moved by hand, or handed over without the manager having seen it yet: the record is what counts.
    if !lost
        && seen.owner != service.node
        && !matches!(service.state, S::Migrate | S::Relocate | S::Recovery | S::Fence)
    {
        let why = format!("it is on '{}'", seen.owner);
        enter(state, sid, service.state, &seen.owner, why);
        return vec![];
    }
    match service.state {
        S::RequestStart => request_start(view, state, sid, seen, &service),
        S::Started => started(view, state, sid, seen, &service),
        S::RequestStop => request_stop(view, state, sid, seen, &service),
        S::Stopped => stopped(view, state, sid, seen, &service),
        S::Migrate | S::Relocate => moving(view, state, sid, seen, &service),
        S::Fence => {
            enter(state, sid, S::Recovery, &service.node, service.reason.clone());
            vec![]
        }
        S::Recovery => recovery(view, state, sid, seen, &service),
        S::Freeze => vec![],
        S::Error => {
            if seen.resource.state == RequestedState::Disabled {
                clear_failures(state, sid);
                enter(state, sid, S::RequestStop, &seen.owner, "disabled by its user".into());
            }
            vec![]
        }
    }
}

fn clear_failures(state: &mut ManagerState, sid: ServiceId) {
    if let Some(s) = state.service_status.get_mut(&sid) {
        s.failed_nodes.clear();
        s.relocate_tries = 0;
    }
}

fn wants_running(seen: &ServiceView) -> bool {
    seen.resource.state == RequestedState::Started
}

/// Which node, first of all: where it is if it may stay there.
fn request_start(
    view: &View,
    state: &mut ManagerState,
    sid: ServiceId,
    seen: &ServiceView,
    s: &Service,
) -> Vec<Command> {
    if !wants_running(seen) {
        enter(state, sid, ServiceState::RequestStop, &s.node, "its user wants it stopped".into());
        return vec![];
    }
    // Where no other node can take it, it is tried again where it failed; that counts as another try.
    let place = choose(view, state, sid, Some(&seen.owner), &s.failed_nodes)
        .or_else(|_| choose(view, state, sid, Some(&seen.owner), &BTreeSet::new()));
    match place {
        Ok((node, _)) if node == seen.owner => {
            let reason = if s.reason.starts_with(WAITS) { "it is there".into() } else { s.reason.clone() };
            enter(state, sid, ServiceState::Started, &node, reason);
        }
        Ok((node, why)) => {
            enter(state, sid, ServiceState::Relocate, &seen.owner, format!("to '{node}': {why}"));
            set_target(state, sid, node);
        }
        Err(why) => set_reason(state, sid, format!("{WAITS}{why}")),
    }
    vec![]
}

fn set_target(state: &mut ManagerState, sid: ServiceId, node: NodeName) {
    if let Some(s) = state.service_status.get_mut(&sid) {
        s.target = Some(node);
    }
}

fn set_reason(state: &mut ManagerState, sid: ServiceId, reason: String) {
    if let Some(s) = state.service_status.get_mut(&sid) {
        s.reason = reason;
    }
}

/// The agent's word on this state, if it has one.
fn reported<'a>(view: &'a View, node: &NodeName, sid: ServiceId, uid: u64) -> Option<&'a Outcome> {
    view.nodes.get(node)?.agent.as_ref()?.services.get(&sid).filter(|r| r.uid == uid).map(|r| &r.outcome)
}

fn started(
    view: &View,
    state: &mut ManagerState,
    sid: ServiceId,
    seen: &ServiceView,
    s: &Service,
) -> Vec<Command> {
    if !wants_running(seen) {
        enter(
            state,
            sid,
            ServiceState::RequestStop,
            &s.node,
            format!("its user wants it {}", seen.resource.state.as_str()),
        );
        return vec![];
    }
    if let Some((id, target, relocate)) = request(view, sid) {
        return take_request(view, state, sid, s, id, target, relocate);
    }
    if let Some(Outcome::Failed(why)) = reported(view, &s.node, sid, s.uid) {
        let mut given_up = true;
        if let Some(kept) = state.service_status.get_mut(&sid) {
            kept.failed_nodes.insert(s.node.clone());
            kept.relocate_tries += 1;
            given_up = kept.relocate_tries > seen.resource.max_relocate;
        }
        let (to, why) = if given_up {
            (ServiceState::Error, format!("could not be started: {why}"))
        } else {
            (ServiceState::RequestStart, format!("could not be started on '{}': {why}", s.node))
        };
        enter(state, sid, to, &s.node, why);
        return vec![];
    }
    if seen.process == Process::Running && s.relocate_tries > 0 {
        clear_failures(state, sid);
    }
    if word(view, &s.node) == NodeWord::Online && seen.process == Process::Running {
        failback(view, state, sid, seen, s);
    }
    vec![]
}

/// Goes to a better node, by priority, when one is back; leaves a node that its rules forbid.
fn failback(view: &View, state: &mut ManagerState, sid: ServiceId, seen: &ServiceView, s: &Service) {
    if !seen.resource.failback {
        return;
    }
    if let Ok((node, why)) = choose(view, state, sid, Some(&s.node), &BTreeSet::new())
        && node != s.node
    {
        enter(state, sid, ServiceState::Migrate, &s.node, format!("to '{node}' by its rules: {why}"));
        set_target(state, sid, node);
    }
}

fn take_request(
    view: &View,
    state: &mut ManagerState,
    sid: ServiceId,
    s: &Service,
    id: &str,
    target: &NodeName,
    relocate: bool,
) -> Vec<Command> {
    let refuse = |reason: String| vec![Command::DropRequest { id: id.to_owned(), taken: false, reason }];
    if *target == s.node {
        return refuse(format!("it is on '{target}' already"));
    }
    if word(view, target) != NodeWord::Online {
        return refuse(format!("node '{target}' is not online"));
    }
    let to = if relocate { ServiceState::Relocate } else { ServiceState::Migrate };
    enter(state, sid, to, &s.node, format!("its user wants it on '{target}'"));
    set_target(state, sid, target.clone());
    vec![Command::DropRequest { id: id.to_owned(), taken: true, reason: "taken".into() }]
}

fn request_stop(
    view: &View,
    state: &mut ManagerState,
    sid: ServiceId,
    seen: &ServiceView,
    s: &Service,
) -> Vec<Command> {
    match reported(view, &s.node, sid, s.uid) {
        Some(Outcome::Done) => enter(state, sid, ServiceState::Stopped, &s.node, s.reason.clone()),
        Some(Outcome::Failed(why)) => {
            enter(state, sid, ServiceState::Error, &s.node, format!("could not be stopped: {why}"));
        }
        None if wants_running(seen) => {
            enter(state, sid, ServiceState::RequestStart, &s.node, "its user wants it started".into());
        }
        None => {}
    }
    vec![]
}

fn request(view: &View, sid: ServiceId) -> Option<(&str, &NodeName, bool)> {
    view.requests.iter().find_map(|(id, r)| match r {
        Request::Move { sid: s, target, relocate } if *s == sid => Some((id.as_str(), target, *relocate)),
        _ => None,
    })
}

fn stopped(
    view: &View,
    state: &mut ManagerState,
    sid: ServiceId,
    seen: &ServiceView,
    s: &Service,
) -> Vec<Command> {
    if wants_running(seen) {
        clear_failures(state, sid);
        enter(state, sid, ServiceState::RequestStart, &s.node, "its user wants it started".into());
        return vec![];
    }
    match request(view, sid) {
        // A stopped service is moved where its user asks, and stays stopped there.
        Some((id, target, _)) if *target != s.node => {
            enter(state, sid, ServiceState::Relocate, &s.node, format!("its user wants it on '{target}'"));
            set_target(state, sid, target.clone());
            vec![Command::DropRequest { id: id.into(), taken: true, reason: "taken".into() }]
        }
        Some((id, ..)) => {
            vec![Command::DropRequest { id: id.into(), taken: false, reason: "it is there already".into() }]
        }
        None => vec![],
    }
}

fn moving(
    view: &View,
    state: &mut ManagerState,
    sid: ServiceId,
    seen: &ServiceView,
    s: &Service,
) -> Vec<Command> {
    let after = if wants_running(seen) { ServiceState::Started } else { ServiceState::RequestStop };
    if seen.owner != s.node {
        enter(state, sid, after, &seen.owner, format!("moved from '{}': {}", s.node, s.reason));
    } else if let Some(Outcome::Failed(why)) = reported(view, &s.node, sid, s.uid) {
        enter(state, sid, after, &s.node, format!("could not be moved: {why}"));
    } else if s.target.as_ref().is_none_or(|t| word(view, t) == NodeWord::Lost) {
        enter(state, sid, after, &s.node, "the node that it was to move to is lost".into());
    }
    vec![]
}

fn recovery(
    view: &View,
    state: &mut ManagerState,
    sid: ServiceId,
    seen: &ServiceView,
    s: &Service,
) -> Vec<Command> {
    let after = if wants_running(seen) { ServiceState::Started } else { ServiceState::RequestStop };
    if word(view, &seen.owner) != NodeWord::Lost {
        let how = if seen.owner == s.node { "its node is back" } else { "recovered" };
        let reason = s.reason.split("; ").next().unwrap_or_default().to_owned();
        enter(state, sid, after, &seen.owner, format!("{reason}; {how}"));
        return vec![];
    }
    let cause = format!("node '{}' is lost", seen.owner);
    if seen.running && !seen.armed {
        let why = format!(
            "{cause}; waits: it may run there without a guard. Make sure that the node is off, then remove it from the cluster"
        );
        set_reason(state, sid, why);
        return vec![];
    }
    match choose(view, state, sid, None, &BTreeSet::new()) {
        Ok((to, why)) => {
            let reason = format!("{cause}; to '{to}': {why}");
            set_reason(state, sid, reason.clone());
            vec![Command::Recover {
                sid,
                from: seen.owner.clone(),
                to,
                epoch: seen.epoch,
                unlock: true,
                reason,
            }]
        }
        Err(why) => {
            set_reason(state, sid, format!("{cause}; waits: {why}"));
            vec![]
        }
    }
}
