//! Searches seeds for a broken invariant of the replicated configuration, and shows that the search finds planted
//! bugs. `STEAD_SEEDS` sets how many seeds the long search runs, `STEAD_SEED` runs a single one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use stead_sim::conf::{Bug, Failure, Figures, Plan, election, election_by_witness, run};

/// Every so many seeds run the real store over modelled sectors.
const PAGES_EVERY: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn plan(seed: u64, bug: Bug) -> Plan {
    Plan { seed, bug, pages: seed.is_multiple_of(PAGES_EVERY) }
}

/// Runs seeds on two threads until one fails.
fn search(seeds: u64, bug: Bug) -> Result<Figures, Failure> {
    let next = AtomicU64::new(0);
    let found: Mutex<Option<Failure>> = Mutex::new(None);
    let total = Mutex::new(Figures::default());
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let mut sum = Figures::default();
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        break;
                    }
                    match run(plan(seed, bug)) {
                        Ok(figures) => sum = add(sum, figures),
                        Err(failure) => {
                            next.store(seeds, Ordering::Relaxed);
                            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                            if found.as_ref().is_none_or(|known| known.seed > failure.seed) {
                                *found = Some(failure);
                            }
                        }
                    }
                }
                let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                *total = add(*total, sum);
            });
        }
    });
    match found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner)),
    }
}

fn add(a: Figures, b: Figures) -> Figures {
    Figures {
        events: a.events + b.events,
        frames: a.frames + b.frames,
        commits: a.commits + b.commits,
        refused: a.refused + b.refused,
        unknown: a.unknown + b.unknown,
        barriers: a.barriers + b.barriers,
        confirmations: a.confirmations + b.confirmations,
        member_changes: a.member_changes + b.member_changes,
        snapshots: a.snapshots + b.snapshots,
        crashes: a.crashes + b.crashes,
        leaders: a.leaders + b.leaders,
        holds: a.holds + b.holds,
        judged: a.judged + b.judged,
    }
}

#[test]
fn conf_holds_its_invariants() {
    if let Some(seed) = number("STEAD_SEED") {
        let figures = run(plan(seed, Bug::None)).unwrap_or_else(|failure| panic!("{failure}"));
        println!("{figures:#?}");
        return;
    }
    let seeds = 600;
    let began = std::time::Instant::now();
    let figures = search(seeds, Bug::None).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{seeds} seeds in {:?}: {figures:#?}", began.elapsed());
    // A search that does not reach what it is for would hold everything.
    assert!(figures.commits > 10 * seeds, "{figures:?}");
    assert!(figures.leaders > 2 * seeds, "{figures:?}");
    assert!(figures.judged > 20 * seeds, "{figures:?}");
    for reached in [
        figures.refused,
        figures.unknown,
        figures.barriers,
        figures.confirmations,
        figures.member_changes,
        figures.snapshots,
        figures.crashes,
        figures.holds,
    ] {
        assert!(reached > seeds / 10, "{figures:?}");
    }
}

/// The long search: seeds beyond those of every `make check`.
#[test]
fn search_conf() {
    let seeds = number("STEAD_SEEDS").unwrap_or(100_000);
    let figures = search(seeds, Bug::None).unwrap_or_else(|failure| panic!("{failure}"));
    println!("{seeds} seeds: {figures:#?}");
}

#[test]
fn conf_replays() {
    for seed in [3, 17, 40] {
        assert_eq!(run(plan(seed, Bug::None)), run(plan(seed, Bug::None)));
    }
}

#[test]
fn conf_finds_planted_bugs() {
    for bug in [
        Bug::EarlyReport,
        Bug::SameBoot,
        Bug::LocalBarrier,
        Bug::ForgetHold,
        Bug::CommitAll,
        Bug::SameRead,
        Bug::SnapshotWithoutMembers,
        Bug::FormerVoters,
        Bug::DroppedEvent,
        Bug::HalfMove,
        Bug::LostTail,
    ] {
        finds(bug);
    }
}

/// It takes some hundred seeds until two candidates meet a voter that has just forgotten the first.
#[test]
fn search_conf_finds_a_forgotten_vote() {
    finds(Bug::ForgetVote);
}

fn finds(bug: Bug) {
    let Err(failure) = search(4000, bug) else { panic!("{bug:?} was not found") };
    println!("{bug:?}: {failure}");
    assert_eq!(run(plan(failure.seed, bug)), Err(failure), "a failure replays");
}

#[test]
fn conf_elects_faster_than_a_lease_runs_out() {
    let mut times: Vec<u64> =
        (0..1000).map(|seed| election(seed).unwrap_or_else(|failure| panic!("{failure}"))).collect();
    times.sort_unstable();
    let [p50, p99, max] = [times[500], times[990], times[999]].map(|us| us / 1000);
    println!("election: p50 {p50} ms, p99 {p99} ms, max {max} ms");
    // Two heartbeats of the default profile are 1 s, its lease is 4 s.
    assert!(p99 + 1000 < 4000);
}

/// Two nodes and a witness behind a link of 200 ms there and back: the node that stays is elected by the witness's vote.
#[test]
fn conf_elects_with_the_vote_of_a_far_witness() {
    let elected = |seed| election_by_witness(seed, 100_000).unwrap_or_else(|failure| panic!("{failure}"));
    let mut times: Vec<u64> = (0..200).map(elected).collect();
    times.sort_unstable();
    let [p50, p99, max] = [times[100], times[198], times[199]].map(|us| us / 1000);
    println!("election by a witness 200 ms away: p50 {p50} ms, p99 {p99} ms, max {max} ms");
    assert!(p99 + 1000 < 4000);
}
