//! Balloons of running VMs follow what their host has left: [`stead_guest::balloon`] says how.
//!
//! A VM takes part whose `balloon` is less than its `memory`, and not 0, whose `shares` are not 0, and whose system has said by its balloon
//! that it has a driver for it. Every other one keeps what it was given.

use super::config::parse;
use crate::Ops;
use std::time::Duration;
use stead_driver::guest::{GuestProcess, RunState};
use stead_guest::balloon::{Guest, targets};

/// How long a round waits for whoever is at a VM.
const BRIEFLY: Duration = Duration::from_secs(1);

impl Ops {
    /// One round over this node's VMs, given its memory and what is taken of it, in bytes. What can't be done now is done in a later
    /// one.
    pub async fn balance_memory(&self, total: u64, used: u64) {
        let guests: Vec<Guest> = self.guests.list().await.iter().filter_map(|p| self.balloon_of(p)).collect();
        for (vmid, target) in targets(total, used, &guests) {
            // Whoever is at it may be about to move it, or to change its memory. But a look of the node at its guests, which can come at
            // the same moment each time, is over soon.
            let Ok(_lock) = self.guest_locks.lock_within(vmid, BRIEFLY).await else { continue };
            let known = |p: &GuestProcess| self.balloon_of(p).is_some_and(|g| guests.contains(&g));
            if self.guests.state(vmid).await.is_none_or(|p| !known(&p)) {
                continue;
            }
            tracing::debug!(%vmid, mib = target >> 20, "its balloon follows the host's memory");
            if let Err(e) = self.guests.set_balloon(vmid, target).await {
                tracing::debug!(%vmid, "its balloon stays as it is: {e}");
            }
        }
    }

    /// The guest of a process, if its balloon is managed.
    fn balloon_of(&self, process: &GuestProcess) -> Option<Guest> {
        let balloon =
            process.balloon.as_deref().filter(|b| b.stats.is_some() && process.state == RunState::Running)?;
        let own = self.vm_at(process.vmid).ok()?;
        if own.own.value.epoch != process.epoch {
            return None;
        }
        let settings = parse(&own.config.value).ok()?.current;
        let (least, most) = (settings.balloon().ok()??, settings.memory().ok()?);
        let shares = settings.shares().ok()?;
        if settings.lock().is_some() || shares == 0 || least.0 == 0 || least >= most {
            return None;
        }
        let (least, most) = (least.0 << 20, most.0 << 20);
        Some(Guest { vmid: process.vmid, shares, least, most, now: balloon.actual })
    }
}
