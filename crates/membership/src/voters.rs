//! Who votes: the members of Raft are kept in line with the cluster's nodes, one change at a time.
//!
//! A node that is recorded and not yet a member becomes a learner; learners become voters where votes are wanted; a voter
//! that has been silent for [`REPLACE_AFTER`] gives its vote to a learner that has not, so that the next loss finds a full
//! number of votes; members without a record go. A node that left Raft by its own wish stays out, also where its
//! record is still there since a leader died in between.
//!
//! Where it is said where nodes stand ([`Place`]), votes are spread over sites, and over racks second: whoever gets or
//! loses a vote is chosen so, and a vote moves for that alone, too. That happens only while every voter answers, only if the votes are
//! better spread afterwards, and only when it has been called for all of [`UNEVEN`]: as every step leaves them better spread than
//! before, there is an end to it. The leader's own vote never moves, and need not: of the best spreads one always has it (a domain gets
//! none only where there are more domains than votes, and then it is all the same which).

pub mod spread;

use self::spread::{Domains, Unevenness};
use crate::Moment;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stead_model::{NodeName, NodeRecord, Place, RaftId};

/// The most voters that there are.
pub const MAX_VOTERS: usize = 7;
/// A voter that has answered nothing for so long loses its vote, if another node can have it. Longer than a machine takes
/// to boot: a restart moves no votes.
pub const REPLACE_AFTER: Duration = Duration::from_secs(300);
/// For so long the same move of a vote must be called for by where nodes stand alone: who says that of many nodes, one after another,
/// moves no votes to and fro.
pub const UNEVEN: Duration = Duration::from_secs(10);

/// What to change next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Takes a node in, without a vote.
    AddLearner(RaftId),
    /// Gives it a vote.
    Promote(RaftId),
    /// Takes its vote.
    Demote(RaftId),
    /// Gives one node's vote to another.
    Replace {
        /// Who loses it.
        old: RaftId,
        /// Who gets it.
        new: RaftId,
    },
    /// Takes a node out for good.
    Remove(RaftId),
}

/// How long voters are waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// After so long a voter that answers nothing loses its vote.
    pub silent: Duration,
    /// After so long a vote moves to where it is better spread.
    pub uneven: Duration,
}

impl Patience {
    /// With silent voters for so long, and at most so long with where votes lie.
    pub fn of(silent: Duration) -> Self {
        Self { silent, uneven: UNEVEN.min(silent) }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::of(REPLACE_AFTER)
    }
}

/// What the leader knows of Raft's members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Members {
    /// The leader's own number.
    pub me: RaftId,
    /// Who votes.
    pub voters: Vec<RaftId>,
    /// Who does not.
    pub learners: Vec<RaftId>,
    /// Who has answered of late.
    pub active: BTreeSet<RaftId>,
    /// Who answers and holds nearly all of the log.
    pub caught_up: BTreeSet<RaftId>,
}

/// How many voters a number of nodes has: odd, at most [`MAX_VOTERS`]. Two nodes both vote, so that what is acknowledged
/// lies on two disks.
pub fn wanted_voters(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes,
        n => (n - (n + 1) % 2).min(MAX_VOTERS),
    }
}

/// The leader's memory. A new leader, and one that leads again, waits anew.
#[derive(Debug, Clone, Default)]
pub struct Voters {
    patience: Patience,
    silent_since: BTreeMap<RaftId, Moment>,
    left: BTreeSet<RaftId>,
    /// What would spread the votes better, and since when.
    called_for: Option<(Moment, Change)>,
}

/// The cluster as the leader sees it.
struct Seen<'a> {
    nodes: &'a [NodeRecord],
    raft: &'a Members,
    domains: Domains,
}

impl Voters {
    /// One that waits so long.
    pub fn new(patience: Patience) -> Self {
        Self { patience, ..Self::default() }
    }

    /// A node turned out to have been a member once that never will be again.
    pub fn has_left(&mut self, id: RaftId) {
        self.left.insert(id);
    }

    /// This node does not lead (any more): it hears nobody.
    pub fn not_leading(&mut self) {
        self.silent_since.clear();
        self.called_for = None;
    }

