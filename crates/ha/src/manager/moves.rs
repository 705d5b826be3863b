//! Moves: those that users ask for, those that rules, maintenance and failback ask for, and those that even out the load.

use super::Round;
use crate::balance;
use crate::placement::Ask;
use crate::state::{NodeWord, Process, Request, Service, ServiceState, ServiceView};
use stead_model::{GuestKind, NodeName, ServiceId};

use ServiceState as S;

/// After a move failed the manager tries none of its own for so long, seconds.
pub(super) const RETRY: u64 = 20;

/// How a service moves: only a VM moves while it runs.
fn how(sid: ServiceId, running: bool, relocate: bool) -> ServiceState {
    if running && !relocate && sid.kind == GuestKind::Qemu { S::Migrate } else { S::Relocate }
}

impl<'v> Round<'v, '_> {
    /// Sends a service to another node. One that leaves a node that is to be empty is to come back.
    pub(super) fn go(
        &mut self,
        sid: ServiceId,
        s: &Service,
        how: ServiceState,
        to: NodeName,
        reason: String,
    ) {
        self.places.goes(sid, Some(&s.node), &to);
        self.enter(sid, how, &s.node, Some(to), reason);
        let drains = self.draining.contains(&s.node);
        self.update(sid, |kept| {
            if drains && kept.maintenance_node.is_none() {
                kept.maintenance_node = Some(s.node.clone());
            }
        });
    }

    /// Takes the next request to move a service that is at rest. Returns whether that is all for now: it
    /// goes, or waits for those that go with it.
    pub(super) fn take_move(&mut self, sid: ServiceId, seen: &'v ServiceView, s: &Service) -> bool {
        let next = self.requests.get(&sid).and_then(|all| {
            all.iter().find_map(|(id, r)| match r {
                Request::Move { target, relocate, .. } => Some((*id, target, *relocate)),
                _ => None,
            })
        });
        let Some((id, target, relocate)) = next else { return false };
        let party = self.party(sid, s.state);
        let unready = |m: &&ServiceId| self.state.service_status.get(m).is_some_and(|o| o.state != s.state);
        if let Some(other) = party.iter().find(unready) {
            if let Some(what) = self.state.service_status.get(other).and_then(Service::waits_for) {
                let why = format!("{other}, which goes with it, waits: {what}");
                self.take_request(sid, id);
                self.drop_request(id, false, why);
                return false;
            }
            let why = format!("the request to move it: {other}, which goes with it, is not at rest");
            self.waits(sid, s, &why);
            return true;
        }
        self.take_request(sid, id);
        if let Err(why) = self.may_move(sid, seen, s, &party, target) {
            self.drop_request(id, false, why.clone());
            return false;
        }
        self.drop_request(id, true, "taken");
        let view = self.view;
        for member in party {
            let (Some(seen), Some(other)) =
                (view.services.get(&member), self.state.service_status.get(&member).cloned())
            else {
                continue;
            };
            if other.node == *target {
                continue;
            }
            let reason = if member == sid {
                format!("its user wants it on '{target}'")
            } else {
                format!("to '{target}' together with {sid}, which its user wants there")
            };
            let running = seen.process != Process::Absent && other.state == S::Started;
            self.go(member, &other, how(member, running, relocate), target.clone(), reason);
            self.update(member, |s| s.maintenance_node = None);
        }
        true
    }

    fn take_request(&mut self, sid: ServiceId, id: &str) {
        if let Some(all) = self.requests.get_mut(&sid) {
            all.retain(|(other, _)| *other != id);
        }
    }

    /// Who moves with a service: those of its unit that are to run. One that is stopped moves alone.
    fn party(&self, sid: ServiceId, state: ServiceState) -> Vec<ServiceId> {
        let Some((_, members)) = self.places.unit(sid).filter(|_| state == S::Started) else {
            return vec![sid];
        };
        let goes = |m: &&ServiceId| {
            self.state.service_status.get(m).is_some_and(|s| !matches!(s.state, S::Stopped | S::Error))
        };
        members.iter().filter(goes).copied().collect()
    }

    /// Whether a user's move can be done, and would last.
    fn may_move(
        &self,
        sid: ServiceId,
        seen: &ServiceView,
        s: &Service,
        party: &[ServiceId],
        target: &NodeName,
    ) -> Result<(), String> {
        let there = |m: &ServiceId| self.state.service_status.get(m).is_some_and(|o| o.node == *target);
        if *target == s.node && party.iter().all(there) {
            return Err(format!("it is on '{target}' already"));
        }
        if self.word(target) != NodeWord::Online {
            return Err(format!("node '{target}' is not online"));
        }
        let tied = |m: &ServiceId| {
            let seen = self.view.services.get(m)?;
            self.is_tied(seen, &seen.owner)
        };
        if let Some(why) = party.iter().find_map(tied) {
            return Err(format!("it can't leave '{}': {why}", s.node));
        }
        let open = |n: &NodeName| self.places.at(n).is_some_and(|i| self.places.nodes[i].open);
        if !open(target) {
            return Err(format!("node '{target}' is in maintenance, or goes down"));
        }
        if let Some(why) = self.places.wants_storage(sid, target) {
            return Err(format!("node '{target}' can't run it: {why}"));
        }
        if let Some(rule) = self.places.kept_apart(sid, target).filter(|_| s.state == S::Started) {
            return Err(format!("rule '{rule}' keeps it from '{target}', where another of its resources is"));
        }
        if let Some(rule) = self.places.node_rule(sid) {
            let rank = rule.rank(target);
            if rule.strict && rank.is_none() {
                return Err(format!("its rule '{}' does not allow '{target}'", rule.id));
            }
            let ranks = self.places.nodes.iter().filter(|p| p.open).filter_map(|p| rule.rank(p.name));
            let best = ranks.min();
            if s.state == S::Started && seen.resource.failback && best.is_some() && rank != best {
                return Err(format!(
                    "by its rule '{}' and failback it would come back from '{target}' at once: switch failback off, or change \
                     the rule",
                    rule.id
                ));
            }
        }
        Ok(())
    }

    /// Goes to a better node by its rules; leaves one that is to be empty, and comes back when that is over.
    pub(super) fn improve(&mut self, sid: ServiceId, seen: &'v ServiceView, s: &Service) {
        let drains = self.draining.contains(&s.node);
        let idle = match seen.process {
            Process::Running => false,
            Process::Absent => !drains,
            Process::Unknown => true,
        };
        if idle || self.word(&s.node) != NodeWord::Online || s.retry_at.is_some_and(|t| t > self.now) {
            return;
        }
        let running = seen.process == Process::Running;
        self.update(sid, |s| s.retry_at = None);
        let ask = Ask {
            sid,
            here: Some(&s.node),
            stay: true,
            content: !seen.resource.failback,
            running,
            avoid: Some(&s.failed_nodes),
        };
        if let Some(home) = self.home(sid, s, &ask) {
            let reason = format!("back to '{home}': its maintenance is over");
            return self.go(sid, s, how(sid, running, false), home, reason);
        }
        match self.places.choose(&ask) {
            Ok((node, _)) if node == s.node => self.waits_no_more(sid, s),
            Ok((node, why)) if drains => {
                let reason = format!("'{}' is to be empty; to '{node}': {why}", s.node);
                self.go(sid, s, how(sid, running, false), node, reason);
            }
            Ok((node, why)) => {
                self.go(
                    sid,
                    s,
                    how(sid, running, false),
                    node.clone(),
                    format!("to '{node}' by its rules: {why}"),
                );
            }
            Err(why) if drains => self.waits(sid, s, &format!("'{}' is to be empty, but {why}", s.node)),
            Err(why) => self.waits(sid, s, &format!("its rules want it elsewhere, but {why}")),
        }
    }

    /// The node that it left for maintenance, if it can go back there now; forgets it if it is there, or will not go back.
    fn home(&mut self, sid: ServiceId, s: &Service, ask: &Ask<'_>) -> Option<NodeName> {
        let home = s.maintenance_node.clone()?;
        let number = self.places.at(&home);
        if home == s.node || number.is_none() {
            self.update(sid, |s| s.maintenance_node = None);
            return None;
        }
        if !number.is_some_and(|n| self.places.nodes[n].open) {
            return None;
        }
        // Those that are to be together go back together, or not at all.
        let with_it = |m: &ServiceId| {
            self.state.service_status.get(m).is_none_or(|o| {
                o.maintenance_node.as_ref() == Some(&home)
                    || o.target.as_ref().unwrap_or(&o.node) == &home
                    || matches!(o.state, S::Stopped | S::Error)
            })
        };
        let together = self.places.unit(sid).is_none_or(|(_, members)| members.iter().all(with_it));
        let here = self.places.at(&s.node);
        let better = match (number, here) {
            (Some(home), Some(here)) => self.places.as_good(sid, home, here),
            _ => true,
        };
        if together && better && self.places.fits(ask, &home) {
            return Some(home);
        }
        if !together || !better {
            self.update(sid, |s| s.maintenance_node = None);
        }
        None
    }

    /// Evens out the load by one move, when it has been uneven for long enough and nothing else is under way.
    pub(super) fn balance(&mut self) {
        let Some(auto) = self.view.options.crs.auto else {
            return self.assign(|s| &mut s.imbalanced_since, None);
        };
        let imbalance = balance::imbalance(&self.places, self.view.options.crs.mode);
        let since = (imbalance > auto.threshold).then(|| self.state.imbalanced_since.unwrap_or(self.now));
        self.assign(|s| &mut s.imbalanced_since, since);
        let held = since
            .is_some_and(|since| self.now.saturating_sub(since) as f64 >= auto.hold * self.view.round as f64);
        let at_rest = |s: &Service| !matches!(s.state, S::Migrate | S::Relocate | S::Fence | S::Recovery);
        if !held || !self.state.service_status.values().all(at_rest) {
            return;
        }
        let Some(best) = balance::best(self.view, self.state, &self.places, &auto) else { return };
        let to = self.places.nodes[best.to].name.clone();
        for sid in best.members {
            let Some(s) = self.state.service_status.get(&sid).cloned() else { continue };
            let reason = format!(
                "to '{to}': evens out the load (imbalance {:.0} % → {:.0} %, more than {:.0} % since {} s)",
                best.before * 100.0,
                best.after * 100.0,
                auto.threshold * 100.0,
                self.now.saturating_sub(since.unwrap_or(self.now)),
            );
            self.go(sid, &s, how(sid, true, false), to.clone(), reason);
        }
        self.assign(|s| &mut s.imbalanced_since, None);
    }
}
