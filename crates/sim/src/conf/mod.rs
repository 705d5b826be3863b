//! Fault search for the replicated configuration: the real driver and the real state machine, over modelled disks
//! and a modelled network, in virtual time. One seed decides everything, so a failure replays.
//!
//! ```text
//!   faults (8 s) : loss, delay, repetition, one-way cuts, crashes at disk operations, refused writes, pauses,
//!                  members coming and going, leaders handed over, nodes held, log compaction and snapshots all the time
//!   healing      : links whole, nodes up; now it must make progress, though one voter of three or more may be held on
//! ```
//!
//! [`invariants`] are checked after every event. A [`Bug`] can be planted in the part that the host of a driver plays,
//! to show that the search finds it.

pub mod dice;
pub mod disk;
mod elections;
mod faults;
pub mod invariants;
pub mod network;
pub(crate) mod node;
mod workload;
mod world;

pub use elections::{election, election_by_witness};
pub(crate) use world::panicked;
pub use world::{Figures, run};

/// A mistake that a host of the driver could make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bug {
    /// None: the search must find nothing.
    #[default]
    None,
    /// Reports writes as durable before they are.
    EarlyReport,
    /// Starts again with the boot number it had.
    SameBoot,
    /// Forgets whom it voted for.
    ForgetVote,
    /// Answers a barrier without asking anyone.
    LocalBarrier,
    /// Opens a store without the hold that it had.
    ForgetHold,
    /// Takes all of its log for committed when it starts.
    CommitAll,
    /// Gives two reads the same name.
    SameRead,
    /// Sends a state without its members: as if the first node were the only one.
    SnapshotWithoutMembers,
    /// Goes on with the members that it had, whatever is decided.
    FormerVoters,
    /// Tells subscribers nothing of one commit in fifty.
    DroppedEvent,
    /// Carries out the first half of a move alone. All nodes do, so that their states agree.
    HalfMove,
    /// Loses what was on disk at a crash, and does not notice.
    LostTail,
}

/// What a run is about.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Decides everything.
    pub seed: u64,
    /// Planted.
    pub bug: Bug,
    /// Runs the real store over modelled sectors, which is slower.
    pub pages: bool,
}

/// A broken invariant, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, after {at_us} us of virtual time: {what}")]
pub struct Failure {
    /// Replays it.
    pub seed: u64,
    /// Virtual time.
    pub at_us: u64,
    /// What was broken.
    pub what: String,
}
