//! Searches seeds for a broken invariant of the replicated configuration, and shows that the search finds planted
//! bugs. `STEAD_SEEDS` sets how many seeds the long search runs and `STEAD_FIRST` where it begins, `STEAD_SEED` runs a single one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;
use stead_sim::conf::{Bug, Failure, Figures, Plan, election, election_by_witness, run};

/// Every so many seeds run the real store over modelled sectors.
const PAGES_EVERY: u64 = 40;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn plan(seed: u64, bug: Bug) -> Plan {
    Plan { seed, bug, pages: seed.is_multiple_of(PAGES_EVERY) }
}

/// Runs seeds on all CPUs until one fails.
fn search(seeds: u64, bug: Bug) -> Result<Figures, Failure> {
    search_from(0, seeds, bug, |_, _| {})
}

/// So many seeds from one on. `tell` is called after each with how many there were, and what has happened in them.
fn search_from(
    first: u64,
    seeds: u64,
    bug: Bug,
    tell: impl Fn(u64, Figures) + Sync,
) -> Result<Figures, Failure> {
    let (next, end) = (AtomicU64::new(first), first + seeds);
    let found: Mutex<Option<Failure>> = Mutex::new(None);
    let total = Mutex::new((0, Figures::default()));
    let work = || loop {
        let seed = next.fetch_add(1, Ordering::Relaxed);
        if seed >= end {
            break;
        }
        match run(plan(seed, bug)) {
            Ok(figures) => {
                let mut total = total.lock().unwrap_or_else(PoisonError::into_inner);
                *total = (total.0 + 1, add(total.1, figures));
                tell(total.0, total.1);
            }
            Err(failure) => {
                next.store(end, Ordering::Relaxed);
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                if found.as_ref().is_none_or(|known| known.seed > failure.seed) {
                    *found = Some(failure);
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(work);
        }
    });
    match found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(failure) => Err(failure),
        None => Ok(total.into_inner().unwrap_or_else(PoisonError::into_inner).1),
    }
}

fn add(a: Figures, b: Figures) -> Figures {
    Figures {
        time_us: a.time_us + b.time_us,
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
    let began = Instant::now();
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

/// The long search: seeds beyond those of every `make check`. `STEAD_FIRST` is the first one, so that a search can be made in
/// parts; it says how far it is every half minute.
#[test]
fn search_conf() {
    let (first, seeds) = (number("STEAD_FIRST").unwrap_or(0), number("STEAD_SEEDS").unwrap_or(100_000));
    let (began, told) = (Instant::now(), AtomicU64::new(0));
    let line = |done: u64, figures: Figures| {
        let (hours, spent) = (figures.time_us as f64 / 3.6e9, began.elapsed().as_secs_f64());
        println!(
            "{done} of {seeds} seeds from {first} on: {hours:.1} simulated hours ({:.1} s a seed), {:.0} seeds/s",
            hours * 3600.0 / (done as f64).max(1.0),
            done as f64 / spent.max(1e-9)
        );
    };
    let tell = |done, figures| {
        let halves = began.elapsed().as_secs() / 30;
        if told.fetch_max(halves, Ordering::Relaxed) < halves {
            line(done, figures);
        }
    };
    let figures = search_from(first, seeds, Bug::None, tell).unwrap_or_else(|failure| panic!("{failure}"));
    line(seeds, figures);
    println!("{figures:#?}");
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
