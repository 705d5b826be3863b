//! Fault search of leases, fencing and HA together, on a modelled cluster in virtual time.
//!
//! What decides is the real thing: [`stead_membership::Holder`], [`stead_membership::Grantor`], the HA manager's
//! [`stead_ha::step`] and the agents' [`stead_ha::Agent`]. What carries out is modelled, with the order of its steps as
//! in the daemon's shells, and so is what lies below:
//!
//! | modelled | as |
//! |---|---|
//! | the configuration ([`store`]) | a linearizable log; elections, rounds and proposals by messages that can be late or lost; a proposal may be forwarded late, by a node that was deposed meanwhile |
//! | a machine ([`node`]) | clock that errs by up to 1 %, power, watchdog that counts by itself, daemon and fence process that can be paused, killed and started again |
//! | a guest | stopped, running, frozen, hung; slow to start; moved only while it is stopped |
//!
//! One seed is one history: [`run`] replays it exactly. A history has a phase of faults, in which the safety invariants
//! are checked after every event, and a phase of healing, after which every service must be in its requested state. Each
//! invariant is one file in `invariants`. A [`Plant`] is a mistake in the wiring that the search must find.

mod config;
mod daemon;
mod faults;
mod invariants;
mod node;
mod scene;
mod store;
mod tasks;
mod world;

#[cfg(test)]
mod tests;

pub use scene::{PlayError, play};
pub use world::{Outcome, run};

use std::time::Duration;

/// How a history is made.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Nodes: 3 to 9.
    pub nodes: usize,
    /// Guests, each a service that is to be kept running.
    pub guests: u32,
    /// How long faults are injected.
    pub faults: Duration,
    /// How long the cluster has to heal after that. Zero: only safety is looked at.
    pub healing: Duration,
    /// A mistake, to show that it would be found.
    pub plant: Plant,
    /// Nothing is left to chance: no faults, every delay as short as it can be, clocks that do not err.
    pub calm: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 3,
            guests: 3,
            faults: Duration::from_secs(60),
            healing: Duration::from_secs(90),
            plant: Plant::None,
            calm: false,
        }
    }
}

/// A mistake in the wiring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plant {
    /// None.
    None,
    /// A recovery relies on the committed loss alone, whoever decided it.
    LossIsSettled,
    /// The lease counts from the answer's arrival.
    LeaseFromAnswer,
    /// Leadership is believed, not confirmed.
    UnconfirmedGrant,
    /// A node that enters again keeps its guests, and continues them as soon as it has a lease.
    ThawUnasked,
    /// A node that reports nothing counts as lost, and its record is not checked.
    SilenceIsLoss,
    /// The watchdog's time-out is longer than D + W.
    SlowWatchdog,
    /// A machine is not reset when it should be: neither by the switch nor by the watchdog.
    NoReset,
}
