//! Links on which all that is sent takes 50 ms: does the leader stay, and how long does a commit take?

use super::super::super::support::{RECOVERY, cluster, namespaces, node_is};
use super::super::{Figures, Report, verdict};
use super::{commit, leaders, of_day};
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use stead_testbed::delay::SlowLinks;
use stead_testbed::{ApiClient, Cluster};

/// Each node has a VM, of whose number this is the first: its clients change nothing that another changes.
const VM: u32 = 100;
/// Between two commits of one client.
const PAUSE: Duration = Duration::from_millis(500);
/// Until all connections that the change has broken are there again.
const SETTLED: Duration = Duration::from_secs(20);

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// `STEAD_BENCH_MINUTES` says how long, `STEAD_BENCH_DELAY_MS` how slow.
#[test]
fn conf_slow_links() {
    namespaces(async |builder| {
        let mut cluster = cluster(builder).await?;
        let done = measured(&cluster).await;
        if done.is_err() {
            cluster.keep_logs();
        }
        done
    });
}

async fn measured(cluster: &Cluster) -> Result<()> {
    let (minutes, delay) = (number("STEAD_BENCH_MINUTES", 10), number("STEAD_BENCH_DELAY_MS", 50));
    for n in 0..3 {
        cluster.create_tick_guest(n, VM + n as u32).await?;
    }
    let fast = commits(cluster, Duration::from_secs(5)).await?;
    let links =
        SlowLinks::lay(cluster.network()?, cluster.node(0).addr().port(), Duration::from_millis(delay))?;
    tokio::time::sleep(SETTLED).await;
    for n in 0..3 {
        let client = cluster.api(n).await?;
        for seen in 0..3 {
            node_is(cluster, &client, seen, true).await?;
        }
        let settled = tokio::time::timeout(RECOVERY, commit(&client, &of(cluster, n), "settled")).await?;
        settled.context("no commit over slow links")?;
    }
    let begin = of_day();
    let slow = commits(cluster, Duration::from_secs(60 * minutes)).await?;
    let mut elections = 0;
    for node in cluster.nodes() {
        let told = leaders(&node.log())?;
        elections += told.iter().filter(|(at, _)| *at >= begin).count();
    }
    drop(links);
    report(minutes, delay, elections, &fast, &slow)
}

/// What a node's client changes.
fn of(cluster: &Cluster, n: usize) -> String {
    format!("/nodes/{}/qemu/{}/config", cluster.node(n).name(), VM + n as u32)
}

/// Milliseconds of commits by the leader's node, and by the others, for some time.
async fn commits(cluster: &Cluster, lasting: Duration) -> Result<[Figures; 2]> {
    let leader = cluster.leader(&cluster.api(0).await?).await?;
    let mut clients = Vec::new();
    for n in 0..3 {
        clients.push(cluster.api(n).await?);
    }
    let end = Instant::now() + lasting;
    let one = async |(n, client): (usize, &ApiClient)| {
        let (of, mut took) = (of(cluster, n), Vec::new());
        while Instant::now() < end {
            took.push(commit(client, &of, &format!("{:?}", end - Instant::now())).await?.as_secs_f64() * 1e3);
            tokio::time::sleep(PAUSE).await;
        }
        anyhow::Ok(took)
    };
    let all = futures_util::future::try_join_all(clients.iter().enumerate().map(one)).await?;
    let mut figures = [Figures::default(), Figures::default()];
    for (n, took) in all.into_iter().enumerate() {
        figures[usize::from(n != leader)].0.extend(took);
    }
    Ok(figures)
}

fn report(
    minutes: u64,
    delay: u64,
    elections: usize,
    fast: &[Figures; 2],
    slow: &[Figures; 2],
) -> Result<()> {
    let mut report = Report::new(&format!("Links of {delay} ms each way"));
    report.table("ms of a change of a VM by the API | n | min | p50 | p99 | max");
    for (what, all) in [("links as they are", fast), ("slow links", slow)] {
        for (at, of) in [("the leader's node", &all[0]), ("the others", &all[1])] {
            let (min, p50, p99, max) = (of.min(), of.p50(), of.quantile(0.99), of.max());
            let n = of.0.len();
            report.row(&format!("{what}, at {at} | {n} | {min:.1} | {p50:.1} | {p99:.1} | {max:.1}"));
        }
    }
    let aim = verdict("none", elections == 0);
    report.text(&format!(
        "Changes of leader or term that a node has told of in {minutes} minutes: {elections} ({aim})."
    ));
    report.publish()
}
