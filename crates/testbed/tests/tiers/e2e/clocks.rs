//! Clocks that are set wrong, by years: nothing that counts goes by them.

use super::super::support::{
    RECOVERY, about, armed, cluster, loopback, node_is, one_writer, runs_on, warnings,
};
use anyhow::{Context, Result, ensure};
use stead_testbed::api::until;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;

/// Waits until a node's status warns of these nodes' clocks, and of no other's.
async fn warned_of(cluster: &Cluster, at: usize, wrong: &[usize]) -> Result<ApiClient> {
    let expected: Vec<String> =
        wrong.iter().map(|n| format!("clock of node '{}'", cluster.node(*n).name())).collect();
    until(&format!("node {at} knows whose clocks are wrong: {expected:?}"), RECOVERY, async || {
        let Ok(api) = cluster.api(at).await else { return Ok(None) };
        let row = about(&api).await?;
        let said: Vec<&str> = warnings(&row).collect();
        let clocks = said.iter().filter(|w| w.contains("clock of node")).count();
        let all = expected.iter().all(|e| said.iter().any(|w| w.contains(e)));
        Ok((all && clocks == expected.len()).then_some(api))
    })
    .await
}

#[test]
fn nodes_whose_clocks_are_years_off_belong_together_all_the_same() {
    loopback(async |builder| {
        let cluster = cluster(builder).await?;
        let poller = armed(&cluster, 1, VM).await?;
        // Certificates are good for two years; this one sees those of the others ended, then not begun.
        for ahead in ["+3y", "-3y"] {
            cluster.node(1).set_clock(Some(ahead))?;
            let api = warned_of(&cluster, 0, &[1]).await.with_context(|| format!("a clock at {ahead}"))?;
            node_is(&cluster, &api, 1, true).await?;
            // A ticket of one node is good at the other, which goes by the clock of the others.
            let there = warned_of(&cluster, 1, &[1]).await?;
            for (of, at) in [(&api, &there), (&there, &api), (&there, &there)] {
                let asked = of.at(at.addr())?.get("/cluster/resources").await;
                asked.with_context(|| format!("a ticket of {} at {}", of.addr(), at.addr()))?;
            }
            let row = cluster.guest_row(&there, VM).await?;
            ensure!(row["status"] == "running" && row["node"] == cluster.node(1).name(), "{row}");
        }
        // Leases count by another clock: what the node with the wrong one ran is recovered as ever.
        poller.take_counts();
        cluster.node(1).power_off()?;
        let api = cluster.api(0).await?;
        runs_on(&cluster, &api, VM, RECOVERY, |n| n != 1).await?;
        poller.wait(RECOVERY, |s| s.place != 1).await.context("an answer from elsewhere")?;
        one_writer(&cluster, VM)
    });
}
