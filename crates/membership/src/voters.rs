//! Who votes: the members of Raft are kept in line with the cluster's nodes, one change at a time.
//!
//! A node that is recorded and not yet a member becomes a learner; learners become voters where votes are wanted; a voter
//! that has been silent for [`REPLACE_AFTER`] gives its vote to a learner that has not, so that the next loss finds a full
//! number of votes; members without a record go. A node that left Raft by its own wish stays out, also where its
//! record is still there since a leader died in between.

use crate::Moment;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use stead_model::{NodeRecord, RaftId};

/// The most voters that there are.
pub const MAX_VOTERS: usize = 7;
/// A voter that has answered nothing for so long loses its vote, if another node can have it. Longer than a machine takes
/// to boot: a restart moves no votes.
pub const REPLACE_AFTER: Duration = Duration::from_secs(300);

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
    silent_since: BTreeMap<RaftId, Moment>,
    left: BTreeSet<RaftId>,
}

impl Voters {
    /// A node turned out to have been a member once that never will be again.
    pub fn has_left(&mut self, id: RaftId) {
        self.left.insert(id);
    }

    /// This node does not lead (any more): it hears nobody.
    pub fn not_leading(&mut self) {
        self.silent_since.clear();
    }

    /// The one next change, if one is due. One at a time: each is committed before the next is thought of.
    pub fn next(&mut self, now: Moment, nodes: &[NodeRecord], raft: &Members) -> Option<Change> {
        self.listen(now, raft);
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
        let silent = raft.voters.iter().copied().find(|id| self.is_gone(now, *id, raft.me));
        let ready = |id: &RaftId| {
            let alive = nodes.iter().any(|n| n.raft_id == *id && !n.state.is_lost());
            alive && raft.caught_up.contains(id)
        };
        // Three voters from two at once would need two steps; the first makes four eyes of two, no worse than before.
        let learner = raft.learners.iter().copied().find(ready);
        if raft.voters.len() < wanted {
            return learner.map(Change::Promote);
        }
        if raft.voters.len() > wanted.max(1) {
            let last = raft.voters.iter().copied().rfind(|id| *id != raft.me);
            return silent.or(last).map(Change::Demote);
        }
        Some(Change::Replace { old: silent?, new: learner? })
    }

    fn listen(&mut self, now: Moment, raft: &Members) {
        self.silent_since.retain(|id, _| raft.voters.contains(id) && !raft.active.contains(id));
        for id in raft.voters.iter().filter(|id| !raft.active.contains(id)) {
            self.silent_since.entry(*id).or_insert(now);
        }
    }

