//! The node's side of leases: asks for one at every heartbeat, passes the answer to the fence process, which
//! alone counts; enters the cluster again after a loss; and decides, by linearizable reads, what becomes of
//! guests that the fence process holds.

use crate::clock::boottime;
use crate::grant::GrantHandle;
use crate::guardian::{self, Renewal};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use stead_driver::fence::Hold;
use stead_driver::guest::GuestError;
use stead_membership::wire::{Heartbeat, HeartbeatAnswer, Outcome, Refusal, VERSION};
use stead_model::{ClusterRecord, Epoch, FenceProfile, NodeRecord, NodeState, Vmid, paths};
use stead_ops::peers::call;
use stead_ops::store::{self, At};
use stead_ops::{Lease, Ops, OpsError};
use tokio::sync::watch;

/// Keeps the node's lease for as long as the daemon runs.
pub async fn run(ops: Arc<Ops>, grant: GrantHandle, lease: watch::Sender<Lease>) {
    let mut was_held = false;
    let mut deciding: Option<tokio::task::JoinHandle<()>> = None;
    let profile = ops.cluster_record().map(|c| c.value.profile).unwrap_or_default();
    // What an earlier daemon was granted ends before this.
    let granted = Renewal { sent: boottime(), lease: profile.lease(), drain: profile.drain() };
    let (renewed, renewals) = watch::channel(granted);
    tokio::spawn(guardian::run(ops.clone(), renewals));
    loop {
        let cluster = ops.cluster_record().ok().map(|c| c.value);
        let profile = cluster.as_ref().map(|c| c.profile).unwrap_or_default();
        let period = cluster.as_ref().map_or(profile.heartbeat(), ClusterRecord::heartbeat);
        let begun = tokio::time::Instant::now();
        match beat(&ops, &grant, profile, &renewed).await {
            Ok(None) => {}
            Ok(Some(Refusal::Lost | Refusal::WrongBoot { .. })) => {
                if let Err(e) = enter(&ops).await {
                    tracing::warn!("could not enter the cluster again: {e}");
                }
            }
            Ok(Some(why)) => tracing::debug!("no lease: {why}"),
            Err(e) => tracing::debug!("no lease: {e}"),
        }
        let held = match ops.fence.status().await {
            Ok(status) => {
                let has_lease = status.lease_left_ms.is_some();
                // Beside the heartbeats: a guest that takes its time must not cost the node its lease.
                if deciding.as_ref().is_none_or(tokio::task::JoinHandle::is_finished) {
                    let (ops, guests) = (ops.clone(), status.guests);
                    deciding = Some(tokio::spawn(async move { decide_held(&ops, &guests, has_lease).await }));
                }
                has_lease
            }
            Err(e) => {
                tracing::error!("{e}");
                false
            }
        };
        if held != was_held {
            was_held = held;
            tracing::info!("lease {}", if held { "held" } else { "lost" });
        }
        lease.send_if_modified(|l| std::mem::replace(&mut l.held, held) != held);
        tokio::time::sleep_until(begun + period).await;
    }
}

/// One heartbeat: nonce, question, answer, renewal. `Some`: refused.
async fn beat(
    ops: &Ops,
    grant: &GrantHandle,
    profile: FenceProfile,
    renewed: &watch::Sender<Renewal>,
) -> Result<Option<Refusal>, OpsError> {
    let sent = boottime();
    let nonce = ops.fence.nonce().await?;
    let me = &ops.me;
    let heartbeat =
        Heartbeat { v: VERSION, node: me.name.clone(), uuid: me.uuid.clone(), boot: me.boot.clone(), nonce };
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
            Ok(None)
        }
        Outcome::Refused { reason } => Ok(Some(reason)),
    }
}

/// The leader's record, if there is a leader.
pub fn leader(ops: &Ops) -> Option<NodeRecord> {
    let id = ops.conf.status().borrow().leader?;
    ops.node_records().into_iter().find(|n| n.raft_id == id)
}

/// What to do with a guest that the fence process has made safe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    Thaw,
    Destroy,
}

/// The record, read as new as any commit before, decides: epoch unchanged, go on as if nothing had been; else
/// this copy is old and must never execute again.
fn decide(owns: bool, epoch: Epoch, recorded: Option<Epoch>) -> Decision {
    if owns && recorded == Some(epoch) { Decision::Thaw } else { Decision::Destroy }
}

