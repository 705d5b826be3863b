//! Chance, in streams that do not disturb each other.
//!
//! Each node and each link has its own dice: what is drawn for one does not depend on how often the others have been
//! asked. So a history from which a fault was taken out goes on as before wherever that fault was not felt, which is
//! what lets a story be shrunk.

use std::collections::HashMap;

/// Where a number is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// For what happens on a node.
    Node(usize),
    /// For a message from one node to another.
    Link(usize, usize),
}

/// The dice of one history.
#[derive(Debug, Clone)]
pub struct Dice {
    seed: u64,
    nodes: usize,
    thrown: Vec<u64>,
    /// Of links between more nodes than [`FEW`]: most of them never carry anything.
    rare: HashMap<u64, u64>,
}

/// For so many nodes there is a place for each link.
const FEW: usize = 16;

impl Dice {
    /// The dice of a seed, for so many nodes.
    pub fn new(seed: u64, nodes: usize) -> Self {
        let links = if nodes > FEW { 0 } else { nodes * nodes };
        Self { seed: mix(seed), nodes, thrown: vec![0; nodes + links], rare: HashMap::new() }
    }

    /// The next number of a stream.
    pub fn draw(&mut self, stream: Stream) -> u64 {
        // A stream's number names it whatever the number of nodes.
        let (slot, name) = match stream {
            Stream::Node(n) => (n, n as u64),
            Stream::Link(from, to) => (self.nodes * (from + 1) + to, ((from as u64 + 1) << 16) | to as u64),
        };
        let thrown = match self.thrown.get_mut(slot) {
            Some(thrown) => thrown,
            None => self.rare.entry(name).or_default(),
        };
        *thrown += 1;
        mix(self.seed ^ mix(name << 32 ^ *thrown))
    }
}

/// A number that is scattered evenly (the finalizer of SplitMix64).
fn mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_goes_on_whatever_the_others_do() {
        let (mut alone, mut among) = (Dice::new(7, 3), Dice::new(7, 5));
        for _ in 0..100 {
            among.draw(Stream::Node(1));
            among.draw(Stream::Link(2, 0));
            assert_eq!(alone.draw(Stream::Link(0, 2)), among.draw(Stream::Link(0, 2)));
        }
        assert_ne!(Dice::new(7, 3).draw(Stream::Node(0)), Dice::new(8, 3).draw(Stream::Node(0)));
        assert_ne!(alone.draw(Stream::Node(0)), alone.draw(Stream::Node(1)));
    }
}
