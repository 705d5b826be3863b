//! What goes wrong, and how often, in a run.

use super::dice::Dice;
use super::network::Weather;

/// How often each fault comes: the mean time between two, in microseconds; 0 for never.
#[derive(Debug, Clone)]
pub struct Rates {
    pub crash: u64,
    pub cut: u64,
    pub pause: u64,
    pub transfer: u64,
    pub member: u64,
    /// Somebody is to stand for no election.
    pub hold: u64,
    /// Of 1,000 writes, how many are refused by the disk.
    pub refused: u64,
    /// The longest time a write takes.
    pub slow_disk: u64,
    pub question: u64,
    pub weather: Weather,
    /// How many nodes found the cluster.
    pub nodes: u64,
    /// A witness, and by how many microseconds each way it is further away than the others.
    pub witness: Option<(u64, u64)>,
}

impl Rates {
    pub fn roll(dice: &mut Dice) -> Self {
        const SECOND: u64 = 1_000_000;
        let mut some = |of: [u64; 4]| dice.pick(&of).unwrap_or(0);
        Self {
            crash: some([0, SECOND / 2, 2 * SECOND, 5 * SECOND]),
            cut: some([0, SECOND, 2 * SECOND, 5 * SECOND]),
            pause: some([0, 0, 3 * SECOND, 8 * SECOND]),
            transfer: some([0, 0, SECOND, 4 * SECOND]),
            member: some([0, SECOND / 2, SECOND, 4 * SECOND]),
            refused: some([0, 0, 0, 5]),
            slow_disk: some([500, 3000, 100_000, 2 * SECOND]),
            question: some([10_000, 20_000, 60_000, 150_000]),
            nodes: some([1, 3, 3, 5]),
            weather: Weather::roll(dice),
            hold: dice.pick(&[0, 0, SECOND, 4 * SECOND]).unwrap_or(0),
            witness: None,
        }
    }

    /// No faults, on a good network.
    pub fn quiet() -> Self {
        Self {
            crash: 0,
            cut: 0,
            pause: 0,
            transfer: 0,
            member: 0,
            hold: 0,
            refused: 0,
            slow_disk: 3000,
            question: 0,
            nodes: 3,
            weather: Weather::fair(),
            witness: None,
        }
    }

    /// When a fault with this mean time comes next.
    pub fn next(mean: u64, dice: &mut Dice) -> u64 {
        dice.between(mean / 4, mean * 7 / 4)
    }
}
