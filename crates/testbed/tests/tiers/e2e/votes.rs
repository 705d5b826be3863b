//! Who votes follows from where nodes stand, and from who answers.

use super::super::support::{RECOVERY, about, loopback};
use super::epochs::done;
use anyhow::{Result, ensure};
use std::collections::BTreeSet;
use stead_testbed::api::until;
use stead_testbed::{ApiClient, Cluster};

/// The numbers of the nodes that vote.
async fn voters(api: &ApiClient) -> Result<BTreeSet<usize>> {
    let rows = api.get("/cluster/status").await?;
    let votes = rows.as_array().into_iter().flatten().filter(|r| r["votes"] == 1);
    Ok(votes.filter_map(|r| r["name"].as_str()?.strip_prefix('n')?.parse().ok()).collect())
}

async fn vote(api: &ApiClient, what: &str, is: impl Fn(&BTreeSet<usize>) -> bool) -> Result<BTreeSet<usize>> {
    until(what, RECOVERY, async || Ok(Some(voters(api).await?).filter(&is))).await
}

async fn stands(cluster: &Cluster, node: &str, rack: &str) -> Result<String> {
    done(cluster.node(0), &["node", "place", node, "--rack", rack]).await
}

#[test]
fn votes_are_spread_over_racks_and_leave_a_node_that_is_off() {
    loopback(async |builder| {
        let cluster = builder.nodes(6).argument("--replace-voters-after=3").form().await?;
        let api = cluster.api(0).await?;
        let first = vote(&api, "five of six vote", |v| v.len() == 5).await?;
        ensure!(!first.contains(&6), "the one who came last has no vote: {first:?}");

        // Four of them in one rack: one too many.
        for (node, rack) in
            [("n1", "r1"), ("n2", "r1"), ("n3", "r1"), ("n4", "r2"), ("n5", "r3"), ("n6", "r3")]
        {
            stands(&cluster, node, rack).await?;
        }
        let leads = cluster.leader(&api).await? + 1;
        let of = |v: &BTreeSet<usize>, rack: &[usize]| rack.iter().filter(|n| v.contains(n)).count();
        let spread = vote(&api, "no rack has three votes of five", |v| {
            v.len() == 5 && of(v, &[1, 2, 3]) == 2 && of(v, &[4]) == 1 && of(v, &[5, 6]) == 2
        })
        .await?;
        ensure!(spread.contains(&leads), "the leader keeps its vote");
        let about_it = about(&api).await?["spread"].to_string();
        ensure!(
            about_it.contains("'r1' 2, 'r2' 1, 'r3' 2; with all of them on, a majority is left"),
            "{about_it}"
        );
        let shown = done(cluster.node(1), &["cluster", "status"]).await?;
        ensure!(shown.contains("votes by rack: ") && shown.contains("RACK"), "{shown}");

        // The one without a vote moves to a rack of its own.
        let idle = (1..=6).find(|n| !spread.contains(n)).unwrap_or(6);
        stands(&cluster, &format!("n{idle}"), "r4").await?;
        let spread = vote(&api, "the fourth rack has a vote", |v| v.len() == 5 && v.contains(&idle)).await?;

        // A voter is off: the one without a vote gets its.
        let off = *spread.iter().rfind(|n| **n != 1 && **n != leads).unwrap_or(&5);
        let idle = (1..=6).find(|n| !spread.contains(n)).unwrap_or(6);
        cluster.node(off - 1).power_off()?;
        let now =
            vote(&api, "the silent one's vote has moved", |v| v.len() == 5 && !v.contains(&off)).await?;
        ensure!(now.contains(&idle), "{now:?}");
        let place = done(cluster.node(0), &["node", "place", &format!("n{off}"), "-o", "json"]).await?;
        ensure!(place.contains("\"rack\""), "{place}");
        Ok(())
    });
}
