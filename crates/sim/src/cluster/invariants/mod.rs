//! What must hold, one file each.
//!
//! | checked | invariants |
//! |---|---|
//! | after every event | [`once`], [`owner`], [`leased`] |
//! | at every commit | [`reasons`], [`counters`] |
//! | at every decision of the manager | [`rules`] |
//! | when all faults have ended for long enough | [`healed`] |

pub mod counters;
pub mod healed;
pub mod leased;
pub mod once;
pub mod owner;
pub mod reasons;
pub mod rules;

use super::store::{Tree, Txn};
use super::world::World;

/// A check says how its invariant is broken, if it is.
pub(super) type Check = fn(&World) -> Option<String>;

/// A check of a commit, with what was committed before.
pub(super) type CheckCommit = fn(&mut World, &Tree, &Txn) -> Option<String>;

/// The safety invariants, by name.
pub(super) const ALL: [(&str, Check); 3] =
    [("once", once::check), ("owner", owner::check), ("leased", leased::check)];

/// The invariants of commits, by name.
pub(super) const OF_COMMITS: [(&str, CheckCommit); 2] =
    [("reasons", reasons::check), ("counters", counters::check)];
