//! Leases, epochs, liveness and fencing decisions, who votes ([`voters`]), and who gives way
//! where cluster epochs meet ([`epochs`]). Pure.
//!
//! Two halves that only meet through messages:
//!
//! ```text
//!   a node's fence process                     the leader
//!   ┌───────────┐  nonce   ┌────────┐ heartbeat ┌─────────┐ confirm round ┌──────┐
//!   │  Holder   │─────────▶│ daemon │──────────▶│ Grantor │──────────────▶│ Raft │
//!   │           │◀─────────│        │◀──────────│         │◀──────────────│      │
//!   └───────────┘  renew   └────────┘  answer   └─────────┘   confirmed   └──────┘
//!    make safe, reset                            declare lost
//! ```
//!
//! The promise between them, on which "a guest never runs twice" rests: *when the leader's [`Grantor`] calls a
//! node settled, that node's [`Holder`] has either verified every guest paused or reset the machine.* The holder
//! counts from before it sent, with 1 % taken off; the grantor counts from after it received, with 1 % added.
//! So the promise needs no synchronised clocks, only clocks whose rates err by no more than 1 %, and it
//! holds for any delay, loss, repetition and reordering of messages.
//!
//! Nothing here reads a clock. Every moment is a [`Moment`]: time since boot with suspension counted
//! (`CLOCK_BOOTTIME`) of the machine on which the value lives; moments of two machines are never compared.

use std::time::Duration;
use stead_model::FenceProfile;

pub mod epochs;
pub mod grantor;
pub mod holder;
pub mod voters;
pub mod wire;

pub use grantor::{DeclareFailure, Declared, Grantor, GrantorCommand, Member, PowerOff};
pub use holder::{Hold, Holder, HolderCommand, RegisterError, RenewError, Report, RunError};
pub use wire::{Heartbeat, HeartbeatAnswer, Outcome, Refusal};

/// Time since boot (`CLOCK_BOOTTIME`) of one machine.
pub type Moment = Duration;

/// Takes 1 % off, for a clock that may be slow: what this side waits has truly passed by then.
pub fn less_drift(time: Duration) -> Duration {
    time * 99 / 100
}

/// How long a restart lease is: for a daemon that is started anew, or upgraded, on purpose.
pub const RESTART_LEASE: Duration = Duration::from_secs(60);

/// The fence time of a restart lease. It may have been granted under any profile, so the longest D and W count.
pub fn restart_fence_time() -> Duration {
    let wan = FenceProfile::Wan;
    (RESTART_LEASE.max(wan.lease()) + wan.drain() + wan.watchdog()) * 101 / 100
}

#[cfg(test)]
mod promise;
