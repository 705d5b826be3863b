//! The fence process as `ops` and `agents` see it.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;
use stead_model::{Epoch, Vmid};

/// What the fence process must know of a guest before the guest's process is executed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registration {
    /// The guest.
    pub vmid: Vmid,
    /// The ownership under which it will run. For an incoming migration: the epoch that the hand-over commits.
    pub epoch: Epoch,
    /// The guest's cgroup folder (v2, or v1 freezer), where one can be made.
    pub cgroup: Option<PathBuf>,
    /// The QMP monitor that only the fence process uses. It may not exist yet.
    pub monitor: PathBuf,
    /// The file in which the guest's process writes its pid. It may not exist yet.
    pub pidfile: PathBuf,
    /// It may fetch memory while it runs, from the process that it came from: without that connection its CPUs can't be stopped.
    /// Registered again without this, it has all of it.
    #[serde(default)]
    pub fetches: bool,
}

/// Where a registered guest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Registered, not continued yet.
    Registered,
    /// Continued under a good lease.
    Released,
    /// The lease ran out: being made safe.
    Stopping,
    /// Verified paused, then frozen. Waits for a decision.
    Held,
    /// Could not be verified safe by the deadline; the power switch was asked to reset.
    Unsafe,
}

/// What the fence process answers to `status`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FenceStatus {
    /// Milliseconds until the lease ends; none when there is no lease.
    pub lease_left_ms: Option<u64>,
    /// Every registered guest.
    pub guests: Vec<(Vmid, Epoch, Hold)>,
}

/// A failed request to the fence process.
#[derive(Debug, thiserror::Error)]
pub enum FenceError {
    /// The lease is not good; nothing was continued.
    #[error("the fence process refuses to run guest {0}: this node holds no lease")]
    NoLease(Vmid),
    /// The guest is not registered under that epoch.
    #[error("the fence process knows no guest {0} of epoch {1}")]
    Unknown(Vmid, Epoch),
    /// The guest did not do as asked.
    #[error("the fence process could not {what} guest {vmid}: {why}")]
    Guest {
        /// What was attempted.
        what: &'static str,
        /// On which guest.
        vmid: Vmid,
        /// Why it failed.
        why: String,
    },
    /// The process does not answer.
    #[error("the fence process does not answer: {0}")]
    Gone(String),
}

/// Requests to the fence process. Only it gives a guest's first push.
#[async_trait]
pub trait Fence: Send + Sync {
    /// A fresh nonce for a heartbeat; the fence process notes the moment, from which the lease will count.
    async fn nonce(&self) -> Result<u64, FenceError>;
    /// The leader granted `lease_ms` to the heartbeat that carried `nonce`; `drain_ms` is D of the profile.
    async fn renew(
        &self,
        nonce: u64,
        lease_ms: u64,
        drain_ms: u64,
        watchdog_ms: u64,
    ) -> Result<(), FenceError>;
    /// Holds to the lease granted last alone, although one before it ends later. From the answer on that one is over for good. Refused where
    /// the last one was granted for more than `lease_ms`.
    async fn shorten(&self, lease_ms: u64) -> Result<(), FenceError>;
    /// Makes a guest known, before its process is executed. Repeating it is no error.
    async fn register(&self, guest: Registration) -> Result<(), FenceError>;
    /// Forgets a guest whose process is gone (or was handed over and ended).
    async fn forget(&self, vmid: Vmid) -> Result<(), FenceError>;
    /// First `cont`, or the thaw of a held guest whose epoch was confirmed unchanged by a linearizable read.
    async fn run(&self, vmid: Vmid, epoch: Epoch) -> Result<(), FenceError>;
    /// Thaws a held guest, and leaves its CPUs as they are, which stand for good: one that has been handed over, and is fetched from.
    async fn thaw(&self, vmid: Vmid, epoch: Epoch) -> Result<(), FenceError>;
    /// What it holds.
    async fn status(&self) -> Result<FenceStatus, FenceError>;
    /// Every guest that it may hold, by what was asked of it and what it answered last. Needs no answer: it is what
    /// remains to be made safe when there is no fence process any more.
    fn entrusted(&self) -> Vec<Vmid>;
}
