//! Fault search of leases, fencing, HA and migration together, on a modelled cluster in virtual time.
//!
//! What decides is the real thing: [`stead_membership::Holder`], [`stead_membership::Grantor`], the HA manager's
//! [`stead_ha::step`], the agents' [`stead_ha::Agent`] and the plan of a migration, [`stead_guest::migration::Migration`]. What carries out is
//! modelled, with the order of its steps as in the daemon's shells, and so is what lies below:
//!
//! | modelled | as |
//! |---|---|
//! | the configuration (`store`, `modelled`; with [`Conf::Real`] it is the real driver, `real`) | a linearizable log; elections, rounds and proposals by messages that can be late, lost or doubled; a proposal may hang, or be forwarded late by a node that was deposed meanwhile |
//! | a machine (`node`, `machine`) | clock that errs by up to 1 %, power, watchdog that counts by itself, daemon and fence process that can be paused, killed and started again |
//! | a storage that all share (`storage`; in every fifth history) | each node may lose it, or find that it hangs: then guests there do not end |
//! | fence devices (`power`; in every other history) | two outlets a machine, which work, fail silently, are slow, or are gone with the machine's power; agents that outlive the daemon that started them; somebody who turns machines on again |
//! | a guest | waiting, running, frozen, hung; slow to start, to stop and to be sent; QEMU goes on by itself when a migration fails |
//!
//! One seed is one history. What is done to the cluster, faults and users' changes, is drawn before it begins (`script`), and
//! whatever else is left to chance comes from dice of each node and link (`dice`); so acts can be taken out of a history
//! while the rest keeps its meaning, and [`shrink`] does that. A history has a phase of faults and a phase of healing; each invariant is one
//! file in `invariants`. A [`Plant`] is a mistake in the wiring that the search must find.

mod cables;
mod config;
mod consensus;
mod daemon;
mod dice;
mod faults;
mod hands;
mod invariants;
pub mod lab;
mod machine;
mod modelled;
mod moves;
mod node;
mod owners;
mod plant;
mod power;
mod real;
mod records;
mod scene;
mod script;
mod search;
mod storage;
mod store;
mod tasks;
mod tell;
mod users;
mod watch;
mod world;

#[cfg(test)]
mod tests;

pub use consensus::Conf;
pub use lab::Lab;
pub use plant::Plant;
pub use scene::{PlayError, play};
pub use search::{Finding, Found, Progress, Search, shrink};
pub use world::{Breach, Outcome, replay, run};

use std::collections::BTreeSet;
use std::time::Duration;

/// How a history is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Plan {
    /// Nodes: 3 to 9.
    pub nodes: usize,
    /// Guests, each under HA at first.
    pub guests: u32,
    /// How long faults are injected.
    pub faults: Duration,
    /// How long the cluster has to heal after that. Zero: only safety is looked at.
    pub healing: Duration,
    /// A mistake, to show that it would be found.
    pub plant: Plant,
    /// Nothing is left to chance: every delay is as short as it can be, clocks do not err.
    pub calm: bool,
    /// Who keeps the configuration.
    pub conf: Conf,
    /// By how much clocks err at most, in a thousand. What is promised rests on 10.
    pub drift: u32,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 3,
            guests: 3,
            faults: Duration::from_secs(60),
            healing: Duration::from_secs(150),
            plant: Plant::None,
            calm: false,
            conf: Conf::default(),
            drift: 10,
        }
    }
}

/// What is left of a history: all of it, unless parts are taken out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cut {
    /// The acts that are left, by their numbers.
    pub only: Option<BTreeSet<usize>>,
    /// The first so many nodes.
    pub nodes: Option<usize>,
    /// The first so many guests.
    pub guests: Option<u32>,
    /// Nothing but the acts is left to chance.
    pub calm: bool,
}

impl Cut {
    fn leaves(&self, number: usize) -> bool {
        self.only.as_ref().is_none_or(|only| only.contains(&number))
    }
}
