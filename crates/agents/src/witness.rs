//! A witness: it votes and keeps the configuration, so that two nodes have a majority when one of them is lost. It runs no
//! guests, so it needs neither a lease nor a fence process. It can be elected, since its log may be the newest,
//! and then hands over to a node as soon as one is in contact.

use crate::lease::{known, record_entry};
use std::sync::Arc;
use std::time::Duration;
use stead_conf::{Conf, RaftStatus};
use stead_model::RaftId;
use stead_ops::{Lease, Ops, OpsError};
use tokio::sync::watch;

/// How often what did not work is tried again.
const AGAIN: Duration = Duration::from_secs(1);

/// Runs for as long as the daemon does. `lease` is never held, and lives as long as those who watch it.
pub async fn run(ops: Arc<Ops>, lease: watch::Sender<Lease>) {
    let _lease = lease;
    let mut entered = false;
    let mut status = ops.conf.status();
    loop {
        if !entered {
            match enter(&ops).await {
                Ok(()) => entered = true,
                Err(e) => tracing::debug!("the witness has not entered the cluster yet: {e}"),
            }
        }
        let leads = status.borrow_and_update().clone();
        if let Some(to) = successor(&leads, |id| ops.guest_nodes().iter().any(|n| n.raft_id == id)) {
            tracing::info!("the witness was elected: it hands over to the node with Raft id {to}");
            ops.conf.transfer_leader(to).await;
        }
        let again = entered && !leads.is_leader;
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN), if !again => {}
        }
    }
}

async fn enter(ops: &Ops) -> Result<(), OpsError> {
    ops.conf.barrier().await?;
    record_entry(ops, known(ops)?, vec![]).await
}

/// Whom a leader hands its office to: a voter of those that may have it, which is in contact.
fn successor(raft: &RaftStatus, may: impl Fn(RaftId) -> bool) -> Option<RaftId> {
    let votes = |id: &RaftId| raft.voters.contains(id);
    let active = raft.peers.iter().filter(|p| p.active).map(|p| p.id);
    active.filter(votes).find(|id| raft.is_leader && may(*id))
}

/// A leader that ends in order makes another one first, so that nobody waits for an election.
pub async fn hand_over(conf: &Conf) {
    let mut status = conf.status();
    let Some(to) = successor(&status.borrow().clone(), |_| true) else { return };
    conf.transfer_leader(to).await;
    let gone = async { while status.borrow().is_leader && status.changed().await.is_ok() {} };
    // Not taken over in time: the others elect one.
    let _ = tokio::time::timeout(Duration::from_secs(1), gone).await;
}
