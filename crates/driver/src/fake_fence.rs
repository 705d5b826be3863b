//! A fence process that is a value: for tests of what stands above it. It keeps the rules (no lease, no run;
//! what is held is run by name alone), and a test ends the lease by its word instead of a clock's.

use crate::fence::{Fence, FenceError, FenceStatus, Hold, Registration};
use async_trait::async_trait;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use stead_model::{Epoch, Vmid};

#[derive(Debug, Default)]
struct State {
    nonce: u64,
    lease_ms: Option<u64>,
    gone: bool,
    /// How often the lease was shortened.
    shortened: u32,
    guests: BTreeMap<Vmid, (Registration, Hold)>,
    /// What was continued, in order.
    ran: Vec<(Vmid, Epoch)>,
}

/// A fence process for tests.
#[derive(Debug, Default)]
pub struct FakeFence(Mutex<State>);

impl FakeFence {
    /// With a lease that does not end by itself.
    pub fn leased() -> Self {
        let fence = Self::default();
        fence.state().lease_ms = Some(60_000);
        fence
    }

    /// The lease ends: what ran is held.
    pub fn end_lease(&self) {
        let mut state = self.state();
        state.lease_ms = None;
        for (_, hold) in state.guests.values_mut().filter(|(_, hold)| *hold == Hold::Released) {
            *hold = Hold::Held;
        }
    }

    /// From now on nothing is answered (or everything again).
    pub fn set_gone(&self, gone: bool) {
        self.state().gone = gone;
    }

    /// How often the lease was shortened.
    pub fn shortened(&self) -> u32 {
        self.state().shortened
    }

    /// Whether a guest is registered as one that may fetch memory; none if it is not registered.
    pub fn may_fetch(&self, vmid: Vmid) -> Option<bool> {
        self.state().guests.get(&vmid).map(|(guest, _)| guest.fetches)
    }

    /// What was continued, in order.
    pub fn ran(&self) -> Vec<(Vmid, Epoch)> {
        self.state().ran.clone()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn answering(&self) -> Result<MutexGuard<'_, State>, FenceError> {
        let state = self.state();
        if state.gone { Err(FenceError::Gone("a test says so".to_owned())) } else { Ok(state) }
    }
}

#[async_trait]
impl Fence for FakeFence {
    async fn nonce(&self) -> Result<u64, FenceError> {
        let mut state = self.answering()?;
        state.nonce += 1;
        Ok(state.nonce)
    }

    async fn renew(
        &self,
        nonce: u64,
        lease_ms: u64,
        _drain_ms: u64,
        _watchdog_ms: u64,
    ) -> Result<(), FenceError> {
        let mut state = self.answering()?;
        if nonce == 0 || nonce > state.nonce {
            return Err(FenceError::Gone(format!("it refused to renew the lease: nonce {nonce} is unknown")));
        }
        state.lease_ms = Some(lease_ms);
        Ok(())
    }

    async fn shorten(&self, lease_ms: u64) -> Result<(), FenceError> {
        let mut state = self.answering()?;
        if state.lease_ms.is_none_or(|is| is > lease_ms) {
            return Err(FenceError::Gone(
                "it refused to shorten the lease: there is none so short".to_owned(),
            ));
        }
        state.shortened += 1;
        Ok(())
    }

    async fn register(&self, guest: Registration) -> Result<(), FenceError> {
        let mut state = self.answering()?;
        match state.guests.get(&guest.vmid) {
            Some((old, hold)) if old.epoch == guest.epoch => {
                let hold = *hold;
                state.guests.insert(guest.vmid, (guest, hold));
            }
            Some((old, _)) if old.epoch > guest.epoch => {
                let why = format!("it was registered under the later epoch {}", old.epoch);
                return Err(FenceError::Guest { what: "register", vmid: guest.vmid, why });
            }
            _ => drop(state.guests.insert(guest.vmid, (guest, Hold::Registered))),
        }
        Ok(())
    }

    async fn forget(&self, vmid: Vmid) -> Result<(), FenceError> {
        self.answering()?.guests.remove(&vmid);
        Ok(())
    }

    async fn run(&self, vmid: Vmid, epoch: Epoch) -> Result<(), FenceError> {
        let mut state = self.answering()?;
        let leased = state.lease_ms.is_some();
        match state.guests.get_mut(&vmid) {
            Some((guest, hold)) if guest.epoch == epoch => {
                if !leased {
                    return Err(FenceError::NoLease(vmid));
                }
                *hold = Hold::Released;
            }
            _ => return Err(FenceError::Unknown(vmid, epoch)),
        }
        state.ran.push((vmid, epoch));
        Ok(())
    }

    async fn thaw(&self, vmid: Vmid, epoch: Epoch) -> Result<(), FenceError> {
        let mut state = self.answering()?;
        if state.lease_ms.is_none() {
            return Err(FenceError::NoLease(vmid));
        }
        match state.guests.get_mut(&vmid) {
            Some((guest, hold)) if guest.epoch == epoch => *hold = Hold::Released,
            _ => return Err(FenceError::Unknown(vmid, epoch)),
        }
        Ok(())
    }

    async fn status(&self) -> Result<FenceStatus, FenceError> {
        let state = self.answering()?;
        let guests = state.guests.iter().map(|(vmid, (guest, hold))| (*vmid, guest.epoch, *hold)).collect();
        Ok(FenceStatus { lease_left_ms: state.lease_ms, guests })
    }

    fn entrusted(&self) -> Vec<Vmid> {
        self.state().guests.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_keeps_the_rules() {
        let fence = FakeFence::default();
        let (vmid, epoch) = (Vmid::new(100).unwrap(), Epoch(3));
        let guest = Registration {
            vmid,
            epoch,
            cgroup: None,
            monitor: "m".into(),
            pidfile: "p".into(),
            fetches: false,
        };
        fence.register(guest).await.unwrap();
        assert!(matches!(fence.run(vmid, epoch).await, Err(FenceError::NoLease(_))));
        let nonce = fence.nonce().await.unwrap();
        fence.renew(nonce, 4000, 1000, 2000).await.unwrap();
        assert!(matches!(fence.run(vmid, Epoch(4)).await, Err(FenceError::Unknown(..))));
        fence.run(vmid, epoch).await.unwrap();
        fence.end_lease();
        assert_eq!(fence.status().await.unwrap().guests, [(vmid, epoch, Hold::Held)]);
        fence.renew(nonce, 4000, 1000, 2000).await.unwrap();
        assert_eq!(fence.status().await.unwrap().guests, [(vmid, epoch, Hold::Held)]);
        fence.run(vmid, epoch).await.unwrap();
        assert_eq!(fence.ran().len(), 2);
        fence.set_gone(true);
        assert!(matches!(fence.status().await, Err(FenceError::Gone(_))));
    }
}
