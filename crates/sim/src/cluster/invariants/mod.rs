//! What must hold. The first three are checked after every event, the last one when the cluster has healed.

pub mod healed;
pub mod leased;
pub mod once;
pub mod owner;

use super::world::World;

/// A check says how its invariant is broken, if it is.
pub(super) type Check = fn(&World) -> Option<String>;

/// The safety invariants, by name.
pub(super) const ALL: [(&str, Check); 3] =
    [("once", once::check), ("owner", owner::check), ("leased", leased::check)];
