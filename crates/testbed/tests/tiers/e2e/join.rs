//! A node that has guests of its own joins a cluster.

use super::super::support::{BOOT, RECOVERY, loopback, start};
use anyhow::{Context, Result, ensure};
use stead_testbed::api::until;
use stead_testbed::guest::tick;
use stead_testbed::{ApiClient, Cluster};

const VM: u32 = 100;

/// Gives a node's own cluster a storage at the testbed's shared folder.
async fn storage(cluster: &Cluster, api: &ApiClient, shared: &str) -> Result<()> {
    let path = cluster.shared_dir().display().to_string();
    let form =
        [("storage", "shared"), ("type", "dir"), ("path", &path), ("shared", shared), ("content", "images")];
    api.post("/storage", &form).await.map(drop)
}

/// What a join says that fails.
async fn refused(cluster: &Cluster, newcomer: &ApiClient) -> Result<String> {
    let info = cluster.api(0).await?.get("/cluster/config/join").await?;
    let fingerprint = info["nodelist"][0]["pve_fp"].as_str().context("no fingerprint")?;
    let hostname = cluster.node(0).addr().to_string();
    let form =
        [("hostname", hostname.as_str()), ("fingerprint", fingerprint), ("password", cluster.password())];
    let joined = match newcomer.post("/cluster/config/join", &form).await {
        Ok(task) => newcomer.wait_task(&task, BOOT).await,
        Err(e) => Err(e),
    };
    Ok(format!("{:#}", joined.err().context("the join went through")?))
}

#[test]
fn a_node_brings_its_guests_and_their_storage_into_the_cluster() {
    loopback(async |builder| {
        let cluster = builder.nodes(2).start().await?;
        let (member, newcomer) = (cluster.api(0).await?, cluster.api(1).await?);
        storage(&cluster, &newcomer, "1").await?;
        cluster.create_tick_guest(1, VM).await?;
        start(&cluster, &newcomer, 1, VM).await?;
        let why = refused(&cluster, &newcomer).await?;
        ensure!(why.contains("guest 100 is already running"), "{why}");
        newcomer.post_and_wait(&format!("/nodes/n2/qemu/{VM}/status/stop"), &[], BOOT).await?;

        // Another storage of that name, and another guest of that number.
        storage(&cluster, &member, "0").await?;
        let why = refused(&cluster, &newcomer).await?;
        ensure!(why.contains("storage 'shared' (used by VM 100)"), "{why}");
        member.call(http::Method::DELETE, "/storage/shared", &[]).await?;
        let vmid = VM.to_string();
        member.post_and_wait("/nodes/n1/qemu", &[("vmid", &vmid)], BOOT).await?;
        let why = refused(&cluster, &newcomer).await?;
        ensure!(why.contains("VMIDs exist on both sides: 100"), "{why}");
        member.call(http::Method::DELETE, &format!("/nodes/n1/qemu/{VM}"), &[]).await?;
        until("VM 100 of n1 is gone", BOOT, async || {
            let rows = member.get("/cluster/resources?type=vm").await?;
            Ok(rows.as_array().is_some_and(Vec::is_empty).then_some(()))
        })
        .await?;
        let kept = newcomer.get(&format!("/nodes/n2/qemu/{VM}/config")).await?;
        ensure!(kept["name"] == "tick-100", "a refused join changes nothing: {kept}");

        cluster.join(1).await?;
        let row = until("the guest has come along", RECOVERY, async || {
            Ok(cluster.guest_row(&member, VM).await.ok())
        })
        .await?;
        ensure!(row["node"] == "n2" && row["name"] == "tick-100", "{row}");
        let storage = member.get("/storage/shared").await?;
        ensure!(storage["nodes"] == "n2" && storage["shared"] == 1, "{storage}");
        start(&cluster, &cluster.api(1).await?, 1, VM).await?;
        let disk = cluster.disk_path(VM, 0);
        until("it ticks", BOOT, async || Ok(tick::read_cell(&disk)?.filter(|c| c.count > 0))).await?;
        Ok(())
    });
}
