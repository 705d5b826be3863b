//! The manager's decisions: one *round* over everything.
//!
//! A round notes what nodes are up to, takes requests about nodes and about HA as a whole ([`cluster`]), notes where services
//! are, takes every service through its states ([`service`]) and its moves ([`moves`]), and at last evens out the load. All
//! changes of a service go through [`Round::enter`], which gives the new state its number and its line in the history.

use crate::history::Change;
use crate::placement::{Places, Resting};
use crate::rules::Rules;
use crate::state::{
    Command, ManagerState, NodeWord, Process, Request, Service, ServiceState, ServiceView, View,
};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use stead_model::ha_cfg::RequestedState;
use stead_model::{GuestKind, NodeName, ServiceId};

mod cluster;
mod moves;
mod service;
mod storages;

pub use service::lock_ends_with_its_node;

/// Before the part of a reason that says for what a service waits.
const WAITS: &str = "; waits: ";
/// Why a service is frozen while HA is disarmed.
const DISARMED: &str = "HA is disarmed";

/// Decides once. `now`: seconds since 1970; it is shown to people, and counts the time for which an imbalance lasts.
/// Returns what to do; `state` is to be committed if it changed, with the removed requests and the recorded changes, *before*
/// the other commands are carried out.
pub fn step(now: u64, view: &View, state: &mut ManagerState) -> Vec<Command> {
    let names = view.nodes.keys().cloned().collect();
    let rules = Rules::compile(&view.rules, &names);
    step_beside(now, view, state, &rules, &Resting::new()).0
}

/// [`step`] beside services that are in neither view nor state, since the round would leave them as they are: only what they
/// mean for their nodes counts. `rules`: the view's, compiled. Returns whether the state has changed, too.
pub(crate) fn step_beside(
    now: u64,
    view: &View,
    state: &mut ManagerState,
    rules: &Rules,
    resting: &Resting,
) -> (Vec<Command>, bool) {
    let mut clerk = Clerk { now, view, state, out: vec![], changed: false };
    clerk.assign(|s| &mut s.version, 1);
    clerk.assign(|s| &mut s.master_node, Some(view.me.clone()));
    clerk.assign(|s| &mut s.rule_errors, rules.errors.clone());
    clerk.note_nodes();
    clerk.take_requests();
    clerk.admit();
    clerk.follow();
    let closed = clerk.closed();
    let places = Places::new(view, clerk.state, rules, &closed, resting);
    let requests = requests(view);
    let mut round = Round { clerk, places, requests, draining: BTreeSet::new() };
    round.draining = round.view.nodes.keys().filter(|n| round.drains(n)).cloned().collect();
    round.run();
    let mut clerk = round.clerk;
    clerk.end_disarming();
    clerk.show_nodes();
    if clerk.changed {
        clerk.state.timestamp = now;
    }
    (clerk.out, clerk.changed)
}

/// All services that HA does not ignore: containers, then VMs, each by number.
pub(crate) fn in_order(view: &View) -> impl Iterator<Item = (ServiceId, &ServiceView)> {
    let of = move |kind| {
        let kept = move |(sid, seen): (&ServiceId, &_)| sid.kind == kind && !is_ignored(seen);
        view.services.iter().filter(move |(sid, seen)| kept((sid, seen))).map(|(sid, seen)| (*sid, seen))
    };
    of(GuestKind::Lxc).chain(of(GuestKind::Qemu))
}

impl Service {
    /// Why it is in its state.
    fn cause(&self) -> &str {
        self.reason.split(WAITS).next().unwrap_or_default()
    }

    /// What it was found to wait for, in an earlier round.
    fn waits_for(&self) -> Option<&str> {
        self.reason.split_once(WAITS).map(|(_, why)| why)
    }
}

fn is_ignored(seen: &ServiceView) -> bool {
    seen.resource.state == RequestedState::Ignored
}

/// Requests about services, by service, in their order.
fn requests(view: &View) -> HashMap<ServiceId, Vec<(&str, &Request)>> {
    let mut out: HashMap<ServiceId, Vec<_>> = HashMap::new();
    for (id, request) in &view.requests {
        if let Request::Move { sid, .. } | Request::Stop { sid, .. } = request {
            out.entry(*sid).or_default().push((id.as_str(), request));
        }
    }
    out
}

