//! A planned restart of the daemon: its guests run on under a *restart lease* meanwhile.
//!
//! ```text
//!  told to end ──▶ mark committed ──▶ heartbeats ask ──▶ lease of 60 s ──▶ the daemon ends
//!                                                                               │ starts
//!  unmarked, committed ◀── the fence process holds to the ordinary one ◀── ordinary lease
//! ```
//!
//! The mark in the node's record is committed before such a lease is asked for, so that every later leader waits for it. Each mark
//! is a commit of its own, also where one stands already, and it goes by a commit over the very revision that was read before the fence
//! process let go of the long lease. So an end that is still on its way, of this daemon or of one before it, can't take a later
//! mark away. Until the mark has gone, the loss of this node is found out a minute later than otherwise.

use crate::lease::known;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::time::Duration;
use stead_conf::ConfError;
use stead_driver::fence::Hold;
use stead_membership::RESTART_LEASE;
use stead_model::{NodeRecord, paths};
use stead_ops::store::{self, At};
use stead_ops::{Ops, OpsError};
use tokio::sync::watch;

/// How long an end waits for the lease: longer than an election, shorter than what service managers grant.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between the daemon's end and its heartbeats.
#[derive(Debug)]
pub struct Restart {
    /// The daemon is to end: from now on it ends no mark. Set before its own mark is made.
    ending: AtomicBool,
    /// Its own mark is committed.
    asked: watch::Sender<bool>,
    granted: watch::Sender<bool>,
    /// That a mark could not be ended has been told.
    told: AtomicBool,
}

impl Default for Restart {
    fn default() -> Self {
        let (asked, granted) = (watch::Sender::new(false), watch::Sender::new(false));
        Self { ending: AtomicBool::new(false), asked, granted, told: AtomicBool::new(false) }
    }
}

impl Restart {
    /// Whether heartbeats are to ask for a restart lease.
    pub(crate) fn asked(&self) -> watch::Receiver<bool> {
        self.asked.subscribe()
    }

    /// Whether the daemon leaves its guests to the fence process now.
    pub(crate) fn is_granted(&self) -> bool {
        *self.granted.borrow()
    }

    /// The fence process has a restart lease.
    pub(crate) fn granted(&self) {
        self.granted.send_replace(true);
    }

    /// Takes a restart lease, if a guest runs here that the end of a lease would hold. What fails costs those guests a pause,
    /// and is told in the log.
    pub async fn prepare(&self, ops: &Ops) {
        let guarded = match ops.fence.status().await {
            Ok(status) => status.guests.iter().any(|(.., hold)| *hold == Hold::Released),
            Err(_) => false,
        };
        if !guarded {
            return;
        }
        let late =
            || OpsError::failed(format!("the cluster did not grant it within {} s", PATIENCE.as_secs()));
        let taken = tokio::time::timeout(PATIENCE, self.take(ops)).await.unwrap_or_else(|_| Err(late()));
        match taken {
            Ok(()) => tracing::info!("guests run on for {} s without this daemon", RESTART_LEASE.as_secs()),
            Err(e) => tracing::warn!("no restart lease, guests may be paused: {e}"),
        }
    }

    async fn take(&self, ops: &Ops) -> Result<(), OpsError> {
        // What can't be given back later is not taken: an older fence process may not know how.
        ops.fence.shorten(u64::MAX).await?;
        let mut granted = self.granted.subscribe();
        self.ending.store(true, SeqCst);
        while let Err(e) = mark(ops, true, &known(ops)?).await {
            // The record was written meanwhile, maybe by the end of an earlier mark, and is here with the barrier; or nobody leads
            // yet, for which the barrier waits.
            tracing::debug!("not marked yet: {e}");
            if let Err(stopped @ ConfError::Stopped { .. }) = ops.conf.barrier().await {
                return Err(stopped.into());
            }
        }
        self.asked.send_replace(true);
        // It ends with `self` alone.
        let _ = granted.wait_for(|granted| *granted).await;
        // Nothing is to be placed here until the daemon is back.
        ops.flush.now().await;
        Ok(())
    }

    /// Ends the mark of an earlier restart, if there is one. What fails is tried again after a later heartbeat, and told once.
    pub(crate) async fn try_end(&self, ops: &Ops, lease: Duration) {
        match self.end(ops, lease).await {
            Ok(()) => self.told.store(false, SeqCst),
            Err(e) if self.told.swap(true, SeqCst) => {
                tracing::debug!("the restart lease is not ended yet: {e}");
            }
            Err(e) => tracing::warn!(
                "until its restart lease is ended, which is tried on, a loss of this node is found out a minute later: {e}"
            ),
        }
    }

    /// After a restart: the fence process, which was just given an ordinary lease of that length, holds to that alone, and the mark
    /// goes. Nothing is done where there is no mark, or where this daemon is to end.
    ///
    /// # Errors
    /// If the fence process does not let go, or the commit fails; then the mark stays, and it is to be tried again.
    pub async fn end(&self, ops: &Ops, lease: Duration) -> Result<(), OpsError> {
        let record = known(ops)?;
        // In this order: who is to end sets it before it writes its own mark, so a mark that was read before is not that one.
        if !record.value.may_restart() || self.ending.load(SeqCst) {
            return Ok(());
        }
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        ops.fence.shorten(lease_ms).await?;
        mark(ops, false, &record).await?;
        tracing::info!("the restart lease is over");
        Ok(())
    }
}

/// Writes this node's record with or without the mark, over the one that was read.
async fn mark(ops: &Ops, restart: bool, read: &At<NodeRecord>) -> Result<(), OpsError> {
    let mut record = read.value.clone();
    record.restart = restart.then(|| ops.me.boot.clone());
    let what = if restart { "is about to restart its daemon" } else { "has restarted its daemon" };
    let mut txn = store::txn("root@pam", format!("node '{}' {what}", ops.me.name));
    store::put_over(&mut txn, &paths::node(&ops.me.name), Some(read.revision), store::bytes(&record)?);
    ops.conf.transact(txn).await?;
    Ok(())
}
