//! A cluster to play with: it is stopped and continued at will, whatever its user does to it is noted, and it can be taken back to
//! any moment that it has passed.
//!
//! A moment is reached again by what made it the first time: the scenario that it began with, its seed, and the user's acts at
//! their times. So that an earlier moment needs no run from the beginning, copies of the whole are kept ([`Mark`]), fewer the
//! longer it goes on. An act happens before all else of its moment, in the first run as in every later one.

mod outages;
mod view;

pub use outages::Outage;
pub use view::{GuestRow, GuestTale, NodeRow, Summary, View};

use super::scene::{PlayError, build, of_nodes};
use super::world::World;
use crate::scenario::command::{CommandError, ServiceCommand};
use crate::scenario::text::{self, TextError};
use crate::scenario::{Command, Happening, Scenario, Step};
use outages::Outages;
use std::collections::VecDeque;
use std::time::Duration;

/// What happened is kept for so many lines; earlier ones are forgotten.
const LINES: usize = 20_000;

/// A user does at most so much.
const ACTS: usize = 10_000;

/// Copies may need about so much memory in all, bytes.
const MEMORY: usize = 192 << 20;

/// The first copies are so far apart.
const APART: Duration = Duration::from_secs(1);

/// A step to the next event ends after so long if nothing happens.
const PATIENCE: Duration = Duration::from_secs(60);

/// What cannot be played with.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// The text is no scenario.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The scenario does not fit together.
    #[error(transparent)]
    Play(#[from] PlayError),
    /// What is to be done is not understood.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// It concerns a node that there is not.
    #[error("the cluster has no node '{0}'")]
    Node(String),
    /// It concerns a guest that HA does not have.
    #[error("HA has no '{0}': add it first")]
    Guest(String),
    /// There are no machines.
    #[error("a cluster needs a node: 'node n1', or 'nodes 3'")]
    Empty,
    /// More was done than is kept.
    #[error("{ACTS} acts are noted already: begin anew")]
    Full,
}

/// A copy of everything as it was before a moment.
struct Mark {
    at: Duration,
    world: World,
    outages: Outages,
}

/// A cluster to play with.
pub struct Lab {
    /// The scenario without its steps, as text.
    head: String,
    acts: Vec<(Duration, String)>,
    steps: Vec<Step>,
    world: World,
    outages: Outages,
    marks: Vec<Mark>,
    apart: Duration,
    log: VecDeque<Happening>,
    /// The number of the first line that is kept.
    first_line: u64,
    /// How often time was turned back: lines of before mean nothing then.
    turns: u64,
    furthest: Duration,
}

impl Lab {
    /// Opens a scenario, or a story that was saved: nothing has happened yet, its steps will.
    ///
    /// # Errors
    /// If it is none.
    pub fn open(file: &str) -> Result<Self, LabError> {
        let input = text::split(file).0;
        let scenario = text::read(input)?;
        if scenario.nodes.is_empty() {
            return Err(LabError::Empty);
        }
        let mut world = build(&Scenario { steps: vec![], ..scenario.clone() })?;
        let (mut head, mut acts) = (String::new(), vec![]);
        for line in input.lines() {
            let words: Vec<&str> = line.split('#').next().unwrap_or_default().split_whitespace().collect();
            match words.as_slice() {
                ["at", _, command @ ..] => acts.push(command.join(" ")),
                ["until", ..] => {}
                _ => head.push_str(&format!("{line}\n")),
            }
        }
        let mut acts: Vec<(Duration, String)> = scenario.steps.iter().map(|s| s.at).zip(acts).collect();
        acts.sort_by_key(|(at, _)| *at);
        let mut steps = scenario.steps;
        steps.sort_by_key(|s| s.at);
        for command in steps.iter().map(|s| &s.command) {
            if let Some(node) = of_nodes(command).into_iter().find(|n| world.index(n).is_none()) {
                return Err(LabError::Node(node.to_string()));
            }
        }
        world.set_steps(&steps);
        let outages = Outages::default();
        let mark = Mark { at: Duration::ZERO, world: world.clone(), outages: outages.clone() };
        let furthest = acts.last().map(|(at, _)| *at).unwrap_or_default();
        Ok(Self {
            head,
            acts,
            steps,
            world,
            outages,
            marks: vec![mark],
            apart: APART,
            log: VecDeque::new(),
            first_line: 0,
            turns: 0,
            furthest,
        })
    }

    /// The moment that it stands at: all before it has happened.
    pub fn now(&self) -> Duration {
        self.world.now
    }

    /// The latest moment that it was ever at, or that an act is noted for.
    pub fn furthest(&self) -> Duration {
        self.furthest.max(self.world.now)
    }

    /// Goes on to a moment; does nothing if that has passed.
    pub fn advance(&mut self, to: Duration) {
        while self.world.now < to {
            let next = self.marks.last().map_or(Duration::ZERO, |m| m.at) + self.apart;
            let stop = to.min(next.max(self.world.now + Duration::from_nanos(1)));
            self.world.run_before(stop, |_| false);
            self.note();
            if self.world.now >= next {
                self.mark();
            }
        }
        self.furthest = self.furthest.max(self.world.now);
    }