/// Most services most of the time: as wanted, where wanted, with nothing to look at. That no rule and no request names it must be
/// known.
pub(crate) fn is_quiet(view: &View, state: &ManagerState, sid: ServiceId, seen: &ServiceView) -> bool {
    let Some(s) = state.service_status.get(&sid) else { return false };
    let as_wanted = match s.state {
        ServiceState::Started => {
            seen.process == Process::Running
                && seen.resource.state == RequestedState::Started
                && s.relocate_tries == 0
                && s.failed_nodes.is_empty()
        }
        ServiceState::Stopped => {
            seen.process != Process::Running && seen.resource.state != RequestedState::Started
        }
        _ => false,
    };
    as_wanted
        && s.maintenance_node.is_none()
        && s.retry_at.is_none()
        && seen.owner == s.node
        && s.waits_for().is_none()
        && !state.node_memory.contains_key(&s.node)
        && view.nodes.get(&s.node).is_some_and(|n| {
            n.word == NodeWord::Online
                && n.lost_disk(seen).is_none()
                && n.agent.as_ref().is_none_or(|a| !a.services.contains_key(&sid))
        })
}

/// Who writes: the state, and what is to be done.
struct Clerk<'v, 's> {
    now: u64,
    view: &'v View,
    state: &'s mut ManagerState,
    out: Vec<Command>,
    changed: bool,
}

impl Clerk<'_, '_> {
    /// Sets a part of the state, and notes whether that changed it.
    fn assign<T: PartialEq>(&mut self, part: impl FnOnce(&mut ManagerState) -> &mut T, value: T) {
        let part = part(self.state);
        if *part != value {
            *part = value;
            self.changed = true;
        }
    }

    fn drop_request(&mut self, id: &str, taken: bool, reason: impl Into<String>) {
        self.out.push(Command::DropRequest { id: id.to_owned(), taken, reason: reason.into() });
    }

    /// A node's word. One that was removed was either empty or recovered before; its guests are nobody's.
    fn word(&self, node: &NodeName) -> NodeWord {
        self.view.nodes.get(node).map_or(NodeWord::Lost, |n| n.word)
    }

    /// Forgets what is no resource any more, and begins with what has become one.
    fn admit(&mut self) {
        let view = self.view;
        let gone = |sid: &ServiceId| view.services.get(sid).is_none_or(is_ignored);
        let forgotten: Vec<ServiceId> = self.state.service_status.keys().copied().filter(gone).collect();
        for sid in forgotten {
            let ignored = view.services.contains_key(&sid);
            self.forget(sid, if ignored { "its user wants it ignored" } else { "taken out of HA" });
        }
        if self.state.disarm.is_some() {
            return;
        }
        for (sid, seen) in in_order(view) {
            if !self.state.service_status.contains_key(&sid) {
                let first = match seen.resource.state {
                    RequestedState::Started => ServiceState::RequestStart,
                    _ => ServiceState::RequestStop,
                };
                self.enter(sid, first, &seen.owner, None, "added to HA".into());
            }
        }
    }

    /// Notes where services at rest are: moved by hand, or handed over without the manager having seen it yet. The record is what
    /// counts, and for every choice of the round: so all are noted before anything is counted or chosen.
    fn follow(&mut self) {
        if self.state.disarm.is_some_and(|d| d.ready) {
            return;
        }
        let view = self.view;
        let moved = |(sid, s): (&ServiceId, &Service)| {
            let owner = &view.services.get(sid)?.owner;
            let rests =
                !s.state.is_move() && !matches!(s.state, ServiceState::Fence | ServiceState::Recovery);
            (rests && *owner != s.node && self.word(owner) != NodeWord::Lost)
                .then_some((*sid, s.state, owner))
        };
        let moved: Vec<(ServiceId, ServiceState, &NodeName)> =
            self.state.service_status.iter().filter_map(moved).collect();
        for (sid, state, owner) in moved {
            self.enter(sid, state, owner, None, format!("it is on '{owner}'"));
        }
    }