    /// The one next change, if one is due. One at a time: each is committed before the next is thought of.
    pub fn next(
        &mut self,
        now: Moment,
        nodes: &[NodeRecord],
        places: &BTreeMap<NodeName, Place>,
        raft: &Members,
    ) -> Option<Change> {
        self.listen(now, raft);
        let called_for = self.called_for.take();
        let known = |id: RaftId| nodes.iter().any(|n| n.raft_id == id);
        let member = |id: RaftId| raft.voters.contains(&id) || raft.learners.contains(&id);
        let all = || raft.voters.iter().chain(&raft.learners).copied();
        if let Some(id) = all().find(|id| !known(*id) && *id != raft.me) {
            return Some(Change::Remove(id));
        }
        if let Some(n) = nodes.iter().find(|n| !member(n.raft_id) && !self.left.contains(&n.raft_id)) {
            return Some(Change::AddLearner(n.raft_id));
        }
        let wanted = wanted_voters(nodes.iter().filter(|n| !self.left.contains(&n.raft_id)).count());
        let seen = Seen { nodes, raft, domains: Domains::new(nodes, places) };
        // Three voters from two at once would need two steps; the first makes four eyes of two, no worse than before.
        if raft.voters.len() < wanted {
            let best = seen.ready().min_by_key(|id| (seen.with(None, Some(*id)), *id));
            return best.map(Change::Promote);
        }
        if raft.voters.len() > wanted.max(1) {
            let use_of = |id: &RaftId| (!self.is_gone(now, *id, raft.me), raft.active.contains(id));
            let rank = |id: &RaftId| (use_of(id), seen.with(Some(*id), None), Reverse(*id));
            return seen.others().min_by_key(rank).map(Change::Demote);
        }
        if let Some((_, old, new)) = seen.swap(seen.others().filter(|id| self.is_gone(now, *id, raft.me))) {
            return Some(Change::Replace { old, new });
        }
        let change = seen.evener()?;
        let since = called_for.filter(|(_, before)| *before == change).map_or(now, |(since, _)| since);
        if now >= since + self.patience.uneven {
            return Some(change);
        }
        self.called_for = Some((since, change));
        None
    }

    fn listen(&mut self, now: Moment, raft: &Members) {
        self.silent_since.retain(|id, _| raft.voters.contains(id) && !raft.active.contains(id));
        for id in raft.voters.iter().filter(|id| !raft.active.contains(id)) {
            self.silent_since.entry(*id).or_insert(now);
        }
    }

    fn is_gone(&self, now: Moment, id: RaftId, me: RaftId) -> bool {
        id != me && self.silent_since.get(&id).is_some_and(|since| now >= *since + self.patience.silent)
    }
}

impl Seen<'_> {
    /// The voters but the leader.
    fn others(&self) -> impl Iterator<Item = RaftId> {
        self.raft.voters.iter().copied().filter(|id| *id != self.raft.me)
    }

    /// It answers, holds nearly all of the log, and is not lost.
    fn is_well(&self, id: RaftId) -> bool {
        let alive = self.nodes.iter().any(|n| n.raft_id == id && !n.state.is_lost());
        alive && self.raft.caught_up.contains(&id)
    }

    /// Learners that can have a vote.
    fn ready(&self) -> impl Iterator<Item = RaftId> {
        self.raft.learners.iter().copied().filter(|id| self.is_well(*id))
    }

    /// How votes would be spread without one's, and with another's.
    fn with(&self, old: Option<RaftId>, new: Option<RaftId>) -> Unevenness {
        let stay = self.raft.voters.iter().copied().filter(|id| Some(*id) != old);
        self.domains.unevenness(stay.chain(new))
    }

    /// Of these votes the one to move, and to whom, so that they are spread best.
    fn swap(&self, olds: impl Iterator<Item = RaftId>) -> Option<(Unevenness, RaftId, RaftId)> {
        let news: Vec<RaftId> = self.ready().collect();
        let swaps = olds.flat_map(|old| news.iter().map(move |new| (old, *new)));
        swaps.map(|(old, new)| (self.with(Some(old), Some(new)), old, new)).min()
    }

    /// The move that spreads the votes best, if it makes them better spread than they are. None while a voter is silent: the vote that
    /// would move may be needed.
    fn evener(&self) -> Option<Change> {
        if !self.others().all(|id| self.raft.active.contains(&id)) {
            return None;
        }
        let (then, old, new) = self.swap(self.others())?;
        (then < self.with(None, None)).then_some(Change::Replace { old, new })
    }
}

#[cfg(test)]
mod tests;
