//! Requests to the consensus.

use stead_model::RaftId;

/// The term in which leadership was confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeadershipTerm(pub u64);

/// A change of who takes part.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberChange {
    /// A new member without a vote.
    AddLearner(RaftId),
    /// A learner gets a vote.
    Promote(RaftId),
    /// A voter becomes a learner.
    Demote(RaftId),
    /// A voter's vote goes to a learner, at once.
    Replace {
        /// The voter, a learner afterwards.
        old: RaftId,
        /// The learner, a voter afterwards.
        new: RaftId,
    },
    /// A member leaves for good.
    Remove(RaftId),
}
