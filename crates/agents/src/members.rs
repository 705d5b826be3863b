//! Keeps Raft's members in line with the cluster's nodes, as [`stead_membership::voters`] decides on the leader.

use crate::clock::boottime;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{MemberError, RaftStatus};
use stead_membership::voters::{Change, Members, Patience, Voters};
use stead_model::paths;
use stead_ops::{Ops, store};

fn seen(raft: &RaftStatus) -> Members {
    let answering = |near: bool| {
        let is = move |p: &&stead_conf::PeerStatus| p.active && (!near || p.matched + 100 >= raft.committed);
        raft.peers.iter().filter(is).map(|p| p.id).collect()
    };
    Members {
        me: raft.id,
        voters: raft.voters.clone(),
        learners: raft.learners.clone(),
        active: answering(false),
        caught_up: answering(true),
    }
}

/// Runs for as long as the daemon does; acts while this node leads. `silent`: after how long a silent voter is replaced, where that is
/// not to be as ever.
pub async fn run(ops: Arc<Ops>, silent: Option<Duration>) {
    let patience = silent.map(Patience::of).unwrap_or_default();
    let mut watch = ops.conf.watch();
    let mut voters = Voters::new(patience);
    loop {
        let status = ops.conf.status().borrow().clone();
        if !status.is_leader {
            voters.not_leading();
        }
        if status.is_leader
            && status.quorate
            && let Some(change) =
                voters.next(boottime(), &ops.node_records(), &ops.node_places(), &seen(&status))
        {
            tracing::info!("cluster members: {change:?}");
            let done = match change {
                Change::AddLearner(id) => ops.conf.add_learner(id).await,
                Change::Promote(id) => ops.conf.promote(id).await,
                Change::Demote(id) => ops.conf.demote(id).await,
                Change::Replace { old, new } => ops.conf.replace_voter(old, new).await,
                Change::Remove(id) => ops.conf.remove(id).await,
            };
            match done {
                Ok(()) => continue,
                Err(MemberError::Used { id }) => {
                    tracing::warn!(
                        "the node with Raft id {id} has left the cluster, which still lists it: remove it with \
                         'stead cluster remove'"
                    );
                    voters.has_left(id);
                    continue;
                }
                Err(e) => tracing::warn!("cluster members: {change:?}: {e}"),
            }
        }
        let changed = async {
            loop {
                match watch.next().await {
                    Some(event)
                        if !store::touches(&event, paths::NODES)
                            && !store::touches(&event, paths::PLACES) => {}
                    Some(_) => return true,
                    None => return false,
                }
            }
        };
        // A change of the nodes, or of where they stand, or a second: learners catch up without a commit.
        if tokio::time::timeout(Duration::from_secs(1), changed).await == Ok(false) {
            return;
        }
    }
}