    fn is_gone(&self, now: Moment, id: RaftId, me: RaftId) -> bool {
        id != me && self.silent_since.get(&id).is_some_and(|since| now >= *since + REPLACE_AFTER)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::NodeState;

    const NOW: Moment = Duration::from_secs(1000);

    fn nodes(n: u64) -> Vec<NodeRecord> {
        let boot: stead_model::BootId = "22222222-2222-4222-8222-222222222222".parse().unwrap();
        let node = |n| NodeRecord {
            name: format!("n{n}").parse().unwrap(),
            uuid: "11111111-1111-4111-8111-111111111111".parse().unwrap(),
            raft_id: RaftId(n),
            addr: "127.0.0.1:8006".parse().unwrap(),
            links: stead_model::link::Links::new(),
            state: NodeState::Member { boot: boot.clone() },
            version: String::new(),
            witness: false,
            off: None,
            restart: None,
        };
        (1..=n).map(node).collect()
    }

    /// As node 1 sees it, which leads; who has caught up is active.
    fn raft(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> Members {
        let ids = |v: &[u64]| v.iter().copied().map(RaftId).collect::<Vec<_>>();
        let caught_up: BTreeSet<RaftId> = ids(caught_up).into_iter().collect();
        let active = caught_up.clone().into_iter().chain([RaftId(1)]).collect();
        Members { me: RaftId(1), voters: ids(voters), learners: ids(learners), active, caught_up }
    }

    fn next(nodes: &[NodeRecord], raft: &Members) -> Option<Change> {
        Voters::default().next(NOW, nodes, raft)
    }

    #[test]
    fn voters_are_odd_from_three_nodes_on() {
        let wanted: Vec<usize> = (1..=9).map(wanted_voters).collect();
        assert_eq!(wanted, [1, 2, 3, 3, 5, 5, 7, 7, 7]);
    }

    #[test]
    fn a_node_learns_before_it_votes_and_a_removed_one_goes() {
        let three = nodes(3);
        assert_eq!(next(&three, &raft(&[1], &[], &[])), Some(Change::AddLearner(RaftId(2))));
        assert_eq!(next(&three[..2], &raft(&[1], &[2], &[])), None);
        assert_eq!(next(&three[..2], &raft(&[1], &[2], &[2])), Some(Change::Promote(RaftId(2))));
        assert_eq!(next(&three, &raft(&[1, 2, 3], &[], &[2, 3])), None);
        assert_eq!(next(&three[..2], &raft(&[1, 2], &[3], &[2])), Some(Change::Remove(RaftId(3))));
    }

    #[test]
    fn a_node_that_left_raft_is_not_asked_back_and_holds_up_nobody() {
        let four = nodes(4);
        let mut voters = Voters::default();
        voters.has_left(RaftId(2));
        // The leader died before the record was removed, and another node has just been let in.
        assert_eq!(voters.next(NOW, &four, &raft(&[1, 3], &[], &[3])), Some(Change::AddLearner(RaftId(4))));
        assert_eq!(voters.next(NOW, &four, &raft(&[1, 3], &[4], &[3, 4])), Some(Change::Promote(RaftId(4))));
        assert_eq!(voters.next(NOW, &four[..3], &raft(&[1, 3], &[], &[3])), None);
    }

    #[test]
    fn a_silent_voter_gives_its_vote_to_one_that_answers() {
        let four = nodes(4);
        let silent = raft(&[1, 2, 3], &[4], &[3, 4]);
        let mut voters = Voters::default();
        assert_eq!(voters.next(NOW, &four, &silent), None, "it may be booting");
        let almost = NOW + REPLACE_AFTER - Duration::from_secs(1);
        assert_eq!(voters.next(almost, &four, &silent), None);
        let replaced = Some(Change::Replace { old: RaftId(2), new: RaftId(4) });
        assert_eq!(voters.next(NOW + REPLACE_AFTER, &four, &silent), replaced);
        // Heard in between: it waits anew.
        assert_eq!(voters.next(almost, &four, &raft(&[1, 2, 3], &[4], &[2, 3, 4])), None);
        assert_eq!(voters.next(NOW + REPLACE_AFTER, &four, &silent), None);
        // Another led in between, who may have heard it.
        voters.not_leading();
        assert_eq!(voters.next(NOW + 2 * REPLACE_AFTER, &four, &silent), None);
        // Nobody can take it: it keeps it, and is a voter again when it is back.
        let later = NOW + 3 * REPLACE_AFTER;
        assert_eq!(voters.next(later, &four, &raft(&[1, 2, 3], &[4], &[3])), None);
    }

    #[test]
    fn the_leader_keeps_its_vote_and_a_vote_too_many_goes() {
        let mut voters = Voters::default();
        let (four, too_many) = (nodes(4), raft(&[1, 2, 3, 4], &[], &[2, 3, 4]));
        assert_eq!(voters.next(NOW, &four, &too_many), Some(Change::Demote(RaftId(4))));
        let silent = raft(&[1, 2, 3, 4], &[], &[3, 4]);
        voters.next(NOW, &four, &silent);
        assert_eq!(voters.next(NOW + REPLACE_AFTER, &four, &silent), Some(Change::Demote(RaftId(2))));
        assert_eq!(voters.next(NOW, &nodes(1), &raft(&[1], &[], &[])), None);
    }
}
