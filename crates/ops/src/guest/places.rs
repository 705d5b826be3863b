//! How many moves of running VMs a node sends at a time: each more takes from the others' share of the network, so that all of them take
//! longer and more of their memory changes meanwhile.

use crate::{Ops, OpsError};
use std::sync::{Mutex, PoisonError};
use stead_tasks::TaskContext;
use tokio::sync::Notify;

/// Where the cluster's options do not say `max_workers`.
const USUAL: usize = 4;

/// The places, and how many are taken.
#[derive(Debug, Default)]
pub struct Places {
    taken: Mutex<usize>,
    freed: Notify,
}

/// A place, until this is dropped.
#[derive(Debug)]
pub(super) struct Taken<'a>(&'a Places);

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        *self.0.taken.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        self.0.freed.notify_waiters();
    }
}

impl Places {
    /// Takes a place at once, if one of so many is free.
    pub(super) fn try_take(&self, limit: usize) -> Option<Taken<'_>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        (*taken < limit.max(1)).then(|| {
            *taken += 1;
            Taken(self)
        })
    }

    /// Waits for a place.
    pub(super) async fn take(&self, limit: usize) -> Taken<'_> {
        loop {
            let freed = self.freed.notified();
            tokio::pin!(freed);
            // Heard from here on: what is freed between the look and the wait counts.
            freed.as_mut().enable();
            if let Some(place) = self.try_take(limit) {
                return place;
            }
            freed.await;
        }
    }
}

impl Ops {
    /// A place among the running VMs that this node sends at a time: `max_workers` of the cluster's options.
    pub(super) async fn place_to_send(&self, cx: &TaskContext) -> Result<Taken<'_>, OpsError> {
        let limit = self.datacenter()?.0.max_workers().unwrap_or(USUAL);
        if let Some(place) = self.guest_locks.sending.try_take(limit) {
            return Ok(place);
        }
        cx.log(format!("{limit} running VMs are being moved from this node: waiting until one has gone"));
        let place = cx.or_cancelled(self.guest_locks.sending.take(limit)).await;
        place.map_err(|e| OpsError::failed(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn who_finds_no_place_waits_for_one() {
        let places = Places::default();
        let (first, second) = (places.take(2).await, places.take(2).await);
        assert!(places.try_take(2).is_none());
        assert!(places.try_take(3).is_some(), "the limit was raised, and the place is free again");
        let gives_up = tokio::time::timeout(Duration::from_millis(5), places.take(2)).await;
        assert!(gives_up.is_err());
        let (third, ()) = tokio::join!(places.take(2), async { drop(first) });
        assert!(places.try_take(2).is_none());
        drop((second, third));
        assert_eq!(*places.taken.lock().unwrap(), 0);
        assert!(places.try_take(0).is_some(), "one goes always");
    }
}
