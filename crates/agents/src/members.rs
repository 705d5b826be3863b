//! Keeps Raft's members in line with the cluster's nodes: on the leader, a node that is recorded and not yet a
//! member becomes a learner, learners become voters where votes are wanted, and members without a record go. A node
//! that left Raft by its own wish stays out, also where its record is still there since a leader died in between.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{MemberError, RaftStatus};
use stead_model::{NodeRecord, RaftId, paths};
use stead_ops::{Ops, store};

/// The most voters that there are.
const MAX_VOTERS: usize = 7;

/// What to change next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    AddLearner(RaftId),
    Promote(RaftId),
    Remove(RaftId),
}

/// How many voters a number of nodes has: odd, at most seven. Two nodes both vote, so that what is acknowledged
/// lies on two disks.
fn wanted_voters(nodes: usize) -> usize {
    match nodes {
        0..=2 => nodes,
        n => (n - (n + 1) % 2).min(MAX_VOTERS),
    }
}

/// What of Raft's status the decision rests on.
#[derive(Debug, Clone, Default)]
struct Seen {
    id: Option<RaftId>,
    voters: Vec<RaftId>,
    learners: Vec<RaftId>,
    /// Members that answer and hold nearly all of the log.
    caught_up: Vec<RaftId>,
}

impl Seen {
    fn of(raft: &RaftStatus) -> Self {
        let near = |p: &&stead_conf::PeerStatus| p.active && p.matched + 100 >= raft.committed;
        Self {
            id: Some(raft.id),
            voters: raft.voters.clone(),
            learners: raft.learners.clone(),
            caught_up: raft.peers.iter().filter(near).map(|p| p.id).collect(),
        }
    }
}

/// The one next change, if one is due. One at a time: each is committed before the next is thought of. `left`: who took
/// part once and never will again.
fn next(nodes: &[NodeRecord], raft: &Seen, left: &BTreeSet<RaftId>) -> Option<Change> {
    let known = |id: RaftId| nodes.iter().any(|n| n.raft_id == id);
    let member = |id: RaftId| raft.voters.contains(&id) || raft.learners.contains(&id);
    if let Some(id) =
        raft.voters.iter().chain(&raft.learners).copied().find(|id| !known(*id) && Some(*id) != raft.id)
    {
        return Some(Change::Remove(id));
    }
    if let Some(n) = nodes.iter().find(|n| !member(n.raft_id) && !left.contains(&n.raft_id)) {
        return Some(Change::AddLearner(n.raft_id));
    }
    let present = nodes.iter().filter(|n| !left.contains(&n.raft_id)).count();
    if raft.voters.len() >= wanted_voters(present) {
        return None;
    }
    let ready = |id: &RaftId| {
        let alive = nodes.iter().any(|n| n.raft_id == *id && !n.state.is_lost());
        alive && raft.caught_up.contains(id)
    };
    // Three voters from two at once would need two steps; the first makes four eyes of two, no worse than before.
    raft.learners.iter().copied().find(ready).map(Change::Promote)
}

/// Runs for as long as the daemon does; acts while this node leads.
pub async fn run(ops: Arc<Ops>) {
    let mut watch = ops.conf.watch();
    let mut left = BTreeSet::new();
    loop {
        let status = ops.conf.status().borrow().clone();
        if status.is_leader
            && status.quorate
            && let Some(change) = next(&ops.node_records(), &Seen::of(&status), &left)
        {
            tracing::info!("cluster members: {change:?}");
            let done = match change {
                Change::AddLearner(id) => ops.conf.add_learner(id).await,
                Change::Promote(id) => ops.conf.promote(id).await,
                Change::Remove(id) => ops.conf.remove(id).await,
            };
            match done {
                Ok(()) => continue,
                Err(MemberError::Used { id }) => {
                    tracing::warn!(
                        "the node with Raft id {id} has left the cluster, which still lists it: remove it with \
                         'stead cluster remove'"
                    );
                    left.insert(id);
                    continue;
                }
                Err(e) => tracing::warn!("cluster members: {change:?}: {e}"),
            }
        }
        let changed = async {
            loop {
                match watch.next().await {
                    Some(event) if !store::touches(&event, paths::NODES) => {}
                    Some(_) => return true,
                    None => return false,
                }
            }
        };
        // A change of the nodes, or a second: learners catch up without a commit.
        if tokio::time::timeout(Duration::from_secs(1), changed).await == Ok(false) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_model::NodeState;

    fn node(n: u64) -> NodeRecord {
        let boot = "22222222-2222-4222-8222-222222222222".parse().unwrap();
        NodeRecord {
            name: format!("n{n}").parse().unwrap(),
            uuid: "11111111-1111-4111-8111-111111111111".parse().unwrap(),
            raft_id: RaftId(n),
            addr: "127.0.0.1:8006".parse().unwrap(),
            state: NodeState::Member { boot },
            version: String::new(),
        }
    }

    fn raft(voters: &[u64], learners: &[u64], caught_up: &[u64]) -> Seen {
        let ids = |v: &[u64]| v.iter().copied().map(RaftId).collect();
        Seen { id: Some(RaftId(1)), voters: ids(voters), learners: ids(learners), caught_up: ids(caught_up) }
    }

    #[test]
    fn voters_are_odd_from_three_nodes_on() {
        let wanted: Vec<usize> = (1..=9).map(wanted_voters).collect();
        assert_eq!(wanted, [1, 2, 3, 3, 5, 5, 7, 7, 7]);
    }

    #[test]
    fn a_node_learns_before_it_votes_and_a_removed_one_goes() {
        let (three, none): (Vec<_>, _) = ((1..=3).map(node).collect(), BTreeSet::new());
        assert_eq!(next(&three, &raft(&[1], &[], &[]), &none), Some(Change::AddLearner(RaftId(2))));
        assert_eq!(next(&three[..2], &raft(&[1], &[2], &[]), &none), None);
        assert_eq!(next(&three[..2], &raft(&[1], &[2], &[2]), &none), Some(Change::Promote(RaftId(2))));
        assert_eq!(next(&three, &raft(&[1, 2, 3], &[], &[2, 3]), &none), None);
        assert_eq!(next(&three[..2], &raft(&[1, 2], &[3], &[2]), &none), Some(Change::Remove(RaftId(3))));
    }
    #[test]
    fn a_node_that_left_raft_is_not_asked_back_and_holds_up_nobody() {
        let four: Vec<_> = (1..=4).map(node).collect();
        let left = BTreeSet::from([RaftId(2)]);
        // The leader died before the record was removed, and another node has just been let in.
        assert_eq!(next(&four, &raft(&[1, 3], &[], &[3]), &left), Some(Change::AddLearner(RaftId(4))));
        assert_eq!(next(&four, &raft(&[1, 3], &[4], &[3, 4]), &left), Some(Change::Promote(RaftId(4))));
        assert_eq!(next(&four[..3], &raft(&[1, 3], &[], &[3]), &left), None);
    }
}
