//! All that the world asks of the configuration's consensus. Who answers is the model ([`super::modelled`]) or, with
//! [`Conf::Real`], the real driver of each node ([`super::real`]).
//!
//! Whatever a consensus commits it gives to the [`super::store::Store`], once and in order, and each node stands at one of its
//! entries (`Node::applied`): that is all of it that the rest of the world reads.

use super::tasks::Ask;
use super::world::World;
use bytes::Bytes;

/// Who keeps the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Conf {
    /// A linearizable log, with elections and rounds as far as they can be noticed from above.
    #[default]
    Modelled,
    /// Each node's own driver and state machine, as `stead-conf` has them, over a modelled disk.
    Real,
}

impl World {
    /// What a node's part of the consensus does from time to time.
    pub fn agree(&mut self, node: usize) {
        // The real one has a clock of its own.
        if self.real.is_none() {
            self.elect(node);
        }
    }

    /// Brings a question to the cluster, now or some time later. The answer is [`World::told`], or never comes.
    pub fn ask_conf(&mut self, node: usize, id: u64, life: u64, ask: Ask, slow: bool) {
        if self.real.is_some() {
            self.ask_driver(node, id, ask, slow);
        } else {
            self.hand_over(node, id, life, ask, slow);
        }
    }

    /// Has a leader confirm that it leads, for the grantor's round of that number.
    pub fn confirm(&mut self, node: usize, round: u64) {
        if self.real.is_some() {
            self.confirm_driver(node, round);
        } else {
            self.begin_round(node, super::modelled::Purpose::Confirm(round));
        }
    }

    /// A frame of the real consensus has come.
    pub fn frame(&mut self, node: usize, frame: Bytes) {
        self.drive(node, stead_conf::driver::Input::Frame(frame));
    }

    /// Whether enough nodes answer a leader.
    pub fn has_majority(&self, node: usize) -> bool {
        // The real one steps down when they do not.
        if self.real.is_some() { self.leads(node).is_some() } else { self.is_followed(node) }
    }

    /// Gives the lead to whoever is elected next.
    pub fn step_down(&mut self, node: usize) {
        if self.real.is_some() { self.hold(node) } else { self.stand_back(node) }
    }
}
