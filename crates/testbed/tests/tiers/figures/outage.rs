//! The whole network is away for a while, storage is not: how long a guest stands.
//!
//! No node has a majority, so each holds its guests when its lease ends, and lets them go on when it has one again.

use super::super::bench::trace::Traces;
use super::super::bench::{Figures, Report, runs, set};
use super::super::support::{BOOT, RECOVERY, cluster, ha_settled, ha_started, namespaces, start};
use anyhow::{Result, ensure};
use std::time::Duration;
use stead_testbed::Cluster;
use stead_testbed::api::until;
use stead_testbed::guest::tick;

const VM: u32 = 100;
/// Seconds.
const OUTAGES: [u64; 10] = [1, 2, 3, 4, 5, 8, 12, 20, 30, 60];

#[test]
fn frozen_and_thawed() {
    namespaces(async |builder| {
        let cluster = cluster(builder).await?;
        let traces = Traces::new(cluster.dir())?;
        let api = cluster.api(0).await?;
        cluster.create_tick_guest(0, VM).await?;
        set(&cluster, &api, 0, VM, &[("args", &traces.args())]).await?;
        start(&cluster, &api, 0, VM).await?;
        ha_started(&api, VM).await?;
        let mut report = Report::new("The network is away, and comes back (profile `default`)");
        report.table("outage, s | runs | in which it stood | stood, s: min | p50 | max");
        for outage in OUTAGES {
            let mut stood = vec![];
            for _ in 0..runs(5) {
                stood.push(one(&cluster, &traces, Duration::from_secs(outage)).await?);
            }
            println!("{outage} s: {stood:?}");
            let held: Figures = stood.iter().copied().filter(|s| *s > 0.0).collect();
            let cells = match held.0.len() {
                0 => "- | - | -".to_owned(),
                _ => format!("{:.2} | {:.2} | {:.2}", held.min(), held.p50(), held.max()),
            };
            report.row(&format!("{outage} | {} | {} | {cells}", stood.len(), held.0.len()));
        }
        report.publish()
    });
}

/// How long its CPUs stood; zero if they never did.
async fn one(cluster: &Cluster, traces: &Traces, outage: Duration) -> Result<f64> {
    let api = cluster.api(0).await?;
    ha_settled(&api, VM).await?;
    let ensure_one = || {
        let pids = traces.pids();
        ensure!(pids.len() == 1, "it was started anew: {pids:?}");
        Ok(pids.into_iter().next().unwrap_or_default())
    };
    let pid = ensure_one()?;
    let stood = || -> Result<f64> { Ok(traces.of(pid)?.stood()) };
    let before = stood()?;
    let network = cluster.network()?;
    network.switch(0, false)?;
    // The outage itself is what is measured.
    tokio::time::sleep(outage).await;
    network.switch(0, true)?;
    let count = || -> Result<u32> { Ok(tick::read_cell(&cluster.disk_path(VM, 0))?.map_or(0, |c| c.count)) };
    let then = count()?;
    until("the cluster is whole again, and the guest writes", RECOVERY, async || {
        let status = cluster.api(0).await?.get("/cluster/status").await?;
        let rows = status.as_array().map(Vec::as_slice).unwrap_or_default();
        let whole = rows.iter().all(|r| r["online"] != 0 && r["quorate"] != 0 && r["lost"] != 1);
        Ok((whole && count()? > then && ensure_one().is_ok()).then_some(()))
    })
    .await?;
    let cell = until("a tick", BOOT, async || tick::read_cell(&cluster.disk_path(VM, 0))).await?;
    ensure!(cell.conflicts == 0, "the guest ran twice");
    Ok(stood()? - before)
}
