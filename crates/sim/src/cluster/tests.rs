use super::*;

fn find(first: u64, seeds: u64, plan: Plan) -> Finding {
    let jobs = std::thread::available_parallelism().map_or(2, usize::from);
    Search { first, seeds, time: None, plan, jobs }.run(|_| {})
}

fn hold(first: u64, seeds: u64, plan: Plan) -> Progress {
    let finding = find(first, seeds, plan);
    if let Some(found) = finding.found {
        let (cut, outcome) = shrink(found.seed, &plan).unwrap_or_else(|| unreachable!("it replays"));
        panic!("seed {}: {}\n{cut:?}\n{}", found.seed, found.breach, outcome.story.join("\n"));
    }
    finding.progress
}

#[test]
fn a_calm_cluster_runs_its_guests() {
    let calm = Plan { faults: Duration::from_secs(1), healing: Duration::from_secs(60), ..Plan::default() };
    hold(0, 20, calm);
}

#[test]
fn a_seed_is_one_history() {
    let plan = Plan::default();
    let (one, two) = (run(7, &plan), run(7, &plan));
    assert_eq!(one, two);
    assert_ne!(one.events, run(8, &plan).events);
    let told = replay(7, &plan, &Cut::default(), true);
    assert_eq!((told.events, told.acts), (one.events, one.acts), "telling changes nothing");
    assert!(told.story.len() > 50);
}

/// What every check runs, and continuous integration more of. A search that does not reach what it is for would hold everything.
#[test]
fn no_guest_runs_twice_and_all_heal() {
    let seeds = std::env::var("STEAD_CHECK_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(800);
    let progress = hold(0, seeds, Plan::default());
    for reached in
        [progress.recoveries, progress.resets, progress.thaws, 3 * progress.moves, 4 * progress.offs]
    {
        assert!(reached > seeds * 9 / 20, "{progress:?}");
    }
    hold(10_000, 100, Plan { nodes: 5, guests: 5, ..Plan::default() });
    hold(20_000, 100, Plan { nodes: 4, guests: 4, ..Plan::default() });
}

/// A search that finds nothing proves nothing before it has found what was put there, by an invariant that is about it.
#[test]
fn every_planted_mistake_is_found() {
    const SAFETY: [&str; 3] = ["once", "owner", "leased"];
    // Where each search begins is near where it once found something, to save time; the range is wide.
    for (plant, first, by) in [
        (Plant::SilenceIsLoss, 0, &SAFETY[..]),
        (Plant::LeaseFromAnswer, 4990, &SAFETY),
        (Plant::UnconfirmedGrant, 4215, &SAFETY),
        (Plant::LossIsSettled, 890, &SAFETY),
        (Plant::NewLeaderNoWait, 0, &SAFETY),
        (Plant::LostNotSticky, 440, &SAFETY),
        (Plant::EpochUnchecked, 360, &["reasons", "once", "owner"]),
        (Plant::ArmedBeforeRegistered, 0, &SAFETY),
        (Plant::ThawUnasked, 10, &SAFETY),
        (Plant::ThawBeforeDecision, 0, &SAFETY),
        (Plant::ThawAcrossEpoch, 440, &SAFETY),
        (Plant::StopUnverified, 185, &SAFETY),
        (Plant::ThawInHandover, 9820, &SAFETY),
        (Plant::ProfileShrunk, 480, &SAFETY),
        (Plant::SlowWatchdog, 0, &SAFETY),
        (Plant::NoReset, 0, &SAFETY),
        (Plant::NobodyEnters, 0, &["healed"]),
        (Plant::RulesUnseen, 70, &["rules"]),
        (Plant::FailureUncounted, 20, &["counters"]),
        (Plant::WrongTarget, 0, &["reasons"]),
        (Plant::OffOnOrder, 6550, &SAFETY),
        (Plant::OffByOneOutlet, 505, &SAFETY),
        (Plant::LeaseAfterOrder, 10, &SAFETY),
        (Plant::RestartUnmarked, 295, &SAFETY),
        (Plant::UnmarkUnshortened, 760, &SAFETY),
        (Plant::HangIsEnd, 145, &SAFETY),
        (Plant::KeptUnnamed, 7240, &SAFETY),
        (Plant::ContinueLate, 352_570, &SAFETY),
    ] {
        let found = find(first, 10_000, plant.plan(Plan::default())).found;
        let found = found.unwrap_or_else(|| panic!("{plant:?} was not found"));
        assert!(by.contains(&found.breach.invariant), "{plant:?} was found by something else: {found:?}");
    }
}

/// The same over the real consensus. Its histories are dearer.
#[test]
fn no_guest_runs_twice_over_the_real_consensus() {
    let plan = Plan { conf: Conf::Real, ..Plan::default() };
    let seeds = number("STEAD_REAL_SEEDS", 100);
    let progress = hold(0, seeds, plan);
    for reached in [progress.recoveries, progress.resets, progress.thaws, 4 * progress.moves] {
        assert!(reached > seeds * 9 / 20, "{progress:?}");
    }
    hold(10_000, seeds / 5, Plan { nodes: 9, guests: 4, ..plan });
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|s| s.parse().ok()).unwrap_or(default)
}

