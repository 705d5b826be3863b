//! Whether what clients were answered can have come of one copy of the data that does one thing at a time: linearizability.
//!
//! An [`Operation`] takes effect once, at some moment between its begin and its end; one that was not answered at any moment
//! after its begin, or never. Searched is an order of these moments in which each answer is what one copy would have given
//! (Wing and Gong 1993, with Lowe's memory of states that were met before, 2017). Paths that no operation touches together
//! are searched apart, which linearizability allows (Herlihy and Wing 1990).
//!
//! Nothing here knows of logs, leaders or revisions: it judges what clients see alone.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};

/// The most steps of one search. A history that needs more is not judged.
const STEPS: usize = 200_000;

/// What lies at a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cell {
    /// Names its content; equal for equal contents alone.
    pub value: u64,
    /// Names the transaction that has put it there last.
    pub writer: u64,
}

/// What lies at each path.
pub type State = BTreeMap<String, Cell>;

/// What else the one copy keeps to.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Whether it may be like that: what would make it otherwise is refused.
    pub allowed: fn(&State) -> bool,
    /// Names what a path belongs to. What is allowed of one such part depends on nothing beside it.
    pub part: fn(&str) -> &str,
}

impl Default for Rules {
    /// Paths know nothing of each other.
    fn default() -> Self {
        Self { allowed: |_| true, part: |path| path }
    }
}

/// What must hold for a transaction to take effect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// Nothing lies there.
    Absent(String),
    /// It was put there last by that transaction.
    Writer(String, u64),
}

/// What a transaction changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Puts this content there.
    Put(String, u64),
    /// Removes what lies there, which must be something.
    Delete(String),
    /// Moves what lies there to where nothing lies.
    Move(String, String),
}

/// What a client asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Call {
    /// What lies at a path.
    Read(String),
    /// All of the changes if all of the checks hold, or nothing.
    Transact {
        /// Its name, as no other's.
        name: u64,
        /// What must hold.
        checks: Vec<Check>,
        /// What it does, in this order.
        changes: Vec<Change>,
    },
}

/// What it is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// That lies there.
    Read(Option<Cell>),
    /// It has taken effect.
    Done,
    /// It can't take effect, and has not.
    Refused,
    /// Nothing: it may have taken effect, or may yet.
    Unknown,
}

/// Something that a client has asked for. The times' unit is of no matter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operation {
    /// When it was asked for.
    pub begin: u64,
    /// When it was answered. Of no meaning if it was not.
    pub end: u64,
    /// What was asked for.
    pub call: Call,
    /// What was answered.
    pub answer: Answer,
    /// What is tried first: the place of a transaction among the others, if anybody knows. A wrong one costs time alone.
    pub hint: u64,
}

/// Why a history is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// No order explains it.
    #[error(
        "what clients were answered about {parts:?} can't have come of one copy: no order explains {operation:?} after {before} others"
    )]
    Contradiction {
        /// What it is about, by [`Rules::part`].
        parts: Vec<String>,
        /// The first, by its end, that could not be placed by the order that came furthest.
        operation: Box<Operation>,
        /// How many that order has placed.
        before: usize,
    },
    /// The search was given up.
    #[error("{operations} operations about {parts:?} were not judged within {STEPS} steps")]
    Undecided {
        /// What it is about, by [`Rules::part`].
        parts: Vec<String>,
        /// How many operations.
        operations: usize,
    },
}

impl Call {
    fn paths(&self) -> Vec<&str> {
        match self {
            Self::Read(path) => vec![path],
            Self::Transact { checks, changes, .. } => {
                let checked = checks.iter().map(|check| match check {
                    Check::Absent(path) | Check::Writer(path, _) => path.as_str(),
                });
                let changed = changes.iter().flat_map(|change| match change {
                    Change::Put(path, _) | Change::Delete(path) => vec![path.as_str()],
                    Change::Move(from, to) => vec![from.as_str(), to.as_str()],
                });
                checked.chain(changed).collect()
            }
        }
    }
}

/// What one copy is like after a transaction; none if it is refused. `allowed`: whether the copy may be like that.
fn transact(
    state: &State,
    name: u64,
    checks: &[Check],
    changes: &[Change],
    allowed: fn(&State) -> bool,
) -> Option<State> {
    let holds = checks.iter().all(|check| match check {
        Check::Absent(path) => !state.contains_key(path),
        Check::Writer(path, writer) => state.get(path).is_some_and(|cell| cell.writer == *writer),
    });
    let mut after = holds.then(|| state.clone())?;
    for change in changes {
        match change {
            Change::Put(path, value) => {
                after.insert(path.clone(), Cell { value: *value, writer: name });
            }
            Change::Delete(path) => {
                after.remove(path)?;
            }
            Change::Move(from, to) => {
                let cell = after.remove(from)?;
                if after.contains_key(to) {
                    return None;
                }
                after.insert(to.clone(), Cell { writer: name, ..cell });
            }
        }
    }
    allowed(&after).then_some(after)
}

impl Operation {
    /// What one copy is like after it; none if it would have answered otherwise.
    fn after(&self, state: &State, allowed: fn(&State) -> bool) -> Option<State> {
        let done = match &self.call {
            Call::Read(path) => {
                let there = state.get(path).copied();
                return matches!(self.answer, Answer::Read(seen) if seen == there).then(|| state.clone());
            }
            Call::Transact { name, checks, changes } => transact(state, *name, checks, changes, allowed),
        };
        match (self.answer, done) {
            (Answer::Done | Answer::Unknown, Some(after)) => Some(after),
            (Answer::Refused, None) => Some(state.clone()),
            _ => None,
        }
    }

