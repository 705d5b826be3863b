//! What becomes of guests that the fence process has made safe, once the node has a lease again.

use crate::{Ops, OpsError, store};
use futures_util::future::join_all;
use std::collections::BTreeSet;
use stead_conf::Check;
use stead_driver::fence::Hold;
use stead_guest::copy::{Claim, claim};
use stead_model::{Epoch, Ownership, Vmid, paths};

impl Ops {
    /// Decides every held guest, by a read that is as new as any commit before: epoch unchanged, it goes on as if
    /// nothing had been; else this copy is old and is destroyed. To be called under a lease; what can't be decided now is
    /// decided when it is called again.
    pub async fn decide_held(&self, guests: &[(Vmid, Epoch, Hold)]) {
        let held: Vec<_> = guests.iter().filter(|g| g.2 == Hold::Held).collect();
        if held.is_empty() || self.conf.barrier().await.is_err() {
            return;
        }
        // Beside each other: one that takes its time, since its disk hangs, holds up no other.
        join_all(held.into_iter().map(async |&(vmid, epoch, _)| {
            if let Err(e) = self.decide_one(vmid, epoch).await {
                tracing::warn!("guest {vmid}: what becomes of its held copy could not be decided yet: {e}");
            }
        }))
        .await;
    }

    async fn decide_one(&self, vmid: Vmid, epoch: Epoch) -> Result<(), OpsError> {
        let own = self.ownership(vmid)?;
        match claim(own.as_ref(), &self.me.name, epoch) {
            Claim::Owner if own.as_ref().is_some_and(|o| o.running) => self.thaw(vmid, epoch).await,
            // Decided by whoever awaits the hand-over.
            Claim::Heir => Ok(()),
            Claim::Old if self.may_serve_on(vmid, epoch).await => {
                self.fence.thaw(vmid, epoch).await?;
                tracing::info!(
                    "guest {vmid}: the lease is back: its copy of epoch {epoch} is fetched from again"
                );
                Ok(())
            }
            Claim::Owner => self.end_unrecorded(vmid, epoch).await,
            Claim::Old => {
                tracing::warn!("guest {vmid}: its copy of epoch {epoch} is old: it is destroyed");
                self.destroy_copy(vmid).await
            }
        }
    }

    /// Destroys a copy of a guest of this node whose record says that it does not run, unless a task has the guest's mutex: then it is
    /// that one's, which is about to record that it runs, or waits for another cluster's word on it.
    async fn end_unrecorded(&self, vmid: Vmid, epoch: Epoch) -> Result<(), OpsError> {
        let Some(_lock) = self.guest_locks.try_lock(vmid) else { return Ok(()) };
        let own = self.ownership(vmid)?;
        if claim(own.as_ref(), &self.me.name, epoch) == Claim::Owner && own.is_some_and(|o| o.running) {
            return Err(OpsError::failed("it was recorded as running just now"));
        }
        tracing::warn!("guest {vmid}: its copy of epoch {epoch} is not recorded as running: it is destroyed");
        self.destroy_copy(vmid).await
    }

    /// Whether a held copy is one that the guest's owner fetches from.
    async fn may_serve_on(&self, vmid: Vmid, epoch: Epoch) -> bool {
        let process = self.guests.state(vmid).await.filter(|p| p.epoch == epoch);
        process.is_some_and(|p| self.may_be_fetched_from(&p))
    }

    /// Destroys every copy here that is not the guest, guarded or not, those that wait for a hand-over too. Gives that the records
    /// of those that stay are as they were read: an entry must say so, since a recovery may be committed before it, and one
    /// that is just being started is not asked about again.
    pub async fn destroy_old_copies(&self) -> Result<Vec<Check>, OpsError> {
        let guarded = self.fence.status().await?.guests.into_iter().map(|(vmid, epoch, _)| (vmid, epoch));
        let processes = self.guests.list().await.into_iter().map(|p| (p.vmid, p.epoch));
        let mut kept = vec![];
        for (vmid, epoch) in guarded.chain(processes).collect::<BTreeSet<_>>() {
            let path = paths::ownership(vmid);
            match self.conf.view(|t| store::record::<Ownership>(t, &path))? {
                Some(own) if claim(Some(&own.value), &self.me.name, epoch) == Claim::Owner => {
                    kept.push(Check::Revision(path, own.revision));
                }
                _ => {
                    tracing::warn!("guest {vmid}: its copy of epoch {epoch} is old: it is destroyed");
                    self.destroy_copy(vmid).await?;
                }
            }
        }
        Ok(kept)
    }

    /// A guest that was being migrated may have sent all of its state, and the proposal to hand it over may still be on
    /// its way: it is taken back first, after which that proposal can't be committed. What is taken back is what says that the guest runs:
    /// one that was given to another cluster has the same lock, and does not.
    async fn thaw(&self, vmid: Vmid, epoch: Epoch) -> Result<(), OpsError> {
        let guest = self.guest_at(vmid)?;
        let own = &guest.own.value;
        if claim(Some(own), &self.me.name, epoch) != Claim::Owner || !own.running {
            return Err(OpsError::failed("its record has changed meanwhile"));
        }
        if super::config::parse(&guest.config.value)?.current.lock() == Some(super::migrate::LOCK) {
            self.take_back(&guest).await?;
        }
        self.fence.run(vmid, epoch).await?;
        tracing::info!("guest {vmid}: the lease is back and epoch {epoch} unchanged: it goes on");
        Ok(())
    }
}
