//! When which part of the cluster must be held against the invariants.
//!
//! They must hold after every event, and nearly every event concerns one machine. A guest can begin to execute where it must not by
//! what happens on its machine, by a commit, or as time passes: a machine that stood still goes on, a lease has ended for
//! too long. So after an event its machine is looked at, and all of them after whatever may concern more.

use super::invariants;
use super::node::Node;
use super::world::{Event, World};
use std::time::Duration;
use stead_model::Vmid;

/// What was looked at.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watch {
    /// Every commit up to this one.
    seen: usize,
    /// All machines must be looked at again by then, since time alone may have changed what holds.
    next: Duration,
}

/// Its invariant is broken after this moment.
pub(super) fn grace(node: &Node) -> Duration {
    node.lease_ends + node.times.0 + node.times.1 + invariants::leased::ROUNDING
}

impl Event {
    /// The machine that it concerns, if it is one alone.
    pub fn place(&self) -> Option<usize> {
        match self {
            Self::Tick { node, .. }
            | Self::Fence { node, .. }
            | Self::Call { node, .. }
            | Self::Job { node, .. }
            | Self::Cont { node, .. }
            | Self::Watchdog { node, .. }
            | Self::Launched { node, .. }
            | Self::Resume { node, .. }
            | Self::PowerOn { node }
            | Self::Restore { node }
            | Self::StartFenced { node, .. }
            | Self::Restarts { node, .. }
            | Self::StartDaemon { node, .. }
            | Self::Stopping { node, .. }
            | Self::Enters { node, .. }
            | Self::Sent { node, .. }
            | Self::Streamed { node, .. }
            | Self::Driver { node, .. } => Some(*node),
            Self::Deliver { to, .. } => Some(*to),
            // An agent strikes one machine and answers another.
            Self::Act(_) | Self::Edits | Self::Commit { .. } | Self::Look | Self::Agent { .. } => None,
        }
    }
}

impl World {
    /// Holds what an event may have changed against the invariants.
    pub fn check_after(&mut self, place: Option<usize>) {
        let place = place.filter(|_| self.watch.seen == self.store.last() && self.now < self.watch.next);
        if let Some(node) = place {
            let doubtful = self.is_doubtful(node);
            self.watch.next = self.watch.next.min(grace(&self.nodes[node]) + Duration::from_nanos(1));
            if !doubtful {
                return;
            }
        }
        let now = self.now;
        let resumes = self.nodes.iter().map(|n| n.paused_until).filter(|at| *at > now);
        let graces =
            self.nodes.iter().map(grace).filter(|at| *at >= now).map(|at| at + Duration::from_nanos(1));
        let next = resumes.chain(graces).min().unwrap_or(Duration::MAX);
        self.watch = Watch { seen: self.store.last(), next };
        if place.is_none() && !(0..self.nodes.len()).any(|n| self.is_doubtful(n)) {
            return;
        }
        let broken = invariants::ALL.iter().find_map(|(name, check)| Some((*name, check(self)?)));
        if let Some((name, how)) = broken {
            self.breaks(name, how);
        }
    }

    /// Whether a guest executes here that is another node's, or that must stand. A guest that runs twice runs on one that does
    /// not own it.
    fn is_doubtful(&self, node: usize) -> bool {
        let (n, tree) = (&self.nodes[node], self.store.newest());
        if n.copies.is_empty() || !n.executes(self.now) {
            return false;
        }
        let over = self.now > grace(n);
        let wrong = |(vmid, copy): (&Vmid, &super::node::Copy)| {
            copy.running
                && !copy.frozen
                && (over
                    || tree.owners.get(vmid).is_none_or(|own| own.epoch != copy.epoch || own.owner != n.name))
        };
        n.copies.iter().any(wrong)
    }
}