#[test]
fn a_seed_is_one_history_over_the_real_consensus() {
    let plan = Plan { conf: Conf::Real, ..Plan::default() };
    for seed in [7, 40] {
        let (one, two) = (run(seed, &plan), run(seed, &plan));
        assert_eq!(one, two);
        let told = replay(seed, &plan, &Cut::default(), true);
        assert_eq!((told.events, told.acts), (one.events, one.acts), "telling changes nothing");
    }
}

/// Mistakes of each kind are found over it too: in who counts as lost, in leadership, in a recovery's checks, on a node that comes
/// back, in the manager.
#[test]
fn planted_mistakes_are_found_over_the_real_consensus() {
    for (plant, first, by) in [
        (Plant::SilenceIsLoss, 0, "owner"),
        (Plant::LossIsSettled, 100, "owner"),
        (Plant::NewLeaderNoWait, 0, "owner"),
        (Plant::EpochUnchecked, 10, "reasons"),
        (Plant::ArmedBeforeRegistered, 0, "leased"),
        (Plant::ThawUnasked, 10, "owner"),
        (Plant::NobodyEnters, 0, "healed"),
        (Plant::RulesUnseen, 70, "rules"),
        (Plant::RestartUnmarked, 130, "owner"),
    ] {
        let found = find(first, 2000, plant.plan(Plan { conf: Conf::Real, ..Plan::default() })).found;
        let found = found.unwrap_or_else(|| panic!("{plant:?} was not found"));
        assert_eq!(found.breach.invariant, by, "{plant:?} was found by something else: {found:?}");
    }
}

/// What is found over it is shrunk, and replays.
#[test]
fn what_is_found_over_the_real_consensus_is_shrunk() {
    let plan = Plant::ThawUnasked.plan(Plan { conf: Conf::Real, ..Plan::default() });
    let seed = find(10, 2000, plan).found.map(|f| f.seed).unwrap_or_else(|| panic!("nothing was found"));
    let (cut, told) = shrink(seed, &plan).unwrap_or_else(|| panic!("it does not replay"));
    let left = cut.only.as_ref().map_or(usize::MAX, BTreeSet::len);
    assert!(left < 8, "{left} acts are left");
    assert_eq!(replay(seed, &plan, &cut, true), told);
}

/// More seeds than a check has time for.
#[test]
fn search_long_over_the_real_consensus() {
    let seeds = number("STEAD_SEEDS", 10_000);
    hold(0, seeds / 10, Plan { conf: Conf::Real, ..Plan::default() });
    hold(0, seeds / 40, Plan { nodes: 5, guests: 6, conf: Conf::Real, ..Plan::default() });
}

/// The promise rests on clocks that err by 1 % at most. It does not hold for worse ones.
#[test]
fn clocks_beyond_the_bound_break_the_promise() {
    let plan = Plan { drift: 200, healing: Duration::ZERO, ..Plan::default() };
    // Near where it once found something, as above.
    assert!(find(1800, 10_000, plan).found.is_some());
}

#[test]
fn what_is_found_is_shrunk_and_replays() {
    let plan = Plant::LostNotSticky.plan(Plan::default());
    let seed = find(440, 10_000, plan).found.map(|f| f.seed).unwrap_or_else(|| panic!("nothing was found"));
    let whole = run(seed, &plan);
    let (cut, told) = shrink(seed, &plan).unwrap_or_else(|| panic!("it does not replay"));
    let left = cut.only.as_ref().map_or(usize::MAX, BTreeSet::len);
    assert!(left < whole.acts.len() / 2 && left < 8, "{left} of {} acts are left", whole.acts.len());
    let invariant = |o: &Outcome| o.broken.as_ref().map(|b| b.invariant);
    assert_eq!(invariant(&told), invariant(&whole));
    assert_eq!(replay(seed, &plan, &cut, true), told);
    let acts = told.story.iter().filter(|line| line.contains("  * ")).count();
    assert_eq!(acts, left, "the story tells each act");
    // Nothing more can go.
    for act in cut.only.iter().flatten() {
        let only = cut.only.iter().flatten().copied().filter(|n| n != act).collect();
        let less = Cut { only: Some(only), ..cut.clone() };
        assert_ne!(
            invariant(&replay(seed, &plan, &less, false)),
            invariant(&whole),
            "act {act} is not needed"
        );
    }
}

#[test]
fn a_search_finds_the_first_seed_whatever_its_threads() {
    let plan = Plant::SlowWatchdog.plan(Plan::default());
    let of = |jobs| Search { first: 0, seeds: 50, time: None, plan, jobs }.run(|_| {}).found;
    assert!(of(1).is_some());
    assert_eq!(of(1), of(4));
    let bounded = Search {
        first: 0,
        seeds: u64::MAX,
        time: Some(Duration::from_secs(600)),
        plan: Plan::default(),
        jobs: 2,
    };
    let progress = bounded.run(|_| {}).progress;
    assert!((5..20).contains(&progress.seeds) && progress.time >= Duration::from_secs(600), "{progress:?}");
}

#[test]
fn plants_have_names() {
    let names: BTreeSet<&str> = Plant::ALL.iter().map(|p| p.name()).collect();
    assert_eq!(names.len(), Plant::ALL.len());
    assert!(Plant::ALL.iter().all(|p| Plant::named(p.name()) == Some(*p)));
}

/// More seeds than a check has time for.
#[test]
fn search_long() {
    let seeds = std::env::var("STEAD_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    hold(0, seeds, Plan::default());
    hold(0, seeds / 4, Plan { nodes: 5, guests: 6, ..Plan::default() });
}
