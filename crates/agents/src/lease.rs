//! The node's side of leases: asks for one at every heartbeat, passes the answer to the fence process, which
//! alone counts; enters the cluster again after a loss; and decides, by linearizable reads, what becomes of
//! guests that the fence process holds.

use crate::clock::boottime;
use crate::grant::GrantHandle;
use crate::guardian::{self, Renewal};
use crate::restart::Restart;
use std::sync::Arc;
use std::time::Duration;
use stead_conf::Check;
use stead_membership::RESTART_LEASE;
use stead_membership::wire::{Heartbeat, HeartbeatAnswer, Outcome, Refusal, VERSION};
use stead_model::{ClusterRecord, FenceProfile, NodeRecord, NodeState, paths};
use stead_ops::peers::call;
use stead_ops::store::{self, At};
use stead_ops::{Lease, Ops, OpsError};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// Keeps the node's lease for as long as the daemon runs.
pub async fn run(ops: Arc<Ops>, grant: GrantHandle, lease: watch::Sender<Lease>, restart: Arc<Restart>) {
    let mut was_held = false;
    let mut deciding: Option<JoinHandle<()>> = None;
    let mut unmarking: Option<JoinHandle<()>> = None;
    let mut asked = restart.asked();
    let profile = ops.cluster_record().map(|c| c.value.profile).unwrap_or_default();
    // What an earlier daemon was granted is taken to end by this: a restart lease ends later, and nobody needs to be ended later.
    let granted = Renewal { sent: boottime(), lease: profile.lease(), drain: profile.drain() };
    let (renewed, renewals) = watch::channel(granted);
    tokio::spawn(guardian::run(ops.clone(), renewals));
    loop {
        let cluster = ops.cluster_record().ok().map(|c| c.value);
        let profile = cluster.as_ref().map(|c| c.profile).unwrap_or_default();
        let period = cluster.as_ref().map_or(profile.heartbeat(), ClusterRecord::heartbeat);
        let begun = tokio::time::Instant::now();
        let asks = *asked.borrow_and_update();
        match beat(&ops, &grant, profile, &renewed, asks).await {
            Ok(Ok(length)) => {
                if length >= RESTART_LEASE {
                    // Its reports say from now on that nothing is to be placed here.
                    lease.send_if_modified(|l| std::mem::replace(&mut l.held, false));
                    restart.granted();
                } else if is_marked(&ops) && is_idle(unmarking.as_ref()) {
                    let (ops, restart) = (ops.clone(), restart.clone());
                    unmarking = Some(tokio::spawn(async move { restart.try_end(&ops, length).await }));
                }
            }
            Ok(Err(Refusal::Lost | Refusal::WrongBoot { .. })) => {
                if let Err(e) = enter(&ops).await {
                    tracing::warn!("could not enter the cluster again: {e}");
                }
            }
            Ok(Err(why)) => tracing::debug!("no lease: {why}"),
            Err(e) => tracing::debug!("no lease: {e}"),
        }
        let held = match ops.fence.status().await {
            Ok(status) => {
                let has_lease = status.lease_left_ms.is_some();
                // Beside the heartbeats: a guest that takes its time must not cost the node its lease.
                if has_lease && is_idle(deciding.as_ref()) {
                    let (ops, guests) = (ops.clone(), status.guests);
                    deciding = Some(tokio::spawn(async move { ops.decide_held(&guests).await }));
                }
                has_lease
            }
            Err(e) => {
                tracing::error!("{e}");
                false
            }
        };
        let held = held && !restart.is_granted();
        if held != was_held {
            was_held = held;
            tracing::info!("lease {}", if held { "held" } else { "lost" });
        }
        lease.send_if_modified(|l| std::mem::replace(&mut l.held, held) != held);
        tokio::select! {
            () = tokio::time::sleep_until(begun + period) => {}
            // Its sender lives as long as this.
            _ = asked.changed() => {}
        }
    }
}

fn is_idle(task: Option<&JoinHandle<()>>) -> bool {
    task.is_none_or(JoinHandle::is_finished)
}

/// Whether this node's record says that it may hold a restart lease.
fn is_marked(ops: &Ops) -> bool {
    known(ops).is_ok_and(|record| record.value.may_restart())
}

/// One heartbeat: nonce, question, answer, renewal. How long the lease is, or why there is none.
async fn beat(
    ops: &Ops,
    grant: &GrantHandle,
    profile: FenceProfile,
    renewed: &watch::Sender<Renewal>,
    asks: bool,
) -> Result<Result<Duration, Refusal>, OpsError> {
    let sent = boottime();
    let nonce = ops.fence.nonce().await?;
    let me = &ops.me;
    let (uuid, boot) = (me.uuid.clone(), me.boot.clone());
    // Not before the mark is committed: who leads grants it to marked nodes alone.
    let restart = asks && is_marked(ops);
    let heartbeat = Heartbeat { v: VERSION, node: me.name.clone(), uuid, boot, nonce, restart };
    let leader = leader(ops).ok_or_else(|| OpsError::failed("the cluster has no leader now"))?;
    let limit = profile.lease() / 3;
    let answer: HeartbeatAnswer = if leader.name == me.name {
        tokio::time::timeout(limit, grant.heartbeat(heartbeat))
            .await
            .ok()
            .flatten()
            .ok_or_else(|| OpsError::failed("leadership was not confirmed in time"))?
    } else {
        call(&*ops.peers, &leader, "heartbeat", &heartbeat, limit).await?
    };
    match answer.outcome {
        Outcome::Granted { lease_ms, drain_ms, watchdog_ms } => {
            ops.fence.renew(answer.nonce, lease_ms, drain_ms, watchdog_ms).await?;
            let ms = Duration::from_millis;
            renewed.send_replace(Renewal { sent, lease: ms(lease_ms), drain: ms(drain_ms) });
            Ok(Ok(ms(lease_ms)))
        }
        Outcome::Refused { reason } => Ok(Err(reason)),
    }
}

