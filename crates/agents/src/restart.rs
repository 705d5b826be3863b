//! A planned restart of the daemon: its guests run on under a *restart lease* meanwhile.
//!
//! ```text
//!  told to end ──▶ mark committed ──▶ heartbeats ask ──▶ lease of 60 s ──▶ the daemon ends
//!                                                                               │ starts
//!  unmarked, committed ◀── the fence process holds to the ordinary one ◀── ordinary lease
//! ```
//!
//! The mark in the node's record is committed before such a lease is asked for, so that every later leader waits for it. It goes
//! by a commit over the very revision that was read before the fence process let go of the long lease: a mark that was made
//! meanwhile, for another restart, has another revision and stays. Until it has gone, the loss of this node is found
//! out a minute later than otherwise.

use crate::lease::known;
use std::time::Duration;
use stead_driver::fence::Hold;
use stead_membership::RESTART_LEASE;
use stead_model::paths;
use stead_ops::store::{self, At};
use stead_ops::{Ops, OpsError};
use tokio::sync::watch;

/// How long an end waits for the lease: longer than an election, shorter than what service managers grant.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between the daemon's end and its heartbeats.
#[derive(Debug)]
pub struct Restart {
    asked: watch::Sender<bool>,
    granted: watch::Sender<bool>,
}

impl Default for Restart {
    fn default() -> Self {
        Self { asked: watch::Sender::new(false), granted: watch::Sender::new(false) }
    }
}

impl Restart {
    /// Whether heartbeats are to ask for a restart lease.
    pub(crate) fn asked(&self) -> watch::Receiver<bool> {
        self.asked.subscribe()
    }

    /// The fence process has a lease of that length.
    pub(crate) fn renewed(&self, lease: Duration) {
        if lease >= RESTART_LEASE {
            self.granted.send_replace(true);
        }
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
        let mut granted = self.granted.subscribe();
        // From here on no mark is ended by this daemon, but for one whose commit is on its way, over a revision before this mark.
        self.asked.send_replace(true);
        mark(ops, true, &known(ops)?).await?;
        // It ends with `self` alone.
        let _ = granted.wait_for(|granted| *granted).await;
        Ok(())
    }
}

/// After a restart: the fence process holds to the ordinary lease that it was just given, and the mark goes.
pub async fn end(ops: &Ops) -> Result<(), OpsError> {
    // Read before: see above.
    let record = known(ops)?;
    ops.fence.shorten().await?;
    mark(ops, false, &record).await?;
    tracing::info!("the restart lease is over");
    Ok(())
}

/// Writes this node's record with or without the mark, over the one that was read.
async fn mark(ops: &Ops, restart: bool, read: &At<stead_model::NodeRecord>) -> Result<(), OpsError> {
    let mut record = read.value.clone();
    record.restart = restart.then(|| ops.me.boot.clone());
    let what = if restart { "is about to restart its daemon" } else { "has restarted its daemon" };
    let mut txn = store::txn("root@pam", format!("node '{}' {what}", ops.me.name));
    store::put_over(&mut txn, &paths::node(&ops.me.name), Some(read.revision), store::bytes(&record)?);
    ops.conf.transact(txn).await?;
    Ok(())
}
