//! Two nodes and a witness.

use super::super::support::{
    BOOT, RECOVERY, cluster, ha_settled, ha_started, loopback, node_is, runs_on, start,
};
use anyhow::{Result, ensure};
use stead_testbed::api::until;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;

/// Whether the witness is seen as `online`, with its vote.
async fn witness_is(api: &ApiClient, online: bool) -> Result<()> {
    until("the witness's state", RECOVERY, async || {
        let device = api.get("/cluster/config/qdevice").await?;
        let seen = &device["witnesses"][0];
        Ok((seen["online"] == i32::from(online) && seen["votes"] == 1).then_some(()))
    })
    .await
}

/// The nodes as clients see them.
async fn nodes(api: &ApiClient) -> Result<Vec<String>> {
    let rows = api.get("/nodes").await?;
    let names = rows.as_array().into_iter().flatten().filter_map(|n| n["node"].as_str());
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    Ok(names)
}

#[test]
fn two_nodes_and_a_witness_recover_a_guest() {
    loopback(async |builder| {
        let cluster: Cluster = cluster(builder.witness()).await?;
        let (api, other) = (cluster.api(0).await?, cluster.api(1).await?);
        witness_is(&api, true).await?;
        ensure!(nodes(&api).await? == ["n1", "n2"], "the witness is shown as a place for guests");
        cluster.create_tick_guest(0, VM).await?;
        start(&cluster, &api, 0, VM).await?;
        ha_started(&api, VM).await?;
        ha_settled(&api, VM).await?;

        until("the cluster knows that it survives the loss of any one node", RECOVERY, async || {
            let status = api.get("/cluster/ha/status/current").await?;
            Ok(status.as_array().is_some_and(|all| all.iter().any(|r| r["survives"] == 1)).then_some(()))
        })
        .await?;

        // Nothing is to run on it, whoever asks.
        for (path, form, why) in [
            ("/nodes/n3/qemu", [("vmid", "200"), ("memory", "16")], "is a witness"),
            (&*format!("/nodes/n1/qemu/{VM}/migrate"), [("target", "n3"), ("online", "1")], "400 Parameter"),
        ] {
            let refused = api.post(path, &form).await.unwrap_err().to_string();
            ensure!(refused.contains(why), "{path}: {refused}");
        }

        // Without it the nodes go on.
        cluster.node(2).power_off()?;
        witness_is(&other, false).await?;
        other.put(&format!("/nodes/n1/qemu/{VM}/config"), &[("description", "alone")]).await?;
        cluster.node(2).power_on()?;
        witness_is(&other, true).await?;

        // With it one node has a majority, and recovers the other's guest.
        cluster.node(0).power_off()?;
        runs_on(&cluster, &other, VM, RECOVERY, |n| n == 1).await?;
        cluster.node(0).power_on()?;
        cluster.wait_up(cluster.node(0)).await?;
        node_is(&cluster, &other, 0, true).await?;
        ensure!(!cluster.node(0).runs_a_guest(), "n1 runs what was recovered");

        // A node leads, not the witness, whatever happened.
        until("a node leads", BOOT, async || {
            let device = other.get("/cluster/config/qdevice").await?;
            Ok((device["witnesses"][0]["leads"] == 0).then_some(()))
        })
        .await
    });
}
