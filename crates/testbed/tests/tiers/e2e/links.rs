//! Nodes with two links, each at a switch of its own: as root.

use super::super::support::{BOOT, RECOVERY, cluster, ha_settled, ha_started, namespaces, start};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::time::{Duration, Instant};
use stead_testbed::api::until;
use stead_testbed::guest::tick;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;
/// Past lease and fence time of the default profile.
const OUTAGE: Duration = Duration::from_secs(10);

/// For how long at a stretch the VM wrote nothing, seen over a time.
async fn longest_silence(cluster: &Cluster, over: Duration) -> Result<Duration> {
    let began = Instant::now();
    let (mut last, mut at, mut longest) = (None, began, Duration::ZERO);
    let mut look = tokio::time::interval(Duration::from_millis(50));
    while began.elapsed() < over {
        look.tick().await;
        let cell = tick::read_cell(&cluster.disk_path(VM, 0))?.context("the VM has never written")?;
        ensure!(cell.conflicts == 0, "two writers");
        longest = longest.max(at.elapsed());
        if last.replace(cell.count) != Some(cell.count) {
            at = Instant::now();
        }
    }
    Ok(longest)
}

/// Waits until the nodes find a link as it is.
async fn shown(api: &ApiClient, link: u8, answers: bool) -> Result<()> {
    until(&format!("link {link} {}", if answers { "answers" } else { "is silent" }), RECOVERY, async || {
        let links = api.get("/cluster/config/links").await?;
        let of: Vec<&Value> =
            links.as_array().context("no list")?.iter().filter(|l| l["link"] == link).collect();
        ensure!(of.len() == 3, "{links}");
        Ok(of.iter().all(|l| l["answers"] == u8::from(answers)).then_some(()))
    })
    .await
}

/// How often any node has lost its lease, by its own word.
fn leases_lost(cluster: &Cluster) -> Result<usize> {
    let mut lost = 0;
    for node in cluster.nodes() {
        lost += std::fs::read_to_string(node.log())?.matches("lease lost").count();
    }
    Ok(lost)
}

#[test]
fn a_dead_switch_costs_nothing_where_there_is_another() {
    namespaces(async |builder| {
        let cluster = cluster(builder.links(2)).await?;
        let api = cluster.api(0).await?;
        let leader = cluster.leader(&api).await?;
        let home = (leader + 1) % 3;
        cluster.create_tick_guest(home, VM).await?;
        start(&cluster, &api, home, VM).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;
        let ticks = async || Ok(tick::read_cell(&cluster.disk_path(VM, 0))?.map(drop));
        until("the VM writes", BOOT, ticks).await?;
        shown(&api, 0, true).await?;
        shown(&api, 1, true).await?;
        let lost = leases_lost(&cluster)?;
        let network = cluster.network()?;
        for dead in [0, 1] {
            let alive = 1 - dead;
            network.switch(dead, false)?;
            let silence = longest_silence(&cluster, OUTAGE).await?;
            println!("switch {dead} off for {OUTAGE:?}: the VM was silent for {silence:?} at most");
            ensure!(silence < Duration::from_secs(2), "the VM was held for {silence:?}");
            let api = cluster.api_by(alive, (leader + 2) % 3).await.context("by the other switch")?;
            ensure!(cluster.leader(&api).await? == leader, "there was an election");
            shown(&api, dead, false).await?;
            // Whatever one node asks another goes on, a live migration as well.
            let (from, to) = (cluster.node(home).name(), cluster.node(leader).name());
            let (from, to) = if dead == 0 { (from, to) } else { (to, from) };
            let migrate = format!("/nodes/{from}/qemu/{VM}/migrate");
            api.post_and_wait(&migrate, &[("target", to), ("online", "1")], BOOT).await?;
            network.switch(dead, true)?;
            shown(&api, dead, true).await?;
        }
        ensure!(leases_lost(&cluster)? == lost, "a lease was lost for a dead switch");

        // Links are taken away and given while all goes on.
        let path = format!("/cluster/config/nodes/{}", cluster.node(leader).name());
        api.put(&path, &[("delete", "link1")]).await?;
        until("the leader no longer serves link 1", BOOT, async || {
            Ok(cluster.api_by(1, leader).await.is_err().then_some(()))
        })
        .await?;
        let ip = stead_testbed::netns::link_ip(1, leader as u8 + 1).to_string();
        api.put(&path, &[("link1", &ip)]).await?;
        shown(&api, 1, true).await?;
        ensure!(leases_lost(&cluster)? == lost, "a lease was lost for a change of links");
        Ok(())
    });
}
