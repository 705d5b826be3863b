//! What a node knows of the cluster's consensus, for others to see.

use crate::txn::Revision;
use stead_model::RaftId;

/// A node's view of the consensus. Changes are published through [`Conf::status`](crate::Conf::status).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RaftStatus {
    /// This node.
    pub id: RaftId,
    /// Who leads, as far as is known here. `None` while there is no contact with a leader.
    pub leader: Option<RaftId>,
    /// The term: grows with every election.
    pub term: u64,
    /// Whether this node leads. A moment old: for decisions ask
    /// [`Conf::confirm_leadership`](crate::Conf::confirm_leadership).
    pub is_leader: bool,
    /// Whether a majority is in contact: as leader, heard from one within an election timeout; otherwise, heard
    /// from a leader within that time.
    pub quorate: bool,
    /// Whether this node is a member (voter or learner) in its own view. False before the first snapshot arrives
    /// at a node that joins, and after its removal.
    pub member: bool,
    /// Who votes, in ascending order.
    pub voters: Vec<RaftId>,
    /// Who votes in the configuration that is being left; empty except for moments within a change.
    pub outgoing: Vec<RaftId>,
    /// Who holds the tree without a vote, in ascending order.
    pub learners: Vec<RaftId>,
    /// The log's index up to which this node has applied.
    pub applied: u64,
    /// The log's index up to which this node knows the log to be committed.
    pub committed: u64,
    /// The tree's revision there.
    pub revision: Revision,
    /// On the leader: how far each other member is. Empty elsewhere.
    pub peers: Vec<PeerStatus>,
    /// A member whose tree differs from this one's at the same index: a fault of the program or of memory, to be
    /// reported; one of the two must be joined anew.
    pub diverged: Option<RaftId>,
    /// Why this node's store stands still, if it does.
    pub stopped: Option<String>,
    /// It does since it lacks what this node has acknowledged: it is an older copy, or its disk has lost data. The node must
    /// not vote under its number any more, and be let in again under another.
    pub lost: bool,
}

/// A member as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerStatus {
    /// Which.
    pub id: RaftId,
    /// The log's index up to which it is known to hold the log on disk.
    pub matched: u64,
    /// Whether it has answered within the last election timeout.
    pub active: bool,
    /// Whether it is being sent a snapshot.
    pub snapshot: bool,
    /// The feature level that its version supports, once known.
    pub supports: Option<u32>,
}

impl RaftStatus {
    /// Of a node that has heard nothing yet.
    pub fn of(id: RaftId) -> Self {
        Self {
            id,
            leader: None,
            term: 0,
            is_leader: false,
            quorate: false,
            member: false,
            voters: Vec::new(),
            outgoing: Vec::new(),
            learners: Vec::new(),
            applied: 0,
            committed: 0,
            revision: Revision(0),
            peers: Vec::new(),
            diverged: None,
            stopped: None,
            lost: false,
        }
    }
}
