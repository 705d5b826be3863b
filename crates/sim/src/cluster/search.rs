//! Searches seeds on all CPUs, and shrinks what it finds to a short story.

use super::world::{Breach, Outcome, replay, run};
use super::{Cut, Plan};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How often progress is told.
const TELL: Duration = Duration::from_secs(1);

/// At most so many histories are run to shrink one.
const TRIES: u32 = 3000;

/// What to search.
#[derive(Debug, Clone, Copy)]
pub struct Search {
    /// The first seed.
    pub first: u64,
    /// How many seeds at most.
    pub seeds: u64,
    /// It ends when so much time has been simulated in all.
    pub time: Option<Duration>,
    /// How each history is made.
    pub plan: Plan,
    /// Threads.
    pub jobs: usize,
}

/// How far a search has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Histories.
    pub seeds: u64,
    /// Simulated time in all.
    pub time: Duration,
    /// Events.
    pub events: u64,
    /// Recoveries.
    pub recoveries: u64,
    /// Resets by fencing.
    pub resets: u64,
    /// Guests that went on after a pause.
    pub thaws: u64,
    /// Guests that moved while they ran.
    pub moves: u64,
    /// Nodes that their fence devices have confirmed to be off.
    pub offs: u64,
}

impl Progress {
    fn add(&mut self, outcome: &Outcome) {
        self.seeds += 1;
        self.time += outcome.time;
        self.events += outcome.events;
        self.recoveries += u64::from(outcome.recoveries);
        self.resets += u64::from(outcome.resets);
        self.thaws += u64::from(outcome.thaws);
        self.moves += u64::from(outcome.moves);
        self.offs += u64::from(outcome.offs);
    }
}

/// A seed whose history breaks an invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The seed.
    pub seed: u64,
    /// What is broken.
    pub breach: Breach,
}

/// What came of a search.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// The first seed that breaks something, if one does.
    pub found: Option<Found>,
    /// All that was run.
    pub progress: Progress,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Search {
    /// Runs seeds until one breaks something or none is left. `tell` is called about once a second.
    pub fn run(&self, mut tell: impl FnMut(&Progress)) -> Finding {
        let (next, bound) =
            (AtomicU64::new(self.first), AtomicU64::new(self.first.saturating_add(self.seeds)));
        let finding = Mutex::new(Finding { found: None, progress: Progress::default() });
        let (working, ended) = (AtomicUsize::new(self.jobs.max(1)), Condvar::new());
        std::thread::scope(|scope| {
            for _ in 0..self.jobs.max(1) {
                scope.spawn(|| {
                    self.work(&next, &bound, &finding);
                    working.fetch_sub(1, Ordering::SeqCst);
                    drop(locked(&finding));
                    ended.notify_all();
                });
            }
            let mut guard = locked(&finding);
            while working.load(Ordering::SeqCst) > 0 {
                (guard, _) = ended.wait_timeout(guard, TELL).unwrap_or_else(PoisonError::into_inner);
                tell(&guard.progress);
            }
        });
        finding.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seeds below one that was found are run to their end, so that the first one is told whatever the number of threads.
    fn work(&self, next: &AtomicU64, bound: &AtomicU64, finding: &Mutex<Finding>) {
        loop {
            let seed = next.fetch_add(1, Ordering::SeqCst);
            if seed >= bound.load(Ordering::SeqCst) {
                return;
            }
            let outcome = run(seed, &self.plan);
            let mut finding = locked(finding);
            finding.progress.add(&outcome);
            if self.time.is_some_and(|time| finding.progress.time >= time) {
                bound.fetch_min(next.load(Ordering::SeqCst), Ordering::SeqCst);
            }
            if let Some(breach) = outcome.broken {
                bound.fetch_min(seed, Ordering::SeqCst);
                if finding.found.as_ref().is_none_or(|f| f.seed > seed) {
                    finding.found = Some(Found { seed, breach });
                }
            }
        }
    }
}

/// Takes out of a history whatever it does not need to break the same invariant, until nothing more can go.
pub fn shrink(seed: u64, plan: &Plan) -> Option<(Cut, Outcome)> {
    let whole = run(seed, plan);
    let invariant = whole.broken.as_ref()?.invariant;
    let mut shrinker = Shrinker { seed, plan, invariant, left: TRIES, best: Cut::default() };
    // What came after the breach did not cause it.
    shrinker.keep(&Cut { only: Some(whole.acts.iter().copied().collect()), ..Cut::default() });
    while shrinker.smaller() && shrinker.left > 0 {}
    let outcome = replay(seed, plan, &shrinker.best, true);
    Some((shrinker.best, outcome))
}

struct Shrinker<'p> {
    seed: u64,
    plan: &'p Plan,
    invariant: &'static str,
    left: u32,
    best: Cut,
}

impl Shrinker<'_> {
    /// Takes a smaller history if it still breaks the same invariant.
    fn keep(&mut self, cut: &Cut) -> bool {
        if self.left == 0 || *cut == self.best {
            return false;
        }
        self.left -= 1;
        let outcome = replay(self.seed, self.plan, cut, false);
        let same = outcome.broken.as_ref().is_some_and(|b| b.invariant == self.invariant);
        if same {
            let carried_out: BTreeSet<usize> = outcome.acts.into_iter().collect();
            self.best = Cut { only: Some(carried_out), ..cut.clone() };
        }
        same
    }

    /// Tries once to leave out whatever there is. Says whether something went.
    fn smaller(&mut self) -> bool {
        let mut any = self.keep(&Cut { calm: true, ..self.best.clone() });
        for guests in 1..self.best.guests.unwrap_or(self.plan.guests) {
            if self.keep(&Cut { guests: Some(guests), ..self.best.clone() }) {
                any = true;
                break;
            }
        }
        for nodes in 3..self.best.nodes.unwrap_or(self.plan.nodes) {
            if self.keep(&Cut { nodes: Some(nodes), ..self.best.clone() }) {
                any = true;
                break;
            }
        }
        let mut size = self.best.only.as_ref().map_or(0, BTreeSet::len).div_ceil(2);
        while size > 0 {
            any |= self.without_each(size);
            size /= 2;
        }
        any
    }

    /// Tries to leave out `size` acts at a time, the last ones first.
    fn without_each(&mut self, size: usize) -> bool {
        let mut any = false;
        let acts: Vec<usize> = self.best.only.iter().flatten().copied().collect();
        for chunk in acts.rchunks(size) {
            let Some(only) = &self.best.only else { return any };
            let rest: BTreeSet<usize> = only.iter().copied().filter(|n| !chunk.contains(n)).collect();
            if rest.len() < only.len() {
                any |= self.keep(&Cut { only: Some(rest), ..self.best.clone() });
            }
        }
        any
    }
}
