//! Faults on a real cluster, over and over, as long as `STEAD_SOAK_MINUTES` says. Which, and on whom, is drawn from
//! `STEAD_SOAK_SEED`; it is told at the beginning, so that a run can be drawn again.

use super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, ha_takes, namespaces, node_is, one_writer, runs_on,
};
use anyhow::{Context, Result, ensure};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use std::time::{Duration, Instant};
use stead_testbed::Cluster;
use stead_testbed::api::ApiClient;
use stead_testbed::poll::Poller;

const VM: u32 = 100;

#[derive(Debug, Clone, Copy)]
enum Fault {
    PowerOff,
    KillDaemon,
    RestartDaemon,
    LongRestart,
    HangDaemon,
    ShortFreeze,
    /// Long enough for its watchdog.
    LongFreeze,
    CutOff,
    HeardByNobody,
    HearsNobody,
    Switch,
    Migrate,
}

const FAULTS: [Fault; 12] = [
    Fault::PowerOff,
    Fault::KillDaemon,
    Fault::RestartDaemon,
    Fault::LongRestart,
    Fault::HangDaemon,
    Fault::ShortFreeze,
    Fault::LongFreeze,
    Fault::CutOff,
    Fault::HeardByNobody,
    Fault::HearsNobody,
    Fault::Switch,
    Fault::Migrate,
];

fn of_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|value| value.parse().ok())
}

#[test]
fn faults_over_and_over() {
    let minutes = of_env("STEAD_SOAK_MINUTES").unwrap_or(30);
    let seed = of_env("STEAD_SOAK_SEED").unwrap_or_else(rand::random);
    println!("STEAD_SOAK_SEED={seed}");
    namespaces(async |builder| {
        let mut cluster = cluster(builder.watchdog()).await?;
        let soaked = soak(&cluster, seed, minutes).await;
        if soaked.is_err() {
            for n in 0..3 {
                let node = cluster.node(n);
                let (resets, bites) = ends_of(&cluster)[n];
                eprintln!("n{}: {resets} resets, {bites} by its watchdog; {:?}", n + 1, node.processes());
            }
            cluster.keep_logs();
        }
        soaked
    });
}

async fn soak(cluster: &Cluster, seed: u64, minutes: u64) -> Result<()> {
    cluster.create_http_guest(0, VM, "soak").await?;
    let api = cluster.api(0).await?;
    ha_started(&api, VM).await?;
    let poller = Poller::start(cluster.guest_places(VM));
    let mut drawn = StdRng::seed_from_u64(seed);
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut round = 0u32;
    while Instant::now() < end {
        round += 1;
        let ends = ends_of(cluster);
        let fault = *FAULTS.choose(&mut drawn).context("no faults")?;
        let hit = drawn.random_range(0..3);
        let time = Duration::from_millis(drawn.random_range(5000..20_000));
        let watch = cluster.api((hit + 1) % 3).await?;
        let at = runs_on(cluster, &watch, VM, RECOVERY, |_| true).await?;
        ha_settled(&watch, VM).await?;
        println!("round {round}: {fault:?} on n{} ({time:?}), VM on n{}", hit + 1, at + 1);
        befall(cluster, &watch, fault, hit, at, time).await.with_context(|| format!("round {round}"))?;
        let node = cluster.node(hit);
        let now = poller.now();
        poller.wait(RECOVERY, |s| s.at > now).await.context("an answer after the fault")?;
        node.power_on()?;
        cluster.wait_up(node).await?;
        node_is(cluster, &watch, hit, true).await?;
        one_writer(cluster, VM)?;
        let now = ends_of(cluster);
        let others: Vec<usize> = (0..3).filter(|n| *n != hit && now[*n] != ends[*n]).map(|n| n + 1).collect();
        ensure!(others.is_empty(), "round {round}: nodes {others:?} were reset, which nothing had befallen");
    }
    println!("{round} faults, one writer");
    Ok(())
}

/// How often each node was reset, by its fence process and by its watchdog.
fn ends_of(cluster: &Cluster) -> [(u32, u32); 3] {
    std::array::from_fn(|n| (cluster.node(n).resets(), cluster.node(n).bites()))
}

/// The fault, and its end, if it does not end with the next power-on.
async fn befall(
    cluster: &Cluster,
    watch: &ApiClient,
    fault: Fault,
    hit: usize,
    at: usize,
    time: Duration,
) -> Result<()> {
    let (node, network) = (cluster.node(hit), cluster.network()?);
    // How the network counts it and the next two.
    let number = |step: usize| u8::try_from((hit + step) % 3 + 1);
    let (n, others) = (number(0)?, [number(1)?, number(2)?]);
    match fault {
        Fault::PowerOff => return node.power_off(),
        Fault::KillDaemon => return node.kill_daemon(),
        Fault::RestartDaemon => return node.restart_daemon(),
        Fault::Migrate => {
            let to = (at + 1) % 3;
            ha_takes(cluster, watch, to).await?;
            let path = format!("/nodes/{}/qemu/{VM}/migrate", cluster.node(at).name());
            let order = [("target", cluster.node(to).name()), ("online", "1")];
            return watch.post_and_wait(&path, &order, BOOT).await.map(drop);
        }
        Fault::LongRestart => node.stop_daemon()?,
        Fault::HangDaemon => node.hang_daemon(),
        Fault::ShortFreeze | Fault::LongFreeze => node.freeze(),
        Fault::CutOff => network.link(n, false)?,
        Fault::HeardByNobody => others.iter().try_for_each(|o| network.one_way(n, *o))?,
        Fault::HearsNobody => others.iter().try_for_each(|o| network.one_way(*o, n))?,
        Fault::Switch => network.switch(0, false)?,
    }
    // How long it lasts is drawn too.
    tokio::time::sleep(if matches!(fault, Fault::ShortFreeze) { time / 10 } else { time }).await;
    match fault {
        Fault::LongRestart => node.start_daemon(),
        Fault::HangDaemon => {
            node.wake_daemon();
            Ok(())
        }
        Fault::ShortFreeze | Fault::LongFreeze => {
            node.thaw();
            Ok(())
        }
        Fault::Switch => network.switch(0, true),
        _ => network.heal(),
    }
}