    /// Whatever it was answered, nothing has come of it. Where it fits it is placed at once: that keeps no other from being placed.
    fn only_looks(&self) -> bool {
        matches!(self.call, Call::Read(_)) || self.answer == Answer::Refused
    }

    fn is_certain(&self) -> bool {
        self.answer != Answer::Unknown
    }
}

/// Judges a history over a copy that begins like this.
///
/// # Errors
/// If no order explains it, or none was found within a bound.
pub fn check(begin: &State, history: &[Operation], rules: Rules) -> Result<(), Fault> {
    for (parts, operations) in apart(history, rules) {
        let begin = begin.iter().filter(|(path, _)| parts.contains((rules.part)(path)));
        let state: State = begin.map(|(path, cell)| (path.clone(), *cell)).collect();
        let search = Search {
            operations: &operations,
            allowed: rules.allowed,
            met: RefCell::default(),
            furthest: BTreeSet::new(),
        };
        search.run(state, &parts)?;
    }
    Ok(())
}

/// Operations that touch no part together, even by way of others, apart.
fn apart(history: &[Operation], rules: Rules) -> Vec<(BTreeSet<&str>, Vec<&Operation>)> {
    let mut parts: Vec<(BTreeSet<&str>, Vec<&Operation>)> = vec![];
    for operation in history {
        let mut whole: (BTreeSet<&str>, Vec<&Operation>) =
            (operation.call.paths().into_iter().map(rules.part).collect(), vec![operation]);
        parts.retain_mut(|part| {
            let is_of_it = !part.0.is_disjoint(&whole.0);
            if is_of_it {
                whole.0.append(&mut part.0);
                whole.1.append(&mut part.1);
            }
            !is_of_it
        });
        parts.push(whole);
    }
    for (_, operations) in &mut parts {
        operations.sort_by_key(|o| (o.hint, !o.is_certain(), o.end, o.begin));
    }
    parts
}

struct Search<'a> {
    operations: &'a [&'a Operation],
    allowed: fn(&State) -> bool,
    /// Which were placed, and what the copy was like then: nothing comes of going there again.
    met: RefCell<HashSet<(Vec<u64>, State)>>,
    furthest: BTreeSet<usize>,
}

/// One step of an order: what was placed, and what the copy was like before.
struct Step {
    placed: usize,
    before: State,
}

impl Search<'_> {
    fn run(mut self, mut state: State, parts: &BTreeSet<&str>) -> Result<(), Fault> {
        let certain = self.operations.iter().filter(|o| o.is_certain()).count();
        let (mut placed, mut order): (BTreeSet<usize>, Vec<Step>) = (BTreeSet::new(), vec![]);
        let (mut next, mut left) = (0, STEPS);
        loop {
            if placed.iter().filter(|n| self.operations[**n].is_certain()).count() == certain {
                return Ok(());
            }
            left -= 1;
            if left == 0 {
                let parts = parts.iter().map(ToString::to_string).collect();
                return Err(Fault::Undecided { parts, operations: self.operations.len() });
            }
            if let Some((n, after)) = self.place(&placed, &state, next) {
                order.push(Step { placed: n, before: std::mem::replace(&mut state, after) });
                placed.insert(n);
                if placed.len() > self.furthest.len() {
                    self.furthest.clone_from(&placed);
                }
                next = 0;
                continue;
            }
            // Nothing fits here: the last transaction before must have been another.
            loop {
                let Some(step) = order.pop() else { return Err(self.contradiction(parts)) };
                placed.remove(&step.placed);
                state = step.before;
                if !self.operations[step.placed].only_looks() {
                    next = step.placed + 1;
                    break;
                }
            }
        }
    }

    /// The next, from that one on, that may come now and answers as it did.
    fn place(&self, placed: &BTreeSet<usize>, state: &State, from: usize) -> Option<(usize, State)> {
        let waiting = || self.operations.iter().enumerate().filter(|(n, _)| !placed.contains(n));
        // Whatever begins after another's end comes after it.
        let first_end = waiting().filter(|(_, o)| o.is_certain()).map(|(_, o)| o.end).min()?;
        let may_come = |o: &Operation| if o.begin <= first_end { o.after(state, self.allowed) } else { None };
        let looks = waiting().filter(|(_, o)| o.only_looks()).find_map(|(n, o)| Some((n, may_come(o)?)));
        if looks.is_some() {
            return looks;
        }
        let transactions = waiting().filter(|(n, o)| *n >= from && !o.only_looks());
        transactions.filter_map(|(n, o)| Some((n, may_come(o)?))).find(|(n, after)| {
            let mut set = vec![0_u64; self.operations.len().div_ceil(64)];
            for n in placed.iter().chain([n]) {
                set[n / 64] |= 1 << (n % 64);
            }
            self.met.borrow_mut().insert((set, after.clone()))
        })
    }

    fn contradiction(&self, parts: &BTreeSet<&str>) -> Fault {
        let first = (0..self.operations.len()).find(|n| !self.furthest.contains(n)).unwrap_or_default();
        Fault::Contradiction {
            parts: parts.iter().map(ToString::to_string).collect(),
            operation: Box::new(self.operations[first].clone()),
            before: self.furthest.len(),
        }
    }
}

#[cfg(test)]
mod tests;