    /// Goes on until something happens, but not for longer than a minute. It stops at a whole millisecond.
    pub fn step(&mut self) {
        let told = self.world.run_before(self.world.now + PATIENCE, World::has_told);
        // What happened is before the moment at which it stops.
        let after = if told { Duration::from_nanos(1) } else { Duration::ZERO };
        self.note();
        self.advance(whole(self.world.now + after));
        self.furthest = self.furthest();
    }

    /// Goes back to a copy from before that moment; [`Self::advance`] leads on to it.
    pub fn rewind(&mut self, to: Duration) {
        self.furthest = self.furthest();
        let index = self.marks.iter().rposition(|m| m.at <= to).unwrap_or(0);
        let mark = &self.marks[index];
        if self.world.now >= mark.at && self.world.now <= to {
            return;
        }
        self.world = mark.world.clone();
        self.outages = mark.outages.clone();
        self.world.set_steps(&self.steps);
        let at = mark.at;
        self.log.retain(|h| h.at < at);
        self.turns += 1;
    }

    /// Something is done to the cluster now. What was noted for later is forgotten: it belongs to another story.
    ///
    /// # Errors
    /// If it is not understood, or concerns what is not there.
    pub fn act(&mut self, words: &str) -> Result<(), LabError> {
        let command = Command::parse(words)?;
        if let Some(node) = of_nodes(&command).into_iter().find(|n| self.world.index(n).is_none()) {
            return Err(LabError::Node(node.to_string()));
        }
        if let Command::Service(named, what) = &command
            && !matches!(what, ServiceCommand::Add { .. })
            && !self.world.store.newest().config.resources.contains_key(&named.sid)
        {
            return Err(LabError::Guest(named.to_string()));
        }
        self.advance(whole(self.world.now));
        let at = self.world.now;
        let kept = self.acts.partition_point(|(t, _)| *t <= at);
        if kept >= ACTS {
            return Err(LabError::Full);
        }
        self.acts.truncate(kept);
        self.steps.truncate(kept);
        self.marks.retain(|m| m.at <= at);
        self.acts.push((at, words.split_whitespace().collect::<Vec<_>>().join(" ")));
        self.steps.push(Step { at, command });
        self.furthest = at;
        self.world.set_steps(&self.steps);
        // Those of this moment, and nothing else of it.
        while self.world.next_step() == Some(at) {
            self.world.play_step();
        }
        self.note();
        Ok(())
    }

    /// What was done, with its times; later acts than now are still to come.
    pub fn acts(&self) -> &[(Duration, String)] {
        &self.acts
    }

    /// The whole as a scenario that this opens again, and that `stead sim run` plays.
    pub fn story(&self) -> String {
        let mut out = self.head.clone();
        for (at, words) in &self.acts {
            out.push_str(&format!("at {} {words}\n", seconds(*at)));
        }
        out.push_str(&format!("until {}\n", seconds(self.furthest())));
        out
    }

    /// What happened from that line on, at most so many lines, with the number of the first of them.
    pub fn lines(&self, from: u64, most: usize) -> (u64, impl Iterator<Item = &Happening>) {
        let from = from.max(self.first_line);
        let skipped = usize::try_from(from - self.first_line).unwrap_or(usize::MAX);
        (from, self.log.iter().skip(skipped).take(most))
    }

    /// The number that the next line will have.
    pub fn next_line(&self) -> u64 {
        self.first_line + self.log.len() as u64
    }

    /// How often time was turned back.
    pub fn turns(&self) -> u64 {
        self.turns
    }

    fn note(&mut self) {
        let told = self.world.take_told();
        self.outages.hear(&self.world, &told);
        self.log.extend(told);
        let over = self.log.len().saturating_sub(LINES);
        self.log.drain(..over);
        self.first_line += over as u64;
    }

    fn mark(&mut self) {
        let mark = Mark { at: self.world.now, world: self.world.clone(), outages: self.outages.clone() };
        self.marks.push(mark);
        if self.marks.len() > self.most_marks() {
            // Every second one, never the first.
            let mut index = 0;
            self.marks.retain(|_| {
                index += 1;
                index % 2 == 1
            });
            self.apart *= 2;
        }
    }

    /// By what a copy needs, as measured: 6 KiB for a node, 1 KiB for a guest.
    fn most_marks(&self) -> usize {
        let guests = self.world.store.newest().config.resources.len();
        let size = (64 + 6 * self.world.nodes.len() + guests) << 10;
        (MEMORY / size).clamp(6, 120)
    }
}

/// The next whole millisecond.
fn whole(at: Duration) -> Duration {
    let ns = at.as_nanos().div_ceil(1_000_000).saturating_mul(1_000_000);
    Duration::from_nanos(u64::try_from(ns).unwrap_or(u64::MAX))
}

fn seconds(at: Duration) -> String {
    let text = format!("{}.{:09}", at.as_secs(), at.subsec_nanos());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests;
