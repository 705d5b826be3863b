//! The leader's node loses its network, then its power → the first commit by another leader.

use super::super::super::support::{cluster, namespaces, node_is};
use super::super::{Figures, Report, now, runs, verdict};
use super::{OPTIONS, commit, leaders, moment, of_day};
use anyhow::{Context, Result};
use std::time::Duration;
use stead_testbed::{ApiClient, Cluster};

/// How long a writer waits until it asks again.
const AGAIN: Duration = Duration::from_millis(20);

/// One loss. Seconds after the network's end.
struct Run {
    /// A survivor knows another leader, by its log.
    elected: f64,
    /// The first answer to a write that was sent after it.
    committed: f64,
}

#[test]
fn conf_leader_lost() {
    namespaces(async |builder| {
        let mut cluster = cluster(builder).await?;
        let all = measured(&cluster).await;
        if all.is_err() {
            cluster.keep_logs();
        }
        report(&all?)
    });
}

async fn measured(cluster: &Cluster) -> Result<Vec<Run>> {
    let mut all = Vec::new();
    for n in 0..runs(50) {
        let run = one(cluster, n).await.with_context(|| format!("run {n}"))?;
        println!("run {n}: elected {:.3}, committed {:.3} s", run.elected, run.committed);
        all.push(run);
    }
    Ok(all)
}

async fn one(cluster: &Cluster, n: usize) -> Result<Run> {
    let at = cluster.leader(&cluster.api(n % 3).await?).await?;
    let others: Vec<usize> = (0..3).filter(|other| *other != at).collect();
    let mut clients = Vec::new();
    for &other in &others {
        clients.push(cluster.api(other).await?);
    }
    for client in &clients {
        commit(client, OPTIONS, "before").await?;
    }
    // What is sent from here on cannot be committed by the old leader: nobody hears it any more.
    cluster.network()?.link(at as u8 + 1, false)?;
    let (begin, begin_of_day) = (now(), of_day());
    cluster.node(at).power_off()?;
    let [first, second] = &clients[..] else { anyhow::bail!("two survivors were expected") };
    let committed = tokio::select! {
        moment = first_commit(first, n, 1) => moment,
        moment = first_commit(second, n, 2) => moment,
    };
    let mut elected = f64::NAN;
    for &other in &others {
        let told = leaders(&cluster.node(other).log())?;
        let first =
            told.into_iter().find(|(at, is)| *is && *at >= begin_of_day).map(|(at, _)| at - begin_of_day);
        elected = elected.min(first.unwrap_or(f64::NAN));
    }
    cluster.node(at).power_on()?;
    cluster.wait_up(cluster.node(at)).await?;
    for client in &clients {
        node_is(cluster, client, at, true).await?;
    }
    Ok(Run { elected, committed: committed - begin })
}

/// Writes until it is answered; when that was.
async fn first_commit(client: &ApiClient, n: usize, who: usize) -> f64 {
    loop {
        let written = tokio::time::timeout(
            Duration::from_secs(1),
            commit(client, OPTIONS, &format!("run {n} by {who}")),
        )
        .await;
        match written {
            Ok(Ok(_)) => return now(),
            Ok(Err(_)) | Err(_) => tokio::time::sleep(AGAIN).await,
        }
    }
}

fn report(all: &[Run]) -> Result<()> {
    let mut report = Report::new("The leader's node is lost → the first commit by another leader");
    report.table("seconds after the leader was cut off | n | min | p50 | p99 | max | aim");
    let figures = |of: fn(&Run) -> f64| all.iter().map(of).filter(|x| !x.is_nan()).collect::<Figures>();
    let row = |report: &mut Report, what: &str, of: &Figures, aim: String| {
        let (n, p99) = (of.0.len(), of.quantile(0.99));
        let (min, p50, max) = (of.min(), of.p50(), of.max());
        report.row(&format!("{what} | {n} | {min:.2} | {p50:.2} | {p99:.2} | {max:.2} | {aim}"));
    };
    let committed = figures(|run| run.committed);
    let aims =
        [verdict("p50 ≤ 1.5", committed.p50() <= 1.5), verdict("p99 ≤ 3", committed.quantile(0.99) <= 3.0)];
    row(&mut report, "first commit", &committed, aims.join(", "));
    row(&mut report, "of that: another leader is known", &figures(|run| run.elected), String::new());
    row(&mut report, "→ its first commit", &figures(|run| run.committed - run.elected), String::new());
    report.publish()
}

#[test]
fn a_line_of_a_log_and_the_clock_agree() {
    let line = format!("2026-11-23T{}Z  INFO", "00:00:01.5");
    assert!(moment(&line).is_some_and(|at| (at - 1.5).abs() < 1e-6) && of_day() < 86_400.0);
}