    /// HA lets go of a service.
    fn forget(&mut self, sid: ServiceId, reason: &str) {
        if let Some(s) = self.state.service_status.remove(&sid) {
            let change =
                Change { at: self.now, state: None, node: s.node, target: None, reason: reason.into() };
            self.out.push(Command::Record { sid, change });
            self.changed = true;
        }
    }

    fn enter(
        &mut self,
        sid: ServiceId,
        to: ServiceState,
        node: &NodeName,
        target: Option<NodeName>,
        reason: String,
    ) {
        self.state.last_uid += 1;
        self.changed = true;
        let (uid, node) = (self.state.last_uid, node.clone());
        let change = Change {
            at: self.now,
            state: Some(to),
            node: node.clone(),
            target: target.clone(),
            reason: reason.clone(),
        };
        self.out.push(Command::Record { sid, change });
        match self.state.service_status.get_mut(&sid) {
            Some(s) => {
                (s.state, s.node, s.target, s.uid, s.reason) = (to, node, target, uid, reason);
                s.timeout = None;
            }
            None => {
                let service = Service {
                    state: to,
                    node,
                    target,
                    uid,
                    reason,
                    failed_nodes: BTreeSet::new(),
                    relocate_tries: 0,
                    maintenance_node: None,
                    timeout: None,
                    retry_at: None,
                };
                self.state.service_status.insert(sid, service);
            }
        }
    }

    /// Changes what is remembered of a service without giving it another state.
    fn update(&mut self, sid: ServiceId, change: impl FnOnce(&mut Service)) {
        if let Some(s) = self.state.service_status.get_mut(&sid) {
            let was = s.clone();
            change(s);
            self.changed |= *s != was;
        }
    }
}

/// A round over the services.
struct Round<'v, 's> {
    clerk: Clerk<'v, 's>,
    places: Places<'v>,
    requests: HashMap<ServiceId, Vec<(&'v str, &'v Request)>>,
    /// Nodes that are being emptied.
    draining: BTreeSet<NodeName>,
}

impl<'v, 's> std::ops::Deref for Round<'v, 's> {
    type Target = Clerk<'v, 's>;
    fn deref(&self) -> &Self::Target {
        &self.clerk
    }
}

impl std::ops::DerefMut for Round<'_, '_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.clerk
    }
}

impl<'v> Round<'v, '_> {
    fn run(&mut self) {
        let view = self.view;
        if self.state.disarm.is_some() {
            self.disarm(view);
        } else {
            for (sid, seen) in in_order(view) {
                self.settle(sid, seen);
            }
            self.balance();
        }
        self.refuse_leftovers();
    }

    /// Takes a service through as many states as it passes at once; a bound ends a defect.
    fn settle(&mut self, sid: ServiceId, seen: &'v ServiceView) {
        if self.is_quiet(sid, seen) {
            return;
        }
        for _ in 0..8 {
            let was = self.state.service_status.get(&sid).map(|s| s.uid);
            self.advance(sid, seen);
            if self.state.service_status.get(&sid).map(|s| s.uid) == was {
                break;
            }
        }
    }

    fn is_quiet(&self, sid: ServiceId, seen: &ServiceView) -> bool {
        let named = self.places.ruled(sid) || self.requests.contains_key(&sid);
        !named && is_quiet(self.view, self.state, sid, seen)
    }

    /// Requests about services that HA does not know.
    fn refuse_leftovers(&mut self) {
        let unknown: BTreeMap<&str, ServiceId> = self
            .requests
            .iter()
            .filter(|(sid, _)| !self.state.service_status.contains_key(sid))
            .flat_map(|(sid, all)| all.iter().map(|(id, _)| (*id, *sid)))
            .collect();
        for (id, sid) in unknown {
            let why = match (self.state.disarm, self.view.services.contains_key(&sid)) {
                (Some(_), true) => "HA is disarmed".to_owned(),
                (None, true) => format!("HA ignores {sid}"),
                (_, false) => format!("{sid} is no HA resource"),
            };
            self.drop_request(id, false, why);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
