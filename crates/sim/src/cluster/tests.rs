use super::*;

fn search(seeds: std::ops::Range<u64>, plan: Plan) -> Option<(u64, Outcome)> {
    seeds.map(|seed| (seed, run(seed, plan))).find(|(_, outcome)| outcome.broken.is_some())
}

fn hold(seeds: std::ops::Range<u64>, plan: Plan) {
    if let Some((seed, outcome)) = search(seeds, plan) {
        let trace = outcome.trace.join("\n");
        panic!("seed {seed}: {}\n{trace}", outcome.broken.unwrap_or_default());
    }
}

#[test]
fn a_calm_cluster_runs_its_guests() {
    let calm = Plan { faults: Duration::from_secs(1), healing: Duration::from_secs(20), ..Plan::default() };
    hold(0..20, calm);
}

#[test]
fn a_seed_is_one_history() {
    let (one, two) = (run(7, Plan::default()), run(7, Plan::default()));
    assert_eq!(one, two);
    assert_ne!(one.events, run(8, Plan::default()).events);
}

#[test]
fn no_guest_runs_twice_and_all_heal() {
    hold(0..450, Plan::default());
    hold(1000..1060, Plan { nodes: 5, guests: 5, ..Plan::default() });
}

#[test]
fn faults_reach_what_matters() {
    let outcomes: Vec<Outcome> = (0..50).map(|seed| run(seed, Plan::default())).collect();
    let sum = |f: fn(&Outcome) -> u32| outcomes.iter().map(f).sum::<u32>();
    assert!(sum(|o| o.recoveries) > 50, "{} recoveries", sum(|o| o.recoveries));
    assert!(sum(|o| o.resets) > 20, "{} resets", sum(|o| o.resets));
    assert!(sum(|o| o.thaws) > 20, "{} thaws", sum(|o| o.thaws));
}

/// A search that finds nothing proves nothing before it has found what was put there.
#[test]
fn every_planted_mistake_is_found() {
    // Where each search begins is near where it once found something, to save time; the range is wide.
    for (plant, first) in [
        (Plant::LossIsSettled, 150),
        (Plant::LeaseFromAnswer, 150),
        (Plant::UnconfirmedGrant, 1480),
        (Plant::ThawUnasked, 0),
        (Plant::SilenceIsLoss, 0),
        (Plant::SlowWatchdog, 0),
        (Plant::NoReset, 0),
    ] {
        let plan = Plan { plant, healing: Duration::ZERO, ..Plan::default() };
        assert!(search(first..first + 4000, plan).is_some(), "{plant:?} was not found");
    }
}

/// More seeds than a check has time for.
#[test]
fn search_long() {
    let seeds = std::env::var("STEAD_SEEDS").ok().and_then(|s| s.parse().ok()).unwrap_or(10_000);
    hold(0..seeds, Plan::default());
    hold(0..seeds / 4, Plan { nodes: 5, guests: 6, ..Plan::default() });
}
