//! The network between nodes: frames are delayed, lost, repeated, overtaken, and links are cut, each direction by
//! itself.

use super::dice::Dice;
use std::collections::BTreeSet;

/// How bad it is in a run.
#[derive(Debug, Clone)]
pub struct Weather {
    /// Of 1,000 frames, how many are lost.
    pub loss: u64,
    /// Of 1,000 frames, how many come twice.
    pub repeat: u64,
    /// The shortest and longest delay, in microseconds. Frames overtake each other within it.
    pub delay: (u64, u64),
    /// Of 1,000 frames, how many take up to a second more.
    pub straggle: u64,
}

impl Weather {
    /// As the run's seed has it.
    pub fn roll(dice: &mut Dice) -> Self {
        Self {
            loss: dice.pick(&[0, 5, 30, 150]).unwrap_or(0),
            repeat: dice.pick(&[0, 10, 100]).unwrap_or(0),
            delay: dice.pick(&[(100, 900), (1000, 30_000), (500, 120_000)]).unwrap_or((100, 900)),
            straggle: dice.pick(&[0, 0, 20]).unwrap_or(0),
        }
    }

    /// After healing.
    pub fn fair() -> Self {
        Self { loss: 0, repeat: 0, delay: (200, 2000), straggle: 0 }
    }
}

/// Links and weather.
#[derive(Debug)]
pub struct Network {
    /// How bad it is now.
    pub weather: Weather,
    /// A node that is far away, and by how many microseconds each way.
    pub far: Option<(u64, u64)>,
    cut: BTreeSet<(u64, u64)>,
}

impl Network {
    /// With all links whole.
    pub fn new(weather: Weather) -> Self {
        Self { weather, far: None, cut: BTreeSet::new() }
    }

    /// After how long each copy of a frame arrives, in microseconds. None: lost.
    pub fn carry(&self, from: u64, to: u64, dice: &mut Dice) -> Vec<u64> {
        if self.cut.contains(&(from, to)) || dice.chance(self.weather.loss) {
            return Vec::new();
        }
        let way = self.far.filter(|(node, _)| *node == from || *node == to).map_or(0, |(_, delay)| delay);
        let copies = 1 + u64::from(dice.chance(self.weather.repeat));
        let mut delays = Vec::with_capacity(2);
        for _ in 0..copies {
            let more = if dice.chance(self.weather.straggle) { dice.below(1_000_000) } else { 0 };
            delays.push(dice.between(self.weather.delay.0, self.weather.delay.1) + way + more);
        }
        delays
    }

    /// Whether a frame that is under way still arrives.
    pub fn arrives(&self, from: u64, to: u64) -> bool {
        !self.cut.contains(&(from, to))
    }

    /// Cuts some links: a node off, two sides apart, or single directions.
    pub fn break_links(&mut self, nodes: &[u64], dice: &mut Dice) {
        self.cut.clear();
        match dice.below(3) {
            0 => {
                let Some(alone) = dice.pick(nodes) else { return };
                let both = dice.chance(600);
                for other in nodes.iter().filter(|other| **other != alone) {
                    self.cut.insert((alone, *other));
                    if both {
                        self.cut.insert((*other, alone));
                    }
                }
            }
            1 => {
                let side: BTreeSet<u64> = nodes.iter().copied().filter(|_| dice.chance(500)).collect();
                for from in nodes {
                    for to in nodes.iter().filter(|to| side.contains(to) != side.contains(from)) {
                        self.cut.insert((*from, *to));
                    }
                }
            }
            _ => {
                for from in nodes {
                    for to in nodes.iter().filter(|to| *to != from) {
                        if dice.chance(300) {
                            self.cut.insert((*from, *to));
                        }
                    }
                }
            }
        }
    }

    /// All links are whole again.
    pub fn heal(&mut self) {
        self.cut.clear();
    }
}
