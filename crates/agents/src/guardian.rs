//! The daemon's last word: while a fence process answers, it alone guards the guests. When none answers any more
//! (it died and could not be started again, or it hangs), no lease is renewed, the cluster gives this node up, and its
//! guests are recovered elsewhere. So by the time at which the fence process would have made them safe, the daemon
//! ends what was entrusted to it.
//!
//! ```text
//!   renewed ──L──▶ lease over ──ask──▶ answers: it guards them ──D/2──▶ ask again, until a renewal
//!                                └───▶ silent for D/2: SIGKILL of every guest entrusted to it
//! ```
//!
//! A SIGKILL is less than a verified pause: writes that the kernel has taken may still be carried out. Behind it stands
//! the watchdog, which the fence process alone feeds.

use crate::clock::boottime;
use futures_util::future::join_all;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use stead_driver::fence::Fence;
use stead_driver::guest::{GuestDriver, GuestError};
use stead_model::Vmid;
use stead_ops::{Ops, store};
use tokio::sync::watch;

/// A lease that was granted to a heartbeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Renewal {
    /// When the heartbeat began: time since boot. The lease counts from a later moment, never from an earlier one.
    pub sent: Duration,
    /// L.
    pub lease: Duration,
    /// D.
    pub drain: Duration,
}

/// Guards for as long as the daemon runs; ends with the sender of renewals.
pub async fn run(ops: Arc<Ops>, renewed: watch::Receiver<Renewal>) {
    let (fence, guests) = (ops.fence.clone(), ops.guests.clone());
    guard(fence, renewed, || end(guests.clone(), unguarded(&ops))).await;
}

async fn guard<E: Future<Output = ()>>(
    fence: Arc<dyn Fence>,
    mut renewed: watch::Receiver<Renewal>,
    mut silent: impl FnMut() -> E,
) {
    loop {
        let Renewal { sent, lease, drain } = *renewed.borrow_and_update();
        let left = (sent + lease).saturating_sub(boottime());
        match tokio::time::timeout(left, renewed.changed()).await {
            Ok(Ok(())) => continue,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
        if !answers(&*fence, drain / 2).await {
            silent().await;
        }
        if let Ok(Err(_)) = tokio::time::timeout(drain / 2, renewed.changed()).await {
            return;
        }
    }
}

/// Whether the fence process lives. One that answers is carrying out what is due: it does nothing else first.
async fn answers(fence: &dyn Fence, within: Duration) -> bool {
    matches!(tokio::time::timeout(within, fence.status()).await, Ok(Ok(_)))
}

/// Every guest here that others may hold to be guarded: what was entrusted to the fence process, and what the records
/// say.
fn unguarded(ops: &Ops) -> BTreeSet<Vmid> {
    let armed = ops.conf.view(store::guests).into_iter();
    let armed = armed.filter(|(_, own)| own.owner == ops.me.name && own.armed).map(|(vmid, _)| vmid);
    armed.chain(ops.fence.entrusted()).collect()
}

async fn end(guests: Arc<dyn GuestDriver>, vmids: BTreeSet<Vmid>) {
    join_all(vmids.into_iter().map(|vmid| end_one(&*guests, vmid))).await;
}

async fn end_one(guests: &dyn GuestDriver, vmid: Vmid) {
    match guests.kill(vmid).await {
        Ok(()) => {
            tracing::error!(
                "guest {vmid} was ended: the fence process does not answer, the lease is over, and the cluster may \
                 start it elsewhere"
            );
        }
        Err(GuestError::NotRunning(_)) => {}
        Err(e) => tracing::error!("guest {vmid} runs unguarded and could not be ended: {e}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stead_driver::fake_fence::FakeFence;

    #[tokio::test]
    async fn silence_after_the_lease_and_nothing_else_ends_the_guests() {
        let fence = Arc::new(FakeFence::leased());
        let (lease, drain) = (Duration::from_millis(200), Duration::from_millis(40));
        let renewal = || Renewal { sent: boottime(), lease, drain };
        let (renewed, renewals) = watch::channel(renewal());
        let (told, mut ends) = tokio::sync::mpsc::unbounded_channel();
        let guarding = guard(fence.clone(), renewals, async || told.send(boottime()).unwrap());
        let story = async {
            // An answering fence process is left to its work, long after the lease.
            let waited = tokio::time::timeout(lease * 2, ends.recv()).await;
            assert!(waited.is_err(), "ended although the fence process answers");
            fence.set_gone(true);
            let last = renewal();
            renewed.send_replace(last);
            let ended = ends.recv().await.unwrap();
            assert!(ended >= last.sent + lease, "ended while the lease was good");
            ends.recv().await.unwrap();
            drop(renewed);
        };
        tokio::join!(guarding, story);
    }
}