/// Decides every held guest, once a lease is there.
async fn decide_held(ops: &Ops, guests: &[(Vmid, Epoch, Hold)], lease: bool) {
    let held: Vec<_> = guests.iter().filter(|(_, _, h)| *h == Hold::Held).map(|(v, e, _)| (*v, *e)).collect();
    if held.is_empty() || !lease || ops.conf.barrier().await.is_err() {
        return;
    }
    for (vmid, epoch) in held {
        let own = ops.guest_at(vmid).ok().map(|g| g.own.value);
        let owns = own.as_ref().is_some_and(|o| o.owner == ops.me.name && o.running);
        // A copy that waits for a hand-over is decided by whoever awaits it.
        if own.as_ref().is_some_and(|o| o.owner != ops.me.name && o.epoch.next() == epoch) {
            continue;
        }
        match decide(owns, epoch, own.map(|o| o.epoch)) {
            Decision::Thaw => match ops.fence.run(vmid, epoch).await {
                Ok(()) => {
                    tracing::info!("guest {vmid}: lease is back and epoch {epoch} unchanged: it goes on");
                }
                Err(e) => tracing::warn!("guest {vmid}: {e}"),
            },
            Decision::Destroy => {
                if let Err(e) = destroy(ops, vmid).await {
                    tracing::error!("guest {vmid}: {e}");
                }
            }
        }
    }
}

async fn destroy(ops: &Ops, vmid: Vmid) -> Result<(), OpsError> {
    tracing::warn!("guest {vmid} was recovered elsewhere: this old copy is destroyed");
    match ops.guests.kill(vmid).await {
        Ok(()) | Err(GuestError::NotRunning(_)) => Ok(ops.fence.forget(vmid).await?),
        Err(e) => Err(e.into()),
    }
}

/// Enters the cluster, or enters it again: destroys every copy that is no longer this node's, guarded or not, then
/// commits the node a member in this boot, over its record as read. A node whose old copies cannot be destroyed
/// stays out: others trust a member to run nothing that is not its own.
pub async fn enter(ops: &Ops) -> Result<(), OpsError> {
    ops.conf.barrier().await?;
    let At { value: mut record, revision } = ops.node_record(&ops.me.name)?;
    let state = NodeState::Member { boot: ops.me.boot.clone() };
    if record.uuid != ops.me.uuid {
        return Err(OpsError::failed(format!("the cluster knows node '{}' with another UUID", ops.me.name)));
    }
    let guarded = ops.fence.status().await?.guests.into_iter().map(|(vmid, epoch, _)| (vmid, epoch));
    let processes = ops.guests.list().await.into_iter().map(|p| (p.vmid, p.epoch));
    for (vmid, epoch) in guarded.chain(processes).collect::<BTreeSet<_>>() {
        let own = ops.guest_at(vmid).ok().map(|g| g.own.value);
        let owns = own.as_ref().is_some_and(|o| o.owner == ops.me.name);
        if decide(owns, epoch, own.map(|o| o.epoch)) == Decision::Destroy {
            destroy(ops, vmid).await?;
        }
    }
    if record.state == state && record.addr == ops.me.addr && record.version == ops.me.version {
        return Ok(());
    }
    record.state = state;
    record.addr = ops.me.addr;
    ops.me.version.clone_into(&mut record.version);
    let mut txn = store::txn("root@pam", format!("node '{}' enters", ops.me.name));
    store::put_over(&mut txn, &paths::node(&ops.me.name), Some(revision), store::bytes(&record)?);
    ops.conf.transact(txn).await?;
    tracing::info!("node '{}' has entered the cluster", ops.me.name);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_unchanged_epoch_goes_on() {
        assert_eq!(decide(true, Epoch(3), Some(Epoch(3))), Decision::Thaw);
        assert_eq!(decide(true, Epoch(3), Some(Epoch(4))), Decision::Destroy);
        assert_eq!(decide(false, Epoch(3), Some(Epoch(3))), Decision::Destroy);
        assert_eq!(decide(true, Epoch(3), None), Decision::Destroy);
    }
}
