//! A service's way through its states.

use super::{DISARMED, Round, WAITS};
use crate::agent::{AgentMode, Outcome};
use crate::history::Change;
use crate::placement::{Ask, shape};
use crate::state::{Command, NodeWord, Process, Request, Service, ServiceState, ServiceView};
use std::collections::BTreeSet;
use stead_model::ha_cfg::RequestedState;
use stead_model::{NodeName, ServiceId};

use ServiceState as S;

fn wants_running(seen: &ServiceView) -> bool {
    seen.resource.state == RequestedState::Started
}

/// The state that follows when a service has come to rest on a node.
fn after(seen: &ServiceView) -> ServiceState {
    if wants_running(seen) { S::Started } else { S::RequestStop }
}

/// Whether a lock of a configuration names a task that ended with its node and left nothing half done: what is recovered is
/// rid of it. Under any other lock a guest stays as it is, and its user decides.
pub fn lock_ends_with_its_node(lock: &str) -> bool {
    matches!(
        lock,
        "backup" | "clone" | "fstrim" | "migrate" | "mounted" | "snapshot" | "snapshot-delete" | "suspending"
    )
}

impl<'v> Round<'v, '_> {
    /// One change of a service's state, if there is reason for one.
    pub(super) fn advance(&mut self, sid: ServiceId, seen: &'v ServiceView) {
        let Some(service) = self.state.service_status.get(&sid).cloned() else { return };
        let lost = self.word(&seen.owner) == NodeWord::Lost;
        if lost && !matches!(service.state, S::Fence | S::Recovery | S::Error) {
            if !self.rests(sid, seen, &service) {
                let why = format!("node '{}' is lost", seen.owner);
                self.enter(sid, S::Fence, &seen.owner, None, why);
            }
            return;
        }
        if self.freezes(sid, seen, &service) {
            return;
        }
        match service.state {
            S::RequestStart => self.request_start(sid, seen, &service),
            S::Started => self.started(sid, seen, &service),
            S::RequestStop => self.request_stop(sid, seen, &service),
            S::Stopped => self.stopped(sid, seen, &service),
            S::Migrate | S::Relocate => self.moving(sid, seen, &service),
            S::Freeze => self.thaw(sid, seen, &service),
            S::Fence => self.enter(sid, S::Recovery, &service.node, None, service.reason.clone()),
            S::Recovery => self.recovery(sid, seen, &service),
            S::Error => self.error(sid, seen, &service),
        }
    }

    pub(super) fn set_reason(&mut self, sid: ServiceId, reason: String) {
        self.update(sid, |s| s.reason = reason);
    }

    /// What it waits for; the cause stays in front.
    pub(super) fn waits(&mut self, sid: ServiceId, s: &Service, why: &str) {
        let reason = format!("{}{WAITS}{why}", s.cause());
        // What was written when it began to wait stays, though a little more or less memory is free by now.
        if shape(&reason) == shape(&s.reason) {
            return;
        }
        let (at, node) = (self.now, s.node.clone());
        let change = Change { at, state: Some(s.state), node, target: None, reason: reason.clone() };
        self.out.push(Command::Record { sid, change });
        self.set_reason(sid, reason);
    }

    /// It waits no more.
    pub(super) fn waits_no_more(&mut self, sid: ServiceId, s: &Service) {
        if s.waits_for().is_some() {
            self.set_reason(sid, s.cause().to_owned());
        }
    }

    fn clear_failures(&mut self, sid: ServiceId) {
        self.update(sid, |s| {
            s.failed_nodes.clear();
            s.relocate_tries = 0;
        });
    }

    /// The agent's word on this state, if it has one.
    fn reported(&self, node: &NodeName, sid: ServiceId, uid: u64) -> Option<Outcome> {
        let agent = self.view.nodes.get(node)?.agent.as_ref()?;
        agent.services.get(&sid).filter(|r| r.uid == uid).map(|r| r.outcome.clone())
    }

    /// Whether a service stays where it is although its node is lost; notes why.
    fn rests(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) -> bool {
        let mode = self.state.memory(&seen.owner).mode;
        let known = self.view.nodes.contains_key(&seen.owner);
        if seen.resource.state == RequestedState::Disabled {
            if s.state != S::Stopped {
                self.enter(
                    sid,
                    S::Stopped,
                    &seen.owner,
                    None,
                    "disabled by its user; its node is lost".into(),
                );
            }
            return true;
        }
        if mode == AgentMode::Freeze && known {
            if s.state != S::Freeze {
                self.enter(sid, S::Freeze, &seen.owner, None, "its node went down and is awaited".into());
            }
            return true;
        }
        // Its node went down in order. It is needed elsewhere only when it is to run.
        s.state == S::Stopped && !wants_running(seen) && mode == AgentMode::Maintenance && known
    }

    /// Freezes what is on a node that restarts, or goes down and is awaited.
    fn freezes(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) -> bool {
        let why = match self.state.memory(&seen.owner).mode {
            AgentMode::Freeze => "its node goes down and is awaited",
            AgentMode::Restart => "its node's daemon restarts",
            _ => return false,
        };
        let freezable = matches!(s.state, S::RequestStart | S::Started | S::RequestStop | S::Stopped);
        if freezable {
            self.enter(sid, S::Freeze, &s.node, None, why.into());
        }
        freezable
    }

    /// A frozen service goes on when its node is there and takes part.
    fn thaw(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) {
        let mode = self.state.memory(&s.node).mode;
        self.refuse_requests(sid, "it is frozen");
        if self.word(&s.node) != NodeWord::Online || matches!(mode, AgentMode::Freeze | AgentMode::Restart) {
            return;
        }
        let why = if s.reason == DISARMED { "HA is armed again" } else { "its node takes part again" };
        self.enter(sid, after(seen), &s.node, None, why.into());
    }

    /// Requests about a service that cannot be met now, nor soon.
    pub(super) fn refuse_requests(&mut self, sid: ServiceId, why: &str) {
        for (id, _) in self.requests.remove(&sid).unwrap_or_default() {
            self.drop_request(id, false, why);
        }
    }

    /// Nothing can be done with it until something else has changed: a user's move has no end before, and is refused. Not at
    /// once, since what stands in the way may be on its own way to somewhere else.
    fn is_stuck(&mut self, sid: ServiceId, s: &Service, why: &str) {
        if s.waits_for().is_none() {
            return self.waits(sid, s, why);
        }
        let all = self.requests.remove(&sid).unwrap_or_default();
        let (moves, rest): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(_, r)| matches!(r, Request::Move { .. }));
        for (id, _) in moves {
            self.drop_request(id, false, format!("it waits: {why}"));
        }
        if !rest.is_empty() {
            self.requests.insert(sid, rest);
        }
        self.waits(sid, s, why);
    }

    /// Takes the requests to stop a service; the last one's time-out counts.
    fn take_stop(&mut self, sid: ServiceId) -> Option<u32> {
        let all = self.requests.remove(&sid)?;
        let mut timeout = None;
        let mut rest = vec![];
        for (id, request) in all {
            match request {
                Request::Stop { timeout: t, .. } => {
                    timeout = Some(*t);
                    self.drop_request(id, true, "taken");
                }
                _ => rest.push((id, request)),
            }
        }
        if !rest.is_empty() {
            self.requests.insert(sid, rest);
        }
        timeout
    }

    /// To be stopped, in the time that its user has named.
    fn stop(&mut self, sid: ServiceId, s: &Service, reason: String) {
        let timeout = self.take_stop(sid);
        self.enter(sid, S::RequestStop, &s.node, None, reason);
        self.update(sid, |s| s.timeout = timeout);
    }

    /// Which node, first of all: where it is if it may stay there.
    fn request_start(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) {
        if !wants_running(seen) {
            return self.stop(sid, s, format!("its user wants it {}", seen.resource.state.as_str()));
        }
        // To be started again before that was taken.
        self.take_stop(sid);
        let here = &seen.owner;
        if self.word(here) != NodeWord::Online {
            return self.is_stuck(sid, s, &format!("its node '{here}' is silent"));
        }
        if self.state.memory(here).mode == AgentMode::Shutdown {
            return self.is_stuck(sid, s, &format!("its node '{here}' goes down"));
        }
        // The record is older than no report: what may run is not moved as if it did not.
        if seen.process == Process::Running || (seen.running && s.failed_nodes.is_empty()) {
            self.enter(sid, S::Started, here, None, s.cause().to_owned());
            return self.places.starts(sid, here);
        }
        if let Some(why) = self.is_tied(seen, here) {
            return self.is_stuck(sid, s, &why);
        }
        let stay = !self.view.options.crs.rebalance_on_start;
        let ask = Ask {
            sid,
            here: Some(here),
            stay,
            content: stay && !seen.resource.failback,
            running: false,
            avoid: Some(&s.failed_nodes),
        };
        // Where no other node can take it, it is tried again where it failed; that counts as another try.
        let again = Ask { stay: true, avoid: None, ..ask };
        let choice = self.places.choose(&ask).or_else(|why| match s.failed_nodes.is_empty() {
            true => Err(why),
            false => self.places.choose(&again).map_err(|_| why),
        });
        match choice {
            Ok((node, _)) if node == *here => {
                self.enter(sid, S::Started, here, None, s.cause().to_owned());
                self.places.starts(sid, here);
            }
            Ok((node, why)) => {
                let reason = format!("{}; to '{node}': {why}", s.cause());
                self.go(sid, s, S::Relocate, node, reason);
            }
            Err(why) => self.is_stuck(sid, s, &why),
        }
    }

    fn started(&mut self, sid: ServiceId, seen: &'v ServiceView, s: &Service) {
        if !wants_running(seen) {
            return self.stop(sid, s, format!("its user wants it {}", seen.resource.state.as_str()));
        }
        if self.take_stop(sid).is_some() {
            return self.set_reason(sid, "started again before its stop was taken".into());
        }
        if let Some(Outcome::Failed(why)) = self.reported(&s.node, sid, s.uid) {
            return self.failed(sid, seen, s, &why);
        }
        if self.take_move(sid, seen, s) {
            return;
        }
        if seen.process == Process::Running && (s.relocate_tries > 0 || !s.failed_nodes.is_empty()) {
            self.clear_failures(sid);
        }
        if self.state.memory(&s.node).mode != AgentMode::Shutdown && !self.bears_loss(sid, seen, s) {
            self.improve(sid, seen, s);
        }
    }

    /// Its node has given up to start it.
    fn failed(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service, why: &str) {
        let limit = seen.resource.max_relocate;
        let tries = s.relocate_tries.min(limit).saturating_add(1);
        if tries > limit {
            let reason = format!(
                "could not be started: {why}. Find the cause, then set its state to 'disabled', and to 'started' again"
            );
            self.refuse_requests(sid, "it could not be started");
            self.enter(sid, S::Error, &s.node, None, reason);
        } else {
            let reason = format!("could not be started on '{}': {why}", s.node);
            self.enter(sid, S::RequestStart, &s.node, None, reason);
        }
        self.update(sid, |kept| {
            kept.failed_nodes.insert(s.node.clone());
            kept.relocate_tries = tries;
        });
    }

    fn request_stop(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) {
        match self.reported(&s.node, sid, s.uid) {
            Some(Outcome::Done) => {
                self.enter(sid, S::Stopped, &s.node, None, s.cause().to_owned());
            }
            Some(Outcome::Failed(why)) => {
                self.refuse_requests(sid, "it could not be stopped");
                let reason = format!(
                    "could not be stopped: {why}. End it by hand, or set its state to 'disabled' to have it tried again"
                );
                self.enter(sid, S::Error, &s.node, None, reason);
            }
            None if wants_running(seen) => {
                self.enter(sid, S::RequestStart, &s.node, None, "its user wants it started".into());
            }
            // A harder stop than the one that is under way.
            None => {
                if let Some(timeout) = self.take_stop(sid) {
                    let reason = s.reason.clone();
                    self.enter(sid, S::RequestStop, &s.node, None, reason);
                    self.update(sid, |s| s.timeout = Some(timeout));
                }
            }
        }
    }

    fn stopped(&mut self, sid: ServiceId, seen: &'v ServiceView, s: &Service) {
        if wants_running(seen) {
            // Begun anew where it is; how often it may still be relocated counts on until it runs.
            self.update(sid, |s| s.failed_nodes.clear());
            return self.enter(sid, S::RequestStart, &s.node, None, "its user wants it started".into());
        }
        if seen.process == Process::Running {
            return self.stop(sid, s, "it runs, but is to be stopped".into());
        }
        self.take_stop(sid);
        self.take_move(sid, seen, s);
    }

    fn moving(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) {
        let after = after(seen);
        if seen.owner != s.node {
            let reason = format!("moved from '{}': {}", s.node, s.reason);
            self.enter(sid, after, &seen.owner, None, reason);
            self.update(sid, |s| {
                s.retry_at = None;
                s.maintenance_node = s.maintenance_node.take().filter(|m| *m != s.node);
            });
        } else if let Some(Outcome::Failed(why)) = self.reported(&s.node, sid, s.uid) {
            self.enter(sid, after, &s.node, None, format!("could not be moved: {why}"));
            let retry = self.now + super::moves::RETRY;
            self.update(sid, |s| s.retry_at = Some(retry));
        } else if s.target.as_ref().is_none_or(|t| self.word(t) == NodeWord::Lost) {
            self.enter(sid, after, &s.node, None, "the node that it was to move to is lost".into());
        }
    }

    fn recovery(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) {
        let cause = s.cause();
        if self.word(&seen.owner) != NodeWord::Lost {
            let how = if seen.owner == s.node { "; its node is back" } else { "; recovered" };
            return self.enter(sid, after(seen), &seen.owner, None, format!("{cause}{how}"));
        }
        if seen.resource.state == RequestedState::Disabled {
            let reason = "disabled by its user; its node is lost".into();
            return self.enter(sid, S::Stopped, &seen.owner, None, reason);
        }
        if seen.running && !seen.armed {
            let why = format!(
                "it may run there without a guard. Make sure that the node is off, then say so: \
                 'stead node confirm-off {}'",
                seen.owner
            );
            self.update(sid, |s| s.target = None);
            return self.is_stuck(sid, s, &why);
        }
        let nowhere = BTreeSet::new();
        let ask = Ask { sid, here: None, stay: false, content: false, running: false, avoid: Some(&nowhere) };
        // Chosen before: it stays chosen, unless something speaks against it by now.
        let kept = s.target.clone().filter(|t| {
            let ask = Ask { here: Some(t), stay: true, running: true, ..ask };
            self.places.fits(&ask, t)
        });
        if let Some(to) = kept {
            let unlock = seen.lock.as_deref().is_some_and(lock_ends_with_its_node);
            let (from, epoch, reason) = (seen.owner.clone(), seen.epoch, s.reason.clone());
            self.out.push(Command::Recover { sid, from, to, epoch, unlock, reason });
            return;
        }
        match self.places.choose(&ask) {
            // Its commit follows when this is noted.
            Ok((to, why)) => {
                self.places.goes(sid, None, &to);
                let first = cause.split("; to '").next().unwrap_or_default();
                self.enter(sid, S::Recovery, &s.node, Some(to.clone()), format!("{first}; to '{to}': {why}"));
            }
            Err(why) => {
                self.update(sid, |s| s.target = None);
                self.is_stuck(sid, s, &why);
            }
        }
    }

    /// Left only by disabling: when it is stopped. Until then its agent tries to stop it.
    fn error(&mut self, sid: ServiceId, seen: &ServiceView, s: &Service) {
        self.refuse_requests(sid, "it is in error: set its state to 'disabled' first");
        if seen.resource.state != RequestedState::Disabled {
            return;
        }
        if self.word(&seen.owner) == NodeWord::Lost || seen.process == Process::Absent {
            self.enter(sid, S::Stopped, &seen.owner, None, "disabled by its user".into());
        } else {
            self.waits(sid, s, "disabled by its user, but it still runs");
        }
    }
}