/// The leader's record, if there is a leader.
pub fn leader(ops: &Ops) -> Option<NodeRecord> {
    let id = ops.conf.status().borrow().leader?;
    ops.node_records().into_iter().find(|n| n.raft_id == id)
}

/// Enters the cluster, or enters it again: destroys every copy that is no longer this node's, guarded or not, then
/// commits the node a member in this boot, over its record as read and those of the guests whose copies stay. A node whose old copies cannot be destroyed
/// stays out: others trust a member to run nothing that is not its own.
pub async fn enter(ops: &Ops) -> Result<(), OpsError> {
    let (record, kept) = prepare(ops).await?;
    record_entry(ops, record, kept).await
}

/// Makes this node fit to enter: its record, and those of the guests whose copies stay, as they were read.
async fn prepare(ops: &Ops) -> Result<(At<NodeRecord>, Vec<Check>), OpsError> {
    ops.conf.barrier().await?;
    let record = known(ops)?;
    Ok((record, ops.destroy_old_copies().await?))
}

/// This node's record.
pub(crate) fn known(ops: &Ops) -> Result<At<NodeRecord>, OpsError> {
    let record = ops.node_record(&ops.me.name)?;
    if record.value.uuid == ops.me.uuid {
        return Ok(record);
    }
    Err(OpsError::failed(format!("the cluster knows node '{}' with another UUID", ops.me.name)))
}

/// Commits the node a member in this boot, over its record as read and those of what it `kept`.
pub(crate) async fn record_entry(ops: &Ops, known: At<NodeRecord>, kept: Vec<Check>) -> Result<(), OpsError> {
    let At { value: mut record, revision } = known;
    let state = NodeState::Member { boot: ops.me.boot.clone() };
    let refuted = record.off.take_if(|off| off.boot == ops.me.boot);
    if let Some(off) = &refuted {
        // Kept, it would settle every later loss of this boot at once, without a wait.
        tracing::error!(
            "{} said that this node was off, and it ran: see which device powers which node (stead fence list); until then \
             guests may run twice",
            off.devices
        );
    }
    let same = record.state == state && record.addr == ops.me.addr && record.version == ops.me.version;
    if same && refuted.is_none() {
        return Ok(());
    }
    record.state = state;
    record.addr = ops.me.addr;
    // What was a further link may have become the first.
    record.links.retain(|_, ip| *ip != ops.me.addr.ip());
    ops.me.version.clone_into(&mut record.version);
    let mut txn = store::txn("root@pam", format!("node '{}' enters", ops.me.name));
    store::put_over(&mut txn, &paths::node(&ops.me.name), Some(revision), store::bytes(&record)?);
    txn.checks.extend(kept);
    ops.conf.transact(txn).await?;
    tracing::info!("node '{}' has entered the cluster", ops.me.name);
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
mod tests {
    use super::*;
    use stead_conf::Txn;
    use stead_model::paths;
    use stead_ops::guest::Asked;
    use stead_ops_testing::{Node, name, root, vmid};

    /// A recovery that is committed between what an entry reads and its commit.
    #[tokio::test]
    async fn an_entry_names_the_records_of_what_it_keeps() {
        let node = Node::start().await;
        let upid = node.ops.create_vm(&root(), vmid(100), &Default::default(), false).unwrap();
        assert_eq!(node.ended(&upid).await.0, "OK");
        let upid = node.ops.start(&root(), vmid(100), Asked::default()).await.unwrap();
        assert_eq!(node.ended(&upid).await.0, "OK");
        let mut record = known(&node.ops).unwrap().value;
        record.state = NodeState::Lost { boot: node.ops.me.boot.clone() };
        let path = paths::node(&name("n1"));
        node.commit(Txn::new("test").put(path, store::bytes(&record).unwrap())).await;

        let (before, kept) = prepare(&node.ops).await.unwrap();
        let own = store::bytes(&node.own(100)).unwrap();
        node.commit(Txn::new("test").put(paths::ownership(vmid(100)), own)).await;
        record_entry(&node.ops, before, kept).await.unwrap_err();
        assert!(known(&node.ops).unwrap().value.state.is_lost());
        enter(&node.ops).await.unwrap();
        assert!(!known(&node.ops).unwrap().value.state.is_lost());
        assert_eq!(node.ops.guests.list().await.len(), 1, "what stays this node's stays here");
    }
}
